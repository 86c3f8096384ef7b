"""What is known of a model before it is loaded, and what is said of one that cannot be."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from miga.backbones import registry
from miga.backbones.loading import is_finite, require_finite, revision_of
from miga.backbones.wan import WanBackbone, load_spec
from miga.backbones.wan_spec import NEGATIVE_PROMPT
from miga.errors import ModelError
from tests.tiny_wan import SETTINGS


@pytest.fixture
def folder(wan_folder: Path) -> Path:
    return wan_folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **kwargs: Any) -> str:
        raise ConnectionError(f"cannot reach the hub for {name}\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **changes}))


def test_spec_of_a_folder(folder: Path) -> None:
    spec = load_spec(folder)
    assert (spec.family, spec.name, spec.window, spec.fps) == ("wan", str(folder), 6, 8)
    assert spec.latent_shape == (4, 4, 6)
    assert (spec.height, spec.width, spec.default_num_frames) == (32, 48, 41)
    assert spec.sampler == SETTINGS["sampler"]
    assert spec.num_latents(41) == 11
    assert spec.revision.startswith("sha256:")
    assert WanBackbone.from_pretrained(folder, device="cpu", components=()).spec == spec


def test_spec_without_settings_is_wans(copied: Path) -> None:
    (copied / "miga.json").unlink()
    spec = load_spec(copied)
    assert (spec.window, spec.height, spec.width, spec.fps) == (21, 480, 832, 16)
    assert spec.latent_shape == (4, 60, 104)
    assert (spec.negative_prompt, spec.sampler) == (NEGATIVE_PROMPT, {})


def test_published_models_are_known_without_network() -> None:
    for size in ("1.3B", "14B"):
        spec = load_spec(f"Wan-AI/Wan2.1-T2V-{size}-Diffusers")
        assert spec.latent_shape == (16, 60, 104)
        assert (spec.window, spec.num_latents(161)) == (21, 41)


def test_window_follows_from_the_clip_length(copied: Path) -> None:
    (copied / "miga.json").write_text('{"num_frames": 45, "height": 32, "width": 32}')
    assert load_spec(copied).window == 12


def test_revision_is_a_digest_of_the_contents(copied: Path, tmp_path: Path) -> None:
    first = revision_of(copied)
    (copied / "README.md").write_text("hello")
    (copied / ".cache").mkdir()
    (copied / ".cache" / "state").write_text("1")
    assert revision_of(copied) == first == revision_of(Path(shutil.copytree(copied, tmp_path / "elsewhere")))
    edit(copied / "miga.json", fps=9)
    assert revision_of(copied) != first


def test_revision_of_a_hub_snapshot_is_its_commit(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    assert revision_of(snapshot) == "0123456789" * 4


def test_large_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miga.backbones.loading.LARGE_FILE_BYTES", 1000)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(bytes(10**6))
    first = revision_of(tmp_path)
    file.write_bytes(bytes(10**6 - 1) + b"\1")
    assert revision_of(tmp_path) != first


def test_parts_are_loaded_alone(folder: Path) -> None:
    text = WanBackbone.from_pretrained(folder, device="cpu", components=("text",))
    assert text.text is not None
    assert (text.transformer, text.vae) == (None, None)
    rest = WanBackbone.from_pretrained(folder, device="cpu", components=("denoiser", "vae"))
    assert rest.text is None
    assert rest.vae.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in rest.transformer.parameters())


def test_modules_that_stay_in_float32(folder: Path) -> None:
    backbone = WanBackbone.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
    assert backbone.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert backbone.transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert backbone.vae.dtype == torch.float32


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def truncate(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def change_json(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **changes)


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def shards(fault: str) -> Callable[[Path], None]:
    """The transformer in two files, of which the second did not arrive whole."""

    def change(folder: Path) -> None:
        transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", local_files_only=True)
        (folder / "transformer" / WEIGHTS).unlink()
        transformer.save_pretrained(folder / "transformer", max_shard_size="60KB")
        files = sorted((folder / "transformer").glob("*.safetensors"))
        assert len(files) == 2
        if fault == "missing":
            files[1].unlink()
        else:
            files[1].write_bytes(files[1].read_bytes()[:-100])

    return change


def append(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"x") and None


def spoil(name: str, value: float) -> Callable[[Path], None]:
    """One number of one weight."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        tensor = tensors[next(key for key in sorted(tensors) if key.startswith(("blocks.0", "decoder", "encoder")))]
        tensor.view(-1)[-1] = value
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return change


def pickled(component: str, name: str) -> Callable[[Path], None]:
    """Code in place of weights: it would make a file if it were ever run."""

    def change(folder: Path) -> None:
        for file in (folder / component).glob("*.safetensors"):
            file.unlink()
        (folder / component / name).write_bytes(pickle.dumps(Evil(str(folder / "was-run"))))

    return change


class Evil:
    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (self.file, "w")


WEIGHTS = "diffusion_pytorch_model.safetensors"
FAULTS = {
    "no model_index.json": (remove("model_index.json"), "no model_index.json"),
    "broken model_index.json": (write("model_index.json", "{"), "cannot read"),
    "model_index.json is a list": (write("model_index.json", "[]"), "no JSON object"),
    "another pipeline": (change_json("model_index.json", _class_name="CogVideoXPipeline"), "CogVideoXPipeline"),
    "two transformers": (change_json("model_index.json", transformer_2=["diffusers", "X"]), "two transformers"),
    "another VAE": (change_json("vae/config.json", _class_name="AutoencoderKL"), "AutoencoderKL, not"),
    "image to video": (change_json("transformer/config.json", in_channels=36), "images"),
    "no transformer": (remove("transformer"), "no config.json"),
    "no VAE weights": (remove(f"vae/{WEIGHTS}"), "vae"),
    "no text encoder": (remove("text_encoder"), "no component 'text_encoder'"),
    "no tokenizer": (remove("tokenizer"), "no component 'tokenizer'"),
    "empty tokenizer": (remove("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"), "tokenizer"),
    "no class of tokenizer": (change_json("model_index.json", tokenizer=["os", "system"]), "no tokenizer of"),
    "CogVideoX": (change_json("model_index.json", _class_name="CogVideoXPipeline"), "CogVideoXPipeline.*MMDiT.*A.4"),
    "HunyuanVideo": (change_json("model_index.json", _class_name="HunyuanVideoPipeline"), "HunyuanVideo.*MMDiT.*A.4"),
    "a shard is missing": (shards("missing"), "names 2 files, and .*00002-of-00002.* is not there"),
    "a shard is cut off": (shards("cut"), r"cannot load .*00002-of-00002.*bytes, and its header speaks of"),
    "a file that goes on": (append(f"vae/{WEIGHTS}"), r"cannot load .*vae.*its header speaks of"),
    "NaN in the transformer": (spoil(f"transformer/{WEIGHTS}", torch.nan), "transformer.* NaN or infinity in blocks.0"),
    "infinity in the VAE": (spoil(f"vae/{WEIGHTS}", torch.inf), "vae.* holds NaN or infinity in"),
    "NaN in the text encoder": (spoil("text_encoder/model.safetensors", torch.nan), "text_encoder.* NaN or infinity"),
    "a pickle in place of the transformer": (
        pickled("transformer", "diffusion_pytorch_model.bin"),
        "transformer.*are a pickle, diffusion_pytorch_model.bin",
    ),
    "a pickle in place of the text encoder": (
        pickled("text_encoder", "pytorch_model.bin"),
        "text_encoder.*are a pickle, pytorch_model.bin",
    ),
    "broken transformer": (truncate(f"transformer/{WEIGHTS}"), "cannot load .*transformer"),
    "broken VAE": (truncate(f"vae/{WEIGHTS}"), "cannot load .*vae"),
    "broken text encoder": (truncate("text_encoder/model.safetensors"), "cannot load .*text_encoder"),
    "another depth": (change_json("transformer/config.json", num_layers=3), "lacks blocks.2"),
    "another width": (change_json("transformer/config.json", ffn_dim=64), "transformer"),
    "another text width": (change_json("text_encoder/config.json", d_ff=64), "text_encoder"),
    "unknown setting": (change_json("miga.json", windw=6), "unknown key 'windw'"),
    "setting of another type": (change_json("miga.json", fps=8.5), "fps must be of type int, not 8.5"),
    "setting out of range": (change_json("miga.json", window=0), "window must be 2 or above"),
    "truth as a number": (change_json("miga.json", window=True), "window must be of type int"),
    "unknown sampler setting": (change_json("miga.json", sampler={"steps": 4}), "unknown key 'steps' in sampler"),
    "odd size": (change_json("miga.json", height=33), "height 33"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_folder(copied: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    change(copied)
    with pytest.raises(ModelError, match=message) as error:
        WanBackbone.from_pretrained(copied, device="cpu")
    assert error.value.hint
    assert not (copied / "was-run").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_folder_is_found_without_loading_it(copied: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From configurations, headers, and one look at every number."""
    change, message = FAULTS[fault]
    change(copied)
    monkeypatch.setattr(WanTransformer3DModel, "load_state_dict", None)
    with pytest.raises(ModelError, match=message) as error:
        look_at(copied)
    assert error.value.hint


def look_at(folder: Path) -> None:
    """What `miga generate` does before it starts anything."""
    registry.load_spec(str(folder))
    registry.check_weights(str(folder))
    registry.load_backbone(str(folder), device="cpu", components=("tokenizer",))


def test_a_sound_folder_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at(folder)
    monkeypatch.setattr(safetensors, "safe_open", None)
    look_at(folder)


def test_a_retrained_file_is_read_again(copied: Path) -> None:
    look_at(copied)
    spoil(f"transformer/{WEIGHTS}", torch.nan)(copied)
    with pytest.raises(ModelError, match="NaN or infinity"):
        look_at(copied)


def test_weights_of_the_hub_are_looked_at_where_they_are_wanted(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan fetches none of them; a run on one machine fetches all of them at once, before its workers do."""
    asked: list[str] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, allow_patterns, **__: asked.extend(allow_patterns) or copied
    )
    spoil("text_encoder/model.safetensors", torch.nan)(copied)
    registry.check_weights("someone/else")
    assert asked == []
    with pytest.raises(ModelError, match=r"text_encoder.* NaN or infinity"):
        registry.check_weights("someone/else", download=True)
    assert {"transformer/*", "text_encoder/*", "vae/*", "tokenizer/*"} < set(asked)


def test_a_single_network_is_no_pipeline(tmp_path: Path) -> None:
    config = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    CLIPTextModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="CLIPTextModel, not a pipeline"):
        load_spec(tmp_path)


@pytest.mark.parametrize("kind", ["CogVideoXTransformer3DModel", "HunyuanVideoTransformer3DModel"])
def test_a_single_mmdit_network(tmp_path: Path, kind: str) -> None:
    edit(tmp_path / "config.json", _class_name=kind)
    with pytest.raises(ModelError, match=f"{kind}.*MMDiT.*A.4"):
        load_spec(tmp_path)


def test_the_layout_of_wans_own_program(tmp_path: Path) -> None:
    edit(tmp_path / "config.json", _class_name="WanModel")
    with pytest.raises(ModelError, match="layout of Wan's own program") as error:
        load_spec(tmp_path)
    assert "-Diffusers" in error.value.hint


@pytest.mark.parametrize("fault", ["a shard is missing", "a shard is cut off", "broken text encoder", "broken VAE"])
def test_half_a_download_is_found_before_weights_are_read(
    copied: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    FAULTS[fault][0](copied)
    with pytest.raises(ModelError, match="cannot load"):
        load_spec(copied)


def test_half_a_download_of_the_hub_is_not_refused_by_its_json_files(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a hub name come as they are needed: what is not there yet is not missing."""
    (copied / "transformer" / WEIGHTS).write_bytes(b"half")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(copied))
    assert load_spec("someone/else").window == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_what_is_finite(dtype: torch.dtype) -> None:
    """Large numbers are, though their sum overflows; one NaN or infinity among them is not."""
    largest = torch.finfo(dtype).max
    weights = torch.full((3, 5), largest).to(dtype)
    assert is_finite(weights)
    assert is_finite(torch.arange(3)), "whole numbers always are"
    broken = [torch.nan, *([] if dtype == torch.float8_e4m3fn else [torch.inf, -torch.inf])]  # which has no infinity
    for value in broken:
        weights.view(-1)[7] = value
        assert not is_finite(weights)


def test_a_module_whose_sums_overflow_is_not_refused() -> None:
    module = torch.nn.Linear(4, 4)
    module.weight.data.fill_(3e38)
    assert not torch.isfinite(module.weight.sum())
    require_finite("transformer", Path(), module)
    module.weight.data[2, 1] = torch.inf
    with pytest.raises(ModelError, match="NaN or infinity in weight"):
        require_finite("transformer", Path(), module)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_spec(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="does not exist"):
        load_spec("sprites")


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        load_spec(folder / "model_index.json")


def test_hub_offline() -> None:
    with pytest.raises(ModelError, match="cannot reach the hub for someone/else\n") as error:
        load_spec("someone/else")
    assert "network" in error.value.hint
    with pytest.raises(ModelError, match="cannot reach"):
        WanBackbone.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", device="cpu")


def test_only_the_files_of_the_parts_are_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def deliver(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", deliver)
    backbone = WanBackbone.from_pretrained("someone/else", revision="v1", device="cpu", components=("vae",))
    assert (asked["name"], asked["revision"]) == ("someone/else", "v1")
    assert "vae/*" in asked["patterns"]
    assert not any(pattern.startswith(("text_encoder/*", "transformer/*")) for pattern in asked["patterns"])
    assert backbone.spec.name == "someone/else"
