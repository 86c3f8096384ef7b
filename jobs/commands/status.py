"""`miga status`: how far a run is."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from pipeline.figures import count, duration, rate, share, size
from pipeline.terminal import escaped, show, show_json

WATCH_S: Final = 5.0
_OVER: Final = ("finished", "stopped", "not started")

GROUP: Final = "look at a run"
EXAMPLES: Final = ("miga status out/", "miga status s3://bucket/run --watch")


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "how far a run is, whether it is running, and when it will be done: read from OUT alone"
    status = commands.add_parser("status", help="how far a run is", description=text)
    status.add_argument("out", metavar="OUT", help="of the run; a folder, or s3://, gs:// or az://bucket/prefix")
    status.add_argument("--json", action="store_true", help="print for machines")
    status.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_S,
        metavar="SECONDS",
        help=f"look again every so often (default {WATCH_S:g} s), until the run ends",
    )
    status.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.run.status import RunStatus
    from miga.errors import UsageError

    if options.watch is not None and not options.watch > 0:
        raise UsageError(f"--watch is {options.watch:g}", "say every how many seconds to look, such as --watch 5")
    run = RunStatus(options.out)
    if options.watch is None:
        found = run.look()
        show_json(found) if options.json else show(*lines(found))
    else:
        _watch(run, options.watch, options.json)
    return 0


def _watch(run: Any, every_s: float, as_json: bool) -> None:
    """Looks until the run is over. On a terminal one picture that changes; elsewhere a line for each change."""
    is_live = not as_json and sys.stdout is not None and sys.stdout.isatty()
    last = ""
    drawn = 0
    for found in _looks(run, every_s):
        if as_json:
            show_json(found)
        elif is_live:
            text = lines(found)
            _draw(text, drawn)
            drawn = len(text)
        elif (line := one_line(found)) != last:
            show(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
            last = line


def _looks(run: Any, every_s: float) -> Iterator[dict[str, Any]]:
    while True:
        found = run.look()
        yield found
        if found["state"] in _OVER:
            return
        time.sleep(every_s)


def _draw(text: list[str], num_before: int) -> None:
    """Writes the lines over those written before, each cut to the terminal's width."""
    import shutil

    width = max(20, shutil.get_terminal_size().columns) - 1
    up = f"\x1b[{num_before}A" if num_before else ""
    sys.stdout.write(up + "\x1b[J")
    sys.stdout.flush()
    show(*(line if len(line) <= width else line[: width - 1] + "…" for line in map(escaped, text)))


def one_line(found: dict[str, Any]) -> str:
    """The state of a run in one line, for a log."""
    parts = [found["state"], _videos(found)]
    if found["calls"]:
        parts.append(f"{share(found['calls_done'] or 0, found['calls'])} of {count(found['calls'])} calls")
    parts += [f"{text} left" if name == "time left" else text for name, text in _speed(found)]
    return ", ".join(parts)


def lines(found: dict[str, Any]) -> list[str]:
    """The state of a run for people, a line for each thing to know."""
    table = [("run", found["out"]), ("state", _state(found)), ("videos", _videos(found))]
    if found["calls"]:
        done = found["calls_done"] or 0
        table.append(("calls", f"{count(done)} of {count(found['calls'])} ({share(done, found['calls'])})"))
    table += _speed(found)
    if found["failed"]:
        reasons = ", ".join(f"{number:,} {kind}" for kind, number in found["failed_by_reason"].items())
        table.append(("quarantined", f"{reasons}; which, why, what to do: miga failures {found['out']}"))
    if found["ok"]:
        made = f"{count(found['frames'])} frames, {duration(found['video_seconds'])} of video, {size(found['bytes'])}"
        calls = f"{count(found['network_calls'])} calls of the network"
        searches = f", {count(found['searches'])} searches" if found["searches"] else ""
        table.append(("made", f"{made}, in {calls}{searches}"))
    table += [("model", f"{found['model']}, profile {found['profile']}"), ("prompts", found["prompts"])]
    return [f"{name:<12} {text}" for name, text in table]


def _videos(found: dict[str, Any]) -> str:
    rows = found["rows"]
    of = "" if rows is None else f" of {count(rows)}"
    percent = "" if rows is None else f" ({share(found['settled'], rows)})"
    failed = f": {count(found['ok'])} made, {count(found['failed'])} quarantined" if found["failed"] else ""
    return f"{count(found['settled'])}{of} videos{percent}{failed}"


def _speed(found: dict[str, Any]) -> list[tuple[str, str]]:
    if found["state"] != "running":
        return []
    table: list[tuple[str, str]] = []
    parts = []
    if found["videos_per_hour"]:
        parts.append(rate(found["videos_per_hour"] / 3600, "videos"))
    if found["gpus"]:
        parts.append(f"{count(found['gpus_busy'] or 0)} of {count(found['gpus'])} GPUs busy")
    if parts:
        table.append(("speed", ", ".join(parts)))
    if found["left_s"] is not None:
        table.append(("time left", duration(found["left_s"])))
    return table


def _state(found: dict[str, Any]) -> str:
    """What a run does, and who says so."""
    state = found["state"]
    if state == "not started":
        return "not started: nobody has written here yet"
    who = "an unknown process" if found["host"] is None else f"process {found['pid']} on {found['host']}"
    since = f" since {_when(found['started_at'])}" if found["started_at"] else ""
    beat = "no beat yet" if found["last_beat_s"] is None else f"last beat {duration(found['last_beat_s'])} ago"
    if state == "running":
        doing = ": " + ", ".join(found["doing"]) if found["doing"] else ""
        command = f", miga {found['command']}" if found["command"] else ""
        return f"running{doing} ({who}{command}{since}; {beat})"
    if state == "silent":
        return f"silent: {who} has not ended, and does not beat ({beat}); if it is dead, the same command goes on"
    if state == "stopped":
        return f"stopped ({who}{since}; {beat}); the same command goes on"
    return f"finished ({beat})"


def _when(text: str) -> str:
    """A time of the lease in this machine's time zone; as it is where it is none."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    except ValueError:
        return text
