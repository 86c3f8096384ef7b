"""Credentials that stand in an address are refused before anything is written or printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main

SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    ("prompts", "out"),
    [
        (f"s3://AKIA:{SECRET}@bucket/p.jsonl", "out"),
        (f"https://host/p.jsonl?X-Amz-Signature={SECRET}", "out"),
        ("p.txt", f"s3://AKIA:{SECRET}@bucket/run"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "ablate"])
def test_addresses_with_credentials_are_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompts: str,
    out: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red circle\n")
    status = main([command, prompts, out, "--model", "sprites", "--num-actors", "1"])
    said = "".join(capsys.readouterr())
    assert status == 2
    assert "AWS_ACCESS_KEY_ID" in said, "what to do instead"
    assert SECRET not in said
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]


@pytest.mark.parametrize("command", [["status"], ["verify"], ["gc"], ["retry-failed"], ["report"], ["export", "x"]])
def test_so_do_the_other_commands(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([command[0], f"s3://AKIA:{SECRET}@bucket/run", *command[1:]]) == 2
    said = "".join(capsys.readouterr())
    assert "AWS_ACCESS_KEY_ID" in said
    assert SECRET not in said
