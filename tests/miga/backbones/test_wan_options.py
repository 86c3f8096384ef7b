"""Sizes, attention backends, compilation and memory: what a model becomes under options, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from jobs.run.plan import model_options
from miga import LongVideoPipeline
from miga.backbones.attention_backend import check_attention_backend
from miga.backbones.family import ModelOptions
from miga.backbones.memory_plan import MemoryPlan
from miga.backbones.options import configure, configured_spec
from miga.backbones.registry import load_spec
from miga.backbones.wan.backbone import WanBackbone
from miga.cost import count_calls
from miga.errors import ModelError
from miga.profiles import resolve_config
from pipeline.config import load_config, parse_config

TINY = {"num_guidance_latents": 2, "self_reflection": False}
"""What fits a window of the tiny model."""
ROOT = Path(__file__).parents[3]


@pytest.fixture
def model(wan_folder: Path) -> str:
    return str(wan_folder)


@pytest.fixture
def backbone(model: str) -> WanBackbone:
    return WanBackbone.from_pretrained(model, device="cpu", components=("denoiser", "vae"))


@pytest.fixture
def attention() -> Iterator[None]:
    """diffusers keeps the backend for the whole process."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def test_another_size(model: str) -> None:
    spec = load_spec(model)
    larger = configured_spec(spec, ModelOptions(height=64, width=96))
    assert (larger.height, larger.width, larger.latent_shape) == (64, 96, (4, 8, 12))
    assert larger.window == spec.window
    assert larger.revision == spec.revision
    tokens, width, ffn, layers = 6 * 4 * 6, 24, 48, 2
    attention = 8 * tokens * width**2 + 4 * tokens**2 * width
    text = 4 * (tokens + 512) * width**2 + 4 * tokens * 512 * width
    assert larger.forward_flops == layers * (attention + text + 4 * tokens * width * ffn)
    only_height = configured_spec(spec, ModelOptions(height=64))
    assert (only_height.height, only_height.width) == (64, spec.width)


def test_a_published_model_in_720p_without_network() -> None:
    spec = load_spec("Wan-AI/Wan2.1-T2V-14B-Diffusers")
    larger = configured_spec(spec, ModelOptions(height=720, width=1280))
    assert larger.latent_shape == (16, 90, 160)
    assert 3.5 < larger.forward_flops / spec.forward_flops < (720 * 1280 / (480 * 832)) ** 2


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 50}, "height 50 is no multiple of 16 .* nearest is 48 or 64"),
        ({"width": 8}, "width 8 is no multiple of 16 .* nearest is 16"),
        ({"width": 16 * 65}, "width 1040 is more than the 1024 pixels"),
    ],
)
def test_sizes_that_cannot_be(model: str, size: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        configured_spec(load_spec(model), ModelOptions(**size))
    assert error.value.hint


def test_a_video_of_another_size_and_a_shorter_window(model: str) -> None:
    pipe = LongVideoPipeline.from_pretrained(
        model, device="cpu", height=48, width=32, sampler=TINY | {"window": 4, "num_steps": 6, "handoff_level": 2}
    )
    video = pipe("a red ball", num_frames=29)
    assert video.frames.shape == (29, 48, 32, 3)


def test_native_attention_changes_nothing(backbone: WanBackbone, model: str, attention: None) -> None:
    config = resolve_config("paper", backbone.spec, TINY)
    condition = (torch.ones(3, 16), torch.ones(2, 16))
    x = torch.randn(1, 6, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([[20, 20, 11, 11, 2, 2]])
    before = backbone.denoiser(config)(x, level, [condition])
    configure(backbone, ModelOptions(attention="native"))
    assert torch.equal(backbone.denoiser(config)(x, level, [condition]), before)
    configure(backbone, ModelOptions(attention="_native_math"))
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName._NATIVE_MATH
    torch.testing.assert_close(backbone.denoiser(config)(x, level, [condition]), before, rtol=0, atol=1e-5)


def test_unknown_backend(model: str) -> None:
    check_attention_backend("auto")
    with pytest.raises(ModelError, match="'flsh' is unknown") as error:
        check_attention_backend("flsh")
    assert "did you mean 'flash'" in error.value.hint


@pytest.mark.parametrize("name", ["flash", "sage", "_flash_3", "_native_cudnn"])
def test_backends_that_this_machine_cannot_run(backbone: WanBackbone, attention: None, name: str) -> None:
    with pytest.raises(ModelError, match=f"{name}' does not work here"):
        configure(backbone, ModelOptions(attention=name))
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE


def test_compiling_asks_for_whole_blocks(backbone: WanBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(type(backbone.network), "compile_repeated_blocks", lambda _, **kwargs: asked.update(kwargs))
    configure(backbone, ModelOptions(compile=True))
    assert asked == {"fullgraph": True}


def test_a_memory_plan_is_carried_out(backbone: WanBackbone) -> None:
    zero = dict.fromkeys(("card_bytes", "transformer_bytes", "vae_bytes", "queue_bytes", "activations_bytes"), 0)
    plan = MemoryPlan(
        **zero, text_bytes=0, dtype=torch.float32, fp8=True, vae_dtype=torch.bfloat16, decodes_beside=False
    )
    condition = (torch.ones(3, 16), torch.ones(2, 16))
    x, level = torch.randn(1, 6, 4, 4, 6, generator=torch.Generator().manual_seed(0)), torch.full((1, 6), 11)
    exact = backbone.denoiser(resolve_config("paper", backbone.spec, TINY))(x, level, [condition])
    assert backbone.decodes_beside
    configure(backbone, ModelOptions(), memory=plan, device="cpu")
    assert not backbone.decodes_beside
    assert backbone.network.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    assert backbone.network.condition_embedder.time_proj.weight.dtype == torch.float32
    assert backbone.vae.dtype == torch.bfloat16
    rounded = backbone.denoiser(resolve_config("paper", backbone.spec, TINY))(x, level, [condition])
    error = float((rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert 1e-4 < error < 0.2  # rounded to 3 bits of mantissa, and nothing worse
    assert backbone.frame_decoder().decode(x[0, :2]).shape == (5, 32, 48, 3)


def test_the_config_of_a_step_distilled_model() -> None:
    config = load_config(ROOT / "jobs" / "configs" / "wan-distilled.toml")
    sampler = resolve_config(config.profile, load_spec(config.model), config.sampler)
    assert sampler.timesteps == (1000, 750, 500, 250)
    assert (sampler.num_steps, sampler.handoff_level, sampler.solver) == (4, 2, "renoise")
    assert (sampler.guidance_scale, sampler.flow_shift) == (1.0, 5.0)
    assert sampler.queue_length == 21
    calls = [count_calls(sampler, num_latents).stage1 for num_latents in (70, 77)]
    assert calls[1] - calls[0] == 1  # the queue is one window, and a pass hands out 7 latents


def test_options_of_a_config() -> None:
    config = parse_config({"lora": ["a.safetensors:0.5", "b/c"], "height": 480, "compile": True}, "test")
    assert model_options(config) == ModelOptions(lora=("a.safetensors:0.5", "b/c"), height=480, compile=True)
    assert model_options(parse_config({}, "test")) == ModelOptions()
    assert parse_config(config.to_dict(), "again") == config
