"""What holds of every family that is loaded from a folder: parts alone, their dtypes, downloads, bad prompts."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import given
from hypothesis import strategies as st

from miga.backbones.pretrained import PretrainedBackbone
from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.text import _cleaned
from miga.errors import BadRowError

MOST_TOKENS = {"wan": 512, "videocrafter2": 77}
WORDS_OF_LONGEST = {"wan": "ball " * 511, "videocrafter2": "z " * 75}
"""A token each; Wan's tokenizer adds an end mark, CLIP's a start mark too."""


@pytest.fixture(scope="module")
def backbone(folder: Path) -> PretrainedBackbone:
    """Of the text encoder alone."""
    backbone = load_backbone(str(folder), device="cpu", components=("text",))
    assert isinstance(backbone, PretrainedBackbone)
    return backbone


def test_parts_are_loaded_alone(folder: Path, backbone: PretrainedBackbone) -> None:
    assert backbone.text is not None
    assert (backbone.network, backbone.vae) == (None, None)
    rest = load_backbone(str(folder), device="cpu", components=("denoiser", "vae"))
    assert rest.text is None
    assert not any(weight.requires_grad for part in (rest.network, rest.vae) for weight in part.parameters())
    checker = load_backbone(str(folder), device="cpu", components=("tokenizer",))
    assert (checker.text.encoder, checker.network, checker.vae) == (None, None, None)
    nothing = load_backbone(str(folder), device="cpu", components=())
    assert (nothing.text, nothing.spec) == (None, load_spec(str(folder)))


def test_the_vae_stays_in_float32(folder: Path) -> None:
    backbone = load_backbone(str(folder), device="cpu", dtype=torch.bfloat16)
    assert backbone.network.dtype == torch.bfloat16
    assert backbone.text.encoder.dtype == torch.bfloat16
    assert backbone.vae.dtype == torch.float32


def test_only_the_files_of_the_parts_are_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def deliver(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("someone/else", "v1")
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", deliver)
    backbone = load_backbone("someone/else", revision="v1", device="cpu", components=("vae",))
    assert backbone.spec.name == "someone/else"
    assert {"vae/*", "miga.json"} < set(asked)
    assert not any(pattern.startswith(("text_encoder/*", "transformer/*", "unet/*")) for pattern in asked)


@pytest.mark.parametrize("blank", ["", "  \n\t", "&nbsp;"])
def test_blank_prompt(backbone: PretrainedBackbone, blank: str) -> None:
    with pytest.raises(BadRowError, match="blank"):
        backbone.check_prompt(blank)


def test_the_longest_prompt(backbone: PretrainedBackbone, family: str) -> None:
    backbone.check_prompt(WORDS_OF_LONGEST[family])
    assert len(backbone.encode_prompts([WORDS_OF_LONGEST[family]])[0]) == MOST_TOKENS[family]


def test_many_prompts_are_judged_as_each_by_itself(backbone: PretrainedBackbone, family: str) -> None:
    longest = WORDS_OF_LONGEST[family]
    words = longest.split()
    prompts = [
        longest, " ".join([*words, words[0]]), "",
        " \n\t", "&nbsp;", "&amp; so", "l\u2019\u00e9t\u00e9", "\u2800", "A cat",
        "schÃ¶n", words[0] * 200, "\U0001f408 " * 150, "x" * 40,
    ]  # fmt: skip

    def alone(prompt: str) -> str | None:
        try:
            backbone.check_prompt(prompt)
        except BadRowError as error:
            return str(error)
        return None

    (embedding,) = backbone.encode_prompts(["A cat"])
    together = [error and str(error) for error in backbone.check_prompts(prompts)]
    assert together == [alone(prompt) for prompt in prompts]
    assert None in together
    assert any(error and "blank" in error for error in together)
    assert any(error and "tokens" in error for error in together)
    assert backbone.check_prompts([]) == []
    assert torch.equal(backbone.encode_prompts(["A cat"])[0], embedding), "the tokenizer is as it was"


@given(st.text(max_size=40) | st.text("ab &;<>'\"\\-#", max_size=40))
def test_cleaning_is_as_in_diffusers(text: str) -> None:
    assert _cleaned(text) == prompt_clean(text)


def test_prompt_that_is_too_long(folder: Path, backbone: PretrainedBackbone, family: str) -> None:
    most, words = MOST_TOKENS[family], WORDS_OF_LONGEST[family].split()
    too_long = " ".join([*words, words[0]])
    checker = load_backbone(str(folder), device="cpu", components=("tokenizer",))
    with pytest.raises(BadRowError, match=f"{most + 1} tokens, the model reads {most}") as error:
        checker.check_prompt(too_long)
    assert "shorten" in error.value.hint
    with pytest.raises(BadRowError, match=f"{most + 1} tokens"):
        backbone.encode_prompts([words[0], too_long])
