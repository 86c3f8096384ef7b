"""Where a model is looked for, which revision of it is there, and which weights are sound."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from miga.backbones.loading import is_finite, require_finite, revision_of
from miga.backbones.registry import load_backbone, load_spec
from miga.errors import ModelError
from tests.faulty_folder import edit


def test_revision_is_a_digest_of_the_contents(copied: Path, tmp_path: Path) -> None:
    first = revision_of(copied)
    (copied / "README.md").write_text("hello")
    (copied / ".cache").mkdir()
    (copied / ".cache" / "state").write_text("1")
    assert revision_of(copied) == first == revision_of(Path(shutil.copytree(copied, tmp_path / "elsewhere")))
    edit(copied / "miga.json", fps=9)
    assert revision_of(copied) != first


def test_revision_of_a_hub_snapshot_is_its_commit(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    assert revision_of(snapshot) == "0123456789" * 4


def test_large_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miga.backbones.loading.LARGE_FILE_BYTES", 1000)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(bytes(10**6))
    first = revision_of(tmp_path)
    file.write_bytes(bytes(10**6 - 1) + b"\1")
    assert revision_of(tmp_path) != first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_what_is_finite(dtype: torch.dtype) -> None:
    """Large numbers are, though their sum overflows; one NaN or infinity among them is not."""
    largest = torch.finfo(dtype).max
    weights = torch.full((3, 5), largest).to(dtype)
    assert is_finite(weights)
    assert is_finite(torch.arange(3)), "whole numbers always are"
    broken = [torch.nan, *([] if dtype == torch.float8_e4m3fn else [torch.inf, -torch.inf])]  # which has no infinity
    for value in broken:
        weights.view(-1)[7] = value
        assert not is_finite(weights)


def test_a_module_whose_sums_overflow_is_not_refused() -> None:
    module = torch.nn.Linear(4, 4)
    module.weight.data.fill_(3e38)
    assert not torch.isfinite(module.weight.sum())
    require_finite("transformer", Path(), module)
    module.weight.data[2, 1] = torch.inf
    with pytest.raises(ModelError, match="NaN or infinity in weight"):
        require_finite("transformer", Path(), module)


@pytest.mark.parametrize("name", ["nowhere", "somewhere/deep/inside", "/nowhere"])
def test_missing_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_spec(name)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_spec(str(tmp_path))


def test_a_file_is_no_folder(wan_folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        load_spec(str(wan_folder / "model_index.json"))


@pytest.mark.usefixtures("offline")
def test_hub_offline() -> None:
    with pytest.raises(ModelError, match="cannot reach the hub for someone/else\n") as error:
        load_spec("someone/else")
    assert "network" in error.value.hint
    with pytest.raises(ModelError, match="cannot reach"):
        load_backbone("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", device="cpu")
