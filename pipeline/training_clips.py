"""Clips to train on: a folder of videos with captions, or an OUT of ours, whose manifest says what is in each.

In a folder a caption stands in a table (`metadata.jsonl`, or any `.csv`; upstream's columns are known), or in a text
file of the video's name. Of a video that is longer than a clip, one stretch is taken, and with it what conditions are
made of: frames before it, and a reference picture from outside it where there is one.

Legend: F frames, H, W pixels, C = 3.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from miga.errors import BadVideoError, InputError
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import RUN_FILE, path_in_out, read_run
from pipeline.storage.open import is_in_bucket, open_storage
from pipeline.video import count_frames, read_frames

VIDEOS: Final = (".mp4", ".mov", ".mkv", ".webm", ".avi")
FILE_COLUMNS: Final = ("file_name", "Filename", "file", "video", "path")
CAPTION_COLUMNS: Final = ("prompt", "caption", "text", "Video Description", "description")
"""Of a table of captions, in the order in which they are looked for; the later ones of each are upstream's."""
MAX_SHRINK: Final = 1.0 / 14.0
"""Share of a crop's limiting side that is left out at most, at random."""


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A video that a clip is taken of.

    Attributes:
        name: for messages.
        path: of the file; in an OUT its path there.
        captions: what it shows, one after the other, each for as long; one of most.
        out: the OUT; empty for a file.
    """

    name: str
    path: str
    captions: tuple[str, ...]
    out: str = ""

    def caption(self, share: float = 0.0) -> str:
        """What it shows at this share of its length."""
        return self.captions[min(int(share * len(self.captions)), len(self.captions) - 1)]

    @contextlib.contextmanager
    def local(self) -> Iterator[Path]:
        """The file on this machine; from a bucket it is fetched for as long as it is read."""
        if not self.out:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "clip.mp4"
            open_storage(self.out).get_file(self.path, file)
            yield file


def find_clips(data: str, stock_caption: str = "") -> list[ClipSource]:
    """The videos of a folder, or of an OUT, in order.

    Args:
        data: a folder, or an OUT in a folder or a bucket.
        stock_caption: of videos that have none; empty: there must be one.

    Raises:
        InputError: if there are none, or some have no caption, naming them.
    """
    if is_in_bucket(data) or os.path.lexists(os.path.join(data, RUN_FILE)):
        return _of_run(data)
    folder = Path(os.path.expanduser(data))
    if not folder.is_dir():
        raise InputError(f"{data!r} is no folder", "name a folder of videos with captions, or the OUT of a run")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in VIDEOS and not _is_hidden(file, folder))
    if not files:
        raise InputError(f"there is no video in {data!r}", f"files that end in {', '.join(VIDEOS)} are taken")
    captions = _captions(folder)
    sources, bare = [], []
    for file in files:
        name = file.relative_to(folder).as_posix()
        beside = file.with_suffix(".txt")
        caption = captions.get(name, "") or (beside.read_text().strip() if beside.is_file() else "") or stock_caption
        if not caption:
            bare.append(name)
        sources.append(ClipSource(name=name, path=str(file.resolve()), captions=(caption,)))
    if bare:
        raise InputError(
            f"{len(bare)} of {len(files)} videos in {data!r} have no caption, the first is {bare[0]!r}",
            "write it to a .txt of the same name, to metadata.jsonl (file_name, prompt) or to a .csv, or give all "
            "of them one by --caption",
        )
    return sources


def _of_run(out: str) -> list[ClipSource]:
    storage = open_storage(out)
    record = read_run(storage)
    rows = list(Manifest(storage, record.settings.run.prompts_per_shard).read_rows())
    made = [row for row in rows if row.status == "ok" and row.uri is not None]
    if not made:
        raise InputError(f"no video of {out!r} was made", "train on a run that made some")
    return [
        ClipSource(name=row.id, path=path_in_out(str(row.uri)), captions=row.prompts, out=storage.root) for row in made
    ]


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _captions(folder: Path) -> dict[str, str]:
    """Captions by the file's path within the folder, of all tables in it.

    Raises:
        InputError: if a table cannot be read.
    """
    found: dict[str, str] = {}
    tables = [*sorted(folder.rglob("metadata.jsonl")), *sorted(folder.rglob("*.csv"))]
    for table in tables:
        try:
            text = table.read_text(encoding="utf-8-sig")
            lines = text.splitlines()
            if table.suffix == ".csv":
                rows: list[Mapping[str, Any]] = list(csv.DictReader(lines))
            else:
                rows = [json.loads(line) for line in lines if line.strip()]
            pairs = [(_column(row, FILE_COLUMNS), _column(row, CAPTION_COLUMNS)) for row in rows]
        except (OSError, UnicodeError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise InputError(
                f"captions in {str(table)!r} cannot be read: {error}",
                f"it needs a column of {', '.join(FILE_COLUMNS)}, and one of {', '.join(CAPTION_COLUMNS)}",
            ) from None
        place = table.parent.relative_to(folder)
        found |= {(place / name).as_posix(): caption for name, caption in pairs}
    return found


def _column(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if isinstance(value := row.get(name), str):
            return value.strip()
    raise KeyError(f"no column {' or '.join(names)}")


@dataclass(frozen=True)
class CutClip:
    """A clip of a video.

    Attributes:
        frames_FCHW: pixels of -1 ... 1.
        before_FCHW: frames that end with the clip's first ones, as many as were asked for; none where the video has too
            few before it.
        reference_CHW: a frame of the video, from outside the clip where there is one.
        start: of the clip in the video.
        middle: of the clip, as a share of the video.
    """

    frames_FCHW: torch.Tensor
    before_FCHW: torch.Tensor
    reference_CHW: torch.Tensor
    start: int
    middle: float


def cut_clip(
    file: Path,
    size_HW: tuple[int, int],
    num_frames: int,
    rng: np.random.Generator,
    *,
    num_before: int = 0,
    num_shared: int = 0,
) -> CutClip:
    """A random stretch of a video, all its frames cropped and scaled alike.

    Source: Stable Video Infinity, training data: the largest box of the frame's proportions, a little smaller at
    random, anywhere in the picture.

    Args:
        file: the video.
        size_HW: of the clip's frames.
        num_frames: of the clip.
        rng: where it begins, and what is cropped.
        num_before: frames of `before_FCHW`.
        num_shared: those of them that are the clip's own first ones.

    Raises:
        BadVideoError: if it cannot be read, or is too short.
    """
    try:
        total = count_frames(file)
    except Exception as error:  # ffmpeg's own
        raise BadVideoError(f"it cannot be read: {str(error).splitlines()[0][:200]}") from None
    if total < num_frames:
        raise BadVideoError(f"it has {total} frames, and a clip of this model has {num_frames}")
    start = int(rng.integers(total - num_frames + 1))
    outside = [*range(start), *range(start + num_frames, total)]
    reference = outside[int(rng.integers(len(outside)))] if outside else int(rng.integers(num_frames))
    first_before = start + num_shared - num_before if num_before else start
    crop = rng.random(3)
    kept: dict[int, torch.Tensor] = {}
    with contextlib.closing(read_frames(file)) as frames:  # type: ignore[type-var]  # a generator
        for number, frame_HWC in enumerate(frames):
            if number == reference or min(first_before, start) <= number < start + num_frames:
                kept[number] = _cropped(frame_HWC, size_HW, crop)
            if number >= max(reference, start + num_frames - 1):
                break
    if reference not in kept or start + num_frames - 1 not in kept:
        raise BadVideoError(f"it says that it has {total} frames, and ends before that")
    before = range(first_before, start + num_shared) if num_before and first_before >= 0 else range(0)
    clip_FCHW = torch.stack([kept[number] for number in range(start, start + num_frames)])
    before_FCHW = torch.stack([kept[number] for number in before]) if len(before) else clip_FCHW[:0]
    return CutClip(clip_FCHW, before_FCHW, kept[reference], start, (start + num_frames / 2) / total)


def _cropped(frame_HWC: np.ndarray, size_HW: tuple[int, int], crop_3: np.ndarray) -> torch.Tensor:
    """A frame `[C, H, W]`, cropped by how much, where across and where down (0 ... 1 each)."""
    have_height, have_width = frame_HWC.shape[:2]
    height, width = size_HW
    scale = min(have_height / height, have_width / width) * (1.0 - MAX_SHRINK * float(crop_3[0]))
    box_width, box_height = width * scale, height * scale
    left = float(crop_3[1]) * (have_width - box_width)
    top = float(crop_3[2]) * (have_height - box_height)
    box = (left, top, left + box_width, top + box_height)
    scaled = Image.fromarray(frame_HWC).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 127.5 - 1.0
