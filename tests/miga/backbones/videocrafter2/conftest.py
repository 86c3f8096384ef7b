"""In this folder the tiny model is VideoCrafter2's."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def family() -> str:
    return "videocrafter2"
