"""Local folders of a process, that no other user can look into; whoever starts next removes what killed ones have left.

The temporary folder is everybody's: names in it are drawn, and nothing of another user is read, judged or removed.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

from miga.outside_data import OutsideDataError, parse_json_object, read_file, validated
from pipeline.records.lease import Owner

_PREFIX: Final = "miga-"
_OWNER_FILE: Final = "owner.json"


def new_folder(parent: Path | None = None) -> Path:
    """A folder of this process that holds no more than whose it is.

    Args:
        parent: where; by default the folder for temporary files.
    """
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    (folder / _OWNER_FILE).write_text(json.dumps(asdict(Owner.this_process())))
    return folder


def remove_abandoned(parent: Path | None = None) -> None:
    """Removes this user's folders whose process surely is gone; those of other containers' processes are not judged.

    Args:
        parent: where they are; by default the folder for temporary files.
    """
    try:
        names = os.listdir(parent or tempfile.gettempdir())
    except OSError:  # one may be allowed to write there, and not to look
        return
    for name in names:
        folder = Path(parent or tempfile.gettempdir(), name)
        if name.startswith(_PREFIX) and _is_own(folder) and _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_own(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that made it is gone; never if that is not known (yet)."""
    try:
        owner = validated(Owner, parse_json_object(read_file(folder / _OWNER_FILE)))
    except (FileNotFoundError, OutsideDataError):
        return False
    return owner.is_gone()
