"""Commands on somebody else's OUT: no code of it is run, and nobody asked for its prompts, unless the user says so."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.run.plan import make_plan, run_record
from miga.errors import UsageError
from pipeline.config import RunConfig
from pipeline.records.run_folder import open_run
from pipeline.storage.open import open_storage
from pipeline.upkeep.trust import check_model, prompts_of
from tests.cli import run

MODEL = "simulated:wan?call_s=0&decode_s=0"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    plan = make_plan(str(tmp_path / "prompts.txt"), str(tmp_path / "out"), RunConfig(model=MODEL))
    open_run(open_storage(plan.out), run_record(plan))
    return tmp_path / "out"


def rewrite(out: Path, **config: Any) -> None:
    """What run.json says of the run's config; `prompts` is the path of its prompt file."""
    record = json.loads((out / "run.json").read_text())
    record["prompts"]["path"] = config.pop("prompts", record["prompts"]["path"])
    record["config"] |= config
    (out / "run.json").write_text(json.dumps(record))


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark where it is imported; returns the mark."""
    mark = tmp_path / "it-was-run"
    (tmp_path / "planted.py").write_text(
        f"open({str(mark)!r}, 'w')\ndef load(**options): raise ValueError('planted')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return mark


@pytest.mark.parametrize("command", [["retry-failed"], ["extend", "abcd", "--num-frames", "161"]])
def test_code_that_out_names_is_not_run(
    capsys: pytest.CaptureFixture[str], out: Path, code: Path, command: list[str]
) -> None:
    rewrite(out, model="planted:load")
    for others in ("status", "gc", "verify"):
        run(capsys, others, out)
    status, _, message = run(capsys, command[0], out, *command[1:])
    assert status == 2
    assert not code.exists()
    if command == ["retry-failed"]:
        assert "'planted:load': it is code" in message
        assert "--model" in message
        assert "--trust" in message


def test_code_is_run_where_the_user_names_it_or_trusts_out() -> None:
    config = RunConfig(model="planted:load")
    with pytest.raises(UsageError, match="it is code"):
        check_model(config, "out")
    check_model(config, "out", named="planted:load")
    check_model(config, "out", is_trusted=True)


@pytest.mark.parametrize(
    ("config", "is_taken"),
    [
        (RunConfig(), True),
        (RunConfig(model=MODEL), True),
        (RunConfig(model="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), True),
        (RunConfig(model="/nowhere/model"), True),  # refused later: it is not there
        (RunConfig(model=f"{MODEL}&marks=/tmp"), False),
        (RunConfig(model="somebody/model"), False),
        (RunConfig(lora=("somebody/lora",)), False),
        (RunConfig(lora=("somebody/lora/file.safetensors:0.5",)), False),
        (RunConfig(lora=(__file__,)), True),
        (RunConfig(attention="sage_hub"), False),
        (RunConfig(attention="_flash_3_hub"), False),
        (RunConfig(attention="flash"), True),
    ],
)
def test_what_a_record_may_name_unasked(config: RunConfig, is_taken: bool) -> None:
    check_model(config, "out", is_trusted=True)
    if is_taken:
        check_model(config, "out")
    else:
        with pytest.raises(UsageError) as caught:
            check_model(config, "out")
        assert "--trust" in caught.value.hint


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server: its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/prompts.txt", asked
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("command", ["verify", "retry-failed"])
def test_nobody_is_asked_for_the_prompts(
    capsys: pytest.CaptureFixture[str], out: Path, server: tuple[str, list[str]], command: str
) -> None:
    address, asked = server
    for path in (address, f"simplecache::{address}"):
        rewrite(out, prompts=path)
        status, _, message = run(capsys, command, out)
        assert status == 2
        assert path in message
        assert "--prompts" in message
        assert asked == []
    status, _, message = run(capsys, command, out, "--prompts", out.with_name("prompts.txt"))
    assert asked == []
    rewrite(out, prompts=address)
    run(capsys, command, out, "--trust")
    assert asked


@pytest.mark.parametrize(
    ("recorded", "root", "is_taken"),
    [
        ("/data/prompts.txt", "/data/out", True),
        ("/data/prompts.txt", "s3://bucket/out", True),
        ("s3://bucket/prompts.txt", "s3://bucket/out", True),
        ("s3://other/prompts.txt", "s3://bucket/out", False),
        ("s3://bucket2/prompts.txt", "s3://bucket/out", False),
        ("s3://bucket/prompts.txt", "/data/out", False),
        ("https://host/prompts.txt", "/data/out", False),
        ("https://host/prompts.txt", "s3://bucket/out", False),
        ("zip://x.jsonl::s3://bucket/x.zip", "s3://bucket/out", False),
        ("s3://bucket/x::https://host/y", "s3://bucket/out", False),
        ("simplecache::https://host/x", "/data/out", False),
        ("/dev/zero", "/data/out", False),
    ],
)
def test_which_prompt_files_are_read_unasked(recorded: str, root: str, is_taken: bool) -> None:
    assert prompts_of(recorded, root, named="mine.txt") == "mine.txt"
    if is_taken:
        assert prompts_of(recorded, root) == recorded
    else:
        with pytest.raises(UsageError) as caught:
            prompts_of(recorded, root)
        assert "--prompts" in caught.value.hint


def test_a_pipe_in_the_place_of_the_prompts_is_not_waited_for(
    capsys: pytest.CaptureFixture[str], out: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    rewrite(out, prompts=str(tmp_path / "pipe.txt"))
    for options in ((), ("--trust",)):
        status, _, message = run(capsys, "verify", out, *options)
        assert status == 2
        assert "no file" in message


def test_another_model_than_the_runs_is_refused(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    status, _, message = run(capsys, "retry-failed", out, "--model", "sprites")
    assert status == 2
    assert MODEL in message
