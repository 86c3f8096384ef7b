"""The tables of `evaluation.md` that `make figures` makes anew: three profiles of the embedded model, side by side.

Each step is a command that a user would write; it is printed, and not repeated where it is done already. The tables go
between two marks of the page, the picture beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parent
PAGE: Final = DOCS / "evaluation.md"
PICTURE: Final = DOCS / "evaluation" / "compare.png"
MARKS: Final = "<!-- made by `make figures` -->", "<!-- until here -->"
PROFILES: Final = ("paper", "fifo", "swift")
COMPARED: Final = (
    *("sprites.all_right", "sprites.motion", "sprites.residual", "sprites.right_drift"),
    *("temporal_flickering", "temporal_flickering, start-end contrast", "sampler_consistency", "network_calls"),
)


def main() -> None:
    """Makes what is missing, and writes tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the runs; running again goes on there")
    parser.add_argument("--prompts", type=int, default=8, help="of examples/held_out.jsonl (default: 8)")
    parser.add_argument("--profiles", nargs="+", default=PROFILES, help="the others are compared with the first")
    parser.add_argument("--frames", type=int, default=133, help="of a video (default: 133)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prompts = (DOCS.parent / "examples" / "held_out.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (options.out / "prompts.jsonl").write_text("".join(prompts[: options.prompts]), encoding="utf-8")
    steps = list(commands(Path("OUT"), options.profiles, options.frames))
    done = [miga(*step) for step in commands(options.out, options.profiles, options.frames)]
    evaluated = {profile: done[2 * at + 1] for at, profile in enumerate(options.profiles)}
    take_picture(options.out / "compared" / "compare.html", PICTURE)
    write(text_of(steps, evaluated, done[-1], options.prompts, options.frames))


def commands(out: Path, profiles: Sequence[str], num_frames: int) -> Iterator[tuple[str, ...]]:
    """What is run: for each profile its videos and their evaluation, and then the comparison."""
    for profile in profiles:
        run = str(out / profile)
        yield "generate", str(out / "prompts.jsonl"), run, "--profile", profile, "--num-frames", str(num_frames)
        yield "evaluate", run
    runs = [str(out / profile) for profile in profiles]
    yield "compare", *runs, "--to", str(out / "compared"), "--metrics", *COMPARED


def miga(*arguments: str) -> dict[str, Any]:
    """Runs `miga` with these arguments; what it says in JSON."""
    print("miga", *arguments, flush=True)
    command = [sys.executable, "-m", "jobs.cli", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"miga {shlex.join(arguments)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def text_of(
    steps: Sequence[Sequence[str]],
    evaluated: dict[str, dict[str, Any]],
    compared: dict[str, Any],
    num_prompts: int,
    num_frames: int,
) -> str:
    """Commands, tables and picture as Markdown."""
    lines = [f"head -n {num_prompts} examples/held_out.jsonl > OUT/prompts.jsonl"]
    lines += [f"miga {shlex.join(step)}" for step in steps]
    parts = [
        "```text\n" + "\n".join(lines) + "\n```",
        f"{num_prompts} held-out prompts, a video of {num_frames} frames each. Means by `miga evaluate`, with "
        "95 % over videos:",
        evaluation_table(evaluated),
        f"By `miga compare`, {compared['pairs']} pairs: difference from `{compared['systems'][0]}` within pairs, with "
        "95 % over prompts:",
        comparison_table(compared),
        "![The page of miga compare: a pair side by side](evaluation/compare.png)",
    ]
    return "\n\n".join(parts)


def evaluation_table(evaluated: dict[str, dict[str, Any]]) -> str:
    """A line a metric, a column a profile."""
    by = {profile: {figure["measure"]: figure for figure in found["measures"]} for profile, found in evaluated.items()}
    names = list(dict.fromkeys(name for figures in by.values() for name in figures))
    lines = [["metric", *(f"`{profile}`" for profile in by)]]
    for name in names:
        figures = [figures.get(name) for figures in by.values()]
        cells = [
            "–" if each is None or not each["count"] else interval(each["mean"], *each["interval"]) for each in figures
        ]
        lines.append([f"`{name}`", *cells])
    return markdown(lines)


def comparison_table(compared: dict[str, Any]) -> str:
    """A line a metric and profile."""
    lines = [["metric", "profile", "mean", "difference", "verdict"]]
    for each in compared["differences"]:
        difference = interval(*each["difference"], sign="+")
        mean = f"{each['mean'][0]:.4g}"
        lines.append([f"`{each['metric']}`", f"`{each['system']}`", mean, difference, each["verdict"]])
    return markdown(lines)


def interval(mean: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """A number with its interval."""
    if mean is None:
        return "–"
    known = low is not None and high is not None
    return f"{mean:{sign}.4g}" + (f" [{low:{sign}.4g}, {high:{sign}.4g}]" if known else "")


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its head."""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def take_picture(page: Path, to: Path) -> None:
    """The page in a browser, with its first pairs standing still after half a second."""
    import shutil

    from playwright.sync_api import sync_playwright

    to.parent.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1100, "height": 900})
        view.goto(page.resolve().as_uri())
        view.wait_for_selector("#pairs video")
        view.wait_for_timeout(2000)
        view.click("#play")
        view.evaluate("document.querySelector('#pairs').scrollIntoView(); scrollBy(0, -50)")
        view.screenshot(path=str(to))
        browser.close()


def write(text: str) -> None:
    """Puts it between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise SystemExit(f"{PAGE} lacks the marks {' and '.join(MARKS)}")
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
