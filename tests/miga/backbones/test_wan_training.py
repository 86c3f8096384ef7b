"""What training takes of a card, from shapes, against the tensors alive at once while a gradient is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from miga.backbones.wan.spec import ARCHITECTURES, PUBLISHED, WanArchitecture
from miga.backbones.wan.training import (
    FLOAT32,
    RESERVE_BYTES,
    WanVelocity,
    load_transformer,
    lora_parameters,
    parts_to_train,
    prepare,
    training_memory,
)
from miga.errors import ModelError
from tests.alive_bytes import AliveBytes, shapes_only

SMALL, LARGE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"


def alive_at_most(architecture: WanArchitecture, rank: int, dtype: torch.dtype, size_FHW: tuple[int, int, int]) -> int:
    """Bytes of activations and gradients of one clip, weights apart."""
    with shapes_only(dtype):
        reads = {"image_dim": 1280, "added_kv_proj_dim": architecture.width} if architecture.image_width else {}
        model = WanTransformer3DModel(
            num_attention_heads=architecture.width // 128, ffn_dim=architecture.ffn_width, in_channels=36,
            num_layers=architecture.num_layers, **reads,
        )  # fmt: skip
        prepare(model, rank=rank, alpha=1.0, seed=0, checkpointing=True)
        x = torch.randn(1, 36, *size_FHW)
        tokens = [torch.randn(257, 1280)] if reads else None
        alive = AliveBytes()
        alive._seen |= {part.untyped_storage()._cdata for part in (*model.parameters(), x)}
        with torch.enable_grad(), alive:
            velocity = WanVelocity(model)(x, torch.full((1,), 500.0), [torch.randn(7, 4096)], tokens)
            velocity.square().mean().backward()
    return alive.peak


@pytest.mark.parametrize(
    ("name", "dtype", "size_FHW"),
    [
        pytest.param(SMALL, torch.bfloat16, (2, 60, 104), marks=pytest.mark.slow),
        pytest.param(SMALL, torch.bfloat16, (21, 60, 104), marks=pytest.mark.slow),
        pytest.param(SMALL, torch.float32, (21, 60, 104), marks=pytest.mark.slow),
        pytest.param(LARGE, torch.bfloat16, (21, 60, 104), marks=pytest.mark.slow),
    ],
)
def test_what_a_block_holds(name: str, dtype: torch.dtype, size_FHW: tuple[int, int, int]) -> None:
    architecture = replace(ARCHITECTURES[name], num_layers=2, input_channels=36)
    spec = replace(PUBLISHED[LARGE], window=size_FHW[0])
    rank = 128
    planned = training_memory(architecture, spec, rank=rank, itemsize=dtype.itemsize)
    measured = alive_at_most(architecture, rank, dtype, size_FHW)
    of_lora = FLOAT32 * lora_parameters(architecture, rank)  # the gradients, which `learning` has
    counted = planned.block_inputs + planned.inside_block + of_lora
    assert measured <= counted <= 1.08 * measured


def test_published_models_at_480p() -> None:
    """The figures of docs/training.md: LoRA of rank 128, 81 frames of 480 x 832, bfloat16."""
    small = replace(ARCHITECTURES[SMALL], input_channels=36)
    found = {
        name: training_memory(architecture, PUBLISHED[LARGE], rank=128)
        for name, architecture in (("1.3B", small), ("14B", ARCHITECTURES[LARGE]))
    }
    assert [plan.num_tokens for plan in found.values()] == [32760, 32760]
    assert [plan.num_learning for plan in found.values()] == [174_981_120, 613_416_960]  # svi.md: 175.0 M and 613.4 M
    assert 16e9 < found["1.3B"].total < 20e9
    assert 68e9 < found["14B"].total < 80e9
    offloaded = training_memory(ARCHITECTURES[LARGE], PUBLISHED[LARGE], rank=128, offloads_inputs=True)
    assert found["14B"].total - offloaded.total == 39 * 32760 * 5120 * 2
    assert found["14B"].reserve == RESERVE_BYTES
    for name, plan in found.items():
        print(name, plan, plan.total)


def test_weights_of_a_lora_are_those_that_are_made() -> None:
    architecture = replace(ARCHITECTURES[SMALL], num_layers=2)
    with torch.device("meta"):
        model = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=2)
    prepare(model, rank=16, alpha=16.0, seed=0, checkpointing=False)
    learning = sum(part.numel() for part in model.parameters() if part.requires_grad)
    assert learning == lora_parameters(architecture, 16)


def test_models_that_are_not_trained_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="trained on text alone"):
        parts_to_train(replace(PUBLISHED[SMALL], image_input="held"), None)
    assert parts_to_train(PUBLISHED["Wan-AI/Wan2.2-TI2V-5B-Diffusers"], None) == ("transformer", 0.0, 1001.0)
    two = PUBLISHED["Wan-AI/Wan2.2-I2V-A14B-Diffusers"]
    with pytest.raises(ModelError, match="two transformers"):
        parts_to_train(two, None)
    assert parts_to_train(two, "high") == ("transformer", 900.0, 1001.0)
    assert parts_to_train(two, "low") == ("transformer_2", 0.0, 900.0)
    with pytest.raises(ModelError, match="one transformer"):
        parts_to_train(PUBLISHED[LARGE], "high")
    with pytest.raises(ModelError):
        load_transformer("/nowhere/at/all", None, "transformer", torch.device("cpu"), torch.float32)
    half = WanTransformer3DModel(num_attention_heads=1, attention_head_dim=12, ffn_dim=8, num_layers=1).half()
    with pytest.raises(ModelError, match="lost to rounding"):
        prepare(half, rank=None, alpha=1.0, seed=0, checkpointing=False)
