"""LoRAs are fused as their formula says, recorded, and refused where they do not belong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from miga.backbones.options import ModelOptions, configure, configured_spec
from miga.backbones.registry import load_spec
from miga.backbones.wan import WanBackbone
from miga.backbones.wan_lora import find_loras, fuse_loras, parse_lora
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
    for text in ("", ":0.5", "style:nan", "style:inf"):
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


def text_encoder(file: Path) -> None:
    a, b = factors()
    write(file, **{"text_encoder.x.lora_A.weight": a, "text_encoder.x.lora_B.weight": b})


def stray(key: str, *shape: int) -> Any:
    def make(file: Path) -> None:
        write(file, **{key: torch.ones(*shape)})

    return make


def half_a_pair(file: Path) -> None:
    write(file, **{"transformer.blocks.0.attn1.to_q.lora_A.weight": factors()[0]})


def broken_number(file: Path) -> None:
    a, b = factors()
    b[0, 0] = torch.nan
    write(file, **{"blocks.0.attn1.to_q.lora_A.weight": a, "blocks.0.attn1.to_q.lora_B.weight": b})


def norms(file: Path) -> None:
    a, b = factors()
    key = "diffusion_model.blocks.0.self_attn"
    write(
        file,
        **{f"{key}.q.lora_A.weight": a, f"{key}.q.lora_B.weight": b, f"{key}.norm_q.diff": torch.ones(WIDTH)},
    )


FAULTS = {
    "deeper model": (lambda file: diffusers_lora(file, blocks=4), r"does not fit the model: blocks\.2\.attn1.*5 more"),
    "wider model": (lambda file: diffusers_lora(file, width=32), "does not fit the model: blocks.0.attn1.to_q.lora_A"),
    "another architecture": (stray("unet.down.0.lora_A.weight", 3, 8), "does not fit the model: unet.down"),
    "not a LoRA": (stray("blocks.0.attn1.to_q.weight", 24, 24), "does not fit"),
    "empty ComfyUI file": (stray("diffusion_model.patch.weight", 3), "cannot be read as one of Wan"),
    "text encoder": (text_encoder, "changes the text encoder too: text_encoder.x"),
    "half a pair": (half_a_pair, "does not fit the model: blocks.0.attn1.to_q"),
    "NaN": (broken_number, "NaN or infinity: blocks.0.attn1.to_q.lora_B"),
    "normalisations": (norms, "changes normalisations.*norm_q.diff"),
    "broken file": (lambda file: file.write_bytes(b"\xff" * 100), "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_loras(plain: WanTransformer3DModel, tmp_path: Path, fault: str) -> None:
    make, message = FAULTS[fault]
    make(tmp_path / "x.safetensors")
    transformer = copy.deepcopy(plain)
    with pytest.raises(ModelError, match=message) as error:
        fuse_loras(transformer, find_loras([str(tmp_path / "x.safetensors")]))
    assert error.value.hint
    for name, weight in plain.state_dict().items():
        assert torch.equal(transformer.state_dict()[name], weight)


def test_loras_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        find_loras([str(tmp_path / "nowhere.safetensors")])
    with pytest.raises(ModelError, match="the hub did not deliver it: cannot reach the hub\n"):
        find_loras(["someone/style"])
    (tmp_path / "style.pt").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickle can run code"):
        find_loras([str(tmp_path / "style.pt")])
