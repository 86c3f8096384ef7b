"""What users hand in: prompt files of every kind, configs, grids; and the index of an export that is gone on with."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ablation import load_grid
from pipeline.config import load_config
from pipeline.prompts.read import count_rows, read_prompts
from pipeline.prompts.source import look_at
from pipeline.rows import BadRow
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.export import ExportOptions, export
from tests.fuzz.reader import Reader
from tests.made_run import make_run

SOUND_TXT = "\ufeffa cat \U0001f408\r\na dog that barks\n\nan owl\u2028at night\rthe last".encode()
SOUND_JSONL = (
    json.dumps({"prompt": "a cat", "id": "x", "seed": 2**63, "num_frames": 45, "tags": {"k": [1, 2.5, None]}})
    + "\n"
    + json.dumps({"prompt": ["a", "b"], "seed": 42.0, "negative_prompt": "", "note": "\u00e9"})
    + "\n"
).encode()
SOUND_CSV = b'prompt,seed,num_frames,id,mood\r\n"a, b ""c""\nd",7,45.0,k,gay\r\nplain,,,,\r\n'
SOUND_TOML = b"""model = "sprites"
lora = ["a.safetensors:0.5"]
seed = 7
[sampler]
num_candidates = 3
reflection_threshold = 0.5
[workers]
num_actors = "none"
[video]
codec = "libsvtav1"
crf = 20
[run]
max_failed_share = 0.25
"""
SOUND_GRID = b"""[settings.no-search]
profile = "paper"
sampler = { self_reflection = false }
[settings.paper]
profile = "paper"
[[tables]]
name = "3"
title = "Core mechanisms"
header = ["self-reflection"]
columns = ["sc", "bc"]
rows = [{ cells = ["no"], setting = "no-search", x = 1.5 }, { cells = ["yes"], setting = "paper" }]
plot = { file = "core", left = ["sc"] }
"""


def _sound_parquet() -> list[bytes]:
    table = pa.table(
        {
            "prompt": [f"prompt {i}" for i in range(40)],
            "seed": [float(i) if i % 3 else None for i in range(40)],
            "at": pa.array([i * 1001 for i in range(40)], pa.timestamp("ns", "Europe/Berlin")),
            "nested": [{"k": [i, None], "t": dt.datetime(2024, 1, 1)} for i in range(40)],
            "map": pa.array([[("k", i)] for i in range(40)], pa.map_(pa.string(), pa.int64())),
        }
    )
    lists = pa.table({"prompt": [["a", "b"], ["c"]], "kind": pa.array(["q", "q"]).dictionary_encode()})
    made = []
    for content, options in (
        (table, {"row_group_size": 16}),
        (lists, {"compression": "none", "data_page_version": "2.0"}),
    ):
        sink = pa.BufferOutputStream()
        pq.write_table(content, sink, **options)
        made.append(sink.getvalue().to_pybytes())
    return made


def _prompts_reader(name: str, sound: Callable[[], list[bytes]]) -> Reader:
    def read(folder: Path, data: bytes) -> None:
        path = folder / name
        path.write_bytes(data)
        file = look_at(str(path))
        rows = list(read_prompts(file, seed=0, num_frames=9))
        assert count_rows(file) == len(rows)
        for index, row in enumerate(rows):  # whatever was taken can be written into a manifest
            assert row.index == index
            texts = [row.id, *row.prompts, row.source, row.error if isinstance(row, BadRow) else ""]
            json.dumps([texts, row.metadata], allow_nan=False, ensure_ascii=False).encode()

    return Reader(name, lambda _: sound(), read)


def _read_config(folder: Path, data: bytes) -> None:
    (folder / "run.toml").write_bytes(data)
    load_config(folder / "run.toml").to_json().encode()


def _read_grid(folder: Path, data: bytes) -> None:
    (folder / "grid.toml").write_bytes(data)
    load_grid(folder / "grid.toml").select(None)


_INDEX = "index/shard-00000.json"


def _prepare_export(folder: Path) -> list[bytes]:
    run = make_run(LocalStorage(folder / "out"), folder, 2)
    dest = LocalStorage(folder / "dest")
    export(run.storage, dest, ExportOptions(format="webdataset"))
    return [dest.read_bytes(_INDEX), dest.read_bytes("export.json")]


def _read_export(folder: Path, data: bytes) -> None:
    """As the index of a tar file, which is then made again; and as what says which export it is."""
    dest = LocalStorage(folder / "dest")
    export_json, index = dest.read_bytes("export.json"), dest.read_bytes(_INDEX)
    name = _INDEX if b"rows_sha256" in data or data == index else "export.json"
    dest.write_bytes(name, data)
    try:
        export(LocalStorage(folder / "out"), dest, ExportOptions(format="webdataset"))
        assert json.loads(dest.read_bytes(_INDEX).decode("utf-8-sig")) == json.loads(index)
    finally:
        dest.write_bytes("export.json", export_json)
        dest.write_bytes(_INDEX, index)


READERS = [
    _prompts_reader("prompts.txt", lambda: [SOUND_TXT]),
    _prompts_reader("prompts.jsonl", lambda: [SOUND_JSONL]),
    _prompts_reader("prompts.csv", lambda: [SOUND_CSV]),
    _prompts_reader("prompts.parquet", _sound_parquet),
    Reader("config.toml", lambda _: [SOUND_TOML], _read_config),
    Reader("grid.toml", lambda _: [SOUND_GRID], _read_grid),
    Reader("an export gone on with", _prepare_export, _read_export),
]
