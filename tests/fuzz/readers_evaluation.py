"""What an evaluation reads: its own records, weights, results of other programs; see `tests/fuzz/reader.py`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from miga.errors import OutputError
from miga.evaluation.observers import Noted
from miga.evaluation.weights import find_weights, load_network
from miga.outside_data import OutsideDataError
from pipeline.evaluation.features import FeatureFile, FeatureWriter
from pipeline.evaluation.page_scores import RESULTS_OF_A_RUN, read_scores
from pipeline.evaluation.records import read_rows as read_rows_of
from pipeline.evaluation.records import row_path
from pipeline.evaluation.results import dumped, read_vbench_json, vbench_json, write_results
from pipeline.storage.local import LocalStorage
from tests.fuzz.reader import Reader
from tests.pipeline.evaluation.test_results import row


def _prepare_row(folder: Path) -> list[bytes]:
    return [row(0, temporal_flickering=0.5, dynamic_degree=1.0).to_json()]


def _read_row(folder: Path, data: bytes) -> None:
    storage = LocalStorage(folder)
    storage.write_bytes(row_path(0), data)
    list(read_rows_of(storage))


def _prepare_features(folder: Path) -> list[bytes]:
    writer = FeatureWriter(folder / "sound.safetensors")
    writer.add(Noted(np.arange(12, dtype=np.int64), np.arange(12, dtype=np.float32).reshape(12, 1)))
    writer.close()
    return [(folder / "sound.safetensors").read_bytes()]


def _read_features(folder: Path, data: bytes) -> None:
    """As a worker takes what is kept: what is broken is made anew."""
    (folder / "f.safetensors").write_bytes(data)
    try:
        file = FeatureFile(folder / "f.safetensors")
        try:
            file.rows(0, 12)
            file.scalars()
        finally:
            file.close()
    except OutsideDataError as error:
        raise OutputError(str(error)) from error


def _prepare_results(folder: Path) -> list[bytes]:
    write_results([row(0, temporal_flickering=0.5)], folder / "results.parquet")
    return [(folder / "results.parquet").read_bytes()]


def _read_results(folder: Path, data: bytes) -> None:
    """As the page takes them: a table that cannot be read is none."""
    storage = LocalStorage(folder)
    storage.write_bytes(RESULTS_OF_A_RUN, data)
    if not read_scores(storage).by:
        raise OutputError("no scores")


def _prepare_vbench(folder: Path) -> list[bytes]:
    return [dumped(vbench_json([row(0, temporal_flickering=0.5, dynamic_degree=1.0)]))]


def _read_vbench(folder: Path, data: bytes) -> None:
    (folder / "results.json").write_bytes(data)
    read_vbench_json(folder / "results.json")


def _prepare_weights(folder: Path) -> list[bytes]:
    head = {"weight": torch.ones(1, 768), "bias": torch.zeros(1)}
    files = [io.BytesIO(), io.BytesIO()]
    torch.save(head, files[0])
    torch.save(head, files[1], _use_new_zipfile_serialization=False)
    return [file.getvalue() for file in files]


def _read_weights(folder: Path, data: bytes) -> None:
    (folder / "head.pth").write_bytes(data)
    load_network(find_weights(["aesthetic-head"], {"aesthetic-head": str(folder / "head.pth")})["aesthetic-head"])


READERS = [
    Reader("row of an evaluation", _prepare_row, _read_row),
    Reader("features of a video", _prepare_features, _read_features),
    Reader("results of an evaluation", _prepare_results, _read_results),
    Reader("VBench's results", _prepare_vbench, _read_vbench),
    Reader("weights of a metric", _prepare_weights, _read_weights),
]
