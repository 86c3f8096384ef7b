"""The text tower against outputs recorded from OpenCLIP; what a prompt's tokens are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from miga.backbones.videocrafter2.text import penultimate
from tests.tiny_videocrafter2 import recorded_text_vae

START, END = 770, 771


@pytest.fixture(scope="module")
def backbone(converted: Path) -> VideoCrafter2Backbone:
    return VideoCrafter2Backbone.from_pretrained(converted, device="cpu", components=("text",))


def test_recorded_outputs(backbone: VideoCrafter2Backbone) -> None:
    recorded = recorded_text_vae()
    tokens = recorded["text.in.tokens"]
    ours = penultimate(backbone.text.encoder, tokens)
    torch.testing.assert_close(ours, recorded["text.out.penultimate"], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        last = backbone.text.encoder(tokens).last_hidden_state
    torch.testing.assert_close(last, recorded["text.out.last"], rtol=1e-5, atol=1e-5)
    assert (ours - last).abs().max() > 0.1, "the last layer must show, or this tests nothing"


def test_an_embedding_is_the_towers_output_for_the_padded_tokens(backbone: VideoCrafter2Backbone) -> None:
    prompts = ["a red ball", "", "  A blue &amp; red\n boat "]
    for prompt, embedding in zip(prompts, backbone.encode_prompts(prompts), strict=True):
        tokens = torch.tensor([backbone.text.padded_tokens(prompt)])
        assert (embedding.shape, embedding.dtype, embedding.device.type) == ((77, 32), torch.float32, "cpu")
        assert torch.equal(embedding, penultimate(backbone.text.encoder, tokens)[0])


def test_tokens_are_filled_up_with_zeros(backbone: VideoCrafter2Backbone) -> None:
    """As in the recorded input; CLIP's own tokenizer would take the end mark."""
    assert recorded_text_vae()["text.in.tokens"][:, -1].tolist() == [0, 0]
    tokens = backbone.text.padded_tokens("cab")
    assert backbone.text.tokenizer.convert_ids_to_tokens(tokens[:4]) == [
        "<|startoftext|>",
        "ca",
        "b</w>",
        "<|endoftext|>",
    ]
    assert (tokens[0], tokens[3]) == (START, END)
    assert tokens[4:] == [0] * 73
    assert backbone.text.padded_tokens("") == [START, END] + [0] * 75


@pytest.mark.parametrize("same", ["CAB", "  cab\n", "cab "])
def test_case_and_blanks_do_not_matter(backbone: VideoCrafter2Backbone, same: str) -> None:
    assert backbone.text.padded_tokens(same) == backbone.text.padded_tokens("cab")


def test_the_longest_prompt(backbone: VideoCrafter2Backbone) -> None:
    longest = "z " * 75
    backbone.check_prompt(longest)
    assert backbone.text.padded_tokens(longest)[-1] == END
    assert backbone.encode_prompts([longest])[0].shape == (77, 32)
