"""A video made of clips that are decoded one by one: how many frames it has, and which are left out where they meet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClipLayout:
    """A video of clips, each decoded by itself, of which some frames are left out where they meet.

    Attributes:
        num_latents: of a clip.
        drop_head: frames that every clip but the first begins with and the video leaves out.
        drop_tail: frames that every clip but the last ends with and the video leaves out.
        truncates: whether frames are cut down to 8 bits and not rounded.
    """

    num_latents: int
    drop_head: int = 0
    drop_tail: int = 0
    truncates: bool = False

    @property
    def overlap(self) -> int:
        """Frames that a further clip does not add."""
        return self.drop_head + self.drop_tail

    def num_frames(self, num_clips: int, clip_frames: int) -> int:
        """Frames of a video of so many clips, of which each has so many."""
        return clip_frames + (num_clips - 1) * (clip_frames - self.overlap)

    def num_clips(self, num_frames: int, clip_frames: int) -> int:
        """Clips of a video of so many frames.

        Raises:
            ValueError: if it has no whole number of clips, naming the nearest lengths.
        """
        new = clip_frames - self.overlap
        num_further, rest = divmod(num_frames - clip_frames, new)
        if num_frames >= clip_frames and not rest:
            return num_further + 1
        below = clip_frames + max(0, num_further) * new
        near = f"{below}" if num_frames < clip_frames else f"{below} or {below + new}"
        raise ValueError(
            f"num_frames {num_frames} cannot be made: a chain of clips makes {clip_frames} + {new}k frames; the "
            f"nearest is {near}"
        )
