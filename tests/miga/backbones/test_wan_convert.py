"""Wan2.1 in the layouts that people have becomes a folder: every tensor in its place, bit for bit, or why not."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, NoReturn

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from jobs.cli import main
from miga.backbones import converted_folder
from miga.backbones.registry import check_weights, load_backbone, load_spec, weight_notes
from miga.backbones.tensor_files import Stored
from miga.backbones.wan.convert import convert_wan
from miga.backbones.wan.original import config_of, parts_of
from miga.backbones.weight_files import Entry
from miga.errors import MigaError, ModelError, OutputError, UsageError
from miga.long_video import LongVideoPipeline
from tests import wan_layouts as layouts
from tests.faulty_folder import WAS_RUN, edit
from tests.tiny_wan import build_tokenizer
from tests.wan_layouts import State, TinyWan, prefixed, wan_text, wan_transformer, wan_vae

States = dict[str, State]
PARTS = ("transformer", "vae", "text_encoder")
SAFETENSORS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tiny() -> TinyWan:
    return layouts.build()


@pytest.fixture
def states(tiny: TinyWan) -> States:
    """To be changed."""
    return {part: dict(state) for part, state in tiny.states().items()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "umt5")


def write_state(file: Path, state: Mapping[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


def weights_of(folder: Path) -> dict[str, State]:
    found: dict[str, State] = {part: {} for part in PARTS}
    for part in PARTS:
        for file in (folder / part).glob("*.safetensors"):
            found[part] |= load_file(file)
    return found


def equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


# ---- every layout ----

Written = tuple[list[Path], dict[str, Path], dict[str, torch.dtype]]
"""What is named by place, what by option, and the types that the parts are stored in."""


def same(dtype: torch.dtype) -> dict[str, torch.dtype]:
    return dict.fromkeys(PARTS, dtype)


def original(folder: Path, states: States) -> Written:
    place = layouts.write_original(folder / "Wan2.1-T2V-1.3B", states)
    return [place], {}, {**same(torch.float32), "text_encoder": torch.bfloat16}


def original_in_shards(folder: Path, states: States) -> Written:
    place = layouts.write_original(folder / "Wan2.1-T2V-14B", states, shards=6)
    return [place], {}, {**same(torch.float32), "text_encoder": torch.bfloat16}


def comfy(folder: Path, states: States) -> Written:
    return [], layouts.write_comfy(folder, states), same(torch.float16)


def comfy_with_prefix(folder: Path, states: States) -> Written:
    files = layouts.write_comfy(folder, states, dtype=torch.bfloat16, prefix="model.diffusion_model.")
    return list(files.values()), {}, same(torch.bfloat16)


def comfy_folder(folder: Path, states: States) -> Written:
    layouts.write_comfy(folder / "files", states)
    return [folder / "files"], {}, same(torch.float16)


def wrapper(folder: Path, states: States) -> Written:
    """As ComfyUI-WanVideoWrapper's files are: the VAE with a prefix, the text encoder under Wan's names."""
    files = [
        write_state(folder / "Wan2_1-T2V-1_3B_fp32.safetensors", wan_transformer(states["transformer"])),
        write_state(folder / "Wan2_1_VAE_fp32.safetensors", prefixed("model.", wan_vae(states["vae"]))),
        write_state(folder / "umt5-xxl-enc-fp32.safetensors", wan_text(states["text_encoder"])),
    ]
    return files, {}, same(torch.float32)


def all_in_one(folder: Path, states: States) -> Written:
    return [layouts.write_all_in_one(folder / "wan-aio.safetensors", states)], {}, same(torch.float32)


def diffusers_names(folder: Path, states: States) -> Written:
    files = {part: write_state(folder / f"{part}.safetensors", states[part]) for part in PARTS}
    return [], files, same(torch.float32)


def pickles(folder: Path, states: States) -> Written:
    """As torch saves them, one of them inside Lightning's wrapping, and with the words' table under both names."""
    text = states["text_encoder"] | {"encoder.embed_tokens.weight": states["text_encoder"]["shared.weight"]}
    content = {
        "transformer": {"state_dict": wan_transformer(states["transformer"]), "epoch": 3},
        "vae": wan_vae(states["vae"]),
        "text_encoder": text,
    }
    files = {part: folder / f"{part}.pt" for part in PARTS}
    for part, file in files.items():
        torch.save(content[part], file)
    return [], files, same(torch.float32)


LAYOUTS: dict[str, Callable[[Path, States], Written]] = {
    function.__name__: function
    for function in (
        original, original_in_shards, comfy, comfy_with_prefix, comfy_folder, wrapper, all_in_one, diffusers_names,
        pickles,
    )
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.slow
def test_every_layout(tmp_path: Path, tiny: TinyWan, states: States, tokenizer: Path, layout: str) -> None:
    """Through the command: every tensor by itself, and what the loaded model computes."""
    (tmp_path / "given").mkdir()
    sources, options, dtypes = LAYOUTS[layout](tmp_path / "given", states)
    out = tmp_path / "new" / "model"
    named = [text for part, file in options.items() for text in (f"--{part.replace('_', '-')}", str(file))]
    is_original = layout.startswith("original")
    words = [] if is_original else ["--tokenizer", str(tokenizer)]
    assert main(["convert", *map(str, sources), str(out), *named, *words]) == 0
    written = weights_of(out)
    for part, state in tiny.states().items():
        assert written[part].keys() == state.keys()
        for name, tensor in state.items():
            assert equal(written[part][name], tensor.to(dtypes[part])), name
    check_weights(str(out))
    require_same_outputs(out, tiny, dtypes)


def require_same_outputs(folder: Path, tiny: TinyWan, dtypes: Mapping[str, torch.dtype]) -> None:
    """The model that a run loads against diffusers' and transformers' modules, rounded as the file was."""
    states = {
        part: {name: tensor.to(dtypes[part]).float() for name, tensor in state.items()}
        for part, state in tiny.states().items()
    }
    transformer = WanTransformer3DModel.from_config(tiny.transformer.config).eval()
    transformer.load_state_dict(states["transformer"])
    vae = AutoencoderKLWan.from_config(tiny.vae.config).eval()
    vae.load_state_dict(states["vae"])
    text = UMT5EncoderModel(tiny.text.config).eval()
    text.load_state_dict(states["text_encoder"], strict=False)

    backbone: Any = load_backbone(str(folder), device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    x_BCFHW = torch.randn(1, 16, 2, 4, 6, generator=generator)
    text_BLD = torch.randn(1, 512, layouts.TEXT_DIM, generator=generator)
    with torch.no_grad():
        ids = build_tokenizer()("a red ball", return_tensors="pt").input_ids
        torch.testing.assert_close(backbone.encode_prompts(["a red ball"])[0], text(ids).last_hidden_state[0])
        torch.testing.assert_close(backbone.vae.decode(x_BCFHW).sample, vae.decode(x_BCFHW).sample)
        time = torch.tensor([700.0])
        ours = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        expected = transformer(x_BCFHW, time, text_BLD).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x_BCFHW, time, text_BLD).sample, expected)


def plain_text_encoder(state: State, ids: list[int]) -> torch.Tensor:
    """Wan's T5 encoder as its paper and program describe it, under the program's names; of at most 8 tokens."""

    def norm(x_LD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x_LD / (x_LD.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    place = torch.arange(len(ids))
    distance = place[None, :] - place[:, None]  # of a key from its query
    assert distance.abs().max() < 8  # farther ones share buckets
    bucket = distance.abs() + 16 * (distance > 0)
    x_LD = state["token_embedding.weight"][ids]
    for number in range(layouts.TEXT["num_layers"]):
        block = {name.removeprefix(f"blocks.{number}."): value for name, value in state.items()}
        y_LD = norm(x_LD, block["norm1.weight"])
        q, k, v = (
            (y_LD @ block[f"attn.{part}.weight"].T).unflatten(1, (layouts.TEXT["num_heads"], -1)) for part in "qkv"
        )
        scores = torch.einsum("inc,jnc->nij", q, k) + block["pos_embedding.embedding.weight"][bucket].permute(2, 0, 1)
        mixed = torch.einsum("nij,jnc->inc", scores.softmax(-1), v).flatten(1)
        x_LD = x_LD + mixed @ block["attn.o.weight"].T
        y_LD = norm(x_LD, block["norm2.weight"])
        gate = functional.gelu(y_LD @ block["ffn.gate.0.weight"].T, approximate="tanh")
        x_LD = x_LD + (gate * (y_LD @ block["ffn.fc1.weight"].T)) @ block["ffn.fc2.weight"].T
    return norm(x_LD, state["norm.weight"])


def test_the_text_encoder_is_wans_own(tmp_path: Path, states: States, tokenizer: Path) -> None:
    """The names say which tensor goes where; here it is what they compute."""
    sources, _, _ = wrapper(tmp_path, states)
    convert_wan(sources, tmp_path / "out", tokenizer=tokenizer)
    encoder = UMT5EncoderModel.from_pretrained(tmp_path / "out" / "text_encoder")
    ids = build_tokenizer()("a red ball").input_ids
    with torch.no_grad():
        ours = encoder(torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(ours, plain_text_encoder(wan_text(states["text_encoder"]), ids))


def test_the_layouts_here_are_those_that_diffusers_knows(states: States) -> None:
    """The tables of the tests against diffusers' own conversions, which go the other way."""
    transformer = convert_wan_transformer_to_diffusers(
        prefixed("model.diffusion_model.", wan_transformer(states["transformer"]))
    )
    assert transformer.keys() == states["transformer"].keys()
    assert all(torch.equal(transformer[name], states["transformer"][name]) for name in transformer)
    vae = convert_wan_vae_to_diffusers(wan_vae(states["vae"]))
    assert vae.keys() == states["vae"].keys()
    assert all(torch.equal(vae[name], states["vae"][name]) for name in vae)


def test_the_folder(tmp_path: Path, states: States) -> None:
    sources, _, _ = original(tmp_path, states)
    written = convert_wan(sources, tmp_path / "out")
    out = tmp_path / "out"
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "transformer/config.json",
        f"transformer/{SAFETENSORS}", "vae/config.json", f"vae/{SAFETENSORS}",
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Wan2.1-T2V-1.3B", "out"]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / "tokenizer" / file).read_bytes() == (
            sources[0] / "google" / "umt5-xxl" / file
        ).read_bytes()
    assert written["left_out"] == 0
    assert written["tensors"] == {part: len(state) for part, state in states.items()}
    assert load_spec(str(tmp_path / "out")).window == 21
    with safe_open(tmp_path / "out" / "transformer" / SAFETENSORS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_diffusers_loads_the_folder_as_a_pipeline(tmp_path: Path, tiny: TinyWan, states: States) -> None:
    sources, _, _ = original(tmp_path, states)
    convert_wan(sources, tmp_path / "out")
    pipeline = WanPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert pipeline.scheduler.config.flow_shift == 3.0
    assert pipeline.scheduler.config.prediction_type == "flow_prediction"
    for name, value in tiny.transformer.config.items():
        assert name.startswith("_") or pipeline.transformer.config[name] in (
            value,
            list(value) if isinstance(value, tuple) else value,
        )
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline("a red ball", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="np").frames
    assert frames.shape == (1, 5, 32, 32, 3)


@pytest.mark.slow
def test_the_same_video_as_from_diffusers_own_folder(
    tmp_path: Path, tiny: TinyWan, states: States, tokenizer: Path
) -> None:
    """Made by the sampler from the converted folder, and from the one that diffusers writes."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = WanPipeline(build_tokenizer(), tiny.text, tiny.vae, scheduler, transformer=tiny.transformer)
    pipeline.save_pretrained(tmp_path / "saved")
    edit(tmp_path / "saved" / "model_index.json", tokenizer=["transformers", "T5TokenizerFast"])
    sources, _, _ = wrapper(tmp_path, states)
    convert_wan(sources, tmp_path / "converted", tokenizer=tokenizer)
    settings = {"window": 6, "height": 32, "width": 32, "sampler": {"num_steps": 20, "zigzag_width": 2}}
    frames = []
    for folder in (tmp_path / "saved", tmp_path / "converted"):
        edit(folder / "miga.json", **settings, default_num_frames=29)
        pipe = LongVideoPipeline.from_pretrained(str(folder), device="cpu", dtype=torch.float32)
        frames.append(torch.as_tensor(pipe("a red ball", seed=4).pixels))
    assert frames[0].shape == (29, 32, 32, 3)
    assert frames[0].float().std() > 1
    assert torch.equal(*frames)


def test_large_parts_lie_in_several_files(
    tmp_path: Path, tiny: TinyWan, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted_folder, "MAX_SHARD_BYTES", 300_000)
    sources, _, dtypes = original(tmp_path, states)
    out = tmp_path / "out"
    convert_wan(sources, out)
    assert len(list((out / "transformer").glob("*.safetensors"))) > 5
    written = weights_of(out)
    for part, state in tiny.states().items():
        assert all(equal(written[part][name], tensor.to(dtypes[part])) for name, tensor in state.items())
    check_weights(str(out))
    require_same_outputs(out, tiny, dtypes)


def test_plain_fp8_is_kept_and_widened_when_it_is_loaded(
    tmp_path: Path, tiny: TinyWan, states: States, tokenizer: Path
) -> None:
    """As everywhere here: without scales its numbers mean what they say."""
    files = layouts.write_comfy(tmp_path, states)
    narrow = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor
        for name, tensor in wan_transformer(states["transformer"]).items()
    }
    write_state(files["transformer"], narrow)
    convert_wan([], tmp_path / "out", parts=files, tokenizer=tokenizer)
    written = weights_of(tmp_path / "out")["transformer"]
    assert all(equal(written[name], states["transformer"][name].to(written[name].dtype)) for name in written)
    loaded: Any = load_backbone(str(tmp_path / "out"), device="cpu", dtype=torch.float32, components=("denoiser",))
    query = loaded.network.blocks[0].attn1.to_q.weight
    assert equal(query, states["transformer"]["blocks.0.attn1.to_q.weight"].to(torch.float8_e4m3fn).float())
    check_weights(str(tmp_path / "out"))
    (note,) = weight_notes(str(tmp_path / "out"))
    num_narrow = sum(tensor.dtype == torch.float8_e4m3fn for tensor in written.values())
    assert note.startswith(f"transformer: {num_narrow} of {len(written)} tensors are in F8_E4M3, without scales; ")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_that_has_lost_its_scales_is_refused(
    tmp_path: Path, tiny: TinyWan, states: States, tokenizer: Path, dtype: torch.dtype
) -> None:
    """Scaling has each matrix reach the largest number of the type."""
    files = layouts.write_comfy(tmp_path, states)
    scaled = {
        name: (tensor * (torch.finfo(dtype).max / tensor.abs().max())).to(dtype) if tensor.ndim == 2 else tensor
        for name, tensor in wan_transformer(states["transformer"]).items()
    }
    write_state(files["transformer"], scaled)
    convert_wan([], tmp_path / "out", parts=files, tokenizer=tokenizer)
    with pytest.raises(ModelError, match="divided by scales, which are not there"):
        check_weights(str(tmp_path / "out"))


# ---- parts from several places ----


def test_a_file_in_place_of_a_folders_own(tmp_path: Path, states: States) -> None:
    sources, _, _ = original(tmp_path, states)
    tuned = {name: tensor + 1 for name, tensor in states["transformer"].items()}
    file = write_state(tmp_path / "tuned.safetensors", wan_transformer(tuned))
    for number, order in enumerate(([*sources, file], [file, *sources])):
        out = tmp_path / f"out{number}"
        convert_wan(order, out)
        written = weights_of(out)["transformer"]
        assert all(equal(written[name], tuned[name]) for name in tuned)
    convert_wan(sources, tmp_path / "chosen", parts={"transformer": file})
    assert equal(weights_of(tmp_path / "chosen")["transformer"]["proj_out.bias"], tuned["proj_out.bias"])


def test_a_file_in_place_of_a_part_in_diffusers_layout(tmp_path: Path, states: States) -> None:
    sources, _, _ = original(tmp_path, states)
    convert_wan(sources, tmp_path / "base")
    tuned = {name: tensor + 1 for name, tensor in states["transformer"].items()}
    file = write_state(tmp_path / "tuned.safetensors", wan_transformer(tuned))
    convert_wan([tmp_path / "base", file], tmp_path / "out")
    written = weights_of(tmp_path / "out")
    assert equal(written["transformer"]["proj_out.bias"], tuned["proj_out.bias"])
    assert equal(written["vae"]["quant_conv.bias"], states["vae"]["quant_conv.bias"])
    with pytest.raises(ModelError, match="in diffusers' layout already") as error:
        convert_wan([tmp_path / "base"], tmp_path / "again")
    assert f"--model {tmp_path / 'base'}" in error.value.hint


def test_parts_by_their_folders(tmp_path: Path, states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a part in shards, under Wan's names, and under transformers'."""
    monkeypatch.setattr(converted_folder, "MAX_SHARD_BYTES", 20_000)
    place = layouts.write_original(tmp_path / "wan", states, shards=3)
    convert_wan([place], tmp_path / "base")
    (place / "Wan2.1_VAE.pth").rename(tmp_path / "vae.pth")
    chosen = {"transformer": place, "text_encoder": tmp_path / "base" / "text_encoder", "vae": tmp_path / "vae.pth"}
    written = convert_wan([], tmp_path / "out", parts=chosen, tokenizer=tmp_path / "base")
    assert len(written["files"]["transformer"]) == 3
    assert len(written["files"]["text_encoder"]) > 1
    assert weights_of(tmp_path / "out").keys() == weights_of(tmp_path / "base").keys()
    base, out = weights_of(tmp_path / "base"), weights_of(tmp_path / "out")
    assert all(equal(out[part][name], base[part][name]) for part in PARTS for name in base[part])


def test_one_part_twice(tmp_path: Path, states: States, tokenizer: Path) -> None:
    files = layouts.write_comfy(tmp_path, states)
    other = shutil.copy(files["vae"], tmp_path / "other_vae.safetensors")
    with pytest.raises(UsageError, match=r"wan_2\.1_vae\.safetensors' and .*other_vae\.safetensors' are both a VAE"):
        convert_wan([*files.values(), other], tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(UsageError, match="both a VAE") as error:
        convert_wan([tmp_path], tmp_path / "out", tokenizer=tokenizer)
    assert "--vae" in error.value.hint
    convert_wan([tmp_path], tmp_path / "out", parts={"vae": Path(other)}, tokenizer=tokenizer)


def test_an_option_for_another_part(tmp_path: Path, states: States) -> None:
    files = layouts.write_comfy(tmp_path, states)
    with pytest.raises(
        ModelError, match=r"--vae .*umt5_xxl_fp16.safetensors': it holds a text encoder, no VAE"
    ) as error:
        convert_wan([], tmp_path / "out", parts={"vae": files["text_encoder"]})
    assert "--text-encoder" in error.value.hint


@pytest.mark.parametrize("missing", PARTS)
def test_a_part_is_missing(tmp_path: Path, states: States, tokenizer: Path, missing: str) -> None:
    """The hint is the command; with the missing file where it says, it works."""
    files = layouts.write_comfy(tmp_path, states)
    example = {"transformer": "wan2.1_t2v_1.3B_bf16.safetensors"}.get(missing, files[missing].name)
    lacking = files.pop(missing)
    with pytest.raises(ModelError, match=f"there is no .*{missing.split('_')[0][1:]}") as error:
        convert_wan(list(files.values()), tmp_path / "out", tokenizer=tokenizer)
    _, _, command = error.value.hint.partition(": miga ")
    assert example in command
    words = [str(lacking) if word == example else word for word in shlex.split(command)]
    assert main([*words, "--tokenizer", str(tokenizer)]) == 0
    assert load_spec(str(tmp_path / "out"))


# ---- sizes ----


def never() -> NoReturn:
    raise AssertionError("a tensor was read")


def stored(shapes: Mapping[str, torch.Tensor]) -> dict[str, Stored]:
    """A file of which nothing is there but the header."""
    return {
        name: Stored(name, Path("file.safetensors"), Entry("BF16", tuple(tensor.shape)), never)
        for name, tensor in shapes.items()
    }


PUBLISHED_TRANSFORMER = {
    "added_kv_proj_dim": None, "attention_head_dim": 128, "cross_attn_norm": True, "eps": 1e-06, "freq_dim": 256,
    "image_dim": None, "in_channels": 16, "out_channels": 16, "patch_size": (1, 2, 2),
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096, "pos_embed_seq_len": None,
}  # fmt: skip
SIZES = {
    "1.3B": ({"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, 1_418_996_800),
    "14B": ({"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}, 14_288_491_584),
}


def on_meta(kind: Any, config: Any) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        module = kind(**config) if isinstance(config, dict) else kind(config)
    state: dict[str, torch.Tensor] = module.state_dict()
    return state


def config_values(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_published_transformers(size: str, prefix: str) -> None:
    """The configuration that Wan-AI's -Diffusers repository has, from the names and shapes of the file alone."""
    sizes, num_parameters = SIZES[size]
    published = {**PUBLISHED_TRANSFORMER, **sizes}
    state = wan_transformer(on_meta(WanTransformer3DModel, published))
    assert sum(tensor.numel() for tensor in state.values()) == num_parameters
    (found,) = parts_of(stored({f"{prefix}{name}": tensor for name, tensor in state.items()}))
    assert config_values(config_of(found)) == published


def test_the_published_vae() -> None:
    """Of 194 tensors and 126,892,531 numbers, as Wan2.1_VAE.pth."""
    state = wan_vae(on_meta(AutoencoderKLWan, {}))
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (194, 126_892_531)
    (found,) = parts_of(stored(state))
    config = config_values(config_of(found))
    assert (config["base_dim"], config["z_dim"], config["num_res_blocks"]) == (96, 16, 2)
    assert (config["dim_mult"], config["temperal_downsample"]) == ((1, 2, 4, 4), (False, True, True))
    with torch.device("meta"):
        defaults = AutoencoderKLWan().config
    assert (list(config["latents_mean"]), list(config["latents_std"])) == (defaults.latents_mean, defaults.latents_std)


@pytest.mark.parametrize("is_wans", [True, False], ids=["wan", "comfy"])
def test_the_published_text_encoder(is_wans: bool) -> None:
    """google/umt5-xxl's half that reads: 5,680,910,336 numbers, 11.36 GB of umt5_xxl_fp16.safetensors' 11.37."""
    published = {
        "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu", "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    state = on_meta(UMT5EncoderModel, UMT5Config(**published))
    del state["encoder.embed_tokens.weight"]
    assert sum(tensor.numel() for tensor in state.values()) == 5_680_910_336
    (found,) = parts_of(stored(wan_text(state) if is_wans else state))
    config = config_values(config_of(found))
    assert {name: config[name] for name in published} == published


def test_blocks_that_are_not_there(tmp_path: Path, states: States) -> None:
    """The last ones: what is left is a model too, if nothing says how many there are."""
    state = wan_transformer(on_meta(WanTransformer3DModel, {**PUBLISHED_TRANSFORMER, **SIZES["1.3B"][0]}))
    (found,) = parts_of(stored({name: tensor for name, tensor in state.items() if not name.startswith("blocks.29.")}))
    with pytest.raises(ModelError, match="has 29 blocks; models 1536 wide have 30"):
        config_of(found)
    place = layouts.write_original(tmp_path / "wan", states)
    tiny = {name: tensor for name, tensor in load_file(place / SAFETENSORS).items() if not name.startswith("blocks.1.")}
    write_state(place / SAFETENSORS, tiny)
    with pytest.raises(ModelError, match="num_layers is 2, and the weights beside it say 1"):
        convert_wan([place], tmp_path / "out")


def test_heads_of_another_width_are_stated(tmp_path: Path, states: States) -> None:
    """By the config.json beside Wan's own weights; shapes do not say it."""
    place = layouts.write_original(tmp_path / "wan", states)
    edit(place / "config.json", num_heads=8)
    convert_wan([place], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())
    assert (config["num_attention_heads"], config["attention_head_dim"]) == (8, 32)
    edit(place / "config.json", num_heads=7)
    with pytest.raises(ModelError, match=r"256 wide, and its config.json states 7 heads"):
        convert_wan([place], tmp_path / "again")


# ---- damaged and foreign ----


def convert_comfy(tmp_path: Path, states: States, tokenizer: Path, **replaced: Path) -> None:
    files = layouts.write_comfy(tmp_path / "files", states)
    convert_wan([], tmp_path / "out", parts={**files, **replaced}, tokenizer=tokenizer)


def refusal(tmp_path: Path, states: States, tokenizer: Path, part: str, state: State, name: str = "x") -> MigaError:
    """What is said where this is a part; nothing is left behind."""
    file = write_state(tmp_path / f"{name}.safetensors", state)
    with pytest.raises(MigaError) as error:
        convert_comfy(tmp_path, states, tokenizer, **{part: file})
    assert {path.name for path in tmp_path.iterdir()} == {"files", file.name}
    assert error.value.hint
    return error.value


def changed(state: State, **changes: torch.Tensor | None) -> State:
    new = {name: tensor for name, tensor in state.items() if changes.get(name, tensor) is not None}
    return new | {name: tensor for name, tensor in changes.items() if tensor is not None}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.sampled(2)
def test_every_tensor_is_missed(states: States, part: str) -> None:
    """Whichever of them is not there, it is refused by its name, in the library's naming."""
    names = {"transformer": wan_transformer, "vae": wan_vae, "text_encoder": wan_text}[part]
    whole = stored(names(states[part]))
    for missing, key in zip(states[part], whole, strict=True):
        (found,) = parts_of({name: each for name, each in whole.items() if name != key})
        with pytest.raises(ModelError) as error:
            config_of(found)
        assert re.search(rf" lacks, by \w+' names, {re.escape(missing)}$", error.value.message), missing


def test_left_over_and_misshapen_tensors(tmp_path: Path, states: States, tokenizer: Path) -> None:
    state = wan_transformer(states["transformer"])
    said = refusal(tmp_path, states, tokenizer, "transformer", state | {"blocks.0.extra.weight": torch.ones(3)})
    assert "has no place for blocks.0.extra.weight" in said.message
    shutil.rmtree(tmp_path / "files")
    (tmp_path / "x.safetensors").unlink()
    said = refusal(tmp_path, states, tokenizer, "transformer", state | {"blocks.1.ffn.2.bias": torch.ones(3)})
    assert "another shape than the other tensors say for blocks.1.ffn.2.bias" in said.message


def test_twice_with_and_without_a_prefix(tmp_path: Path, states: States, tokenizer: Path) -> None:
    state = wan_transformer(states["transformer"])
    copy = {name: tensor.clone() for name, tensor in state.items()}
    said = refusal(tmp_path, states, tokenizer, "transformer", state | prefixed("diffusion_model.", copy))
    assert "two of one part, a transformer" in said.message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none(tmp_path: Path, states: States, tokenizer: Path, value: float) -> None:
    state = wan_vae(states["vae"])
    state["decoder.head.2.bias"] = torch.tensor([0.0, value, 1.0])
    said = refusal(tmp_path, states, tokenizer, "vae", state)
    assert "x.safetensors' holds NaN or infinity in decoder.head.2.bias" in said.message


QUANTIZED = {
    "scaled fp8": ({"scaled_fp8": torch.ones(2), "blocks.0.self_attn.q.scale_weight": torch.ones(1)}, "is quantized"),
    "comfy's new": ({"blocks.0.self_attn.q.weight_scale": torch.ones(1)}, "is quantized"),
    "int8": ({"blocks.0.self_attn.q.weight": torch.ones(256, 256, dtype=torch.int8)}, "numbers of type I8"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights(tmp_path: Path, states: States, tokenizer: Path, kind: str) -> None:
    more, message = QUANTIZED[kind]
    said = refusal(tmp_path, states, tokenizer, "transformer", wan_transformer(states["transformer"]) | more)
    assert message in said.message
    assert "bfloat16" in said.hint


def ones(*names: str) -> State:
    return {name: torch.ones(4, 4) for name in names}


FOREIGN: dict[str, tuple[State, str]] = {
    "VACE": (ones("vace_blocks.0.before_proj.weight", "vace_patch_embedding.weight"), "VACE"),
    "Animate": (ones("face_adapter.fuser_blocks.0.linear1_kv.weight"), "Wan2.2-Animate"),
    "S2V": (ones("casual_audio_encoder.weights"), "sound"),
    "camera": (ones("blocks.0.cam_encoder.weight"), "cameras"),
    "a LoRA": (ones("diffusion_model.blocks.0.self_attn.q.lora_A.weight"), "is a LoRA"),
    "kohya's LoRA": (ones("lora_unet_blocks_0_self_attn_q.lora_down.weight"), "is a LoRA"),
    "OpenCLIP": (ones("visual.transformer.resblocks.0.attn.in_proj_weight"), "CLIP under OpenCLIP's names"),
    "HunyuanVideo": (ones("double_blocks.0.img_attn_qkv.weight"), "MMDiT"),
    "Stable Diffusion": (ones("model.diffusion_model.input_blocks.0.0.weight"), "a U-Net"),
    "LTX": (ones("model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"), "another model"),
    "anything": (ones("layers.0.weight", "layers.1.weight"), "no part of Wan that is known here: it holds layers.0"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_models(tmp_path: Path, states: States, tokenizer: Path, kind: str) -> None:
    """Alone or among the transformer's own tensors."""
    state, message = FOREIGN[kind]
    assert message in refusal(tmp_path, states, tokenizer, "transformer", state).message
    if kind != "anything":
        shutil.rmtree(tmp_path / "files")
        (tmp_path / "x.safetensors").unlink()
        both = wan_transformer(states["transformer"]) | state
        assert message in refusal(tmp_path, states, tokenizer, "transformer", both).message


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (32, "conditioned on other videos"),
        (48, "it makes 16, so it is conditioned on controls"),
        (17, "another model's"),
    ],
)
def test_other_channels(tmp_path: Path, states: States, tokenizer: Path, channels: int, message: str) -> None:
    state = wan_transformer(states["transformer"])
    state["patch_embedding.weight"] = torch.ones(256, channels, 1, 2, 2)
    said = refusal(tmp_path, states, tokenizer, "transformer", state)
    assert f"takes {channels} channels" in said.message
    assert message in said.message


def test_t5_of_image_models(tmp_path: Path, states: States, tokenizer: Path) -> None:
    state = {
        name: tensor for name, tensor in states["text_encoder"].items() if ".block.0." in name or "relative" not in name
    }
    said = refusal(tmp_path, states, tokenizer, "text_encoder", state)
    assert "is T5, of 37 words" in said.message
    assert "umt5_xxl_fp16" in said.hint


def test_two_tables_of_words(tmp_path: Path, states: States, tokenizer: Path) -> None:
    state = states["text_encoder"]
    both = state | {"encoder.embed_tokens.weight": state["shared.weight"] + 1}
    assert "are one table of words, and differ" in refusal(tmp_path, states, tokenizer, "text_encoder", both).message


def test_parts_of_two_models(tmp_path: Path, states: States, tokenizer: Path) -> None:
    text = UMT5EncoderModel(UMT5Config(**{**layouts.TEXT, "d_model": 24}, vocab_size=37)).state_dict()
    del text["encoder.embed_tokens.weight"]
    said = refusal(tmp_path, states, tokenizer, "text_encoder", text)
    assert "makes texts of 24 numbers a token" in said.message


STATED = [
    ({"model_type": "i2v"}, "image-to-video"), ({"model_type": "vace"}, "VACE"),
    ({"model_type": "ti2v"}, "Wan2.2's 5B model, and the weights beside it take 16 channels"),
    ({"num_layers": 3}, "num_layers is 3, and the weights beside it say 2"), ({"dim": 512}, "dim is 512"),
    ({"text_len": 226}, "text_len is 226"), ({"eps": 1e-5}, "eps is"), ({"dim": "wide"}, "dim"),
    ({"_class_name": "VaceWanModel"}, "VaceWanModel"), ({"quantization_config": {}}, "quantized"),
]  # fmt: skip


@pytest.mark.parametrize(("stated", "message"), STATED, ids=[message for _, message in STATED])
def test_config_of_another_model(tmp_path: Path, states: States, stated: dict[str, Any], message: str) -> None:
    place = layouts.write_original(tmp_path / "wan", states)
    edit(place / "config.json", **stated)
    with pytest.raises(ModelError) as error:
        convert_wan([place], tmp_path / "out")
    assert message in error.value.message
    assert os.listdir(tmp_path) == ["wan"]


class Code:
    """What a pickle may run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


def with_code(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    torch.save(
        {"state_dict": {name: tensor.clone() for name, tensor in state.items()}, "x": Code(file.with_name(WAS_RUN))},
        file,
    )


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("blobs/gone")


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "code in a pickle": ("Wan2.1_VAE.pth", with_code, "nothing in it was run"),
    "half a pickle": ("models_t5_umt5-xxl-enc-bf16.pth", cut, "cannot be read"),
    "half of safetensors": (SAFETENSORS, cut, "its header speaks of"),
    "a web page": ("Wan2.1_VAE.pth", lambda file: file.write_text("<html>not found</html>"), "Wan2.1_VAE.pth"),
    "no VAE": ("Wan2.1_VAE.pth", Path.unlink, "there is no VAE beside"),
    "no transformer": (SAFETENSORS, Path.unlink, "there is no transformer beside"),
    "a list": ("Wan2.1_VAE.pth", lambda file: torch.save([torch.ones(2)], file), "holds no named tensors"),
    "a broken tokenizer": ("google/umt5-xxl/tokenizer.json", lambda file: file.write_text("{"), "google/umt5-xxl"),
    "no tokenizer": ("google/umt5-xxl/tokenizer.json", Path.unlink, "cannot load a tokenizer from 'google/umt5-xxl'"),
    "a dangling link": ("Wan2.1_VAE.pth", link_to_nothing, "which is not there"),
}  # fmt: skip


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder(tmp_path: Path, states: States, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    name, change, message = DAMAGE[damage]
    place = layouts.write_original(tmp_path / "wan", states)
    change(place / name)
    assert main(["convert", str(place), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "hint:" in said
    assert ".tmp" not in said
    assert os.listdir(tmp_path) == ["wan"]
    assert not (place / WAS_RUN).exists()


def test_one_of_several_shards(tmp_path: Path, states: States) -> None:
    place = layouts.write_original(tmp_path / "wan", states, shards=3)
    shard = place / "diffusion_pytorch_model-00002-of-00003.safetensors"
    with pytest.raises(ModelError, match="one file of several") as error:
        convert_wan([shard], tmp_path / "out")
    assert str(place) in error.value.hint
    shard.unlink()
    with pytest.raises(ModelError, match="names 3 files, and diffusion_pytorch_model-00002-of-00003"):
        convert_wan([place], tmp_path / "out")


def test_gguf(tmp_path: Path) -> None:
    (tmp_path / "wan2.1-t2v-14b-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="a GGUF file, whose weights are quantized"):
        convert_wan([tmp_path / "wan2.1-t2v-14b-Q4_K_M.gguf"], tmp_path / "out")


def test_a_tokenizer_of_more_words(tmp_path: Path, states: States) -> None:
    words = [(f"▁w{number}", -3.0) for number in range(40)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *words]
    T5TokenizerFast(vocab=vocabulary, extra_ids=0).save_pretrained(tmp_path / "words")
    sources, _, _ = original(tmp_path, states)
    with pytest.raises(ModelError, match=r"words' has 44 tokens, the text encoder knows 37") as error:
        convert_wan(sources, tmp_path / "out", tokenizer=tmp_path / "words")
    assert "google/umt5-xxl" in error.value.hint
    assert not (tmp_path / "out").exists()


# ---- whole or not at all ----


def test_nothing_is_written_over(tmp_path: Path, states: States) -> None:
    sources, _, _ = original(tmp_path, states)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        convert_wan(sources, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_no_room(tmp_path: Path, states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 5_000_000

    sources, _, _ = original(tmp_path, states)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(OutputError, match=r"has 0\.0 GB left, the converted model takes 0\.1"):
        convert_wan(sources, tmp_path / "out")
    assert os.listdir(tmp_path) == ["Wan2.1-T2V-1.3B"]


@pytest.mark.parametrize("number", [1, 3])
def test_stopped_half_way(tmp_path: Path, states: States, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls: list[Path] = []
    save = converted_folder.save_file

    def fail(tensors: State, file: Path, **options: Any) -> None:
        calls.append(file)
        assert not (tmp_path / "out").exists()
        if len(calls) == number:
            raise OSError("no space left on device")
        save(tensors, file, **options)

    monkeypatch.setattr(converted_folder, "save_file", fail)
    sources, _, _ = original(tmp_path, states)
    with pytest.raises(OutputError, match="cannot be written: no space left"):
        convert_wan(sources, tmp_path / "out")
    assert os.listdir(tmp_path) == ["Wan2.1-T2V-1.3B"]


def test_a_folder_with_something_else_in_it(tmp_path: Path, states: States) -> None:
    """It is passed over; where a part is missing it is said, since it may have been meant."""
    place = layouts.write_original(tmp_path / "wan", states)
    write_state(place / "style.safetensors", FOREIGN["a LoRA"][0])
    convert_wan([place], tmp_path / "out")
    (place / "Wan2.1_VAE.pth").unlink()
    with pytest.raises(ModelError, match=r"there is no VAE among what was named; .*style\.safetensors' is a LoRA"):
        convert_wan([place], tmp_path / "again")
    (place / "style.safetensors").unlink()
    with pytest.raises(ModelError, match="there is no VAE beside") as error:
        convert_wan([place], tmp_path / "again")
    command = f"miga convert --vae wan_2.1_vae.safetensors {place} {tmp_path / 'again'}"
    assert error.value.hint == f"name all parts: {command}"


# ---- named as a model ----


def generate(tmp_path: Path, model: Path | str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    status = main(
        ["generate", str(tmp_path / "prompts.txt"), str(tmp_path / "run"), "--model", str(model), "--dry-run"]
    )
    return status, capsys.readouterr().err


def command_in(said: str) -> list[str]:
    """The command that a hint names, as words."""
    match = re.search(r"`miga (convert [^`]*)`", said)
    assert match, said
    return shlex.split(match[1])


def test_a_folder_of_wans_own_as_a_model(tmp_path: Path, states: States, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal names the command; with it the model can be named."""
    place = layouts.write_original(tmp_path / "my models" / "Wan2.1-T2V-1.3B", states)
    status, said = generate(tmp_path, place, capsys)
    assert status == 2
    assert "layout of Wan's own program" in said
    command = command_in(said)
    assert main(command) == 0
    capsys.readouterr()
    assert generate(tmp_path, command[-1], capsys)[0] == 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("part", PARTS)
def test_a_single_file_as_a_model(
    tmp_path: Path, states: States, tokenizer: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    """The command has its place in it, and where the others are to be named."""
    files = layouts.write_comfy(tmp_path / "files", states)
    status, said = generate(tmp_path, files[part], capsys)
    assert status == 2
    kind = {"vae": "VAE"}.get(part, part.replace("_", " "))
    assert f"a file that holds a {kind} of Wan" in said
    command = command_in(said)
    assert str(files[part]) in command
    examples = {"wan2.1_t2v_1.3B_bf16.safetensors": "transformer", "wan_2.1_vae.safetensors": "vae",
                "umt5_xxl_fp16.safetensors": "text_encoder"}  # fmt: skip
    assert main([*(str(files[examples[word]]) if word in examples else word for word in command),
                 "--tokenizer", str(tokenizer)]) == 0  # fmt: skip
    assert generate(tmp_path, command[-1], capsys)[0] == 0


def test_other_files_as_a_model(tmp_path: Path, states: States, capsys: pytest.CaptureFixture[str]) -> None:
    pickle = tmp_path / "Wan2.1_VAE.pth"
    torch.save(wan_vae(states["vae"]), pickle)
    status, said = generate(tmp_path, pickle, capsys)
    assert status == 2
    assert str(pickle) in command_in(said)
    status, said = generate(tmp_path, write_state(tmp_path / "vace.safetensors", FOREIGN["VACE"][0]), capsys)
    assert (status, "of VACE" in said) == (2, True)
    (tmp_path / "notes.md").write_text("x")
    status, said = generate(tmp_path, tmp_path / "notes.md", capsys)
    assert (status, "miga convert" in said) == (2, True)


def test_a_folder_of_files_as_a_model(tmp_path: Path, states: States, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.write_comfy(tmp_path / "files", states)
    status, said = generate(tmp_path, tmp_path / "files", capsys)
    assert status == 2
    assert "has no model_index.json, and holds umt5_xxl_fp16.safetensors" in said
    assert command_in(said)[:2] == ["convert", str(tmp_path / "files")]


def test_a_repository_of_wans_own_as_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub has it, and none of the files that are asked for."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path / "snapshot"))
    status, said = generate(tmp_path, "Wan-AI/Wan2.1-T2V-1.3B", capsys)
    assert status == 2
    assert "take Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in said
    assert "miga convert Wan2.1-T2V-1.3B Wan2.1-T2V-1.3B-diffusers" in said


def test_no_paths_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "no path was named" in said
    assert "miga convert --transformer" in said


def test_a_repository_to_convert(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist") as error:
        convert_wan(["Wan-AI/Wan2.1-T2V-1.3B"], tmp_path / "out")
    assert "hf download Wan-AI/Wan2.1-T2V-1.3B --local-dir Wan2.1-T2V-1.3B" in error.value.hint


@pytest.mark.parametrize("names", [wan_transformer, prefixed, wan_vae, wan_text])
def test_a_part_that_is_called_as_videocrafter2s_checkpoint(
    tmp_path: Path, states: States, capsys: pytest.CaptureFixture[str], names: Callable[..., State]
) -> None:
    """Fine-tunes come as .ckpt too: what is in the file counts."""
    parts = {wan_vae: "vae", wan_text: "text_encoder"}
    state = states[parts.get(names, "transformer")]
    content = prefixed("model.diffusion_model.", wan_transformer(state)) if names is prefixed else names(state)
    torch.save({"state_dict": content}, tmp_path / "model.ckpt")
    assert main(["convert", str(tmp_path / "model.ckpt"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"beside {tmp_path / 'model.ckpt'}" in said
    assert "VideoCrafter2" not in said


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path, states: States, tokenizer: Path) -> None:
    """A part of 1 GB: what is not mapped from it stays below 50 MB, for either kind of file."""
    with torch.device("meta"):
        large = WanTransformer3DModel(**{**layouts.TRANSFORMER, "ffn_dim": 120_000, "num_layers": 8})
    shapes = wan_transformer(large.state_dict())
    state = {name: torch.full(tensor.shape, 0.1, dtype=torch.bfloat16) for name, tensor in shapes.items()}
    assert sum(tensor.nbytes for tensor in state.values()) > 0.9e9
    files = layouts.write_comfy(tmp_path, states)
    save_file(state, files["transformer"])
    torch.save(state, tmp_path / "large.pth")
    del state
    for file in (files["transformer"], tmp_path / "large.pth"):
        with watched_memory() as most:
            convert_wan([], tmp_path / file.stem, parts={**files, "transformer": file}, tokenizer=tokenizer)
        assert most[0] < 50e6
        shutil.rmtree(tmp_path / file.stem)
        file.unlink()


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """The most bytes of its own, not mapped from files, that this process held more than at the start."""

    def held() -> float:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return 1024.0 * int(line.split()[1])

    begun, most, over = held(), [0.0], Event()

    def watch() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], held() - begun)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()
