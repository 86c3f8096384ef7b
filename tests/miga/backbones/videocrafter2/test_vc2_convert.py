"""A checkpoint becomes a folder: the same numbers bit for bit, whole or not at all, or a clear word why not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from jobs.cli import main
from miga.backbones.registry import load_spec
from miga.backbones.videocrafter2 import convert
from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from miga.backbones.videocrafter2.convert import convert_checkpoint
from miga.errors import ModelError, OutputError
from miga.schedule import ddim_schedule
from tests.faulty_folder import WEIGHTS
from tests.tiny_videocrafter2 import (
    architecture,
    build_state,
    build_tokenizer,
    recorded_unet,
    write_checkpoint,
)

FILES = {
    "model_index.json",
    "miga.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    f"unet/{WEIGHTS}",
    "vae/config.json",
    f"vae/{WEIGHTS}",
}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkpoint(converted: Path) -> Path:
    return converted.with_suffix(".ckpt")


@pytest.fixture(scope="module")
def tokenizer(converted: Path) -> Path:
    return converted.with_name(f"{converted.name}-tokenizer")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`miga convert` expects the tiny sizes in place of VideoCrafter2's."""
    monkeypatch.setattr(convert, "PUBLISHED_ARCHITECTURE", architecture())


def test_the_folder(converted: Path) -> None:
    assert files_of(converted) == FILES
    assert [path for path in converted.parent.iterdir() if path.name.endswith(".tmp")] == []
    index = json.loads((converted / "model_index.json").read_text())
    assert index["_class_name"] == "VideoCrafter2Pipeline"
    assert index["unet"] == ["miga.backbones.videocrafter2.unet", "VideoCrafter2UNet"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_numbers_are_the_checkpoints(tmp_path: Path, tokenizer: Path, dtype: torch.dtype) -> None:
    """Every number is found again, bit for bit, in the dtype it was stored in."""
    state = {key: value.to(dtype) for key, value in build_state().items()}
    file = write_checkpoint(tmp_path / "model.ckpt", state)
    written = convert_checkpoint(file, tmp_path / "out", tokenizer=tokenizer, architecture=architecture())
    unet = load_file(tmp_path / "out" / "unet" / WEIGHTS)
    assert {f"model.diffusion_model.{name}" for name in unet} == {k for k in state if k.startswith("model.diffusion")}
    assert all(equal(value, state[f"model.diffusion_model.{name}"]) for name, value in unet.items())
    vae = load_file(tmp_path / "out" / "vae" / WEIGHTS)
    text = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    for part, prefix, unneeded in (
        (vae, "first_stage_model.", ()),
        (text, "cond_stage_model.", ("text_projection", "logit_scale")),
    ):
        source = [value for key, value in state.items() if key.startswith(prefix) and not key.endswith(unneeded or "?")]
        assert {value.dtype for value in part.values()} == {dtype}
        assert torch.equal(sorted_numbers(part.values()), sorted_numbers(source))
    assert written["tensors"] == {"unet": len(unet), "vae": len(vae), "text_encoder": len(text)}
    assert written["left_out"] == 13 + 2


def equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def sorted_numbers(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).sort().values


def test_the_loaded_network_gives_the_recorded_output(converted: Path) -> None:
    unet = VideoCrafter2Backbone.from_pretrained(converted, device="cpu", components=("denoiser",)).network
    recorded = recorded_unet()
    with torch.no_grad():
        out = unet(recorded["in.x"], recorded["in.t_perframe"], recorded["in.context"], recorded["in.fps"])
    torch.testing.assert_close(out, recorded["out.perframe"], atol=2e-5, rtol=1e-4)


def test_the_scheduler_of_the_folder_is_our_schedule(converted: Path) -> None:
    """For programs that read the folder as diffusers' own do."""
    scheduler = DDIMScheduler.from_pretrained(converted / "scheduler")
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), ddim_schedule(1000).alpha[1:] ** 2, rtol=1e-5, atol=0)
    scheduler.set_timesteps(64)
    assert scheduler.timesteps.flip(0).tolist() == ddim_schedule(64).timestep[1:].tolist()
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.usefixtures("tiny")
def test_the_command(tmp_path: Path, checkpoint: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "model"
    assert main(["convert", str(checkpoint), str(out), "--tokenizer", str(tokenizer), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["folder"] == str(out)
    assert shown["revision"] == load_spec(str(out)).revision
    assert files_of(out) == FILES


@pytest.mark.usefixtures("tiny")
def test_the_folder_of_the_checkpoint(tmp_path: Path, checkpoint: Path, tokenizer: Path) -> None:
    """As it was downloaded, or under the name of another kind of pickle."""
    (tmp_path / "VideoCrafter2").mkdir()
    (tmp_path / "VideoCrafter2" / "model.ckpt").symlink_to(checkpoint)
    (tmp_path / "model.pt").symlink_to(checkpoint)
    for number, given in enumerate(("VideoCrafter2", "model.pt")):
        out = tmp_path / f"out{number}"
        assert main(["convert", str(tmp_path / given), str(out), "--tokenizer", str(tokenizer)]) == 0
        assert files_of(out) == FILES


@pytest.mark.usefixtures("tiny")
def test_nothing_is_written_over(
    tmp_path: Path, checkpoint: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert main(["convert", str(checkpoint), str(out), "--tokenizer", str(tokenizer)]) == 2
    message = capsys.readouterr().err
    assert "exists already" in message
    assert "hint" in message
    assert files_of(tmp_path) == {"out/mine"}


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path, checkpoint: Path, tokenizer: Path) -> None:
    """The tiny one is not VideoCrafter2's."""
    with pytest.raises(ModelError, match="no checkpoint of VideoCrafter2"):
        convert_checkpoint(checkpoint, tmp_path / "out", tokenizer=tokenizer)
    assert files_of(tmp_path) == set()


def test_weights_that_are_no_numbers(tmp_path: Path, tokenizer: Path) -> None:
    state = build_state()
    state["model.diffusion_model.out.2.bias"][1] = float("nan")
    file = write_checkpoint(tmp_path / "model.ckpt", state)
    with pytest.raises(ModelError, match=r"NaN or infinite in model.diffusion_model.out.2.bias"):
        convert_checkpoint(file, tmp_path / "out", tokenizer=tokenizer, architecture=architecture())
    assert files_of(tmp_path) == {"model.ckpt"}


def test_the_folder_appears_when_it_is_whole(
    tmp_path: Path, checkpoint: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], bool]] = []
    rename, out = os.rename, tmp_path / "out"

    def watch(source: Path, target: Path) -> None:
        seen.append((files_of(source), out.exists()))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watch)
    convert_checkpoint(checkpoint, out, tokenizer=tokenizer, architecture=architecture())
    assert seen == [(FILES, False)]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("failing", ["save_file", "DDIMScheduler"])
def test_stopped_half_way(
    tmp_path: Path, checkpoint: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(convert, failing, fail)
    with pytest.raises(OutputError, match="cannot be written: no space left"):
        convert_checkpoint(checkpoint, tmp_path / "out", tokenizer=tokenizer, architecture=architecture())
    assert list(tmp_path.iterdir()) == []


def test_no_room(tmp_path: Path, checkpoint: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(OutputError, match=r"0\.0 GB left, the converted model takes"):
        convert_checkpoint(checkpoint, tmp_path / "out", tokenizer=tokenizer, architecture=architecture())
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_cannot_be_had(tmp_path: Path, checkpoint: Path) -> None:
    """Offline, as all tests are."""
    with pytest.raises(ModelError, match="the hub did not deliver it") as error:
        convert_checkpoint(checkpoint, tmp_path / "out", architecture=architecture())
    assert "openai/clip-vit-large-patch14" in error.value.message
    assert "folder" in error.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_no_tokenizer_in_the_folder(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ModelError, match=r"cannot load a tokenizer .* no tokenizer\.json") as error:
        convert_checkpoint(checkpoint, tmp_path / "out", tokenizer=tmp_path / "tokenizer", architecture=architecture())
    assert error.value.hint


def test_another_tokenizer(tmp_path: Path, checkpoint: Path) -> None:
    folder = build_tokenizer(tmp_path / "tokenizer")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["ab"], vocabulary["<|startoftext|>"] = vocabulary["<|startoftext|>"], vocabulary["ab"]
    for token in content["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="is not CLIP's"):
        convert_checkpoint(checkpoint, tmp_path / "out", tokenizer=folder, architecture=architecture())
