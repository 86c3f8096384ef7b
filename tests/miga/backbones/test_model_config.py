"""The defaults for keys that a configuration leaves out are the libraries' own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from diffusers import AutoencoderKL, AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPTextConfig, UMT5Config, UMT5EncoderModel

from miga.backbones.model_config import arguments
from miga.backbones.videocrafter2.config import ClipTextConfig, ImageVaeConfig
from miga.backbones.wan.config import Umt5Config, WanTransformerConfig, WanVaeConfig


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (WanTransformer3DModel, WanTransformerConfig),
        (AutoencoderKLWan, WanVaeConfig),
        (AutoencoderKL, ImageVaeConfig),
    ],
)
def test_keys_and_defaults_of_diffusers(module: Any, kind: Any) -> None:
    parameters = inspect.signature(module.__init__).parameters
    theirs = {name: entry.default for name, entry in parameters.items() if name != "self"}
    ours = arguments(kind())
    assert ours == {name: list(value) if isinstance(value, tuple) else value for name, value in theirs.items()}


@pytest.mark.parametrize(("theirs", "ours"), [(UMT5Config, Umt5Config), (CLIPTextConfig, ClipTextConfig)])
def test_defaults_of_transformers(theirs: Any, ours: Any) -> None:
    expected = theirs().to_dict()
    assert arguments(ours()) == {name: expected[name] for name in arguments(ours())}


@pytest.mark.parametrize("form", ["gated-gelu", "gelu", "relu"])
def test_weights_of_the_text_encoder_are_counted(form: Any) -> None:
    config = Umt5Config(vocab_size=31, d_model=12, d_kv=5, d_ff=7, num_layers=3, num_heads=2, feed_forward_proj=form)
    encoder = UMT5EncoderModel(UMT5Config(**arguments(config)))
    assert config.num_parameters == sum(weight.numel() for weight in encoder.parameters())
