"""Settings that all methods share, as they are published."""

from __future__ import annotations

from typing import Any, Final

SHARED_PUBLISHED: Final[dict[str, dict[str, Any]]] = {
    "wan": {"num_steps": 54, "guidance_scale": 5.0, "solver": "unipc", "eta": 0.0, "flow_shift": 5.0},
    "videocrafter2": {"num_steps": 64, "guidance_scale": 12.0, "solver": "ddim", "eta": 1.0, "flow_shift": 1.0},
}
"""Settings of the paper that all methods share (what it leaves open: of its released program), by family of model."""


def shared_in_proportion(window: int, num_steps: int) -> dict[str, Any]:
    """Shared settings of models that nothing is published for: Wan's; `euler` steps through any noise schedule."""
    return {**SHARED_PUBLISHED["wan"], "num_steps": num_steps, "solver": "euler", "flow_shift": 1.0}
