"""Contact strips of a run's videos, read wherever they lie: what a page shows of videos that it cannot play."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from miga.errors import OutputError, WorkerError
from pipeline.storage.base import Storage
from pipeline.video import contact_strip

_AT_ONCE: Final = 4


class StripMaker:
    """Makes the strips of a page.

    Args:
        storage: of the run.
        most: strips that are made; the page's first rows get them.
        say: is told what is going on.

    Attributes:
        num_missing: videos that could not be read, or hold no frames.
    """

    def __init__(self, storage: Storage, most: int, say: Callable[[str], None] = lambda text: None) -> None:
        self.num_missing = 0
        self._storage = storage
        self._most = most
        self._say = say

    def __call__(self, cards: Sequence[Mapping[str, Any]]) -> dict[int, bytes]:
        """Index of a row among `cards` → its strip, a JPEG."""
        wanted = [index for index, card in enumerate(cards) if card["status"] == "ok" and self._path(card)]
        wanted = wanted[: self._most]
        made: dict[int, bytes] = {}
        with tempfile.TemporaryDirectory(prefix="miga-report-") as folder, ThreadPoolExecutor(_AT_ONCE) as threads:
            strips = threads.map(lambda index: self._strip(cards[index], Path(folder) / f"{index}.mp4"), wanted)
            for number, (index, strip) in enumerate(zip(wanted, strips, strict=True), 1):
                if strip is None:
                    self.num_missing += 1
                else:
                    made[index] = strip
                if number % 50 == 0:
                    self._say(f"{number} of {len(wanted)} contact strips")
        return made

    def _path(self, card: Mapping[str, Any]) -> str:
        """The path in OUT of a row's video; empty where it does not lie there."""
        root = f"{self._storage.root.rstrip('/')}/"
        return str(card["uri"]).removeprefix(root) if str(card["uri"]).startswith(root) else ""

    def _strip(self, card: Mapping[str, Any], local: Path) -> bytes | None:
        try:
            self._storage.get_file(self._path(card), local)
            return contact_strip(local, int(card["num_frames"] or 1))
        except (FileNotFoundError, ValueError, OutputError, WorkerError):
            return None
        finally:
            local.unlink(missing_ok=True)
