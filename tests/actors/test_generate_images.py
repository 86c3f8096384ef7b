"""A run of rows that begin with pictures, on a local Ray: a chain of clips each, digests in the manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.video import count_frames
from tests.actors.test_generate_run import manifest, run
from tests.tiny_wan import build_tiny_image_wan

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_rows_with_pictures(tmp_path: Path) -> None:
    model = build_tiny_image_wan(tmp_path / "model", "i2v")
    (tmp_path / "pictures").mkdir()
    for name, colour in (("a.png", (200, 30, 90)), ("b.jpg", (10, 120, 60))):
        Image.new("RGB", (60, 40), colour).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    rows = [{"image": "pictures/a.png"}, {"image": "pictures/b.jpg"}, {"image": "pictures/broken.png"}, {}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "a red ball", "seed": 1, **row}) + "\n" for row in rows))
    out = tmp_path / "out"
    options = ["--profile", "svi-shot", "--set", "sampler.num_steps=2", "--num-frames", "41"]
    status, summary = run(prompts, out, model, *options)
    assert status != 0, summary  # two rows cannot be made
    made = manifest(out)
    assert [row["status"] for row in made] == ["ok", "ok", "failed", "failed"]
    for row in made[:2]:
        assert row["image_sha256"] == hashlib.sha256((tmp_path / row["image"]).read_bytes()).hexdigest()
        assert count_frames(out / row["uri"]) == row["num_frames"] == 41
        assert row["num_latents"] == 12
        assert row["network_calls"] == 4
    assert made[0]["key"] != made[1]["key"]
    assert made[0]["sha256"] != made[1]["sha256"]
    assert "broken.png" in made[2]["error"]
    assert "there is no 'image'" in made[3]["error"]
