"""`miga gc`: removes what no row of a run refers to."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import add_command, say_unless
from pipeline.storage.open import open_storage
from pipeline.terminal import show, show_json

GROUP: Final = "keep a run in order"
EXAMPLES: Final = ("miga gc out/ --dry-run --verbose",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    gc = add_command(commands, "gc", _run, "remove what no row of a run refers to")
    gc.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    gc.add_argument("--sidecars", action="store_true", help="also those that a sealed, full shard has made needless")
    gc.add_argument("--verbose", action="store_true", help="print the path of everything that goes")


def _run(options: argparse.Namespace) -> int:
    from pipeline.upkeep.collect_garbage import collect_garbage

    garbage = collect_garbage(
        open_storage(options.out),
        dry_run=options.dry_run,
        sidecars=options.sidecars,
        note=show if options.verbose and not options.json else lambda path: None,
        say=say_unless(options.json),
    )
    values = garbage.to_dict(options.dry_run)
    if options.json:
        show_json(values)
        return 0
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(garbage.files.items()))
    verb = "would go" if options.dry_run else "removed"
    show(f"{verb}: {kinds or 'nothing'} ({garbage.bytes:,} bytes)")
    return 0
