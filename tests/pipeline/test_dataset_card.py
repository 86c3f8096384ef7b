"""The card of an export: what the hub reads of it, and that its code does what it says."""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from miga.errors import UsageError
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import RUN_FILE
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.dataset_card import checked_licence
from pipeline.upkeep.export import ExportOptions, Format, export
from pipeline.video import read_frames
from tests.made_run import NUM_FRAMES, MadeRun, make_run, video_bytes

FORMATS: tuple[Format, ...] = ("parquet", "csv", "hf", "webdataset")
NASTY = "``` \n---\n# not a heading\n`code` ~~~~ <script> \U0001f408 license: mit"


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    return make_run(LocalStorage(tmp_path / "out"), tmp_path, 8, failed=(0, 4))


@pytest.fixture
def dest(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "dest")


def card_of(dest: LocalStorage) -> tuple[dict[str, Any], str]:
    """The head as YAML, and what follows."""
    found = re.fullmatch(r"---\n(.*?\n)---\n(.*)", dest.read_bytes("README.md").decode(), re.DOTALL)
    assert found
    return yaml.safe_load(found[1]), found[2]


@pytest.mark.parametrize("format", FORMATS)
def test_what_the_hub_reads(run: MadeRun, dest: LocalStorage, format: Format) -> None:
    from huggingface_hub import DatasetCard

    summary = export(run.storage, dest, ExportOptions(format=format), licence="apache-2.0")
    assert dest.uri("README.md") in summary["files"]
    head, text = card_of(dest)
    assert head["license"] == "apache-2.0"
    assert head["task_categories"] == ["text-to-video"]
    assert {"video", "synthetic", "miga", "paper"} <= set(head["tags"])
    assert head["size_categories"] == ["n<1K"]
    assert "base_model" not in head, "m is a folder, or nothing"
    (config,) = head["configs"]
    places = [config["data_dir"]] if format == "hf" else [config["data_files"]]
    assert all(list(Path(dest.root).glob(place)) for place in places)
    assert DatasetCard(dest.read_bytes("README.md").decode()).data.license == "apache-2.0"
    size = sum(len(video_bytes(index % 4)) for index in (1, 2, 3, 5, 6, 7))
    assert f"6 videos, {6 * NUM_FRAMES / 8 / 3600:.2f} hours, {6 * NUM_FRAMES} frames, {size / 1000:.3g} kB" in text
    assert "16x16 at 8 frames per second (6)" in text
    assert "a cat \U0001f408 number 1" in text, "the first that was made"
    assert str(run.storage.root) not in dest.read_bytes("README.md").decode()


def test_a_model_of_the_hub_is_named_as_its_base(run: MadeRun, dest: LocalStorage) -> None:
    record = replace(run.record, model="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    run.storage.write_bytes(RUN_FILE, record.to_json().encode())
    export(run.storage, dest, ExportOptions(format="hf"))
    head, text = card_of(dest)
    assert head["base_model"] == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert head["license"] == "unknown"
    assert "--license NAME" in text


def test_of_a_model_s_folder_its_name_alone_is_said(run: MadeRun, dest: LocalStorage) -> None:
    record = replace(run.record, model="/home/somebody/models/tiny")
    run.storage.write_bytes(RUN_FILE, record.to_json().encode())
    export(run.storage, dest, ExportOptions(format="hf"))
    head, text = card_of(dest)
    assert "base_model" not in head
    assert "`tiny`" in text
    assert "somebody" not in text


def test_a_prompt_stays_in_its_place(run: MadeRun, dest: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(run.record, profile=NASTY, model=f"x/{NASTY}", version=NASTY)
    run.storage.write_bytes(RUN_FILE, record.to_json().encode())
    (row,) = [row for row in Manifest(run.storage, 3).read_shard(0) if row.row == 1]
    rows = [replace(row, prompts=(NASTY,))]
    monkeypatch.setattr(Manifest, "read_shard", lambda self, shard: rows if shard == 0 else [])
    export(run.storage, dest, ExportOptions(format="parquet"))
    head, text = card_of(dest)
    assert head["license"] == "unknown"
    assert NASTY in head["tags"]
    (example,) = re.findall(r"^(`{3,})json\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    assert json.loads(example[1])["prompts"] == [NASTY]
    assert "`" * len(example[0]) not in example[1]
    assert not re.search(r"^(# not a heading|---)$", text, re.MULTILINE)


class _Decoder:
    """torchcodec's `VideoDecoder`, as far as cards use it, by this project's own reader."""

    def __init__(self, source: str | bytes) -> None:
        if isinstance(source, bytes):
            Path("sample.mp4").write_bytes(source)
            source = "sample.mp4"
        self._frames_FCHW = torch.stack([torch.from_numpy(frame.copy()) for frame in read_frames(source)])
        self._frames_FCHW = self._frames_FCHW.permute(0, 3, 1, 2)

    def __getitem__(self, index: slice) -> torch.Tensor:
        return self._frames_FCHW[index]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("format", "videos"),
    [("parquet", "copy"), ("parquet", "reference"), ("csv", "copy"), ("csv", "reference"), ("hf", "copy")],
)
def test_the_code_of_a_card_runs(
    run: MadeRun, dest: LocalStorage, format: Format, videos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run.storage, dest, ExportOptions(format=format, videos=videos, status="ok" if format == "hf" else "all"))
    decoders = types.ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = _Decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.chdir(dest.root)
    code = re.findall(r"^```python\n(.*?)^```$", card_of(dest)[1], re.DOTALL | re.MULTILINE)[0]
    found: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), found)
    assert (found["frames"].shape, found["frames"].dtype) == ((NUM_FRAMES, 3, 16, 16), torch.uint8)
    assert found["prompt"] == "a cat \U0001f408 number 1"
    assert len(found["videos"]) == 6
    batch = next(iter(torch.utils.data.DataLoader(found["videos"], batch_size=3)))
    assert batch[0].shape == (3, NUM_FRAMES, 3, 16, 16)


@pytest.mark.parametrize("licence", ["", "MIT", "a b", "x\n", "-x", "x" * 65])
def test_what_is_no_licence(licence: str) -> None:
    with pytest.raises(UsageError, match="no identifier"):
        checked_licence(licence)


def test_the_recipe_for_fiftyone_reads_an_export(run: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that takes what the recipe gives it: FiftyOne brings a database along."""
    export(run.storage, LocalStorage(tmp_path / "dataset"), ExportOptions(format="parquet"))
    samples: list[dict[str, Any]] = []

    class Dataset:
        def __init__(self, name: str, overwrite: bool) -> None:
            pass

        def add_samples(self, given: list[dict[str, Any]]) -> None:
            samples.extend(given)

        def compute_metadata(self) -> None:
            pass

    fiftyone = types.ModuleType("fiftyone")
    fiftyone.__dict__.update(Dataset=Dataset, Sample=dict, launch_app=lambda dataset: None)
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    (code,) = re.findall(r"^```python\n(import fiftyone\n.*?)^```$", text, re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/results.md", "exec"), {})
    assert [sample["prompt"] for sample in samples] == [f"a cat \U0001f408 number {n}" for n in (1, 2, 3, 5, 6, 7)]
    assert all(Path(sample["filepath"]).is_file() for sample in samples)
    assert samples[0]["consistency"] == pytest.approx(0.6 + 0.01)
