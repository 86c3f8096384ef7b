"""A LoRA of upstream's training checkpoint: its names find their places, and the merged network answers as recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from miga.backbones.lora_files import Lora, find_loras, for_experts
from miga.backbones.wan.lora import fuse_loras
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.errors import ModelError
from tests.svi_recorded import recorded, tiny_transformer

PREFIXES = ("pipe.dit.", "", "diffusion_model.")
"""Of the training checkpoint, of DiffSynth's copies, of Kijai's files."""


@torch.no_grad()
def answer(transformer: Any) -> torch.Tensor:
    given = {name[3:]: tensor for name, tensor in recorded("lora").items() if name.startswith("in.")}
    x = torch.cat([given["x"], given["y"]], dim=1)
    return transformer(x, given["timestep"], given["context"], given["clip_tokens"], return_dict=False)[0]


@pytest.mark.parametrize("per_latent", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_output(tmp_path: Path, prefix: str, per_latent: bool) -> None:
    tensors = recorded("lora")
    transformer = tiny_transformer()
    if per_latent:
        use_per_latent_timesteps(transformer)
    assert float((answer(transformer) - tensors["out.base"]).abs().max()) <= 1e-4
    factors = {name.replace("pipe.dit.", prefix): tensor for name, tensor in tensors.items() if "lora_" in name}
    assert len(factors) == 2 * 2 * 10
    save_file(factors, tmp_path / "svi.safetensors")
    fuse_loras(transformer, find_loras([str(tmp_path / "svi.safetensors")]))
    (with_lora,) = (tensor for name, tensor in tensors.items() if name.startswith("out.") and name != "out.base")
    assert float((with_lora - tensors["out.base"]).abs().max()) > 1.0
    assert float((answer(transformer) - with_lora).abs().max()) <= 1e-4


def test_which_expert_a_lora_is_for(tmp_path: Path) -> None:
    for name in ("SVI_high_noise_lora", "svi-low-noise", "style"):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")

    def experts(*texts: str, has_two: bool = True) -> list[Lora]:
        return for_experts(find_loras(texts), "the model", has_two=has_two)

    high, low, style = (
        str(tmp_path / f"{name}.safetensors") for name in ("SVI_high_noise_lora", "svi-low-noise", "style")
    )
    assert [lora.expert for lora in experts(high, low, f"both={style}:0.5")] == ["high", "low", "both"]
    assert [lora.expert for lora in experts(f"low={high}")] == ["low"]
    assert len({lora.label for lora in experts(f"low={style}", f"high={style}", f"both={style}")}) == 3
    assert [lora.label for lora in experts(high, has_two=False)] == [lora.label for lora in find_loras([high])]
    with pytest.raises(ModelError, match="does not say which") as caught:
        experts(style)
    assert f"high={style}" in caught.value.hint
    with pytest.raises(ModelError, match="has one network"):
        experts(f"low={style}", has_two=False)
