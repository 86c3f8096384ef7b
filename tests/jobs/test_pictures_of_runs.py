"""Videos that began from a picture: made longer by `miga extend`, and compared by `miga ablate`."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from actors.driver.rows import RowMaker
from actors.messages import VideoFailed, VideoFinished, VideoTask, WorkerSettings
from actors.text_encoder import TextEncoderWorker
from actors.worker.backbone import BackboneWorker
from jobs.ablation.plan import plan_ablation
from jobs.cli import main
from jobs.run.plan import make_plan, run_record
from miga.errors import InputError
from pipeline.config import RunConfig, RunSection, VideoConfig
from pipeline.prompts.images import frame_of, picture_at
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import latents_path, open_run, video_path
from pipeline.rows import ManifestRow, PromptRow
from pipeline.storage.open import open_storage
from tests.tiny_wan import build_tiny_image_wan

SHORT, LONG = 41, 61  # two clips, three


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_image_wan(tmp_path_factory.mktemp("model") / "i2v", "i2v-a14b"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    Image.new("RGB", (60, 40), (200, 30, 90)).save(tmp_path / "a.png")
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "a red ball", "image": "a.png", "seed": 3}) + "\n")
    return file


def config(model: str, **sampler: Any) -> RunConfig:
    return RunConfig(
        model=model, profile="svi-shot", num_frames=SHORT, run=RunSection(keep_latents=True),
        sampler={"num_steps": 2, **sampler},
    )  # fmt: skip


def made(out: Path, prompts: Path, model: str, num_frames: int = SHORT) -> ManifestRow:
    """A run of one row, made by a worker in this process."""
    plan = make_plan(str(prompts), str(out), replace(config(model), num_frames=num_frames))
    storage = open_storage(out)
    record, _ = open_run(storage, run_record(plan))
    maker, manifest = RowMaker(record, plan.spec), Manifest(storage, 1000)
    (row,) = plan.rows()
    assert isinstance(row, PromptRow)
    key = maker.key(row)
    picture = frame_of(picture_at("a.png", str(prompts.parent)), str(row.image_sha256), 32, 48)
    asked = VideoTask(
        row=0, attempt=1, num_latents=plan.spec.num_latents(num_frames), num_frames=num_frames, seed=row.seed,
        path=video_path(0, 0, key, 1, 1), checkpoints="checkpoint/00000/0", latents_path=latents_path(0, 0, key, 1, 1),
        image=picture,
    )  # fmt: skip
    settings = WorkerSettings(
        model=model, revision=None, sampler=plan.sampler, video=VideoConfig(), out=str(out), num_threads=1,
        device="cpu", checkpoint_every_s=1e9, keep_latents=True,
    )  # fmt: skip
    host, encoder = BackboneWorker(settings), TextEncoderWorker(model, None, 1)
    host.load()
    texts = [encoder.encode(prompt) for prompt in (plan.spec.negative_prompt, *row.prompts)]
    thread = threading.Thread(target=host.make_video, args=(asked, *texts))
    thread.start()
    events: list[Any] = []
    while not any(isinstance(event, VideoFinished | VideoFailed) for event in events):
        events += host.news(0.05).events
    thread.join()
    assert isinstance(events[-1], VideoFinished), events
    result = events[-1].result
    manifest.record(maker.finished(row, key, 1, 0.0, result))
    manifest.seal(0)
    return next(iter(Manifest(storage, 1000).read_rows()))


@pytest.mark.slow
def test_a_chain_is_made_longer(model: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, whole = made(tmp_path / "out", prompts, model), made(tmp_path / "whole", prompts, model, LONG)
    assert main(["extend", str(tmp_path / "out"), short.key[:8], "--num-frames", str(LONG), "--json"]) == 0
    longer = ManifestRow.from_json(capsys.readouterr().out)
    assert longer.sha256 == whole.sha256
    assert longer.sha256 != short.sha256
    assert longer.image_sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert main(["extend", str(tmp_path / "out"), short.key[:8], "--num-frames", "63"]) == 2
    assert "a chain of clips makes 21 + 20k frames" in capsys.readouterr().err
    Image.new("RGB", (60, 40), (0, 0, 0)).save(tmp_path / "a.png")
    assert main(["extend", str(tmp_path / "out"), short.key[:8], "--num-frames", "81"]) != 0
    assert "was changed" in capsys.readouterr().err


def test_settings_are_compared_from_pictures(model: str, prompts: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(
        '[settings.shot]\nprofile = "svi-shot"\n[settings.again]\nprofile = "svi-2"\n'
        '[[tables]]\nname = "t"\ntitle = "t"\nheader = ["profile"]\ncolumns = ["os"]\n'
        'rows = [{ cells = ["a"], setting = "shot" }, { cells = ["b"], setting = "again" }]\n'
    )
    plan = plan_ablation(str(prompts), str(tmp_path / "out"), config(model), grid=str(grid))
    (line,) = map(json.loads, plan.prompts.decode().splitlines())
    assert line["image"] == str(tmp_path / "a.png")
    for name in plan.samplers:
        run = plan.run_plan(name)
        assert run.spec.clips == plan.samplers[name].clips
    (tmp_path / "elsewhere").mkdir()
    written = tmp_path / "elsewhere" / "prompts.jsonl"
    written.write_bytes(plan.prompts)
    (row,) = make_plan(str(written), str(tmp_path / "x"), config(model)).rows()
    assert isinstance(row, PromptRow)
    assert row.image_sha256 == plan.rows[0].image_sha256
    grid.write_text(grid.read_text().replace("svi-2", "svi-film"))
    with pytest.raises(InputError, match=r"setting 'again' does not make row 0: num_frames 41"):
        plan_ablation(str(prompts), str(tmp_path / "out"), config(model), grid=str(grid))
