"""What a sampler is told: one frozen record, the paper's symbol beside each field, and the named profiles.

A profile is resolved in three layers, later ones winning: the settings published for the family of the model, the
model's own (`BackboneSpec.sampler`), and what the user overrides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in field order."""
        return asdict(self)
