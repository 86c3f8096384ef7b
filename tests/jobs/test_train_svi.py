"""`python -m jobs.train_svi`: what it refuses, what it reads, and trainings on a local Ray that go on bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from jobs.train_svi import main
from jobs.training import make
from jobs.training.plan import variant_settings
from miga.backbones.registry import load_backbone
from miga.encoding import write_video
from miga.errors import BadVideoError, ConfigError, InputError
from miga.training.encoded import EncodedClips
from pipeline.training_clips import ClipSource, cut_clip, find_clips
from tests.tiny_wan import build_tiny_image_wan, build_tiny_wan

FRAMES = 21


def moving(count: int, seed: int) -> np.ndarray:
    """Frames whose brightness says which they are."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (1, 40, 64, 3), dtype=np.uint8).repeat(count, 0)
    frames[:, :, :32] = (np.arange(count) * 5)[:, None, None, None]
    return frames


def videos(folder: Path, lengths: tuple[int, ...] = (40, 30, 10)) -> Path:
    folder.mkdir(exist_ok=True)
    for number, length in enumerate(lengths):
        write_video([moving(length, number)], folder / f"{number}.mp4", fps=8)
        (folder / f"{number}.txt").write_text("a red ball")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_image_wan(tmp_path_factory.mktemp("svi") / "model", "i2v")


def train(model: Path, data: Path, out: Path, *options: str) -> int:
    usual = ["--lora-rank", "4", "--grids", "5", "--log-every", "2", "--save-every", "2", "--measure-every", "3"]
    return main([str(model), str(data), str(out), *usual, "--measure-steps", "2", "--device", "cpu", *options])


def refused(capsys: pytest.CaptureFixture[str], run: Callable[[], Any]) -> str:
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_trained_is_refused_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    assert "no video in" in refused(capsys, lambda: train(model, clips, out, "--steps", "1"))
    (clips / "a.mp4").write_bytes(b"")
    assert "have no caption, the first is 'a.mp4'" in refused(capsys, lambda: train(model, clips, out, "--steps", "1"))
    said = ("--steps", "1", "--caption", "a ball")
    text = build_tiny_wan(tmp_path / "text")
    assert "trained on text alone" in refused(capsys, lambda: train(text, clips, out, *said))
    assert "p_clean = 1.5" in refused(capsys, lambda: train(model, clips, out, *said, "--p-clean", "1.5"))
    assert "scale = -1.0" in refused(capsys, lambda: train(model, clips, out, *said, "--error-scale", "-1"))
    assert "'movie' is unknown" in refused(capsys, lambda: train(model, clips, out, *said, "--condition", "movie"))
    assert "reads one beside" in refused(capsys, lambda: train(model, clips, out, *said, "--condition", "none"))
    assert "in a bucket" in refused(capsys, lambda: main([str(model), str(clips), "s3://bucket/x", *said]))
    assert "one transformer" in refused(capsys, lambda: train(model, clips, out, *said, "--expert", "high"))
    assert "is no folder" in refused(capsys, lambda: train(model, tmp_path / "none", out, *said))
    assert "no room for one error" in refused(capsys, lambda: train(model, clips, out, *said, "--bank-gb", "1e-6"))
    assert train(model, clips, out, *said, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "memory" in shown
    assert "1 videos" in shown
    assert not out.exists()
    out.mkdir()
    (out / "training.json").write_text('{"lora_rank": 8, "settings": {"seed": 3}}')
    earlier = refused(capsys, lambda: train(model, clips, out, *said))
    assert "lora_rank was 8 and is 4" in earlier
    assert "settings.seed was 3 and is 0" in earlier


def test_captions_of_a_folder(tmp_path: Path) -> None:
    for name in ("x/a.mp4", "b.mov", "y/c.mp4", ".hidden/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "x" / "x.csv").write_text("Filename,Video Description\na.mp4,a cat\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.mov", "text": "a dog"}\n')
    (tmp_path / "y" / "c.txt").write_text("a bird\n")
    assert [(clip.name, clip.caption()) for clip in find_clips(str(tmp_path))] == [
        ("b.mov", "a dog"), ("x/a.mp4", "a cat"), ("y/c.mp4", "a bird"),
    ]  # fmt: skip
    in_turn = ClipSource(name="a", path="a", captions=("low tide", "high tide"))
    assert [in_turn.caption(share) for share in (0.0, 0.49, 0.5, 1.0)] == ["low tide"] * 2 + ["high tide"] * 2
    (tmp_path / "x" / "x.csv").write_text("movie,Video Description\na.mp4,a cat\n")
    with pytest.raises(InputError, match=r"x\.csv"):
        find_clips(str(tmp_path))


def test_variants() -> None:
    mixture, recycling = variant_settings("shot", [], p_clean=None, scale=0.5)
    assert (mixture, recycling) == ({"shot-1": 1.0}, {"p_clean": 0.2, "scale": 0.5})
    assert variant_settings("film", ["film-5=0.9", "none"])[0] == {"film-5": 0.9, "none": 1.0}
    with pytest.raises(ConfigError, match="is not NAME"):
        variant_settings("film", ["film-5=often"])


@pytest.mark.slow
def test_cutting(tmp_path: Path) -> None:
    folder = videos(tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(4):
        cut = cut_clip(folder / "0.mp4", (32, 48), FRAMES, rng, num_before=9, num_shared=4)
        assert cut.frames_FCHW.shape == (FRAMES, 3, 32, 48)
        brightness_F = (cut.frames_FCHW[:, :, :, 3] + 1.0).mean(dim=(1, 2)) * 127.5
        assert torch.allclose(brightness_F, torch.arange(cut.start, cut.start + FRAMES) * 5.0, atol=6.0)
        assert len(cut.before_FCHW) in (0, 9)
        if cut.start >= 5:
            assert torch.equal(cut.before_FCHW[-4:], cut.frames_FCHW[:4])
        reference = float((cut.reference_CHW[:, :, 3] + 1.0).mean() * 127.5) / 5.0
        assert not cut.start + 1 < reference < cut.start + FRAMES - 2, "from outside the clip"
    with pytest.raises(BadVideoError, match="it has 10 frames, and a clip of this model has 21"):
        cut_clip(folder / "2.mp4", (32, 48), FRAMES, rng)
    (folder / "no.mp4").write_bytes(b"no video")
    with pytest.raises(BadVideoError):
        cut_clip(folder / "no.mp4", (32, 48), FRAMES, rng)


def progress(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)  # five starts of Ray's processes, each of which loads torch
def test_two_processes_go_on_bit_for_bit(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once; in two commands; and with a process killed on the way: one LoRA, one bank each, one curve."""
    data = videos(tmp_path / "clips")
    both = ("--processes", "2", "--gather-steps", "1", "--p-clean", "0.3")
    assert train(model, data, tmp_path / "whole", "--steps", "6", *both) == 0
    assert train(model, data, tmp_path / "halves", "--steps", "2", *both) == 0
    assert train(model, data, tmp_path / "halves", "--steps", "6", *both) == 0

    killed = []

    def killing(out: Path, lines: Any) -> None:
        kept(out, lines)
        if lines[-1]["step"] == 3 and not killed:
            mine = psutil.Process().children(recursive=True)
            process = next(each for each in mine if "TrainingProcess" in " ".join(each.cmdline()))
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    kept = make.add_progress
    monkeypatch.setattr(make, "add_progress", killing)
    assert train(model, data, tmp_path / "killed", "--steps", "6", *both) == 0
    assert killed
    whole = load_file(tmp_path / "whole" / "lora.safetensors")
    assert max(float(part.abs().max()) for name, part in whole.items() if "lora_B" in name) > 0.0
    for name in ("halves", "killed"):
        other = load_file(tmp_path / name / "lora.safetensors")
        assert all(torch.equal(part, other[key]) for key, part in whole.items())
        assert progress(tmp_path / name) == progress(tmp_path / "whole")
        for rank in range(2):
            banks = [
                load_file(next((tmp_path / each / "state").glob(f"step-*/bank-{rank:04d}.safetensors")))
                for each in ("whole", name)
            ]
            assert banks[0].keys() == banks[1].keys()
            assert all(torch.equal(part, banks[1][key]) for key, part in banks[0].items())
    clips = EncodedClips(tmp_path / "whole" / "encoded")
    assert len(clips) == 2
    assert clips.facts["left_out"] == {"2.mp4": "it has 10 frames, and a clip of this model has 21"}
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 1000
    backbone = load_backbone(str(model), device="cpu", components=("denoiser",))
    assert backbone is not None
    with pytest.raises(SystemExit):
        train(model, data, tmp_path / "whole", "--steps", "8", "--processes", "1", *both[2:])


@pytest.mark.ray
@pytest.mark.slow
def test_a_model_that_holds_its_first_latent(tmp_path: Path) -> None:
    model = build_tiny_image_wan(tmp_path / "model", "ti2v")
    data, out = videos(tmp_path / "clips", (30, 25)), tmp_path / "out"
    assert train(model, data, out, "--steps", "3", "--condition", "film-1", "--condition", "pro-1") == 0
    lora = load_file(out / "lora.safetensors")
    assert max(float(part.abs().max()) for name, part in lora.items() if "lora_B" in name) > 0.0


@pytest.mark.ray
@pytest.mark.slow
def test_all_weights_of_one_expert(tmp_path: Path) -> None:
    model = build_tiny_image_wan(tmp_path / "model", "i2v-a14b")
    data = videos(tmp_path / "clips", (30, 25))
    out = tmp_path / "out"
    assert train(model, data, out, "--steps", "2", "--full", "--expert", "low", "--variant", "pro") == 0
    made = out / "model-low_noise"
    backbone = load_backbone(str(made), device="cpu", components=("denoiser",))
    first = load_backbone(str(model), device="cpu", components=("denoiser",))
    for network, is_same in (("network", True), ("low_noise_network", False)):
        weights, before = (getattr(each, network).state_dict() for each in (backbone, first))
        assert all(torch.equal(part, before[name]) for name, part in weights.items()) == is_same
    assert not ray.is_initialized()
