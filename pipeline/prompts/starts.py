"""Where the prompts of a row begin: its columns `prompt_frames` and `prompt_times`."""

from __future__ import annotations

import decimal
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from miga.errors import BadRowError

COLUMNS: Final = ("prompt_frames", "prompt_times")
_HOW: Final = {
    "prompt_frames": "write the frame at which each prompt begins, such as [0, 80, 160]",
    "prompt_times": "write the second at which each prompt begins, such as [0, 5, 10.5]",
}


def read_starts(fields: Mapping[str, Any], num_prompts: int) -> dict[str, Any]:
    """What a row says of where its prompts begin, by column: a number a prompt from 0 on, or none.

    The first prompt begins at 0, and that number may be left out.

    Raises:
        BadRowError: if it is no list of as many rising numbers, or said twice.
    """
    said = {name: fields[name] for name in COLUMNS if fields.get(name) is not None and not _is_nan(fields[name])}
    if len(said) > 1:
        raise BadRowError("there are 'prompt_frames' and 'prompt_times'", "give one of them")
    return {name: _starts(name, value, num_prompts) for name, value in said.items()}


def _starts(name: str, value: Any, num_prompts: int) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise BadRowError(f"{name} is {_shown(value)}, not a list of numbers", f"{_HOW[name]}, or leave it out")
    numbers = [_number(name, each, place) for place, each in enumerate(value, 1)]
    if len(numbers) == num_prompts - 1 and (not numbers or numbers[0] != 0):
        numbers.insert(0, 0 if name == "prompt_frames" else 0.0)
    if len(numbers) != num_prompts:
        count = f"{num_prompts} prompt" + "s" * (num_prompts != 1)
        raise BadRowError(f"{name} has {len(value)} numbers, and there are {count}", _HOW[name])
    if numbers[0] != 0:
        raise BadRowError(f"{name} begins with {numbers[0]}", "the first prompt begins at 0")
    for place, (before, after) in enumerate(pairwise(numbers), 2):
        if after <= before:
            raise BadRowError(
                f"{name} do not rise: prompt {place} begins at {after}, the one before it at {before}", _HOW[name]
            )
    return tuple(numbers) if num_prompts > 1 else ()


def _number(name: str, value: Any, place: int) -> int | float:
    """One of them: a whole number of frames, or seconds."""
    if isinstance(value, decimal.Decimal):
        value = float(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or abs(value) > _MOST:
        raise BadRowError(f"number {place} of {name} is {_shown(value)}", _HOW[name])
    if name == "prompt_times":
        return float(value)
    if value != int(value):
        raise BadRowError(f"number {place} of {name} is {value}, not a whole number", "for seconds, take prompt_times")
    return int(value)


_MOST: Final = 2**31


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(value: Any) -> str:
    """A value in a message: numbers and short texts as they are, others by their kind."""
    text = repr(value)
    return text if isinstance(value, int | float | str) and len(text) < 40 else f"a {type(value).__name__}"
