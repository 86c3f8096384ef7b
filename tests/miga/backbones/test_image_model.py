"""Features by image models of transformers: tiny ones with random weights, saved as their checkpoints are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

from miga.backbones.image_model import ImageModelFeatures
from miga.errors import ModelError

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As DINO's checkpoints are: no pooling layer."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    config = CLIPConfig(
        vision_config={**SIZES, "image_size": 32, "patch_size": 8, "projection_dim": 8},
        text_config={**SIZES, "vocab_size": 50, "projection_dim": 8, "bos_token_id": 1, "eos_token_id": 2},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_vit_gives_its_class_token(vit: Path) -> None:
    subject_FD, background_FD = ImageModelFeatures(str(vit), "cpu")(FRAMES)
    pixels = torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 255 * 2 - 1  # ViT's mean and deviation are 0.5
    with torch.inference_mode():
        wanted = ViTModel.from_pretrained(vit).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(subject_FD, wanted.numpy(), atol=1e-5)
    np.testing.assert_array_equal(subject_FD, background_FD)


def test_two_models_share_the_work_and_clip_gives_its_image_embedding(vit: Path, clip: Path) -> None:
    features = ImageModelFeatures(f"{vit}, {clip}", "cpu")
    subject_FD, background_FD = features(FRAMES)
    assert subject_FD.shape == (3, 16)
    assert background_FD.shape == (3, 8)
    model = CLIPModel.from_pretrained(clip).eval()
    pixels = CLIPImageProcessor.from_pretrained(clip)(images=list(FRAMES), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        wanted = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    np.testing.assert_allclose(background_FD, wanted.numpy(), atol=1e-5)
    assert str(vit) in features.name
    assert str(clip) in features.name


def test_what_cannot_be_loaded_is_named(vit: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        ImageModelFeatures("nowhere", "cpu")
    with pytest.raises(ModelError, match="one or two"):
        ImageModelFeatures("a,b,c", "cpu")
    with pytest.raises(ModelError, match="safetensors"):
        ImageModelFeatures(str(tmp_path), "cpu")
    (tmp_path / "model.safetensors").write_bytes((vit / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="cannot be loaded"):
        ImageModelFeatures(str(tmp_path), "cpu")
    (tmp_path / "preprocessor_config.json").write_bytes((vit / "preprocessor_config.json").read_bytes())
    config = (vit / "config.json").read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match="do not fit"):
        ImageModelFeatures(str(tmp_path), "cpu")
