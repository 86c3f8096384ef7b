"""The quality gate of a run, as its coordinator asks it: which try a row is at, and what becomes of a finished one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from miga.outside_data import OutsideDataError
from pipeline.config import QualityConfig
from pipeline.records.quality import TRY_NAME, Try, judge, kept_row, sorted_tries, try_seed
from pipeline.records.references import VIDEO_NAME, video_name
from pipeline.records.scores import MANIFEST_SCORES, manifest_scores
from pipeline.rows import ManifestRow, PromptRow
from pipeline.storage.base import Storage


class QualityGate:
    """The tries of rows that are in the making. All methods are for one thread, the coordinator's.

    Args:
        quality: the limits.
        storage: of OUT.
        say: told of records of tries that cannot be read.
    """

    def __init__(self, quality: QualityConfig, storage: Storage, say: Callable[[str], None]) -> None:
        self._quality, self._storage, self._say = quality, storage, say
        self._tries: dict[int, list[Try]] = {}
        self.reads_frames = not (quality.least.keys() | quality.most.keys()) <= MANIFEST_SCORES.keys()

    @property
    def is_asked(self) -> bool:
        """Whether videos are judged at all."""
        return self._quality.is_asked

    def remember(self, row: PromptRow, folder: str, names: Iterable[str]) -> list[Try]:
        """The tries that an earlier run has left of a row, in the row's folder of checkpoints."""
        found = []
        for name in filter(TRY_NAME.fullmatch, names):
            try:
                found.append(Try.from_json(self._storage.read_bytes(f"{folder}/{name}")))
            except (OutsideDataError, FileNotFoundError) as error:
                self._say(f"row {row.index}: {folder}/{name} cannot be used ({error}); that try is made again")
        tries = [each for each in sorted_tries(found) if each.seed == try_seed(row.seed, each.number)]
        if tries:
            self._tries[row.index] = tries
        return tries

    def tries(self, index: int) -> list[Try]:
        """The tries of a row so far, none of which was good enough."""
        return self._tries.get(index, [])

    def is_over(self, index: int) -> bool:
        """Whether a row has had all its tries, so that the best of them is to be recorded."""
        return len(self.tries(index)) > self._quality.retries

    def asked(self, row: PromptRow) -> PromptRow:
        """The row as its next try makes it: under that try's seed."""
        number = len(self.tries(row.index))
        return replace(row, seed=try_seed(row.seed, number)) if number else row

    def judged(self, number: int, made: ManifestRow, more: dict[str, float]) -> Try:
        """A finished try.

        Args:
            number: of it, from 0.
            made: its row, as it would be recorded.
            more: scores that the manifest has no column for.
        """
        assert made.seed is not None
        return Try(number=number, seed=made.seed, row=made, scores=manifest_scores(made) | more)

    def settles(self, this: Try) -> bool:
        """Whether a finished try ends the row: it is good, or the last."""
        return judge(this.scores, self._quality).is_good or this.number >= self._quality.retries

    def reason(self, this: Try) -> str:
        """Why a try does not."""
        words = "; ".join(judge(this.scores, self._quality).words)
        return f"try {this.number + 1} of {self._quality.retries + 1} is not good enough: {words}"

    def reject(self, index: int, this: Try) -> None:
        """A try is recorded that was not good enough; one that was made twice counts once."""
        tries = self._tries.setdefault(index, [])
        if this.number == len(tries):
            tries.append(this)

    def kept(self, index: int, last: Try | None = None) -> ManifestRow:
        """The row to record, of all tries and the last one.

        Args:
            index: of the row.
            last: a try that is not among those that were rejected.
        """
        tries = self.tries(index)
        return kept_row(tries if last is None else [*tries[: last.number], last], self._quality)

    def failed(self, row: PromptRow, error_type: str, error: str) -> Try:
        """A try that no video came of."""
        number = len(self.tries(row.index))
        return Try(number=number, seed=try_seed(row.seed, number), row=None, scores={}, error=f"{error_type}: {error}")

    def forget(self, index: int) -> None:
        """The row is settled."""
        self._tries.pop(index, None)

    def newest_before(self, index: int) -> tuple[int, int]:
        """Epoch and attempt of the last try that is recorded: checkpoints up to there are of tries that are over."""
        tries = self.tries(index)
        if not tries or (last := tries[-1].row) is None or (name := VIDEO_NAME.fullmatch(video_name(last))) is None:
            return (0, 0)
        return int(name["epoch"] or 0), int(name["attempt"])
