"""What a sampler is told: one frozen record, the paper's symbol beside each field, and the named profiles.

A profile is resolved in three layers, later ones winning: the settings published for the family of the model, the
model's own (`BackboneSpec.sampler`), and what the user overrides.
"""

from __future__ import annotations

import difflib
import itertools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin, get_type_hints

from miga.errors import ConfigError
from miga.outside_data import shown

if TYPE_CHECKING:
    from miga.backbones.base import BackboneSpec

Method = Literal["miga", "fifo", "unified", "released"]
SolverName = Literal["unipc", "ddim", "euler", "renoise"]

MAX_STEPS: Final = 1000
"""Time steps that models are trained with; more steps would be told apart by nothing."""
MAX_WINDOW: Final = 4096
MAX_GUIDANCE: Final = 1000.0
"""Far beyond what any model bears, and far from what no float32 holds."""
MAX_CANDIDATES: Final = 1000
"""Of a search, and of its beams: each is held in memory."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Every choice of the sampler. All counts are in latents unless named otherwise.

    Attributes:
        profile: name the record was resolved from.
        method: "miga" (zigzag queue, then unified denoising), "fifo" (FIFO-Diffusion's diagonal queue), "unified"
            (Stage 2 alone, Alg. 8) or "released" (what the authors' program does).
        num_steps: `T`, denoise steps from pure noise to clean.
        window: `f0`, latents in one call of the network.
        stride: `S`, latents kept of every window but a pass's last.
        unified_stride: the same in Stage 2; by default `stride`, and one more where `position_0_context` takes a place.
        zigzag_width: `L_zig`, latents that share a level in Stage 1's queue.
        handoff_level: `e` (the paper's tau_e), level of the queue's head: Stage 1 hands latents on at level `e - 1`,
            Stage 2 takes them down the rest together.
        num_guidance_latents: `m_guid`, earlier latents put before a window (long-range guidance); 0 switches it off.
        guidance_scale: of classifier-free guidance; 1 means one forward a call instead of two.
        guidance_low_level, guidance_high_level: classifier-free guidance acts on latents of these levels only, both
            included; a call without any such latent takes one forward.
        solver: "unipc" (order 2), "ddim" (with `eta`), "euler", or "renoise" (step-distilled models).
        eta: of DDIM: 0 is deterministic, 1 is DDPM's noise.
        flow_shift: shift of the flow-matching schedule; it sets which noise a level stands for.
        timesteps: a step-distilled model's own few time steps, highest first, before the shift; empty for the schedule
            of `num_steps` even steps.
        drain: whether a video of known length stops pushing noise once its last latent and one group more are in the
            queue, which then runs empty; else the queue stays full to the end and what is left in it is thrown away.
        position_0_context: whether a plain window that does not start at the video's first latent sees one latent
            more before it, so that none but that first one is kept from the window's position 0.
        windows_per_batch: windows of a pass that go through the network together.
        self_reflection: whether Stage 1 evaluates, and where needed searches, the tail of its queue.
        reflection_threshold: `delta_adju`, fall of the consistency score that starts a search.
        num_eval_latents: `f_eval`, latents that are judged.
        num_reference_latents: `f_ref`, latents before them that they are compared with.
        num_reflection_guidance_latents: `f_guid`, latents before them that a candidate is grown from.
        num_candidates: `n_samp`, candidates of a search.
        judged_group: `G`, which group of the queue is judged, counted from the tail (1 is the last).
        lookahead: (fifo) whether windows keep their right half behind clean context, as FIFO-Diffusion's program does,
            or their left part as Alg. 3 prints it.
        num_beams: (fifo) beams of ScalingNoise's search over new latents; 0 for no search.
        released_branch: (released) which of the two programs of the authors.

    Raises:
        ConfigError: if a value is out of range, saying which range and why.
    """

    profile: str
    method: Method
    num_steps: int
    window: int
    stride: int
    unified_stride: int
    zigzag_width: int
    handoff_level: int
    num_guidance_latents: int
    guidance_scale: float
    guidance_low_level: int
    guidance_high_level: int
    solver: SolverName
    eta: float
    flow_shift: float
    timesteps: tuple[int, ...]
    drain: bool
    position_0_context: bool
    windows_per_batch: int
    self_reflection: bool
    reflection_threshold: float
    num_eval_latents: int
    num_reference_latents: int
    num_reflection_guidance_latents: int
    num_candidates: int
    judged_group: int
    lookahead: bool
    num_beams: int
    released_branch: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", tuple(self.timesteps))  # JSON and TOML know lists
        self._check(1 <= self.num_steps <= MAX_STEPS, "num_steps", f"at least 1, at most {MAX_STEPS}")
        self._check(2 <= self.window <= MAX_WINDOW, "window", f"at least 2, at most {MAX_WINDOW}")
        self._check(1 <= self.stride <= self.window, "stride", f"1 to window = {self.window}")
        self._check(self.windows_per_batch >= 1, "windows_per_batch", "at least 1")
        self._check_solver()
        if self.method == "fifo":
            self._check_fifo()
        elif self.method == "unified":
            self._check_position_0()
        else:
            self._check_queue()
            self._check_position_0()
            if self.method == "released":
                self._check_released()
            if self.self_reflection:
                self._check_reflection()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in field order."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: Any, origin: str) -> SamplerConfig:
        """What `to_dict` gave, read back from wherever it was noted.

        Args:
            values: plain values, as JSON has them.
            origin: the file they are from, for messages.

        Raises:
            ConfigError: if they are no such record, or one that cannot be.
        """
        try:
            if not isinstance(values, Mapping):
                raise ConfigError("sampler holds no settings", "")
            if missing := [name for name in FIELD_NAMES if name not in values]:
                raise ConfigError(f"sampler.{missing[0]} is missing", "")
            if not isinstance(values["profile"], str):
                raise ConfigError(f"sampler.profile = {shown(values['profile'])} has the wrong type", "")
            check_overrides({name: value for name, value in values.items() if name != "profile"})
            return cls(**values)
        except ConfigError as error:
            hint = error.hint or "restore the file: it is not as this version wrote it"
            raise ConfigError(f"{origin}: {error.message}", hint) from error

    @property
    def num_base_groups(self) -> int:
        """`n_zig`, groups that the base clip fills."""
        return self.window // self.zigzag_width

    @property
    def num_early_groups(self) -> int:
        """Base groups that would enter Stage 1's queue below its head's level: they go straight to Stage 2.

        There are some where `T` is small: `n_zig > T - e`.
        """
        return min(self.num_base_groups, max(0, self.num_base_groups + self.handoff_level - self.num_steps))

    @property
    def queue_length(self) -> int:
        """Latents that a pass over the full queue sees: `(T - e + 1) * L_zig`, levels `e ... T` (`fifo`: `T`;
        `released`: from level `e + 1` on).
        """
        if self.method == "fifo":
            return self.num_steps
        num_groups = self.num_steps - self.handoff_level + (self.method != "released")
        return num_groups * self.zigzag_width

    @property
    def num_initial_passes(self) -> int:
        """(released) Passes of initialisation that fill the queue; a video of fewer groups gets one a group."""
        return self.num_steps - self.num_base_groups - self.handoff_level - 2

    def num_groups_asked(self, num_latents: int) -> int:
        """(released) Groups that are made for a video: on Wan a base clip's more than it has, dropped at the end."""
        num_dropped = self.num_base_groups if self.released_branch == "wan" else 0
        return -(-num_latents // self.zigzag_width) + num_dropped

    @property
    def lead(self) -> int:
        """Latents of context before a plain window's kept ones (see `position_0_context`)."""
        return int(self.position_0_context)

    def _check_solver(self) -> None:
        self._check(0 <= self.guidance_scale <= MAX_GUIDANCE, "guidance_scale", f"0 or more, at most {MAX_GUIDANCE:g}")
        self._check(self.guidance_low_level >= 1, "guidance_low_level", "at least 1")
        self._check(
            self.guidance_low_level <= self.guidance_high_level <= self.num_steps, "guidance_high_level",
            f"guidance_low_level = {self.guidance_low_level} to num_steps = {self.num_steps}",
        )  # fmt: skip
        self._check(math.isfinite(self.flow_shift) and self.flow_shift > 0, "flow_shift", "above 0")
        self._check(math.isfinite(self.eta) and 0 <= self.eta <= 1, "eta", "0 to 1")
        self._check(self.eta == 0 or self.solver == "ddim", "eta", f"0: solver {self.solver!r} has no eta")
        if self.timesteps:
            falls = all(high > low for high, low in itertools.pairwise(self.timesteps))
            self._check(
                falls and self.timesteps[-1] >= 1 and self.timesteps[0] <= 1000, "timesteps",
                "falling whole numbers from 1000 to 1",
            )  # fmt: skip
            self._check(
                len(self.timesteps) == self.num_steps, "num_steps", f"the {len(self.timesteps)} entries of timesteps"
            )

    def _check_position_0(self) -> None:
        room = self.window - self.lead
        self._check(self.stride <= room, "stride", f"1 to {room}: a window must hold what it keeps beside its context")
        self._check(
            1 <= self.unified_stride <= room, "unified_stride",
            f"1 to {room}: a window must hold what it keeps beside its context",
        )  # fmt: skip

    def _check_released(self) -> None:
        branches = ("wan", "videocrafter2")
        self._check(self.released_branch in branches, "released_branch", f"one of {branches}")
        self._check(not self.position_0_context, "position_0_context", "false in this method")
        highest = self.num_steps - self.num_base_groups - 2
        self._check(highest >= 1, "num_steps", f"at least {self.num_base_groups + 3}, to initialise the queue")
        self._check(
            self.handoff_level <= highest, "handoff_level",
            f"1 to {highest}: initialisation ends two levels above it, below the base clip's groups",
        )  # fmt: skip
        self._check(
            self.stride < self.window, "stride", f"1 to {self.window - 1}: a window must see beyond what it keeps"
        )
        if self.self_reflection:
            self._check(
                self.judged_group <= self.num_initial_passes, "judged_group",
                f"at most {self.num_initial_passes}: the tail is judged after the passes of initialisation, once the "
                "judged group stands behind the whole base clip",
            )  # fmt: skip

    def _check_fifo(self) -> None:
        why = "the base clip fills the last `window` places of a queue of `num_steps`"
        self._check(self.num_steps >= self.window, "num_steps", f"at least window = {self.window}: {why}")
        half = self.window - self.window // 2
        if self.lookahead:
            self._check(self.stride <= half, "stride", f"1 to {half}: each window writes its right half")
        self._check(
            0 <= self.num_beams <= MAX_CANDIDATES, "num_beams", f"0 (no search) or more, at most {MAX_CANDIDATES}"
        )
        if self.num_beams:
            self._check(
                self.lookahead, "lookahead", "true for a search: clean context is what candidates are held against"
            )
            self._check(
                1 <= self.num_candidates <= MAX_CANDIDATES, "num_candidates", f"at least 1, at most {MAX_CANDIDATES}"
            )
            self._check(
                1 <= self.num_eval_latents <= half, "num_eval_latents", f"1 to {half}, the right half of a window"
            )

    def _check_candidates(self) -> None:
        held = 1 <= self.num_candidates <= MAX_CANDIDATES
        self._check(held, "num_candidates", f"at least 1, at most {MAX_CANDIDATES}")

    def _check_queue(self) -> None:
        divisors = [width for width in range(1, self.window + 1) if self.window % width == 0]
        self._check(
            self.zigzag_width in divisors,
            "zigzag_width",
            f"a divisor of window = {self.window}, one of {divisors}: the base clip must fill whole groups",
        )
        self._check(
            1 <= self.handoff_level <= self.num_steps,
            "handoff_level",
            f"1 to num_steps = {self.num_steps}: the level that Stage 1's queue begins at",
        )
        room = self.window - self.stride
        self._check(
            0 <= self.num_guidance_latents <= room, "num_guidance_latents",
            f"0 to {room}: a guided window must still hold its stride of {self.stride} local latents",
        )  # fmt: skip

    def _check_reflection(self) -> None:
        self._check(math.isfinite(self.reflection_threshold), "reflection_threshold", "a finite number")
        self._check(
            1 <= self.num_candidates <= MAX_CANDIDATES, "num_candidates", f"at least 1, at most {MAX_CANDIDATES}"
        )
        self._check(self.judged_group >= 1, "judged_group", "at least 1 (the last group of the queue)")
        tail = self.judged_group * self.zigzag_width
        self._check(1 <= self.num_eval_latents <= tail, "num_eval_latents", f"1 to {tail}, the latents judged from on")
        self._check(
            1 <= self.num_reference_latents <= self.num_reflection_guidance_latents, "num_reference_latents",
            f"1 to num_reflection_guidance_latents = {self.num_reflection_guidance_latents}: a candidate is compared "
            "with the latents it is grown from",
        )  # fmt: skip
        longest = self.queue_length - (2 * self.zigzag_width if self.method == "released" else 0)
        room = longest - tail
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

_COMMON: Final = (
    "method", "num_steps", "window", "stride", "guidance_scale", "guidance_low_level", "guidance_high_level", "solver",
    "eta", "flow_shift", "timesteps", "windows_per_batch",
)  # fmt: skip
_QUEUE: Final = ("zigzag_width", "handoff_level", "num_guidance_latents", "self_reflection", *REFLECTION_FIELDS)

USED_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "miga": (*_COMMON, *_QUEUE, "unified_stride", "drain", "position_0_context"),
    "unified": (*_COMMON, "unified_stride", "position_0_context"),
    "released": (*_COMMON, *_QUEUE, "released_branch"),
    "fifo": (*_COMMON, "lookahead", "num_beams", "num_candidates", "num_eval_latents"),
}
"""What each method reads. Overriding anything else is refused: it would change nothing."""

PUBLISHED: Final[dict[str, dict[str, Any]]] = {
    "wan": {
        "num_steps": 54,
        "zigzag_width": 7,
        "handoff_level": 10,
        "num_guidance_latents": 4,
        "guidance_scale": 5.0,
        "solver": "unipc",
        "eta": 0.0,
        "flow_shift": 5.0,
        "reflection_threshold": 0.01,
        "num_eval_latents": 7,
        "num_reference_latents": 14,
        "num_reflection_guidance_latents": 14,
        "num_candidates": 3,
        "judged_group": 10,
    },
    "videocrafter2": {
        "num_steps": 64,
        "zigzag_width": 4,
        "handoff_level": 10,
        "num_guidance_latents": 6,
        "guidance_scale": 12.0,
        "solver": "ddim",
        "eta": 1.0,
        "flow_shift": 1.0,
        "reflection_threshold": 0.01,
        "num_eval_latents": 4,
        "num_reference_latents": 12,
        "num_reflection_guidance_latents": 12,
        "num_candidates": 5,
        "judged_group": 14,
    },
}
"""Settings of the paper (what it leaves open: of its released program), by family of model."""


def _in_proportion(window: int, num_steps: int) -> dict[str, Any]:
    """Settings for models that nothing is published for: Wan's, in proportion to their window and steps.

    `euler` steps through any noise schedule.
    """
    width = max(width for width in range(1, max(2, window // 3 + 1)) if window % width == 0)
    handoff = max(1, round(num_steps * 10 / 54))
    return {
        **PUBLISHED["wan"],
        "num_steps": num_steps,
        "zigzag_width": width,
        "handoff_level": handoff,
        "num_guidance_latents": round(window * 4 / 21),
        "solver": "euler",
        "flow_shift": 1.0,
        "num_eval_latents": width,
        "num_reference_latents": 2 * width,
        "num_reflection_guidance_latents": 2 * width,
        "judged_group": max(1, min(10, num_steps - handoff - 1)),
    }


@dataclass(frozen=True)
class Profile:
    """A named way to sample.

    Attributes:
        summary: what it is for.
        settings: what it fixes over the published settings.
        by_family: what it fixes for models of one family alone.
        derive: what follows from the other settings, where the user says nothing of it.
    """

    summary: str
    settings: Mapping[str, Any]
    by_family: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    derive: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {}


_DEFAULTS: Final[dict[str, Any]] = {
    "guidance_low_level": 1,
    "timesteps": (),
    "drain": False,
    "position_0_context": False,
    "windows_per_batch": 1,
    "self_reflection": False,
    "lookahead": True,
    "num_beams": 0,
    "released_branch": "",
}
_RELEASED: Final[dict[str, dict[str, Any]]] = {
    "wan": {"released_branch": "wan", "self_reflection": True, "num_guidance_latents": 4},
    "videocrafter2": {
        "released_branch": "videocrafter2",
        "self_reflection": False,
        "num_guidance_latents": 4,
        "reflection_threshold": 0.001,
        "judged_group": 13,
    },
}
"""What the authors' programs fix, over the published settings of the family. `judged_group` counts before a push."""

_PAPER: Final[dict[str, Any]] = {"method": "miga", "self_reflection": True}
_FIFO: Final[dict[str, Any]] = {
    "method": "fifo", "self_reflection": False, "num_guidance_latents": 0, "zigzag_width": 1, "handoff_level": 1
}  # fmt: skip
ABLATIONS: Final[dict[str, dict[str, Any]]] = {
    "no-zigzag": {"zigzag_width": 1},
    "no-stage-2": {"handoff_level": 1},
    "no-guidance": {"num_guidance_latents": 0},
    "no-reflection": {"self_reflection": False},
}
"""What each part of the method is switched off by; profiles join them with "-" in this order."""


SWIFT_KEPT_SHARE: Final = 0.8
"""Of a guided window's local latents, how many `swift` keeps: the rest is context."""


def _swift(values: Mapping[str, Any]) -> dict[str, Any]:
    """Longer strides, and classifier-free guidance in Stage 1 alone. Source: decisions/0008."""
    local = values["window"] - values["num_guidance_latents"]
    lowest = min(max(1, values["handoff_level"]), values["num_steps"])  # a wrong level is refused by its own name
    return {"stride": max(1, round(SWIFT_KEPT_SHARE * local)), "guidance_low_level": lowest}


def _ablated() -> dict[str, Profile]:
    """`paper` without each of its parts, alone and together."""
    profiles = {}
    for count in range(1, len(ABLATIONS) + 1):
        for parts in itertools.combinations(ABLATIONS, count):
            settings = {key: value for part in parts for key, value in ABLATIONS[part].items()}
            without = " and ".join(part.removeprefix("no-").replace("-", " ") for part in parts)
            profiles["-".join(parts)] = Profile(f"`paper` without {without}", _PAPER | settings)
    return profiles


PROFILES: Final[dict[str, Profile]] = {
    "swift": Profile(
        "ours: as good as `paper` for far fewer calls (decisions/0008): the queue drains, longer strides, no search",
        {"method": "miga", "self_reflection": False, "drain": True},
        by_family={"wan": {"position_0_context": True}},
        derive=_swift,
    ),
    "paper": Profile(
        "MIGA as the paper gives it: zigzag queue, unified denoising, long-range guidance, self-reflection", _PAPER
    ),
    "released": Profile(
        "MIGA as the authors' program does it where that differs (its faults apart)",
        {"method": "released", "drain": False, "position_0_context": False},
        by_family=_RELEASED,
    ),
    "fifo": Profile("FIFO-Diffusion with lookahead denoising, the baseline", _FIFO),
    "fifo-literal": Profile(
        "FIFO-Diffusion as Alg. 3 prints it: windows keep their left part, no clean context",
        _FIFO | {"lookahead": False},
    ),
    "scalingnoise": Profile(
        "FIFO-Diffusion with a beam search over new latents, by their consistency with the head",
        _FIFO | {"num_beams": 3, "num_candidates": 5, "num_eval_latents": 1},
    ),
    "stage-2-only": Profile(
        "Alg. 8: all latents from noise at one level, without a queue",
        {
            "method": "unified",
            "self_reflection": False,
            "num_guidance_latents": 0,
            "zigzag_width": 1,
            "handoff_level": 1,
        },
    ),
    **_ablated(),
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
    if not isinstance(profile, str) or profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}", _suggest(profile, PROFILES, "profiles"))
    if not isinstance(overrides, Mapping | None):
        raise ConfigError(f"sampler = {shown(overrides)} has the wrong type", "it takes keys and values")
    overrides = dict(overrides or {})
    check_overrides(overrides)
    fixed = {**PROFILES[profile].settings, **PROFILES[profile].by_family.get(spec.family, {})}
    said = {"window": spec.window, **spec.sampler, **overrides}
    if said["window"] > spec.window:
        raise ConfigError(
            f"sampler.window = {said['window']} is more than {spec.name!r} was trained on",
            f"it must be at most {spec.window} latents",
        )
    family = PUBLISHED.get(spec.family) or _in_proportion(said["window"], said.get("num_steps", 50))
    values: dict[str, Any] = {
        "window": spec.window, **_DEFAULTS, **family, **spec.sampler, **fixed, **overrides
    }  # fmt: skip
    unused = [name for name in overrides if name not in USED_FIELDS[values["method"]]]
    if unused:
        raise ConfigError(
            f"sampler.{unused[0]} does nothing in profile {profile!r}",
            f"leave it out; method {values['method']!r} reads: {', '.join(USED_FIELDS[values['method']])}",
        )
    if values["timesteps"] and "num_steps" not in overrides:
        values["num_steps"] = len(values["timesteps"])
    if values["solver"] != "ddim" and "eta" not in overrides:
        values["eta"] = 0.0
    values.setdefault("guidance_high_level", values["num_steps"])
    values = {**values, **PROFILES[profile].derive(values), **overrides}
    values.setdefault("stride", values["window"] // 2)
    values.setdefault("unified_stride", values["stride"] + values["position_0_context"])
    config = SamplerConfig(profile=profile, **values)
    _check_solver_fits(config, spec.family)
    return config


def _check_solver_fits(config: SamplerConfig, family: str) -> None:
    """What a solver asks of the noise schedule, which the family of the model decides."""
    if config.timesteps and config.solver not in ("renoise", "euler"):
        raise ConfigError(
            f"sampler.solver = {config.solver!r} cannot step through sampler.timesteps",
            "step-distilled models take solver 'renoise' (or 'euler')",
        )
    if family == "videocrafter2" and config.solver == "unipc":
        raise ConfigError(
            "sampler.solver = 'unipc' cannot step through this model's noise schedule",
            "its last two levels are one and the same; take 'ddim' (with eta = 0: deterministic) or 'euler'",
        )
    if config.timesteps and family == "videocrafter2":
        raise ConfigError("sampler.timesteps are those of flow-matching models", "leave them out for this model")
    if family == "videocrafter2" and config.solver == "renoise":
        raise ConfigError(
            "sampler.solver = 'renoise' would leave noise on this model's finished latents: its noise schedule ends at "
            "0.029, above 0, and the solver noises its prediction to that",
            "take 'ddim' (with eta = 1: as much fresh noise in between) or 'euler'",
        )


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuses names and types that `SamplerConfig` does not have (ranges are checked once all is resolved).

    Raises:
        ConfigError: naming the field and what it takes.
    """
    types = {name: kind for name, kind in get_type_hints(SamplerConfig).items() if name != "profile"}
    for name, value in overrides.items():
        if name not in types:
            raise ConfigError(f"unknown key sampler.{shown(name)[1:-1]}", _suggest(name, types, "keys"))
        problem = _type_problem(types[name], value)
        if problem:
            raise ConfigError(f"sampler.{name} = {_shown(value)} has the wrong type", problem)
        known = get_args(types[name]) if get_origin(types[name]) is Literal else ()
        if known and value not in known:
            raise ConfigError(
                f"sampler.{name} = {_shown(value)} is unknown", f"it is one of {', '.join(map(repr, known))}"
            )


def _type_problem(kind: Any, value: Any) -> str:
    """What a field of that type takes, if the value is none; else nothing."""
    if get_origin(kind) is tuple:
        is_list = isinstance(value, list | tuple) and all(type(item) is int for item in value)
        return "" if is_list else "it takes a list of whole numbers"
    allowed = {float: (float, int), int: (int,), bool: (bool,)}.get(kind, (str,))
    if isinstance(value, allowed) and (not isinstance(value, bool) or kind is bool):
        if kind is float and not isinstance(value, str) and abs(value) > sys.float_info.max:
            return "it takes a number that a float holds"
        if kind is int and isinstance(value, int) and value.bit_length() > 63:
            return "it takes a whole number of at most 63 bits"
        return ""
    return f"it takes a value of type {kind.__name__ if kind in (float, int, bool) else 'str'}"


def _shown(value: Any, most: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _suggest(name: object, known: Mapping[str, Any], what: str) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"{what}: {', '.join(known)}"


FIELD_NAMES: Final = tuple(field.name for field in fields(SamplerConfig))
