"""What is said of a folder that no model can be loaded from: before anything is loaded, and by loading it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from miga.backbones import loading, registry
from miga.backbones.base import Backbone
from miga.errors import ModelError
from tests.faulty_folder import (
    WAS_RUN,
    WEIGHTS,
    Change,
    add_tensors,
    append,
    cast,
    change_json,
    in_turn,
    leave_out,
    link,
    mark,
    pickled,
    pipe,
    remove,
    rename,
    spoil,
    truncate,
    write,
)
from tests.tiny_wan import shard

TEXT_WEIGHTS = "text_encoder/model.safetensors"
NETWORKS = {"wan": "transformer", "videocrafter2": "unet"}


def named_otherwise(name: str) -> dict[str, tuple[Change, str]]:
    """Weights that are there, and not under the name that is loaded."""
    folder, file = name.split("/")
    stem = file.removesuffix(".safetensors")
    shards = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {}, "weight_map": {"x": shards[0]}}

    def indexed(*names: str) -> Change:
        return in_turn(
            rename(name, f"{folder}/{shards[0]}"),
            write(f"{name}.index.json", json.dumps(index | {"weight_map": dict(zip("abc", names, strict=False))})),
        )

    return {
        f"{folder} of a variant": (
            rename(name, f"{folder}/{stem}.fp16.safetensors"),
            rf"{folder}.*has no {file}, but {stem}\.fp16\.safetensors[^$]*rename it to {file}",
        ),
        f"{folder} renamed": (
            rename(name, f"{folder}/wan_bf16.safetensors"),
            f"has no {file}, but wan_bf16.safetensors",
        ),
        f"{folder} in shards without an index": (
            rename(name, f"{folder}/{shards[0]}"),
            f"{shards[0]} are parts of a whole, and {file}.index.json.* is not there",
        ),
        f"{folder} in shards of a variant": (
            in_turn(rename(name, f"{folder}/{shards[0]}"), write(f"{folder}/{stem}.safetensors.index.fp16.json", "{}")),
            f"has no {file}.index.json, but {stem}.safetensors.index.fp16.json",
        ),
        f"{folder} twice": (
            in_turn(write(f"{folder}/{shards[0]}", ""), write(f"{name}.index.json", json.dumps(index))),
            f"{file} and {file}.index.json with its 1 files are two sets",
        ),
        f"{folder} elsewhere": (indexed("../vae/x.safetensors"), r"names \"\.\./vae/x.*no .safetensors file beside it"),
        f"{folder} anywhere": (indexed("/etc/x.safetensors"), r"names \"/etc/x.*no .safetensors file beside it"),
        f"{folder} hidden": (indexed(f"._{shards[0]}"), r"names \"\._.*no .safetensors file beside it"),
        f"{folder} in pickled shards": (indexed("x.bin"), "no .safetensors file beside it"),
        f"{folder} in shards of none": (indexed(), "names 0 files"),
        f"{folder} in numbered shards": (
            in_turn(indexed(), write(f"{name}.index.json", json.dumps(index | {"weight_map": {"x": 1}}))),
            f"{file}.index.json.*weight_map.x: input should be a valid string",
        ),
        f"{folder} with a marked index": (in_turn(indexed(*shards[:1]), mark(f"{name}.index.json")), "byte order mark"),
        f"{folder} in another format": (rename(name, f"{folder}/model-Q4_K_M.gguf"), "no weights.*model-Q4_K_M.gguf"),
    }


def quantized(name: str) -> dict[str, tuple[Change, str]]:
    """Numbers that mean nothing without others."""
    folder = name.split("/")[0]
    scale = torch.ones(())
    companions = (
        "first_scale", "scaled_fp8", "x.scale_weight", "x.weight_scale", "x.weight_scale_inv", "x.input_scale",
        "x.scale_input", "first.absmax", "first.quant_map", "first.quant_state.bitsandbytes__nf4", "x.comfy_quant",
        "x.SCB",
    )[: None if folder in NETWORKS.values() else 2]  # fmt: skip
    return {
        **{
            f"{folder} with {companion}": (
                add_tensors(name, **{companion: scale}),
                f"{folder}. is quantized: it has scales that are not applied here, ",
            )
            for companion in companions
        },
        **{
            f"{folder} in {dtype}": (cast(name, dtype), f"{folder}. holds numbers of type {kind}: ")
            for dtype, kind in ((torch.int8, "I8"), (torch.uint8, "U8"), (torch.int32, "I32"))
        },
        f"{folder} of more": (add_tensors(name, more=scale), f"{folder}. has no place for more"),
        f"{folder} with its quantization": (
            change_json(f"{folder}/config.json", quantization_config={"quant_method": "bitsandbytes"}),
            f"{folder}/config.json. has a quantization_config: quantized checkpoints are not supported",
        ),
    }


def not_there(name: str) -> dict[str, tuple[Change, str]]:
    return {
        f"a link to nothing for {name}": (
            link(name, "../../blobs/deadbeef"),
            f"{name}.*a link to '../../blobs/deadbeef', which is not there",
        ),
        f"a link to itself for {name}": (link(name, Path(name).name), f"{name}.*[Tt]oo many levels of symbolic links"),
        f"a pipe for {name}": (pipe(name), f"{name}.*no regular file"),
        f"a folder for {name}": (
            in_turn(remove(name), lambda folder: (folder / name).mkdir()),
            f"{name}.*(is a folder|no regular file)",
        ),
    }


def faults_of_all(family: str) -> dict[str, tuple[Change, str]]:
    network = NETWORKS[family]
    return {
        "no model_index.json": (remove("model_index.json"), "no model_index.json"),
        "broken model_index.json": (truncate("model_index.json"), "cannot read"),
        "model_index.json is a list": (write("model_index.json", "[]"), "holds a list, not an object"),
        "another pipeline": (change_json("model_index.json", _class_name="MyPipeline"), "is a MyPipeline, not a"),
        "another VAE": (change_json("vae/config.json", _class_name="MyVAE"), "MyVAE, not Autoencoder"),
        "no network": (remove(network), "no config.json"),
        "no network weights": (remove(f"{network}/{WEIGHTS}"), f"cannot load .*{network}"),
        "no VAE weights": (remove(f"vae/{WEIGHTS}"), "cannot load .*vae"),
        "no text encoder": (remove("text_encoder"), "no component 'text_encoder'"),
        "no tokenizer": (remove("tokenizer"), "no component 'tokenizer'"),
        "empty tokenizer": (remove("tokenizer/tokenizer.json"), r"tokenizer.*no tokenizer\.json"),
        "half a network": (truncate(f"{network}/{WEIGHTS}"), f"cannot load .*{network}"),
        "half a VAE": (truncate(f"vae/{WEIGHTS}"), "cannot load .*vae"),
        "half a text encoder": (truncate(TEXT_WEIGHTS), "cannot load .*text_encoder"),
        "a file that goes on": (append(f"vae/{WEIGHTS}"), "cannot load .*vae.*its header speaks of"),
        "NaN in the network": (spoil(f"{network}/{WEIGHTS}", torch.nan), f"{network}.* holds NaN or infinity in"),
        "infinity in the VAE": (spoil(f"vae/{WEIGHTS}", torch.inf), "vae.* holds NaN or infinity in"),
        "NaN in the text encoder": (spoil(TEXT_WEIGHTS, torch.nan), "text_encoder.* holds NaN or infinity in"),
        "a pickle in place of the network": (
            pickled(network, "diffusion_pytorch_model.bin"),
            f"{network}.*are a pickle, diffusion_pytorch_model.bin",
        ),
        "a pickle in place of the text encoder": (
            pickled("text_encoder", "pytorch_model.bin"),
            "text_encoder.*are a pickle, pytorch_model.bin",
        ),
        "unknown setting": (change_json("miga.json", windw=6), "unknown key 'windw'"),
        "setting of another type": (change_json("miga.json", fps=8.5), "fps must be of type int, not 8.5"),
        "truth as a number": (change_json("miga.json", window=True), "window must be of type int"),
        "setting out of range": (change_json("miga.json", fps=0), "fps must be 1 or above"),
        "window out of range": (change_json("miga.json", window=1), "window must be 2 or above"),
        "another family": (change_json("miga.json", family="mochi"), f"family must be '{family}', not 'mochi'"),
        "unknown sampler setting": (change_json("miga.json", sampler={"steps": 4}), "unknown key 'steps' in sampler"),
        **named_otherwise(f"{network}/{WEIGHTS}"),
        **dict(list(named_otherwise(TEXT_WEIGHTS).items())[:6]),
        **quantized(f"{network}/{WEIGHTS}"),
        **quantized(TEXT_WEIGHTS),
        **quantized(f"vae/{WEIGHTS}"),
        **not_there("model_index.json"),
        **not_there("vae/config.json"),
        **not_there(TEXT_WEIGHTS),
        **not_there(f"{network}/{WEIGHTS}"),
        "a link for a tokenizer": (link("tokenizer/tokenizer.json", "nowhere"), "tokenizer.json.*a link to 'nowhere'"),
        "a pipe for a tokenizer": (pipe("tokenizer/tokenizer.json"), "tokenizer.json.*no regular file"),
        "endless tokens": (
            change_json("tokenizer/tokenizer_config.json", extra_ids=2**31),
            "extra_ids.*at most 10,000",
        ),
        "VAE of a billion": (
            change_json("vae/config.json", **{"num_res_blocks": 10**9, "layers_per_block": 10**9}),
            "vae/config.json.*(num_res_blocks|layers_per_block): input should be less",
        ),
        "text encoder of a billion": (
            change_json("text_encoder/config.json", num_layers=10**9, num_hidden_layers=10**9),
            "text_encoder/config.json.*layers: input should be less",
        ),
        "text encoder without layers": (
            change_json("text_encoder/config.json", num_layers=0, num_hidden_layers=-1),
            "text_encoder/config.json.*layers: input should be greater",
        ),
        "text in place of a number": (
            change_json("vae/config.json", z_dim="4", latent_channels="4"),
            "vae/config.json.*: input should be a valid integer",
        ),
        "frames of a billion pixels": (change_json("miga.json", height=16 * 10**8), "height must be 32,768 or below"),
        "sampler setting of another type": (
            change_json("miga.json", sampler={"num_steps": "8"}),
            "sampler.num_steps = '8' has the wrong type",
        ),
        "a marked configuration": (mark("vae/config.json"), "vae/config.json.*byte order mark"),
        "a scheduler of another prediction": (
            change_json("scheduler/scheduler_config.json", prediction_type="v_prediction"),
            "prediction_type is .v_prediction",
        ),
        "a scheduler of other training": (
            change_json("scheduler/scheduler_config.json", num_train_timesteps=50),
            "num_train_timesteps",
        ),
        "a scheduler's broken configuration": (
            truncate("scheduler/scheduler_config.json"),
            "cannot read .*scheduler_config",
        ),
        "odd size": (change_json("miga.json", height=33), "height 33 is no multiple of 16 .* nearest is 32 or 48"),
    }


def shards(fault: str) -> Change:
    """The transformer in two files, of which the second did not arrive whole."""

    def change(folder: Path) -> None:
        shard(folder)
        files = sorted((folder / "transformer").glob("*.safetensors"))
        assert len(files) == 2
        if fault == "missing":
            files[1].unlink()
        else:
            files[1].write_bytes(files[1].read_bytes()[:-100])

    return change


FAULTS: dict[str, dict[str, tuple[Change, str]]] = {
    "wan": faults_of_all("wan")
    | {
        "two transformers": (change_json("model_index.json", transformer_2=["diffusers", "X"]), "two transformers"),
        "image to video": (change_json("transformer/config.json", in_channels=36), "images"),
        "no class of tokenizer": (change_json("model_index.json", tokenizer=["os", "system"]), "no tokenizer of"),
        "CogVideoX": (
            change_json("model_index.json", _class_name="CogVideoXPipeline"),
            "CogVideoXPipeline.*MMDiT.*A.4",
        ),
        "HunyuanVideo": (
            change_json("model_index.json", _class_name="HunyuanVideoPipeline"),
            "HunyuanVideo.*MMDiT.*A.4",
        ),
        "a shard is missing": (shards("missing"), "names 2 files, and .*00002-of-00002.* is not there"),
        "a shard is cut off": (shards("cut"), r"cannot load .*00002-of-00002.*bytes, and its header speaks of"),
        "another depth": (change_json("transformer/config.json", num_layers=3), "lacks blocks.2"),
        "another width": (change_json("transformer/config.json", ffn_dim=64), "transformer"),
        "a length that cannot be made": (
            change_json("miga.json", default_num_frames=40),
            "default_num_frames: num_frames 40 cannot be made.*nearest is 37 or 41",
        ),
        "less depth": (change_json("transformer/config.json", num_layers=1), "has no place for blocks.1"),
        "depth of a billion": (
            change_json("transformer/config.json", num_layers=10**9),
            "transformer/config.json.*num_layers: .*less than",
        ),
        "a number for a list": (
            change_json("transformer/config.json", patch_size=2),
            "transformer/config.json.*patch_size: .*valid array",
        ),
        "patches of latents": (change_json("transformer/config.json", patch_size=[2, 2, 2]), "patch_size is"),
        "other channels out": (change_json("transformer/config.json", out_channels=8), "out_channels is 8, not 4"),
        "no size of heads": (
            leave_out("transformer/config.json", "num_attention_heads"),
            "another shape for|expected shape",
        ),
        "another reader's width": (change_json("text_encoder/config.json", d_model=32), "d_model is 32.*text_dim 16"),
        "statistics of other channels": (
            change_json("vae/config.json", latents_mean=[0.0]),
            "latents_mean has 1 numbers",
        ),
        "statistics of nothing": (
            change_json("vae/config.json", latents_std=[1, 1, 0, 1]),
            "latents_std.2: .*greater than",
        ),
        "a VAE of other strides": (
            change_json("vae/config.json", scale_factor_spatial=16),
            "scale_factor_spatial is 16",
        ),
        "a VAE of other frames": (
            change_json("vae/config.json", scale_factor_temporal=8),
            "scale_factor_temporal is 8",
        ),
        "another text width": (change_json("text_encoder/config.json", d_ff=64), "text_encoder"),
    },
    "videocrafter2": faults_of_all("videocrafter2")
    | {
        "another UNet": (change_json("unet/config.json", _class_name="UNet3DConditionModel"), "no VideoCrafter2UNet"),
        "UNet of other channels": (change_json("unet/config.json", in_channels=8, out_channels=8), "has 4 channels"),
        "unknown key of the UNet": (change_json("unet/config.json", depth=2), "describes no VideoCrafter2UNet"),
        "a deeper UNet": (change_json("unet/config.json", num_res_blocks=2), "lacks"),
        "a wider UNet": (change_json("unet/config.json", model_channels=64), "unet"),
        "a shallower UNet": (change_json("unet/config.json", attention_resolutions=[2]), "no place for"),
        "a UNet of a billion": (change_json("unet/config.json", num_res_blocks=10**9), "num_res_blocks: .*less than"),
        "latents shifted": (change_json("vae/config.json", shift_factor=0.1), "shift_factor: input should be null"),
        "another reader's width": (
            change_json("text_encoder/config.json", hidden_size=64),
            "context_dim|another shape",
        ),
        "number as a truth": (change_json("miga.json", use_scale=1), "use_scale must be of type bool, not 1"),
        "unknown spacing": (change_json("miga.json", spacing="even"), "spacing must be one of linspace, strided"),
    },
}


def look_at(folder: Path | str) -> Backbone:
    """What `miga generate` does before it starts anything."""
    registry.load_spec(str(folder))
    registry.check_weights(str(folder))
    return registry.load_backbone(str(folder), device="cpu", components=("tokenizer",))


@pytest.mark.parametrize(
    ("family", "fault"), [(family, fault) for family in FAULTS for fault in FAULTS[family]], indirect=["family"]
)
@pytest.mark.sampled(132)
def test_faulty_folder(copied: Path, family: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found from configurations, headers and one look at every number; and by loading, where nobody looked before."""
    change, message = FAULTS[family][fault]
    change(copied)
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, "load_state_dict", None)
        with pytest.raises(ModelError, match=message) as error:
            look_at(copied)
    assert error.value.hint
    with pytest.raises(ModelError, match=message) as error:
        registry.load_backbone(str(copied), device="cpu")
    assert error.value.hint
    assert not (copied / WAS_RUN).exists()


@pytest.mark.sampled(2)
def test_what_else_lies_there(copied: Path, family: str) -> None:
    """Files of other systems and of the hub's client, variants beside the whole, and links to the files themselves."""
    network = NETWORKS[family]
    revision = registry.load_spec(str(copied)).revision
    for name in ("._model_index.json", ".DS_Store", f"{network}/._{WEIGHTS}", "text_encoder/._model.safetensors"):
        (copied / name).write_bytes(b"\0\5\x16\7Mac OS X")
    (copied / ".cache" / "huggingface").mkdir(parents=True)
    (copied / ".cache" / "huggingface" / "x.incomplete").write_bytes(b"")
    look_at(copied)
    assert registry.load_spec(str(copied)).revision == revision
    (copied / network / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another")
    (copied / "text_encoder" / "model-00001-of-00002.safetensors").write_bytes(b"another")
    blobs = copied.parent / "blobs"
    (copied / network).rename(blobs)
    (copied / network).symlink_to(blobs)
    look_at(copied)
    assert registry.load_backbone(str(copied), device="cpu").network is not None  # type: ignore[attr-defined]


def test_keys_that_are_left_out(wan_folder: Path, tmp_path: Path) -> None:
    """diffusers' defaults are taken, here too; where they do not fit, the keys are named."""
    folder = Path(shutil.copytree(wan_folder, tmp_path / "model"))
    leave_out("transformer/config.json", "cross_attn_norm", "eps", "qk_norm")(folder)
    look_at(folder)
    leave_out("transformer/config.json", "num_attention_heads")(folder)
    with pytest.raises(ModelError, match="another shape for") as error:
        look_at(folder)
    assert "transformer/config.json leaves out" in error.value.hint
    assert "num_attention_heads (40)" in error.value.hint


def test_an_adapter_beside_the_text_encoder(copied: Path) -> None:
    """transformers would add it to the weights without a word."""
    write("text_encoder/adapter_config.json", "{}")(copied)
    with pytest.raises(ModelError, match=r"text_encoder.*adapter_config\.json"):
        look_at(copied)
    with pytest.raises(ModelError, match=r"text_encoder.*adapter_config\.json"):
        registry.load_backbone(str(copied), device="cpu")


def test_a_tokenizer_of_more_tokens_than_the_encoder_knows(copied: Path) -> None:
    change_json("text_encoder/config.json", vocab_size=9)(copied)
    with pytest.raises(ModelError, match="tokens, the text encoder knows 9"):
        registry.load_backbone(str(copied), device="cpu", components=("tokenizer",))


def test_known_left_overs_are_harmless(wan_folder: Path, tmp_path: Path) -> None:
    """Of published checkpoints: a norm that Wan's attention does not use, and UMT5's other half."""
    folder = Path(shutil.copytree(wan_folder, tmp_path / "model"))
    extra, more = torch.ones(3), torch.ones(3)
    add_tensors(f"transformer/{WEIGHTS}", **{"blocks.0.attn2.norm_added_q.weight": extra})(folder)
    add_tensors(TEXT_WEIGHTS, **{"decoder.final_layer_norm.weight": extra, "lm_head.weight": more})(folder)
    look_at(folder)
    registry.load_backbone(str(folder), device="cpu")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16])
def test_plain_numbers_of_few_bits_are_widened(wan_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = Path(shutil.copytree(wan_folder, tmp_path / "model"))
    cast(f"transformer/{WEIGHTS}", dtype)(folder)
    look_at(folder)
    network = registry.load_backbone(str(folder), device="cpu").network  # type: ignore[attr-defined]
    there = load_file(folder / "transformer" / WEIGHTS)
    name = next(name for name, value in there.items() if value.dtype == dtype)
    assert torch.equal(network.state_dict()[name], there[name].float())


def test_marks_in_files_that_no_library_reads(copied: Path) -> None:
    mark("model_index.json")(copied)
    mark("miga.json")(copied)
    look_at(copied)
    registry.load_backbone(str(copied), device="cpu")


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a/" * 3000, "a\0b", "~nobody-of-that-name/x", "x" * 5000 + ":y", "\udcff"]
)
@pytest.mark.usefixtures("offline")
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ModelError):
        registry.load_spec(name)


def test_a_sound_folder_passes_and_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    opened = loading.opened
    monkeypatch.setattr(loading, "opened", lambda file: read.append(file.name) or opened(file))
    for _ in range(2):
        assert look_at(folder).text is not None
        assert sorted(read) == [WEIGHTS, WEIGHTS, "model.safetensors"]


def test_a_retrained_file_is_read_again(copied: Path, family: str) -> None:
    look_at(copied)
    spoil(f"{NETWORKS[family]}/{WEIGHTS}", torch.nan)(copied)
    with pytest.raises(ModelError, match="NaN or infinity"):
        look_at(copied)


def test_weights_of_the_hub_are_looked_at_where_they_are_wanted(
    copied: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan fetches none of them; a run on one machine fetches all of them at once, before its workers do."""
    asked: list[str] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, allow_patterns, **__: asked.extend(allow_patterns) or copied
    )
    spoil(TEXT_WEIGHTS, torch.nan)(copied)
    registry.check_weights("someone/else")
    assert asked == []
    with pytest.raises(ModelError, match=r"text_encoder.* NaN or infinity"):
        registry.check_weights("someone/else", download=True)
    assert {f"{NETWORKS[family]}/*", "text_encoder/*", "vae/*", "tokenizer/*"} < set(asked)


HALF = ["half a text encoder", "half a VAE", "a shard is missing", "a shard is cut off"]


@pytest.mark.parametrize(
    ("family", "fault"),
    [(family, fault) for family in FAULTS for fault in HALF if fault in FAULTS[family]],
    indirect=["family"],
)
def test_half_a_copy_is_found_with_the_spec(copied: Path, family: str, fault: str) -> None:
    """Before any weights are read."""
    FAULTS[family][fault][0](copied)
    with pytest.raises(ModelError, match="cannot load"):
        registry.load_spec(str(copied))


def test_half_a_download_of_the_hub_is_not_refused_by_its_json_files(
    copied: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a hub name come as they are needed: what is not there yet is not missing."""
    (copied / NETWORKS[family] / WEIGHTS).write_bytes(b"half")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(copied))
    assert registry.load_spec("someone/else").family == family
