"""What is known of a Wan model from its JSON files alone, before any weights are loaded.

Beside diffusers' own files a folder may hold `miga.json`, for what that layout has no place for (`SETTINGS`). Without
it Wan's published values hold.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from miga.backbones.base import BackboneSpec
from miga.backbones.loading import read_json, resolve_folder, revision_of
from miga.config import SamplerConfig
from miga.errors import ModelError

NEGATIVE_PROMPT: Final = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The one that Wan was published with."""

SETTINGS: Final[dict[str, tuple[type, Any]]] = {
    "family": (str, "wan"),
    "window": (int, None),  # latents; by default those of `num_frames`
    "num_frames": (int, 81),  # of the clips that the model was trained on
    "height": (int, 480),
    "width": (int, 832),
    "fps": (int, 16),
    "negative_prompt": (str, NEGATIVE_PROMPT),
    "default_num_frames": (int, 161),
    "sampler": (dict, {}),
}
"""The keys of `miga.json`: type and default."""

NUM_TEXT_TOKENS: Final = 512
"""Length that Wan's text embeddings are padded to."""


def forward_flops(width: int, ffn_width: int, num_layers: int, num_tokens: int) -> float:
    """Floating-point operations of one forward of the transformer, matrix products only."""
    self_attention = 8 * num_tokens * width**2 + 4 * num_tokens**2 * width
    cross_attention = 4 * (num_tokens + NUM_TEXT_TOKENS) * width**2 + 4 * num_tokens * NUM_TEXT_TOKENS * width
    return float(num_layers * (self_attention + cross_attention + 4 * num_tokens * width * ffn_width))


JSON_FILES: Final = ("model_index.json", "miga.json", "vae/config.json", "transformer/config.json", "scheduler/*.json")
"""What a spec is read from, and what lies beside it."""

PUBLISHED: Final = {
    name: BackboneSpec(
        family="wan",
        name=name,
        revision="main",
        window=21,
        latent_channels=16,
        latent_height=60,
        latent_width=104,
        height=480,
        width=832,
        fps=16,
        negative_prompt=NEGATIVE_PROMPT,
        forward_flops=forward_flops(width, ffn_width, num_layers, num_tokens=21 * 30 * 52),
    )
    for name, width, ffn_width, num_layers in (
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 1536, 8960, 30),
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", 5120, 13824, 40),
    )
}
"""Models that a dry run knows without network."""


def load_spec(name_or_dir: str | Path, *, revision: str | None = None) -> BackboneSpec:
    """The spec of a folder or hub name, from its JSON files; of a published model from `PUBLISHED`.

    The revision of a published model is then the one asked for, not yet a commit: a loaded backbone's spec names it.

    Raises:
        ModelError: if the model is missing, or is not one that this project can sample from.
    """
    name = str(name_or_dir)
    if name in PUBLISHED and revision is None and not Path(name).is_dir():
        return PUBLISHED[name]
    return spec_of_folder(resolve_folder(name_or_dir, revision, JSON_FILES), name)


def spec_of_folder(folder: Path, name: str) -> BackboneSpec:
    """The spec of a model in a local folder.

    Args:
        folder: where the files are.
        name: what the user called it.
    """
    _check_pipeline(folder)
    vae, transformer = (read_json(folder / part / "config.json") for part in ("vae", "transformer"))
    for part, config, wanted in (
        ("vae", vae, "AutoencoderKLWan"),
        ("transformer", transformer, "WanTransformer3DModel"),
    ):
        if config.get("_class_name") != wanted:
            raise ModelError(f"{part} of {name!r} is {config.get('_class_name')}, not {wanted}", hint=_SUPPORTED)
    channels = int(vae.get("z_dim", 16))
    if transformer.get("in_channels", 16) != channels or transformer.get("added_kv_proj_dim") is not None:
        raise ModelError(f"{name!r} is conditioned on images, not on text alone", hint=_SUPPORTED)
    settings = _settings(folder)
    frames_per_latent, cell = int(vae.get("scale_factor_temporal", 4)), int(vae.get("scale_factor_spatial", 8))
    patch = transformer.get("patch_size", (1, 2, 2))
    for side, cells in (("height", patch[1]), ("width", patch[2])):
        if settings[side] % (cell * cells):
            raise ModelError(
                f"{side} {settings[side]} of {name!r} is no multiple of {cell * cells}", hint="correct miga.json"
            )
    num_frames, window = settings.pop("num_frames"), settings.pop("window")
    window = window or (num_frames - 1) // frames_per_latent + 1
    tokens_per_latent = (settings["height"] // cell // patch[1]) * (settings["width"] // cell // patch[2])
    return BackboneSpec(
        name=name,
        revision=revision_of(folder),
        window=window,
        forward_flops=forward_flops(
            transformer["num_attention_heads"] * transformer["attention_head_dim"],
            transformer["ffn_dim"],
            transformer["num_layers"],
            window * tokens_per_latent,
        ),
        latent_channels=channels,
        latent_height=settings["height"] // cell,
        latent_width=settings["width"] // cell,
        frames_per_latent=frames_per_latent,
        **settings,
    )


_SUPPORTED = "text-to-video models of Wan2.1's layout are supported, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def _check_pipeline(folder: Path) -> None:
    if not (folder / "model_index.json").exists() and (folder / "config.json").exists():
        config = read_json(folder / "config.json")
        kind = config.get("_class_name") or (config.get("architectures") or ["a single network"])[0]
        raise ModelError(f"model folder {str(folder)!r} holds {kind}, not a pipeline", hint=_SUPPORTED)
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "WanPipeline":
        raise ModelError(f"{str(folder)!r} is a {index.get('_class_name')}, not a WanPipeline", hint=_SUPPORTED)
    if (index.get("transformer_2") or [None])[0] is not None:
        raise ModelError(f"{str(folder)!r} has two transformers, as Wan2.2's 14B models do", hint=_SUPPORTED)


def _settings(folder: Path) -> dict[str, Any]:
    """The checked contents of `miga.json`, defaults filled in."""
    file = folder / "miga.json"
    given = read_json(file) if file.exists() else {}
    problems = [problem for key, value in given.items() for problem in _problems(key, value)]
    if problems:
        raise ModelError(f"{str(file)!r}: {'; '.join(problems)}", hint=f"known keys: {', '.join(SETTINGS)}")
    return {key: given.get(key, default) for key, (_, default) in SETTINGS.items()}


def _problems(key: str, value: Any) -> list[str]:
    """What is wrong with an entry of `miga.json`."""
    if key not in SETTINGS:
        return [f"unknown key {key!r}"]
    wanted = SETTINGS[key][0]
    if not isinstance(value, wanted) or isinstance(value, bool):
        return [f"{key} must be of type {wanted.__name__}, not {value!r}"]
    if isinstance(value, int) and value < 1:
        return [f"{key} must be 1 or above, not {value}"]
    if isinstance(value, dict):
        known = {field.name for field in fields(SamplerConfig)}
        return [f"unknown key {name!r} in {key}" for name in sorted(value.keys() - known)]
    return []
