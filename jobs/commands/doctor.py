"""`miga doctor`: what would keep a run from being made here, and what to do about it."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.shared.exit_status import EXIT_FAILED, EXIT_OK
from pipeline.terminal import show, show_json

GROUP: Final = "this machine"
EXAMPLES: Final = (
    "miga doctor",
    "miga doctor s3://bucket/prefix --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "what would keep a run from being made here, and what to do about it"
    about = f"{text}. Exit status: 0 if nothing is wrong, 1 if something is."
    doctor = commands.add_parser("doctor", help=text, description=about)
    doctor.add_argument("out", metavar="OUT", nargs="?", help="look at this storage too; nothing is left there")
    doctor.add_argument("--model", help="look at its weights too: as for generate")
    doctor.add_argument("--revision", help="of a hub name")
    doctor.add_argument("--address", help="of a Ray cluster (default: RAY_ADDRESS, else a local Ray is started)")
    doctor.add_argument("--limit-s", type=float, metavar="S", help="seconds that a check may take (default: minutes)")
    doctor.add_argument("--json", action="store_true", help="print for machines")
    doctor.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.doctor.examine import examine
    from miga.errors import UsageError

    if options.limit_s is not None and not 0 < options.limit_s < 1e6:
        raise UsageError(f"--limit-s {options.limit_s:g} cannot be", "give a number of seconds above 0")
    findings = []
    for finding in examine(
        options.out, model=options.model, revision=options.revision, address=options.address, limit_s=options.limit_s
    ):
        findings.append(finding)
        if not options.json:
            show(f"{finding.state:<6} {finding.name}: {finding.found}")
            if finding.to_do:
                show(f"       to do: {finding.to_do}")
    num_wrong = sum(finding.state == "wrong" for finding in findings)
    if options.json:
        show_json({"ok": not num_wrong, "findings": [finding.to_dict() for finding in findings]}, indent=2)
    else:
        show(f"{num_wrong} wrong" if num_wrong else "nothing is wrong")
    return EXIT_FAILED if num_wrong else EXIT_OK
