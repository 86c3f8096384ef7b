"""What evaluation costs: operations of each metric, counted, against those of making the same video; frames a second.

Operations (those of products and convolutions) are counted by torch on tensors without data, so no weights are needed.
Making a video is counted as its network calls alone: decoding it and encoding prompts would make it more.
"""

from __future__ import annotations

import functools
import math
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.run.estimate import GPU_FLOPS
from miga.backbones.registry import planned_spec
from miga.cost import count_calls
from miga.encoding import write_video
from miga.evaluation.measures import FEATURES, MEASURES, VideoForm
from miga.evaluation.preprocessing import clip, dino, imaging, padded
from miga.evaluation.totals import QUALITY
from miga.evaluation.weights import WEIGHTS
from miga.profiles import resolve_config
from miga.video_config import VideoConfig
from pipeline.evaluation.scores import portions_of

Rows = list[dict[str, Any]]

PUBLISHED: Final = (
    ("wan-1.3b", "swift", 161),
    ("wan-1.3b", "paper", 161),
    ("wan-1.3b", "swift", 1001),
    ("videocrafter2", "swift", 128),
    ("videocrafter2", "paper", 128),
)
"""Models, profiles and lengths in frames that generation is counted for."""
_TIMED_FRAMES: Final = 3


@functools.cache
def feature_operations(name: str, height: int, width: int) -> float:
    """Floating-point operations of a feature for one frame, pair or triple; 0 of one without a network."""
    feature = FEATURES[name]
    if feature.network is None:
        return 0.0
    frames = torch.empty(1, 3, height, width, device="meta")
    with torch.device("meta"):
        network = WEIGHTS[feature.network].build()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _looks(feature.network, frames)(network)
    return float(counter.get_total_flops())


def _looks(network: str, frames: torch.Tensor) -> Callable[[torch.nn.Module], Any]:
    """How a network looks at a frame, or at a pair."""
    if network in ("raft", "amt"):
        pair = padded(frames, 8 if network == "raft" else 16)[0]
        return lambda module: module(pair, pair)
    prepare = {"dino": dino, "musiq": imaging}.get(network, clip)
    return lambda module: module(prepare(frames))


def _times(name: str, form: VideoForm) -> int:
    """How often a feature's network is called for a video."""
    return {"interpolation": len(form.triples), "motion": len(form.pairs)}.get(name, form.num_frames)


def video_operations(measure: str, form: VideoForm) -> float:
    """Floating-point operations of a metric for a video, its clips included."""
    return math.fsum(
        feature_operations(name, form.height, form.width) * _times(name, form) for name in MEASURES[measure].features
    )


def share_rows(decoding_fps: float | None) -> Rows:
    """Operations of all seven metrics, as a share of making the video.

    Args:
        decoding_fps: frames of the first size that are decoded in a core-second, if that was measured; decoding then
            counts, its seconds by pixels and at what a GPU does in them.
    """
    rows: Rows = []
    pixels = 0
    for model, profile, num_frames in PUBLISHED:
        spec = planned_spec(model)
        pixels = pixels or spec.height * spec.width
        config = resolve_config(profile, spec)
        count = count_calls(config, spec.num_latents(num_frames))
        making = spec.forward_flops * config.window / spec.window * (count.total + count.num_guided)
        form = VideoForm(num_frames, float(spec.fps), spec.height, spec.width)
        whole = math.fsum(video_operations(measure, form) for measure in QUALITY)
        row: dict[str, Any] = {
            "model": model,
            "profile": profile,
            "frames": num_frames,
            "size": f"{spec.height}x{spec.width}",
            "making, PFLOP": making / 1e15,
            "all seven, TFLOP": whole / 1e12,
            "share": f"{whole / making:.2%}",
        }
        if decoding_fps is not None:
            decoding_s = num_frames / decoding_fps * spec.height * spec.width / pixels
            row["decoding, s"] = decoding_s
            row["share with decoding"] = f"{(whole + decoding_s * GPU_FLOPS) / making:.2%}"
        rows.append(row)
    return rows


def metric_rows(height: int, width: int, device: str | None, is_timed: bool) -> Rows:
    """Each metric: operations a frame, and frames a second here with random weights; decoding first.

    A frame is one of the video: of a metric that looks at every second pair, half a pair. Without a GPU a second is one
    of a core, so that a busy machine gives the same figures.
    """
    spec = planned_spec(PUBLISHED[0][0])
    form = VideoForm(PUBLISHED[0][2], float(spec.fps), height, width)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows: Rows = []
    video = _moving_texture(height, width)
    speed = "frames a second" if place.type == "cuda" else "frames a core-second"
    if is_timed:
        rows.append({"metric": "decoding", "network": "ffmpeg", "GFLOP a frame": "-", speed: _decoding(video)})
    for measure in QUALITY:
        networks = ", ".join(MEASURES[measure].networks) or "-"
        operations = video_operations(measure, form) / form.num_frames / 1e9
        row = {"metric": measure, "network": networks, "GFLOP a frame": operations}
        if is_timed:
            row[speed] = _speed(measure, video, form, place)
        rows.append(row)
    return rows


def _moving_texture(height: int, width: int) -> np.ndarray:
    base = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(base, 2 * index, axis=1) for index in range(_TIMED_FRAMES * 8)])


def _decoding(video: np.ndarray) -> float:
    """Frames in a second of a core: the decoder's, and what takes its frames."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        write_video([np.concatenate([video] * 5)], path, fps=16, settings=VideoConfig())
        started_s = _core_s()
        count = sum(len(portion) for portion in portions_of(path))
        return count / (_core_s() - started_s)


def _core_s() -> float:
    """Seconds that cores have spent on this process and those that it has waited for."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _speed(measure: str, video: np.ndarray, form: VideoForm, device: torch.device) -> float | str:
    """Frames of the video a second: the seconds of one look of each network, times how often it looks."""
    if reason := MEASURES[measure].why_not(form):
        return reason
    took_s = [_seconds_a_look(name, video, device) * _times(name, form) for name in MEASURES[measure].features]
    return form.num_frames / math.fsum(took_s)


def _seconds_a_look(name: str, video: np.ndarray, device: torch.device) -> float:
    feature = FEATURES[name]
    part = video[:_TIMED_FRAMES]
    few = VideoForm(len(part), 8.0, *part.shape[1:3])
    network = None if feature.network is None else WEIGHTS[feature.network].build().to(device).eval()
    is_gpu = device.type == "cuda"
    clock, took_s = time.monotonic if is_gpu else _core_s, 0.0
    for _ in range(1 + is_gpu):  # the first time is slower on a GPU, and does not count
        observer = feature.observer(few, network, device, 1)
        started_s = clock()
        for _ in observer.add(part):
            pass
        for _ in observer.finish():
            pass
        took_s = clock() - started_s
    return took_s / _times(name, few)


def bench_evaluate(height: int, width: int, device: str | None, is_timed: bool) -> dict[str, Rows]:
    """Each metric, and all seven against making; seconds only where they are asked for."""
    spec = planned_spec(PUBLISHED[0][0])
    metrics = metric_rows(height, width, device, is_timed)
    decoding_fps = None
    if is_timed and (height, width) == (spec.height, spec.width):
        decoding_fps = list(metrics[0].values())[-1]
    return {
        f"each metric, frames of {height}x{width} at {spec.fps:g} a second": metrics,
        "all seven against making, which is its network calls alone": share_rows(decoding_fps),
    }
