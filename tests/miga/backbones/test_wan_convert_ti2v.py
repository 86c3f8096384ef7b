"""`miga convert` of Wan2.2's TI2V-5B as Wan-AI publishes it: its VAE, its transformer, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn

from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.tensor_files import Stored
from miga.backbones.wan.config import WanTransformerConfig, WanVaeConfig
from miga.backbones.wan.convert import convert_wan
from miga.backbones.wan.original import config_of, parts_of
from miga.backbones.wan.spec import ARCHITECTURES, module_of
from miga.backbones.weight_files import Entry
from miga.errors import ModelError
from tests import wan_layouts as layouts
from tests.wan_layouts import State, wan_transformer, wan_vae_22

STEM = "diffusion_pytorch_model"
CHANNELS = {"in_channels": 48, "out_channels": 48}
# of `Wan2_2_VAE` in `wan/modules/vae2_2.py` of Wan2.2
MEAN = """
-0.2289 -0.0052 -0.1323 -0.2339 -0.2799 0.0174 0.1838 0.1557 -0.1382 0.0542 0.2813 0.0891 0.1570 -0.0098 0.0375 -0.1825
-0.2246 -0.1207 -0.0698 0.5109 0.2665 -0.2108 -0.2158 0.2502 -0.2055 -0.0322 0.1109 0.1567 -0.0729 0.0899 -0.2799
-0.1230 -0.0313 -0.1649 0.0117 0.0723 -0.2839 -0.2083 -0.0520 0.3748 0.0152 0.1957 0.1433 -0.2944 0.3573 -0.0548
-0.1681 -0.0667"""
STD = """
0.4765 1.0364 0.4514 1.1677 0.5313 0.4990 0.4818 0.5013 0.8158 1.0344 0.5894 1.0901 0.6885 0.6165 0.8454 0.4978 0.5759
0.3523 0.7135 0.6804 0.5833 1.4146 0.8986 0.5659 0.7069 0.5338 0.4889 0.4917 0.4069 0.4999 0.6866 0.4093 0.5709 0.6065
0.6415 0.4944 0.5726 1.2042 0.5458 1.6887 0.3971 1.0600 0.3943 0.5537 0.5444 0.4089 0.7468 0.7744"""


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split())


def never() -> torch.Tensor:
    raise AssertionError("a header is enough")


def header(shapes: dict[str, tuple[int, ...]], file: str = "Wan2.2_VAE.pth") -> dict[str, Stored]:
    return {name: Stored(name, Path(file), Entry("F32", shape), never) for name, shape in shapes.items()}


# ---- the published sizes, from the structure of Wan's own program ----


def residual_block(name: str, given: int, made: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """`ResidualBlock` of `wan/modules/vae2_2.py`: norm, SiLU, convolution, norm, SiLU, dropout, convolution."""
    yield f"{name}.residual.0.gamma", (given, 1, 1, 1)
    yield from convolution(f"{name}.residual.2", given, made, 3, 3, 3)
    yield f"{name}.residual.3.gamma", (made, 1, 1, 1)
    yield from convolution(f"{name}.residual.6", made, made, 3, 3, 3)
    if given != made:
        yield from convolution(f"{name}.shortcut", given, made, 1, 1, 1)


def convolution(name: str, given: int, made: int, *sides: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (made, given, *sides)
    yield f"{name}.bias", (made,)


def middle(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from residual_block(f"{name}.middle.0", width, width)
    yield f"{name}.middle.1.norm.gamma", (width, 1, 1)
    yield from convolution(f"{name}.middle.1.to_qkv", width, 3 * width, 1, 1)
    yield from convolution(f"{name}.middle.1.proj", width, width, 1, 1)
    yield from residual_block(f"{name}.middle.2", width, width)


def vae_of_wan(base: int, decoder_base: int, latent: int = 48) -> Iterator[tuple[str, tuple[int, ...]]]:
    """`WanVAE_`: four levels, of which the last does not resample and the middle two halve time."""
    widths = [base, base, 2 * base, 4 * base, 4 * base]
    yield from convolution("encoder.conv1", 12, base, 3, 3, 3)
    for level, (given, made) in enumerate(pairwise(widths)):
        place = f"encoder.downsamples.{level}.downsamples"
        for block in range(2):
            yield from residual_block(f"{place}.{block}", made if block else given, made)
        if level < 3:
            yield from convolution(f"{place}.2.resample.1", made, made, 3, 3)
        if level in (1, 2):
            yield from convolution(f"{place}.2.time_conv", made, made, 3, 1, 1)
    yield from middle("encoder", widths[-1])
    yield "encoder.head.0.gamma", (widths[-1], 1, 1, 1)
    yield from convolution("encoder.head.2", widths[-1], 2 * latent, 3, 3, 3)
    yield from convolution("conv1", 2 * latent, 2 * latent, 1, 1, 1)
    yield from convolution("conv2", latent, latent, 1, 1, 1)
    widths = [4 * decoder_base, 4 * decoder_base, 4 * decoder_base, 2 * decoder_base, decoder_base]
    yield from convolution("decoder.conv1", latent, widths[0], 3, 3, 3)
    yield from middle("decoder", widths[0])
    for level, (given, made) in enumerate(pairwise(widths)):
        place = f"decoder.upsamples.{level}.upsamples"
        for block in range(3):
            yield from residual_block(f"{place}.{block}", made if block else given, made)
        if level < 3:
            yield from convolution(f"{place}.3.resample.1", made, made, 3, 3)
        if level in (0, 1):
            yield from convolution(f"{place}.3.time_conv", made, 2 * made, 3, 1, 1)
    yield "decoder.head.0.gamma", (widths[-1], 1, 1, 1)
    yield from convolution("decoder.head.2", widths[-1], 12, 3, 3, 3)


def name_by_diffusers_script(key: str) -> str:
    """What `convert_vae_22` of diffusers' `scripts/convert_wan_to_diffusers.py` makes of a name."""
    inside = {
        "residual.0.gamma": "norm1.gamma", "residual.2.weight": "conv1.weight", "residual.2.bias": "conv1.bias",
        "residual.3.gamma": "norm2.gamma", "residual.6.weight": "conv2.weight", "residual.6.bias": "conv2.bias",
        "shortcut.weight": "conv_shortcut.weight", "shortcut.bias": "conv_shortcut.bias",
    }  # fmt: skip
    parts = key.split(".")
    if parts[0] in ("conv1", "conv2"):
        return ".".join([{"conv1": "quant_conv", "conv2": "post_quant_conv"}[parts[0]], *parts[1:]])
    half, kind, *rest = parts
    if kind == "conv1":
        return ".".join([half, "conv_in", *rest])
    if kind == "head":
        return ".".join([half, {"0": "norm_out", "2": "conv_out"}[rest[0]], *rest[1:]])
    if kind == "middle":
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[rest[0]]
        tail = ".".join(rest[1:])
        return f"{half}.mid_block.{place}.{inside.get(tail, tail)}"
    way = kind.removesuffix("samples")
    level, inner, block, *rest = rest
    assert inner == kind
    tail = ".".join(rest)
    if tail in inside:
        return f"{half}.{way}_blocks.{level}.resnets.{block}.{inside[tail]}"
    return f"{half}.{way}_blocks.{level}.{way}sampler.{tail}"


def test_the_published_vae() -> None:
    """Every tensor of `Wan2.2_VAE.pth`, by its name and shape, has its place; the sizes are those of the repository."""
    shapes = dict(vae_of_wan(160, 256))
    (found,) = parts_of(header(shapes))
    assert found.part == "vae"
    config = config_of(found)
    assert config == WanVaeConfig(
        base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, patch_size=2, in_channels=12, out_channels=12,
        scale_factor_spatial=16, latents_mean=numbers(MEAN), latents_std=numbers(STD),
    )  # fmt: skip
    count = sum(weight.numel() for weight in module_of(config).parameters())
    assert count == ARCHITECTURES["Wan-AI/Wan2.2-TI2V-5B-Diffusers"].vae_parameters
    assert {stored.key: name for name, stored in found.tensors.items()} == {
        key: name_by_diffusers_script(key) for key in shapes
    }


@pytest.mark.slow
def test_the_published_transformer() -> None:
    sizes: dict[str, Any] = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, **CHANNELS}
    with torch.device("meta"):
        module = WanTransformer3DModel(**sizes)
    shapes = {name: tuple(tensor.shape) for name, tensor in wan_transformer(module.state_dict()).items()}
    (found,) = parts_of(header(shapes))
    assert config_of(found) == WanTransformerConfig(**sizes)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_every_tensor_of_the_vae_is_missed(prefix: str) -> None:
    shapes = {f"{prefix}{name}": shape for name, shape in vae_of_wan(4, 8)}
    whole = header(shapes)
    for key in whole:
        (found,) = parts_of({name: stored for name, stored in whole.items() if name != key})
        with pytest.raises(ModelError) as error:
            config_of(found)
        missing = name_by_diffusers_script(key.removeprefix(prefix))
        assert error.value.message.endswith(f" lacks, by diffusers' names, {missing}"), key


def test_left_over_and_misshapen() -> None:
    shapes = dict(vae_of_wan(4, 8))
    more = shapes | {"encoder.downsamples.3.downsamples.2.resample.1.weight": (16, 16, 3, 3)}
    (found,) = parts_of(header(more))
    with pytest.raises(ModelError, match=r"no place for encoder\.downsamples\.3\.downsamples\.2\.resample\.1\.weight"):
        config_of(found)
    (found,) = parts_of(header(shapes | {"decoder.upsamples.1.upsamples.3.time_conv.bias": (9,)}))
    with pytest.raises(ModelError, match=r"another shape .* decoder\.upsamples\.1\.upsamples\.3\.time_conv\.bias"):
        config_of(found)
    (found,) = parts_of(header(dict(vae_of_wan(4, 8, latent=16))))
    with pytest.raises(ModelError, match=r"latents of 16 channels, those of .* 5B have 48"):
        config_of(found)


# ---- a tiny one, whole ----


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    states = layouts.build().states()
    torch.manual_seed(7)
    transformer, vae = WanTransformer3DModel(**layouts.TRANSFORMER, **CHANNELS), AutoencoderKLWan(**layouts.VAE_22)
    for weight in (*transformer.parameters(), *vae.parameters()):
        nn.init.normal_(weight, std=0.2 if weight.ndim < 2 else 1 / weight[0].numel() ** 0.5)
    return states | {"transformer": transformer.state_dict(), "vae": vae.state_dict()}


def write_ti2v(folder: Path, states: dict[str, State]) -> Path:
    """As Wan-AI/Wan2.2-TI2V-5B lies on the hub: three shards, and the VAE's own pickle."""
    plain = {**states, "vae": layouts.build().states()["vae"]}
    layouts.write_original(folder, plain, shards=3)
    (folder / "Wan2.1_VAE.pth").unlink()
    torch.save(wan_vae_22(states["vae"]), folder / "Wan2.2_VAE.pth")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "ti2v", "in_dim": 48, "out_dim": 48}))
    return folder


def test_a_folder_as_wan_publishes_it(tmp_path: Path, states: dict[str, State]) -> None:
    out = tmp_path / "out"
    convert_wan([write_ti2v(tmp_path / "Wan2.2-TI2V-5B", states)], out)
    for part in ("transformer", "vae"):
        written = load_file(out / part / f"{STEM}.safetensors")
        assert written.keys() == states[part].keys()
        assert all(torch.equal(written[name], tensor) for name, tensor in states[part].items())
    index = json.loads((out / "model_index.json").read_text())
    assert (index["_class_name"], index["expand_timesteps"]) == ("WanPipeline", True)
    assert json.loads((out / "scheduler" / "scheduler_config.json").read_text())["flow_shift"] == 5.0
    spec = load_spec(str(out))
    assert (spec.image_input, spec.latent_channels, spec.height // spec.latent_height) == ("first_latent", 48, 16)
    assert load_backbone(str(out)).spec.image_input == "first_latent"


def test_the_vae_does_what_it_did(tmp_path: Path, states: dict[str, State]) -> None:
    """Loaded by diffusers, it encodes and decodes as the module that the file came from."""
    before = AutoencoderKLWan(**layouts.VAE_22).eval()
    before.load_state_dict(states["vae"])
    convert_wan([write_ti2v(tmp_path / "wan", states)], tmp_path / "out")
    after = AutoencoderKLWan.from_pretrained(tmp_path / "out" / "vae").eval()
    assert (after.config.latents_mean[0], after.config.latents_std[47]) == (-0.2289, 0.7744)
    frames = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latents = before.encode(frames).latent_dist.mode()
        assert latents.shape == (1, 48, 3, 2, 3)
        assert torch.equal(after.encode(frames).latent_dist.mode(), latents)
        decoded = before.decode(latents).sample
        assert decoded.std() > 0.1
        assert torch.equal(after.decode(latents).sample, decoded)


def test_a_vae_of_another_model(tmp_path: Path, states: dict[str, State]) -> None:
    """Either VAE beside the other's transformer; and a 5B transformer alone, whose command names its VAE."""
    old = layouts.build().states()
    files = layouts.write_comfy(tmp_path / "old", old)
    new = tmp_path / "wan2.2_vae.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in wan_vae_22(states["vae"]).items()}, new)
    parts: Any = {"vae": new, **{part: files[part] for part in ("transformer", "text_encoder")}}
    tokenizer = layouts.write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match=r"makes latents of 48 channels, .* reads 16") as caught:
        convert_wan([], tmp_path / "out", parts=parts, tokenizer=tokenizer)
    assert "Wan2.1_VAE.pth" in caught.value.hint
    folder = write_ti2v(tmp_path / "wan", states)
    with pytest.raises(ModelError, match=r"makes latents of 16 channels, .* reads 48"):
        convert_wan([folder], tmp_path / "out", parts={"vae": files["vae"]})
    (folder / "Wan2.2_VAE.pth").unlink()
    with pytest.raises(ModelError, match="no VAE") as caught:
        convert_wan([folder], tmp_path / "out")
    assert "--vae wan2.2_vae.safetensors" in caught.value.hint
