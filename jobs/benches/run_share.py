"""Where the time of a video goes: the network, the VAE, and the sampler around them.

Times are of the processor, not of the wall: another busy program beside this one does not change them. One thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from jobs.profiles.choice import parse_profile
from jobs.shared.options import num_latents_of
from miga.backbones.registry import load_backbone, load_spec
from miga.video import make_video

PROMPT = "a red circle moving side to side on a grey ground"


class ModuleClock:
    """Processor time spent in a module's forward.

    Attributes:
        seconds: of all calls so far.
        num_calls: forwards so far.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds = 0.0
        self.num_calls = 0
        self._started_s = 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._started_s = time.process_time()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._started_s
        self.num_calls += 1


class TimedDecoder:
    """A frame decoder that knows how long it took."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.seconds = 0.0

    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """See `miga.backbones.base.FrameDecoder`."""
        started_s = time.process_time()
        frames: torch.Tensor = self._decoder.decode(x_FCHW)
        self.seconds += time.process_time() - started_s
        return frames


def bench_run_share(profiles: Sequence[str], num_frames: int) -> dict[str, list[dict[str, Any]]]:
    """Per profile the seconds in the transformer, in the decoder and elsewhere, and that rest's share of the run.

    Raises:
        UsageError: if the VAE cannot make exactly so many frames.
    """
    num_latents = num_latents_of(load_spec("sprites"), num_frames, f"--frames {num_frames}", "take the nearest")
    backbone = load_backbone("sprites", device="cpu")
    prompt, negative = backbone.encode_prompts([PROMPT, backbone.spec.negative_prompt])
    clock = ModuleClock(backbone.network)
    configs = {profile: parse_profile(profile, backbone.spec) for profile in profiles}
    rows: list[dict[str, Any]] = []
    for profile, config in configs.items():
        clock.seconds, clock.num_calls = 0.0, 0
        decoder = TimedDecoder(backbone.frame_decoder())
        backbone.frame_decoder = lambda timed=decoder: timed  # type: ignore[method-assign,misc]
        started_s = time.process_time()
        for step in make_video(backbone, config, [prompt], negative, num_latents, seed=0):
            num_calls = step.num_calls
        total_s = time.process_time() - started_s
        del backbone.frame_decoder
        rest_s = total_s - clock.seconds - decoder.seconds
        rows.append(
            {
                "profile": profile,
                "calls": num_calls,
                "forwards": clock.num_calls,
                "transformer, s": clock.seconds,
                "decode, s": decoder.seconds,
                "rest, s": rest_s,
                "rest, share": f"{rest_s / total_s:.2%}",
                "rest, ms a call": 1e3 * rest_s / num_calls,
            }
        )
    return {f"Where the time of a video of {num_frames} frames goes (processor seconds)": rows}
