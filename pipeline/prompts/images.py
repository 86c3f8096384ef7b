"""Pictures that rows name: found beside the prompt file or anywhere an address leads.

A row notes the digest of a picture's file. Whoever reads the picture again, to make the video, finds that file or none.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from PIL import Image

from miga.errors import BadRowError, InputError
from miga.pictures import MAX_BYTES, Picture, picture_of_bytes
from pipeline.prompts.source import read_bytes
from pipeline.storage.addresses import check_address

COLUMNS: Final = ("image", "last_image")
"""What rows name pictures by: the video's first frame, and its last."""


class RowImages:
    """Reads the pictures of a prompt file's rows.

    Args:
        prompts: the prompt file, a path or an address.
        takes: the columns that the model and the profile take; others are refused, and say why.
        needed: the columns without which there is no video.
    """

    def __init__(self, prompts: str, takes: Mapping[str, str], needed: tuple[str, ...] = ()) -> None:
        self._folder = folder_of(prompts)
        self._takes, self._needed = takes, needed

    def digest(self, column: str, name: str | None) -> str | None:
        """The digest of the picture that a row names, once it is found to be one; None where it names none.

        Raises:
            BadRowError: if it is none, or the video cannot be made with it, or without.
        """
        if name is None:
            if column in self._needed:
                raise BadRowError(f"there is no {column!r}, and this model makes videos from one", "add one")
            return None
        if reason := self._takes.get(column, ""):
            raise BadRowError(f"{column} {name!r}: {reason}", "leave it out")
        return self.read(name).sha256

    def read(self, name: str) -> Picture:
        """The picture that a row names.

        Raises:
            BadRowError: if it cannot be read, or is none.
        """
        return picture_at(name, self._folder)


def folder_of(prompts: str) -> str:
    """Where a prompt file lies, for names of pictures beside it: a folder, or an address that ends in a slash."""
    if "://" in prompts:
        return prompts[: prompts.rindex("/") + 1]
    return os.path.dirname(os.path.abspath(prompts))


def place_of(name: str, folder: str) -> str:
    """The path or the address that a row's name of a picture stands for.

    Raises:
        BadRowError: if it is blank.
    """
    if not name.strip():
        raise BadRowError("the name of a picture is blank", "give a path or an address, or leave it out")
    if "://" not in name and "://" in folder and not name.startswith("/"):
        return folder + str(PurePosixPath(name))
    return name if "://" in name else os.path.join(folder, os.path.expanduser(name))


def picture_at(name: str, folder: str) -> Picture:
    """A picture by a path or an address; what is neither absolute nor an address lies in the folder.

    Raises:
        BadRowError: if it cannot be read, or is none.
    """
    where = place_of(name, folder)
    try:
        check_address(where, InputError, "image")
        data = read_bytes(where, MAX_BYTES)
    except InputError as error:
        raise BadRowError(f"picture {name!r}: {error.message}", error.hint) from error
    return picture_of_bytes(data, name)


def frame_of(picture: Picture, sha256: str, height: int, width: int) -> bytes:
    """A picture as a frame, for workers: a PNG, which loses nothing.

    Raises:
        BadRowError: if the file is no longer the one that the row was read with.
    """
    if picture.sha256 != sha256:
        raise BadRowError(
            f"picture {picture.name!r} was changed while the run was made: its SHA-256 was {sha256[:16]}… and is "
            f"{picture.sha256[:16]}…",
            "put it back as it was; a changed picture is for another row",
        )
    return png_of(picture, height, width)


def png_of(picture: Picture, height: int, width: int) -> bytes:
    """A picture fitted to a frame, as a PNG."""
    pixels = ((picture.fitted(height, width) + 1.0) * 127.5).round().byte().permute(1, 2, 0).contiguous()
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", compress_level=1)
    return file.getvalue()
