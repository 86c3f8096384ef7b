"""The quality of first frames, which NarrLV's scores take in: a file, or a function."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any, Final

from miga.errors import InputError, UsageError
from miga.outside_data import OutsideDataError, parse_json_object, read_file
from pipeline.evaluation.narrlv_run import Quality

_FACTORY: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def quality_from(text: str) -> Quality:
    """What `--quality` names: a file of JSON lines {"row": 17, "quality": 4.2}, or `package.module:function`.

    The function takes a first frame `[H, W, 3]` of uint8 and gives a number from 1 to 5, as Q-Align does.

    Raises:
        UsageError: if it is neither, or the function is not there.
        InputError: if the file cannot be read.
    """
    if _FACTORY.fullmatch(text) and not os.path.lexists(text):
        return _imported(text)
    values: dict[int, float] = {}
    try:
        for number, line in enumerate(read_file(text).decode().splitlines(), start=1):
            if line.strip():
                row, value = (parse_json_object(line).get(name) for name in ("row", "quality"))
                if type(row) is not int or not isinstance(value, int | float) or not 1 <= value <= 5:
                    raise OutsideDataError(f"line {number} is not {{'row': 17, 'quality': 4.2}} with 1 to 5")
                values[row] = float(value)
    except FileNotFoundError as error:
        raise UsageError(
            f"--quality {text}: there is no such file", "or name a function: package.module:function"
        ) from error
    except (OutsideDataError, UnicodeDecodeError) as error:
        raise InputError(f"--quality {text} cannot be used: {error}", "a line is a row and its quality") from error
    return lambda row, frame: values.get(row.row)


def _imported(text: str) -> Quality:
    module, _, name = text.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a foreign module raises
        raise UsageError(f"--quality {text} cannot be imported: {type(error).__name__}: {error}") from error

    def quality(row: Any, frame: Any) -> float | None:
        try:
            value = float(function(frame))
        except Exception as error:
            raise InputError(f"--quality {text} failed: {type(error).__name__}: {error}") from error
        if not 1 <= value <= 5:
            raise InputError(f"--quality {text} gives {value}, which is not 1 to 5")
        return value

    return quality
