"""The `miga` command in this process: what it printed, and how it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    """Runs `generate`, which must refuse: exit status 2, one message with a hint, nothing written."""
    before = sorted(out.rglob("*")) if out.exists() else None
    status, _, message = run(capsys, "generate", *arguments)
    assert status == 2, message
    assert message.startswith("miga: ")
    assert "hint: " in message
    assert "Traceback" not in message
    assert (sorted(out.rglob("*")) if out.exists() else None) == before
    return message
