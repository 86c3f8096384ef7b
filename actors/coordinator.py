"""The coordinator: reads rows, hands them to idle workers, records what comes back. It is the driver process.

It decides nothing itself. Every event goes to the ledger, and what the ledger answers is carried out here, in order:

    read a row → assign it → embeddings (once per distinct prompt) → worker → commit its manifest row → seal the shard
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.backbone import VideoProgress, VideoResult, VideoTask
from actors.pool import Pool
from actors.progress import ProgressBoard
from actors.text_encoder import TextStage
from miga.backbones.base import BackboneSpec
from miga.errors import MigaError, Scope
from pipeline.ledger import (
    Abort,
    Assign,
    Commit,
    Decision,
    Ignore,
    Ledger,
    Quarantine,
    ReadRows,
    Requeued,
    Seal,
)
from pipeline.manifest import Manifest
from pipeline.rows import BadRow, ManifestRow, PromptRow, Status, bad_row_key, canonical_json, video_key
from pipeline.run_folder import RunRecord, shard_of, video_path

_POLL_S = 0.5


@dataclass
class _Attempt:
    """A row being made: the stream of what its worker says, and what to remember for its manifest row."""

    row: PromptRow
    number: int
    worker: str
    stream: Any
    encode_text_refs: list[ray.ObjectRef]
    waited_s: float
    last: VideoProgress | VideoResult | None = None


class Coordinator:
    """Makes one run.

    Args:
        record: the run, as run.json has it.
        spec: the model.
        rows: the prompt file, read lazily.
        ledger: the state of the run.
        manifest: where rows are recorded.
        pool: the workers.
        text: the text encoding stage.
        board: the progress display.
        retry_failed: whether rows that an earlier run gave up are tried again.
    """

    def __init__(
        self,
        record: RunRecord,
        spec: BackboneSpec,
        rows: Iterable[PromptRow | BadRow],
        ledger: Ledger,
        manifest: Manifest,
        pool: Pool,
        text: TextStage,
        board: ProgressBoard,
        retry_failed: bool = False,
    ) -> None:
        self._record = record
        self._retry_failed = retry_failed
        self._spec = spec
        self._rows: Iterator[PromptRow | BadRow] = iter(rows)
        self._ledger = ledger
        self._manifest = manifest
        self._pool = pool
        self._text = text
        self._board = board
        self._attempts: dict[Any, _Attempt] = {}
        self._finished: dict[tuple[int, int], tuple[_Attempt, VideoResult]] = {}
        self._todo: deque[Decision] = deque()
        self._settled_before: dict[int, tuple[dict[int, Status], bool]] = {}
        self._per_shard = int(record.config["run"]["prompts_per_shard"])

    def run(self, stop: threading.Event) -> None:
        """Makes every row that is not settled yet; returns when all are, or the ledger has aborted.

        Args:
            stop: set from elsewhere to end the run where it stands; what is being made is lost, nothing else.

        Raises:
            MigaError: if the run itself cannot go on.
            KeyboardInterrupt: once `stop` is set.
        """
        self._todo.append(ReadRows(1))
        self._carry_out()  # as far as it goes without workers: a run that is complete needs none
        if not self._ledger.is_complete:
            self._pool.start()
        while True:
            self._carry_out()
            if stop.is_set():
                raise KeyboardInterrupt
            if self._ledger.is_complete or (self._ledger.abort_reason and self._ledger.is_idle):
                return
            references = [*self._attempts, *self._pool.starting]
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
            if not ready:
                ready, _ = ray.wait(references, num_returns=1, timeout=_POLL_S)
            for reference in ready:
                if reference in self._attempts:
                    self._hear(reference)
                else:
                    self._welcome(reference)
            self._board.refresh()

    # ---- events ----

    def _welcome(self, reference: ray.ObjectRef) -> None:
        """A worker has loaded its backbone."""
        worker = self._pool.started(reference)
        if worker is not None:
            self._todo.extend(self._ledger.worker_ready(worker, time.monotonic()))

    def _hear(self, stream: Any) -> None:
        """A worker has something to say of its attempt: progress, the result, an error, or nothing ever again."""
        attempt = self._attempts[stream]
        now_s = time.monotonic()
        try:
            attempt.last = ray.get(next(stream))
        except StopIteration:
            self._close(attempt)
            assert isinstance(attempt.last, VideoResult)
            self._finished[attempt.row.index, attempt.number] = (attempt, attempt.last)
            self._todo.extend(self._ledger.finished(attempt.row.index, attempt.number, attempt.worker, now_s))
            self._todo.extend(self._ledger.worker_ready(attempt.worker, now_s))
        except RayTaskError as error:
            self._close(attempt)
            self._todo.extend(self._failed(attempt, error.cause, now_s))
            self._todo.extend(self._ledger.worker_ready(attempt.worker, now_s))
        except RayActorError:
            self._close(attempt)
            reason = f"the process of {attempt.worker} died"
            self._todo.extend(self._ledger.worker_lost(attempt.worker, reason, now_s))
            self._pool.replace(attempt.worker)
        else:
            self._board.video_progress(
                attempt.worker, attempt.row, attempt.last, self._spec.num_latents(attempt.row.num_frames)
            )
            self._todo.extend(self._ledger.progress(attempt.row.index, attempt.number, attempt.worker, now_s))

    def _failed(self, attempt: _Attempt, error: BaseException, now_s: float) -> list[Decision]:
        scope: Scope = error.scope if isinstance(error, MigaError) else "row"
        return self._ledger.failed(
            attempt.row.index,
            attempt.number,
            attempt.worker,
            now_s,
            error_type=type(error).__name__,
            error=str(error),
            scope=scope,
            retryable=isinstance(error, MigaError) and error.retryable,
        )

    def _close(self, attempt: _Attempt) -> None:
        del self._attempts[attempt.stream]
        self._board.video_closed(attempt.worker)

    # ---- decisions ----

    def _carry_out(self) -> None:
        while self._todo:
            decision = self._todo.popleft()
            self._todo.extend(self._do(decision))

    def _do(self, decision: Decision) -> list[Decision]:
        """Carries one decision out; returns what follows from it."""
        match decision:
            case ReadRows(count):
                return self._read_rows(count)
            case Assign():
                self._assign(decision)
            case Commit(row, attempt, worker):
                self._commit(row, attempt, worker)
            case Quarantine(row, attempt, error_type, error):
                self._quarantine(row, attempt, error_type, error)
            case Requeued(row, _, reason):
                self._board.say(f"row {row.index} ({row.id}) goes back to the queue: {reason}")
            case Seal(shard):
                self._manifest.seal(shard)
                self._settled_before.pop(shard, None)
            case Abort(reason):
                self._board.say(f"the run stops: {reason}")
            case Ignore(index, attempt, worker):
                self._board.say(f"row {index}: attempt {attempt} of {worker} is no longer current")
        return []

    def _read_rows(self, count: int) -> list[Decision]:
        decisions: list[Decision] = []
        for _ in range(count):
            row = next(self._rows, None)
            now_s = time.monotonic()
            if row is None:
                return [*decisions, *self._ledger.rows_exhausted(now_s)]
            statuses, is_sealed = self._earlier(shard_of(row.index, self._per_shard))
            if row.index in statuses:
                self._board.row_skipped(statuses[row.index])
                decisions += self._ledger.row_skipped(row.index, statuses[row.index], now_s, is_sealed=is_sealed)
                continue
            if isinstance(row, PromptRow):
                self._embeddings(row)  # ahead of need
            decisions += self._ledger.row_read(row, now_s)
        return decisions

    def _earlier(self, shard: int) -> tuple[dict[int, Status], bool]:
        """What an earlier run has settled of a shard; rows come in order, so one shard is remembered at a time."""
        if shard not in self._settled_before:
            self._settled_before.clear()
            statuses = self._manifest.statuses(shard)
            is_sealed = bool(statuses) and self._manifest.is_sealed(shard, len(statuses))
            if self._retry_failed:
                statuses = {row: status for row, status in statuses.items() if status == "ok"}
            self._settled_before[shard] = (statuses, is_sealed)
        return self._settled_before[shard]

    def _assign(self, decision: Assign) -> None:
        row = decision.row
        embeddings = self._embeddings(row)
        task = VideoTask(
            num_latents=self._spec.num_latents(row.num_frames),
            num_frames=row.num_frames,
            seed=row.seed,
            path=video_path(shard_of(row.index, self._per_shard), row.index, self._key(row), decision.attempt),
        )
        actor = self._pool.actor(decision.worker)
        stream = actor.make_video.options(num_returns="streaming").remote(task, *(vector for vector, _ in embeddings))
        self._attempts[stream] = _Attempt(
            row, decision.attempt, decision.worker, stream, [seconds for _, seconds in embeddings], decision.waited_s
        )
        self._board.video_started(decision.worker, row, task.num_latents)

    def _embeddings(self, row: PromptRow) -> list[tuple[ray.ObjectRef, ray.ObjectRef]]:
        """The negative prompt's, then each prompt's."""
        negative = self._spec.negative_prompt if row.negative_prompt is None else row.negative_prompt
        return [self._text.embedding(prompt) for prompt in (negative, *row.prompts)]

    # ---- the manifest ----

    def _commit(self, row: PromptRow, number: int, worker: str) -> None:
        attempt, result = self._finished.pop((row.index, number))
        trace = result.trace
        self._manifest.record(
            ManifestRow(
                **self._common(row, self._key(row)),
                status="ok",
                num_latents=self._spec.num_latents(row.num_frames),
                fps=result.fps,
                height=result.height,
                width=result.width,
                uri=result.uri,
                bytes=result.bytes,
                sha256=result.sha256,
                duration_s=result.duration_s,
                network_calls=result.num_calls,
                encode_text_s=sum(ray.get(attempt.encode_text_refs)),
                denoise_s=result.denoise_s,
                decode_s=result.decode_s,
                encode_video_s=result.encode_video_s,
                upload_s=result.upload_s,
                queue_wait_s=attempt.waited_s,
                peak_memory_bytes=result.peak_memory_bytes,
                device=result.device,
                node=result.node,
                attempt=number,
                consistency=trace.scores,
                consistency_latents=trace.latents,
                searched_at=_where(trace.searched),
                corrected_at=_where(trace.corrected),
                final_consistency=result.final_consistency,
                num_evaluations=len(trace.scores),
                num_searches=sum(trace.searched),
                num_corrections=sum(trace.corrected),
            )
        )
        self._board.row_done(row, result)

    def _quarantine(self, row: PromptRow | BadRow, attempt: int, error_type: str, error: str) -> None:
        key = bad_row_key(row) if isinstance(row, BadRow) else self._key(row)
        self._manifest.record(
            ManifestRow(**self._common(row, key), status="failed", attempt=attempt, error_type=error_type, error=error)
        )
        self._board.row_failed(row, error)

    def _common(self, row: PromptRow | BadRow, key: str) -> dict[str, Any]:
        """The columns that finished and failed rows share."""
        record = self._record
        asked = (
            {"negative_prompt": row.negative_prompt, "seed": row.seed, "num_frames": row.num_frames}
            if isinstance(row, PromptRow)
            else {}
        )
        return {
            "key": key,
            "id": row.id,
            "row": row.index,
            "shard": shard_of(row.index, self._per_shard),
            "prompts": row.prompts,
            "profile": record.profile,
            "model": record.model,
            "model_revision": record.model_revision,
            "config": canonical_json(record.sampler),
            "config_hash": record.config_hash,
            "created_at": datetime.now(UTC),
            "version": record.version,
            "metadata": json.dumps(row.metadata, ensure_ascii=False),
            **asked,
        }

    def _key(self, row: PromptRow) -> str:
        record = self._record
        return video_key(
            row.prompts, row.negative_prompt, row.seed, row.num_frames, record.sampler, record.model_revision
        )


def _where(flags: tuple[bool, ...]) -> tuple[int, ...]:
    return tuple(index for index, flag in enumerate(flags) if flag)
