"""Which files each part of a Wan model is to be converted from, of the files and folders that a user names."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from miga.backbones.loading import HUB_NAME
from miga.backbones.model_config import checked_config, class_name_of
from miga.backbones.tensor_files import SAFETENSORS, Stored, tensors_of
from miga.backbones.wan.config import WanTransformerConfig
from miga.backbones.wan.original import (
    CALLED,
    CLIP_FILE,
    CONVERT_HINT,
    MORE_PARTS,
    PARTS,
    RESIDUAL_CHANNELS,
    Found,
    Part,
    Stated,
    WanModelConfig,
    check_model_type,
    parts_of,
)
from miga.backbones.weight_files import (
    DIFFUSERS_STEM,
    PICKLES,
    STEMS,
    named,
    read_json,
    visible_files,
    weight_files,
)
from miga.errors import ModelError, UsageError

_WEIGHT_SUFFIXES: Final = (*SAFETENSORS, *PICKLES, ".gguf")
TOKENIZER_PLACES: Final = ("google/umt5-xxl", "umt5-xxl", "tokenizer")
_NOISE_HALF: Final = re.compile(r"(high|low)[-_ ]?noise", re.IGNORECASE)
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}\.")
EXAMPLES: Final[Mapping[Part, str]] = {
    "transformer": "wan2.1_t2v_1.3B_bf16.safetensors",
    "vae": "wan_2.1_vae.safetensors",
    "text_encoder": "umt5_xxl_fp16.safetensors",
    "transformer_2": "wan2.2_t2v_low_noise_14B_fp16.safetensors",
    "image_encoder": CLIP_FILE,
}
_RESIDUAL_VAE: Final = "wan2.2_vae.safetensors"
OPTIONS: Final[Mapping[Part, str]] = {part: f"--{part.replace('_', '-')}" for part in (*PARTS, *MORE_PARTS)}


@dataclass
class Gathered:
    """What has been found so far.

    Attributes:
        parts: by name.
        stated: what a configuration says of the transformer.
        tokenizer: its folder.
        refusals: of files of a folder that are no parts: said if a part is missing.
    """

    parts: dict[Part, Found] = field(default_factory=dict)
    stated: Stated | None = None
    tokenizer: Path | None = None
    refusals: list[ModelError] = field(default_factory=list)


def existing(text: str | Path) -> Path:
    """A path, if something is there.

    Raises:
        ModelError: if nothing is.
    """
    path = Path(os.path.expanduser(text))
    try:
        if os.path.lexists(path):
            return path
    except ValueError:  # a null character
        pass
    hint = "name files or folders of weights that are there"
    if HUB_NAME.fullmatch(str(text)):
        hint += f"; what lies on the hub is fetched first: hf download {text} --local-dir {path.name}"
    raise ModelError(f"{str(text)!r} does not exist", hint)


def gather(sources: Sequence[Path], chosen: Mapping[Part, Path]) -> Gathered:
    """Every part that there is, each once.

    Args:
        sources: files and folders; a file's parts take the place of a folder's.
        chosen: files or folders that are to be a part, before all sources.

    Raises:
        ModelError: if a file is broken, quantized or of another model.
        UsageError: if a part is given twice.
    """
    gathered = Gathered()
    for part, place in chosen.items():
        if place.is_dir():
            _take_folder_of_part(gathered, part, place)
            continue
        found = {each.part: each for each in _file_parts(place)}
        if part in _HALVES and (half := next((each for each in found.values() if each.part in _HALVES), None)):
            found = {part: replace(half, part=part)}  # the option says it, whatever the file's name does
        if part not in found:
            kinds = " and ".join(f"a {CALLED[kind]}" for kind in found)
            raise ModelError(
                f"{OPTIONS[part]} {str(place)!r}: it holds {kinds}, no {CALLED[part]}",
                hint=f"give it by {' and '.join(OPTIONS[kind] for kind in found)}",
            )
        _take(gathered, found[part])
        _look_beside(gathered, found[part])
    for file in (place for place in sources if not place.is_dir()):
        several = _file_parts(file)
        for each in several:
            if len(several) > 1 and each.part in chosen:
                continue  # a file of all parts, one of which was chosen from elsewhere
            _take(gathered, each)
            _look_beside(gathered, each)
    named_parts = set(gathered.parts)
    for folder in (place for place in sources if place.is_dir()):
        _take_folder(gathered, folder)
    transformer = gathered.parts.get("transformer")
    if "image_encoder" not in named_parts and transformer is not None and not reads_pictures(transformer):
        gathered.parts.pop("image_encoder", None)  # it lies in the folder for another model
    return gathered


def _take(gathered: Gathered, found: Found) -> None:
    if other := gathered.parts.get(found.part):
        raise UsageError(
            f"{str(other.files[0])!r} and {str(found.files[0])!r} are both a {CALLED[found.part]}",
            f"name one of them; of a folder that holds several, name the one by {OPTIONS[found.part]}",
        )
    gathered.parts[found.part] = found


def _file_parts(file: Path) -> list[Found]:
    """The parts in one file."""
    if _SHARD.search(file.name):
        raise ModelError(
            f"{str(file)!r} is one file of several that are a whole",
            hint=f"name the folder that holds them all and their index, {shlex.quote(str(file.parent))}",
        )
    return [_placed(each) for each in parts_of(tensors_of(file))]


_HALVES: Final[Mapping[Part, str]] = {"transformer": "high", "transformer_2": "low"}
"""Of Wan2.2's two transformers: what their names say of the noise that each is for."""


def half_of(found: Found) -> str:
    """Which of Wan2.2's two transformers it is, by its name alone: its tensors are shaped as those of Wan2.1."""
    for file in found.files if found.part in _HALVES else ():
        for name in (file.name, file.parent.name):
            if match := _NOISE_HALF.search(name):
                return match[1].lower()
    return ""


def _placed(found: Found) -> Found:
    return replace(found, part="transformer_2") if half_of(found) == "low" else found


def _part_of_files(part: Part, files: Sequence[Path]) -> Found:
    """One part that lies in several files."""
    tensors: dict[str, Stored] = {}
    for file in files:
        found = tensors_of(file)
        if twice := sorted(tensors.keys() & found.keys()):
            raise ModelError(
                f"{named(twice)} stand in {str(file)!r} and in another file beside it",
                hint="the files are of two models: download it again",
            )
        tensors |= found
    for each in parts_of(tensors):
        if each.part == part or (part in _HALVES and each.part == "transformer"):
            return replace(each, part=part)
    raise ModelError(f"{str(files[0])!r} is no {CALLED[part]}", hint=CONVERT_HINT)


def _look_beside(gathered: Gathered, found: Found) -> None:
    """Reads the configuration beside a transformer that lies where Wan or diffusers put it."""
    if found.part == "transformer" and found.files[0].name.startswith(DIFFUSERS_STEM):
        _read_stated(gathered, found.files[0].parent)


def _read_stated(gathered: Gathered, folder: Path) -> None:
    file = folder / "config.json"
    if not os.path.lexists(file):
        return
    values = read_json(file)
    kind = class_name_of(values) if "_class_name" in values or "model_type" not in values else "WanModel"
    if kind == "WanTransformer3DModel":
        sizes = checked_config(file, values, WanTransformerConfig)
        config = WanModelConfig(num_heads=sizes.num_attention_heads, num_layers=sizes.num_layers, eps=sizes.eps)
        gathered.stated = Stated(file, config)
        return
    if kind != "WanModel":
        raise ModelError(f"{str(file)!r} is of a {kind}, not of Wan's WanModel", hint=CONVERT_HINT)
    stated = checked_config(file, values, WanModelConfig)
    check_model_type(file, stated)
    gathered.stated = Stated(file, stated)


def _take_folder_of_part(gathered: Gathered, part: Part, folder: Path) -> None:
    """A folder that holds nothing else, in one file or several."""
    if part in _HALVES:
        _read_stated(gathered, folder)
    stem = STEMS.get(part, DIFFUSERS_STEM)
    has_stem = _has_stem(folder, stem)
    files = weight_files("", folder, stem) if has_stem else _weights_in(folder)
    if not has_stem and len(files) != 1:
        listed = f"{len(files)} files of weights, {named([file.name for file in files])}" if files else "no weights"
        raise ModelError(
            f"{OPTIONS[part]} {str(folder)!r}: the folder holds {listed}", hint="name the file that is meant"
        )
    _take(gathered, _part_of_files(part, files))


def _has_stem(folder: Path, stem: str) -> bool:
    return any(name.startswith((f"{stem}.safetensors", f"{stem}-")) for name in visible_files(folder))


def _weights_in(folder: Path) -> list[Path]:
    return [folder / name for name in visible_files(folder) if name.endswith(_WEIGHT_SUFFIXES)]


def _take_folder(gathered: Gathered, folder: Path) -> None:
    """What a folder holds of the parts that are still wanted."""
    wanted = [part for part in PARTS if part not in gathered.parts]
    if os.path.lexists(folder / "model_index.json"):
        _take_diffusers_folder(gathered, folder, wanted)
        return
    _take_halves(gathered, folder)
    wanted = [part for part in (*PARTS, *MORE_PARTS) if part not in gathered.parts]
    gathered.tokenizer = gathered.tokenizer or next(
        (folder / place for place in TOKENIZER_PLACES if has_tokenizer(folder / place)), None
    )
    if "transformer" in wanted:
        _read_stated(gathered, folder)
    files = _weights_in(folder)
    if _has_stem(folder, DIFFUSERS_STEM):
        if "transformer" in wanted:
            _take(gathered, _part_of_files("transformer", weight_files("", folder)))
        files = [file for file in files if not file.name.startswith(DIFFUSERS_STEM)]
    for file in files:
        try:
            several = _file_parts(file)
        except ModelError as refusal:  # of other kinds there may be files; one that is missed is said
            gathered.refusals.append(refusal)
            continue
        for each in several:
            if each.part in wanted:
                _take(gathered, each)


def _take_halves(gathered: Gathered, folder: Path) -> None:
    """Wan2.2's two transformers, each in a folder of its own, as Wan-AI publishes them."""
    for name in visible_files(folder):
        match = _NOISE_HALF.search(name)
        if match is None or not (folder / name).is_dir():
            continue
        part: Part = "transformer" if match[1].lower() == "high" else "transformer_2"
        if part not in gathered.parts:
            _take_folder_of_part(gathered, part, folder / name)


def _take_diffusers_folder(gathered: Gathered, folder: Path, wanted: Sequence[Part]) -> None:
    kind = class_name_of(read_json(folder / "model_index.json"))
    if kind not in ("WanPipeline", "WanImageToVideoPipeline"):
        raise ModelError(f"{str(folder)!r} is a {kind}, not a WanPipeline", hint=CONVERT_HINT)
    if len(wanted) == len(PARTS):
        raise ModelError(
            f"{str(folder)!r} is in diffusers' layout already, which needs no conversion",
            hint=f"name it as the model: --model {shlex.quote(str(folder))}; a file named beside it here takes the "
            "place of that part",
        )
    if "transformer" in wanted:
        _read_stated(gathered, folder / "transformer")
    for part in wanted:
        _take(gathered, _part_of_files(part, weight_files(part, folder)))
    if gathered.tokenizer is None and has_tokenizer(folder / "tokenizer"):
        gathered.tokenizer = folder / "tokenizer"


def require_all(gathered: Gathered, sources: Sequence[Path], out: Path) -> None:
    """Refuses to go on without a part.

    Raises:
        ModelError: naming the command that has all.
    """
    missing = [part for part in PARTS if part not in gathered.parts]
    transformer, second = (gathered.parts.get(part) for part in ("transformer", "transformer_2"))
    if second is None and transformer is not None and half_of(transformer) == "high":
        missing.append("transformer_2")
    if transformer is not None and reads_pictures(transformer) and "image_encoder" not in gathered.parts:
        missing.append("image_encoder")
    if not missing:
        return
    lacking = " and ".join(f"no {CALLED[part]}" for part in missing)
    if gathered.refusals:
        refusal = gathered.refusals[0]
        raise ModelError(f"there is {lacking} among what was named; {refusal.message}", refusal.hint)
    if not gathered.parts:
        where = f"{str(sources[0])!r} holds no" if len(sources) == 1 else "no path was named that holds"
        raise ModelError(f"{where} weights of a model", usage_hint())
    there = [shlex.quote(str(found.files[0])) for found in gathered.parts.values()]
    raise ModelError(
        f"there is {lacking} beside {named(there)}",
        hint=f"name all parts: {command_for(gathered.parts, sources, out, missing)}",
    )


def reads_pictures(transformer: Found) -> bool:
    """Whether a transformer reads the tokens of a picture, which an image encoder makes."""
    return any("image_embedder" in name for name in transformer.tensors)


def command_for(
    parts: Mapping[Part, Found], sources: Sequence[Path], out: str | Path, missing: Sequence[Part] = ()
) -> str:
    """The command that converts what is there, with examples for the parts that are not.

    Args:
        parts: that are there.
        sources: that the user named; those that are files are named by their part.
        out: the folder to make.
        missing: parts that only some models have, and this one lacks.
    """
    folders = [source for source in sources if source.is_dir()]
    examples = {**EXAMPLES, "vae": _RESIDUAL_VAE} if _is_residual(parts) else EXAMPLES
    files = {part: shlex.quote(str(found.files[0])) for part, found in parts.items()}
    options = [
        f"{OPTIONS[part]} {files.get(part, examples[part])}"
        for part in (*PARTS, *(part for part in MORE_PARTS if part in parts or part in missing))
        if part not in parts or parts[part].files[0].parent not in folders
    ]
    return " ".join(["miga convert", *options, *(shlex.quote(str(place)) for place in (*folders, out))])


def _is_residual(parts: Mapping[Part, Found]) -> bool:
    """Whether a transformer is there that reads latents of Wan2.2's VAE."""
    shape = parts["transformer"].shapes.get("patch_embedding.weight", ()) if "transformer" in parts else ()
    return len(shape) == 5 and shape[1] == RESIDUAL_CHANNELS


def usage_hint() -> str:
    """What can be converted, and by which command."""
    return (
        "miga convert FOLDER OUT for a folder as Wan-AI publishes it (Wan2.1-T2V-1.3B); "
        f"{command_for({}, [], 'OUT')} for ComfyUI's files; miga convert model.ckpt OUT for VideoCrafter2's"
    )


def why_no_model(file: Path, model: str) -> ModelError:
    """What is said of a file that is named as a model: what it is, and which command makes a model of it."""
    if file.suffix not in _WEIGHT_SUFFIXES:
        return ModelError(
            f"model {model!r} is a file, not a folder in diffusers' layout",
            hint=f"name the folder that holds model_index.json; weights are converted once: {usage_hint()}",
        )
    try:
        parts = {found.part: found for found in _file_parts(file)}
    except ModelError as error:
        return ModelError(f"model {model!r} is a file, not a folder in diffusers' layout: {error.message}", error.hint)
    kinds = " and ".join(f"a {CALLED[part]}" for part in parts)
    out = file.with_name(f"{file.stem}-diffusers")
    return ModelError(
        f"model {model!r} is a file that holds {kinds} of Wan, not a folder in diffusers' layout",
        hint=f"convert it once with its other parts, `{command_for(parts, [], out)}`, and name {str(out)!r} as the "
        "model",
    )


def why_no_hub_model(model: str) -> ModelError:
    """What is said of a repository on the hub that is in another layout: how it becomes a model."""
    place = model.rpartition("/")[2]
    return ModelError(
        f"model {model!r} on the hub is not in diffusers' layout: it has no model_index.json",
        hint=f"take {model}-Diffusers if that is there; Wan's own layout is converted once, "
        f"`hf download {model} --local-dir {place}` and `miga convert {place} {place}-diffusers`",
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's files."""
    return any(os.path.isfile(folder / name) for name in ("tokenizer.json", "spiece.model"))
