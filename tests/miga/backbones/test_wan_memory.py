"""Memory plans: what is counted is what modules of full size hold, and a plan says what it chose and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from miga.backbones.base import BackboneSpec
from miga.backbones.memory_plan import (
    MemoryPlan,
    activation_bytes_per_token,
    card_bytes,
    plan_memory,
    queue_bytes,
)
from miga.backbones.wan_per_latent import use_per_latent_timesteps
from miga.backbones.wan_spec import ARCHITECTURES, PUBLISHED, WanArchitecture, load_architecture, resized
from miga.backbones.wan_vae import WanFrameDecoder
from miga.config import resolve_config
from miga.errors import ModelError
from tests.alive_bytes import AliveBytes, shapes_only
from tests.tiny_wan import SETTINGS, build_tiny_wan, load_pipeline

SMALL, LARGE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers"
HEADS = {SMALL: 12, LARGE: 40}


def transformer(name: str, **overrides: Any) -> WanTransformer3DModel:
    architecture = ARCHITECTURES[name]
    config = {"num_layers": architecture.num_layers, **overrides}
    return WanTransformer3DModel(num_attention_heads=HEADS[name], ffn_dim=architecture.ffn_width, **config)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_weights_of_the_published_models(name: str) -> None:
    umt5_xxl = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        assert ARCHITECTURES[name].transformer_parameters == count(transformer(name))
        assert ARCHITECTURES[name].vae_parameters == count(AutoencoderKLWan())
        assert ARCHITECTURES[name].text_parameters == count(UMT5EncoderModel(umt5_xxl))


def test_weights_of_a_folder(tmp_path: Path) -> None:
    architecture = load_architecture(build_tiny_wan(tmp_path))
    pipeline = load_pipeline(tmp_path)
    assert architecture.transformer_parameters == count(pipeline.transformer)
    assert architecture.vae_parameters == count(pipeline.vae)


def test_fp8_weights() -> None:
    with torch.device("meta"):
        model = transformer(SMALL, num_layers=2).bfloat16()
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert replace(ARCHITECTURES[SMALL], num_layers=2).transformer_bytes(fp8=True) == held


@pytest.mark.parametrize("name", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_activations_of_a_call(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.Tensor, "unique", lambda t, **_: (t, torch.arange(len(t))))
    with shapes_only(dtype):
        model = transformer(name, num_layers=1)
        use_per_latent_timesteps(model)
        with AliveBytes() as alive:
            model(torch.randn(1, 16, 21, 60, 104), torch.full((1, 21), 500), torch.randn(1, 512, 4096))
    planned = 32760 * activation_bytes_per_token(ARCHITECTURES[name], dtype)
    assert alive.peak <= planned <= 1.1 * alive.peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decoding(dtype: torch.dtype) -> None:
    architecture, cells = WanArchitecture(), 60 * 104
    with shapes_only(dtype):
        decoder = WanFrameDecoder(AutoencoderKLWan())
        with AliveBytes() as alive:
            for _ in range(3):
                decoder._decode_next(torch.randn(16, 60, 104))
        assert decoder._features is not None
        cache = sum(entry.nbytes for entry in decoder._features if isinstance(entry, torch.Tensor))
    assert cache == dtype.itemsize * cells * architecture.vae_cache_per_cell
    planned = dtype.itemsize * cells * architecture.vae_peak_per_cell
    assert alive.peak - cache <= planned <= 1.15 * (alive.peak - cache)


def test_the_queue_of_the_paper() -> None:
    """315 latents of 480x832 with UniPC's history are 480 MiB; Stage 2's wavefront and the new latents come on top."""
    spec = PUBLISHED[SMALL]
    config = resolve_config("paper", spec)
    per_latent = 16 * 60 * 104 * 4
    assert 315 * 4 * per_latent == pytest.approx(480 * 2**20, rel=0.01)
    assert queue_bytes(spec, config) == (315 + 9 * 20) * 5 * per_latent


def plan(name: str, card_gb: float, **changes: Any) -> MemoryPlan:
    spec: BackboneSpec = PUBLISHED[name]
    dtype = changes.pop("dtype", torch.bfloat16)
    if changes:
        spec = resized(spec, ARCHITECTURES[name], changes["height"], changes["width"])
    return plan_memory(ARCHITECTURES[name], spec, resolve_config("paper", spec), card_bytes(card_gb), dtype)


@pytest.mark.parametrize(
    ("name", "card_gb", "fp8", "vae_dtype"),
    [
        (SMALL, 24, False, torch.float32),
        (SMALL, 48, False, torch.float32),
        (SMALL, 80, False, torch.float32),
        (SMALL, 12, False, torch.bfloat16),
        (SMALL, 8, True, torch.bfloat16),
        (LARGE, 80, False, torch.float32),
        (LARGE, 48, False, torch.float32),
        (LARGE, 24, True, torch.bfloat16),
    ],
)
def test_choices(name: str, card_gb: float, fp8: bool, vae_dtype: torch.dtype) -> None:
    chosen = plan(name, card_gb)
    assert (chosen.fp8, chosen.vae_dtype) == (fp8, vae_dtype)
    assert chosen.total_bytes <= chosen.card_bytes == round(card_gb * 0.98 * 2**30)
    assert ("fp8" in chosen.reason) == fp8
    assert ("bfloat16" in chosen.reason) == (vae_dtype == torch.bfloat16)
    assert "text encoder" in chosen.reason
    assert chosen.to_dict()["total"] == f"{chosen.total_bytes / 1e9:.1f} GB"


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(
        ModelError, match=r"14B-Diffusers' at 480x832 needs 2\d\.\d GB .* the card has 12\.6 GB"
    ) as error:
        plan(LARGE, 12)
    assert "a card of 24 GB" in error.value.hint
    with pytest.raises(ModelError) as error:
        plan(SMALL, 12, height=1088, width=1920)
    assert "frames of 480x832" in error.value.hint
    assert plan(SMALL, 12, height=480, width=832)


def test_float32_is_not_stored_in_fp8() -> None:
    with pytest.raises(ModelError):
        plan(LARGE, 48, dtype=torch.float32)
    assert plan(LARGE, 80, dtype=torch.float32).transformer_bytes == 4 * 14_288_491_584


def test_windows_in_a_batch_count() -> None:
    spec, architecture = PUBLISHED[SMALL], ARCHITECTURES[SMALL]
    plans = [
        plan_memory(architecture, spec, resolve_config("paper", spec, {"windows_per_batch": n}), card_bytes(80))
        for n in (1, 4)
    ]
    per_window = 32760 * activation_bytes_per_token(architecture, torch.bfloat16)
    assert plans[1].activations_bytes == 4 * per_window


def test_sizes_of_the_tiny_model(tmp_path: Path) -> None:
    architecture = load_architecture(build_tiny_wan(tmp_path))
    assert architecture.tokens_per_latent(SETTINGS["height"], SETTINGS["width"]) == 6
