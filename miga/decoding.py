"""Finished latents to frames, in a thread of its own: the network goes on meanwhile.

Latents are decoded in order, one at a time. Frames are handed to whoever takes them, or at once to `consume` (a video
encoder's write), in that same thread. An error there surfaces where results are taken.

Legend: F latents or frames, C channels, H, W cells or pixels.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import torch

from miga.backbones.base import BackboneSpec, FrameDecoder
from miga.clips import ClipLayout
from miga.consistency import ConsistencyMeter
from miga.generate import finite_latents
from miga.queue import FrameQueue
from miga.wavefront import LazyQueue

Consume: TypeAlias = Callable[[np.ndarray], None]
"""Takes the next frames of the video, uint8 `[F, H, W, 3]`."""

MOST_WAITING: Final = 32
"""Latents that may wait to be decoded; whoever makes more waits for the decoder."""
MOST_UNTAKEN: Final = 4
"""Decoded latents that may wait to be taken; the decoder waits then."""


class FinishedLatents:
    """Clean latents that follow one another, on their way to the CPU.

    Args:
        queue: of them, which may be still to come (`wavefront.py`).
        device: that they are on.
    """

    def __init__(self, queue: FrameQueue, device: torch.device) -> None:
        self.first = queue.first
        self.num_latents = len(queue)
        self._queue: FrameQueue | None = queue
        self._x_FCHW: torch.Tensor | None = None
        self._lock = threading.Lock()
        self._written = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def __len__(self) -> int:
        return self.num_latents

    @property
    def is_there(self) -> bool:
        """Whether they need not be waited for."""
        return not isinstance(queue := self._queue, LazyQueue) or queue.is_there

    def on_cpu(self) -> torch.Tensor:
        """Their values, which may have to be waited for.

        Raises:
            NonFiniteError: if one is NaN or infinite.
        """
        with self._lock:
            if self._x_FCHW is None:
                assert self._queue is not None, "one of the two is always there"
                if self._written is not None:
                    self._written.synchronize()
                self._x_FCHW = finite_latents(self._queue).cpu()
                self._queue = None
            return self._x_FCHW


@dataclass(frozen=True)
class Decoded:
    """One latent further.

    Attributes:
        frames: its frames, uint8 `[F, H, W, 3]`; None where `consume` has had them.
        num_latents: latents decoded so far.
        decode_s: seconds spent on decoding so far.
        scores: consistency of the finished latents so far, chunk by chunk (of a video without end, of the last alone).
    """

    frames: np.ndarray | None
    num_latents: int
    decode_s: float
    scores: tuple[float, ...]


class ClipDecoder:
    """A `FrameDecoder` of a chain: every clip is decoded by itself, and what the video leaves out is left out.

    Args:
        make: a decoder at the start of a clip.
        clips: how clips are joined.
        spec: of the model: how many frames a latent is.
        num_latents: of the video; None if it has no end (and so no last clip).
    """

    def __init__(
        self, make: Callable[[], FrameDecoder], clips: ClipLayout, spec: BackboneSpec, num_latents: int | None
    ) -> None:
        self._make, self._clips, self._num_latents = make, clips, num_latents
        self._clip_frames = replace(spec, clips=None).num_frames(clips.num_latents)
        self._decoder = make()
        self._latent = self._frame = 0  # the next one's: of the video, of the clip

    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """See `FrameDecoder.decode`."""
        return torch.cat([self._decode_next(x_FCHW[place : place + 1]) for place in range(len(x_FCHW))])

    def _decode_next(self, x_1CHW: torch.Tensor) -> torch.Tensor:
        clip, place = divmod(self._latent, self._clips.num_latents)
        if not place:
            self._decoder, self._frame = self._make(), 0
        frames = self._frames(x_1CHW)
        is_last = self._num_latents is not None and (clip + 1) * self._clips.num_latents >= self._num_latents
        first = self._clips.drop_head if clip else 0
        stop = self._clip_frames - (0 if is_last else self._clips.drop_tail)
        kept = frames[max(0, first - self._frame) : max(0, stop - self._frame)]
        self._latent, self._frame = self._latent + 1, self._frame + len(frames)
        return kept

    def _frames(self, x_1CHW: torch.Tensor) -> torch.Tensor:
        if not self._clips.truncates:
            return self._decoder.decode(x_1CHW)
        frames: torch.Tensor = self._decoder.decode_float(x_1CHW)  # type: ignore[attr-defined]
        return (frames * 255.0).to(torch.uint8)


class Decoding:
    """The decoder of one video.

    Args:
        decoder: at the start of the video.
        device: of the model.
        consume: takes the frames; None: they are handed out.
        in_background: whether there is a thread, from the first latents on; else `take` decodes.
        keeps_scores: whether the scores of the whole video are kept, not the last alone.
        beside: whether a GPU decodes while it computes the network's calls; else on their stream, which shares its
            memory with them: of two streams each keeps what it has freed to itself.
    """

    def __init__(
        self,
        decoder: FrameDecoder,
        device: torch.device,
        consume: Consume | None,
        in_background: bool,
        keeps_scores: bool,
        beside: bool = True,
    ) -> None:
        self._decoder = decoder
        self._device = device
        self._consume = consume
        self._keeps_scores = keeps_scores
        self._beside = beside
        self._meter = ConsistencyMeter()
        self._num_latents = 0
        self._decode_s = 0.0
        self._in_background = in_background
        self._changed = threading.Condition()
        self._waiting: deque[FinishedLatents] = deque()
        self._in_work: deque[torch.Tensor] = deque()
        self._num_waiting = self._num_patient = 0
        self._untaken: deque[Decoded] = deque()
        self._error: BaseException | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @property
    def is_behind(self) -> bool:
        """Whether so many latents that are there wait that no more should be made before some are decoded."""
        with self._changed:
            there = itertools.takewhile(lambda latents: latents.is_there, self._waiting)
            return sum(len(latents) for latents in there) - self._num_patient > MOST_WAITING

    def put(self, latents: FinishedLatents, *, is_urgent: bool = True) -> None:
        """Takes the next latents of the video; a first lot that is not urgent does not count for `is_behind`.

        Raises:
            Whatever decoding or `consume` raised.
        """
        with self._changed:
            self._raise_error()
            self._waiting.append(latents)
            self._num_waiting += len(latents)
            self._num_patient += 0 if is_urgent else len(latents)
            self._changed.notify_all()
        if self._in_background and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="miga-decode", daemon=True)
            self._thread.start()

    def take(self, *, wait: bool) -> Decoded | None:
        """The next result; None if there is none (where `wait` is set, once all has been taken).

        Raises:
            Whatever decoding or `consume` raised.
        """
        if not self._in_background and self._num_waiting:
            self._decode_next()
        with self._changed:
            while wait and self._error is None and not self._untaken and self._num_waiting:
                self._changed.wait()
            if self._untaken:
                decoded = self._untaken.popleft()
                self._changed.notify_all()
                return decoded
            self._raise_error()
            return None

    def close(self) -> None:
        """Stops after the latent in work; what still waits is dropped."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        """The thread."""
        with self._on_stream():
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or self._num_waiting)
                    if self._is_closed:
                        return
                try:
                    self._decode_next()
                except BaseException as error:  # whatever it is, it belongs to whoever waits for the frames
                    with self._changed:
                        self._error = error
                        self._changed.notify_all()
                    return

    @torch.inference_mode()
    def _decode_next(self) -> None:
        """One latent."""
        if not self._in_work:
            with self._changed:
                latents = self._waiting.popleft()
                self._num_patient = 0  # those stand before all others
            x_FCHW = latents.on_cpu().to(self._device)
            self._measure(x_FCHW)
            self._in_work.extend(x_CHW[None] for x_CHW in x_FCHW)
        self._hand_out(self._decode(self._in_work.popleft()))

    def _measure(self, x_FCHW: torch.Tensor) -> None:
        if not self._keeps_scores:
            self._meter.scores.clear()
        self._meter.add(x_FCHW)

    def _decode(self, x_1CHW: torch.Tensor) -> np.ndarray:
        started_s = time.monotonic()
        frames: np.ndarray = self._decoder.decode(x_1CHW).cpu().numpy()
        self._decode_s += time.monotonic() - started_s
        return frames

    def _hand_out(self, frames: np.ndarray) -> None:
        if self._consume is not None:
            self._consume(frames)
        self._num_latents += 1
        handed_out = None if self._consume is not None else frames
        decoded = Decoded(handed_out, self._num_latents, self._decode_s, tuple(self._meter.scores))
        with self._changed:
            if self._in_background and handed_out is not None:
                self._changed.wait_for(lambda: self._is_closed or len(self._untaken) < MOST_UNTAKEN)
            self._untaken.append(decoded)
            self._num_waiting -= 1
            self._changed.notify_all()

    def _on_stream(self) -> AbstractContextManager[object]:
        """Beside the network on a stream of its own, in turn with its calls on theirs, which is the default one."""
        if self._device.type != "cuda" or not self._beside:
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]
