"""What is wrong with a model is said by `miga generate` before Ray is started, a row is read or a file is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from jobs.cli import main
from jobs.run import check
from tests import cli

LARGE, SMALL = "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("Ray was started")

    def offline(*arguments: Any, **keywords: Any) -> None:
        raise ConnectionError("cannot reach the hub")

    monkeypatch.setattr(ray, "init", refuse)
    for name in ("snapshot_download", "hf_hub_download", "list_repo_files"):
        monkeypatch.setattr(huggingface_hub, name, offline)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Has `generate` make a prompt under these options, which it must refuse; returns what it said."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    out = tmp_path / "out"
    return lambda *options: cli.refused(capsys, out, tmp_path / "prompts.txt", out, *options)


def nan(folder: Path) -> None:
    file = folder / "transformer" / WEIGHTS
    tensors = load_file(file)
    tensors["blocks.1.ffn.net.2.bias"][-1] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / "vae" / WEIGHTS).rename(folder / "vae" / "diffusion_pytorch_model.bin")


def half(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def deeper(folder: Path) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_layers": 5}))


def another(folder: Path) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "LTXPipeline"}))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "NaN weights": (nan, "transformer/diffusion_pytorch_model.safetensors' holds NaN or infinity in blocks.1.ffn"),
    "a pickle": (pickled, "vae': its weights are a pickle, diffusion_pytorch_model.bin, which can run code"),
    "half a download": (half, "its header speaks of"),
    "missing weights": (lambda folder: (folder / "vae" / WEIGHTS).unlink(), "holds no weights"),
    "missing component": (lambda folder: shutil.rmtree(folder / "text_encoder"), "no component 'text_encoder'"),
    "missing tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "no component 'tokenizer'"),
    "weights of another model": (deeper, "lacks blocks.2."),
    "another architecture": (another, "is a LTXPipeline, not a WanPipeline"),
}


@pytest.mark.parametrize("options", [["--dry-run"], []], ids=["dry run", "run"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_models(
    tmp_path: Path, tiny_model: Path, refused: Callable[..., str], fault: str, options: list[str]
) -> None:
    change, message = FAULTS[fault]
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    change(model)
    assert message in refused("--model", model, *options)


def lora(file: Path, width: int, blocks: int = 1) -> Path:
    tensors = {}
    for block in range(blocks):
        key = f"transformer.blocks.{block}.attn1.to_q"
        tensors |= {f"{key}.lora_A.weight": torch.ones(4, width), f"{key}.lora_B.weight": torch.ones(width, 4)}
    save_file(tensors, file)
    return file


@pytest.mark.parametrize(("model", "width", "fits"), [(SMALL, 5120, 1536), (LARGE, 1536, 5120)])
def test_a_lora_for_another_size_of_a_hub_model(
    tmp_path: Path,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    model: str,
    width: int,
    fits: int,
) -> None:
    """Without network and without the model's weights; the one that fits passes."""
    wrong, right = lora(tmp_path / "wrong.safetensors", width), lora(tmp_path / "right.safetensors", fits, blocks=30)
    message = refused("--model", model, "--lora", wrong, "--dry-run")
    assert f"does not fit the model: another shape than the model's [{fits}, {fits}]: transformer.blocks.0" in message
    run = ["generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out"), "--model", model, "--dry-run"]
    assert main([*run, "--lora", f"{right}:0.5"]) == 0
    capsys.readouterr()


def test_a_lora_with_nan(tmp_path: Path, tiny_model: Path, refused: Callable[..., str]) -> None:
    file = lora(tmp_path / "nan.safetensors", 24)
    tensors = load_file(file)
    tensors["transformer.blocks.0.attn1.to_q.lora_B.weight"][3, 1] = torch.nan
    save_file(tensors, file)
    assert "holds NaN or infinity: transformer.blocks.0" in refused("--model", tiny_model, "--lora", file)


@pytest.mark.parametrize("model", [SMALL, "someone/else"])
def test_a_hub_that_cannot_be_reached(refused: Callable[..., str], model: str) -> None:
    assert "cannot reach the hub" in refused("--model", model)


def test_too_little_memory(
    tmp_path: Path, tiny_model: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "available_memory", lambda: 3_000_000_000)
    message = refused("--model", tiny_model, "--num-actors", 4)
    assert "4 actors of" in message
    assert "this machine has 3.0 GB left" in message
    assert "what would fit: num_actors = 2" in message
    monkeypatch.setattr(check, "available_memory", lambda: 1_000_000_000)
    assert "even one actor in bfloat16 needs" in refused("--model", tiny_model, "--num-actors", 1)
