"""Python, the versions of packages, the machine and its environment: what is looked at without importing anything."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from jobs.doctor.findings import Finding, note, ok, wrong
from pipeline.storage.addresses import without_secrets

DISTRIBUTION: Final = "miga-on-ray"
PACKAGE: Final = Path(__file__).parent.parent
LOCK: Final = PACKAGE / "requirements.lock"
"""The versions that the project is tested with."""
PYPROJECT: Final = PACKAGE.parent / "pyproject.toml"

OLDEST_PYTHON: Final = (3, 11)
LEAST_TEMPORARY_BYTES: Final = 512 << 20
_VARIABLES: Final = (
    "RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONPATH",
    "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
    "GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT",
    "MIGA_STORAGE_PATIENCE_S", "MIGA_S3_PATIENCE_S",
)  # fmt: skip
"""That change what a run does, and hold no secret."""
_MOST_NAMED: Final = 8


def check_python() -> Iterator[Finding]:
    """Whether this Python is new enough, and of 64 bits."""
    found = f"{platform.python_version()} ({platform.machine()}, {platform.system()}) at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON or sys.maxsize < 2**32:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield wrong("python", found, f"make the environment with Python {oldest} or newer, of 64 bits")
    else:
        yield ok("python", found)


def check_packages(lock: Path = LOCK) -> Iterator[Finding]:
    """Whether the packages that this one needs are there, in versions that it takes; and which are not the lock's.

    Args:
        lock: the versions that it is tested with.
    """
    needed = list(_needed())
    missing = [str(requirement) for requirement in needed if _installed(requirement.name) is None]
    unfit = [
        f"{requirement.name} {version} (needs {requirement.specifier})"
        for requirement in needed
        if (version := _installed(requirement.name)) is not None
        and not requirement.specifier.contains(version, prereleases=True)
    ]
    install = f"in a clone: make install; else: {sys.executable} -m pip install --upgrade {DISTRIBUTION}"
    if missing:
        yield wrong("packages", f"not installed: {_few(missing)}", install)
    if unfit:
        yield wrong("packages", f"of another version: {_few(unfit)}", install)
    if not needed:
        yield note("packages", f"what {DISTRIBUTION} needs is not known: it is not installed", "install it with pip")
    elif not missing and not unfit:
        yield ok("packages", f"all {len(needed)} that are needed are there, in versions that fit")
    if lock.is_file():
        yield _against_lock(lock)


def check_machine() -> Iterator[Finding]:
    """Processors, memory, and room for temporary files."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    found = f"{os.cpu_count()} processors, {_memory()}{free / 1e9:.1f} GB free in {folder}"
    if free < LEAST_TEMPORARY_BYTES:
        yield wrong(
            "machine", found, "free some space there, or set TMPDIR to a folder with room: videos are made in it"
        )
    else:
        yield ok("machine", found)


def check_environment() -> Iterator[Finding]:
    """Which variables are set that change what a run does."""
    said = [f"{name}={without_secrets(os.environ[name])}" for name in _VARIABLES if os.environ.get(name)]
    yield ok("environment", ", ".join(said) or "no variable is set that changes what a run does")


def _needed() -> Iterator[Requirement]:
    """What the package requires here, extras aside: of a clone by its pyproject.toml, else as it was installed."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8")).get("project", {}) if PYPROJECT.is_file() else {}
    if project.get("name") == DISTRIBUTION:
        texts = project["dependencies"]
    else:
        try:
            texts = metadata.requires(DISTRIBUTION) or []
        except metadata.PackageNotFoundError:
            texts = []
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _against_lock(lock: Path) -> Finding:
    other = [
        f"{name} {there} (tested: {version})"
        for name, version in _locked(lock)
        if (there := _installed(name)) is not None and not _is_same(there, version)
    ]
    if not other:
        return ok("lock", "the versions that this one is tested with")
    return note(
        "lock",
        f"{len(other)} packages are of other versions than this one is tested with: {_few(other)}",
        f"if something fails: {sys.executable} -m pip install -r {lock}",
    )


def _locked(lock: Path) -> Iterator[tuple[str, str]]:
    for line in lock.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].split(" --")[0].rstrip("\\ ").strip()
        if not text or text.startswith("-"):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        pins = [pin.version for pin in requirement.specifier if pin.operator == "=="]
        if pins and (requirement.marker is None or requirement.marker.evaluate()):
            yield requirement.name, pins[0]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_same(there: str, version: str) -> bool:
    """Whether two versions are one; what a build says behind a "+" (`+cpu`) aside."""
    try:
        return Version(there).public == Version(version).public
    except InvalidVersion:
        return there == version


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return f"{kib['MemAvailable'] * 1024 / 1e9:.1f} of {kib['MemTotal'] * 1024 / 1e9:.1f} GB of memory free, "
    except (OSError, KeyError, ValueError, IndexError):
        return ""


def _few(texts: list[str]) -> str:
    left = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f" and {left} more" if left > 0 else "")
