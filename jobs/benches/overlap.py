"""Decoding and encoding beside the network, and after it: a stretch of a long video, and whole videos.

Legend: F latents or frames, C channels, H, W cells or pixels.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jobs.benches.device_clock import Call
from jobs.benches.network_calls import WINDOW_TWO, NetworkCalls
from miga.backbones.random_model import RandomModel
from miga.config import SamplerConfig
from miga.decoding import Decoding, FinishedLatents
from miga.queue import FrameQueue
from miga.video import VideoRun
from pipeline.video import VideoWriter


class Stretch:
    """A stretch of a long video: so many calls, and so many finished latents to be decoded and encoded."""

    def __init__(self, network: NetworkCalls, num_latents: int, num_calls: int) -> None:
        self._backbone, self._call, self.num_calls = network.backbone, network.windows()[WINDOW_TWO], num_calls
        self._x_FCHW = torch.randn(num_latents, *network.model.spec.latent_shape, device=self._backbone.device)
        self._call()  # warm
        self.finish()

    def denoise(self) -> None:
        """The calls, to their end."""
        for _ in range(self.num_calls):
            self._call()
        if self._backbone.device.type == "cuda":
            torch.cuda.synchronize(self._backbone.device)

    def finish(self) -> None:
        """The latents, to the encoder."""
        self._finish_beside(lambda: None)

    def both(self) -> None:
        """Both at once, in the product's threads."""
        self._finish_beside(self.denoise)

    def _finish_beside(self, work: Call) -> None:
        level_F = torch.zeros(len(self._x_FCHW), dtype=torch.int64)
        with _video_writer(self._backbone.spec.fps) as writer:
            decoding = Decoding(self._backbone.frame_decoder(), self._backbone.device, writer.write, True, True)
            try:
                decoding.put(FinishedLatents(FrameQueue(self._x_FCHW, level_F, {}), self._backbone.device))
                work()
                while decoding.take(wait=True) is not None:
                    pass
            finally:
                decoding.close()


@dataclass(frozen=True)
class Made:
    """A whole video: seconds by what they were spent on (overlapped ones do not add up), and a digest of its frames."""

    num_frames: int
    num_calls: int
    wall_s: float
    denoise_s: float
    decode_s: float
    encode_s: float
    digest: bytes


def make_apart(model: RandomModel, config: SamplerConfig, num_latents: int) -> Made:
    """All latents, then all frames, then the file."""
    digest, frames = hashlib.sha256(), []
    started_s = time.perf_counter()
    prompt, negative = model.embeddings()
    run = VideoRun(model.backbone, config, [prompt], negative, num_latents, seed=0, has_checkpoints=False)
    with run, torch.inference_mode():
        latents = [finished.cpu() for _, finished in run.sampler.run() if finished is not None]
    denoise_s = time.perf_counter() - started_s
    decoder = model.backbone.frame_decoder()
    for x_1CHW in torch.cat(latents).split(1):
        with torch.inference_mode():
            frames.append(decoder.decode(x_1CHW.to(model.backbone.device)).cpu().numpy())
    decode_s = time.perf_counter() - started_s - denoise_s
    with _video_writer(model.spec.fps) as writer:
        for chunk_FHWC in frames:
            writer.write(chunk_FHWC)
        encode_s = writer.finish().encode_s
    wall_s = time.perf_counter() - started_s
    for chunk_FHWC in frames:
        digest.update(chunk_FHWC.tobytes())
    num_frames = sum(map(len, frames))
    return Made(num_frames, run.sampler.num_calls, wall_s, denoise_s, decode_s, encode_s, digest.digest())


def make_overlapped(model: RandomModel, config: SamplerConfig, num_latents: int) -> Made:
    """As a worker makes it."""
    digest = hashlib.sha256()
    started_s = time.perf_counter()
    prompt, negative = model.embeddings()
    with _video_writer(model.spec.fps) as writer:

        def consume(frames_FHWC: np.ndarray) -> None:
            digest.update(frames_FHWC.tobytes())
            writer.write(frames_FHWC)

        run = VideoRun(
            model.backbone, config, [prompt], negative, num_latents, 0, consume=consume, has_checkpoints=False
        )
        with run:
            for step in run.steps():  # noqa: B007 (the last one is looked at)
                pass
        made = writer.finish()
    wall_s = time.perf_counter() - started_s
    denoise_s = wall_s - made.encode_s - step.decode_s
    return Made(made.num_frames, step.num_calls, wall_s, denoise_s, step.decode_s, made.encode_s, digest.digest())


@contextmanager
def _video_writer(fps: float) -> Iterator[VideoWriter]:
    """Into a file that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="miga-bench-") as folder:
        file = Path(folder) / "video.mp4"
        with VideoWriter(file, fps=fps) as writer:
            yield writer
