"""Published causal weights become a folder that is loaded like any other: every tensor in its place, or why not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from jobs.cli import main
from miga.backbones.registry import check_weights, load_backbone, load_spec
from miga.backbones.wan.causal.convert import (
    ENTRIES,
    SYSTEMS,
    convert_causal,
    diffusers_weights,
    merged,
    plain_name,
    read_weights,
)
from miga.backbones.wan.causal.licence import NOTE
from miga.errors import ModelError, OutputError, UsageError
from miga.methods.causal.settings import PROFILES
from tests import wan_layouts as layouts
from tests.miga.methods.causal.recorded import DATA, tiny_transformer
from tests.wan_layouts import TinyWan, wan_transformer

Names = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tiny() -> TinyWan:
    return layouts.build()


@pytest.fixture(scope="module")
def base(tiny: TinyWan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that they were trained from, in Wan's own layout."""
    return layouts.write_original(tmp_path_factory.mktemp("base") / "Wan2.1-T2V-1.3B", tiny.states())


@pytest.fixture
def trained(tiny: TinyWan) -> Names:
    """Other weights of the same shapes, under upstream's names."""
    generator = torch.Generator().manual_seed(1)
    state = wan_transformer(tiny.states()["transformer"])
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def prefixed(names: Names, prefix: str) -> Names:
    return {prefix + name: tensor for name, tensor in names.items()}


def fsdp(names: Names) -> Names:
    """As FSDP and activation checkpointing name the weights of blocks."""
    found = {}
    for name, tensor in names.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            name = f"blocks.{number}._fsdp_wrapped_module._checkpoint_wrapped_module.{rest}"
        found[f"model._fsdp_wrapped_module.{name}"] = tensor
    return found


LAYOUTS: dict[str, Any] = {
    "bare, model. (Reward Forcing)": lambda names: prefixed(names, "model."),
    "bare, no prefix": lambda names: names,
    "generator (LongLive, CausVid)": lambda names: {"generator": prefixed(names, "model.")},
    "generator_ema (Self-Forcing)": lambda names: {
        "generator": {name: tensor + 1 for name, tensor in prefixed(names, "model.").items()},
        "generator_ema": prefixed(names, "model."),
    },
    "FSDP (Infinite-Forcing)": lambda names: {"generator_ema": fsdp(names)},
    "model": lambda names: {"model": names},
    "compiled": lambda names: {"generator": prefixed(names, "_orig_mod.model.")},
}


def saved(content: Any, folder: Path, name: str = "checkpoint.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_recordings_model_has_69_of_69_tensors_under_every_prefix(layout: str, tmp_path: Path) -> None:
    published = {plain_name(name): tensor for name, tensor in load_file(DATA / "tiny_weights.safetensors").items()}
    assert len(published) == 69
    read = read_weights(saved(LAYOUTS[layout](published), tmp_path))
    found = diffusers_weights(read, tiny_transformer())
    assert len(found) == 69
    wanted = tiny_transformer().state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_names_are_those_of_diffusers_own_conversion(trained: Names, tiny: TinyWan) -> None:
    """An independent map of the same names."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    theirs = convert_wan_transformer_to_diffusers(dict(trained))
    ours = diffusers_weights(trained, tiny.transformer)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_entry_is_the_users_choice(trained: Names, tmp_path: Path) -> None:
    file = saved(LAYOUTS["generator_ema (Self-Forcing)"](trained), tmp_path)
    name = "blocks.0.ffn.0.bias"
    assert torch.equal(read_weights(file)[name], trained[name])
    assert torch.equal(read_weights(file, "generator")[name], trained[name] + 1)
    with pytest.raises(ModelError, match="'critic'"):
        read_weights(file, "critic")
    assert ENTRIES[0] == "generator_ema"


def test_a_folder_round_trips(trained: Names, base: Path, tmp_path: Path) -> None:
    file = saved({"generator_ema": prefixed(trained, "model.")}, tmp_path, "self_forcing_dmd.pt")
    written = convert_causal(file, [base], tmp_path / "out", "self-forcing")
    folder = Path(written["folder"])
    check_weights(str(folder))
    network = load_backbone(str(folder), device="cpu", components=("denoiser",)).network  # type: ignore[attr-defined]
    found, wanted = network.state_dict(), diffusers_weights(trained, network)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    note = json.loads((folder / "model_index.json").read_text())[NOTE]
    assert note["preset"] == "self-forcing"
    assert note["checkpoint"] == "self_forcing_dmd.pt"
    assert note["repository"] == "gdhe17/Self-Forcing"
    assert "Apache-2.0" in note["licence"]
    assert load_spec(str(folder)).family == "wan"


def test_every_preset_with_weights_of_its_own_is_known() -> None:
    without = {"longlive-infinity", "deep-forcing", "lol", "flex-like"}
    assert PROFILES.keys() - SYSTEMS.keys() == without
    assert {name for name, system in SYSTEMS.items() if not system.is_commercial} == {"rolling-forcing", "causvid"}


@pytest.mark.slow
def test_noncommercial_licences_are_said_whenever_weights_are_loaded(
    trained: Names, base: Path, tmp_path: Path
) -> None:
    file = saved(prefixed(trained, "model."), tmp_path)
    for preset in ("rolling-forcing", "reward-forcing"):
        folder = str(convert_causal(file, [base], tmp_path / preset, preset)["folder"])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            load_backbone(folder, device="cpu", components=("denoiser",))
        texts = [str(each.message) for each in said if "non-commercial" in str(each.message)]
        assert bool(texts) == (preset == "rolling-forcing")


# ---- LoRA ----


def lora_of(transformer: WanTransformer3DModel, rank: int = 3) -> Names:
    """As peft names a LoRA over every linear layer of every block, ten a block."""
    generator, found = torch.Generator().manual_seed(2), {}
    layers = [f"{attention}.{part}" for attention in ("self_attn", "cross_attn") for part in "qkvo"] + [
        "ffn.0",
        "ffn.2",
    ]
    width, ffn = (
        transformer.config.num_attention_heads * transformer.config.attention_head_dim,
        transformer.config.ffn_dim,
    )
    for number in range(transformer.config.num_layers):
        for layer in layers:
            ins, outs = {"ffn.0": (width, ffn), "ffn.2": (ffn, width)}.get(layer, (width, width))
            stem = f"base_model.model.blocks.{number}.{layer}"
            found[f"{stem}.lora_A.weight"] = 0.1 * torch.randn(rank, ins, generator=generator)
            found[f"{stem}.lora_B.weight"] = 0.1 * torch.randn(outs, rank, generator=generator)
    return found


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_merged_lora_is_the_unmerged_one(wrapped: bool, tmp_path: Path) -> None:
    """Against hooks that add `B A x` beside every layer, as peft computes it."""
    transformer = tiny_transformer()
    factors = lora_of(transformer)
    assert len(factors) == 2 * 10 * 2
    file = saved({"generator_lora": factors, "critic_lora": {}} if wrapped else factors, tmp_path, "lora.pt")
    copy = WanTransformer3DModel.from_config(transformer.config).eval()
    weights = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    copy.load_state_dict(merged(weights, WanTransformer3DModel.from_config(transformer.config), file, tmp_path))

    beside = WanTransformer3DModel.from_config(transformer.config).eval()
    beside.load_state_dict(transformer.state_dict())
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    for key, down in factors.items():
        if key.endswith("lora_A.weight"):
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            for old, new in (("self_attn.", "attn1."), ("cross_attn.", "attn2.")):
                path = path.replace(old, new)
            if "attn" in path:
                stem, _, leaf = path.rpartition(".")
                path = f"{stem}.{names[leaf]}"
            path = path.replace("ffn.0", "ffn.net.0.proj").replace("ffn.2", "ffn.net.2")
            up = factors[key.replace("lora_A", "lora_B")]
            beside.get_submodule(path).register_forward_hook(
                lambda module, args, out, down=down, up=up: out + args[0] @ down.T @ up.T
            )
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 4, 3, 8, 6, generator=generator), torch.randn(1, 8, 24, generator=generator)
    with torch.no_grad():
        found, wanted, plain = (
            each(x, torch.tensor([500.0]), text, return_dict=False)[0] for each in (copy, beside, transformer)
        )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert (found - plain).abs().max() > 1e-2


@pytest.mark.slow
def test_a_lora_of_another_model_is_refused(trained: Names, base: Path, tmp_path: Path) -> None:
    file = saved({"generator": prefixed(trained, "model.")}, tmp_path)
    lora = saved({"generator_lora": lora_of(tiny_transformer())}, tmp_path, "lora.pt")
    with pytest.raises(ModelError, match="does not fit the model"):
        convert_causal(file, [base], tmp_path / "out", "longlive", lora=lora)
    assert not (tmp_path / "out").exists()


# ---- bad input ----


def test_tensors_that_are_missing_left_over_or_misshapen_are_named(trained: Names, base: Path, tmp_path: Path) -> None:
    def refusal(names: Names) -> str:
        with pytest.raises(ModelError) as refused:
            convert_causal(saved({"generator": names}, tmp_path), [base], tmp_path / "out", "self-forcing")
        assert not (tmp_path / "out").exists()
        return str(refused.value)

    without = {name: tensor for name, tensor in trained.items() if name != "blocks.0.cross_attn.norm_q.weight"}
    assert "blocks.0.attn2.norm_q.weight is missing" in refusal(without)
    assert "blocks.0.self_attn.k_img.weight" in refusal({**trained, "blocks.0.self_attn.k_img.weight": torch.ones(3)})
    larger = {**trained, "head.head.weight": torch.ones(3, 5)}
    assert "proj_out.weight is of shape [3, 5]" in refusal(larger)


def test_a_checkpoint_of_another_scale_is_refused(base: Path, tmp_path: Path) -> None:
    published = load_file(DATA / "tiny_weights.safetensors")
    with pytest.raises(ModelError, match=r"of shape \[64"):
        convert_causal(saved(published, tmp_path), [base], tmp_path / "out", "self-forcing")


def test_a_pickle_with_code_in_it_is_refused_and_not_run(base: Path, tmp_path: Path) -> None:
    file = saved({"generator": {"model.head.head.weight": Path("x")}}, tmp_path)
    with pytest.raises(ModelError, match="nothing in it was run"):
        convert_causal(file, [base], tmp_path / "out", "self-forcing")


def test_unknown_weights_and_folders_that_exist_are_refused(trained: Names, base: Path, tmp_path: Path) -> None:
    file = saved(trained, tmp_path)
    with pytest.raises(UsageError, match="self-forcing"):
        convert_causal(file, [base], tmp_path / "out", "self-forced")
    with pytest.raises(OutputError, match="exists already"):
        convert_causal(file, [base], tmp_path, "self-forcing")


def test_the_command_says_what_it_wrote(
    trained: Names, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved({"generator": prefixed(trained, "model.")}, tmp_path)
    out = str(tmp_path / "out")
    assert main(["convert", "--causal", "causvid", str(file), str(base), out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == out
    assert main(["convert", "--causal", "causvid", str(file), out + "2"]) == 2
    assert "the model that it was trained from" in capsys.readouterr().err
    assert main(["convert", "--entry", "generator", str(base), out + "2"]) == 2
