"""A tiny Wan, written once for all tests of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_wan import build_tiny_wan


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 6 latents a clip and 32 x 48 pixels, under `tests.tiny_wan.SETTINGS`. Read only."""
    return build_tiny_wan(tmp_path_factory.mktemp("wan") / "tiny")
