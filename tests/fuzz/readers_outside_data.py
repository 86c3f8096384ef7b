"""The readers that all others are made of; see `tests/fuzz/reader.py`."""

from __future__ import annotations

import json
from pathlib import Path

from miga.errors import InputError
from miga.outside_data import OutsideDataError, parse_json, parse_toml
from tests.fuzz.reader import Reader

SOUND_JSON = json.dumps({"a": [1, 2.5, None, True], "b": {"c": "text", "d": {"e": [[], {}]}}, "seed": 2**63}).encode()
SOUND_TOML = (
    b'model = "sprites"\n[sampler]\nsteps = 30\nshift = 3.5\nlevels = [1, 2]\n[run]\nat = 2026-11-21T00:00:00Z\n'
)


def _read_json(_: Path, data: bytes) -> None:
    try:
        value = parse_json(data)
    except OutsideDataError as error:
        raise InputError(str(error)) from error
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # what was taken can be written again


def _read_toml(_: Path, data: bytes) -> None:
    try:
        values = parse_toml(data)
    except OutsideDataError as error:
        raise InputError(str(error)) from error
    json.dumps(values, default=str, ensure_ascii=False).encode()


READERS = [
    Reader("json", lambda _: [SOUND_JSON], _read_json),
    Reader("toml", lambda _: [SOUND_TOML], _read_toml),
]
