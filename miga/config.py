"""What a sampler is told: one frozen record, the paper's symbol beside each field, and the named profiles.

A profile is resolved in three layers, later ones winning: the settings published for the family of the model, the
model's own (`BackboneSpec.sampler`), and what the user overrides.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, get_type_hints

from miga.errors import ConfigError

if TYPE_CHECKING:
    from miga.backbones.base import BackboneSpec

Method = Literal["miga", "fifo"]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Every choice of the sampler. All counts are in latents unless named otherwise.

    Attributes:
        profile: name the record was resolved from.
        method: "miga" (zigzag queue, then unified denoising) or "fifo" (FIFO-Diffusion's diagonal queue).
        num_steps: `T`, denoise steps from pure noise to clean.
        window: `f0`, latents in one call of the network.
        stride: `S`, latents kept of every window but a pass's last.
        zigzag_width: `L_zig`, latents that share a level in Stage 1's queue.
        handoff_level: `e` (the paper's tau_e), level of the queue's head: Stage 1 hands latents on at level `e - 1`,
            Stage 2 takes them down the rest together.
        num_guidance_latents: `m_guid`, earlier latents put before a window (long-range guidance); 0 switches it off.
        guidance_scale: of classifier-free guidance; 1 means one forward a call instead of two.
        flow_shift: shift of the flow-matching schedule; it sets which noise a level stands for.
        self_reflection: whether Stage 1 evaluates, and where needed searches, the tail of its queue.
        reflection_threshold: `delta_adju`, fall of the consistency score that starts a search.
        num_eval_latents: `f_eval`, latents that are judged.
        num_reference_latents: `f_ref`, latents before them that they are compared with.
        num_reflection_guidance_latents: `f_guid`, latents before them that a candidate is grown from.
        num_candidates: `n_samp`, candidates of a search.
        judged_group: `G`, which group of the queue is judged, counted from the tail (1 is the last).

    Raises:
        ConfigError: if a value is out of range, saying which range and why.
    """

    profile: str
    method: Method
    num_steps: int
    window: int
    stride: int
    zigzag_width: int
    handoff_level: int
    num_guidance_latents: int
    guidance_scale: float
    flow_shift: float
    self_reflection: bool
    reflection_threshold: float
    num_eval_latents: int
    num_reference_latents: int
    num_reflection_guidance_latents: int
    num_candidates: int
    judged_group: int

    def __post_init__(self) -> None:
        self._check(self.num_steps >= 1, "num_steps", "at least 1")
        self._check(self.window >= 2, "window", "at least 2")
        self._check(1 <= self.stride <= self.window, "stride", f"1 to window = {self.window}")
        self._check(math.isfinite(self.guidance_scale) and self.guidance_scale >= 0, "guidance_scale", "0 or more")
        self._check(math.isfinite(self.flow_shift) and self.flow_shift > 0, "flow_shift", "above 0")
        if self.method == "fifo":
            self._check_fifo()
        else:
            self._check_queue()
            if self.self_reflection:
                self._check_reflection()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in field order."""
        return asdict(self)

    @property
    def num_base_groups(self) -> int:
        """`n_zig`, groups that the base clip fills."""
        return self.window // self.zigzag_width

    @property
    def queue_length(self) -> int:
        """Latents that a pass over the full queue sees: `(T - e + 1) * L_zig`, levels `e ... T` (`fifo`: `T`)."""
        if self.method == "fifo":
            return self.num_steps
        return (self.num_steps - self.handoff_level + 1) * self.zigzag_width

    def _check_fifo(self) -> None:
        why = "the base clip fills the last `window` places of a queue of `num_steps`"
        self._check(self.num_steps >= self.window, "num_steps", f"at least window = {self.window}: {why}")
        half = self.window - self.window // 2
        self._check(self.stride <= half, "stride", f"1 to {half}: each window writes its right half")

    def _check_queue(self) -> None:
        divisors = [width for width in range(1, self.window + 1) if self.window % width == 0]
        self._check(
            self.zigzag_width in divisors,
            "zigzag_width",
            f"a divisor of window = {self.window}, one of {divisors}: the base clip must fill whole groups",
        )
        groups = self.num_base_groups
        self._check(
            self.num_steps > groups,
            "num_steps",
            f"at least {groups + 1}: the base clip's {groups} groups enter at levels num_steps - {groups} and above",
        )
        highest = self.num_steps - groups
        self._check(
            1 <= self.handoff_level <= highest, "handoff_level",
            f"1 to {highest}: the base clip enters at level num_steps - window / zigzag_width = {highest} "
            "and the head of the queue is taken down from there",
        )  # fmt: skip
        room = self.window - self.stride
        self._check(
            0 <= self.num_guidance_latents <= room, "num_guidance_latents",
            f"0 to {room}: a guided window must still hold its stride of {self.stride} local latents",
        )  # fmt: skip

    def _check_reflection(self) -> None:
        self._check(math.isfinite(self.reflection_threshold), "reflection_threshold", "a finite number")
        self._check(self.num_candidates >= 1, "num_candidates", "at least 1")
        self._check(self.judged_group >= 1, "judged_group", "at least 1 (the last group of the queue)")
        tail = self.judged_group * self.zigzag_width
        self._check(1 <= self.num_eval_latents <= tail, "num_eval_latents", f"1 to {tail}, the latents judged from on")
        self._check(
            1 <= self.num_reference_latents <= self.num_reflection_guidance_latents, "num_reference_latents",
            f"1 to num_reflection_guidance_latents = {self.num_reflection_guidance_latents}: a candidate is compared "
            "with the latents it is grown from",
        )  # fmt: skip
        room = self.queue_length - tail
        self._check(
            self.num_reflection_guidance_latents <= room, "judged_group",
            f"so small that num_reflection_guidance_latents = {self.num_reflection_guidance_latents} stand before it "
            f"in the queue (there is room for {max(0, room)})",
        )  # fmt: skip

    def _check(self, holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise ConfigError(
                f"sampler.{name} = {getattr(self, name)!r} is out of range (profile {self.profile!r})",
                f"it must be {allowed}",
            )


REFLECTION_FIELDS: Final = (
    "reflection_threshold",
    "num_eval_latents",
    "num_reference_latents",
    "num_reflection_guidance_latents",
    "num_candidates",
    "judged_group",
)

PUBLISHED: Final[dict[str, dict[str, Any]]] = {
    "wan": {
        "num_steps": 54,
        "zigzag_width": 7,
        "handoff_level": 10,
        "num_guidance_latents": 4,
        "guidance_scale": 5.0,
        "flow_shift": 5.0,
        "reflection_threshold": 0.01,
        "num_eval_latents": 7,
        "num_reference_latents": 14,
        "num_reflection_guidance_latents": 14,
        "num_candidates": 3,
        "judged_group": 10,
    },
}
"""Settings of the paper (what it leaves open: of its released program), by family of model."""


@dataclass(frozen=True)
class Profile:
    """A named way to sample: what it fixes over the published settings, and what it is for."""

    summary: str
    settings: Mapping[str, Any]


PROFILES: Final[dict[str, Profile]] = {
    "paper": Profile(
        "MIGA as the paper gives it: zigzag queue, unified denoising, long-range guidance, self-reflection",
        {"method": "miga", "self_reflection": True},
    ),
    "fifo": Profile(
        "FIFO-Diffusion with lookahead denoising, the baseline",
        {"method": "fifo", "self_reflection": False, "num_guidance_latents": 0, "zigzag_width": 1, "handoff_level": 1},
    ),
}


def resolve_config(profile: str, spec: BackboneSpec, overrides: Mapping[str, Any] | None = None) -> SamplerConfig:
    """The settings of a profile for a model.

    Args:
        profile: a name of `PROFILES`.
        spec: the model; its `sampler` settings win over those published for its family.
        overrides: fields of `SamplerConfig` that win over all else.

    Raises:
        ConfigError: for an unknown profile or field, a wrong type or a value out of range.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}", _suggest(profile, PROFILES, "profiles"))
    overrides = dict(overrides or {})
    check_overrides(overrides)
    values: dict[str, Any] = {
        "window": spec.window, **PUBLISHED[spec.family], **spec.sampler, **PROFILES[profile].settings, **overrides
    }  # fmt: skip
    if values["window"] > spec.window:
        raise ConfigError(
            f"sampler.window = {values['window']} is more than {spec.name!r} was trained on",
            f"it must be at most {spec.window} latents",
        )
    values.setdefault("stride", values["window"] // 2)
    return SamplerConfig(profile=profile, **values)


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuses names and types that `SamplerConfig` does not have (ranges are checked once all is resolved).

    Raises:
        ConfigError: naming the field and what it takes.
    """
    types = {name: kind for name, kind in get_type_hints(SamplerConfig).items() if name != "profile"}
    for name, value in overrides.items():
        if name not in types:
            raise ConfigError(f"unknown key sampler.{name}", _suggest(name, types, "keys"))
        allowed = {float: (float, int), int: (int,), bool: (bool,)}.get(types[name], (str,))
        if not isinstance(value, allowed) or (isinstance(value, bool) and types[name] is not bool):
            wanted = types[name].__name__ if types[name] in (float, int, bool) else "str"
            raise ConfigError(f"sampler.{name} = {value!r} has the wrong type", f"it takes a value of type {wanted}")
    if overrides.get("method", "miga") not in ("miga", "fifo"):
        raise ConfigError(f"sampler.method = {overrides['method']!r} is unknown", "it is 'miga' or 'fifo'")


def _suggest(name: str, known: Mapping[str, Any], what: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"{what}: {', '.join(known)}"


FIELD_NAMES: Final = tuple(field.name for field in fields(SamplerConfig))
