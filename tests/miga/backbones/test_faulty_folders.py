"""What is said of a folder that no model can be loaded from: before anything is loaded, and by loading it."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch

from miga.backbones import loading, registry
from miga.backbones.base import Backbone
from miga.errors import ModelError
from tests.faulty_folder import (
    WAS_RUN,
    WEIGHTS,
    Change,
    append,
    change_json,
    pickled,
    remove,
    spoil,
    truncate,
    write,
)
from tests.tiny_wan import shard

TEXT_WEIGHTS = "text_encoder/model.safetensors"
NETWORKS = {"wan": "transformer", "videocrafter2": "unet"}


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
