"""Which rows the page itself holds, and the pieces beside it that hold all of them.

A page of a few rows holds every one. A page of more holds those that failed, the worst (by score, or else by
consistency) and a sample, a few hundred in all; its script loads the others as they are asked for. A page opened from
disk may not fetch files, so a piece is a script that calls `migaReport(NAME, VALUE)`:

    rows-00012.js     all that is known of rows 3000 to 3249
    words-00003.js    what is searched in: ids, keys, prompts and errors, 4000 rows a piece
    index.js          the columns that are sorted and filtered by, of all rows

A row is counted by its position in the page from 0 on, which is not its number in the prompt file.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.report.values import script_json

Put = Callable[[str, bytes], None]
"""Puts a file beside the page, by its name."""

MOST_EMBEDDED: Final = 2000
"""Rows of a page that holds all of them."""
MOST_EMBEDDED_BYTES: Final = 3_500_000
ROWS_A_PIECE: Final = 250
ROWS_OF_WORDS: Final = 4000
MOST_FAILED: Final = 150
MOST_WORST: Final = 50
MOST_SAMPLED: Final = 300
_MOST_CHOSEN_BYTES: Final = 2_500_000


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The rows of a page.

    Attributes:
        texts: position → JSON of the rows that the page holds, in the order in which it shows them at first.
        num_rows: of the run.
        num_failed: of them.
        is_whole: whether `texts` are all rows.
        num_failed_held: of the failed, how many were chosen as such.
        num_worst_held: how many were chosen for their low score, or consistency.
        num_sampled_held: how many were drawn evenly.
        scale: least and greatest score of all rows; None where there is no score.
        has_searches: whether any row was searched.
        has_scores: whether any row was evaluated.
        has_gate: whether any row was held to a quality gate.
        digest: of all rows.
    """

    texts: Mapping[int, str]
    num_rows: int
    num_failed: int
    is_whole: bool
    num_failed_held: int
    num_worst_held: int
    num_sampled_held: int
    scale: tuple[float, float] | None
    has_searches: bool
    has_scores: bool
    has_gate: bool
    digest: str

    def cards(self) -> list[dict[str, Any]]:
        """The rows that the page holds, as values."""
        return [json.loads(text) for text in self.texts.values()]


class Collector:
    """Takes rows one by one; holds few of them.

    Args:
        put: puts pieces beside the page; None: the page holds all rows, however many.
    """

    def __init__(self, put: Put | None) -> None:
        self._put = put
        self._num_rows = 0
        self._whole: list[str] | None = []
        self._whole_bytes = 0
        self._piece: list[str] = []
        self._words: list[str] = []
        self._keys: dict[str, list[Any]] = {name: [] for name in _KEYS}
        self._failed: dict[int, str] = {}
        self._worst: list[tuple[float, int, str]] = []
        self._sample: dict[int, str] = {}
        self._every = 1
        self._low, self._high = float("inf"), float("-inf")
        self._has_searches = False
        self._digest = hashlib.sha256()

    def add(self, card: Mapping[str, Any]) -> None:
        """Takes the next row, as `cards.card` gives it."""
        at, text = self._num_rows, script_json(card)
        self._num_rows += 1
        self._digest.update(text.encode())
        self._note_scores(card)
        for name, value in zip(_KEYS, _keys(card), strict=True):
            self._keys[name].append(value)
        if self._put is None:
            assert self._whole is not None
            self._whole.append(text)
            return
        self._choose(at, card, text)
        self._words.append(_words(card))
        if self._whole is None:
            self._add_to_piece(text)
            return
        self._whole.append(text)
        self._whole_bytes += len(text)
        if len(self._whole) > MOST_EMBEDDED or self._whole_bytes > MOST_EMBEDDED_BYTES:
            texts, self._whole = self._whole, None
            for each in texts:
                self._add_to_piece(each)

    def finish(self) -> Collected:
        """Puts the last pieces; gives what the page itself holds."""
        is_whole = self._whole is not None
        if is_whole:
            texts, parts = dict(enumerate(self._whole or ())), (0, 0, 0)
        else:
            self._put_piece("rows", self._num_rows - 1, ROWS_A_PIECE, self._piece)
            for start in range(0, self._num_rows, ROWS_OF_WORDS):
                words = map(script_json, self._words[start : start + ROWS_OF_WORDS])
                self._put_piece("words", start, ROWS_OF_WORDS, words)
            self._put_script("index", script_json(self._keys))
            texts, parts = self._chosen()
        return Collected(
            texts=texts,
            num_rows=self._num_rows,
            num_failed=self._keys["ok"].count(0),
            is_whole=is_whole,
            num_failed_held=parts[0],
            num_worst_held=parts[1],
            num_sampled_held=parts[2],
            scale=(self._low, self._high) if self._low <= self._high else None,
            has_searches=self._has_searches,
            has_scores=any(score is not None for score in self._keys["score"]),
            has_gate=any(gate is not None for gate in self._keys["gate"]),
            digest=self._digest.hexdigest(),
        )

    def _note_scores(self, card: Mapping[str, Any]) -> None:
        for scores in (card["consistency"], card["final_consistency"]):
            finite = [score for score in scores if score is not None]
            if finite:
                self._low, self._high = min(self._low, min(finite)), max(self._high, max(finite))
        self._has_searches |= bool(card["searched_at"])

    # ---- what the page holds of many rows ----

    def _choose(self, at: int, card: Mapping[str, Any], text: str) -> None:
        if card["status"] == "failed":
            if len(self._failed) < MOST_FAILED:
                self._failed[at] = text
        elif (score := card["mean_consistency"] if card["score"] is None else card["score"]) is not None:
            entry = (-score, -at, text)
            if len(self._worst) < MOST_WORST:
                heapq.heappush(self._worst, entry)
            else:
                heapq.heappushpop(self._worst, entry)
        if at % self._every == 0:
            self._sample[at] = text
            if len(self._sample) > MOST_SAMPLED:
                self._every *= 2
                self._sample = {at: text for at, text in self._sample.items() if at % self._every == 0}

    def _chosen(self) -> tuple[dict[int, str], tuple[int, int, int]]:
        """Failed rows, the worst, a sample; each as far as there is room."""
        worst = {-minus_at: text for _, minus_at, text in sorted(self._worst, reverse=True)}
        chosen: dict[int, str] = {}
        counts = []
        for share, group in ((0.3, self._failed), (0.5, worst), (1.0, self._sample)):
            room, before = share * _MOST_CHOSEN_BYTES - sum(map(len, chosen.values())), len(chosen)
            for at, text in group.items():
                if at not in chosen and room >= len(text):
                    chosen[at] = text
                    room -= len(text)
            counts.append(len(chosen) - before)
        return chosen, (counts[0], counts[1], counts[2])

    # ---- pieces ----

    def _add_to_piece(self, text: str) -> None:
        self._piece.append(text)
        if len(self._piece) == ROWS_A_PIECE:
            self._put_piece("rows", self._num_put, ROWS_A_PIECE, self._piece)
            self._num_put += ROWS_A_PIECE
            self._piece = []

    _num_put = 0

    def _put_piece(self, kind: str, position: int, rows_each: int, texts: Iterable[str]) -> None:
        content = ",\n".join(texts)
        if content:
            self._put_script(f"{kind}-{position // rows_each:05d}", f"[{content}]")

    def _put_script(self, name: str, value: str) -> None:
        assert self._put is not None
        self._put(f"{name}.js", f'migaReport("{name}",{value});\n'.encode())


_KEYS: Final = (
    *("row", "ok", "score", "gate", "consistency", "corrections", "searches", "duration", "time", "calls", "bytes"),
)


def _keys(card: Mapping[str, Any]) -> tuple[Any, ...]:
    """What rows are sorted and filtered by."""
    is_ok = card["status"] == "ok"
    return (
        card["row"],
        int(is_ok),
        card["score"],
        None if card["gate"] is None else int(card["gate"]["good"]),
        card["mean_consistency"],
        None if card["corrected_at"] is None else len(card["corrected_at"]),
        None if card["searched_at"] is None else len(card["searched_at"]),
        card["video_s"] if is_ok else None,
        round(sum(card["timings"]), 3) or None,
        card["network_calls"],
        card["bytes"],
    )


def _words(card: Mapping[str, Any]) -> str:
    parts = (card["id"], card["key"], *card["prompts"], card["error_type"], card["error"])
    return "\n".join(str(part) for part in parts if part)
