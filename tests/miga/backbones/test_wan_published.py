"""Wan2.1-I2V and Wan2.2: what is known of them without files is what modules of that size hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPVisionConfig, CLIPVisionModel

from miga.backbones.memory_plan import card_bytes, plan_memory
from miga.backbones.wan.spec import ARCHITECTURES, IMAGE_PARAMETERS, PUBLISHED, WanArchitecture
from miga.backbones.wan.vae import WanFrameDecoder
from miga.errors import ConfigError
from miga.generate import rules_of_pictures
from miga.profiles import profiles, resolve_config
from tests.alive_bytes import AliveBytes, shapes_only

I2V, T2V_A14B, I2V_A14B, TI2V = (
    f"Wan-AI/Wan2.{name}-Diffusers" for name in ("1-I2V-14B-480P", "2-T2V-A14B", "2-I2V-A14B", "2-TI2V-5B")
)
TRANSFORMERS: dict[str, dict[str, Any]] = {
    I2V: {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    T2V_A14B: {},
    I2V_A14B: {"in_channels": 36},
    TI2V: {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
}
VAE_5B: dict[str, Any] = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2, "in_channels": 12,
    "out_channels": 12, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip


def count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_weights(name: str) -> None:
    few = {**TRANSFORMERS[name], "num_layers": 2}
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**few)
    shapes = {name: tuple(weight.shape) for name, weight in transformer.named_parameters()}
    assert replace(ARCHITECTURES[name], num_layers=2).weights() == shapes


def test_vae_and_image_encoder() -> None:
    clip = CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14
    )
    with torch.device("meta"):
        assert count(AutoencoderKLWan(**VAE_5B)) == ARCHITECTURES[TI2V].vae_parameters
        assert count(CLIPVisionModel(clip)) == IMAGE_PARAMETERS
    assert ARCHITECTURES[I2V].vae_parameters == WanArchitecture().vae_parameters + IMAGE_PARAMETERS


@pytest.mark.slow
def test_decoding_of_the_5b() -> None:
    architecture, cells = ARCHITECTURES[TI2V], 44 * 80
    with shapes_only():
        decoder = WanFrameDecoder(AutoencoderKLWan(**VAE_5B))
        with AliveBytes() as alive:
            for _ in range(3):
                decoder._decode_next(torch.randn(48, 44, 80))
        cache = sum(entry.nbytes for entry in decoder._features or () if isinstance(entry, torch.Tensor))
    assert cache == 4 * cells * architecture.vae_cache_per_cell
    planned = 4 * cells * architecture.vae_peak_per_cell
    assert alive.peak - cache <= planned <= 1.15 * (alive.peak - cache)


def test_specs() -> None:
    shapes = {name: (*PUBLISHED[name].latent_shape, PUBLISHED[name].window) for name in TRANSFORMERS}
    assert shapes == {
        I2V: (16, 60, 104, 21), T2V_A14B: (16, 60, 104, 21), I2V_A14B: (16, 60, 104, 21), TI2V: (48, 44, 80, 31),
    }  # fmt: skip
    assert [PUBLISHED[name].fps for name in TRANSFORMERS] == [16, 16, 16, 24]
    assert [PUBLISHED[name].expert_boundary for name in TRANSFORMERS] == [None, 0.875, 0.9, None]
    assert [PUBLISHED[name].num_condition_channels for name in TRANSFORMERS] == [20, 0, 20, 0]
    assert [PUBLISHED[name].num_frames(PUBLISHED[name].window) for name in TRANSFORMERS] == [81, 81, 81, 121]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_profile_has_settings(name: str) -> None:
    for profile in profiles():
        if profile == "freepca":
            with pytest.raises(ConfigError, match="cell by cell"):
                resolve_config(profile, PUBLISHED[name])
            continue
        config = resolve_config(profile, PUBLISHED[name])
        spec = PUBLISHED[name].of_clips(config.clips)
        assert spec.num_latents(spec.default_num_frames) > 0
    is_chain = "svi-shot" if PUBLISHED[name].image_input == "channels" else "swift"
    assert not rules_of_pictures(PUBLISHED[name], resolve_config(is_chain, PUBLISHED[name])).why_no_first


def test_one_expert_at_a_time_before_fp8() -> None:
    """Both take 57 GB in bfloat16: a card of 96 GB holds them, one of 48 GB one at a time."""
    spec = PUBLISHED[I2V_A14B]
    config = resolve_config("svi-shot", spec)
    plans = {gb: plan_memory(ARCHITECTURES[I2V_A14B], spec, config, card_bytes(gb)) for gb in (96, 48, 32)}
    assert [(plan.one_expert, plan.fp8) for plan in plans.values()] == [(False, False), (True, False), (True, True)]
    assert plans[96].transformer_bytes == 2 * plans[48].transformer_bytes > 57e9
    assert "trade places" in plans[48].to_dict()["reason"]
