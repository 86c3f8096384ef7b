"""The embedded world end to end: a picture drawn by it, a chain of five clips, manifest, page, verify; and an OUT as a
training set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from jobs.cli import main
from jobs.train_sprites_i2v import main as train_i2v
from jobs.train_svi import main as train_svi
from miga.backbones.sprites.details import Details, render_detailed
from miga.backbones.sprites.world import Placement, held_out_scenes
from pipeline.video import count_frames
from tests.actors.test_generate_run import check_complete, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

CLIPS, FRAMES = 5, 45 + 4 * 44


def test_a_picture_of_the_world_becomes_a_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Briefly trained: it is wiring that is tested here, not what the videos look like."""
    model, out = tmp_path / "i2v", tmp_path / "out"
    few = ["--clips", "2", "--steps", "2", "--batch", "2", "--work-dir", str(tmp_path / "work"), "--threads", "1"]
    assert train_i2v(["--out", str(model), *few]) == 0
    (scene,), rng = held_out_scenes(1, 5), np.random.default_rng(0)
    (frame,) = render_detailed(scene, Placement.random(rng), Details.random(scene, rng), 1)
    Image.fromarray((frame * 255.0).round().astype(np.uint8)).save(tmp_path / "world.png")
    rows = [{"prompt": scene.caption(0, ("colour", "ground")), "image": "world.png", "seed": 1}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--profile", "svi-shot", "--set", "sampler.num_steps=2", "--num-frames", str(FRAMES)]
    status, summary = run(prompts, out, model, *options)
    assert status == 0, summary
    (row,) = check_complete(out, 1)
    assert row["image_sha256"] == hashlib.sha256((tmp_path / "world.png").read_bytes()).hexdigest()
    assert count_frames(out / row["uri"]) == row["num_frames"] == FRAMES
    assert (row["num_latents"], row["network_calls"]) == (12 * CLIPS, 2 * CLIPS)
    page = (out / "report.html").read_text()
    assert '"is":"image"' in page.replace(" ", "")
    assert "data:image/jpeg;base64," in page
    assert main(["verify", str(out)]) == 0, capsys.readouterr().err

    usual = ["--lora-rank", "2", "--grids", "4", "--steps", "2", "--variant", "pro", "--shift", "3", "--device", "cpu"]
    assert train_svi([str(model), str(out), str(tmp_path / "svi"), *usual, "--measure-every", "0"]) == 0
    lora = load_file(tmp_path / "svi" / "lora.safetensors")
    assert len(lora) == 2 * 10 * 6
    assert max(float(part.abs().max()) for name, part in lora.items() if "lora_B" in name) > 0.0
    status, summary = run(
        prompts, tmp_path / "again", model, *options, "--lora", str(tmp_path / "svi/lora.safetensors")
    )
    assert status == 0, summary
    (other,) = check_complete(tmp_path / "again", 1)
    assert other["sha256"] != row["sha256"]
