"""What a converted folder of causal weights says of them, and what must be said when they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from miga.backbones.weight_files import read_json

NOTE: Final = "_causal"
"""Where model_index.json of a converted folder says what it is."""


def licence_note(folder: Path) -> str:
    """What must be said whenever a folder's weights are loaded; empty if nothing."""
    note = read_json(folder / "model_index.json").get(NOTE)
    if not isinstance(note, dict) or note.get("is_commercial") is not False:
        return ""
    return (
        f"the weights of {str(folder)!r} ({note.get('preset')}) are for non-commercial use only: "
        f"{note.get('licence')}; so are the videos made with them, unless their card says otherwise"
    )
