"""The package as others get it: built, installed into an empty environment, used outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("miga", "pipeline", "actors", "jobs")
BESIDE = ("pyproject.toml", "README.md", "LICENSE", "requirements.lock", "examples")

pytestmark = pytest.mark.slow


def files_of_the_project() -> set[str]:
    """What the packages hold in the checkout, links followed."""
    found = set()
    for package in PACKAGES:
        for folder, folders, names in os.walk(ROOT / package, followlinks=True):
            folders[:] = [name for name in folders if name != "__pycache__"]
            found |= {Path(folder, name).relative_to(ROOT).as_posix() for name in names if not name.endswith(".pyc")}
    return found


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel made from it, by suffix."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, *BESIDE):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out, env=clean_environment())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {"".join(path.suffixes[-1:]): path for path in out.iterdir()}


@pytest.fixture(scope="session")
def python(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a new environment with the wheel, and with the packages that it needs, which nobody downloads here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    program = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(program), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, str(built[".whl"])], check=True, env=clean_environment(), cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return program


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def miga(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as it was installed, in a folder that is no checkout."""
    command = [str(python.with_name("miga")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=clean_environment())


def test_all_files_are_in_the_wheel(built: dict[str, Path]) -> None:
    """And nothing else: no tests, no caches."""
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name and not name.endswith("/")}
        assert names == files_of_the_project()
        for name in names:
            assert wheel.read(name) == (ROOT / name).read_bytes(), name
        about = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Version: {project['version']}" in about
    required = [line for line in about.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert len(required) == len(project["dependencies"])


def test_the_sdist_holds_them_as_files(built: dict[str, Path]) -> None:
    with tarfile.open(built[".gz"]) as sdist:
        members = {member.name.partition("/")[2]: member for member in sdist.getmembers()}
    assert files_of_the_project() | {"pyproject.toml", "README.md", "LICENSE"} <= members.keys()
    assert all(members[name].isreg() for name in files_of_the_project())


def test_it_is_the_installed_one(python: Path, tmp_path: Path) -> None:
    program = "import miga, pipeline, actors, jobs; print(*(m.__file__ for m in (miga, pipeline, actors, jobs)))"
    done = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, env=clean_environment()
    )
    for file in done.stdout.split():
        assert Path(file).is_relative_to(python.parent.parent)


def test_every_command_helps(python: Path, tmp_path: Path) -> None:
    from jobs.cli import COMMANDS

    assert miga(python, tmp_path, "--help").returncode == 0
    assert (
        miga(python, tmp_path, "--version").stdout.strip()
        == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    )
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        done = miga(python, tmp_path, name, "--help")
        assert done.returncode == 0, done.stderr
        assert f"usage: miga {name}" in done.stdout


def test_shipped_configs_and_schema(python: Path, tmp_path: Path) -> None:
    listed = json.loads(miga(python, tmp_path, "config", "list", "--json").stdout)
    assert {"demo", "wan", "wan-distilled"} <= listed.keys()
    for path in listed.values():
        assert Path(path).is_relative_to(python.parent.parent)
    (tmp_path / "p.txt").write_text("a cat\n")
    done = miga(python, tmp_path, "generate", "p.txt", "out", "--config", "wan", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["network_calls"] == 255
    schema = json.loads(miga(python, tmp_path, "config", "schema").stdout)
    assert "num_steps" in schema["properties"]["sampler"]["properties"]
    drawn = miga(python, tmp_path, "plan", "--out", "plan.html")
    assert drawn.returncode == 0, drawn.stderr


def test_the_versions_that_it_is_tested_with_are_known(python: Path, tmp_path: Path) -> None:
    program = (
        "from jobs.doctor.packages import check_packages, LOCK, PYPROJECT\n"
        "print(LOCK.is_file(), PYPROJECT.exists(), *(f.name + '=' + f.state for f in check_packages()))"
    )
    done = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, env=clean_environment()
    )
    lock, project, packages, against = done.stdout.split()
    assert (lock, project, packages) == ("True", "False", "packages=ok")
    assert against in ("lock=ok", "lock=note")


@pytest.mark.ray
def test_doctor_finds_nothing_wrong(python: Path, tmp_path: Path) -> None:
    done = miga(python, tmp_path, "doctor", "out", "--model", "sprites")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "nothing is wrong"
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_the_demo_runs_from_it(python: Path, tmp_path: Path) -> None:
    """Templates, embedded model, config and prompts are all there."""
    done = miga(python, tmp_path, "demo", "out", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["ok"], summary["videos"]) == (5, 5)
    assert len(list((tmp_path / "out" / "video").rglob("*.mp4"))) == 5
    page = Path(summary["report"]).read_text()
    assert "<html" in page
    assert page.count(".mp4") >= 5
    scores = {figure["measure"]: figure["count"] for figure in summary["evaluation"]["measures"]}
    assert (scores["temporal_flickering"], scores["sprites.all_right"]) == (5, 5)
    assert '"scored":"sprites.all_right"' in page
    verified = miga(python, tmp_path, "verify", "out", "--trust")
    assert verified.returncode == 0, verified.stdout
