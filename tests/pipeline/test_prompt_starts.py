"""Where the prompts of a row begin: what a prompt file may say, what is refused, and which latents it comes to."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from jobs.run.estimate import dry_run
from jobs.run.plan import make_plan
from miga.backbones.registry import load_spec
from miga.clips import ClipLayout
from miga.metrics.sprites import scenes_of, wanted_scenes
from miga.profiles import resolve_config, why_no_starts
from miga.prompts import PromptTrack
from pipeline.config import RunConfig
from pipeline.prompts.read import read_prompts
from pipeline.report.cards import prompt_spans
from pipeline.rows import BadRow, PromptRow, first_frames, video_key

CAPTIONS = ["a red circle circling clockwise on a teal ground", "a blue circle circling clockwise on a teal ground"]
THREE = [*CAPTIONS, "a green ring circling clockwise on a grey ground"]
SPRITES = load_spec("sprites")


def rows_of(folder: Path, *rows: dict[str, Any]) -> list[PromptRow | BadRow]:
    file = folder / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_prompts(str(file), seed=0, num_frames=93))


def test_frames_and_seconds_with_and_without_the_first(tmp_path: Path) -> None:
    said = [
        {"prompt_frames": [0, 20, 40]}, {"prompt_frames": [20, 40.0]}, {"prompt_times": [0, 1.25, 2.5]},
        {"prompt_times": [1.25, 2.5]}, {"prompt_frames": None}, {},
    ]  # fmt: skip
    rows = rows_of(tmp_path, *({"prompt": THREE, **each} for each in said))
    assert [first_frames(row, 16.0) for row in rows] == [(0, 20, 40)] * 4 + [()] * 2  # type: ignore[arg-type]
    assert not any(row.metadata for row in rows)
    single = rows_of(tmp_path, {"prompt": "a", "prompt_frames": [0]}, {"prompt": ["a"], "prompt_times": []})
    assert [first_frames(row, 16.0) for row in single] == [(), ()]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"prompt_frames": 20}, "prompt_frames is 20, not a list of numbers"),
        ({"prompt_frames": "0, 20"}, "prompt_frames is '0, 20', not a list"),
        ({"prompt_frames": [0, 20]}, "has 2 numbers, and there are 3 prompts; write the frame at which each"),
        ({"prompt_frames": [4, 20, 40]}, "begins with 4; the first prompt begins at 0"),
        ({"prompt_frames": [0, 40, 40]}, "do not rise: prompt 3 begins at 40, the one before it at 40"),
        ({"prompt_frames": [0, 2.5, 40]}, "number 2 of prompt_frames is 2.5, not a whole number; for seconds"),
        ({"prompt_frames": [0, True, 40]}, "number 2 of prompt_frames is True"),
        ({"prompt_times": [0, "1", 2]}, "number 2 of prompt_times is '1'; write the second at which each"),
        ({"prompt_times": [0, 1e12, 2e12]}, "number 2 of prompt_times is 1000000000000.0"),
        ({"prompt_times": [0, -1, 2]}, "do not rise: prompt 2 begins at -1.0"),
        ({"prompt_times": [0, 1, 2], "prompt_frames": [0, 20, 40]}, "there are 'prompt_frames' and 'prompt_times'"),
    ],
)
def test_what_cannot_be_is_one_bad_row(said: dict[str, Any], why: str, tmp_path: Path) -> None:
    good, bad = rows_of(tmp_path, {"prompt": THREE}, {"prompt": THREE, **said})
    assert isinstance(good, PromptRow)
    assert isinstance(bad, BadRow)
    assert why in bad.error


def test_latents_are_those_that_show_the_frames() -> None:
    for frame in range(93):
        latent = SPRITES.latent_at(frame)
        assert SPRITES.num_frames(latent + 1) > frame >= (SPRITES.num_frames(latent) if latent else 0)
    chain = SPRITES.of_clips(ClipLayout(12, drop_tail=5))  # clips of 45 frames, 40 of each but the last
    assert [chain.latent_at(frame) for frame in (0, 39, 40, 41, 79, 80)] == [0, 10, 12, 13, 22, 24]
    headed = SPRITES.of_clips(ClipLayout(12, drop_head=1))
    assert [headed.latent_at(frame) for frame in (44, 45, 88, 89)] == [11, 13, 23, 25]


@pytest.mark.parametrize("profile", ["swift", "paper", "fifo", "longlive", "stage-2-only"])
def test_where_prompts_can_begin(profile: str) -> None:
    config = resolve_config(profile, SPRITES, {})
    assert why_no_starts(config, SPRITES, 93, (0, 33, 60)) is None
    assert "prompt 2 begins at frame 93, too late in a video of 93 frames" in str(
        why_no_starts(config, SPRITES, 93, (0, 93))
    )
    assert "prompts 2 and 3 begin at frames 33 and 34" in str(why_no_starts(config, SPRITES, 93, (0, 33, 34)))
    late = why_no_starts(config, SPRITES, 93, (0, 90))
    if profile == "longlive":  # the last block of 24 latents begins with latent 21, which shows frames 81 to 84
        assert str(late).endswith("the latest frame is 84")
        assert why_no_starts(config, SPRITES, 93, (0, 84)) is None
    else:
        assert late is None
    assert why_no_starts(config, SPRITES, None, (0, 9000)) is None


def test_a_track_from_given_latents_on() -> None:
    track = PromptTrack("abc", starts=(0, 5, 6))
    assert "".join(track.at(latent) for latent in range(-2, 9)) == "aaaaaaabccc"
    assert [track.first(number) for number in range(3)] == [0, 5, 6]
    for starts in ((0, 5), (1, 5, 6), (0, 5, 5)):
        with pytest.raises(ValueError, match="begin at"):
            PromptTrack("abc", starts=starts)


def test_a_dry_run_judges_and_counts_them(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    rows = [
        {"prompt": CAPTIONS},
        {"prompt": THREE, "prompt_frames": [0, 40, 70]},
        {"prompt": CAPTIONS, "prompt_times": [9]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig(profile="longlive", num_frames=93)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dry_run(make_plan(str(file), str(tmp_path / "out"), config), 1)
    assert found["network_calls"] == 2 * 5 * 8 + 1 + 2  # blocks, and a re-cache a change
    assert ["too late in a video of 93 frames" in bad["error"] for bad in found["bad"]] == [True]


def test_scores_and_pages_read_them() -> None:
    scenes = scenes_of(CAPTIONS)
    assert scenes is not None
    form = {"frames_first_latent": 1, "frames_per_latent": 4}
    wanted = wanted_scenes(scenes, 41, **form, prompt_frames=(0, 11))
    assert [scenes.index(scene) for scene in wanted] == [0] * 9 + [1] * 32  # latent 3 shows frames 9 to 12
    row = {"prompts": CAPTIONS, "num_latents": 11, "num_frames": 41, "fps": 16.0}
    assert prompt_spans(row | {"prompt_frames": [0, 11]}) == [(0, 3, 0, 11), (3, 11, 11, 41)]
    assert prompt_spans(row | {"prompt_frames": [], "prompt_times": [0.0, 0.6875]})[1] == (3, 11, 11, 41)


def test_a_video_is_named_by_them_only_where_they_are_said() -> None:
    plain = video_key(("a", "b"), None, 1, 9, {}, "r")
    assert plain == video_key(("a", "b"), None, 1, 9, {}, "r", prompt_frames=())
    others = [{"prompt_frames": (0, 5)}, {"prompt_frames": (0, 6)}, {"prompt_times": (0.0, 5.0)}]
    assert len({plain, *(video_key(("a", "b"), None, 1, 9, {}, "r", **each) for each in others)}) == 4
