"""What a terminal is given: text that it shows, whatever was in the files, and JSON that stays JSON."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from jobs.cli import main
from pipeline.terminal import escaped, say, show, show_json, show_text

ROOT = Path(__file__).parents[2]
RANGES = (
    (0, 0x20),
    (0x7F, 0xA0),
    (0x200E, 0x2010),
    (0x2028, 0x202F),
    (0x2066, 0x206A),
    (0xD800, 0xD802),
    (0xDFFF, 0xE000),
)
ACTED_ON = ["\u061c", *(chr(code) for start, end in RANGES for code in range(start, end))]
"""Controls, what ends a line, what reorders it, and halves of surrogate pairs."""
SHOWN = "Ausgabe ü, 猫, \U0001f600, e\u0301, \\ and 'quotes'"


@pytest.mark.parametrize("character", ACTED_ON, ids=ascii)
def test_nothing_that_a_terminal_acts_on_is_printed(capsys: pytest.CaptureFixture[str], character: str) -> None:
    text = f"a{character}b"
    show(text)
    show_json({text: [text]})
    say(text.replace("\n", " "))
    out, err = capsys.readouterr()
    plain, document, _ = out.split("\n")
    assert character not in plain + document + err.removesuffix("\n")
    assert plain.startswith("a\\")
    assert json.loads(document) == {text: [text]}


def test_everything_else_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert escaped(SHOWN) == SHOWN
    show_text(f"{SHOWN}\n  {SHOWN}")
    show_json({"a": SHOWN})
    assert capsys.readouterr().out == f"{SHOWN}\n  {SHOWN}\n{json.dumps({'a': SHOWN}, ensure_ascii=False)}\n"


def test_bytes_of_a_path_that_are_not_utf8_are_shown_as_bytes() -> None:
    assert escaped(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"a": [math.inf, -math.inf, math.nan, 1.5], "b": (1, "x")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, None, 1.5], "b": [1, "x"]}


def test_no_text_can_pass_for_another_message(capsys: pytest.CaptureFixture[str]) -> None:
    say("miga: it failed\nmiga: all is well\n  hint: really")
    assert capsys.readouterr().err == "miga: it failed\n  miga: all is well\n  hint: really\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_the_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    for show_value, read in ((show, None), (show_json, json.loads)):
        bytes_ = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(bytes_, encoding=encoding, errors="strict"))
        show_value(SHOWN)
        sys.stdout.flush()
        text = bytes_.getvalue().decode(encoding)
        assert "\\u732b" in text
        if read is not None:
            assert read(text) == SHOWN


def miga(*arguments: str, stdout: IO[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, stdout=stdout, stderr=subprocess.PIPE, check=False)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("command", [["completion", "bash"], ["--help"], ["--version"]])
def test_a_device_that_takes_nothing(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = miga(*command, stdout=full)
    assert (done.returncode, done.stderr) == (1, "miga: cannot print: No space left on device\n")


def test_a_reader_that_has_seen_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = miga("completion", "bash", stdout=closed)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exception_that_nobody_foresaw_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")

    def fail(name: str) -> None:
        raise KeyError(f"\x1b[31mwJalrXUtnFEMI {name}")

    monkeypatch.setattr("miga.backbones.registry.load_spec", fail)
    assert main(["profiles"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("miga: unexpected KeyError: ")
    (file,) = tmp_path.glob("miga-traceback-*.txt")
    assert str(file) in message
    assert "Traceback" not in message
    assert "in fail" in file.read_text()
    assert "wJalrXUtnFEMI" not in message + file.read_text()
    assert "\x1b" not in message
    monkeypatch.setenv("MIGA_TRACEBACK", "1")
    assert main(["profiles"]) == 1
    assert "in fail" in capsys.readouterr().err
    assert list(tmp_path.glob("miga-traceback-*.txt")) == [file]
