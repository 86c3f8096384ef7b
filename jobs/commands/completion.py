"""`miga completion`: what a shell completes of these commands."""

from __future__ import annotations

import argparse
from typing import Any, Final

from pipeline.terminal import show_text

GROUP: Final = "this machine"
EXAMPLES: Final = (
    'eval "$(miga completion bash)"    # in ~/.bashrc',
    "miga completion zsh > ~/.zfunc/_miga    # with `fpath+=~/.zfunc; autoload -Uz compinit; compinit` in ~/.zshrc",
)
SHELLS: Final = ("bash", "zsh")


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "print the script that completes commands, options and files in a shell"
    completion = commands.add_parser("completion", help=text, description=text)
    completion.add_argument("shell", choices=SHELLS, help="the shell")
    completion.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.shared.completion import completion_script

    show_text(completion_script(options.root, options.shell))
    return 0
