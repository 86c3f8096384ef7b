"""Wan2.1's weights as people have them to a folder in diffusers' layout, once; the same numbers bit for bit.

Parts come from folders of Wan's own layout, from single files as ComfyUI has them, and from folders in diffusers'
layout, in any mixture; `original.py` knows what is in them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import diffusers
from diffusers import UniPCMultistepScheduler
from transformers import UMT5Config

from miga.backbones.converted_folder import folder_made_whole, require_new, write_json, write_weights
from miga.backbones.loading import resolve_folder
from miga.backbones.model_config import arguments, checked_config, class_name_of, read_config
from miga.backbones.tensor_files import SAFETENSORS, Stored, tensors_of
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.config import Umt5Config, WanTransformerConfig
from miga.backbones.wan.original import (
    CALLED,
    CONVERT_HINT,
    PARTS,
    Found,
    Part,
    PartConfig,
    WanModelConfig,
    check_model_type,
    check_stated,
    config_of,
    parts_of,
)
from miga.backbones.wan.spec import module_of
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

TOKENIZER: Final = "google/umt5-xxl"
"""UMT5's, on the hub."""
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOKENIZER_HINT: Final = (
    f"give the folder of UMT5's tokenizer (tokenizer.json) by --tokenizer, or a hub name such as {TOKENIZER}"
)
FLOW_SHIFT: Final = 3.0
"""What Wan's models were published with in diffusers; the sampler's own setting decides here."""
SMALL_FILES_BYTES: Final = 64 * 2**20
"""More than tokenizer and configurations take."""

_WEIGHT_SUFFIXES: Final = (*SAFETENSORS, *PICKLES, ".gguf")
_TOKENIZER_PLACES: Final = ("google/umt5-xxl", "umt5-xxl", "tokenizer")
_NOISE_HALF: Final = re.compile(r"(?:high|low)[-_ ]?noise", re.IGNORECASE)
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}\.")
_EXAMPLES: Final[Mapping[Part, str]] = {
    "transformer": "wan2.1_t2v_1.3B_bf16.safetensors",
    "vae": "wan_2.1_vae.safetensors",
    "text_encoder": "umt5_xxl_fp16.safetensors",
}
_OPTIONS: Final[Mapping[Part, str]] = {part: f"--{part.replace('_', '-')}" for part in PARTS}


@dataclass
class _Gathered:
    """What has been found so far.

    Attributes:
        parts: by name.
        heads: of the transformer, where a configuration states them.
        checks: of configurations against the transformer's sizes.
        tokenizer: its folder.
        refusals: of files of a folder that are no parts: said if a part is missing.
    """

    parts: dict[Part, Found] = field(default_factory=dict)
    heads: int | None = None
    checks: list[Callable[[WanTransformerConfig], None]] = field(default_factory=list)
    tokenizer: Path | None = None
    refusals: list[ModelError] = field(default_factory=list)


def convert_wan(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    parts: Mapping[Part, str | Path] | None = None,
    tokenizer: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes the folder, whole or not at all.

    Args:
        sources: files and folders, whose parts are recognised by their tensors.
        out: the folder to make; it must not exist.
        parts: files that are to be a part, or its folder, whatever the sources hold.
        tokenizer: a folder, or a hub name; by default what lies in a folder of the sources, else `TOKENIZER`.
        progress: is told what is being written.

    Returns:
        What was written: the folder, files, number of tensors and bytes by part, and how many tensors were left out.

    Raises:
        ModelError: if a part is missing, broken, quantized or of another model.
        UsageError: if a part is given twice.
        OutputError: if `out` exists, or cannot be written.
    """
    out = Path(os.path.expanduser(out))
    require_new(out)
    gathered = _gather(
        [_path(source) for source in sources], {part: _path(file) for part, file in (parts or {}).items()}
    )
    _require_all(gathered, sources, out)
    configs = {part: config_of(gathered.parts[part], gathered.heads) for part in PARTS}
    transformer, text = configs["transformer"], configs["text_encoder"]
    assert isinstance(transformer, WanTransformerConfig)
    assert isinstance(text, Umt5Config)
    for check in gathered.checks:
        check(transformer)
    if text.d_model != transformer.text_dim:
        raise ModelError(
            f"{gathered.parts['text_encoder'].title} makes texts of {text.d_model} numbers a token, "
            f"{gathered.parts['transformer'].title} reads {transformer.text_dim}",
            hint="they are of two models; Wan2.1 reads texts with UMT5-XXL, such as umt5_xxl_fp16.safetensors",
        )
    words = _tokenizer_folder(tokenizer, gathered.tokenizer)
    num_bytes = {part: gathered.parts[part].num_bytes for part in PARTS}
    with folder_made_whole(out, sum(num_bytes.values()) + SMALL_FILES_BYTES) as unfinished:
        _write_descriptions(unfinished, gathered.parts, configs)
        _write_tokenizer(unfinished, words, tokenizer)
        for part in PARTS:
            found = gathered.parts[part]
            progress(
                f"{CALLED[part]}: {num_bytes[part] / 1e9:.1f} GB of {', '.join(file.name for file in found.files)}"
            )
            write_weights(unfinished / part, STEMS.get(part, DIFFUSERS_STEM), _in_order(found, configs[part]))
    return {
        "folder": str(out),
        "files": {part: [str(file) for file in gathered.parts[part].files] for part in PARTS},
        "tokenizer": str(words),
        "tensors": {part: len(gathered.parts[part].tensors) for part in PARTS},
        "bytes": num_bytes,
        "left_out": sum(found.left_out for found in gathered.parts.values()),
    }


def _path(text: str | Path) -> Path:
    path = Path(os.path.expanduser(text))
    try:
        if os.path.lexists(path):
            return path
    except ValueError:  # a null character
        pass
    raise ModelError(f"{str(text)!r} does not exist", hint="name files or folders of weights that are there")


# ---- what is given ----


def _gather(sources: Sequence[Path], chosen: Mapping[Part, Path]) -> _Gathered:
    gathered = _Gathered()
    for part, place in chosen.items():
        if place.is_dir():
            _take_folder_of_part(gathered, part, place)
            continue
        found = {each.part: each for each in _file_parts(place)}
        if part not in found:
            kinds = " and ".join(f"a {CALLED[kind]}" for kind in found)
            raise ModelError(
                f"{_OPTIONS[part]} {str(place)!r}: it holds {kinds}, no {CALLED[part]}",
                hint=f"give it by {' and '.join(_OPTIONS[kind] for kind in found)}",
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
    for folder in (place for place in sources if place.is_dir()):
        _take_folder(gathered, folder)
    return gathered


def _take(gathered: _Gathered, found: Found) -> None:
    if other := gathered.parts.get(found.part):
        raise UsageError(
            f"{str(other.files[0])!r} and {str(found.files[0])!r} are both a {CALLED[found.part]}",
            f"name one of them; of a folder that holds several, name the one by {_OPTIONS[found.part]}",
        )
    gathered.parts[found.part] = found


def _file_parts(file: Path) -> list[Found]:
    """The parts in one file."""
    if _SHARD.search(file.name):
        raise ModelError(
            f"{str(file)!r} is one file of several that are a whole",
            hint=f"name the folder that holds them all and their index, {shlex.quote(str(file.parent))}",
        )
    found = parts_of(tensors_of(file))
    for each in found:
        _refuse_half_of_wan22(each)
    return found


def _refuse_half_of_wan22(found: Found) -> None:
    """By its name; its tensors are called and shaped as those of Wan2.1."""
    for file in found.files if found.part == "transformer" else ():
        if _NOISE_HALF.search(file.name) or _NOISE_HALF.search(file.parent.name):
            raise ModelError(
                f"{str(file)!r} is one of Wan2.2's two transformers, by its name: they share the noise levels between "
                "them, and neither is a model by itself",
                hint=CONVERT_HINT,
            )


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
        _refuse_half_of_wan22(each)
        if each.part == part:
            return each
    raise ModelError(f"{str(files[0])!r} is no {CALLED[part]}", hint=CONVERT_HINT)


def _look_beside(gathered: _Gathered, found: Found) -> None:
    """Reads the configuration beside a transformer that lies where Wan or diffusers put it."""
    if found.part == "transformer" and found.files[0].name.startswith(DIFFUSERS_STEM):
        _read_stated(gathered, found.files[0].parent)


def _read_stated(gathered: _Gathered, folder: Path) -> None:
    file = folder / "config.json"
    if not os.path.lexists(file):
        return
    values = read_json(file)
    kind = class_name_of(values)
    if kind == "WanTransformer3DModel":
        gathered.heads = checked_config(file, values, WanTransformerConfig).num_attention_heads
        return
    if kind != "WanModel":
        raise ModelError(f"{str(file)!r} is of a {kind}, not of Wan's WanModel", hint=CONVERT_HINT)
    stated = checked_config(file, values, WanModelConfig)
    check_model_type(file, stated)
    gathered.heads = stated.num_heads
    gathered.checks.append(lambda config: check_stated(file, stated, config))


def _take_folder_of_part(gathered: _Gathered, part: Part, folder: Path) -> None:
    """A folder that holds nothing else, in one file or several."""
    if part == "transformer":
        _read_stated(gathered, folder)
    stem = STEMS.get(part, DIFFUSERS_STEM)
    has_stem = _has_stem(folder, stem)
    files = weight_files("", folder, stem) if has_stem else _weights_in(folder)
    if not has_stem and len(files) != 1:
        listed = f"{len(files)} files of weights, {named([file.name for file in files])}" if files else "no weights"
        raise ModelError(
            f"{_OPTIONS[part]} {str(folder)!r}: the folder holds {listed}", hint="name the file that is meant"
        )
    _take(gathered, _part_of_files(part, files))


def _has_stem(folder: Path, stem: str) -> bool:
    return any(name.startswith(f"{stem}.safetensors") or _SHARD.search(name) for name in visible_files(folder))


def _weights_in(folder: Path) -> list[Path]:
    return [folder / name for name in visible_files(folder) if name.endswith(_WEIGHT_SUFFIXES)]


def _take_folder(gathered: _Gathered, folder: Path) -> None:
    """What a folder holds of the parts that are still wanted."""
    wanted = [part for part in PARTS if part not in gathered.parts]
    if os.path.lexists(folder / "model_index.json"):
        _take_diffusers_folder(gathered, folder, wanted)
        return
    if halves := [name for name in visible_files(folder) if _NOISE_HALF.search(name) and (folder / name).is_dir()]:
        raise ModelError(
            f"{str(folder)!r} is a model of two transformers, {named(halves)}, as Wan2.2's 14B models are",
            hint=CONVERT_HINT,
        )
    gathered.tokenizer = gathered.tokenizer or next(
        (folder / place for place in _TOKENIZER_PLACES if _has_tokenizer(folder / place)), None
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


def _take_diffusers_folder(gathered: _Gathered, folder: Path, wanted: Sequence[Part]) -> None:
    kind = class_name_of(read_json(folder / "model_index.json"))
    if kind != "WanPipeline":
        raise ModelError(f"{str(folder)!r} is a {kind}, not a WanPipeline", hint=CONVERT_HINT)
    if len(wanted) == len(PARTS):
        raise ModelError(
            f"{str(folder)!r} is in diffusers' layout already, which needs no conversion",
            hint=f"name it as the model: --model {shlex.quote(str(folder))}; a file named beside it here takes the place "
            "of that part",
        )
    if "transformer" in wanted:
        gathered.heads = read_config(folder, "transformer", WanTransformerConfig).num_attention_heads
    for part in wanted:
        _take(gathered, _part_of_files(part, weight_files(part, folder)))
    if gathered.tokenizer is None and _has_tokenizer(folder / "tokenizer"):
        gathered.tokenizer = folder / "tokenizer"


def _require_all(gathered: _Gathered, sources: Sequence[str | Path], out: Path) -> None:
    missing = [part for part in PARTS if part not in gathered.parts]
    if not missing:
        return
    if gathered.refusals:
        raise gathered.refusals[0]
    if not gathered.parts and len(sources) == 1:
        raise ModelError(f"{str(sources[0])!r} holds no weights of a model", hint=usage_hint())
    there = [shlex.quote(str(found.files[0])) for found in gathered.parts.values()]
    given = [shlex.quote(str(source)) for source in sources]
    rest = [f"{_OPTIONS[part]} {_EXAMPLES[part]}" for part in missing]
    lacking = " and ".join(f"no {CALLED[part]}" for part in missing)
    raise ModelError(
        f"there is {lacking} among what was named" + (f", {named(there)}" if there else ""),
        hint=f"name the rest too, such as: miga convert {' '.join([*rest, *(given or there), shlex.quote(str(out))])}",
    )


def usage_hint() -> str:
    """What can be converted, and by which command."""
    return (
        "miga convert FOLDER OUT for a folder as Wan-AI publishes it (Wan2.1-T2V-1.3B); "
        + "miga convert "
        + " ".join(f"{_OPTIONS[part]} {_EXAMPLES[part]}" for part in PARTS)
        + " OUT for ComfyUI's files; miga convert model.ckpt OUT for VideoCrafter2's"
    )


# ---- what is written ----


def _in_order(found: Found, config: PartConfig) -> dict[str, Stored]:
    """As the module has them."""
    return {name: found.tensors[name] for name in module_of(config).state_dict() if name in found.tensors}


def _write_descriptions(folder: Path, parts: Mapping[Part, Found], configs: Mapping[Part, PartConfig]) -> None:
    """All but the weights and the tokenizer."""
    for part, config in configs.items():
        (folder / part).mkdir()
        if isinstance(config, Umt5Config):
            kind = parts[part].tensors["shared.weight"].dtype
            text = UMT5Config(**arguments(config), architectures=["UMT5EncoderModel"], dtype=kind)
            text.save_pretrained(folder / part)
        else:
            module: Any = module_of(config)
            module.save_config(folder / part)
    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
    )
    scheduler.save_pretrained(folder / "scheduler")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "WanPipeline",
            "_diffusers_version": diffusers.__version__,
            "_converted_from": {part: [file.name for file in found.files] for part, found in parts.items()},
            "scheduler": ["diffusers", "UniPCMultistepScheduler"],
            "text_encoder": ["transformers", "UMT5EncoderModel"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLWan"],
        },
    )


def _has_tokenizer(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in ("tokenizer.json", "spiece.model"))


def _tokenizer_folder(asked: str | Path | None, there: Path | None) -> Path:
    """Where the tokenizer's files are.

    Raises:
        ModelError: if it is not to be had.
    """
    if asked is None and there is not None:
        return there
    name = TOKENIZER if asked is None else asked
    try:
        folder = resolve_folder(name, None, TOKENIZER_FILES)
    except ModelError as error:
        raise ModelError(
            f"cannot load a tokenizer from {str(name)!r}: {error.message}",
            hint=_TOKENIZER_HINT,
        ) from error
    for place in (folder, *(folder / inner for inner in _TOKENIZER_PLACES)):
        if _has_tokenizer(place):
            return place
    raise ModelError(
        f"cannot load a tokenizer from {str(name)!r}: no tokenizer.json or spiece.model",
        hint=_TOKENIZER_HINT,
    )


def _write_tokenizer(folder: Path, source: Path, asked: str | Path | None) -> None:
    """Its files as they are, tried as a backbone would load them."""
    place = folder / "tokenizer"
    place.mkdir()
    for name in TOKENIZER_FILES:
        if os.path.isfile(source / name):
            shutil.copyfile(source / name, place / name)
    try:
        WanBackbone.load_tokenizer(folder)
    except ModelError as error:
        raise ModelError(
            f"the tokenizer of {str(asked or source)!r} cannot be used: "
            + error.message.replace(str(place), str(source)).replace(str(folder), str(source)),
            hint=_TOKENIZER_HINT,
        ) from error
