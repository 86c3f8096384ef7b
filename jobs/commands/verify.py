"""`miga verify`: whether OUT holds what its run promises."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import add_command, say_unless
from jobs.shared.exit_status import EXIT_FAILED, EXIT_OK
from pipeline.records.run_folder import read_run
from pipeline.storage.open import open_storage
from pipeline.terminal import show, show_json

GROUP: Final = "look at a run"
EXAMPLES: Final = ("miga verify s3://bucket/run --quick",)

_MAX_FAULTS_SHOWN = 50


def add(commands: Any) -> None:
    """Adds the command and its options."""
    verify = add_command(commands, "verify", _run, "whether OUT holds what its run promises")
    verify.add_argument("--quick", action="store_true", help="read no video: leave its SHA-256 and frames unchecked")
    verify.add_argument("--prompts", metavar="PATH", help="where the prompt file lies now, if it was moved")
    verify.add_argument("--trust", action="store_true", help="read the prompt file wherever run.json says it lies")
    verify.add_argument("--quiet", action="store_true", help="no progress")


def _run(options: argparse.Namespace) -> int:
    from pipeline.upkeep.trust import prompts_of
    from pipeline.upkeep.verify import verify

    storage = open_storage(options.out)
    recorded = read_run(storage).prompts.path
    found = verify(
        storage,
        prompts=prompts_of(recorded, storage.root, named=options.prompts, is_trusted=options.trust),
        quick=options.quick,
        say=say_unless(options.quiet or options.json),
    )
    values = found.to_dict()
    if options.json:
        show_json(values)
        return EXIT_OK if found.is_sound else EXIT_FAILED
    for fault in found.faults[:_MAX_FAULTS_SHOWN]:
        show(f"{fault.where}: {fault.what}", f"  to do: {fault.remedy}")
    if len(found.faults) > _MAX_FAULTS_SHOWN:
        show(f"… and {len(found.faults) - _MAX_FAULTS_SHOWN} more; --json prints all")
    counts = {name: value for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)}
    show(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items()))
    if found.counts["shards_of_another_place"]:
        show("some of manifest/ names where OUT was before it was moved: `miga repair OUT` writes paths in OUT instead")
    if found.is_sound:
        show("sound as far as looked at: no video was read" if found.is_quick else "sound")
    else:
        show(f"{len(found.faults)} faults")
    return EXIT_OK if found.is_sound else EXIT_FAILED
