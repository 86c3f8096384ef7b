"""Long-range guidance: which earlier, cleaner latents a window is shown.

Source: MIGA Eq. 8 and Alg. 7, "uniformly sample m_guid latents from the min(m_guid * L_zig, l - 1) before l".
"""

from __future__ import annotations


def guidance_indices(start: int, num_guidance: int, zigzag_width: int) -> tuple[int, ...]:
    """Positions of the guidance latents of a window, ascending.

    With room for it, one from the middle of each of the last `num_guidance` groups; nearer the head, as far apart as
    there is room. At `zigzag_width` 1 the middle of a group would be the window's own first latent, so the
    latents right before it are taken.

    Args:
        start: position of the window's first local latent.
        num_guidance: `m_guid`.
        zigzag_width: `L_zig`.

    Returns:
        `num_guidance` positions below `start`; none if fewer latents stand before it.
    """
    if start < num_guidance:
        return ()
    if start >= num_guidance * zigzag_width:
        nearest, spacing = max(1, zigzag_width // 2), zigzag_width
    else:
        nearest = spacing = start // num_guidance
    return tuple(start - (nearest + back * spacing) for back in reversed(range(num_guidance)))
