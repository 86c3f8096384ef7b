"""An ablation before anything of it is done: a grid of settings, each with the plan of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from jobs.run.plan import Plan, make_plan, why_not
from miga.backbones.base import BackboneSpec
from miga.config import SamplerConfig
from miga.errors import ConfigError, InputError, OutputError, UsageError
from miga.generate import rules_of_pictures
from miga.metrics.sprites import SpriteMeter, scenes_of
from miga.profiles import resolve_config
from pipeline.ablation import Grid, load_grid, merge_settings
from pipeline.config import RunConfig, override
from pipeline.prompts.images import COLUMNS, folder_of, place_of
from pipeline.prompts.source import PromptFile
from pipeline.prompts.starts import COLUMNS as START_COLUMNS
from pipeline.records.manifest import Manifest
from pipeline.rows import SEED_LIMIT, BadRow, PromptRow
from pipeline.storage.open import open_storage

DEFAULT_GRID: Final = Path(__file__).parent.parent / "configs" / "ablate.toml"
PROMPTS_FILE: Final = "prompts.jsonl"
PROMPT_KEY: Final = "ablation_prompt"
"""Column of the prompt file that says which prompt a row is of; the manifest carries it along in `metadata`."""


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
        folder = folder_of(self.base.prompts.path)
        return "".join(json.dumps(_row_fields(row, folder), ensure_ascii=False) + "\n" for row in self.rows).encode()

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
            spec=_spec_of(self.base.spec, self.samplers[setting]),
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
        out: a folder, or a prefix of a bucket.
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
    resolved: dict[str, SamplerConfig] = {}
    impossible: dict[str, str] = {}
    for name, setting in chosen.settings.items():
        try:
            resolved[name] = resolve_config(setting.profile, base.spec, {**config.sampler, **setting.sampler})
        except ConfigError as error:
            if not setting.where_possible:
                raise ConfigError(f"setting {name!r}: {error.message}", error.hint) from error
            impossible[name] = error.message
    chosen = chosen.without(impossible)
    if not chosen.tables:
        raise ConfigError("no setting of these tables can be made with the model", "; ".join(impossible.values()))
    runs = merge_settings({name: sampler.to_dict() for name, sampler in resolved.items()})
    rows = _expand(base, num_seeds)
    for name, sampler in resolved.items():
        _check_rows(name, _spec_of(base.spec, sampler), sampler, rows)
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


def _spec_of(spec: BackboneSpec, sampler: SamplerConfig) -> BackboneSpec:
    """The model's spec under a setting, which may make chains of clips."""
    return replace(spec, clips=None).of_clips(sampler.clips)


def _check_rows(name: str, spec: BackboneSpec, sampler: SamplerConfig, rows: Sequence[PromptRow]) -> None:
    """Whether a setting makes all rows, with or without pictures: settings are compared on all of them.

    Raises:
        ConfigError: if the model and the setting's profile do not go together.
        InputError: naming the setting and the first row that it does not make.
    """
    try:
        rules = rules_of_pictures(spec, sampler)
    except ConfigError as error:
        raise ConfigError(f"setting {name!r}: {error.message}", error.hint) from error
    for row in rows:
        reasons = {
            "image": rules.why_no_first if row.image else "it needs one" if rules.is_needed else "",
            "last_image": rules.why_no_last if row.last_image else "",
        }
        said = [f"{column}: {why}" for column, why in reasons.items() if why]
        if sampler.clips is not None and (why := why_not(spec, row.num_frames, sampler)):
            said.append(why)
        if said:
            raise InputError(
                f"setting {name!r} does not make row {row.index}: {said[0]}",
                "compare settings that take the same pictures and make the same lengths, or change the prompt file",
            )


def _row_fields(row: PromptRow, folder: str) -> dict[str, Any]:
    """A row as a line of a prompt file that lies elsewhere: pictures are named by their whole place."""
    prompt: str | list[str] = row.prompts[0] if len(row.prompts) == 1 else list(row.prompts)
    fields = {"id": row.id, "prompt": prompt, "seed": row.seed, "num_frames": row.num_frames}
    own = {} if row.negative_prompt is None else {"negative_prompt": row.negative_prompt}
    own |= {column: place_of(name, folder) for column in COLUMNS if (name := getattr(row, column)) is not None}
    starts = {name: list(each) for name in START_COLUMNS if (each := getattr(row, name))}
    return {**fields, **own, **starts, **row.metadata}


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


def manifest_of(plan: Plan) -> Manifest:
    """The manifest of a setting's run."""
    return Manifest(open_storage(plan.out), plan.config.run.prompts_per_shard)
