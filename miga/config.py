"""What a sampler is told: a frozen record of what all methods share, the paper's symbol beside each field.

Every method derives its own settings from it (`methods/`); profiles name them (`profiles.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol, TypeAlias

from miga.clips import ClipLayout
from miga.errors import ConfigError

if TYPE_CHECKING:
    from miga.frame_attention import FrameAttention
    from miga.frame_texts import FrameTexts
    from miga.time_rotation import TimeRotation

SolverName = Literal["unipc", "ddim", "euler", "renoise"]
LaterWindows: TypeAlias = Literal["", "anchor", "reference"]
"""What a window is conditioned on that does not begin with the video's first latent, of a model that takes channels:
the picture, before its own latents, and grey behind it, or ("reference") the picture over and over, as in SVI-Shot. ""
of other models."""

MAX_STEPS: Final = 1000
"""Time steps that models are trained with; more steps would be told apart by nothing."""
MAX_WINDOW: Final = 4096
MAX_GUIDANCE: Final = 1000.0
"""Far beyond what any model bears, and far from what no float32 holds."""
MAX_CANDIDATES: Final = 1000
"""Of a search, and of its beams: each is held in memory."""


class ModelFacts(Protocol):
    """What settings ask of a model's spec (`BackboneSpec`, which says what they mean)."""

    @property
    def name(self) -> str:
        """Of the model."""
        ...

    @property
    def frame_attention(self) -> str:
        """What of its network attends to other frames."""
        ...

    @property
    def takes_positions(self) -> bool:
        """Whether its network is told where latents stand in time."""
        ...


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """What every method of sampling is told. All counts are in latents unless named otherwise.

    Attributes:
        profile: name the record was resolved from.
        method: name of the method, whose settings derive from this record.
        num_steps: `T`, denoise steps from pure noise to clean.
        window: `f0`, latents in one call of the network.
        guidance_scale: of classifier-free guidance; 1 means one forward a call instead of two.
        guidance_low_level, guidance_high_level: classifier-free guidance acts on latents of these levels only, both
            included; a call without any such latent takes one forward.
        solver: "unipc" (order 2), "ddim" (with `eta`), "euler", or "renoise" (step-distilled models).
        eta: of DDIM: 0 is deterministic, 1 is DDPM's noise.
        flow_shift: shift of the flow-matching schedule; it sets which noise a level stands for.
        timesteps: a step-distilled model's own few time steps, highest first, before the shift; empty for the schedule
            of `num_steps` even steps.
        windows_per_batch: windows of a pass that go through the network together.
        takes_wan_program_steps: whether the method was published with the time steps of Wan's own program, and not
            with those of diffusers (of the method, no setting).
        added_later: settings that versions before did not know, by name: at their defaults, nothing is otherwise than
            it was then (of the method, no setting).
        follows: settings that follow from others where nobody says them (`implied`), though their field has a default:
            that is what a record means that lacks them (of the method, no setting).
        takes_even_steps: whether the method was published with evenly spaced flow-matching steps (of the method).
        takes_strided_steps: whether it was published with VideoCrafter's own spacing of DDIM steps, every n-th from 1
            on, whatever the model's is (of the method).
        one_window: whether a call shows all latents of a video, however many there are (of the method): memory grows
            with the length, and there is no video without end.

    Raises:
        ConfigError: if a value is out of range, saying which range and why.
    """

    takes_wan_program_steps: ClassVar[bool] = False
    added_later: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[frozenset[str]] = frozenset()
    takes_even_steps: ClassVar[bool] = False
    takes_strided_steps: ClassVar[bool] = False
    one_window: ClassVar[bool] = False

    profile: str
    method: str
    num_steps: int
    window: int
    guidance_scale: float
    guidance_low_level: int
    guidance_high_level: int
    solver: SolverName
    eta: float
    flow_shift: float
    timesteps: tuple[int, ...]
    windows_per_batch: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", tuple(self.timesteps))  # JSON and TOML know lists
        self.require(1 <= self.num_steps <= MAX_STEPS, "num_steps", f"at least 1, at most {MAX_STEPS}")
        self.require(2 <= self.window <= MAX_WINDOW, "window", f"at least 2, at most {MAX_WINDOW}")
        self.require(self.windows_per_batch >= 1, "windows_per_batch", "at least 1")
        self._check_guidance()
        self._check_solver()
        self.check()

    def check(self) -> None:
        """Checks what the method itself adds, by `require`.

        Raises:
            ConfigError: if a value is out of range.
        """

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from the other settings, for those that nobody has set. All shared ones are among `values`."""
        return {}

    def lengths_near(self, num_latents: int) -> tuple[int, ...]:
        """Of a length that the method cannot make, the nearest ones that it can, in latents; empty if it can."""
        return ()

    @property
    def num_cached(self) -> int:
        """Latents of which the network keeps keys and values, at most."""
        return 0

    def work(self, num_latents: int) -> tuple[float, float] | None:
        """What the calls of a video under one prompt compute, where they are no whole windows.

        Returns:
            Latents shown, and pairs of a shown and a seen latent, both summed over all forwards: operations of a
            transformer outside of its self-attention are in proportion to the one, those within it to the other.
        """
        return None

    def num_switch_calls(self, num_latents: int, num_prompts: int, starts: tuple[int, ...] = ()) -> int:
        """Network calls that the changes between so many prompts take, beside those of a video of one prompt.

        Args:
            num_latents: of the video.
            num_prompts: that stand in turn.
            starts: first latent of each (`PromptTrack.starts`); empty: even shares.
        """
        return 0

    @property
    def why_no_picture(self) -> str:
        """Why no video begins with a picture under these settings; empty if one may."""
        return ""

    @property
    def later_windows(self) -> LaterWindows:
        """What windows behind the first are conditioned on, of a model that takes channels; "" of other models.

        See `LaterWindows`.
        """
        return ""

    @property
    def room(self) -> int:
        """Latents of a queue that a window shows at most: all but a picture that is shown before them."""
        return self.window - bool(self.later_windows)

    @property
    def num_calls_for_picture(self) -> int:
        """Network calls that a first picture spares: those that would make its latent, where calls are of it alone."""
        return 0

    def first_under(self, latent: int) -> int:
        """The first latent that is made under a prompt which begins at that one."""
        return latent

    def latents_per_call(self, num_latents: int | None) -> int:
        """Latents that a call shows at most, of a video of so many; None: of any length.

        Raises:
            ConfigError: if that follows from the length alone, and none is said.
        """
        if not self.one_window:
            return self.window
        self.require_end(num_latents)
        assert num_latents is not None
        return num_latents

    def require_end(self, num_latents: int | None) -> None:
        """Refuses a video without end where all of it is in one window.

        Raises:
            ConfigError: saying which profiles make one.
        """
        if self.one_window and num_latents is None:
            raise ConfigError(
                f"profile {self.profile!r} makes no video without end: the network sees all of it at once",
                "say how long it is to be (num_frames); 'swift', 'paper' and 'fifo' make videos without end",
            )

    def why_no_prompts(self, num_prompts: int, spec: ModelFacts) -> str:
        """Why no video under so many prompts in turn can be made with that model; empty if it can."""
        return ""

    def check_model(self, spec: ModelFacts) -> None:
        """Returns if the method can do with the model what it does.

        Raises:
            ConfigError: saying what the model lacks, and what to take instead.
        """

    def concern(self, num_latents: int | None) -> str:
        """What a user should know of a video of that length (None: without end) before it is made; empty if nothing."""
        return ""

    @property
    def clips(self) -> ClipLayout | None:
        """How a video is made of clips that are decoded one by one; None where it is decoded as one."""
        return None

    @property
    def time_rotation(self) -> TimeRotation | None:
        """What the network is told of time in the place of its own rotary frequencies; None: those."""
        return None

    @property
    def frame_attention(self) -> FrameAttention | None:
        """What stands in for attention along the frames; None: attention itself."""
        return None

    @property
    def frame_texts(self) -> FrameTexts | None:
        """Which text each frame stands under where a window stands under several prompts; None: it never does."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in field order."""
        return asdict(self)

    def noted(self) -> dict[str, Any]:
        """The same as files note it: what was added later is left out where it changes nothing.

        So a video is named by what it was named by before, and what was noted before is read as it stands.
        """
        defaults = {field.name: field.default for field in fields(self) if field.name in self.added_later}
        values = self.to_dict()
        return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}

    @property
    def tells_positions(self) -> str:
        """Name of the setting by which the network is told where latents stand in time; "" if it is not."""
        return ""

    def require(self, holds: bool, name: str, allowed: str) -> None:
        """Refuses the value of a field unless `holds`.

        Raises:
            ConfigError: naming field, value and what is allowed.
        """
        if not holds:
            raise ConfigError(
                f"sampler.{name} = {getattr(self, name)!r} is out of range (profile {self.profile!r})",
                f"it must be {allowed}",
            )

    def _check_guidance(self) -> None:
        held = 0 <= self.guidance_scale <= MAX_GUIDANCE
        self.require(held, "guidance_scale", f"0 or more, at most {MAX_GUIDANCE:g}")
        self.require(self.guidance_low_level >= 1, "guidance_low_level", "at least 1")
        self.require(
            self.guidance_low_level <= self.guidance_high_level <= self.num_steps, "guidance_high_level",
            f"guidance_low_level = {self.guidance_low_level} to num_steps = {self.num_steps}",
        )  # fmt: skip

    def _check_solver(self) -> None:
        self.require(math.isfinite(self.flow_shift) and self.flow_shift > 0, "flow_shift", "above 0")
        self.require(math.isfinite(self.eta) and 0 <= self.eta <= 1, "eta", "0 to 1")
        self.require(self.eta == 0 or self.solver == "ddim", "eta", f"0: solver {self.solver!r} has no eta")
        if self.timesteps:
            falls = all(high > low for high, low in itertools.pairwise(self.timesteps))
            self.require(
                falls and self.timesteps[-1] >= 1 and self.timesteps[0] <= 1000, "timesteps",
                "falling whole numbers from 1000 to 1",
            )  # fmt: skip
            self.require(
                len(self.timesteps) == self.num_steps, "num_steps", f"the {len(self.timesteps)} entries of timesteps"
            )


def check_positions(config: SamplerConfig, takes_positions: bool, model: str = "") -> None:
    """Returns unless a network is to be told positions in time that it has no place for.

    Args:
        config: the settings.
        takes_positions: whether it has.
        model: its name, for the message.

    Raises:
        ConfigError: naming the setting.
    """
    if config.tells_positions and not takes_positions:
        name = config.tells_positions
        raise ConfigError(
            f"sampler.{name} = {getattr(config, name)!r} cannot be: the network"
            + (f" of {model!r}" if model else "")
            + " is told no positions in time that could have gaps",
            f"leave {name} at 1; models with rotary positions take more (Wan's family)",
        )


_TAKEN_BY_DENOISERS: Final = {
    "frame_attention": (
        "needs another attention along the frames than this model's own, and the model takes none",
        "take a model of the families 'wan' or 'videocrafter2', or profile 'direct'",
    ),
    "time_rotation": (
        "tells the network other rotary frequencies than its own, and the model takes none",
        "take a model of Wan's family, or profile 'direct'",
    ),
}
"""What a method may change of the network's calls, and what is said of a model that does not take it."""


def check_denoiser(config: SamplerConfig, denoiser: object) -> None:
    """Returns unless the method changes something of the network's calls that the denoiser has not taken.

    Args:
        config: the settings.
        denoiser: made for them.

    Raises:
        ConfigError: naming the profile.
    """
    for name, (why, hint) in _TAKEN_BY_DENOISERS.items():
        if getattr(config, name) is not None and getattr(denoiser, name, None) is None:
            raise ConfigError(f"profile {config.profile!r} {why}", hint)
