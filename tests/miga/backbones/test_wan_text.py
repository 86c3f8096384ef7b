"""Text embeddings equal WanPipeline's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from miga.backbones.wan.backbone import WanBackbone
from tests.tiny_wan import load_pipeline


@pytest.fixture(scope="module")
def backbone(wan_folder: Path) -> WanBackbone:
    return WanBackbone.from_pretrained(wan_folder, device="cpu", components=("text",))


@pytest.fixture(scope="module")
def pipeline(wan_folder: Path) -> WanPipeline:
    return load_pipeline(wan_folder)


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
