"""`miga sample`: one video of one prompt, without Ray."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs.sampling.make as sampling
from jobs.shared.run_config import read_config
from miga.errors import NonFiniteError
from miga.long_video import LongVideoPipeline
from pipeline.video import count_frames, read_form, read_frames
from tests.cli import run
from tests.pace import paced

PROMPT = "a red circle moving side to side on a grey ground"
QUICK = ("--num-frames", "37", "--set", "sampler.num_steps=8", "--set", "sampler.guidance_scale=1.0")
"""Three seconds of network calls for the embedded model."""


def sample(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return run(capsys, "sample", *arguments)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads weights fails."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(sampling, "load_backbone", refuse)


@pytest.mark.slow
def test_it_is_the_video_of_the_python_api(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path
) -> None:
    """As far as a codec keeps frames, which with these settings is exactly."""
    out = tmp_path / "new" / "folder" / "video.mp4"
    lossless = ("--set", "video.codec=libx264rgb", "--set", "video.crf=0", "--set", "video.pixel_format=rgb24")
    status, text, message = sample(capsys, PROMPT, out, "--model", tiny_model, "--seed", 3, "--json", *lossless)
    assert status == 0, message
    assert "Loading weights" not in message
    made = json.loads(text)
    video = LongVideoPipeline.from_pretrained(str(tiny_model))(PROMPT, seed=3)
    assert (made["num_frames"], made["network_calls"]) == (len(video.pixels), video.num_calls)
    assert (made["width"], made["height"], made["fps"], made["seed"]) == (32, 32, video.fps, 3)
    np.testing.assert_array_equal(np.stack(list(read_frames(out))), video.pixels)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == made["sha256"]
    assert [path.name for path in out.parent.iterdir()] == ["video.mp4"]


@pytest.mark.slow
def test_what_it_says(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "video.mp4"
    status, text, message = sample(capsys, PROMPT, out, "--model", tiny_model, "--num-frames", 61, "--profile", "paper")
    assert status == 0
    assert "61 frames" in text
    assert text.splitlines()[-1] == f"video: {out}"
    assert "encoding the prompt" in message
    assert "\r" not in message  # no bar in a pipe
    assert count_frames(out) == 61
    assert read_form(out) == (8.0, 32, 32)
    again = sample(capsys, PROMPT, out, "--model", tiny_model, "--num-frames", 61, "--overwrite", "--quiet")
    assert (again[0], again[2]) == (0, "")


@pytest.mark.slow
def test_a_terminal_has_a_bar(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    status, text, _ = sample(capsys, PROMPT, tmp_path / "x.mp4", "--model", tiny_model, "--json")
    assert status == 0
    calls = json.loads(text)["network_calls"]
    assert f"0/{calls} [" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", quiet := Terminal())
    sample(capsys, PROMPT, tmp_path / "y.mp4", "--model", tiny_model, "--json", "--quiet")
    assert f"0/{calls} [" not in quiet.getvalue()


@pytest.mark.slow
def test_the_negative_prompt_steers(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path) -> None:
    digests = set()
    for name, options in {"a": (), "b": ("--negative-prompt", "blur"), "c": ("--negative-prompt", "")}.items():
        status, text, _ = sample(capsys, PROMPT, tmp_path / f"{name}.mp4", "--model", tiny_model, "--json", *options)
        assert status == 0
        digests.add(json.loads(text)["sha256"])
    assert len(digests) == 2  # this model's own negative prompt is empty


@pytest.mark.parametrize(
    ("prompt", "out", "options", "named"),
    [
        (" ", "x.mp4", (), "the prompt is blank"),
        ("word " * 3000, "x.mp4", (), "fewer words"),
        (PROMPT, "x.mov", (), "no name of a video"),
        (PROMPT, "x", (), "such as out.mp4"),
        (PROMPT, "folder", (), "no name of a video"),
        (PROMPT, "folder.mp4", (), "folder.mp4 is there already"),
        (PROMPT, "there.mp4", (), "--overwrite"),
        (PROMPT, "there.mp4/x.mp4", (), "there.mp4 is no folder"),
        (PROMPT, "s3://bucket/x.mp4", (), "no local file"),
        (PROMPT, "x\0.mp4", (), "no name of a video"),
        (PROMPT, f"{'x' * 300}.mp4", (), "x.mp4"),
        (PROMPT, "x.mp4", ("--num-frames", 60), "57 or 61"),
        (PROMPT, "x.mp4", ("--seed", -1), "seed"),
        (PROMPT, "x.mp4", ("--seed", 2**64), "seed"),
        (PROMPT, "x.mp4", ("--profile", "papper"), "did you mean 'paper'"),
        (PROMPT, "x.mp4", ("--model", "no-such-model"), "no-such-model"),
        (PROMPT, "x.mp4", ("--height", 33), "height 33 is no multiple of 16"),
        (PROMPT, "x.mp4", ("--lora", "nowhere.safetensors"), "nowhere.safetensors"),
        (PROMPT, "x.mp4", ("--device", "cuda:99"), "there is no device 'cuda:99'"),
        (PROMPT, "x.mp4", ("--set", "video.codec=h999"), "h999"),
        (PROMPT, "x.mp4", ("--set", "sampler.zigzag_width=3"), "zigzag_width"),
        ("prompts.txt", "x.mp4", (), "miga generate prompts.txt x"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_weights")
def test_what_cannot_be_is_refused_before_weights_are_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path,
    prompt: str, out: str, options: tuple[object, ...], named: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.mp4").write_text("mine")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    before = sorted(tmp_path.rglob("*"))
    model = () if "--model" in options else ("--model", tiny_model)
    status, text, message = sample(capsys, prompt, out, *model, *options)
    assert (status, text) == (2, ""), message
    assert named in message
    assert message.startswith("miga: ")
    assert "hint: " in message
    assert "unexpected" not in message
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.mp4").read_text() == "mine"


@pytest.mark.usefixtures("no_weights")
def test_broken_weights_are_found_before(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(tiny_model, broken)
    (file,) = (broken / "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    status, _, message = sample(capsys, PROMPT, tmp_path / "x.mp4", "--model", broken)
    assert status == 2
    assert file.name in message


@pytest.mark.slow
def test_a_video_that_fails_leaves_no_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even after its first frames."""
    whole = sampling.make_video

    def fails(*arguments: Any, **options: Any) -> Any:
        for number, step in enumerate(whole(*arguments, **options)):
            yield step
            if step.frames is not None and number > 2:
                raise NonFiniteError("the network returned NaN")

    monkeypatch.setattr(sampling, "make_video", fails)
    status, _, message = sample(capsys, PROMPT, tmp_path / "x.mp4", "--model", tiny_model)
    assert status == 1
    assert "NaN" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_is_stopped_leaves_no_file(tmp_path: Path, tiny_model: Path, number: signal.Signals) -> None:
    out = tmp_path / "x.mp4"
    command = [sys.executable, "-m", "jobs.cli", "sample", PROMPT, str(out), "--model", str(tiny_model)]
    process = subprocess.Popen(
        [*command, "--num-frames", "100001"], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    until_s = time.monotonic() + paced(120)
    while not list(tmp_path.iterdir()) and time.monotonic() < until_s:
        time.sleep(0.05)
    partial = [path.name for path in tmp_path.iterdir()]
    process.send_signal(number)
    _, message = process.communicate(timeout=paced(60))
    assert partial
    assert out.name not in partial
    assert process.returncode == 1
    assert f"miga: stopped; {out} was not made" in message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_text_encoder_is_gone_before_the_network_comes(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a machine that holds either of them is enough; and it has its own dtype, on the CPU."""
    loaded: list[Any] = []
    whole = sampling.load_backbone

    def load(name: str, **options: Any) -> Any:
        backbone = whole(name, **options)
        assert all(reference() is None for reference, _ in loaded)
        loaded.append((weakref.ref(backbone), options))
        return backbone

    plan = sampling.plan_sample(
        PROMPT, str(tmp_path / "x.mp4"), read_config(None, ["text_dtype=bfloat16"], model=str(tiny_model))
    )
    monkeypatch.setattr(sampling, "load_backbone", load)
    sampling.make_sample(plan)
    (_, text), (_, network) = loaded
    assert text["components"] == ("text",)
    assert (str(text["dtype"]), text["device"]) == ("torch.bfloat16", "cpu")
    assert network["components"] == ("denoiser", "vae")
    assert str(network["dtype"]) == "torch.float32"


@pytest.mark.slow
def test_calls_are_told_as_they_are_made(tmp_path: Path, tiny_model: Path) -> None:
    plan = sampling.plan_sample(PROMPT, str(tmp_path / "x.mp4"), read_config(None, model=str(tiny_model)))
    told: list[tuple[int, int]] = []
    made = sampling.make_sample(plan, on_calls=lambda done, of: told.append((done, of)))
    done = [calls for calls, _ in told]
    assert done == sorted(done)
    assert told[-1] == (plan.num_calls, plan.num_calls) == (made["network_calls"], made["network_calls"])


@pytest.mark.slow
@pytest.mark.ray
def test_it_is_the_row_of_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Byte for byte: the first row of a prompt file has the run's seed."""
    from pipeline.records.manifest import Manifest
    from pipeline.storage.open import open_storage

    status, text, message = sample(capsys, PROMPT, tmp_path / "x.mp4", *QUICK, "--seed", 11, "--json")
    assert status == 0, message
    (tmp_path / "p.txt").write_text(f"{PROMPT}\n")
    status, _, message = run(
        capsys, "generate", tmp_path / "p.txt", tmp_path / "out", *QUICK, "--seed", 11, "--quiet", "--num-actors", 1
    )
    assert status == 0, message
    (row,) = Manifest(open_storage(str(tmp_path / "out")), 1000).read_rows()
    assert row.sha256 == json.loads(text)["sha256"]


@pytest.mark.slow
def test_it_starts_no_ray(tmp_path: Path, tiny_model: Path) -> None:
    """It does not even import it."""
    program = (
        "import sys\nfrom jobs.cli import main\n"
        "status = main(['sample', 'a cat', sys.argv[1], '--model', sys.argv[2], '--quiet'])\n"
        "print(status, 'ray' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.mp4"), str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
