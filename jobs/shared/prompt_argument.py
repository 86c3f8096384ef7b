"""A prompt where a file of prompts belongs, and the other way round: said with the command that was meant."""

from __future__ import annotations

import os
import shlex
from pathlib import PurePath

from miga.errors import InputError
from pipeline.prompts.source import KINDS
from pipeline.storage.addresses import is_printable

_MOST_SHOWN = 200


def refuse_prompt(prompts: str, out: str) -> None:
    """Returns if `prompts` may be the path of a prompt file, or its address.

    Args:
        prompts: what stands where the path belongs.
        out: the command's OUT.

    Raises:
        InputError: if nothing is there, and it has no ending of a prompt file; naming the commands that help.
    """
    is_text = len(prompts.strip()) > 0 and len(prompts) <= _MOST_SHOWN * 10 and is_printable(prompts)
    if not is_text or "://" in prompts or os.path.lexists(prompts) or _has_ending(prompts):
        return
    shown = prompts if len(prompts) <= _MOST_SHOWN else f"{prompts[:_MOST_SHOWN]}…"
    video = out if out.endswith(".mp4") else f"{out}.mp4" if _is_name(out) else "out.mp4"
    many = f"miga generate prompts.txt {shlex.quote(out.removesuffix('.mp4') or 'out')}"
    raise InputError(
        f"there is no file {shown!r}; if it is a prompt, a file of prompts belongs there",
        f"one video of one prompt: miga sample {shlex.quote(shown)} {shlex.quote(video)}; a dataset: write the prompts "
        f"into a file, a line each, and run: {many} (prompt files end in {', '.join(KINDS)})",
    )


def refuse_prompt_file(prompt: str, out: str) -> None:
    """Returns unless the prompt is the name of a prompt file that is there.

    Raises:
        InputError: naming the command for it.
    """
    if _has_ending(prompt) and os.path.isfile(prompt):
        folder = out.removesuffix(".mp4") or "out"
        raise InputError(
            f"{prompt} is a file, and one prompt belongs there",
            f"a video for every row of it: miga generate {shlex.quote(prompt)} {shlex.quote(folder)}",
        )


def _has_ending(text: str) -> bool:
    return PurePath(text.replace("\\", "/")).suffix.lower() in KINDS


def _is_name(out: str) -> bool:
    return bool(out.strip("/. ")) and "://" not in out and not out.endswith("/") and is_printable(out)
