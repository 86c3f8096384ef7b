"""FreeNoise's motion injection: two prompts in one clip.

Source: Qiu et al., "FreeNoise", 2024, section 3.3, and its program.

Legend: F frames, L text tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from miga.errors import BadRowError
from miga.frame_texts import TextsOfFrames


def ramp(num_frames: int) -> torch.Tensor:
    """Share of the second prompt in the text of each frame, `[F]`: 0 for 3/8 of them, a straight line, 1 for 3/8."""
    num_still = int(3 * num_frames / 8)
    share_F = torch.zeros(num_frames)
    share_F[num_still : num_frames - num_still] = torch.linspace(0, 1, num_frames - 2 * num_still)
    share_F[num_frames - num_still :] = 1.0
    return share_F


@dataclass(frozen=True)
class MotionInjection:
    """Texts go over from the first prompt to the second, in their embeddings.

    In the middle of the denoising, which draws what moves, the whole network sees that. In all other steps the way down
    and the middle see the second prompt for all frames, so that the looks of the video are those of one text.

    Attributes:
        first_step, last_step: the steps without injection, counted from pure noise on, both included. They are those
            of the program, whatever the number of steps.
    """

    first_step: int = 5
    last_step: int = 15

    def __call__(self, texts_LD: Sequence[torch.Tensor], num_frames: int, step: int) -> TextsOfFrames:
        """See `FrameTexts`.

        Raises:
            BadRowError: if there are not two prompts.
        """
        if len(texts_LD) != 2:
            raise BadRowError(
                f"{len(texts_LD)} prompts of one video: FreeNoise goes over from one prompt to another, and takes two",
                "give two prompts or one, or take a profile that takes any number, such as 'swift'",
            )
        first_LD, second_LD = texts_LD
        share_F11 = ramp(num_frames).to(first_LD)[:, None, None]
        up_FLD = first_LD + share_F11 * (second_LD - first_LD)
        is_whole = self.first_step <= step <= self.last_step
        return TextsOfFrames(up_FLD if is_whole else second_LD.expand_as(up_FLD), up_FLD)
