"""NarrLV's questions put to a judge about the videos of a run, and what came of it, row by row.

Every answer is a line of a file and is not asked for again. A call that failed is a line too: it is reported with its
row, counts nowhere, and is asked again by the next run.
"""

from __future__ import annotations

import io
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from PIL import Image

from miga.errors import InputError, MigaError, UsageError
from pipeline.evaluation.line_log import Line, LineLog
from pipeline.evaluation.local_video import local_video
from pipeline.evaluation.narrlv import (
    NUM_FRAMES,
    NUM_SAMPLES,
    NarrlvPrompt,
    NarrlvScores,
    Question,
    frames_seen,
    num_unusable,
    score_video,
    share_of_yes,
)
from pipeline.evaluation.vision_judge import JudgeFailedError, JudgeRefusedError, VisionJudge
from pipeline.records.references import video_name
from pipeline.rows import ManifestRow
from pipeline.storage.base import Storage
from pipeline.video import Frames, read_frames

VERSION: Final = 1
MOST_FAILED_IN_A_ROW: Final = 25
"""Calls, after which the judge is taken to be out of order."""
_JPEG_QUALITY: Final = 95
_PATCH: Final = 28
"""Pixels of a side that are one token to Qwen2.5-VL, for estimates."""
_LETTERS_A_TOKEN: Final = 4

Key: TypeAlias = tuple[int, str, str, int]
"""Row, category, question, sample."""
Quality: TypeAlias = Callable[[ManifestRow, Frames], float | None]
"""The quality of a video's first frame `[H, W, 3]`, 1 to 5; None: unknown."""


@dataclass(frozen=True)
class AskedVideo:
    """A video of the run, and the prompt of NarrLV that it was made of."""

    row: ManifestRow
    prompt: NarrlvPrompt

    @property
    def path(self) -> str:
        """Of the video in the run's storage."""
        return f"video/{self.row.shard:05d}/{video_name(self.row)}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What is still to be asked.

    Attributes:
        num_videos: that have questions open.
        num_questions: that are open.
        num_calls: one for each sample.
        num_frames: that are sent.
        num_tokens: about, of prompts, as Qwen2.5-VL counts them.
        num_known: answers that are there already.
    """

    num_videos: int
    num_questions: int
    num_calls: int
    num_frames: int
    num_tokens: int
    num_known: int


@dataclass(frozen=True, kw_only=True)
class VideoReport:
    """What came of a video.

    Attributes:
        num_void: questions with too few usable answers.
        num_unusable: answers that say neither yes nor no.
        num_missing: samples without an answer.
        faults: why, the newest for each question, by what it is of.
    """

    video: AskedVideo
    scores: NarrlvScores
    quality: float | None
    num_questions: int
    num_void: int
    num_unusable: int
    num_missing: int
    faults: Mapping[str, str]


@dataclass
class Known:
    """What the file of answers holds.

    Attributes:
        answers: by key.
        faults: by key; those that have an answer since are left out.
    """

    answers: dict[Key, str] = field(default_factory=dict)
    faults: dict[Key, str] = field(default_factory=dict)


def match_videos(rows: Iterable[ManifestRow], prompts: Sequence[NarrlvPrompt]) -> tuple[list[AskedVideo], list[str]]:
    """The videos that were made of these prompts, and the others in words.

    A row is known by the `narrlv` that `miga prompts narrlv` puts beside its prompt, else by its prompts.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    by_texts = {prompt.prompts: prompt for prompt in reversed(prompts)}
    found: list[AskedVideo] = []
    others: list[str] = []
    for row in rows:
        metadata = json.loads(row.metadata)
        name = metadata.get("narrlv") if isinstance(metadata, dict) else None
        prompt = by_id.get(name) if isinstance(name, str) else by_texts.get(row.prompts)
        if prompt is None or prompt.prompts != row.prompts:
            others.append(f"row {row.row} ({row.id}) is of no prompt in these files")
        elif row.status != "ok":
            others.append(f"row {row.row} ({row.id}) has no video: {row.error_type}")
        else:
            found.append(AskedVideo(row, prompt))
    return found, others


def header_line(judge: str, samples: int) -> dict[str, Any]:
    """The first line of a file of answers."""
    return {"line": "narrlv", "version": VERSION, "judge": judge, "samples": samples}


def read_known(lines: Sequence[Line], videos: Sequence[AskedVideo], header: Mapping[str, Any], path: str) -> Known:
    """The answers that a file holds about these videos; what is of another video of the same row does not count.

    Raises:
        UsageError: if they are another judge's, or of another number of samples.
        InputError: if it is no file of answers.
    """
    known = Known()
    if not lines:
        return known
    first = lines[0].values
    if first.get("line") != "narrlv":
        raise InputError(f"{path} is no file of a judge's answers", "name one that `miga narrlv` has made")
    if unlike := [f"{name} {first.get(name)!r}" for name, value in header.items() if first.get(name) != value]:
        raise UsageError(f"{path} holds other answers: {', '.join(unlike)}", "name another file: --answers FILE.jsonl")
    digests = {video.row.row: video.row.sha256 for video in videos}
    for _, values in lines[1:]:
        key = _key_of(values)
        if key is None or digests.get(key[0]) != values.get("sha256"):
            continue
        if values["line"] == "answer" and isinstance(values.get("text"), str):
            known.answers.setdefault(key, values["text"])
            known.faults.pop(key, None)
        elif values["line"] == "fault" and key not in known.answers:
            known.faults[key] = str(values.get("error"))
    return known


def _key_of(values: Mapping[str, Any]) -> Key | None:
    row, category, question, sample = (values.get(name) for name in ("row", "category", "question", "sample"))
    if values.get("line") not in ("answer", "fault") or type(row) is not int or type(sample) is not int:
        return None
    return (row, category, question, sample) if isinstance(category, str) and isinstance(question, str) else None


def open_keys(video: AskedVideo, known: Known, samples: int = NUM_SAMPLES) -> list[tuple[Question, Key]]:
    """What is still to be asked about a video."""
    return [
        (question, key)
        for question in video.prompt.questions
        for sample in range(samples)
        if (key := (video.row.row, question.category, question.text, sample)) not in known.answers
    ]


def cost_of(videos: Sequence[AskedVideo], known: Known, samples: int = NUM_SAMPLES) -> Cost:
    """What asking all that is open costs."""
    calls = frames = tokens = questions = asked = 0
    for video in videos:
        wanted = open_keys(video, known, samples)
        asked += bool(wanted)
        questions += len({question for question, _ in wanted})
        side = -(-(video.row.height or 0) // _PATCH) * -(-(video.row.width or 0) // _PATCH)
        for question, _ in wanted:
            seen = 1 if question.sees_first_frame_alone else NUM_FRAMES
            calls, frames = calls + 1, frames + seen
            tokens += seen * side + len(question.text) // _LETTERS_A_TOKEN
    return Cost(
        num_videos=asked,
        num_questions=questions,
        num_calls=calls,
        num_frames=frames,
        num_tokens=tokens,
        num_known=len(known.answers),
    )


def seen_frames(storage: Storage, video: AskedVideo) -> list[Frames]:
    """The frames `[H, W, 3]` that the judge sees, the first one first.

    Raises:
        MigaError: if the video cannot be read, or is shorter than the manifest says.
    """
    places = frames_seen(video.row.num_frames or 1)
    wanted = set(places)
    with local_video(storage, video.path) as file:
        try:
            found = {number: frame.copy() for number, frame in enumerate(read_frames(file)) if number in wanted}
        except (OSError, RuntimeError, ValueError, StopIteration) as error:
            raise JudgeFailedError(f"the video cannot be read: {type(error).__name__}: {error}") from error
    if lacking := wanted - set(found):
        raise JudgeFailedError(f"the video ends before frame {min(lacking)}; see `miga verify OUT`")
    return [found[place] for place in places]


def as_jpeg(frame_HWC: Frames) -> bytes:
    """A frame as a JPEG."""
    sink = io.BytesIO()
    Image.fromarray(frame_HWC).save(sink, "JPEG", quality=_JPEG_QUALITY)
    return sink.getvalue()


class Asker:
    """Puts what is open to a judge, several calls at once, and notes every answer.

    Args:
        storage: of the run.
        judge: who answers.
        log: the file of answers; its first line is there.
        known: what it holds; what comes is added.
        samples: of each question.
        on_call: is told of every call that has ended.
    """

    def __init__(
        self,
        storage: Storage,
        judge: VisionJudge,
        log: LineLog,
        known: Known,
        samples: int = NUM_SAMPLES,
        on_call: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage, self._judge, self._log, self._known = storage, judge, log, known
        self._samples, self._on_call = samples, on_call
        self._lock = threading.Lock()
        self._num_failed = 0

    def ask_all(self, videos: Sequence[AskedVideo]) -> None:
        """Returns when all that is open was asked once.

        Raises:
            JudgeRefusedError: if the judge answers nothing; what was answered before is kept.
            OutputError: if an answer cannot be written.
        """
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(self._judge.at_once, "miga-judge") as threads:
            try:
                for call in self._calls(videos):
                    if len(running) >= 2 * self._judge.at_once:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                    running.add(threads.submit(call))
                for future in running:
                    future.result()
            except BaseException:
                for future in running:
                    future.cancel()
                raise

    def _calls(self, videos: Sequence[AskedVideo]) -> Iterator[Callable[[], None]]:
        for video in videos:
            wanted = open_keys(video, self._known, self._samples)
            if not wanted:
                continue
            try:
                frames = [as_jpeg(frame) for frame in seen_frames(self._storage, video)]
            except JudgeRefusedError:
                raise
            except MigaError as error:  # the video, not the judge
                for _, key in wanted:
                    self._note_fault(video, key, error.message)
                continue
            for question, key in wanted:
                yield self._call(video, question, key, frames)

    def _call(self, video: AskedVideo, question: Question, key: Key, frames: Sequence[bytes]) -> Callable[[], None]:
        def call() -> None:
            seen = frames[:1] if question.sees_first_frame_alone else frames
            try:
                text = self._judge.ask(seen, question.text, key[3])
            except JudgeFailedError as error:
                self._note_fault(video, key, error.message)
                self._count(True)
            else:
                self._log.append(_line("answer", video, key) | {"text": text})
                with self._lock:
                    self._known.answers[key] = text
                    self._known.faults.pop(key, None)
                self._count(False)
            self._on_call()

        return call

    def _note_fault(self, video: AskedVideo, key: Key, error: str) -> None:
        self._log.append(_line("fault", video, key) | {"error": error})
        with self._lock:
            self._known.faults[key] = error

    def _count(self, has_failed: bool) -> None:
        with self._lock:
            self._num_failed = self._num_failed + 1 if has_failed else 0
            if self._num_failed >= MOST_FAILED_IN_A_ROW:
                fault = next(reversed(self._known.faults.values()))
                raise JudgeRefusedError(
                    f"{self._num_failed} calls in a row were not answered, the last: {fault}",
                    "see what is wrong with the judge, then run this again: what was answered is kept",
                )


def _line(kind: str, video: AskedVideo, key: Key) -> dict[str, Any]:
    row, category, question, sample = key
    about = {"line": kind, "row": row, "sha256": video.row.sha256, "category": category}
    return about | {"question": question, "sample": sample}


def report_of(video: AskedVideo, known: Known, quality: float | None, samples: int = NUM_SAMPLES) -> VideoReport:
    """What the answers say of a video."""
    shares: dict[str, list[float | None]] = defaultdict(list)
    unusable = missing = 0
    faults: dict[str, str] = {}
    for question in video.prompt.questions:
        keys = [(video.row.row, question.category, question.text, sample) for sample in range(samples)]
        answers = [known.answers.get(key) for key in keys]
        shares[question.category].append(share_of_yes(answers, samples))
        unusable += num_unusable(answers)
        missing += answers.count(None)
        for key in keys:
            if key in known.faults:
                faults[f"{question.category}: {question.text}"] = known.faults[key]
    return VideoReport(
        video=video,
        scores=score_video(shares, quality),
        quality=quality,
        num_questions=len(video.prompt.questions),
        num_void=sum(share is None for category in shares.values() for share in category),
        num_unusable=unusable,
        num_missing=missing,
        faults=faults,
    )
