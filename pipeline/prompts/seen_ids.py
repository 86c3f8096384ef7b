"""Which ids a prompt file has used so far, in 16 bytes a row: ten million ids are 160 MB, not the gigabyte of a set."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

_RECENT: Final = 1 << 16


class SeenIds:
    """Ids by their 8-byte hashes, with the row that used each first.

    Two ids of the same hash are taken for duplicates; among ten million that happens once in 400,000 files. Recent ids
    are in a dict; full dicts become sorted arrays, and arrays of like size are merged, so that there are few of them.
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._sorted: list[tuple[np.ndarray, np.ndarray]] = []

    def first_row(self, id_: str) -> int | None:
        """The row that used `id_` first, or None."""
        if not self._recent and not self._sorted:
            return None
        name = _hash(id_)
        if name in self._recent:
            return self._recent[name]
        for names, rows in self._sorted:
            at = int(np.searchsorted(names, np.uint64(name)))
            if at < len(names) and int(names[at]) == name:
                return int(rows[at])
        return None

    def add(self, id_: str, row: int) -> None:
        """Notes that `row` uses `id_`, which must not have been used."""
        self._recent[_hash(id_)] = row
        if len(self._recent) >= _RECENT:
            self._flush()

    def _flush(self) -> None:
        names = np.fromiter(self._recent.keys(), np.uint64, len(self._recent))
        rows = np.fromiter(self._recent.values(), np.int64, len(self._recent))
        self._recent.clear()
        while self._sorted and len(self._sorted[-1][0]) <= len(names):
            more_names, more_rows = self._sorted.pop()
            names, rows = np.concatenate((more_names, names)), np.concatenate((more_rows, rows))
        order = np.argsort(names, kind="stable")
        self._sorted.append((names[order], rows[order]))


def _hash(id_: str) -> int:
    return int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "little")


class RowBits:
    """A set of row numbers in one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, row: int) -> None:
        """Puts `row` in."""
        if (byte := row >> 3) >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        self._bits[byte] |= 1 << (row & 7)

    def __contains__(self, row: int) -> bool:
        byte = row >> 3
        return 0 <= byte < len(self._bits) and bool(self._bits[byte] >> (row & 7) & 1)
