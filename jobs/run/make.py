"""Makes a run, or goes on with it where it was left: Ray, a lease on OUT, the ledger, workers, and the summary."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from jobs.run.check import check_this_machine, load_tokenizer_or_raise
from jobs.run.estimate import expected_calls
from jobs.run.failures import first_failures
from jobs.run.plan import Plan, few_prompts, model_options, run_record
from jobs.run.report import make_report
from jobs.shared.exit_status import status_of_run
from jobs.shared.stopping import stop_signals
from miga.backbones.base import BackboneSpec
from miga.backbones.registry import simulates_gpus
from miga.config import SamplerConfig
from miga.cost import count_calls
from miga.errors import InputError, LeaseHeldError, MigaError, OutputError
from miga.sharing import Share
from miga.virtual_time import useful_slots
from pipeline.records.lease import Lease
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import RunRecord, open_run
from pipeline.rows import content_hash
from pipeline.scheduling.ledger import Ledger
from pipeline.scheduling.time_left import VideoCost
from pipeline.storage.base import Storage
from pipeline.storage.bucket import patience_of_environment
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import is_in_bucket, open_storage
from pipeline.trackers.base import TrackedRun
from pipeline.trackers.open import open_tracker
from pipeline.trackers.run_log import RunLog, settled_before

if TYPE_CHECKING:
    from actors.driver.coordinator import RunParts
    from actors.driver.metrics import RunMetrics
    from actors.driver.pool import StartActor
    from actors.driver.progress import ProgressBoard
    from actors.messages import WorkerSettings
    from actors.runtime import Slots


MAX_COUNTED: Final = 1_000_000
"""Rows up to which the prompt file is read through once more for their lengths: some 15 s beside the loading."""
FAILURES_SHOWN: Final = 5
"""Failed rows that the summary of a run names."""


class RunAbortedError(MigaError):
    """Too many rows failed, or one failed in a way that every other would."""


def generate(
    plan: Plan,
    *,
    address: str | None = None,
    quiet: bool = False,
    retry_failed: bool = False,
    failed_rows_ok: bool = False,
) -> dict[str, Any]:
    """Makes the run, or goes on with it where it was left.

    Args:
        plan: the run.
        address: of a Ray cluster.
        quiet: whether to show no progress.
        retry_failed: whether rows that were given up before are tried again.
        failed_rows_ok: whether the exit status is 0 where only rows failed.

    Returns:
        The summary, its `exit_status` and the first `failures` included.

    Raises:
        LeaseHeldError: if another run is writing in OUT.
        MigaError: if the run itself failed; what was finished stays, and the same command goes on from there.
    """
    import ray

    if plan.check_prompt is None:
        load_tokenizer_or_raise(plan)
    from actors.driver.metrics import RunMetrics
    from actors.driver.progress import ProgressBoard
    from actors.runtime import cluster_address, ray_session

    if not (cluster_address(address) or ray.is_initialized()):
        check_this_machine(plan)
    config, started_s = plan.config, time.monotonic()
    storage = open_storage(plan.out)
    manifest = Manifest(storage, config.run.prompts_per_shard)
    ledger = make_ledger(plan)
    board = ProgressBoard(plan.num_rows, quiet=quiet, cost_of=costs_of(plan.spec, plan.sampler, _share(plan)))
    with contextlib.ExitStack() as stack:
        stack.callback(board.close)
        with board.step("starting Ray" if cluster_address(address) is None else "joining the Ray cluster"):
            session = ray_session(config.workers, address, simulates_gpus(config.model))
            slots = stack.enter_context(session)  # before OUT is touched
        stack.callback(board.close)  # before Ray ends, which takes a moment
        record, resumed = open_run(storage, run_record(plan))
        for note in record.weights:
            board.say(note)
        about = functools.partial(_about, plan, board)
        try:
            with (
                Lease.held(storage, ttl_s=config.run.lease_ttl_s, say=board.say, about=about) as lease,
                stop_signals() as stop,
            ):
                _count_in_background(plan, board)
                metrics = RunMetrics(record.profile, record.model, plan.num_rows)
                parts = run_parts(plan, record, storage, manifest, ledger, lease.epoch, slots, retry_failed)
                log = _begin_log(plan, record, parts, board)
                if log is not None:
                    stack.callback(log.close, board.say)  # once the lease is given back: it may take its time
                make_rows(plan, parts, lease, board, metrics, stop, log=log)
        except LeaseHeldError:
            raise
        except OutputError as error:  # OUT was fine at the start: this is no longer about how the command was given
            raise RunAbortedError(error.message, error.hint) from error
    page = _page(storage)
    failed = []
    if ledger.num_dead:
        with contextlib.suppress(OutputError):  # a file of an earlier run's that `miga verify` is to tell of
            failed = first_failures(manifest, FAILURES_SHOWN)
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
        "failures": [failure.to_dict() for failure in failed],
    }
    if ledger.abort_reason:
        raise RunAbortedError(ledger.abort_reason, "see `miga status OUT`; the same command goes on with what is left")
    return {**summary, "exit_status": status_of_run(ledger.num_dead, failed_rows_ok)}


def costs_of(spec: BackboneSpec, sampler: SamplerConfig, share: Share) -> Callable[[int], VideoCost]:
    """What a video of so many frames takes.

    Args:
        spec: the model.
        sampler: the sampler's settings.
        share: what other GPUs may take of it.
    """

    @functools.cache
    def cost_of(num_frames: int) -> VideoCost:
        num_latents = spec.num_latents(num_frames)
        calls = count_calls(sampler, num_latents)
        return VideoCost(
            least=calls.total,
            per_search=calls.per_search,
            num_possible=max(0, calls.num_evaluations - 1),
            slots=useful_slots(sampler, num_latents, share),
        )

    return cost_of


def _share(plan: Plan) -> Share:
    return plan.config.workers.share if plan.sampler.windows_per_batch == 1 else "nothing"


def _count_in_background(plan: Plan, board: ProgressBoard) -> None:
    """Has the run's lengths counted while models are loaded; without them a rest is taken to be like what was read."""
    if plan.num_rows > MAX_COUNTED:
        return

    def count_lengths() -> None:
        with contextlib.suppress(InputError):  # the run itself will meet it
            board.count(*plan.lengths)

    threading.Thread(target=count_lengths, name="miga-count", daemon=True).start()


def _about(plan: Plan, board: ProgressBoard) -> Mapping[str, Any]:
    """What the lease says of the run with every beat, for `miga status`."""
    whole = {"rows": plan.num_rows} if plan.is_whole else {}
    return {"command": "generate" if plan.is_whole else "retry-failed", **whole, **board.figures()}


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
    share = _share(plan)
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
    from actors.driver.coordinator import RunParts
    from actors.driver.rows import RowMaker

    return RunParts(
        prompts=plan.prompts.path,
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


def _begin_log(plan: Plan, record: RunRecord, parts: RunParts, board: ProgressBoard) -> RunLog | None:
    """The run's log in the tracker that the config names.

    Raises:
        ConfigError: if it cannot be begun.
        OutputError: if the manifest cannot be read.
    """
    logs = plan.config.logs
    if logs.tracker is None:
        return None
    before = settled_before(parts.manifest, parts.retry_failed)
    tracker = open_tracker(logs, parts.storage, tracked_run(record, parts.storage))
    if tracker is None:
        return None
    board.say(f"log: {tracker.where}")
    return RunLog(tracker, logs, parts.storage, *before)


def tracked_run(record: RunRecord, storage: Storage) -> TrackedRun:
    """How a tracker names the run: by OUT's last name, and by what run.json says."""
    config = {key: value for key, value in record.config.items() if key not in ("sampler", "logs")}
    return TrackedRun(
        name=storage.root.rstrip("/").rpartition("/")[2],
        id=content_hash(json.loads(record.to_json()))[:16],
        hyperparameters={
            "version": record.version,
            "model_revision": record.model_revision,
            "prompts_sha256": record.prompts.sha256,
            "sampler": record.sampler,
            **config,
        },
    )


def make_rows(
    plan: Plan,
    parts: RunParts,
    lease: Lease | None,
    board: ProgressBoard,
    metrics: RunMetrics,
    stop: threading.Event,
    start_actor: StartActor | None = None,
    log: RunLog | None = None,
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
        log: what is told to a tracker.
    """
    from ray.exceptions import RayError

    from actors.driver.cluster_nodes import ClusterNodes
    from actors.driver.coordinator import Coordinator
    from actors.driver.inbox import Inbox
    from actors.driver.pool import Pool, backbone_starter, start_text_encoder
    from actors.driver.recorder import Recorder
    from actors.text_encoder import MAX_ENCODED_AHEAD, TextStage

    settings = worker_settings(plan, parts.storage.root, parts.slots)
    inbox = Inbox()
    recorder = Recorder(parts.storage, parts.manifest, lease, inbox.put)
    text = TextStage(start_text_encoder(settings, parts.slots), inbox.when_ready, few_prompts(plan, MAX_ENCODED_AHEAD))
    pool = Pool(start_actor or backbone_starter(settings, parts.slots))
    coordinator = Coordinator(parts, inbox, pool, recorder, text, board, metrics, log)
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
        # a node has another environment
        storage_patience_s=patience_of_environment() if is_in_bucket(out) else None,
        longest_latents=plan.longest,
        videos_per_actor=config.workers.videos_per_actor,
        longest_wait_s=config.workers.stalled_after_s / 100,
    )
