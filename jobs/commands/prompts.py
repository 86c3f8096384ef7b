"""`miga prompts`: prompt files of benchmarks as prompt files of ours."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from jobs.commands.common import show_values
from pipeline.terminal import show

GROUP: Final = "make videos"
EXAMPLES: Final = ("miga prompts narrlv prompt_suit_v4_*_tna_[234].json --out narrlv.jsonl",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "make a prompt file of a benchmark's own files"
    prompts = commands.add_parser("prompts", help=text, description=text)
    prompts.add_argument("kind", choices=("narrlv",), help="whose files they are")
    prompts.add_argument("files", metavar="FILE", nargs="+", help="the benchmark's files")
    prompts.add_argument("--out", metavar="FILE.jsonl", help="where the prompt file goes (default: standard output)")
    prompts.add_argument("--json", action="store_true", help="print for machines what was written")
    prompts.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.shared.options import write_out
    from miga.errors import UsageError
    from pipeline.evaluation.narrlv import prompt_lines, read_prompts

    found = [prompt for file in options.files for prompt in read_prompts(file)]
    ids = [prompt.id for prompt in found]
    if twice := sorted({name for name in ids if ids.count(name) > 1})[:3]:
        raise UsageError(f"these files have the same entries, such as {', '.join(twice)}", "name each file once")
    lines = [json.dumps(line, ensure_ascii=False) for line in prompt_lines(found)]
    if options.out is None:
        show(*lines)
        return 0
    write_out(Path(options.out), "".join(f"{line}\n" for line in lines))
    show_values({"prompts": options.out, "rows": len(lines)}, options.json)
    return 0
