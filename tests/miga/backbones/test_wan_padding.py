"""Cross-attention over a summary of the padding equals cross-attention over the padding."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import WanTransformer3DModel

from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.spec import NUM_TEXT_TOKENS
from tests.tiny_wan import NUM_CHANNELS, TEXT_DIM, build_transformer


@pytest.fixture(scope="module")
def plain() -> WanTransformer3DModel:
    return build_transformer()


@pytest.fixture(scope="module")
def compact(plain: WanTransformer3DModel) -> WanTransformer3DModel:
    transformer = copy.deepcopy(plain)
    use_compact_padding(transformer)
    use_compact_padding(transformer)  # once is enough
    return transformer


def texts(*lengths: int, to: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(lengths))
    text = torch.zeros(len(lengths), to, TEXT_DIM)
    for b, length in enumerate(lengths):
        text[b, :length] = torch.randn(length, TEXT_DIM, generator=generator)
    return text


def velocity(transformer: WanTransformer3DModel, text_BLD: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(len(text_BLD), NUM_CHANNELS, 3, 4, 6, generator=generator).to(text_BLD.dtype)
    return transformer(x, torch.tensor([500] * len(text_BLD)), text_BLD, return_dict=False)[0]


@pytest.mark.parametrize("lengths", [(1,), (7,), (200,), (511,), (512,), (3, 40, 11), (0, 5), (512, 2)])
def test_equals_plain_attention(
    plain: WanTransformer3DModel, compact: WanTransformer3DModel, lengths: tuple[int, ...]
) -> None:
    padded = texts(*lengths, to=NUM_TEXT_TOKENS)
    with torch.no_grad():
        expected = velocity(plain, padded)
        tolerance = 2e-6 * max(1.0, float(expected.abs().max()))
        for num_given in (max(lengths), max(lengths) + 9, NUM_TEXT_TOKENS):  # trimmed, partly and wholly padded
            ours = velocity(compact, padded[:, :num_given])
            torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def test_padding_matters_at_all(plain: WanTransformer3DModel) -> None:
    """Otherwise the test above would prove nothing."""
    padded = texts(7, to=NUM_TEXT_TOKENS)
    with torch.no_grad():
        assert float((velocity(plain, padded[:, :8]) - velocity(plain, padded)).abs().max()) > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal(plain: WanTransformer3DModel, checkpointing: bool) -> None:
    transformers = [copy.deepcopy(plain), copy.deepcopy(plain)]
    use_compact_padding(transformers[1])
    if checkpointing:
        transformers[1].enable_gradient_checkpointing()
    gradients = []
    for transformer in transformers:
        text = texts(5, 12, to=NUM_TEXT_TOKENS).requires_grad_()
        loss = velocity(transformer, text).square().mean()
        if checkpointing:
            velocity(transformer, texts(30, 2, to=NUM_TEXT_TOKENS))  # another call before the backward pass
        loss.backward()
        parameters = dict(transformer.named_parameters())
        names = ["blocks.0.attn2.to_k.weight", "blocks.1.attn2.to_v.bias", "patch_embedding.weight"]
        gradients.append([text.grad[0, :5], text.grad[1, :12], *(parameters[name].grad for name in names)])
    for ours, reference in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_bfloat16_loses_no_more_than_plain_attention(plain: WanTransformer3DModel) -> None:
    half = copy.deepcopy(plain).to(torch.bfloat16)
    half_compact = copy.deepcopy(half)
    use_compact_padding(half_compact)
    padded = texts(7, 30, to=NUM_TEXT_TOKENS)
    with torch.no_grad():
        exact = velocity(plain, padded)
        error, compact_error = (
            (velocity(transformer, padded.bfloat16()).float() - exact).square().mean().sqrt()
            for transformer in (half, half_compact)
        )
    assert compact_error <= 1.3 * error


def test_mixed_precision_training(plain: WanTransformer3DModel, compact: WanTransformer3DModel) -> None:
    padded = texts(7, 30, to=NUM_TEXT_TOKENS)
    exact = velocity(plain, padded).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error, compact_error = (
            (velocity(transformer, padded).float() - exact).square().mean().sqrt() for transformer in (plain, compact)
        )
    assert compact_error <= 1.3 * error


def test_a_longer_text_is_refused(compact: WanTransformer3DModel) -> None:
    with pytest.raises(ValueError, match="513"):
        velocity(compact, texts(513, to=513))


def test_image_models_are_refused() -> None:
    with pytest.raises(ValueError, match="text alone"):
        use_compact_padding(build_transformer(added_kv_proj_dim=24, image_dim=8))
