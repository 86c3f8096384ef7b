"""NarrLV: does a video tell all the parts of its prompt, one after the other? Prompts, questions and scores.

A prompt has so many *temporal narrative atoms* (TNA): things that are the case one after the other. A judge is asked
yes-or-no questions about the video; each is asked several times, and counts with the share of yes.

Source: NarrLV (Apache-2.0), its prompt files and the rules of its scores, written anew. Where its program is known to
err we do not follow: an answer is read by its first word, not by whether "no" stands anywhere in it ("know",
"nothing"), and a question that too few answers can be read of is void, and counts nowhere.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from miga.errors import InputError
from miga.outside_data import OutsideDataError, parse_json_object, read_file

NUM_SAMPLES: Final = 5
_LEAST_USABLE: Final = 3
"""Of five samples of a question; with fewer it is void."""
NUM_FRAMES: Final = 10
"""That a judge sees of a video, evenly from the first to the last."""

STATIC: Final = ("Scene Type", "Main Target Category", "Initial Scene Attributes", "Main Target Layout")
"""Categories about how the video begins: of these the judge sees the first frame alone."""
ANOMALIES: Final = ("Scene Anomaly Detection", "Main Target Anomaly Detection")
"""Categories in which yes is bad."""
EVOLUTIONS: Final = ("Scene Attribute Evolution", "Main Target Action Evolution", "Main Target Attribute Evolution")
"""What may change; the first that a prompt has is the one whose atoms are looked at one by one."""

_PRESENT: Final = 0.3
"""Below this share of yes a scene, an object or an atom is taken not to be there."""
_SHOWN: Final = 0.2
"""Above this an atom counts as shown."""
_QUALITY_SCALE: Final = 0.2
"""The quality of the first frame is 1 to 5."""
_NAME: Final = re.compile(r"(?:prompt_suit_v\d+_)?(?P<factor>[a-z_]+?)_tna_(?P<number>\d)")
_FIRST_WORD: Final = re.compile(r"\W*([A-Za-z]+)")
_MOST_ENTRIES: Final = 100_000


@dataclass(frozen=True)
class Question:
    """One question about a video.

    Attributes:
        category: that it belongs to.
        index: among its category's.
        text: as the judge is asked.
    """

    category: str
    index: int
    text: str

    @property
    def sees_first_frame_alone(self) -> bool:
        """Whether the judge sees nothing but the first frame."""
        return self.category in STATIC


@dataclass(frozen=True, kw_only=True)
class NarrlvPrompt:
    """One entry of a prompt file.

    Attributes:
        suite: factor and number of atoms, such as "scene_attribute, 2 atoms".
        id: of the entry: its file's name in short, category of the scene, position.
        prompts: a sentence for each atom: what a video of prompts in turn is made of.
        text: all of it in one text.
        questions: in the file's order.
    """

    suite: str
    id: str
    prompts: tuple[str, ...]
    text: str
    questions: tuple[Question, ...]


def read_prompts(path: str) -> list[NarrlvPrompt]:
    """The entries of one of NarrLV's prompt files.

    Raises:
        InputError: if it is none.
    """
    try:
        groups = parse_json_object(read_file(path))
        return [entry for scene, entries in groups.items() for entry in _entries(path, scene, entries)]
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}", "NarrLV's prompt files are in its repository") from error
    except OutsideDataError as error:
        raise InputError(
            f"{path} is no prompt file of NarrLV: {error}",
            "name one such as prompt_suit_v4_scene_attribute_tna_2.json; those of 2, 3 and 4 atoms are whole",
        ) from error


def _entries(path: str, scene: str, entries: Any) -> list[NarrlvPrompt]:
    if not isinstance(entries, list) or len(entries) > _MOST_ENTRIES:
        raise OutsideDataError(f"{scene!r} is no list of entries")
    found = _NAME.search(PurePath(path).stem)
    factor, number = (found["factor"], found["number"]) if found else (PurePath(path).stem, "")
    short = f"{factor}-{number}" if number else factor
    suite = f"{factor}, {number} atoms" if number else factor
    return [_entry(entry, suite, f"{short}-{scene}_{index}") for index, entry in enumerate(entries)]


def _entry(entry: Any, suite: str, name: str) -> NarrlvPrompt:
    if not isinstance(entry, dict):
        raise OutsideDataError(f"{name} is no object")
    text, prompts, asked = (entry.get(key) for key in ("prompt_gen", "prompt_gen_list_extract", "auto_gen_question"))
    if not isinstance(text, str) or not _is_texts(prompts) or not isinstance(asked, dict):
        raise OutsideDataError(f"{name} lacks prompt_gen, prompt_gen_list_extract or auto_gen_question")
    assert isinstance(prompts, list)
    questions = []
    for category, texts in asked.items():
        if texts is None:
            continue
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise OutsideDataError(f"{name}: the questions of {category!r} are no list of texts")
        questions += [Question(category.strip(), index, each) for index, each in enumerate(texts)]
    return NarrlvPrompt(suite=suite, id=name, prompts=tuple(prompts), text=text, questions=tuple(questions))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each.strip() for each in value)


def prompt_lines(prompts: Iterable[NarrlvPrompt]) -> list[dict[str, Any]]:
    """The rows of a prompt file of ours: the atoms as prompts in turn."""
    return [
        {"id": each.id, "prompt": list(each.prompts), "narrlv": each.id, "narrlv_suite": each.suite} for each in prompts
    ]


def frames_seen(num_frames: int, count: int = NUM_FRAMES) -> list[int]:
    """Frames that a judge sees of a video: evenly from the first to the last, rounded down."""
    if count < 2 or num_frames < 2:
        return [0] * max(1, min(count, num_frames))
    return [math.floor(index * (num_frames - 1) / (count - 1)) for index in range(count)]


# ---- answers ----


def read_answer(text: str | None) -> bool | None:
    """Yes or no, by the first word; None: neither."""
    found = _FIRST_WORD.match(text or "")
    return {"yes": True, "no": False}.get(found[1].lower()) if found else None


def least_usable(samples: int) -> int:
    """Answers of a question that must be readable for it to count: three of five, and as many of other numbers."""
    return -(-samples * _LEAST_USABLE // NUM_SAMPLES)


def share_of_yes(answers: Sequence[str | None], samples: int = NUM_SAMPLES) -> float | None:
    """Of the answers that can be read; None where these are too few: the question is void.

    Args:
        answers: to one question; None: no answer.
        samples: that were asked for.
    """
    read = [answer for answer in map(read_answer, answers) if answer is not None]
    return sum(read) / len(read) if len(read) >= least_usable(samples) else None


def num_unusable(answers: Sequence[str | None]) -> int:
    """Answers that were given, and say neither yes nor no."""
    return sum(answer is not None and read_answer(answer) is None for answer in answers)


# ---- scores ----


@dataclass(frozen=True, kw_only=True)
class NarrlvScores:
    """Of one video, or means over several; None where nothing was answered that it could be made of.

    Attributes:
        fidelity, coverage, coherence: as NarrLV has them, with the quality of the first frame; None without one.
        fidelity_without_quality: mean of the categories about scene, objects, layout and anomalies.
        coverage_without_quality: mean share of yes over the atoms.
        coherence_without_quality: mean of that over transitions and the share of atoms that are shown.
    """

    fidelity: float | None = None
    coverage: float | None = None
    coherence: float | None = None
    fidelity_without_quality: float | None = None
    coverage_without_quality: float | None = None
    coherence_without_quality: float | None = None


def score_video(shares: Mapping[str, Sequence[float | None]], quality: float | None = None) -> NarrlvScores:
    """The three scores of one video.

    Args:
        shares: category → share of yes of each of its questions, in order; None: the question is void. A void question
            counts nowhere: neither in the mean of its category, nor as an atom that is not there.
        quality: of the first frame, 1 to 5, as Q-Align gives it; None: unknown, then the three of them are None.
    """
    means = {name: _mean(values) for name, values in shares.items()}
    fidelity = _mean([_fidelity_part(name, means) for name in (*STATIC, *ANOMALIES)])
    first = next((name for name in EVOLUTIONS if f"{name}_0" in shares or f"{name}_1" in shares), None)
    others = sorted({name[:-2] for name in shares if name.endswith((" Evolution_0", " Evolution_1"))} - {first})
    atoms = list(shares.get(f"{first}_0", ()))
    steps = _steps(atoms, shares.get(f"{first}_1", ()))
    coverage = _mean([_mean(atoms), *(means.get(f"{name}_0") for name in others)])
    transitions = _mean([_mean(steps), *(means.get(f"{name}_1") for name in others)])
    shown = _mean([None if atom is None else float(atom > _SHOWN) for atom in atoms])
    has_coherence = transitions is not None and shown is not None
    q = None if quality is None else _QUALITY_SCALE * quality
    return NarrlvScores(
        fidelity=None if fidelity is None or q is None else (fidelity + q) / 2,
        coverage=None if coverage is None or q is None else (coverage + q) / 2,
        coherence=(transitions + q + shown) / 3 if has_coherence and q is not None else None,  # type: ignore[operator]
        fidelity_without_quality=fidelity,
        coverage_without_quality=coverage,
        coherence_without_quality=(transitions + shown) / 2 if has_coherence else None,  # type: ignore[operator]
    )


def _fidelity_part(name: str, means: Mapping[str, float | None]) -> float | None:
    mean = means.get(name)
    if mean is None:
        return None
    if name in ANOMALIES:
        return 1.0 - mean
    needed = (means.get("Main Target Category"), means.get("Scene Type"))
    if name == "Main Target Layout" and any(each is not None and each < _PRESENT for each in needed):
        return 0.0  # a layout of what is not there
    return mean


def _steps(atoms: Sequence[float | None], transitions: Sequence[float | None]) -> list[float | None]:
    """Transitions, 0 where an atom on either side is not there."""
    found: list[float | None] = []
    for index, share in enumerate(transitions):
        beside = [atom for atom in atoms[index : index + 2] if atom is not None]
        found.append(0.0 if share is not None and any(atom < _PRESENT for atom in beside) else share)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None: there is none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


SCORE_NAMES: Final = tuple(NarrlvScores.__dataclass_fields__)


def mean_scores(scores: Sequence[NarrlvScores]) -> tuple[NarrlvScores, Counter[str]]:
    """Means over videos, each over those that have it, and how many these are."""
    columns = {name: [value for each in scores if (value := getattr(each, name)) is not None] for name in SCORE_NAMES}
    return (
        NarrlvScores(**{name: _mean(column) for name, column in columns.items()}),
        Counter({name: len(column) for name, column in columns.items()}),
    )
