"""A run before anything of it is done: what its prompt file, OUT and config come to.

Everything that can be wrong with them is found here: the config, the model, the prompt file's form.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from miga import __version__
from miga.backbones.attention_backend import check_attention_backend
from miga.backbones.base import BackboneSpec
from miga.backbones.family import ModelOptions
from miga.backbones.options import configured_spec
from miga.backbones.registry import (
    check_schedule,
    check_weights,
    family_of,
    is_on_hub,
    load_backbone,
    load_spec,
    weight_notes,
)
from miga.config import SamplerConfig
from miga.errors import BadRowError, ConfigError, MigaError, UsageError
from miga.generate import rules_of_pictures
from miga.methods import methods
from miga.profiles import default_num_frames, resolve_config, warn_of_concerns, why_no_length, why_no_starts
from pipeline.config import RunConfig
from pipeline.prompts.images import RowImages
from pipeline.prompts.read import count_rows, read_prompts
from pipeline.prompts.source import PromptFile, look_at
from pipeline.records.run_folder import RunRecord, fingerprint
from pipeline.records.scores import MANIFEST_SCORES
from pipeline.rows import BadRow, PromptRow, first_frames
from pipeline.trackers.open import check_tracker
from pipeline.video import check_codec

MAX_FRAMES = 10_000_000
"""Of a video: a week at 16 frames a second. What is longer is a slip, and counting its calls would take minutes."""

NUM_LAST: Final = 1000
"""Rows at the end whose lengths are told in order."""


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
    check_prompt: PromptChecker | None

    @property
    def is_whole(self) -> bool:
        """Whether its rows are all that there are to be in OUT."""
        return True

    def rows(self, judge_prompts: bool = True, read_ahead: int = 1) -> Iterator[PromptRow | BadRow]:
        """The prompt file from its first row.

        Args:
            judge_prompts: whether prompts are judged by the tokenizer, too, which takes most of the time.
            read_ahead: rows read at once; of many, prompts are judged together, which is several times as fast.
        """
        return read_prompts(
            self.prompts,
            seed=self.config.seed,
            num_frames=self.num_frames,
            limit=self.config.limit,
            check_num_frames=lambda count: why_not(self.spec, count, self.sampler),
            check_prompt=self.check_prompt if judge_prompts else None,
            check_starts=self._why_no_starts,
            read_ahead=read_ahead,
            images=row_images(self.prompts.path, self.spec, self.sampler) if judge_prompts else None,
            check_num_prompts=lambda count: self.sampler.why_no_prompts(count, self.spec),
        )

    def _why_no_starts(self, row: PromptRow) -> str | None:
        return why_no_starts(self.sampler, self.spec, row.num_frames, first_frames(row, self.spec.fps))

    @property
    def longest(self) -> int | None:
        """Latents of the longest video, where memory grows with that; None where it does not."""
        if not self.sampler.one_window:
            return None
        lengths, _ = self.lengths
        return self.spec.num_latents(max(lengths, default=self.num_frames))

    @cached_property
    def lengths(self) -> tuple[Counter[int], Sequence[int]]:
        """How many rows there are of each length, in frames, and the lengths of the last ones, in order.

        Rows whose prompts are too long are among them. The file is read for it, once.
        """
        lengths, last = Counter[int](), deque[int](maxlen=NUM_LAST)
        for row in self.rows(judge_prompts=False):
            if isinstance(row, PromptRow):
                lengths[row.num_frames] += 1
                last.append(row.num_frames)
        return lengths, tuple(last)


def make_plan(prompts: str, out: str, config: RunConfig) -> Plan:
    """Checks everything that can be known before any work is done.

    Raises:
        MigaError: naming what is wrong, where, and what to do.
    """
    spec, sampler, num_frames = resolve_settings(config)
    check_tracker(config.logs, out)
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


def resolve_settings(config: RunConfig) -> tuple[BackboneSpec, SamplerConfig, int]:
    """The model, the sampler's settings and the length of a video that a config comes to, without any weights.

    Raises:
        MigaError: naming what is wrong, where, and what to do.
    """
    check_attention_backend(config.attention)
    trained = load_spec(config.model, config.revision)
    spec = configured_spec(trained, model_options(config), config.revision)
    sampler = resolve_config(config.profile, spec, config.sampler)
    rules_of_pictures(spec, sampler)
    spec = spec.of_clips(sampler.clips)
    num_frames = default_num_frames(sampler, spec) if config.num_frames is None else config.num_frames
    if reason := why_not(spec, num_frames, sampler):
        raise UsageError(reason, "choose one of those for --num-frames")
    check_codec(config.video, spec.height, spec.width)
    check_schedule(config.model, sampler, config.revision)
    check_quality(config)
    check_videos_together(config, sampler)
    warn_of_concerns(sampler, spec, spec.num_latents(num_frames), trained)
    return spec, sampler, num_frames


def check_quality(config: RunConfig) -> None:
    """Whether videos have the scores that [quality] asks for.

    Raises:
        ConfigError: naming those that there are.
    """
    quality = config.quality
    if quality.retries and not quality.is_asked:
        raise ConfigError(
            f"[quality] retries = {quality.retries}, and nothing is asked of videos",
            "say what: least = { final_consistency = 0.8 }",
        )
    known = (*MANIFEST_SCORES, *family_of(config.model, config.revision).exact_scores) if quality.is_asked else ()
    asked = dict.fromkeys((*quality.least, *quality.most))
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(
            f"[quality] asks for {', '.join(unknown)}, which videos of {config.model!r} are not scored by when made",
            f"there are: {', '.join(known)}",
        )


def check_videos_together(config: RunConfig, sampler: SamplerConfig) -> None:
    """Whether the profile's videos can be made in step, where [workers] asks for that.

    Raises:
        ConfigError: naming the profiles that can.
    """
    asked = config.workers.videos_per_actor
    if asked == 1 or methods()[sampler.method].makes_together:
        return
    can = [name for each in methods().values() if each.makes_together for name in each.profiles]
    raise ConfigError(
        f"[workers] videos_per_actor = {json.dumps(asked)}, and profile {sampler.profile!r} makes one video at a time: "
        "its calls are large enough by themselves, and other actors take some of them (`share`)",
        f"leave it out; profiles that make several in step: {', '.join(can)}",
    )


def model_options(config: RunConfig) -> ModelOptions:
    """What a config says of the model beside its name."""
    return ModelOptions(
        lora=config.lora,
        height=config.height,
        width=config.width,
        attention=config.attention,
        compile=config.compile,
    )


def why_not(spec: BackboneSpec, num_frames: int, sampler: SamplerConfig) -> str | None:
    """Why the model cannot make so many frames under those settings, or None if it can."""
    if num_frames > MAX_FRAMES:
        return f"num_frames {num_frames} cannot be made: {MAX_FRAMES} are the most"
    return why_no_length(sampler, spec, num_frames)


def row_images(prompts: str, spec: BackboneSpec, sampler: SamplerConfig) -> RowImages:
    """What reads the pictures of a prompt file's rows, and says which rows cannot be made with theirs, or without."""
    rules = rules_of_pictures(spec, sampler)
    takes = {"image": rules.why_no_first, "last_image": rules.why_no_last}
    return RowImages(prompts, takes, ("image",) if rules.is_needed else ())


class PromptChecker:
    """Judges prompts by a model's tokenizer, one by one or many at a time.

    Args:
        backbone: loaded with its tokenizer.
    """

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone

    def __call__(self, prompt: str) -> str | None:
        """Why the model cannot use a prompt, or None if it can."""
        try:
            self._backbone.check_prompt(prompt)
        except BadRowError as error:
            return str(error)
        return None

    def many(self, prompts: Sequence[str]) -> list[str | None]:
        """The same of each prompt."""
        check = getattr(self._backbone, "check_prompts", None)  # a user's own model need not have it
        if check is None:
            return [self(prompt) for prompt in prompts]
        return [None if error is None else str(error) for error in check(prompts)]


def prompt_checker(model: str, revision: str | None) -> PromptChecker | None:
    """A check of one prompt by the model's tokenizer; None where the hub does not deliver it (to a dry run).

    Raises:
        ModelError: if the model is here, and its tokenizer cannot be loaded.
    """
    try:
        backbone = load_backbone(model, revision=revision, device="cpu", components=("tokenizer",))
    except MigaError:
        if is_on_hub(model):
            return None
        raise

    return PromptChecker(backbone)


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


def run_record(plan: Plan) -> RunRecord:
    """What run.json says of this run."""
    return RunRecord(
        config=plan.config.to_dict(),
        model=plan.spec.name,
        model_revision=plan.spec.revision,
        profile=plan.sampler.profile,
        sampler=plan.sampler.noted(),
        prompts=fingerprint(plan.prompts),
        version=__version__,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        weights=weight_notes(plan.config.model, plan.config.revision),
    )
