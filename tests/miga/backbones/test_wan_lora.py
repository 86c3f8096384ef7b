"""LoRAs are fused as their formula says, recorded, and refused where they do not belong."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file

from miga.backbones.family import ModelOptions
from miga.backbones.lora_files import find_loras, parse_lora
from miga.backbones.options import configure, configured_spec
from miga.backbones.registry import load_spec
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.lora import check_lora, fuse_loras
from miga.backbones.wan.spec import load_architecture
from miga.errors import ModelError
from tests.tiny_wan import build_transformer

RANK, WIDTH, FFN = 3, 24, 48


@pytest.fixture(scope="module")
def plain() -> WanTransformer3DModel:
    return build_transformer()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("cannot reach the hub\nsecond line")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", refuse)


def factors(outs: int = WIDTH, ins: int = WIDTH, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, ins, generator=generator), torch.randn(outs, RANK, generator=generator)


def write(file: Path, **tensors: torch.Tensor) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def diffusers_lora(file: Path, blocks: int = 2, width: int = WIDTH) -> Path:
    """Every block's first query and second feed-forward layer."""
    tensors = {}
    for block in range(blocks):
        for module, ins in (("attn1.to_q", width), ("ffn.net.2", FFN)):
            a, b = factors(width, ins, seed=block)
            key = f"transformer.blocks.{block}.{module}"
            tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    return write(file, **tensors)


def fused(plain: WanTransformer3DModel, *texts: str) -> WanTransformer3DModel:
    transformer = copy.deepcopy(plain)
    fuse_loras(transformer, find_loras(texts))
    return transformer


@pytest.mark.parametrize(("suffix", "scale"), [("", 1.0), (":0.5", 0.5), (":-2", -2.0), (":0", 0.0)])
def test_diffusers_layout(plain: WanTransformer3DModel, tmp_path: Path, suffix: str, scale: float) -> None:
    transformer = fused(plain, f"{diffusers_lora(tmp_path / 'style.safetensors')}{suffix}")
    changed = {f"blocks.{block}.{module}.weight" for block in (0, 1) for module in ("attn1.to_q", "ffn.net.2")}
    assert transformer.state_dict().keys() == plain.state_dict().keys()
    for name, weight in plain.state_dict().items():
        expected = weight
        if name in changed:
            a, b = factors(WIDTH, FFN if "ffn" in name else WIDTH, seed=int(name.split(".")[1]))
            expected = weight + scale * b @ a
        torch.testing.assert_close(transformer.state_dict()[name], expected, rtol=1e-6, atol=1e-6)


def test_comfyui_layout_with_alpha_and_bias(plain: WanTransformer3DModel, tmp_path: Path) -> None:
    tensors = {}
    for block in (0, 1):
        a, b = factors(seed=block)
        key = f"diffusion_model.blocks.{block}.cross_attn.v"
        tensors |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(1.5)}
        tensors |= {f"{key}.diff_b": torch.full((WIDTH,), 0.25)}
    transformer = fused(plain, f"{write(tmp_path / 'comfy.safetensors', **tensors)}:0.8")
    for block in (0, 1):
        a, b = factors(seed=block)
        ours, before = transformer.blocks[block].attn2.to_v, plain.blocks[block].attn2.to_v
        torch.testing.assert_close(ours.weight, before.weight + 0.8 * (1.5 / RANK) * b @ a, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.bias, before.bias + 0.8 * 0.25, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_alpha_that_the_file_states_of_itself(plain: WanTransformer3DModel, tmp_path: Path, prefix: str) -> None:
    a, b = factors()
    key = f"{prefix}blocks.1.attn2.to_k"
    settings = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["blocks.1.attn2.to_k"]}
    metadata = {"lora_adapter_metadata": json.dumps({f"{prefix}{name}": value for name, value in settings.items()})}
    save_file({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}, tmp_path / "a.safetensors", metadata=metadata)
    transformer = fused(plain, str(tmp_path / "a.safetensors"))
    expected = plain.blocks[1].attn2.to_k.weight + 2.0 * b @ a
    torch.testing.assert_close(transformer.blocks[1].attn2.to_k.weight, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(transformer.blocks[0].attn2.to_k.weight, plain.blocks[0].attn2.to_k.weight)


def test_several_add_up(plain: WanTransformer3DModel, tmp_path: Path) -> None:
    file = str(diffusers_lora(tmp_path / "a.safetensors"))
    once, twice = fused(plain, f"{file}:1.5"), fused(plain, file, f"{file}:0.5")
    for name, weight in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], weight, rtol=1e-5, atol=1e-5)


def test_nothing_is_left_of_it_but_the_weights(plain: WanTransformer3DModel, tmp_path: Path) -> None:
    transformer = fused(plain, str(diffusers_lora(tmp_path / "a.safetensors")))
    kinds = [type(module) for module in transformer.modules()]
    assert kinds == [type(module) for module in plain.modules()]


def test_bfloat16(plain: WanTransformer3DModel, tmp_path: Path) -> None:
    half = fused(copy.deepcopy(plain).bfloat16(), str(diffusers_lora(tmp_path / "a.safetensors")))
    a, b = factors()
    exact = plain.blocks[0].attn1.to_q.weight + b @ a
    assert half.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    torch.testing.assert_close(half.blocks[0].attn1.to_q.weight.float(), exact, rtol=2**-6, atol=2**-6)


def test_a_folder_with_one_file(plain: WanTransformer3DModel, tmp_path: Path) -> None:
    file = diffusers_lora(tmp_path / "one.safetensors")
    assert find_loras([str(tmp_path)])[0].file == file
    diffusers_lora(tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match=r"several files: .*one\.safetensors"):
        find_loras([str(tmp_path)])
    usual = diffusers_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert find_loras([str(tmp_path)])[0].file == usual


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = diffusers_lora(tmp_path / "hub.safetensors")
    asked = []

    def deliver(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", deliver)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: ["README.md", "x.safetensors"])
    loras = find_loras(["someone/style:0.7", "someone/styles/deep/a.safetensors"])
    assert asked == [("someone/style", "x.safetensors"), ("someone/styles", "deep/a.safetensors")]
    assert [lora.scale for lora in loras] == [0.7, 1.0]


def test_parse(tmp_path: Path) -> None:
    assert parse_lora("style.safetensors:0.8") == ("style.safetensors", 0.8)
    assert parse_lora("C:style.safetensors") == ("C:style.safetensors", 1.0)
    odd = tmp_path / "style:2"
    odd.write_bytes(b"")
    assert parse_lora(str(odd)) == (str(odd), 1.0)
    for text in ("", ":0.5", "style:nan", "style:inf", "style:1e300"):
        with pytest.raises(ModelError, match="FILE_OR_NAME"):
            parse_lora(text)


def test_what_stands_in_the_revision(tmp_path: Path, wan_folder: Path) -> None:
    model = str(wan_folder)
    first, second = (diffusers_lora(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    spec = load_spec(model)

    def revision(*texts: str) -> str:
        return configured_spec(spec, ModelOptions(lora=texts)).revision

    assert revision() == spec.revision
    assert revision(f"{first}:0.5").startswith(f"{spec.revision}+lora:")
    assert revision(str(first)) == revision(str(second)), "the content counts, not the name"
    assert revision(f"{first}:0.5") != revision(str(first))
    diffusers_lora(second, blocks=1)
    assert revision(str(first)) != revision(str(second))
    backbone = WanBackbone.from_pretrained(model, device="cpu", components=("denoiser",))
    configure(backbone, ModelOptions(lora=(f"{first}:0.5",)))
    assert backbone.spec.revision == revision(f"{first}:0.5")


# ---- layouts: the same change under every name that it goes by ----

WAN_TO_DIFFUSERS = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k", "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip
"""A block's layers, written down from both programs. Of the rest: time_projection.1, text_embedding.0, ..."""
OUTSIDE_BLOCKS = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "head.head": "proj_out",
}
LAYERS = {
    **{f"blocks.{block}.{wan}": f"blocks.{block}.{own}" for block in (0, 1) for wan, own in WAN_TO_DIFFUSERS.items()},
    **OUTSIDE_BLOCKS,
}
ATTENTION = [name for name in LAYERS if "attn" in name]
ALPHA = 1.5


def underscored(name: str) -> str:
    return f"lora_unet_{name.replace('.', '_')}"


LAYOUTS: dict[str, tuple[Callable[[str], str], tuple[str, str], bool]] = {
    "diffusers": (lambda wan: f"transformer.{LAYERS[wan]}", ("lora_A", "lora_B"), False),
    "diffusers without prefix": (lambda wan: LAYERS[wan], ("lora_A", "lora_B"), False),
    "diffusers as peft saves it": (lambda wan: f"base_model.model.{LAYERS[wan]}", ("lora_A", "lora_B"), False),
    "diffusers with alpha": (lambda wan: f"transformer.{LAYERS[wan]}", ("lora_A", "lora_B"), True),
    "ComfyUI": (lambda wan: f"diffusion_model.{wan}", ("lora_down", "lora_up"), True),
    "ComfyUI, names of peft": (lambda wan: f"diffusion_model.{wan}", ("lora_A", "lora_B"), False),
    "ComfyUI's own": (lambda wan: f"model.diffusion_model.{wan}", ("lora_down", "lora_up"), False),
    "musubi": (underscored, ("lora_down", "lora_up"), True),
    "kohya without alpha": (underscored, ("lora_down", "lora_up"), False),
    "musubi, two underscores": (lambda wan: underscored(f".{wan}"), ("lora_down", "lora_up"), True),
    "diffusers with underscores": (lambda wan: underscored(LAYERS[wan]), ("lora_down", "lora_up"), True),
    "Wan's names": (lambda wan: wan, ("lora_A", "lora_B"), False),
    "DiffSynth": (lambda wan: wan, ("lora_A.default", "lora_B.default"), False),
    "DiffSynth, prefixed": (lambda wan: f"pipe.dit.{wan}", ("lora_A.default", "lora_B.default"), False),
    "peft on Wan's program": (lambda wan: f"base_model.model.{wan}", ("lora_A", "lora_B"), False),
    "of a sharded training": (
        lambda wan: f"model._fsdp_wrapped_module.{wan.replace('.', '._fsdp_wrapped_module.', 1)}",
        ("lora_A", "lora_B"),
        False,
    ),
}


def write_layout(
    file: Path, plain: WanTransformer3DModel, layout: str, layers: Iterable[str] = LAYERS, dtype: Any = torch.float32
) -> dict[str, torch.Tensor]:
    """Writes random factors, of another rank in every layer; returns the change of every weight, by diffusers' name."""
    name_of, (down, up), has_alpha = LAYOUTS[layout]
    tensors, changes = {}, {}
    for number, wan in enumerate(layers):
        weight = plain.get_submodule(LAYERS[wan]).weight
        rank = 1 + number % 4
        generator = torch.Generator().manual_seed(number)
        a = (torch.randn(rank, weight.shape[1], generator=generator) / 8).to(dtype)
        b = torch.randn(weight.shape[0], rank, generator=generator).to(dtype)
        tensors |= {f"{name_of(wan)}.{down}.weight": a, f"{name_of(wan)}.{up}.weight": b}
        tensors |= {f"{name_of(wan)}.alpha": torch.tensor(ALPHA)} if has_alpha else {}
        changes[f"{LAYERS[wan]}.weight"] = (ALPHA / rank if has_alpha else 1.0) * b.float() @ a.float()
    write(file, **tensors)
    return changes


def assert_changed(plain: WanTransformer3DModel, ours: WanTransformer3DModel, changes: Mapping[str, Any]) -> None:
    """These weights by so much, all others not by a bit."""
    for name, weight in plain.state_dict().items():
        if name in changes:
            torch.testing.assert_close(ours.state_dict()[name], weight + changes[name], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(ours.state_dict()[name], weight), name
    assert changes.keys() <= plain.state_dict().keys()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("layers", [LAYERS, ATTENTION], ids=["all layers", "attention alone"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(plain: WanTransformer3DModel, tmp_path: Path, layout: str, layers: Iterable[str]) -> None:
    changes = write_layout(tmp_path / "x.safetensors", plain, layout, layers)
    assert_changed(plain, fused(plain, str(tmp_path / "x.safetensors")), changes)


@pytest.mark.parametrize("layout", ["diffusers", "ComfyUI, names of peft", "musubi"])
def test_the_same_as_diffusers_and_peft(plain: WanTransformer3DModel, tmp_path: Path, layout: str) -> None:
    """In the layouts, and of the layers, that diffusers' own loader reads."""
    file = tmp_path / "x.safetensors"
    write_layout(file, plain, layout, [name for name in LAYERS if name.startswith("blocks")])
    theirs = copy.deepcopy(plain)
    theirs.load_lora_adapter(WanPipeline.lora_state_dict(str(file)), adapter_name="x")
    theirs.fuse_lora(lora_scale=0.7, adapter_names=["x"])
    theirs.unload_lora()
    ours = fused(plain, f"{file}:0.7").state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_types_of_the_file(plain: WanTransformer3DModel, tmp_path: Path, dtype: torch.dtype) -> None:
    changes = write_layout(tmp_path / "x.safetensors", plain, "ComfyUI", dtype=dtype)
    assert_changed(plain, fused(plain, str(tmp_path / "x.safetensors")), changes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_are_summed_in_float32_and_rounded_once(
    plain: WanTransformer3DModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    file = tmp_path / "x.safetensors"
    changes = write_layout(file, plain, "diffusers", dtype=torch.bfloat16)
    half = copy.deepcopy(plain).to(dtype)
    ours = fused(half, *[f"{file}:0.01"] * 9).state_dict()
    for name, change in changes.items():
        expected = half.state_dict()[name].double() + 0.09 * change.double()
        torch.testing.assert_close(ours[name].double(), expected, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_weight_that_overflows(plain: WanTransformer3DModel, tmp_path: Path) -> None:
    write_layout(tmp_path / "x.safetensors", plain, "diffusers", ["head.head"])
    with pytest.raises(ModelError, match=r"makes proj_out\.weight larger than float16"):
        fused(copy.deepcopy(plain).half(), *[f"{tmp_path / 'x.safetensors'}:10000"] * 99)


# ---- parts that are no factors ----

PARTS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "modulation": ("diffusion_model.blocks.0.diff_m", (1, 6, WIDTH), "blocks.0.scale_shift_table"),
    "modulation, ComfyUI's name": (
        "diffusion_model.blocks.1.modulation.diff",
        (1, 6, WIDTH),
        "blocks.1.scale_shift_table",
    ),
    "modulation, diffusers": (
        "transformer.blocks.1.scale_shift_table.diff",
        (1, 6, WIDTH),
        "blocks.1.scale_shift_table",
    ),
    "modulation, underscores": ("lora_unet_blocks_1.diff_m", (1, 6, WIDTH), "blocks.1.scale_shift_table"),
    "the head's modulation": ("diffusion_model.head.diff_m", (1, 2, WIDTH), "scale_shift_table"),
    "the head's, ComfyUI's name": ("diffusion_model.head.modulation.diff", (1, 2, WIDTH), "scale_shift_table"),
    "patches": ("diffusion_model.patch_embedding.diff", (WIDTH, 4, 1, 2, 2), "patch_embedding.weight"),
    "bias of patches": ("diffusion_model.patch_embedding.diff_b", (WIDTH,), "patch_embedding.bias"),
    "bias of time": ("diffusion_model.time_projection.1.diff_b", (6 * WIDTH,), "condition_embedder.time_proj.bias"),
    "bias of time, bare": ("time_projection.1.diff_b", (6 * WIDTH,), "condition_embedder.time_proj.bias"),
    "bias of text": (
        "diffusion_model.text_embedding.2.diff_b",
        (WIDTH,),
        "condition_embedder.text_embedder.linear_2.bias",
    ),
    "a whole matrix": ("diffusion_model.blocks.1.ffn.0.diff", (FFN, WIDTH), "blocks.1.ffn.net.0.proj.weight"),
    "a bias of attention": ("diffusion_model.blocks.0.cross_attn.o.diff_b", (WIDTH,), "blocks.0.attn2.to_out.0.bias"),
    "the head's matrix": ("diffusion_model.head.head.diff", (16, WIDTH), "proj_out.weight"),
    "query norm": ("diffusion_model.blocks.0.self_attn.norm_q.diff", (WIDTH,), "blocks.0.attn1.norm_q.weight"),
    "key norm, diffusers": ("transformer.blocks.1.attn2.norm_k.diff", (WIDTH,), "blocks.1.attn2.norm_k.weight"),
    "norm of cross-attention": ("diffusion_model.blocks.0.norm3.diff", (WIDTH,), "blocks.0.norm2.weight"),
    "its bias": ("diffusion_model.blocks.0.norm3.diff_b", (WIDTH,), "blocks.0.norm2.bias"),
    "LyCORIS' norm": ("lycoris_blocks_0_norm3.w_norm", (WIDTH,), "blocks.0.norm2.weight"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside factors"])
@pytest.mark.parametrize("part", PARTS)
def test_parts(plain: WanTransformer3DModel, tmp_path: Path, part: str, beside: bool) -> None:
    key, shape, target = PARTS[part]
    change = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    a, b = factors()
    others = {"blocks.1.self_attn.q.lora_A.weight": a, "blocks.1.self_attn.q.lora_B.weight": b} if beside else {}
    file = write(tmp_path / "x.safetensors", **{key: change}, **others)
    expected = {target: 0.5 * change} | ({"blocks.1.attn1.to_q.weight": 0.5 * b @ a} if beside else {})
    assert_changed(plain, fused(plain, f"{file}:0.5"), expected)


@pytest.mark.parametrize("flat", [False, True])
def test_factors_of_a_convolution(plain: WanTransformer3DModel, tmp_path: Path, flat: bool) -> None:
    """B A is one convolution behind another."""
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(RANK, 4, 1, 2, 2, generator=generator), torch.randn(WIDTH, RANK, 1, 1, 1, generator=generator)
    x = torch.randn(1, 4, 3, 6, 8, generator=generator)
    given = (a.flatten(1), b.flatten(1)) if flat else (a, b)
    key = "diffusion_model.patch_embedding"
    tensors = {
        f"{key}.lora_down.weight": given[0],
        f"{key}.lora_up.weight": given[1],
        f"{key}.alpha": torch.tensor(2.0),
    }
    ours = fused(plain, str(write(tmp_path / "x.safetensors", **tensors)))
    twice = torch.nn.functional.conv3d(torch.nn.functional.conv3d(x, a, stride=(1, 2, 2)), b)
    expected = plain.patch_embedding(x) + 2 / RANK * twice
    torch.testing.assert_close(ours.patch_embedding(x), expected, rtol=1e-4, atol=1e-4)


def test_factors_with_sides_of_one(plain: WanTransformer3DModel, tmp_path: Path) -> None:
    a, b = factors()
    key = "lora_unet_blocks_0_self_attn_q"
    tensors = {f"{key}.lora_down.weight": a[..., None, None], f"{key}.lora_up.weight": b[..., None, None]}
    ours = fused(plain, str(write(tmp_path / "x.safetensors", **tensors)))
    assert_changed(plain, ours, {"blocks.0.attn1.to_q.weight": b @ a})


def test_a_bias_of_peft(plain: WanTransformer3DModel, tmp_path: Path) -> None:
    """`lora_B.bias` belongs to the factors, so alpha counts for it too; the reference is peft's."""
    a, b = factors()
    key = "blocks.0.attn1.to_q"
    tensors = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b, f"{key}.lora_B.bias": torch.ones(WIDTH)}
    settings = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": [key], "lora_bias": True}
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(settings)})
    theirs = copy.deepcopy(plain)
    theirs.load_lora_adapter({f"transformer.{k}": v for k, v in tensors.items()}, metadata={
        f"transformer.{k}": v for k, v in settings.items()})  # fmt: skip
    theirs.fuse_lora()
    layer = theirs.blocks[0].attn1.to_q
    ours = fused(plain, str(file))
    assert_changed(plain, ours, {f"{key}.weight": 2 * b @ a, f"{key}.bias": torch.full((WIDTH,), 2.0)})
    torch.testing.assert_close(ours.blocks[0].attn1.to_q.bias, layer.base_layer.bias)


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_that_the_file_states_of_itself(plain: WanTransformer3DModel, tmp_path: Path, rslora: bool) -> None:
    modules = {"blocks.0.attn1.to_q": (2, 6.0), "blocks.1.attn1.to_q": (3, 5.0), "blocks.1.attn2.to_q": (2, 6.0)}
    tensors = {}
    for module, (rank, _) in modules.items():
        tensors |= {f"transformer.{module}.lora_A.weight": torch.ones(rank, WIDTH)}
        tensors |= {f"transformer.{module}.lora_B.weight": torch.ones(WIDTH, rank)}
    settings = {
        "r": 2, "lora_alpha": 6, "rank_pattern": {"blocks.1.attn1.to_q": 3}, "use_rslora": rslora,
        "alpha_pattern": {"1.attn1.to_q": 5}, "target_modules": list(modules),
    }  # fmt: skip
    metadata = {f"transformer.{key}": value for key, value in settings.items()}
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(metadata)})
    theirs = copy.deepcopy(plain)
    theirs.load_lora_adapter(dict(tensors), metadata=metadata)
    theirs.fuse_lora()
    theirs.unload_lora()
    ours = fused(plain, str(file)).state_dict()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-5)


# ---- what is refused ----


def stray(*keys: str, shape: tuple[int, ...] = (WIDTH,), dtype: Any = torch.float32) -> Any:
    """A sound pair, and beside it tensors of these names."""

    def make(file: Path) -> None:
        a, b = factors()
        pair = {"blocks.1.self_attn.q.lora_A.weight": a, "blocks.1.self_attn.q.lora_B.weight": b}
        write(file, **pair, **{key: torch.ones(shape, dtype=dtype) for key in keys})

    return make


def pair(down: tuple[int, ...] = (RANK, WIDTH), up: tuple[int, ...] = (WIDTH, RANK), **others: torch.Tensor) -> Any:
    def make(file: Path) -> None:
        key = "blocks.0.attn1.to_q"
        tensors = {f"{key}.lora_A.weight": torch.ones(down), f"{key}.lora_B.weight": torch.ones(up)}
        write(file, **tensors, **{f"{key}.{name}": value for name, value in others.items()})

    return make


def stated(**settings: Any) -> Any:
    def make(file: Path) -> None:
        a, b = factors()
        key = "transformer.blocks.0.attn1.to_q"
        metadata = {f"transformer.{name}": value for name, value in ({"r": RANK, "lora_alpha": 1} | settings).items()}
        tensors = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(metadata)})

    return make


def twice(file: Path) -> None:
    a, b = factors()
    tensors = {}
    for key in ("transformer.blocks.0.attn1.to_q", "diffusion_model.blocks.0.self_attn.q"):
        tensors |= {f"{key}.lora_A.weight": a.clone(), f"{key}.lora_B.weight": b.clone()}
    write(file, **tensors)


def half_a_pair(file: Path) -> None:
    write(file, **{"transformer.blocks.0.attn1.to_q.lora_A.weight": factors()[0]})


def broken_number(file: Path) -> None:
    a, b = factors()
    b[0, 0] = torch.nan
    write(file, **{"blocks.0.attn1.to_q.lora_A.weight": a, "blocks.0.attn1.to_q.lora_B.weight": b})


Q = "diffusion_model.blocks.0.self_attn.q"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "deeper model": (
        lambda file: diffusers_lora(file, blocks=4),
        r"no such layer: transformer\.blocks\.2\.attn1.*5 more",
    ),
    "wider model": (
        lambda file: diffusers_lora(file, width=32),
        r"does not fit.*another shape.*blocks\.0\.attn1\.to_q",
    ),
    "another architecture": (stray("unet.down.0.lora_A.weight"), "no such layer: unet.down"),
    "weights, no LoRA": (stray("blocks.0.attn1.to_q.weight"), "no part of a LoRA.*: blocks.0.attn1.to_q.weight"),
    "a module of its own": (stray("dwpose_embedding.0.weight"), "dwpose_embedding.0.weight"),
    "a whole table": (stray("diffusion_model.head.modulation"), "no part of a LoRA.*: diffusion_model.head.modulation"),
    "no tensors": (lambda file: write(file), "holds no tensors"),
    "text encoder": (stray("text_encoder.x.lora_A.weight"), "changes the text encoder too: text_encoder.x"),
    "text encoder, kohya": (
        stray("lora_te_x.lora_down.weight", "lora_te_x.alpha"),
        "text encoder too: lora_te_x.alpha",
    ),
    "text encoder, kohya's second": (stray("lora_te1_x.lora_down.weight"), "text encoder too: lora_te1_x"),
    "half a pair": (half_a_pair, "whose other is not there: transformer.blocks.0.attn1.to_q.lora_A.weight"),
    "bias of half a pair": (
        stray("blocks.0.attn1.to_q.lora_B.bias"),
        "other is not there: blocks.0.attn1.to_q.lora_B.bias",
    ),
    "NaN": (broken_number, "NaN or infinity: blocks.0.attn1.to_q.lora_B"),
    "NaN in alpha": (pair(alpha=torch.tensor(torch.nan)), "an alpha that is no number: blocks.0.attn1.to_q.alpha"),
    "alpha of many": (pair(alpha=torch.ones(2)), "an alpha that is no number: blocks.0.attn1.to_q.alpha"),
    "alpha of nothing": (stray("blocks.0.attn1.to_q.alpha", shape=()), "other is not there: blocks.0.attn1.to_q.alpha"),
    "rank 0": (pair(down=(0, WIDTH), up=(WIDTH, 0)), "another shape.*blocks.0.attn1.to_q.lora_A"),
    "two ranks": (pair(down=(3, WIDTH), up=(WIDTH, 4)), "another shape.*blocks.0.attn1.to_q.lora_A"),
    "factors of no matrix": (pair(down=(WIDTH,), up=(WIDTH,)), "another shape.*blocks.0.attn1.to_q.lora_A"),
    "DoRA": (stray(f"{Q}.dora_scale"), rf"cannot be fused here, DoRA: {Q}.dora_scale"),
    "DoRA of peft": (stray("blocks.0.attn1.to_q.lora_magnitude_vector.weight"), "DoRA: blocks.0.attn1.to_q.lora_magn"),
    "LoHa": (stray(f"{Q}.hada_w1_a", f"{Q}.hada_w1_b"), f"LoHa: {Q}.hada_w1_a, {Q}.hada_w1_b"),
    "LoKr": (stray(f"{Q}.lokr_w1", f"{Q}.alpha"), f"LoKr: {Q}.lokr_w1"),
    "OFT": (stray(f"{Q}.oft_blocks"), f"OFT: {Q}.oft_blocks"),
    "a middle factor": (stray(f"{Q}.lora_mid.weight"), f"three factors: {Q}.lora_mid.weight"),
    "other shapes": (stray(f"{Q}.reshape_weight"), f"changes shapes: {Q}.reshape_weight"),
    "a weight set anew": (stray(f"{Q}.set_weight"), f"no part of a LoRA.*: {Q}.set_weight"),
    "image attention": (
        stray("diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight"),
        "only image-to-video models have: diffusion_model.blocks.0.cross_attn.k_img",
    ),
    "image attention, musubi": (stray("lora_unet_blocks_0_cross_attn_v_img.alpha"), "only image-to-video.*v_img"),
    "image embedding": (stray("diffusion_model.img_emb.proj.1.diff_b"), "only image-to-video.*img_emb.proj.1.diff_b"),
    "image attention, diffusers": (
        stray("transformer.blocks.0.attn2.add_k_proj.lora_A.weight"),
        "only image.*add_k_proj",
    ),
    "patches of another model": (
        stray("diffusion_model.patch_embedding.diff", shape=(WIDTH, 36, 1, 2, 2)),
        r"another shape than the model's \[24, 4, 1, 2, 2\]: diffusion_model.patch_embedding.diff",
    ),
    "modulation of another size": (stray("blocks.0.diff_m", shape=(6, WIDTH)), "another shape.*: blocks.0.diff_m"),
    "modulation of no block": (stray("time_projection.1.diff_m"), "no such layer: time_projection.1.diff_m"),
    "bias of what has none": (
        stray("blocks.0.self_attn.norm_q.diff_b"),
        "no such weight: blocks.0.self_attn.norm_q.diff_b",
    ),
    "a norm without weights": (stray("diffusion_model.blocks.0.norm1.diff"), "no such layer: .*norm1.diff"),
    "fused attention": (stray("blocks.0.self_attn.qkv.lora_A.weight"), "no such layer: blocks.0.self_attn.qkv"),
    "second transformer": (stray("transformer_2.blocks.0.attn1.to_q.lora_A.weight"), "transformer_2.blocks.0"),
    "whole numbers": (stray(f"{Q}.diff", shape=(WIDTH, WIDTH), dtype=torch.int8), f"numbers of type I8.*: {Q}.diff"),
    "scales": (stray(f"{Q}.lora_down.scale_weight", shape=()), "scale_weight"),
    "two layouts": (twice, "twice.*blocks.0"),
    "stated DoRA": (stated(use_dora=True), "states that it is DoRA"),
    "stated beginning": (stated(init_lora_weights="pissa_niter_4"), "pissa"),
    "stated rank": (stated(r=2), "states rank 2 for blocks.0.attn1.to_q, whose factors are of rank 3"),
    "stated nonsense": (stated(lora_alpha="x"), "lora_adapter_metadata.*lora_alpha"),
    "broken file": (lambda file: file.write_bytes(b"\xff" * 100), "cannot be read"),
    "empty file": (lambda file: file.write_bytes(b""), "cannot be read"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_loras(plain: WanTransformer3DModel, wan_folder: Path, tmp_path: Path, fault: str) -> None:
    """Before a run and by fusing, in the same words; not a weight is changed."""
    make, message = FAULTS[fault]
    make(tmp_path / "x.safetensors")
    transformer = copy.deepcopy(plain)
    loras = find_loras([str(diffusers_lora(tmp_path / "sound.safetensors")), str(tmp_path / "x.safetensors")])
    with pytest.raises(ModelError, match=message) as error:
        fuse_loras(transformer, loras)
    assert error.value.hint
    for name, weight in plain.state_dict().items():
        assert torch.equal(transformer.state_dict()[name], weight)
    with pytest.raises(ModelError, match=message):
        check_lora(loras[1], load_architecture(wan_folder).weights())


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").symlink_to("../../blobs/deadbeef")
    with pytest.raises(ModelError, match=r"a link to '\.\./\.\./blobs/deadbeef', which is not there"):
        find_loras([str(tmp_path / "x.safetensors")])
    os.mkfifo(tmp_path / "y.safetensors")
    with pytest.raises(ModelError, match="no regular file"):
        find_loras([str(tmp_path / "y.safetensors")])


def test_side_files_of_other_systems(tmp_path: Path) -> None:
    file = diffusers_lora(tmp_path / "x.safetensors")
    (tmp_path / "._x.safetensors").write_bytes(b"Mac OS X")
    assert find_loras([str(tmp_path)])[0].file == file


def test_loras_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        find_loras([str(tmp_path / "nowhere.safetensors")])
    with pytest.raises(ModelError, match="the hub did not deliver it: cannot reach the hub\n"):
        find_loras(["someone/style"])
    (tmp_path / "style.pt").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickle can run code"):
        find_loras([str(tmp_path / "style.pt")])
