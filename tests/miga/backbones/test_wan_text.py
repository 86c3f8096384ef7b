"""Text embeddings equal WanPipeline's; bad prompts are found before any work is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from miga.backbones.wan import WanBackbone
from miga.errors import BadRowError
from tests.tiny_wan import build_tiny_wan, load_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> WanBackbone:
    return WanBackbone.from_pretrained(folder, device="cpu", components=("text",))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> WanPipeline:
    return load_pipeline(folder)


PROMPTS = ["a red ball rolls.", "  A  red &amp; blue\n boat ", "lâ\x80\x99eau ï¼ˆred）", "", "ball " * 120]


@torch.no_grad()
def test_embeddings_equal_the_pipeline(backbone: WanBackbone, pipeline: WanPipeline) -> None:
    for prompt, embedding in zip(PROMPTS, backbone.encode_prompts(PROMPTS), strict=True):
        expected, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)
        assert embedding.dtype == torch.float32
        assert torch.equal(torch.nn.functional.pad(embedding, (0, 0, 0, 512 - len(embedding))), expected[0])


def test_an_embedding_holds_no_padding(backbone: WanBackbone) -> None:
    embedding = backbone.encode_prompts(["a red ball"])[0]
    assert embedding.shape == (4, 16)  # three words and the end mark
    assert bool((embedding != 0).any(dim=1).all())


def test_the_longest_prompt(backbone: WanBackbone) -> None:
    longest = "ball " * 511  # and the end mark
    backbone.check_prompt(longest)
    assert backbone.encode_prompts([longest])[0].shape[0] == 512


@pytest.mark.parametrize("blank", ["", "  \n\t", "&nbsp;"])
def test_blank_prompt(backbone: WanBackbone, blank: str) -> None:
    with pytest.raises(BadRowError, match="blank"):
        backbone.check_prompt(blank)


def test_prompt_that_is_too_long(folder: Path) -> None:
    backbone = WanBackbone.from_pretrained(folder, device="cpu", components=("tokenizer",))
    with pytest.raises(BadRowError, match="513 tokens, the model reads 512") as error:
        backbone.check_prompt("ball " * 512)
    assert "shorten" in error.value.hint


def test_encoding_a_prompt_that_is_too_long(backbone: WanBackbone) -> None:
    with pytest.raises(BadRowError, match="513 tokens"):
        backbone.encode_prompts(["ball", "ball " * 512])
