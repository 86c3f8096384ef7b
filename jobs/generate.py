"""The main job: a prompt file in, a dataset of long videos out. Also `python -m jobs.generate`, for `ray job submit`.

Everything that can be wrong is found before a worker is started: the config, the model, the prompt file's form, OUT.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from miga import __version__
from miga.backbones.attention_backend import check_attention_backend
from miga.backbones.base import BackboneSpec
from miga.backbones.family import ModelOptions
from miga.backbones.memory_plan import MemoryPlan, available_memory, card_bytes, check_machine_memory, plan_memory
from miga.backbones.options import configured_spec
from miga.backbones.registry import (
    check_schedule,
    check_weights,
    footprint_of,
    is_on_hub,
    load_spec,
    require_footprint,
    simulates_gpus,
)
from miga.config import SamplerConfig
from miga.cost import count_calls
from miga.errors import BadRowError, LeaseHeldError, MigaError, OutputError, UsageError
from miga.profiles import resolve_config
from miga.sharing import Share
from miga.virtual_time import useful_slots
from pipeline.config import RunConfig
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.manifest import Manifest
from pipeline.prompt_source import PromptFile, look_at
from pipeline.prompts import count_rows, read_prompts
from pipeline.report import write_report
from pipeline.rows import BadRow, PromptRow
from pipeline.run_folder import RunRecord, check_run, fingerprint, open_run
from pipeline.storage import LocalStorage, Storage, open_storage
from pipeline.storage_s3 import patience_of_environment
from pipeline.video import check_codec

if TYPE_CHECKING:
    from actors.coordinator import RunParts
    from actors.messages import WorkerSettings
    from actors.metrics import RunMetrics
    from actors.pool import StartActor
    from actors.progress import ProgressBoard
    from actors.runtime import Slots

EXIT_OK, EXIT_QUARANTINED = 0, 3

MAX_FRAMES = 10_000_000
"""Of a video: a week at 16 frames a second. What is longer is a slip, and counting its calls would take minutes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, checked and resolved, nothing of it done."""

    prompts: PromptFile
    out: str
    config: RunConfig
    spec: BackboneSpec
    sampler: SamplerConfig
    num_frames: int
    num_rows: int
    check_prompt: Callable[[str], str | None] | None

    def rows(self) -> Iterator[PromptRow | BadRow]:
        """The prompt file from its first row."""
        return read_prompts(
            self.prompts,
            seed=self.config.seed,
            num_frames=self.num_frames,
            limit=self.config.limit,
            check_num_frames=lambda count: why_not(self.spec, count),
            check_prompt=self.check_prompt,
        )


def make_plan(prompts: str, out: str, config: RunConfig) -> Plan:
    """Checks everything that can be known before any work is done.

    Raises:
        MigaError: naming what is wrong, where, and what to do.
    """
    check_attention_backend(config.attention)
    spec = configured_spec(load_spec(config.model, config.revision), model_options(config), config.revision)
    sampler = resolve_config(config.profile, spec, config.sampler)
    num_frames = spec.default_num_frames if config.num_frames is None else config.num_frames
    if reason := why_not(spec, num_frames):
        raise UsageError(reason, "choose one of those for --num-frames")
    check_codec(config.video, spec.height, spec.width)
    check_schedule(config.model, sampler, config.revision)
    check_weights(config.model, config.revision)
    file = look_at(prompts)
    plan = Plan(
        prompts=file,
        out=out,
        config=config,
        spec=spec,
        sampler=sampler,
        num_frames=num_frames,
        num_rows=count_rows(file, config.limit),
        check_prompt=prompt_checker(config.model, config.revision),
    )
    plan.rows()  # finds what is wrong with the file as a whole
    return plan


def model_options(config: RunConfig) -> ModelOptions:
    """What a config says of the model beside its name."""
    return ModelOptions(
        lora=config.lora,
        height=config.height,
        width=config.width,
        attention=config.attention,
        compile=config.compile,
    )


def why_not(spec: BackboneSpec, num_frames: int) -> str | None:
    """Why the model cannot make so many frames, or None if it can."""
    if num_frames > MAX_FRAMES:
        return f"num_frames {num_frames} cannot be made: {MAX_FRAMES} are the most"
    try:
        spec.num_latents(num_frames)
    except ValueError as error:
        return str(error)
    return None


def prompt_checker(model: str, revision: str | None) -> Callable[[str], str | None] | None:
    """A check of one prompt by the model's tokenizer; None where the hub does not deliver it (to a dry run).

    Raises:
        ModelError: if the model is here, and its tokenizer cannot be loaded.
    """
    from miga.backbones.registry import load_backbone

    try:
        backbone = load_backbone(model, revision=revision, device="cpu", components=("tokenizer",))
    except MigaError:
        if is_on_hub(model):
            return None
        raise

    def check(prompt: str) -> str | None:
        try:
            backbone.check_prompt(prompt)
        except BadRowError as error:
            return str(error)
        return None

    return check


def dry_run(plan: Plan, num_workers: int, card_gb: float | None = None) -> dict[str, Any]:
    """What the run would cost; nothing is written, no weights are loaded.

    Args:
        plan: the run.
        num_workers: backbone actors.
        card_gb: memory of a GPU as it is sold; with it, what goes where on it.

    Raises:
        ModelError: if the model does not fit that card, saying what would.
    """
    from jobs.cost_model import estimate

    lengths: Counter[int] = Counter()
    bad_rows = 0
    for row in plan.rows():
        if isinstance(row, BadRow):
            bad_rows += 1
        else:
            lengths[row.num_frames] += 1

    costs = estimate(plan.spec, plan.sampler, lengths, num_workers, bad_rows)
    about = {"model": plan.spec.name, "size": f"{plan.spec.height}x{plan.spec.width}", "profile": plan.sampler.profile}
    return {**about, **costs, **({} if card_gb is None else {"memory": memory_on(plan, card_gb).to_dict()})}


def memory_on(plan: Plan, card_gb: float) -> MemoryPlan:
    """Where the run's model would go on a card that is sold with so many GB.

    Raises:
        ModelError: if it does not fit, saying what would.
    """
    config = plan.config
    return plan_memory(
        require_footprint(config.model, config.revision),
        plan.spec,
        plan.sampler,
        card_bytes(card_gb),
        torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype),
        getattr(torch, config.text_dtype),
        text_on_card=config.workers.text_gpus > 0,
    )


def generate(
    plan: Plan, *, address: str | None = None, quiet: bool = False, retry_failed: bool = False
) -> dict[str, Any]:
    """Makes the run, or goes on with it where it was left.

    Args:
        plan: the run.
        address: of a Ray cluster.
        quiet: whether to show no progress.
        retry_failed: whether rows that were given up before are tried again.

    Returns:
        The summary, its `exit_status` included.

    Raises:
        LeaseHeldError: if another run is writing in OUT.
        MigaError: if the run itself failed; what was finished stays, and the same command goes on from there.
    """
    import ray

    if plan.check_prompt is None:
        load_tokenizer_or_raise(plan)
    from actors.metrics import RunMetrics
    from actors.progress import ProgressBoard
    from actors.runtime import cluster_address, ray_session

    if not (cluster_address(address) or ray.is_initialized()):
        check_this_machine(plan)
    config, started_s = plan.config, time.monotonic()
    storage = open_storage(plan.out)
    manifest = Manifest(storage, config.run.prompts_per_shard)
    ledger = make_ledger(plan)
    with ray_session(config.workers, address, simulates_gpus(config.model)) as slots:  # before OUT is touched
        record, resumed = open_run(storage, run_record(plan))
        board = ProgressBoard(plan.num_rows, quiet=quiet)
        try:
            with Lease.held(storage, ttl_s=config.run.lease_ttl_s, say=board.say) as lease, _stop_signals() as stop:
                metrics = RunMetrics(record.profile, record.model, plan.num_rows)
                parts = run_parts(plan, record, storage, manifest, ledger, lease.epoch, slots, retry_failed)
                make_rows(plan, parts, lease, board, metrics, stop)
        except LeaseHeldError:
            raise
        except OutputError as error:  # OUT was fine at the start: this is no longer about how the command was given
            raise RunAbortedError(error.message, error.hint) from error
        finally:
            board.close()
    page = _page(storage)
    summary = {
        "out": storage.root,
        "resumed": resumed,
        "videos": ledger.num_read,
        "ok": ledger.num_done,
        "failed": ledger.num_dead,
        "already_done": ledger.num_skipped,
        "network_calls": board.num_calls,
        "seconds": round(time.monotonic() - started_s, 1),
        "manifest": [storage.uri(f"manifest/shard-{shard:05d}.parquet") for shard in manifest.sealed_shards()],
        "report": page,
    }
    if ledger.abort_reason:
        raise RunAbortedError(ledger.abort_reason, "see `miga status OUT`; the same command goes on with what is left")
    return {**summary, "exit_status": EXIT_QUARANTINED if ledger.num_dead else EXIT_OK}


def _page(storage: Storage) -> str | None:
    """Where the page of a run that has ended is; none is made in object storage."""
    if not isinstance(storage, LocalStorage):
        return None
    try:
        return str(make_report(storage))
    except OutputError as error:
        raise RunAbortedError(error.message, error.hint) from error


def make_ledger(plan: Plan) -> Ledger:
    """The state of a run of which nothing is known yet."""
    run, workers = plan.config.run, plan.config.workers
    share: Share = workers.share if plan.sampler.windows_per_batch == 1 else "nothing"
    return Ledger(
        prompts_per_shard=run.prompts_per_shard,
        max_attempts=run.max_attempts,
        max_failed_share=run.max_failed_share,
        min_finished_rows=run.min_finished_rows,
        lookahead=workers.lookahead,
        work_of=lambda row: expected_calls(plan.sampler, plan.spec.num_latents(row.num_frames)),
        parallelism_of=lambda row: useful_slots(plan.sampler, plan.spec.num_latents(row.num_frames), share),
        max_videos=workers.max_videos,
        max_uploads=workers.uploads_ahead,
    )


@functools.cache
def expected_calls(config: SamplerConfig, num_latents: int) -> float:
    """Network calls of a video, where every second evaluation that may start a search does."""
    count = count_calls(config, num_latents)
    return (count.total + count.most) / 2


def run_parts(
    plan: Plan,
    record: RunRecord,
    storage: Storage,
    manifest: Manifest,
    ledger: Ledger,
    epoch: int,
    slots: Slots,
    retry_failed: bool = False,
) -> RunParts:
    """What a coordinator works with."""
    from actors.coordinator import RunParts
    from actors.rows import RowMaker

    return RunParts(
        config=plan.config,
        spec=plan.spec,
        rows=plan.rows(),
        num_rows=plan.num_rows,
        calls_of=lambda row: expected_calls(plan.sampler, plan.spec.num_latents(row.num_frames)),
        ledger=ledger,
        storage=storage,
        manifest=manifest,
        epoch=epoch,
        maker=RowMaker(record, plan.spec),
        slots=slots,
        retry_failed=retry_failed,
    )


def make_rows(
    plan: Plan,
    parts: RunParts,
    lease: Lease | None,
    board: ProgressBoard,
    metrics: RunMetrics,
    stop: threading.Event,
    start_actor: StartActor | None = None,
) -> None:
    """Makes every row that is not settled yet, on the workers of this Ray.

    Args:
        plan: the run.
        parts: the same, opened.
        lease: on OUT.
        board: the progress display.
        metrics: what is told to Prometheus.
        stop: ends it.
        start_actor: makes a worker; by default one that holds the run's backbone.
    """
    from ray.exceptions import RayError

    from actors.cluster_nodes import ClusterNodes
    from actors.coordinator import Coordinator
    from actors.inbox import Inbox
    from actors.pool import Pool, backbone_starter, start_text_encoder
    from actors.recorder import Recorder
    from actors.text_encoder import MAX_ENCODED_AHEAD, TextStage

    settings = worker_settings(plan, parts.storage.root, parts.slots)
    inbox = Inbox()
    recorder = Recorder(parts.storage, parts.manifest, lease, inbox.put)
    text = TextStage(start_text_encoder(settings, parts.slots), inbox.when_ready, few_prompts(plan, MAX_ENCODED_AHEAD))
    pool = Pool(start_actor or backbone_starter(settings, parts.slots))
    coordinator = Coordinator(parts, inbox, pool, recorder, text, board, metrics)
    nodes = ClusterNodes(lambda view: inbox.put(functools.partial(coordinator.nodes_changed, view)))
    nodes.start()
    try:
        coordinator.run(stop)
    finally:
        nodes.close()
        recorder.close()
        with contextlib.suppress(RayError):  # a cluster that is gone has ended them itself
            pool.close()
            text.close()


def worker_settings(plan: Plan, out: str, slots: Slots) -> WorkerSettings:
    """What the workers of a run are told."""
    from actors.messages import WorkerSettings

    config = plan.config
    return WorkerSettings(
        model=config.model,
        revision=config.revision,
        sampler=plan.sampler,
        video=config.video,
        out=out,
        num_threads=max(1, int(slots.cpus)),
        device="cuda" if slots.gpus else "cpu",
        dtype=config.dtype,
        options=model_options(config),
        text_dtype=config.text_dtype,
        text_gpus=config.workers.text_gpus,
        share=config.workers.share,
        checkpoint_every_s=config.run.checkpoint_every_s,
        keep_latents=config.run.keep_latents,
        s3_patience_s=patience_of_environment() if out.startswith("s3://") else None,  # a node has another environment
    )


def few_prompts(plan: Plan, most: int) -> list[str]:
    """All distinct prompts of the run in order, negative ones too, if there are at most so many; else none."""
    found: dict[str, None] = {plan.spec.negative_prompt: None}  # workers measure their speed with it
    for row in plan.rows():
        if isinstance(row, PromptRow):
            negative = plan.spec.negative_prompt if row.negative_prompt is None else row.negative_prompt
            found |= dict.fromkeys((negative, *row.prompts))
        if len(found) > most:
            return []
    return list(found)


class RunAbortedError(MigaError):
    """Too many rows failed, or one failed in a way that every other would."""


def load_tokenizer_or_raise(plan: Plan) -> None:
    """Says why the model's files are not to be had, now that they are needed."""
    from miga.backbones.registry import load_backbone

    load_backbone(plan.config.model, revision=plan.config.revision, device="cpu", components=("tokenizer",))


def check_this_machine(plan: Plan) -> None:
    """What a run on this machine alone needs beyond its plan: the weights, whole, and room for them.

    On a cluster the workers look for themselves, before any video is begun. So do those with a GPU for its memory.

    Raises:
        ModelError: if weights are not to be had or broken, or do not fit, saying what would.
    """
    config = plan.config
    check_weights(config.model, config.revision, download=True)
    footprint, available = footprint_of(config.model, config.revision), available_memory()
    if footprint is None or torch.cuda.is_available() or available is None:
        return
    slots = int((os.cpu_count() or 1) // config.workers.cpus_per_actor)
    check_machine_memory(
        footprint,
        plan.spec,
        plan.sampler,
        config.workers.num_actors or max(1, min(2, slots)),
        available,
        torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype),
        getattr(torch, config.text_dtype),
    )


def run_record(plan: Plan) -> RunRecord:
    """What run.json says of this run."""
    return RunRecord(
        config=plan.config.to_dict(),
        model=plan.spec.name,
        model_revision=plan.spec.revision,
        profile=plan.sampler.profile,
        sampler=plan.sampler.to_dict(),
        prompts=fingerprint(plan.prompts),
        version=__version__,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def check_out(plan: Plan) -> None:
    """Whether the run may write into OUT.

    Raises:
        OutputError: if it holds something else, or a run of another config.
    """
    check_run(open_storage(plan.out), run_record(plan))


def make_report(storage: Storage, folder: str | None = None) -> Any:
    """Writes the page of a run: beside its videos, or into `folder` for one in object storage."""
    from dataclasses import asdict

    from pipeline.run_folder import read_run

    record = read_run(storage)
    manifest = Manifest(storage, record.settings.run.prompts_per_shard)
    if folder is None and not isinstance(storage, LocalStorage):
        raise UsageError(f"{storage.root} is in object storage", "say where the page goes: --to FOLDER")
    rows = (asdict(row) for row in manifest.read_rows())
    return write_report(rows, asdict(record), folder or storage.root, out_uri=storage.root)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM (`ray job stop`, a preempted node) or Ctrl-C sets; the second signal interrupts at once.

    To be entered once Ray is up: Ray puts a handler of its own in place, and aborts if it is interrupted inside a call.
    """
    stop = threading.Event()

    def request(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: whoever runs it there sees to signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    from jobs.cli import main

    raise SystemExit(main(["generate", *sys.argv[1:]]))
