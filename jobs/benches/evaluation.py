"""What evaluation costs: operations of each metric, counted, against those of making the same video; frames a second.

Operations are counted by torch on tensors without data, so no weights are needed. Making a video is counted as its
network calls alone: decoding it and encoding prompts would make it more.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

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
_TIMED_FRAMES: Final = 4


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


def operations_rows() -> Rows:
    """Operations of each of the seven metrics, and of all, as a share of making the video."""
    rows: Rows = []
    per_call: dict[tuple[str, int, int], float] = {}
    for model, profile, num_frames in PUBLISHED:
        spec = planned_spec(model)
        config = resolve_config(profile, spec)
        count = count_calls(config, spec.num_latents(num_frames))
        making = spec.forward_flops * config.window / spec.window * (count.total + count.num_guided)
        form = VideoForm(num_frames, float(spec.fps), spec.height, spec.width)
        row: dict[str, Any] = {
            "model": model,
            "profile": profile,
            "frames": num_frames,
            "size": f"{spec.height}x{spec.width}",
            "making, PFLOP": making / 1e15,
        }
        whole = 0.0
        for name in dict.fromkeys(feature for measure in QUALITY for feature in MEASURES[measure].features):
            key = name, spec.height, spec.width
            if key not in per_call:
                per_call[key] = feature_operations(*key)
            operations = per_call[key] * _times(name, form)
            row[f"{name}, TFLOP"] = operations / 1e12
            whole += operations
        rows.append({**row, "all seven, TFLOP": whole / 1e12, "share of making": f"{whole / making:.2%}"})
    return rows


def speed_rows(height: int, width: int, device: str | None) -> Rows:
    """Frames a second of decoding and of each metric, with random weights."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    video = np.stack([np.roll(base, 2 * index, axis=1) for index in range(_TIMED_FRAMES * 8)])
    rows: Rows = [_decoding(video)]
    for measure in QUALITY:
        for name in MEASURES[measure].features:
            rows.append({"what": measure, **_speed(name, video[:_TIMED_FRAMES], place)})
    return rows


def _decoding(video: np.ndarray) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        write_video([video], path, fps=16, settings=VideoConfig())
        started_s = time.monotonic()
        count = sum(len(portion) for portion in portions_of(path))
        took_s = time.monotonic() - started_s
    return {"what": "decoding", "size": _size(video), "frames a second": count / took_s}


def _size(video: np.ndarray) -> str:
    return f"{video.shape[1]}x{video.shape[2]}"


def _speed(name: str, video: np.ndarray, device: torch.device) -> dict[str, Any]:
    feature = FEATURES[name]
    height, width = video.shape[1:3]
    if min(height, width) < feature.least_side:
        return {"size": _size(video), "frames a second": "too small"}
    form = VideoForm(len(video), 8.0, height, width)
    network = None if feature.network is None else WEIGHTS[feature.network].build().to(device).eval()
    took_s: list[float] = []
    for _ in range(2):  # the first time is slower, and does not count
        observer = feature.observer(form, network, device, 1)
        started_s = time.monotonic()
        for _ in observer.add(video):
            pass
        for _ in observer.finish():
            pass
        took_s.append(time.monotonic() - started_s)
    return {"size": _size(video), "frames a second": len(video) / took_s[-1]}


def bench_evaluate(height: int, width: int, device: str | None, is_timed: bool) -> dict[str, Rows]:
    """Both tables; the second only where it is asked for."""
    tables = {"operations, counted; making is its network calls alone": operations_rows()}
    if is_timed:
        tables["frames a second here, random weights"] = speed_rows(height, width, device)
    return tables
