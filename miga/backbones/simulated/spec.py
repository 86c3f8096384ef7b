"""Names of simulated models, their options, and what is known of one without making it."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final
from urllib.parse import unquote

from miga.backbones.base import BackboneSpec
from miga.errors import ModelError

PREFIX: Final = "simulated:"

NUM_CHANNELS: Final = 4
MAX_CELLS: Final = 128
PIXELS_PER_CELL: Final = 8


@dataclass(frozen=True, kw_only=True)
class SimulatedOptions:
    """What stands behind the "?" of a name; times are in seconds.

    Attributes:
        call_s: of a whole window with guidance, which is two forwards; without guidance half of it, shorter windows
            less in proportion.
        decode_s: of decoding a latent. It takes the GPU, as a call does.
        cells: rows, and columns, of a latent. The score of a latent's noise fluctuates the less, the more there are: at
            4 it falls by self-reflection's threshold in every second evaluation, at 32 in none.
        load_s: of loading the denoiser.
        text_s: of encoding a prompt.
        faults: whether prompts that begin with "fault:" make one happen.
        marks: folder that remembers which faults have happened "once", for processes started later.
    """

    call_s: float = 1.4
    decode_s: float = 0.05
    cells: int = 4
    load_s: float = 0.0
    text_s: float = 0.0
    faults: bool = False
    marks: str = ""


def simulated_spec(name: str, published: BackboneSpec, options: SimulatedOptions) -> BackboneSpec:
    """The spec of a simulated model: the published one's, but for its latents and frames, which are tiny."""
    return replace(
        published,
        name=name,
        revision="simulated-1",
        latent_channels=NUM_CHANNELS,
        latent_height=options.cells,
        latent_width=options.cells,
        height=options.cells * PIXELS_PER_CELL,
        width=options.cells * PIXELS_PER_CELL,
    )


def parse_name(name: str, models: Sequence[str]) -> tuple[str, SimulatedOptions]:
    """The family of a simulated model, and its options.

    Args:
        name: of the model, with its options.
        models: the families that there are.

    Raises:
        ModelError: if the family or an option is not known, or a value cannot be.
    """
    family, _, text = name.removeprefix(PREFIX).partition("?")
    if not name.startswith(PREFIX) or family not in models:
        known = " or ".join(f"{PREFIX}{model}" for model in models)
        raise ModelError(f"{name!r} is no simulated model", f"write {known}, options behind a '?'")
    keys = [option.name for option in fields(SimulatedOptions)]
    values: dict[str, Any] = {}
    for part in text.split("&") if text else []:
        key, _, value = part.partition("=")
        if key not in keys:
            alike = difflib.get_close_matches(key, keys, 1)
            hint = f"did you mean {alike[0]!r}?" if alike else "write key=value, with a '&' between them"
            raise ModelError(f"{name!r}: unknown option {part!r}; there are {', '.join(keys)}", hint)
        if key in values:
            raise ModelError(f"{name!r}: option {key!r} stands there twice", "leave one out")
        values[key] = _value(name, key, unquote(value))
    return family, SimulatedOptions(**values)


def _value(name: str, key: str, text: str) -> float | int | bool | str:
    if key == "marks":
        if not text:
            raise ModelError(f"{name!r}: option 'marks' names no folder", "write marks=FOLDER, or leave it out")
        return text
    if key == "faults":
        if text not in ("0", "1"):
            raise ModelError(f"{name!r}: option 'faults' is {text!r}", "write faults=1 or faults=0")
        return text == "1"
    if key == "cells":
        if re.fullmatch("[0-9]{1,3}", text) is None or not 1 <= int(text) <= MAX_CELLS:
            raise ModelError(f"{name!r}: option 'cells' is {text!r}", f"give a whole number from 1 to {MAX_CELLS}")
        return int(text)
    with contextlib.suppress(ValueError):
        if 0.0 <= (seconds := float(text)) < math.inf:
            return seconds
    raise ModelError(f"{name!r}: option {key!r} is {text!r}", "give seconds, such as 1.4; at least 0")
