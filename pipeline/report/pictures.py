"""The pictures that rows began from, small enough to stand in the page.

A picture lies where its row says: beside the prompt file, or anywhere else on this machine. It is shown only if it is
still the very file that the row was made from, by its digest; so a page shows nothing that its run has not seen. What
is elsewhere (an address), gone or another file is named, and not shown.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from typing import Any, Final

from PIL import Image

from miga.errors import BadRowError
from pipeline.prompts.images import COLUMNS, folder_of, picture_at

MOST: Final = 500
"""Pictures of a page that are shown; of more the names are."""
HEIGHT: Final = 72
"""Of a picture in the page, in pixels."""


class RowPictures:
    """Makes them.

    Args:
        prompts: the run's prompt file, a path or an address.
    """

    def __init__(self, prompts: str) -> None:
        self._folder = folder_of(prompts)
        self._made: dict[tuple[str, str], str] = {}

    def of(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """The pictures of a row, each with its `name`, what it `is`, and its `source`, empty if it is not shown."""
        return [
            {"is": column, "name": str(name), "source": self._source(str(name), row.get(f"{column}_sha256"))}
            for column in COLUMNS
            if (name := row.get(column))
        ]

    def _source(self, name: str, sha256: Any) -> str:
        key = (name, str(sha256))
        if key not in self._made:
            if len(self._made) >= MOST or "://" in name or ("://" in self._folder and not os.path.isabs(name)):
                return ""
            self._made[key] = self._read(name, sha256)
        return self._made[key]

    def _read(self, name: str, sha256: Any) -> str:
        try:
            picture = picture_at(name, self._folder)
        except BadRowError:
            return ""
        if picture.sha256 != sha256:
            return ""
        small = picture.rgb.copy()
        small.thumbnail((4 * HEIGHT, HEIGHT), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
