"""A tiny model of each family, written once for all tests of the folder, and a hub that cannot be reached."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from tests.tiny_videocrafter2 import build_tiny_videocrafter2
from tests.tiny_wan import build_tiny_wan

FOLDERS = {"wan": "wan_folder", "videocrafter2": "converted"}


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 6 latents a clip and 32 x 48 pixels, under `tests.tiny_wan.SETTINGS`. Read only."""
    return build_tiny_wan(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VideoCrafter2's folder; `.ckpt` and `-tokenizer` of the same name lie beside it. Read only."""
    return build_tiny_videocrafter2(tmp_path_factory.mktemp("videocrafter2") / "tiny")


@pytest.fixture(scope="module", params=FOLDERS)
def family(request: pytest.FixtureRequest) -> str:
    """Each family of models that is loaded from a folder."""
    return request.param


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, family: str) -> Path:
    """The tiny model of the family. Read only."""
    return request.getfixturevalue(FOLDERS[family])


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub cannot be reached, and says so in two lines."""

    def refuse(name: str, **kwargs: Any) -> str:
        raise ConnectionError(f"cannot reach the hub for {name}\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
