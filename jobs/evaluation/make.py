"""Evaluates the videos of an OUT, or goes on with it: weights, the lease on its results, Ray, the table."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from jobs.run.report import make_report
from jobs.shared.exit_status import status_of_run
from jobs.shared.stopping import stop_signals
from miga.backbones.registry import family_named
from miga.errors import OutputError, UsageError
from miga.evaluation.measures import MEASURES, NOT_HERE
from miga.evaluation.totals import QUALITY
from miga.evaluation.weights import WEIGHTS, WeightFile, check_network, find_weights
from pipeline.config import WorkersConfig
from pipeline.evaluation.evaluator import EXTRA, SAMPLER, SPRITES, EvaluationSettings, is_of, made_of
from pipeline.evaluation.records import EvaluatedRow, merged, read_row, row_path
from pipeline.evaluation.results import RESULTS, Totals, dumped, read_vbench_json, vbench_json, write_results
from pipeline.evaluation.videos import FOLDER, Video, Videos, find_videos
from pipeline.records.lease import Lease
from pipeline.storage.base import Storage
from pipeline.storage.bucket import patience_of_environment
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import is_in_bucket, open_storage
from pipeline.terminal import on_one_line

FAST: Final = "fast"
ALL: Final = "vbench"
SAY_EVERY_S: Final = 10.0
BATCH_ON_GPU: Final = 8


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for.

    Attributes:
        out: a run, or a folder of MP4s.
        metrics: names, with commas between them.
        prompts: a prompt file, for a folder.
        weights: name → where its file lies.
        limit: only the first so many videos.
        num_actors: workers; None: as many as a run would have.
        retry_failed: whether videos that could not be evaluated are tried again.
        stalled_after_s: seconds after which a worker whose video comes no further is replaced.
        vbench_json: a file that VBench's results go into.
        semantic: a result file of VBench's with the semantic dimensions.
    """

    out: str
    metrics: str = FAST
    prompts: str | None = None
    weights: Mapping[str, str]
    limit: int | None = None
    num_actors: int | None = None
    retry_failed: bool = False
    stalled_after_s: float = WorkersConfig().stalled_after_s
    vbench_json: str | None = None
    semantic: str | None = None


def measures_of(metrics: str, videos: Videos) -> tuple[str, ...]:
    """The names that `--metrics` comes to.

    Raises:
        UsageError: if one is not known.
    """
    known = (*MEASURES, *EXTRA)
    found: dict[str, None] = {}
    for name in (part.strip() for part in metrics.split(",")):
        if name == FAST:
            found["temporal_flickering"] = None
            family = family_named(videos.model or "")
            found |= dict.fromkeys([SPRITES] if family is not None and family.exact_scores else [])
            found |= dict.fromkeys([SAMPLER] if any(video.consistency for video in videos.videos) else [])
        elif name == ALL:
            found |= dict.fromkeys(QUALITY)
        elif name in known:
            found[name] = None
        elif name in NOT_HERE:
            why, instead = NOT_HERE[name]
            raise UsageError(f"--metrics {name} cannot be had: {why}", instead)
        else:
            raise UsageError(
                f"--metrics {name!r} is no metric",
                f"choose of {FAST}, {ALL}, {', '.join(known)}; `miga evaluate --list`",
            )
    return tuple(found)


def evaluate(
    wanted: Wanted, say: Callable[[str], None], *, address: str | None = None, failed_rows_ok: bool = False
) -> dict[str, Any]:
    """Evaluates what is not evaluated yet; the summary, its `exit_status` included.

    Raises:
        MigaError: if it cannot be done; what was finished stays, and the same command goes on from there.
    """
    started_s = time.monotonic()
    storage = open_storage(wanted.out)
    semantic = None if wanted.semantic is None else read_vbench_json(Path(wanted.semantic))
    videos = find_videos(storage, wanted.prompts, wanted.limit)
    measures = measures_of(wanted.metrics, videos)
    weights = _weights(measures, wanted.weights, say)
    kept = open_storage(f"{storage.root.rstrip('/')}/{FOLDER}")
    kept.probe()
    with Lease.held(kept, say=say, about=lambda: {"command": "evaluate"}):
        num_made = _evaluate_missing(wanted, videos, measures, weights, storage.root, kept, say, address)
        totals = _write_table(kept, videos)
        if wanted.vbench_json is not None:
            Path(wanted.vbench_json).write_bytes(dumped(vbench_json(_rows(kept, videos.videos))))
    page = _page(storage) if videos.model is not None else None
    summary = {
        "out": storage.root,
        "videos": len(videos.videos),
        "without_video": videos.num_without,
        "evaluated_now": num_made,
        "failed": len(totals.failed),
        "failures": [{"row": row, "id": name, "reason": on_one_line(error)} for row, name, error in totals.failed[:5]],
        "measures": [
            asdict(figure) for figure in totals.figures() if any(is_of(figure.measure, name) for name in measures)
        ],
        **totals.summary(semantic),
        "non_commercial": [name for name in weights if WEIGHTS[name].is_non_commercial],
        "results": kept.uri(RESULTS),
        "vbench_json": wanted.vbench_json,
        "page": page,
        "seconds": round(time.monotonic() - started_s, 1),
    }
    return {**summary, "exit_status": status_of_run(len(totals.failed), failed_rows_ok)}


def _page(storage: Storage) -> str | None:
    """The page of a run with its scores, the worst videos first; none in object storage."""
    return str(make_report(storage)) if isinstance(storage, LocalStorage) else None


def _weights(measures: Sequence[str], places: Mapping[str, str], say: Callable[[str], None]) -> dict[str, WeightFile]:
    """The files of weights, all of them looked into before any work."""
    if unknown := sorted(set(places) - set(WEIGHTS)):
        raise UsageError(f"--weights {unknown[0]!r} is no network", f"they are called {', '.join(WEIGHTS)}")
    names = dict.fromkeys(network for name in measures if name in MEASURES for network in MEASURES[name].networks)
    found = find_weights(names, places)
    for name, file in found.items():
        check_network(file)
        if WEIGHTS[name].is_non_commercial:
            say(f"{name}: licence {WEIGHTS[name].licence}")
    return found


def _evaluate_missing(
    wanted: Wanted,
    videos: Videos,
    measures: Sequence[str],
    weights: Mapping[str, WeightFile],
    out: str,
    kept: Storage,
    say: Callable[[str], None],
    address: str | None,
) -> int:
    """Has what is missing made on Ray; returns the videos that were."""
    from actors.driver.evaluation import EvaluationDriver, Job, evaluator_starter
    from actors.driver.pool import Pool
    from actors.runtime import ray_session

    jobs = [
        Job(video, *_missing(video, read_row(kept, video.row), measures, weights, wanted.retry_failed))
        for video in videos.videos
    ]
    num_left = sum(bool(job.measures) for job in jobs)
    if not num_left:
        return 0
    progress = _Progress(num_left, say)

    def record(row: EvaluatedRow) -> None:
        whole = merged(read_row(kept, row.video.row), row)
        kept.write_bytes(row_path(row.video.row), whole.to_json())
        progress.one_more()

    num_actors = None if wanted.num_actors is None else min(wanted.num_actors, num_left)
    with ray_session(WorkersConfig(num_actors=num_actors), address) as slots:
        settings = EvaluationSettings(
            out=out,
            measures=tuple(measures),
            weights=weights,
            device="cuda" if slots.gpus else "cpu",
            batch=BATCH_ON_GPU if slots.gpus else 1,
            num_threads=max(1, int(slots.cpus)),
            storage_patience_s=patience_of_environment() if is_in_bucket(out) else None,
        )
        pool = Pool(evaluator_starter(settings, slots))
        driver = EvaluationDriver(jobs, slots.num_actors, pool, record, say, wanted.stalled_after_s)
        with stop_signals() as stop:
            driver.run(stop)
    return num_left


def _missing(
    video: Video,
    earlier: EvaluatedRow | None,
    measures: Sequence[str],
    weights: Mapping[str, WeightFile],
    retry_failed: bool,
) -> tuple[tuple[str, ...], bool]:
    """The measures that are still to be had of a video, and whether it is known that there are none."""
    if earlier is None or earlier.video.path != video.path or video.sha256 not in (None, earlier.sha256):
        return tuple(measures), False
    if earlier.error and not retry_failed:
        return (), True
    same_prompts = earlier.video.prompts == video.prompts
    had = {
        name
        for name in measures
        for part, result in earlier.results.items()
        if is_of(part, name) and result.made_of == made_of(name, weights) and (same_prompts or name != SPRITES)
    }
    return tuple(name for name in measures if name not in had), False


class _Progress:
    """Says now and then how far it is."""

    def __init__(self, count: int, say: Callable[[str], None]) -> None:
        self._count, self._say = count, say
        self._done, self._said_s = 0, time.monotonic()

    def one_more(self) -> None:
        """Another video is done."""
        self._done += 1
        if time.monotonic() - self._said_s >= SAY_EVERY_S or self._done == self._count:
            self._said_s = time.monotonic()
            self._say(f"{self._done} of {self._count} videos evaluated")


def _rows(kept: Storage, videos: Sequence[Video]) -> Iterator[EvaluatedRow]:
    """The results of the videos that are there now."""
    for video in videos:
        row = read_row(kept, video.row)
        if row is not None and row.video.path == video.path:
            yield row


def _write_table(kept: Storage, videos: Videos) -> Totals:
    """Writes the table, and adds it up."""
    totals = Totals()

    def added() -> Iterator[EvaluatedRow]:
        for row in _rows(kept, videos.videos):
            totals.add(row)
            yield row

    with tempfile.TemporaryDirectory(prefix="miga-results-") as folder:
        file = Path(folder, RESULTS)
        write_results(added(), file)
        kept.put_file(file, RESULTS)
    if not totals.num_videos:
        raise OutputError(f"nothing of {kept.root} was evaluated", "see what was said above")
    return totals
