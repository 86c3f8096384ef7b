"""Every reader of outside data, against thousands of damaged files: the project's own exceptions alone, and soon."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Final

import pytest

from miga.errors import MigaError
from tests.fuzz.mutations import mutations
from tests.fuzz.reader import Reader

MAX_S: Final = 5.0
"""Processor time of one file, which a busy machine does not stretch."""
FEW, MANY = 40, 10_000
SEED: Final = 20261121

READERS: Final[dict[str, Reader]] = {
    reader.name: reader
    for file in sorted(Path(__file__).parent.glob("readers_*.py"))
    for reader in importlib.import_module(f"tests.fuzz.{file.stem}").READERS
}


@pytest.mark.sampled(46)
@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    read_damaged(READERS[name], tmp_path, FEW, SEED)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    read_damaged(READERS[name], tmp_path, MANY, SEED + 1)


def read_damaged(reader: Reader, folder: Path, count: int, seed: int) -> None:
    """Reads the sound files, then `count` damaged ones.

    Raises:
        AssertionError: naming the mutation that raised something else than the project's own, or took too long.
    """
    originals = reader.prepare(folder)
    for original in originals:
        reader.read(folder, original)
    refused = 0
    for part, original in enumerate(originals):
        share = count // len(originals) + (part < count % len(originals))
        for number, data in enumerate(mutations(original, share, seed + part)):
            where = f"{reader.name}: mutation {number} of original {part}, seed {seed + part}: {data[:300]!r}"
            begun_s = time.process_time()
            try:
                reader.read(folder, data)
            except MigaError as error:
                refused += 1
                str(error).encode()  # a message can be printed
            except BaseException as error:
                raise AssertionError(f"{where} raised {type(error).__name__}: {error}") from error
            taken_s = time.process_time() - begun_s
            assert taken_s < MAX_S, f"{where} took {taken_s:.1f} s"
    assert refused > count / 50, f"{reader.name} refused {refused} of {count} damaged files: is it read at all?"
