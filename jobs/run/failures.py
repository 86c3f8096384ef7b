"""The rows of a run that were given up: which, why, and what to do, read from its OUT alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final

from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import read_run
from pipeline.rows import ManifestRow
from pipeline.storage.open import open_storage

_PROMPT_LENGTH: Final = 60
_HINT: Final = "\n  hint: "
_SOURCE: Final = re.compile(r"^[^\n:]{1,255}:\d+(?:-\d+)?: ")
"""Where in the prompt file a row stands, before what is wrong with it."""
_VARIABLE: Final = re.compile(r"'(?:[^'\\]|\\.)*'…?|\"[^\"]*\"|\d+(?:[.,]\d+)*")

RETRY: Final = "`miga retry-failed OUT` makes it again"
_ADVICE: Final[Mapping[str, str]] = {
    "BadRowError": "correct these rows in a prompt file of their own and run that into another OUT: this run's prompt "
    "file must stay as it is",
    "NonFiniteError": f"{RETRY}; where it fails again, take another seed, float32 or less guidance",
    "WorkerLostError": "the processes that made it died, most often for want of memory: see the run's log, "
    f"then {RETRY}",
    "WorkerError": f"the workers that made it failed, not the row: see the run's log for why, then {RETRY}",
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A row that was given up.

    Attributes:
        row: its position in the prompt file, from 0.
        id: the user's, or the position.
        prompt: the first one, cut.
        error_type: class of the error.
        reason: what was wrong and where.
        hint: what to do about it.
        attempts: at making it; 0 if none was made.
    """

    row: int
    id: str
    prompt: str
    error_type: str
    reason: str
    hint: str
    attempts: int

    @classmethod
    def of(cls, row: ManifestRow) -> Failure:
        """What the manifest says of it."""
        reason, _, hint = (row.error or "no reason was noted").partition(_HINT)
        kind = row.error_type or "unknown"
        prompt = row.prompts[0] if row.prompts else ""
        return cls(
            row=row.row,
            id=row.id,
            prompt=prompt if len(prompt) <= _PROMPT_LENGTH else prompt[: _PROMPT_LENGTH - 1] + "…",
            error_type=kind,
            reason=reason,
            hint="; ".join(part for part in (hint, _ADVICE.get(kind, RETRY)) if part),
            attempts=row.attempt,
        )

    @property
    def kind_of_reason(self) -> str:
        """The reason without place, numbers and quoted words: what failures of one kind share."""
        return _VARIABLE.sub("…", _SOURCE.sub("", self.reason))

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Rows that were given up for one kind of reason."""

    error_type: str
    reason: str
    hint: str
    failures: tuple[Failure, ...]

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        about = {"error_type": self.error_type, "reason": self.reason, "hint": self.hint}
        return {**about, "count": len(self.failures), "rows": [failure.to_dict() for failure in self.failures]}


def failures(out: str) -> list[FailureGroup]:
    """All rows of the run in `out` that were given up, the commonest reason first.

    Raises:
        OutputError: if there is no run in `out`.
    """
    storage = open_storage(out)
    record = read_run(storage)
    return grouped(failed_rows(Manifest(storage, record.settings.run.prompts_per_shard)))


def grouped(failed: Iterator[Failure]) -> list[FailureGroup]:
    """Failures by error and kind of reason, the commonest first."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in failed:
        groups.setdefault((failure.error_type, failure.kind_of_reason), []).append(failure)
    return [
        FailureGroup(error_type=kind, reason=_shared(rows, reason), hint=rows[0].hint, failures=tuple(rows))
        for (kind, reason), rows in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def _shared(rows: list[Failure], kind_of_reason: str) -> str:
    """The reason itself where all rows have the same."""
    reasons = {_SOURCE.sub("", failure.reason) for failure in rows}
    return reasons.pop() if len(reasons) == 1 else kind_of_reason


def failed_rows(manifest: Manifest) -> Iterator[Failure]:
    """Every row that was given up, in order; shards without such a row are not read whole.

    Raises:
        OutputError: if a file of the manifest is broken.
    """
    for shard in manifest.shards():
        if "failed" in manifest.statuses(shard).values():
            yield from (Failure.of(row) for row in manifest.read_shard(shard) if row.status == "failed")


def first_failures(manifest: Manifest, most: int) -> list[Failure]:
    """The first of them."""
    return list(islice(failed_rows(manifest), most))
