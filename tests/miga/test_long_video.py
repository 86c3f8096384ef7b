"""The Python API."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miga import LongVideoPipeline
from miga.errors import BadRowError, ConfigError, ModelError, UsageError


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> LongVideoPipeline:
    return LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("num_frames", [1, 5, 29, 61])
def test_a_video_has_the_frames_asked_for(pipe: LongVideoPipeline, num_frames: int) -> None:
    video = pipe("a red circle", num_frames=num_frames)
    assert video.frames.shape == (num_frames, 32, 32, 3)
    assert video.pixels.shape == video.frames.shape
    assert video.pixels.dtype == np.uint8
    assert video.fps == 8


def test_the_same_seed_gives_the_same_video_and_another_another(pipe: LongVideoPipeline) -> None:
    first, again, other = (pipe("a red circle", num_frames=37, seed=seed).pixels for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_streaming_gives_the_frames_of_the_whole_video(pipe: LongVideoPipeline) -> None:
    whole = pipe("a red circle", num_frames=61, seed=1).pixels
    assert np.array_equal(np.stack(list(pipe.stream("a red circle", num_frames=61, seed=1))), whole)


@pytest.mark.slow
def test_a_video_without_end_starts_like_a_long_one(pipe: LongVideoPipeline) -> None:
    """Only where the end is near do windows differ: a plan knows where the video ends."""
    endless = np.stack(list(itertools.islice(pipe.stream("a red circle", seed=1), 41)))
    assert np.array_equal(endless, pipe("a red circle", num_frames=121, seed=1).pixels[:41])


@pytest.mark.slow
def test_fifo_is_a_profile_like_any(tiny_model: Path) -> None:
    pipe = LongVideoPipeline.from_pretrained(str(tiny_model), profile="fifo", device="cpu")
    assert pipe("a red circle", num_frames=61).frames.shape == (61, 32, 32, 3)


@pytest.mark.slow
def test_later_prompts_change_later_frames_only(pipe: LongVideoPipeline) -> None:
    one = pipe("red circle", num_frames=121, seed=2).frames
    two = pipe(prompts_in_turn=["red circle", "blue square ground"], num_frames=121, seed=2).frames
    assert not np.array_equal(one[-1], two[-1])


def test_what_cannot_be_is_refused_before_any_work(pipe: LongVideoPipeline, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="57 or 61"):
        pipe("a red circle", num_frames=60)
    with pytest.raises(UsageError, match="seed"):
        pipe("a red circle", seed=2**64)
    with pytest.raises(UsageError, match="no prompt"):
        pipe(prompts_in_turn=[])
    with pytest.raises(BadRowError, match="blank"):
        pipe.stream("  ")
    with pytest.raises(ConfigError, match="paper"):
        LongVideoPipeline.from_pretrained(str(tiny_model), profile="papr")
    with pytest.raises(ModelError, match="nowhere"):
        LongVideoPipeline.from_pretrained("nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames 0 cannot be made"),
        ({"num_frames": -3}, "num_frames -3 cannot be made"),
        ({"num_frames": 61.0}, "num_frames 61.0 cannot be"),
        ({"num_frames": True}, "num_frames True cannot be"),
        ({"num_frames": "61"}, "num_frames '61' cannot be"),
        ({"num_frames": 4 * 10**40 + 1}, "at most 2147483647"),
        ({"num_frames": float("nan")}, "num_frames nan cannot be"),
        ({"seed": -1}, "seed -1 cannot be"),
        ({"seed": 1.0}, "seed 1.0 cannot be"),
        ({"seed": None}, "seed None cannot be"),
        ({"seed": "1"}, "seed '1' cannot be"),
        ({"seed": True}, "seed True cannot be"),
        ({"prompt": ()}, "prompt is a tuple of 0"),
        ({"prompt": None}, "no prompt given"),
        ({"prompt": 3}, "prompt is a int"),
        ({"prompt": b"a red circle"}, "prompt is a bytes"),
        ({"prompt": None, "prompts_in_turn": []}, "no prompt given"),
        ({"prompt": None, "prompts_in_turn": "a red circle"}, "prompts_in_turn is a str"),
        ({"prompt": None, "prompts_in_turn": ["a red circle", 3]}, "a list of something else than texts"),
        ({"prompts_in_turn": ["a red circle"]}, "more than one of prompt, prompts_in_turn and prompt_embeds"),
        ({"prompt": {"a": 1}}, "prompt is a dict"),
        ({"negative_prompt": 3}, "negative_prompt is a int"),
        ({"negative_prompt": ["x"]}, "negative_prompt is a list"),
        ({"frames_per_prompt": 0}, "frames_per_prompt 0 cannot be"),
        ({"frames_per_prompt": -4}, "frames_per_prompt -4 cannot be"),
        ({"frames_per_prompt": float("nan")}, "frames_per_prompt nan cannot be"),
        ({"frames_per_prompt": float("inf")}, "frames_per_prompt inf cannot be"),
        ({"frames_per_prompt": "9"}, "frames_per_prompt '9' cannot be"),
        ({"frames_per_prompt": 9, "prompt_frames": [0]}, "frames_per_prompt and prompt_frames are both given"),
        ({"prompt_frames": [0, 20]}, "prompt_frames [0, 20] cannot be of 1 prompts"),
        ({"prompt_frames": 20}, "prompt_frames 20 cannot be of 1 prompts"),
        ({"prompt_frames": [3]}, "prompt_frames [3] do not rise from 0 on"),
        ({"prompt": None, "prompts_in_turn": ["a", "b"], "prompt_frames": [0, 61]}, "too late in a video of 61"),
    ],
)
def test_arguments_that_cannot_be(pipe: LongVideoPipeline, arguments: dict[str, Any], message: str) -> None:
    call = pipe.stream if "frames_per_prompt" in arguments else pipe
    with pytest.raises(UsageError) as caught:
        call(**({"prompt": "a red circle", "num_frames": 61} | arguments))  # type: ignore[operator]
    assert message in str(caught.value)
    assert caught.value.hint
