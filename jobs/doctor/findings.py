"""What a check says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A line of `miga doctor`.

    Attributes:
        name: of what was looked at.
        state: "wrong" keeps runs from being made; a "note" does not, and is worth knowing.
        found: what is there.
        to_do: what to do about it; empty where nothing is to be done.
    """

    name: str
    state: State
    found: str
    to_do: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name=name, state="ok", found=found)


def note(name: str, found: str, to_do: str = "") -> Finding:
    """Not wrong, and worth knowing."""
    return Finding(name=name, state="note", found=found, to_do=to_do)


def wrong(name: str, found: str, to_do: str) -> Finding:
    """A run would fail of it."""
    return Finding(name=name, state="wrong", found=found, to_do=to_do)
