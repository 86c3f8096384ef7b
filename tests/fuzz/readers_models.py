"""The files of a model's folder and of a LoRA, and what is converted to models; see `tests/fuzz/reader.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save

from miga.backbones import registry
from miga.backbones.family import ModelOptions
from miga.backbones.lora_files import find_loras, parse_lora
from miga.backbones.options import configured_spec
from miga.backbones.tensor_files import tensors_of
from miga.backbones.videocrafter2.checkpoint import read_checkpoint, split_state
from miga.backbones.videocrafter2.footprint import modules_of_folder as videocrafter2_modules
from miga.backbones.wan.lora import check_lora
from miga.backbones.wan.original import config_of, parts_of
from miga.backbones.wan.sources import gather
from miga.backbones.wan.spec import load_architecture
from miga.backbones.wan.spec import modules_of_folder as wan_modules
from miga.errors import MigaError
from miga.profiles import resolve_config
from tests import wan_layouts
from tests.fuzz.reader import Reader
from tests.tiny_videocrafter2 import architecture, build_tiny_videocrafter2
from tests.tiny_wan import build_tiny_wan, shard
from tests.wan_layouts import wan_text, wan_vae

KEPT = TemporaryDirectory(prefix="models-")
"""Of the sound models, made once."""
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "wan": build_tiny_wan,
    "wan in shards": lambda folder: shard(build_tiny_wan(folder)),
    "videocrafter2": build_tiny_videocrafter2,
}


@lru_cache
def sound(family: str) -> Path:
    return BUILDERS[family](Path(KEPT.name) / family.replace(" ", "-"))


def linked(family: str, folder: Path, *, weights: bool) -> None:
    """The model in `folder`, its files links to those of the sound one."""
    for file in sound(family).rglob("*"):
        if file.is_file() and (weights or file.suffix != ".safetensors"):
            link = folder / file.relative_to(sound(family))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)


def look_at_configs(folder: Path) -> None:
    """What a dry run looks at before the weights."""
    spec = registry.load_spec(str(folder))
    registry.check_schedule(str(folder), resolve_config("swift", spec, {}))
    configured_spec(spec, ModelOptions(height=64, width=64))
    (wan_modules if spec.family == "wan" else videocrafter2_modules)(folder)


def look_at_weights(folder: Path) -> None:
    registry.load_spec(str(folder))
    registry.check_weights(str(folder))


def load_words(folder: Path) -> None:
    registry.load_backbone(str(folder), device="cpu", components=("tokenizer",)).check_prompt("a red ball, rolls.")


def of_folder(family: str, name: str, look: Callable[[Path], None] = look_at_configs) -> Reader:
    """A file of a model's folder."""

    def prepare(folder: Path) -> list[bytes]:
        linked(family, folder, weights=look is look_at_weights)
        return [(sound(family) / name).read_bytes()]

    def read(folder: Path, data: bytes) -> None:
        (folder / name).unlink()
        (folder / name).write_bytes(data)
        look(folder)

    return Reader(f"{family}: {name}", prepare, read)


def _prepare_lora(_: Path) -> list[bytes]:
    key = "diffusion_model.blocks.0"
    factors = {
        f"{key}.self_attn.q.lora_down.weight": torch.ones(2, 24),
        f"{key}.self_attn.q.lora_up.weight": torch.ones(24, 2),
        f"{key}.self_attn.q.alpha": torch.tensor(1.0),
        f"{key}.diff_m": torch.ones(1, 6, 24),
    }
    key = "transformer.blocks.1.attn1.to_q"
    stated = '{"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.rank_pattern": {"to_q": 2}}'
    peft = {f"{key}.lora_A.weight": torch.ones(2, 24), f"{key}.lora_B.weight": torch.ones(24, 2)}
    return [save(factors), save(peft, metadata={"lora_adapter_metadata": stated})]


@lru_cache
def _weights() -> dict[str, tuple[int, ...]]:
    return load_architecture(sound("wan")).weights()


def _read_lora(folder: Path, data: bytes) -> None:
    (folder / "x.safetensors").write_bytes(data)
    (lora,) = find_loras([str(folder / "x.safetensors")])
    check_lora(lora, _weights())


def _prepare_checkpoint(folder: Path) -> list[bytes]:
    """The first tensors alone: 100 kB of 7 MB."""
    sound("videocrafter2")
    state = torch.load(sound("videocrafter2").with_suffix(".ckpt"), weights_only=True)["state_dict"]
    few = dict(sorted(state.items(), key=lambda item: item[1].numel())[:40])
    torch.save({"state_dict": {key: value.clone() for key, value in few.items()}}, folder / "few.ckpt")
    return [(folder / "few.ckpt").read_bytes()]


def _read_checkpoint(folder: Path, data: bytes) -> None:
    """Where no name was changed, nothing but numbers was."""
    (folder / "x.ckpt").unlink(missing_ok=True)  # the one before is mapped into memory
    (folder / "x.ckpt").write_bytes(data)
    if read_checkpoint(folder / "x.ckpt").keys() != read_checkpoint(folder / "few.ckpt").keys():
        split_state(read_checkpoint(folder / "x.ckpt"), architecture())


def _prepare_text(folder: Path) -> list[bytes]:
    """ComfyUI's file, and Wan's own names: 80 kB each."""
    states = wan_layouts.build().states()
    file = wan_layouts.write_comfy(folder, states)["text_encoder"]
    return [file.read_bytes(), save({name: x.clone() for name, x in wan_text(states["text_encoder"]).items()})]


def _prepare_vae(folder: Path) -> list[bytes]:
    """A pickle."""
    torch.save(wan_vae(wan_layouts.build().states()["vae"]), folder / "vae.pth")
    return [(folder / "vae.pth").read_bytes()]


def _read_part(name: str) -> Callable[[Path, bytes], None]:
    """As far as a part is looked at before anything is written."""

    def read(folder: Path, data: bytes) -> None:
        (folder / name).unlink(missing_ok=True)  # the one before is mapped into memory
        (folder / name).write_bytes(data)
        for found in parts_of(tensors_of(folder / name)):
            config_of(found)

    return read


def _prepare_original(folder: Path) -> list[bytes]:
    place = wan_layouts.write_original(folder / "wan", wan_layouts.build().states())
    return [(place / "config.json").read_bytes()]


def _read_original(folder: Path, data: bytes) -> None:
    (folder / "wan" / "config.json").write_bytes(data)
    gathered = gather([folder / "wan"], {})
    config_of(gathered.parts["transformer"], gathered.stated)


def _read_name(_: Path, data: bytes) -> None:
    """What users type for a model, and for a LoRA."""
    text = os.fsdecode(data)
    try:
        spec = registry.load_spec(text)
    except MigaError:
        find_loras([text])
        raise
    parse_lora(text)
    registry.check_schedule(text, resolve_config("swift", spec, {}))


WAN_FILES = (
    "model_index.json", "miga.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)  # fmt: skip
VIDEOCRAFTER2_FILES = ("miga.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")

READERS = [
    *(of_folder("wan", name) for name in WAN_FILES),
    of_folder("wan", "tokenizer/tokenizer.json", load_words),
    of_folder("wan", "tokenizer/tokenizer_config.json", load_words),
    of_folder("wan", "transformer/diffusion_pytorch_model.safetensors", look_at_weights),
    of_folder("wan in shards", "transformer/diffusion_pytorch_model.safetensors.index.json", look_at_weights),
    *(of_folder("videocrafter2", name) for name in VIDEOCRAFTER2_FILES),
    Reader("lora", _prepare_lora, _read_lora),
    Reader("model.ckpt", _prepare_checkpoint, _read_checkpoint),
    Reader("Wan's text encoder", _prepare_text, _read_part("text.safetensors")),
    Reader("Wan's VAE, a pickle", _prepare_vae, _read_part("wan.pth")),
    Reader("Wan's own config.json", _prepare_original, _read_original),
    Reader("names of models", lambda _: [b"simulated:wan?call_s=0.5&cells=20", b"sprites"], _read_name),
]
