"""What installed packages register with this one: found by its entry point, or refused with the package's name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from miga.errors import MigaError


@dataclass(frozen=True)
class Registered:
    """One entry point of a group.

    Attributes:
        entry: where it is.
        what: it is, for messages, such as "the method".
        error: the kind that it is refused with.
    """

    entry: EntryPoint
    what: str
    error: type[MigaError]

    def load(self, kind: type) -> Any:
        """The value that it names.

        Raises:
            MigaError: of the kind `error`, if it cannot be imported or is of another type.
        """
        try:
            value = self.entry.load()
        except Exception as error:  # whatever a foreign module raises
            raise self.refused(f"{type(error).__name__}: {error}") from error
        if not isinstance(value, kind):
            raise self.refused(f"it is a {type(value).__name__}, not a {kind.__module__}.{kind.__qualname__}")
        return value

    def refused(self, why: str) -> MigaError:
        """The error that says so, and whose package it is."""
        package = "" if self.entry.dist is None else f" of package {self.entry.dist.name!r}"
        return self.error(
            f"{self.what} {self.entry.name!r}{package} ({self.entry.value}) cannot be used: {why}",
            "mend that package, or uninstall it",
        )


def registered(group: str, what: str, error: type[MigaError]) -> Iterator[Registered]:
    """The entry points of a group, in an order that does not depend on the machine."""
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, entry.value)):
        yield Registered(entry, what, error)
