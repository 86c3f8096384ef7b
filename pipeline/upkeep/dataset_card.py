"""README.md of an export: what the data set is, in the form that the Hugging Face hub reads, and how it is loaded.

Whatever a prompt or a model's name holds stays text: in the head every value is JSON, which is YAML too; below, texts
from outside stand in code blocks whose fences they cannot close.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from miga.errors import UsageError
from pipeline.records.run_folder import RunRecord
from pipeline.rows import ManifestRow

UNKNOWN_LICENCE: Final = "unknown"
_LICENCE: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_SIZES: Final = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def checked_licence(licence: str) -> str:
    """An identifier as the hub has them.

    Raises:
        UsageError: if it is none.
    """
    if not _LICENCE.fullmatch(licence):
        raise UsageError(
            f"--license {licence!r} is no identifier of a licence", "such as apache-2.0, cc-by-4.0 or other"
        )
    return licence


@dataclass
class Figures:
    """What is counted while rows are exported.

    Attributes:
        sizes: (width, height, frames per second) → videos.
        example: the first row, and the address of its video seen from the card.
    """

    rows: int
    videos: int
    bytes: int
    frames: int
    seconds: float
    sizes: dict[tuple[int, int, float], int]
    example: tuple[ManifestRow, str | None] | None

    @classmethod
    def none(cls) -> Figures:
        """Of no row yet."""
        return cls(0, 0, 0, 0, 0.0, {}, None)

    def add(self, row: ManifestRow, name: str | None) -> None:
        """Counts a row whose video, if it has one, is `name` seen from the card."""
        self.rows += 1
        if self.example is None or (self.example[0].status != "ok" and row.status == "ok"):
            self.example = (row, name)
        if row.status != "ok":
            return
        self.videos += 1
        self.bytes += row.bytes or 0
        self.frames += row.num_frames or 0
        self.seconds += row.duration_s or 0.0
        size = (row.width or 0, row.height or 0, row.fps or 0.0)
        self.sizes[size] = self.sizes.get(size, 0) + 1


def dataset_card(format: str, record: RunRecord, figures: Figures, licence: str) -> str:
    """The text of README.md."""
    model = _model_name(record.model)
    lines = [
        "---",
        *_head(format, record, figures, licence),
        "---",
        "",
        "# Videos made by MIGA on Ray",
        "",
        f"{figures.videos:,} videos, {figures.seconds / 3600:,.2f} hours, {figures.frames:,} frames, "
        f"{_bytes(figures.bytes)}. All are made by a model, none is filmed.",
        "",
        *_facts(record, figures, model, licence),
        "",
        "## How to load it",
        "",
        *_HOW_TO[format],
        "",
        "## An example",
        "",
        *_example(figures),
        "",
        "## Columns",
        "",
        _COLUMNS[format],
        "",
    ]
    return "\n".join(lines)


def _head(format: str, record: RunRecord, figures: Figures, licence: str) -> list[str]:
    tags = ["video", "synthetic", "text-to-video", "miga", record.profile]
    values: dict[str, Any] = {
        "pretty_name": "Videos made by MIGA on Ray",
        "license": licence,
        "task_categories": ["text-to-video"],
        "tags": [*(["webdataset"] if format == "webdataset" else []), *tags],
        "size_categories": [next((name for limit, name in _SIZES if figures.rows < limit), "1M<n<10M")],
    }
    if _HUB_NAME.fullmatch(record.model) and not os.path.exists(record.model):
        values["base_model"] = record.model
    configs: Mapping[str, list[dict[str, Any]]] = {
        "hf": [{"config_name": "default", "data_dir": "train"}],
        "parquet": [{"config_name": "default", "data_files": "dataset.parquet"}],
        "csv": [{"config_name": "default", "data_files": "dataset.csv"}],
        "webdataset": [{"config_name": "default", "data_files": "shard-*.tar"}],
    }
    values["configs"] = configs[format]
    return [f"{name}: {_yaml(value)}" for name, value in values.items()]


def _yaml(value: Any) -> str:
    """A value in YAML: JSON in ASCII, but that YAML knows no halves of surrogate pairs."""

    def whole(found: re.Match[str]) -> str:
        code = 0x10000 + (int(found[1], 16) - 0xD800) * 0x400 + int(found[2], 16) - 0xDC00
        return f"\\U{code:08x}"

    text = re.sub(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", whole, json.dumps(value, ensure_ascii=True))
    return re.sub(r"\\u(d[89a-f][0-9a-f]{2})", r"\\ufffd", text)


def _facts(record: RunRecord, figures: Figures, model: str, licence: str) -> list[str]:
    sizes = ", ".join(
        f"{width}x{height} at {fps:g} frames per second ({number:,})"
        for (width, height, fps), number in sorted(figures.sizes.items(), key=lambda item: -item[1])[:5]
    )
    said = (
        "not stated: `miga export --license NAME` states it. It depends on that of the model and of the prompts"
        if licence == UNKNOWN_LICENCE
        else f"`{licence}`, as stated by whoever exported it; mind that of the model and of the prompts, too"
    )
    return [
        f"- Base model: {_code(model)}, revision {_code(record.model_revision)}",
        f"- Sampler: profile {_code(record.profile)}; its settings stand in the column `config`",
        f"- Sizes: {sizes or 'none'}",
        f"- Licence: {said}",
        f"- Made with version {_code(record.version)} of miga-on-ray",
    ]


def _model_name(model: str) -> str:
    """A hub's name as it is; of a folder its last part alone, since a path says where somebody keeps things."""
    return model if _HUB_NAME.fullmatch(model) and not os.path.exists(model) else model.rstrip("/").rpartition("/")[2]


def _example(figures: Figures) -> list[str]:
    if figures.example is None:
        return ["There are no rows."]
    row, name = figures.example
    values = {
        "file": name,
        "prompts": list(row.prompts),
        "seed": row.seed,
        "num_frames": row.num_frames,
        "fps": row.fps,
        "width": row.width,
        "height": row.height,
    }
    return _block(json.dumps(values, indent=2, ensure_ascii=False), "json")


def _code(text: str) -> str:
    """Text from outside within a line."""
    plain = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    return f"{fence} {plain} {fence}" if "`" in plain else f"`{plain}`"


def _block(text: str, kind: str) -> list[str]:
    """Text from outside as a code block."""
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return [f"{fence}{kind}", text, fence]


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def _torch_dataset(table: str, folder: str, reads: str) -> str:
    """Code that loads a table and its videos with torchcodec."""
    return f'''```python
{reads}
import torch
from torchcodec.decoders import VideoDecoder


class Videos(torch.utils.data.Dataset):
    """A video, uint8 [F, C, H, W], and its prompt."""

    def __init__(self, folder):
        self.folder = folder
        self.rows = read_rows(f"{{folder}}/{table}")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        frames = VideoDecoder(f"{{self.folder}}/{folder}{{row['file_name']}}")[:]
        return frames, "\\n".join(row["prompts"])


videos = Videos(".")
frames, prompt = videos[0]
print(frames.shape, prompt)
```'''


_PARQUET: Final = """import pyarrow.parquet as pq


def read_rows(path):
    rows = pq.read_table(path, columns=["file_name", "prompts"]).to_pylist()
    return [row for row in rows if row["file_name"]]

"""
_CSV: Final = """import csv
import json


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{**row, "prompts": json.loads(row["prompts"])} for row in rows if row["file_name"]]

"""
_WEBDATASET: Final = """```python
import glob

import webdataset
from torchcodec.decoders import VideoDecoder

for sample in webdataset.WebDataset(sorted(glob.glob("shard-*.tar")), shardshuffle=False):
    frames = VideoDecoder(sample["mp4"])[:]  # uint8 [F, C, H, W]
    prompt = sample["txt"].decode()
    print(frames.shape, prompt)
    break
```"""
_HOW_TO: Final[Mapping[str, list[str]]] = {
    "hf": [
        "With torchcodec, from a copy on disk (`hf download NAME --repo-type dataset --local-dir .`):",
        "",
        _torch_dataset("train/metadata.parquet", "train/", _PARQUET),
        "",
        "With `datasets`, which decodes videos by torchcodec, too:",
        "",
        "```python",
        "import datasets",
        "",
        'rows = datasets.load_dataset("videofolder", data_dir="train", split="train")',
        "```",
    ],
    "parquet": ["With torchcodec:", "", _torch_dataset("dataset.parquet", "", _PARQUET)],
    "csv": ["With torchcodec:", "", _torch_dataset("dataset.csv", "", _CSV)],
    "webdataset": ["With webdataset and torchcodec:", "", _WEBDATASET],
}
_SAYS: Final = "the others say of themselves what they are, in"
_COLUMNS: Final[Mapping[str, str]] = {
    "hf": "`text` is the prompts joined by line breaks, `file_name` the video seen from the table, `uri` seen from "
    f"here; {_SAYS} `train/metadata.parquet`.",
    "parquet": f"`file_name` and `uri` are the video seen from the table; {_SAYS} `dataset.parquet`.",
    "csv": "`file_name` and `uri` are the video seen from the table; lists are JSON; a text that begins like a formula "
    "has an apostrophe before it.",
    "webdataset": "Of each video `.mp4`, `.txt` (its prompts joined by line breaks) and `.json` (its row).",
}
