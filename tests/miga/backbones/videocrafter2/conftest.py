"""A tiny VideoCrafter2, converted once for all tests of the folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny_videocrafter2 import build_tiny_videocrafter2


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; `.ckpt` and `-tokenizer` of the same name lie beside it. Read only."""
    return build_tiny_videocrafter2(tmp_path_factory.mktemp("videocrafter2") / "tiny")


@pytest.fixture
def copied(converted: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(converted, tmp_path / "model"))
