"""docs/python.md: what it shows runs, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.video import count_frames, read_form

ROOT = Path(__file__).parents[2]


def blocks(text: str) -> list[str]:
    """Those that need neither a card nor a server."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_what_the_page_shows_runs(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in place of the embedded one, whose frames are of another size."""
    monkeypatch.chdir(tmp_path)
    shown = blocks((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    assert len(shown) == 5
    names: dict[str, Any] = {}
    for block in shown:
        exec(block.replace('"sprites"', repr(str(tiny_model))), names)
    made = {file.name: count_frames(file) for file in tmp_path.glob("*.mp4")}
    assert made == {"circle.mp4": 61, "video.mp4": 29, "ring.mp4": 61, "ring-live.mp4": 61, "story.mp4": 61}
    assert read_form("video.mp4")[0] == 12.0
    assert Image.open("first.png").size == (32, 32)


@pytest.mark.slow
def test_what_the_readme_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model itself; of the video without end one frame."""
    monkeypatch.chdir(tmp_path)
    (shown,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    exec(shown.replace("    ...", "    break"), names := {})  # type: ignore[var-annotated]
    assert names["video"].frames.shape == (177, 64, 64, 3)
    assert count_frames("circle.mp4") == 177
