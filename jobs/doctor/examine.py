"""All checks in turn. Whatever a library does, there is a finding for each: none hangs, and none ends this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from jobs.doctor.findings import Finding, wrong
from jobs.doctor.packages import check_environment, check_machine, check_packages, check_python
from pipeline.storage.addresses import without_secrets
from pipeline.storage.bucket import PATIENCE_VARIABLES

LIMITS_S: Final = {"imports": 180.0, "gpu": 120.0, "ffmpeg": 120.0, "ray": 300.0, "storage": 90.0, "weights": 1800.0}
"""How long a check may take."""
STORAGE_PATIENCE_S: Final = 20.0
GRACE_S: Final = 15.0
"""For a check that has taken too long, to end in order; it is killed then."""
_LOG_BYTES: Final = 2000

ROOT: Final = Path(__file__).parent.parent.parent
_START: Final = (
    "import importlib, sys; sys.path.append(sys.argv[1]); "
    "sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))"
)
"""With -P, so that a folder `jobs` where the user stands is not taken for ours."""


def examine(
    out: str | None = None,
    *,
    model: str | None = None,
    revision: str | None = None,
    address: str | None = None,
    limit_s: float | None = None,
) -> Iterator[Finding]:
    """Looks at everything, and says each thing as it is found.

    Args:
        out: where a run is to go; None: storage is not looked at.
        model: whose weights are looked at; None: none.
        revision: of a hub name.
        address: of a Ray cluster; None: as a run.
        limit_s: seconds that a check may take; None: what is usual for it.
    """
    for looked in (check_python, check_packages, check_machine, check_environment):
        yield from _in_this_process(looked)
    checks: list[tuple[str, list[Any]]] = [("imports", []), ("gpu", []), ("ffmpeg", []), ("ray", [address])]
    checks += [("storage", [out])] if out is not None else []
    checks += [("weights", [model, revision])] if model is not None else []
    for name, arguments in checks:
        yield from run_check(name, arguments, LIMITS_S[name] if limit_s is None else limit_s)


def _in_this_process(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # such as an installation whose records are broken
        name = check.__name__.removeprefix("check_")
        text = without_secrets(str(error).splitlines()[0] if str(error) else "no message")
        return [wrong(name, f"could not be looked at: {type(error).__name__}: {text}", "install the packages again")]


def run_check(name: str, arguments: list[Any], limit_s: float, module: str = "jobs.doctor.checks") -> list[Finding]:
    """What a check says, run in a process of its own.

    Args:
        name: of the check.
        arguments: for it.
        limit_s: seconds that it may take.
        module: whose `main` runs it.
    """
    with tempfile.TemporaryDirectory(prefix="miga-doctor-", ignore_cleanup_errors=True) as folder:
        said, log = Path(folder, "said"), Path(folder, "log")
        command = [sys.executable, "-P", "-c", _START, str(ROOT), module, name, str(said)]
        command += [json.dumps(value) for value in arguments]
        with log.open("wb") as printed:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                env=_environment(),
                start_new_session=True,
            )
        try:
            is_over = _wait(process, limit_s)
        finally:
            _end(process)
        findings, doing = _read(said)
        if not is_over:
            text = f"no answer within {limit_s:g} s" + (f" while {doing}" if doing else "")
            findings.append(wrong(name, text, _remedy(name)))
        elif process.returncode:
            ended = _how(process.returncode) + (f" while {doing}" if doing else "")
            findings.append(wrong(name, f"{ended}: {_last_line(log)}", _remedy(name)))
        elif not findings:
            findings.append(wrong(name, "the check said nothing", "please report this"))
        return findings


def _environment() -> dict[str, str]:
    """Of a check: with less patience for storage, unless the user says how much."""
    if any(name in os.environ for name in PATIENCE_VARIABLES):
        return dict(os.environ)
    return {PATIENCE_VARIABLES[0]: f"{STORAGE_PATIENCE_S:g}"} | os.environ


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, in order if it can, and all of its group; one that cannot even be killed is left alone."""
    if process.poll() is None:
        with suppress(OSError):
            process.terminate()
        _wait(process, GRACE_S)
    with suppress(OSError):  # whatever it has started
        os.killpg(process.pid, signal.SIGKILL)
    _wait(process, GRACE_S)


def _read(said: Path) -> tuple[list[Finding], str]:
    """The findings so far, and what was being done last."""
    findings, doing = [], ""
    with suppress(OSError):
        for line in said.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):  # the last line of a process that was killed
                values = json.loads(line)
                doing = values.get("doing", doing)
                if "finding" in values:
                    findings.append(Finding(**values["finding"]))
    return findings, doing


def _how(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    try:
        return f"its process was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"its process was killed by signal {-status}"


def _last_line(log: Path) -> str:
    with suppress(OSError):
        text = log.read_bytes()[-_LOG_BYTES:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return without_secrets(lines[-1])[:300]
    return "it printed nothing"


def _remedy(name: str) -> str:
    return {
        "imports": "install the packages again, in a new environment",
        "gpu": "run nvidia-smi: if that fails too, restart the driver; CUDA_VISIBLE_DEVICES='' goes without a GPU",
        "ffmpeg": "install imageio-ffmpeg again, or set IMAGEIO_FFMPEG_EXE to an ffmpeg that runs",
        "ray": "look for memory, room in RAY_TMPDIR and a firewall on loopback; of a cluster: check the address",
        "storage": "check disk, mount or network, and that OUT's server answers",
        "weights": "check the disk or the network; --limit-s gives it more time",
    }.get(name, "try again")
