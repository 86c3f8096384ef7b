"""`miga profiles`: the profiles side by side, for a model."""

from __future__ import annotations

import argparse
from typing import Any, Final

from pipeline.terminal import show_json, show_text

GROUP: Final = "models and settings"
EXAMPLES: Final = ("miga profiles --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    profiles = commands.add_parser("profiles", help="the profiles side by side, for a model")
    profiles.add_argument("--model", default="sprites", help="as for generate")
    profiles.add_argument("--json", action="store_true", help="print for machines")
    profiles.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.profiles.table import profile_table, profiles_as_dict
    from miga.backbones.registry import load_spec

    spec = load_spec(options.model)
    show_json(profiles_as_dict(spec), indent=2) if options.json else show_text(profile_table(spec))
    return 0
