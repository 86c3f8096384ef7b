"""The videos that are evaluated: a run's, by its manifest, or a plain folder's, by a prompt file beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from miga.encoding import AS_MP4, run_ffmpeg
from miga.errors import BadVideoError, InputError, OutputError
from miga.evaluation.measures import VideoForm
from pipeline.prompts.read import read_prompts
from pipeline.records.manifest import Manifest
from pipeline.records.references import video_name
from pipeline.records.run_folder import RUN_FILE, read_run
from pipeline.rows import PromptRow, first_frames
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.video import read_form

FOLDER: Final = "evaluation"
"""Of what an evaluation writes, in the folder of what it evaluates."""
_MOST_NAMED: Final = 5
_NUMBERED: Final = re.compile(r"(?P<prompt>.+)-\d{1,9}", re.DOTALL)
"""How VBench names its videos: the prompt, and which of several."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video to evaluate.

    Attributes:
        row: its position in the run's prompt file, or among the folder's files.
        id: the row's, or the file's name.
        path: in the storage of OUT; of a folder, the file's name.
        prompts: that it was made of; none if they are not known.
        prompt_frames: at which each of them begins; empty: they have even shares.
        seed: that it was made with, if known.
        sha256: of the file, if known.
        form: if the manifest has it; else it is looked at.
        consistency: the sampler's own trace, of a run's video.
    """

    row: int
    id: str
    path: str
    prompts: tuple[str, ...] = ()
    prompt_frames: tuple[int, ...] = ()
    seed: int | None = None
    sha256: str | None = None
    form: VideoForm | None = None
    consistency: tuple[float, ...] = ()


@dataclass(frozen=True)
class Videos:
    """What is to be evaluated.

    Attributes:
        videos: in order of their rows.
        num_without: rows of the run that have no video.
        model: of the run; None for a folder.
    """

    videos: Sequence[Video]
    num_without: int = 0
    model: str | None = None


def find_videos(storage: Storage, prompts: str | None = None, limit: int | None = None) -> Videos:
    """The videos of a run, or of a folder of MP4s.

    Args:
        storage: of either.
        prompts: a prompt file, for a folder.
        limit: only the first so many.

    Raises:
        OutputError: if there are none, or the manifest is broken.
        InputError: if the prompt file does not say of every video what it was made of.
    """
    if storage.exists(RUN_FILE):
        if prompts is not None:
            raise InputError(f"{storage.root} is a run, which knows its prompts", "leave --prompts out")
        return _of_run(storage, limit)
    names = _files_of(storage)[:limit]
    if not names:
        raise OutputError(
            f"{storage.root} holds neither a run nor any .mp4", "name the OUT of a run, or a local folder of MP4s"
        )
    rows = _prompts_of(names, prompts) if prompts is not None else {}
    folder = Path(storage.root)
    return Videos([_of_file(index, folder / name, rows.get(name)) for index, name in enumerate(names)])


def _files_of(storage: Storage) -> list[str]:
    """Names of the MP4s of a plain folder, which may be called anything."""
    folder = Path(storage.root)
    if not isinstance(storage, LocalStorage) or not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".mp4" and path.is_file())


def _of_run(storage: Storage, limit: int | None) -> Videos:
    record = read_run(storage)
    videos: list[Video] = []
    num_without = 0
    for row in Manifest(storage, record.settings.run.prompts_per_shard).read_rows():
        if limit is not None and len(videos) >= limit:
            break
        if row.status != "ok":
            num_without += 1
            continue
        known = row.num_frames, row.fps, row.height, row.width
        videos.append(
            Video(
                row=row.row,
                id=row.id,
                path=f"video/{row.shard:05d}/{video_name(row)}",
                prompts=row.prompts,
                prompt_frames=first_frames(row, row.fps or 0.0),
                seed=row.seed,
                sha256=row.sha256,
                form=None if None in known else VideoForm(*known),  # type: ignore[arg-type]
                consistency=row.final_consistency,
            )
        )
    if not videos:
        raise OutputError(f"{storage.root} holds no video yet", "make some first: see `miga status`")
    return Videos(videos, num_without, record.model)


def _of_file(index: int, path: Path, row: PromptRow | None) -> Video:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    prompts, seed = ((), None) if row is None else (row.prompts, row.seed)
    return Video(row=index, id=path.stem, path=path.name, prompts=prompts, seed=seed, sha256=sha256)


def _prompts_of(names: Sequence[str], prompts: str) -> Mapping[str, PromptRow]:
    """File → its row, by the row's id or by its prompt, as VBench names files; else in order, if as many there are."""
    rows = [row for row in read_prompts(prompts, seed=0, num_frames=1) if isinstance(row, PromptRow)]
    by_name = {row.id: row for row in rows} | {" ".join(row.prompts): row for row in rows}
    found: dict[str, PromptRow] = {}
    for name in names:
        stem = PurePosixPath(name).stem
        numbered = _NUMBERED.fullmatch(stem)
        row = by_name.get(stem) or (by_name.get(numbered["prompt"]) if numbered else None)
        if row is not None:
            found[name] = row
    if not found and len(rows) == len(names):
        return dict(zip(names, rows, strict=True))
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"{prompts} does not say what {', '.join(missing[:_MOST_NAMED])}"
            f"{' and others' if len(missing) > _MOST_NAMED else ''} was made of",
            "give rows the file's name (without .mp4) as id, or name files after their prompt, such as 'a dog-0.mp4'",
        )
    return found


def look_at_video(path: Path) -> tuple[VideoForm, str]:
    """What a video is, found by decoding it to its end; and what is to be said of it, if anything.

    Raises:
        BadVideoError: if it does not decode.
    """
    options = ["-v", "info", "-nostats", "-xerror", "-threads", "2", *AS_MP4, "-i", str(path), "-map", "0:v:0"]
    done = run_ffmpeg([*options, "-vf", "vfrdet", "-fps_mode", "passthrough", "-f", "null", "-progress", "pipe:1", "-"])
    counts = [line for line in done.stdout.decode().splitlines() if line.startswith("frame=")]
    log = done.stderr.decode(errors="replace")
    if done.returncode or not counts:
        raise BadVideoError(f"{path.name} does not decode to its end: {_why(log)}", "make or copy it again")
    num_frames = int(counts[-1].removeprefix("frame="))
    try:
        fps, height, width = read_form(path)
    except OSError as error:
        raise BadVideoError(f"{path.name} cannot be read: {_why(str(error))}", "make or copy it again") from error
    varying = re.search(r"VFR:(\d+\.\d+)", log)
    note = ""
    if varying and float(varying[1]) > 0:
        note = f"its frame rate varies: frames are taken as they come, and clips counted at {fps:g} a second"
    return VideoForm(num_frames, fps, height, width), note


def _why(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"rror|nvalid|not found|orrupt", line)]
    return re.sub(r"\[[^\]]*@ 0x[0-9a-f]+\] ?", "", (telling or lines or ["ffmpeg failed"])[0])[:200]
