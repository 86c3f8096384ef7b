"""What a shell completes, as the shell itself says it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.cli import COMMANDS
from jobs.shared.run_config import shipped_configs
from tests.cli import run

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Path:
    status, text, message = run(capsys, "completion", "bash")
    assert status == 0, message
    file = tmp_path / "completion.sh"
    file.write_text(text)
    return file


def completed(script: Path, *words: str) -> set[str]:
    """What stands in COMPREPLY when the cursor is at the end of the last word, the folder's files among it."""
    program = (
        'source "$1"; shift; COMP_WORDS=(miga "$@"); COMP_CWORD=$#; COMPREPLY=();'
        ' "$(complete -p miga | sed "s/.*-F //; s/ miga$//")"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program, "bash", str(script), *words],
        capture_output=True, text=True, check=True, cwd=script.parent,
    )  # fmt: skip
    assert not done.stderr
    return set(done.stdout.split())


def test_the_script_is_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_the_other_is_zsh(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "_miga").write_text(run(capsys, "completion", "zsh")[1])
    done = subprocess.run(["zsh", "-n", str(tmp_path / "_miga")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_that_of_zsh_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "completion", "zsh")[1]
    assert text.startswith("#compdef miga\n")
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        assert f"\n    {name}:'" in text


def test_commands(script: Path) -> None:
    names = {command.__name__.rpartition(".")[2].replace("_", "-") for command in COMMANDS}
    assert completed(script, "") == names
    assert completed(script, "ge") == {"generate"}
    assert completed(script, "re") == {name for name in names if name.startswith("re")}
    assert completed(script, "config", "s") == {"schema", "show"}


def test_options_and_what_they_take(script: Path) -> None:
    assert completed(script, "generate", "--conf") == {"--config"}
    assert completed(script, "generate", "p.txt", "out", "--dtype", "") == {"auto", "float32", "bfloat16", "float16"}
    assert completed(script, "generate", "p.txt", "out", "--config", "") == {*shipped_configs(), script.name}
    assert completed(script, "generate", "p.txt", "out", "--config", "wan-d") == {"wan-distilled"}
    assert completed(script, "generate", "p.txt", "out", "--set", "video.c") == {"video.codec=", "video.crf="}
    assert completed(script, "export", "out", "to", "--format", "w") == {"webdataset"}


def test_files_and_folders(script: Path) -> None:
    (script.parent / "runs").mkdir()
    assert completed(script, "generate", "") == {script.name, "runs"}
    assert completed(script, "status", "") == {"runs"}
