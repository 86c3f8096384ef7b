"""`miga ablate`: every setting of a grid on the same prompts, made as `miga generate` makes them, scored, and tabled.

    OUT/prompts.jsonl            the rows that every setting makes: each prompt with each seed
    OUT/runs/<setting>/          a run of `miga generate`
    OUT/scores/<setting>.json    the scores of its videos
    OUT/ablation.md, .json       the tables; fig5.png, fig6.png, tradeoff.png: the figures

The same command again makes and scores what is missing, no more. Everything that can be wrong with a setting is found
before anything is made.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from jobs.generate import EXIT_OK, EXIT_QUARANTINED, Plan, generate, make_plan, run_record
from miga.config import SamplerConfig
from miga.errors import ConfigError, InputError, OutputError, UsageError
from miga.metrics.features import FeatureExtractor, FrameFeatures, SpriteFeatures
from miga.metrics.sprites import SpriteMeter, scenes_of, wanted_scenes
from miga.metrics.video import LongVideoMeter, chunks_of
from miga.profiles import resolve_config
from pipeline import terminal
from pipeline.ablation import (
    FilledTable,
    Grid,
    ScoredVideo,
    aligned,
    fill_table,
    load_grid,
    merge_settings,
    table_as_dict,
    to_markdown,
)
from pipeline.config import RunConfig, override
from pipeline.manifest import Manifest
from pipeline.prompt_source import PromptFile
from pipeline.rows import SEED_LIMIT, BadRow, ManifestRow, PromptRow
from pipeline.run_folder import check_run
from pipeline.storage import LocalStorage, Storage, open_storage
from pipeline.video import read_frames

DEFAULT_GRID: Final = Path(__file__).parent / "configs" / "ablate.toml"
PROMPTS_FILE: Final = "prompts.jsonl"
SCORES_VERSION: Final = 1
"""Raised whenever scores of the same video would come out otherwise."""
MIN_POOL_FRAMES: Final = 1000
"""Fewer are scored sooner than processes are started for them."""
PROMPT_KEY: Final = "ablation_prompt"
"""Column of the prompt file that says which prompt a row is of; the manifest carries it along in `metadata`."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AblationPlan:
    """An ablation, checked and resolved, nothing of it done.

    Attributes:
        out: where it goes.
        grid: the settings and tables asked for.
        base: the plan of a run, from which every setting's differs in `out`, `config` and `sampler`.
        samplers: setting → its sampler, for the settings that have a run of their own.
        runs: setting → the setting whose run it shares.
        rows: what every setting makes.
        features: what consistency is judged by: "sprites", "frames", or image models.
    """

    out: str
    grid: Grid
    base: Plan
    samplers: Mapping[str, SamplerConfig]
    runs: Mapping[str, str]
    rows: Sequence[PromptRow]
    features: str

    @property
    def prompts(self) -> bytes:
        """The prompt file of every run."""
        return "".join(json.dumps(_row_fields(row), ensure_ascii=False) + "\n" for row in self.rows).encode()

    def run_plan(self, setting: str) -> Plan:
        """The plan of a setting's run."""
        chosen = self.grid.settings[setting]
        storage = open_storage(self.out)
        config = override(self.base.config, profile=chosen.profile, sampler=chosen.sampler)
        return replace(
            self.base,
            prompts=PromptFile.of(storage.uri(PROMPTS_FILE), [self.prompts]),
            out=f"{storage.root}/runs/{setting}",
            config=config,
            sampler=self.samplers[setting],
            num_rows=len(self.rows),
        )


def plan_ablation(
    prompts: str,
    out: str,
    config: RunConfig,
    *,
    grid: str | None = None,
    tables: Sequence[str] | None = None,
    num_seeds: int | None = None,
    features: str | None = None,
) -> AblationPlan:
    """Checks everything that can be known before any work is done.

    Args:
        prompts: a prompt file as for `generate`.
        out: a folder, or `s3://bucket/prefix`.
        config: of the runs; `profile` is the settings', and so are the overrides of the sampler, over those of the
            config. `limit` counts prompts.
        grid: a TOML file (see `pipeline.ablation`); by default `jobs/configs/ablate.toml`.
        tables: names of those to make; None means all.
        num_seeds: each prompt is made with seeds 0 to `num_seeds - 1`; None leaves each row the one it has.
        features: "sprites", "frames", or one or two image models; by default "sprites" if all prompts are of that
            world, else "frames".

    Raises:
        MigaError: naming what is wrong, where, and what to do.
    """
    if num_seeds is not None and not 1 <= num_seeds < SEED_LIMIT:
        raise UsageError(f"--seeds is {num_seeds}", "each prompt needs at least one seed")
    chosen = load_grid(grid or DEFAULT_GRID).select(tables)
    base = make_plan(prompts, out, config)
    resolved = {}
    for name, setting in chosen.settings.items():
        try:
            resolved[name] = resolve_config(setting.profile, base.spec, {**config.sampler, **setting.sampler})
        except ConfigError as error:
            raise ConfigError(f"setting {name!r}: {error.message}", error.hint) from error
    runs = merge_settings({name: sampler.to_dict() for name, sampler in resolved.items()})
    rows = _expand(base, num_seeds)
    all_sprites = all(scenes_of(row.prompts) is not None for row in rows)
    is_sprite_size = SpriteMeter.can_read(base.spec.height, base.spec.width)
    return AblationPlan(
        out=out,
        grid=chosen,
        base=base,
        samplers={name: resolved[name] for name in dict.fromkeys(runs.values())},
        runs=runs,
        rows=rows,
        features=features or ("sprites" if all_sprites and is_sprite_size else "frames"),
    )


def _expand(plan: Plan, num_seeds: int | None) -> list[PromptRow]:
    """The rows to make; a row that cannot be made is refused, since settings are compared on all of them.

    Raises:
        InputError: naming the first such row.
    """
    rows: list[PromptRow] = []
    for row in plan.rows():
        if isinstance(row, BadRow):
            raise InputError(f"row {row.index} cannot be made: {row.error}", "correct it, or take it out of the file")
        named = replace(row, metadata={**row.metadata, PROMPT_KEY: row.id})
        seeds = range(num_seeds) if num_seeds else ()
        rows += [replace(named, id=f"{row.id}/seed-{seed}", seed=seed) for seed in seeds] or [named]
    return rows


def _row_fields(row: PromptRow) -> dict[str, Any]:
    """A row as a line of a prompt file."""
    prompt: str | list[str] = row.prompts[0] if len(row.prompts) == 1 else list(row.prompts)
    fields = {"id": row.id, "prompt": prompt, "seed": row.seed, "num_frames": row.num_frames}
    own = {} if row.negative_prompt is None else {"negative_prompt": row.negative_prompt}
    return {**fields, **own, **row.metadata}


# ---- cost ----


def dry_run(plan: AblationPlan, num_workers: int) -> dict[str, Any]:
    """What the ablation would cost, setting by setting and in all; nothing is written, no weights are loaded."""
    from jobs.cost_model import cost_model, estimate

    lengths: dict[int, int] = {}
    for row in plan.rows:
        lengths[row.num_frames] = lengths.get(row.num_frames, 0) + 1
    settings = {}
    for name, sampler in plan.samplers.items():
        cost = estimate(plan.base.spec, sampler, lengths, num_workers)
        settings[name] = {
            "profile": sampler.profile,
            "shared_by": [other for other, run in plan.runs.items() if run == name and other != name],
            "network_calls": cost["network_calls"],
            "network_calls_max": cost["network_calls_max"],
            "seconds_per_call": cost_model(plan.base.spec, sampler, num_workers).seconds_per_call,
            "estimated_hours": cost["estimated_hours"],
            "estimated_hours_max": cost["estimated_hours_max"],
            "basis": cost["basis"]["estimated_hours"],
        }
    totals = {
        name: sum(setting[name] for setting in settings.values())
        for name in ("network_calls", "network_calls_max", "estimated_hours", "estimated_hours_max")
    }
    return {
        "model": plan.base.spec.name,
        "tables": [table.name for table in plan.grid.tables],
        "settings": settings,
        "videos": len(plan.rows) * len(plan.samplers),
        "videos_per_setting": len(plan.rows),
        "features": plan.features,
        **totals,
    }


def cost_table(costs: Mapping[str, Any]) -> str:
    """The figures of a dry run for people."""
    settings = costs["settings"]
    head = ["setting", "profile", "calls", "with every search", "s a call", "hours", "with every search"]
    lines = [
        [name, one["profile"], f"{one['network_calls']:,}", f"{one['network_calls_max']:,}",
         f"{one['seconds_per_call']:.3g}", f"{one['estimated_hours']:.2f}", f"{one['estimated_hours_max']:.2f}"]
        for name, one in settings.items()
    ]  # fmt: skip
    lines.append(
        ["in all", "", f"{costs['network_calls']:,}", f"{costs['network_calls_max']:,}", "",
         f"{costs['estimated_hours']:.2f}", f"{costs['estimated_hours_max']:.2f}"]
    )  # fmt: skip
    shared = [
        f"{name}: also {', '.join(one['shared_by'])}" for name, one in costs["settings"].items() if one["shared_by"]
    ]
    basis = next(iter(settings.values()))["basis"]
    return "\n".join(
        [
            f"{len(settings)} settings of {costs['videos_per_setting']} videos each on {costs['model']}, "
            f"for tables {', '.join(costs['tables'])}; consistency by {costs['features']}",
            "",
            aligned(head, lines),
            "",
            f"hours: {basis}; scoring not counted",
            *([f"the same sampler, run once: {'; '.join(shared)}"] if shared else []),
        ]
    )


# ---- the ablation ----


def check_out(plan: AblationPlan) -> None:
    """Whether the ablation may write into OUT.

    Raises:
        OutputError: if it holds something else, or an ablation of other prompts, seeds or lengths.
    """
    storage = open_storage(plan.out)
    if not storage.exists(PROMPTS_FILE):
        if names := storage.children():
            raise OutputError(
                f"{storage.root} is not empty and holds no ablation ({', '.join(names[:5])})",
                "name a new or an empty folder as OUT",
            )
    elif storage.read_bytes(PROMPTS_FILE) != plan.prompts:
        raise OutputError(
            f"{storage.root} holds an ablation of other prompts, seeds or lengths",
            "repeat PROMPTS, --seeds, --limit and --num-frames of that one to go on with it, or name another OUT",
        )


def ablate(plan: AblationPlan, *, address: str | None = None, quiet: bool = False) -> dict[str, Any]:
    """Makes the ablation, or goes on with it where it was left.

    Returns:
        The summary: what ablation.json holds, where the files are, and `exit_status`.

    Raises:
        MigaError: if a run failed; what was finished stays, and the same command goes on from there.
    """
    from actors.runtime import ray_session

    say: Say = (lambda text: None) if quiet else terminal.say
    started_s = time.monotonic()
    check_out(plan)
    extractor = _extractor(plan.features)  # before hours of work: it may not be there
    storage = open_storage(plan.out)
    with contextlib.ExitStack() as stack:
        session = _Once(lambda: stack.enter_context(ray_session(plan.base.config.workers, address)))
        if not storage.exists(PROMPTS_FILE):
            session()  # where Ray does not start, OUT is not begun
        storage.write_bytes(PROMPTS_FILE, plan.prompts)
        for number, name in enumerate(plan.samplers, 1):
            run_plan = plan.run_plan(name)
            if _is_complete(run_plan):
                continue
            say(f"setting {number} of {len(plan.samplers)}: {name}")
            session()
            generate(run_plan, address=address, quiet=quiet)
    videos_of, failed = _score_all(plan, extractor, storage, say)
    filled = [
        fill_table(table, {name: videos_of[run] for name, run in plan.runs.items()}) for table in plan.grid.tables
    ]
    files = _write(plan, storage, filled, videos_of, failed, extractor.name)
    return {
        **_as_dict(plan, filled, videos_of, failed, extractor.name),
        "out": storage.root,
        "files": files,
        "seconds": round(time.monotonic() - started_s, 1),
        "exit_status": EXIT_QUARANTINED if any(failed.values()) else EXIT_OK,
    }


class _Once:
    """Calls something the first time it is called: an ablation that is complete starts no Ray."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._action: Callable[[], Any] | None = action

    def __call__(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


def _manifest(plan: Plan) -> Manifest:
    return Manifest(open_storage(plan.out), plan.config.run.prompts_per_shard)


def _is_complete(plan: Plan) -> bool:
    """Whether every row of the run is settled, so that it need not be opened again."""
    if check_run(open_storage(plan.out), run_record(plan)) is None:
        return False
    return sum(1 for _ in _manifest(plan).read_rows()) >= plan.num_rows


# ---- scores ----


@dataclass(frozen=True, kw_only=True)
class ScoringTask:
    """One video to score, for a process of its own.

    Attributes:
        out: the run's folder.
        path: of the video in it.
        prompts: of the video.
        num_frames: of the video.
        clip_frames: of the model's own clip.
        frames_first_latent, frames_per_latent: of the model.
        is_sprites: whether the scorer of the sprite world can read it.
    """

    out: str
    path: str
    prompts: tuple[str, ...]
    num_frames: int
    clip_frames: int
    frames_first_latent: int
    frames_per_latent: int
    is_sprites: bool


def score_file(task: ScoringTask, extractor: FeatureExtractor) -> dict[str, float]:
    """The scores of one video, by name.

    Raises:
        OutputError: if its file is gone or not whole.
    """
    with _local_file(open_storage(task.out), task.path) as file:
        meters: list[LongVideoMeter | SpriteMeter] = [LongVideoMeter(extractor, task.num_frames, task.clip_frames)]
        scenes = scenes_of(task.prompts) if task.is_sprites else None
        if scenes is not None:
            wanted = wanted_scenes(
                scenes,
                task.num_frames,
                frames_first_latent=task.frames_first_latent,
                frames_per_latent=task.frames_per_latent,
            )
            meters.append(SpriteMeter(wanted, task.clip_frames))
        for chunk_FHWC in chunks_of(read_frames(file)):
            for meter in meters:
                meter.add(chunk_FHWC)
    try:
        return {name: value for meter in meters for name, value in meter.values().items()}
    except ValueError as error:
        raise OutputError(
            f"{task.path} in {task.out}: {error}", "the file was changed after it was made: delete that run's folder"
        ) from error


@contextlib.contextmanager
def _local_file(storage: Storage, path: str) -> Iterator[Path]:
    """A video of a run as a local file."""
    if isinstance(storage, LocalStorage):
        yield Path(storage.uri(path))
        return
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(storage.read_bytes(path))
        file.flush()
        yield Path(file.name)


def _extractor(features: str) -> FeatureExtractor:
    if features == "sprites":
        return SpriteFeatures()
    if features == "frames":
        return FrameFeatures()
    from miga.backbones.image_model import ImageModelFeatures

    return ImageModelFeatures(features)


def _score_all(
    plan: AblationPlan, extractor: FeatureExtractor, storage: Storage, say: Say
) -> tuple[dict[str, list[ScoredVideo]], dict[str, int]]:
    """Setting → its videos with their scores, and how many of its rows have no video."""
    videos_of: dict[str, list[ScoredVideo]] = {}
    failed: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        score = _scorer(extractor, stack)
        for name in plan.samplers:
            rows = list(_manifest(plan.run_plan(name)).read_rows())
            made = [row for row in rows if row.status == "ok"]
            failed[name] = len(rows) - len(made)
            scores = _scores(plan, name, made, extractor.name, storage, score, say)
            videos_of[name] = [_scored(row, scores[_score_key(row)]) for row in made]
    return videos_of, failed


def _scorer(
    extractor: FeatureExtractor, stack: contextlib.ExitStack
) -> Callable[[Sequence[ScoringTask]], Iterator[dict[str, float]]]:
    """Scores many videos: on all cores where features need no network, else in turn on the model's device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pools: list[ProcessPoolExecutor] = []

    def score(tasks: Sequence[ScoringTask]) -> Iterator[dict[str, float]]:
        is_small = sum(task.num_frames for task in tasks) < MIN_POOL_FRAMES
        if is_small or cores == 1 or not isinstance(extractor, SpriteFeatures | FrameFeatures):
            return (score_file(task, extractor) for task in tasks)
        if not pools:
            spawn = multiprocessing.get_context("spawn")
            pools.append(stack.enter_context(ProcessPoolExecutor(cores, mp_context=spawn)))
        return pools[0].map(score_file, tasks, [extractor] * len(tasks))

    return score


def _scores(
    plan: AblationPlan,
    name: str,
    made: Sequence[ManifestRow],
    features: str,
    storage: Storage,
    score: Callable[[Sequence[ScoringTask]], Iterator[dict[str, float]]],
    say: Say,
) -> dict[str, dict[str, float]]:
    """`_score_key` → scores of a setting's videos; what the scores file has is not decoded again."""
    path = f"scores/{name}.json"
    kept = _read_scores(storage, path)
    known = kept.setdefault(features, {})
    missing = [row for row in made if _score_key(row) not in known]
    if not missing:
        return known
    say(f"scoring {len(missing)} videos of {name}")
    out = plan.run_plan(name).out
    for row, values in zip(missing, score([_task(plan, out, row) for row in missing]), strict=True):
        known[_score_key(row)] = values
    storage.write_bytes(path, json.dumps({"version": SCORES_VERSION, "scores": kept}).encode())
    return known


def _read_scores(storage: Storage, path: str) -> dict[str, dict[str, dict[str, float]]]:
    """Features → `_score_key` → scores; empty where there are none of this version."""
    if not storage.exists(path):
        return {}
    try:
        values = json.loads(storage.read_bytes(path))
        return dict(values["scores"]) if values["version"] == SCORES_VERSION else {}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{storage.uri(path)} is broken: {error}", "delete it: it is written anew") from error


def _score_key(row: ManifestRow) -> str:
    """What the scores of a video depend on: its bytes, and what it was to show."""
    return f"{row.sha256}:{json.dumps(row.prompts)}"


def _task(plan: AblationPlan, out: str, row: ManifestRow) -> ScoringTask:
    assert row.uri is not None
    assert row.num_frames is not None
    spec = plan.base.spec
    return ScoringTask(
        out=out,
        path=f"video/{row.shard:05d}/{row.uri.rpartition('/')[2]}",  # where it is now, should OUT have been moved
        prompts=row.prompts,
        num_frames=row.num_frames,
        clip_frames=spec.frames_first_latent + (spec.window - 1) * spec.frames_per_latent,
        frames_first_latent=spec.frames_first_latent,
        frames_per_latent=spec.frames_per_latent,
        is_sprites=SpriteMeter.can_read(spec.height, spec.width),
    )


def _scored(row: ManifestRow, scores: Mapping[str, float]) -> ScoredVideo:
    """A video's scores beside what the manifest knows of it."""
    made = {
        "num_frames": row.num_frames,
        "network_calls": row.network_calls,
        "seconds": (row.denoise_s or 0.0) + (row.decode_s or 0.0),
        "num_evaluations": row.num_evaluations,
        "num_searches": row.num_searches,
        "num_corrections": row.num_corrections,
    }
    return ScoredVideo(
        prompt=str(json.loads(row.metadata)[PROMPT_KEY]),
        seed=row.seed or 0,
        values={**scores, **{name: float(value or 0) for name, value in made.items()}},
    )


# ---- what is written ----


def _as_dict(
    plan: AblationPlan,
    filled: Sequence[FilledTable],
    videos_of: Mapping[str, Sequence[ScoredVideo]],
    failed: Mapping[str, int],
    features: str,
) -> dict[str, Any]:
    return {
        "model": plan.base.spec.name,
        "model_revision": plan.base.spec.revision,
        "num_prompts": len({row.metadata[PROMPT_KEY] for row in plan.rows}),
        "num_videos_per_setting": len(plan.rows),
        "num_frames": sorted({row.num_frames for row in plan.rows}),
        "features": features,
        "settings": {
            name: {
                "run": run,
                "profile": plan.grid.settings[name].profile,
                "overrides": plan.grid.settings[name].sampler,
                "sampler": plan.samplers[run].to_dict(),
                "videos": len(videos_of[run]),
                "failed": failed[run],
            }
            for name, run in plan.runs.items()
        },
        "tables": [table_as_dict(table) for table in filled],
    }


def _write(
    plan: AblationPlan,
    storage: Storage,
    filled: Sequence[FilledTable],
    videos_of: Mapping[str, Sequence[ScoredVideo]],
    failed: Mapping[str, int],
    features: str,
) -> list[str]:
    """ablation.md, ablation.json and the plots.

    Returns:
        Where they are.
    """
    from jobs.ablation_plots import draw_plot

    values = _as_dict(plan, filled, videos_of, failed, features)
    plots = {f"{one.table.plot.file}.png": draw_plot(one) for one in filled if one.table.plot}
    files = {
        "ablation.md": _page(values, filled, plots).encode(),
        "ablation.json": (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode(),
        **{name: data for name, data in plots.items() if data is not None},
    }
    for name, data in files.items():
        storage.write_bytes(name, data)
    return [storage.uri(name) for name in files]


def _page(values: Mapping[str, Any], filled: Sequence[FilledTable], plots: Mapping[str, bytes | None]) -> str:
    lengths = ", ".join(f"{count:,}" for count in values["num_frames"])
    parts = [
        f"# Ablation on {values['model']}\n",
        f"{values['num_prompts']} prompts, {values['num_videos_per_setting']} videos of {lengths} frames a setting; "
        f"consistency by `{values['features']}`. Figures are means over videos with 95 % bootstrap intervals, prompts "
        "resampled (all seeds of a prompt together); the best of a column is bold. The column against the first row "
        "compares the same prompts and seeds, pair by pair: where its interval excludes 0, it is more than chance.",
        "",
    ]
    if lost := {name: one["failed"] for name, one in values["settings"].items() if one["failed"]}:
        parts += ["Rows that failed: " + ", ".join(f"{count} of {name}" for name, count in lost.items()) + ".", ""]
    for one in filled:
        parts.append(to_markdown(one))
        if one.table.plot and plots.get(f"{one.table.plot.file}.png"):
            parts.append(f"![{one.table.title}]({one.table.plot.file}.png)\n")
    return "\n".join(parts)


def tables_text(summary: Mapping[str, Any], out: str) -> str:
    """ablation.md of a finished ablation, to be printed, and where the files are."""
    page = open_storage(out).read_bytes("ablation.md").decode()
    return page + "\n" + "\n".join(f"wrote {file}" for file in summary["files"])
