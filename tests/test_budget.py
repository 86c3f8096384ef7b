"""The plugin that runs as many tests as fit, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pace import paced

ROOT = Path(__file__).parents[1]
FILES = {
    "test_a.py": "def test_1():\n    pass\n",
    "z/test_b.py": "import pathlib\ndef test_2():\n    pathlib.Path('ran-2').touch()\ndef test_3():\n    {third}\n",
}


def run(folder: Path, *options: str, third: str = "pass", budget_s: float = 600.0) -> subprocess.CompletedProcess[str]:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content.replace("{third}", third))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.budget", *options]
    return subprocess.run(
        [*command, "--budget-s", str(budget_s), "--rootdir", str(folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=paced(120),
    )


@pytest.mark.slow
def test_a_budget_that_is_enough_changes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("3 passed in ")
    assert "not run" not in done.stdout


@pytest.mark.slow
def test_what_does_not_fit_is_named_and_is_no_failure(tmp_path: Path) -> None:
    """The first test uses it up, so nothing after it is begun."""
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def used_up(request):\n"
        "    yield\n"
        "    request.config.pluginmanager.get_plugin('budget-of-tests')._end_s = 0.0\n"
    )
    done = run(tmp_path, "--first", "z")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("1 passed, 2 deselected in ")
    assert "not run: 2 (600 s were used up)" in done.stdout
    assert [line for line in lines if line.startswith("not run: ")] == [
        "not run: z/test_b.py::test_3",
        "not run: test_a.py::test_1",
    ]
    assert (tmp_path / "ran-2").exists()


@pytest.mark.slow
def test_a_failure_is_one(tmp_path: Path) -> None:
    done = run(tmp_path, "--first", "z", third="assert False")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("1 failed, 2 passed in ")


@pytest.mark.slow
@pytest.mark.parametrize(("options", "order"), [((), "test_a.py z"), (("--first", "z"), "z test_a.py")])
def test_a_folder_comes_first(options: tuple[str, ...], order: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--collect-only", *options)
    names = [line.split("::")[0].split("/")[0] for line in done.stdout.splitlines() if "::" in line]
    assert list(dict.fromkeys(names)) == order.split()
