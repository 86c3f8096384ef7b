"""What is known of a Wan model before it is loaded; models that look like one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.spec import NEGATIVE_PROMPT, load_spec
from miga.errors import ModelError
from tests.faulty_folder import edit
from tests.tiny_wan import SETTINGS


@pytest.fixture(scope="module")
def family() -> str:
    return "wan"


def test_spec_of_a_folder(folder: Path) -> None:
    spec = load_spec(folder)
    assert (spec.family, spec.name, spec.window, spec.fps) == ("wan", str(folder), 6, 8)
    assert spec.latent_shape == (4, 4, 6)
    assert (spec.height, spec.width, spec.default_num_frames) == (32, 48, 41)
    assert spec.sampler == SETTINGS["sampler"]
    assert spec.num_latents(41) == 11
    assert spec.revision.startswith("sha256:")
    assert WanBackbone.from_pretrained(folder, device="cpu", components=()).spec == spec


def test_spec_without_settings_is_wans(copied: Path) -> None:
    (copied / "miga.json").unlink()
    spec = load_spec(copied)
    assert (spec.window, spec.height, spec.width, spec.fps) == (21, 480, 832, 16)
    assert spec.latent_shape == (4, 60, 104)
    assert (spec.negative_prompt, spec.sampler) == (NEGATIVE_PROMPT, {})


def test_published_models_are_known_without_network() -> None:
    for size in ("1.3B", "14B"):
        spec = load_spec(f"Wan-AI/Wan2.1-T2V-{size}-Diffusers")
        assert spec.latent_shape == (16, 60, 104)
        assert (spec.window, spec.num_latents(161)) == (21, 41)


def test_window_follows_from_the_clip_length(copied: Path) -> None:
    (copied / "miga.json").write_text('{"num_frames": 45, "height": 32, "width": 32}')
    assert load_spec(copied).window == 12


def test_modules_that_stay_in_float32(folder: Path) -> None:
    backbone = WanBackbone.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
    assert backbone.network.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert backbone.network.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert backbone.vae.dtype == torch.float32


def test_a_single_network_is_no_pipeline(tmp_path: Path) -> None:
    config = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    CLIPTextModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="CLIPTextModel, not a pipeline"):
        load_spec(tmp_path)


@pytest.mark.parametrize("kind", ["CogVideoXTransformer3DModel", "HunyuanVideoTransformer3DModel"])
def test_a_single_mmdit_network(tmp_path: Path, kind: str) -> None:
    edit(tmp_path / "config.json", _class_name=kind)
    with pytest.raises(ModelError, match=f"{kind}.*MMDiT.*A.4"):
        load_spec(tmp_path)


def test_the_layout_of_wans_own_program(tmp_path: Path) -> None:
    edit(tmp_path / "config.json", _class_name="WanModel")
    with pytest.raises(ModelError, match="layout of Wan's own program") as error:
        load_spec(tmp_path)
    assert "-Diffusers" in error.value.hint
