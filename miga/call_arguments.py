"""Arguments of the Python API, judged: what cannot be is refused with what to write instead.

Legend: L tokens of a prompt, D channels of its embedding.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.family import ModelOptions
from miga.config import SamplerConfig
from miga.errors import UsageError
from miga.loaded_model import DTYPES, TEXT_DTYPES, Placing, parse_device, parse_dtype
from miga.profiles import why_no_starts

MAX_FRAMES: Final = 2**31 - 1
"""More than a file of video holds; at 16 frames a second they take four years to watch."""
MAX_SEED: Final = 2**64 - 1


def parameters_of(function: Any) -> tuple[str, ...]:
    """What a function can be given by name."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
    return tuple(name for name in names if name not in ("self", "cls"))


def name_of(name_or_dir: Any) -> str:
    """A model's name, or its folder's.

    Raises:
        UsageError: if it is neither.
    """
    if isinstance(name_or_dir, str | os.PathLike) and isinstance(name := os.fspath(name_or_dir), str) and name:
        return name
    raise UsageError(f"model {name_or_dir!r} cannot be", 'name one, such as "sprites", or give its folder')


def options_of(lora: Any, height: Any, width: Any, attention: Any, compile: Any) -> ModelOptions:
    """What a model is to become.

    Raises:
        UsageError: if one of them is of another type.
    """
    loras = (lora,) if isinstance(lora, str) else lora
    if not isinstance(loras, Sequence) or not all(isinstance(each, str) for each in loras):
        raise UsageError(f"lora is a {type(lora).__name__}", "give FILE_OR_NAME[:scale], or a list of them")
    check_size(height, width)
    if not isinstance(attention, str):
        raise UsageError(f"attention is a {type(attention).__name__}", "name a backend of diffusers, such as 'flash'")
    if not isinstance(compile, bool):
        raise UsageError(f"compile is a {type(compile).__name__}", "take True or False")
    return ModelOptions(lora=tuple(loras), height=height, width=width, attention=attention, compile=compile)


def placing_of(device: Any, device_map: Any, dtype: Any, torch_dtype: Any, text_dtype: Any, text_gpus: Any) -> Placing:
    """Where and how a model is to be held.

    Raises:
        UsageError: if an argument cannot be, or two contradict each other.
    """
    if device is not None and device_map is not None:
        raise UsageError("device and device_map are both given", "give one of them")
    where = parse_device(_of_device_map(device_map) if device is None else device)
    network, whole = parse_dtype(dtype, "dtype", DTYPES), parse_dtype(torch_dtype, "torch_dtype", DTYPES)
    if network is not None and whole is not None and network != whole:
        raise UsageError(f"dtype is {network} and torch_dtype {whole}", "give one of them")
    default = torch.bfloat16 if where.type == "cuda" else torch.float32
    of_whole = whole if whole in TEXT_DTYPES.values() else None  # float16 is too small for UMT5's numbers
    text = parse_dtype(text_dtype, "text_dtype", TEXT_DTYPES) or of_whole or torch.float32
    if not is_number(text_gpus) or not 0 <= text_gpus <= 1:
        raise UsageError(
            f"text_gpus {text_gpus!r} cannot be", "above 0, at most 1: the text encoder stays on the card; 0: it leaves"
        )
    return Placing(device=where, dtype=network or whole or default, text_dtype=text, text_stays=text_gpus > 0)


def _of_device_map(device_map: Any) -> Any:
    devices = set(device_map.values()) if isinstance(device_map, Mapping) else {device_map}
    if len(devices) == 1 and not devices & {"auto", "balanced", "balanced_low_0", "sequential"}:
        return devices.pop()
    raise UsageError(
        f"device_map {device_map!r} spreads a model over devices, and a pipeline is on one",
        'write device_map="cuda"; what fits on that card, a memory plan sees to, and `miga generate` uses many cards',
    )


def seed_of(seed: Any, generator: Any) -> int:
    """The seed that was said, or that a generator gives.

    Raises:
        UsageError: if it cannot be.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed {seed!r} cannot be", "take a whole number from 0 to 2**64 - 1")
    if generator is None:
        return seed
    if seed:
        raise UsageError("seed and generator are both given", "give one of them")
    if isinstance(generator, Sequence) and len(generator) == 1:
        generator = generator[0]
    if not isinstance(generator, torch.Generator):
        raise UsageError(
            f"generator is a {type(generator).__name__}: a call makes one video, of one generator",
            "write generator=torch.Generator().manual_seed(0), or seed=0",
        )
    return int(torch.randint(2**63 - 1, (), dtype=torch.int64, generator=generator, device=generator.device))


def check_one_video(count: Any) -> None:
    """Returns if one video is asked for.

    Raises:
        UsageError: if not.
    """
    if count not in (None, 1):
        raise UsageError(
            f"num_videos_per_prompt {count!r} cannot be: a call makes one video",
            "[pipe(text, seed=seed) for seed in range(3)] makes three of one prompt",
        )


def check_size(height: Any, width: Any) -> None:
    """Returns if both are pixels, or None.

    Raises:
        UsageError: if not.
    """
    for name, pixels in (("height", height), ("width", width)):
        if pixels is not None and (type(pixels) is not int or pixels < 1):
            raise UsageError(f"{name} {pixels!r} cannot be", "take a whole number of pixels")


def is_number(value: object) -> bool:
    """Whether it is a finite number of moderate size, and not a truth value."""
    return type(value) in (int, float) and -MAX_FRAMES <= value <= MAX_FRAMES  # type: ignore[operator]


def is_length(value: object) -> bool:
    """Whether it is a number of frames."""
    return is_number(value) and value >= 1  # type: ignore[operator]


def num_latents_of(spec: BackboneSpec, num_frames: int) -> int:
    """Latents that decode to so many frames.

    Raises:
        UsageError: if the VAE cannot make that many, naming the nearest.
    """
    if type(num_frames) is not int or num_frames > MAX_FRAMES:
        raise UsageError(f"num_frames {num_frames!r} cannot be", f"take a whole number of frames, at most {MAX_FRAMES}")
    try:
        return spec.num_latents(num_frames)
    except ValueError as error:
        raise UsageError(str(error), "take one of those counts") from None


def texts_of(prompt: Any, prompts_in_turn: Any, embedding: Any = None) -> list[str]:
    """The prompts of one video; none where an embedding stands for them.

    Raises:
        UsageError: if there is none, or what is given does not ask for one video.
    """
    given = [value for value in (prompt, prompts_in_turn, embedding) if value is not None]
    if len(given) > 1:
        raise UsageError("more than one of prompt, prompts_in_turn and prompt_embeds is given", "give one of them")
    if not given:
        raise UsageError("no prompt given", "give one prompt, or prompts_in_turn=[...]")
    if embedding is not None:
        return []
    if prompts_in_turn is not None:
        return _in_turn(prompts_in_turn)
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        shown = [_shortened(text) for text in prompt[:2]]
        texts = f"[{', '.join(shown)}{', ...' if len(prompt) > 2 else ''}]"
        raise UsageError(
            f"prompt is a {type(prompt).__name__} of {len(prompt)}: in diffusers that asks for {len(prompt)} videos, "
            f"and in earlier versions here for one video of {len(prompt)} parts",
            f"one video whose prompts take turns: pipe(prompts_in_turn={texts}); a video of each: "
            f"[pipe(text) for text in {texts}]",
        )
    raise UsageError(f"prompt is a {type(prompt).__name__}", "give a text")


def prompt_starts_of(
    given: Any, num_prompts: int, config: SamplerConfig, spec: BackboneSpec, num_frames: int | None
) -> tuple[int, ...]:
    """The first latent of each prompt, of the frames at which they are to begin; empty where nothing is said.

    Raises:
        UsageError: if there are not as many, if they do not rise from 0 on, or if prompts cannot begin there.
    """
    if given is None:
        return ()
    how = "give the frame at which each prompt begins, such as [0, 80, 160]"
    is_list = isinstance(given, Sequence) and all(type(frame) is int for frame in given)
    if not is_list or len(given) != num_prompts:
        raise UsageError(f"prompt_frames {given!r} cannot be of {num_prompts} prompts", how)
    if given[0] != 0 or any(after <= before for before, after in pairwise(given)):
        raise UsageError(f"prompt_frames {given!r} do not rise from 0 on", how)
    if reason := why_no_starts(config, spec, num_frames, given):
        raise UsageError(reason, "give other prompt_frames")
    return tuple(map(spec.latent_at, given))


def _in_turn(prompts: Any) -> list[str]:
    is_list = isinstance(prompts, Sequence) and not isinstance(prompts, str | bytes)
    if not is_list or not all(isinstance(text, str) for text in prompts):
        raise UsageError(
            f"prompts_in_turn is a {type(prompts).__name__}{' of something else than texts' if is_list else ''}",
            "give a list of texts, such as ['a red ball', 'a blue ball']",
        )
    if not prompts:
        raise UsageError("no prompt given", "give one prompt, or several to stand in turn")
    return list(prompts)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def embedding_of(value: Any, name: str, like: torch.Tensor | None, max_tokens: int | None) -> torch.Tensor:
    """An embedding, float32 on the CPU, of one that was given.

    Args:
        value: what was given: `[L, D]`, or a batch of one.
        name: of the argument.
        like: another embedding of the model's, which may be of another L; None if none is at hand.
        max_tokens: the most that L may be; None if that is not known.

    Raises:
        UsageError: if it is none.
    """
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise UsageError(f"{name} is no tensor of floating-point numbers", _ENCODE)
    num_dims = 2 if like is None else like.ndim
    one = value[0] if value.ndim == num_dims + 1 and len(value) == 1 else value
    sizes = None if like is None else tuple(like.shape[1:] if num_dims > 1 else like.shape)
    found = tuple(one.shape[1:] if num_dims > 1 else one.shape)
    if one.ndim != num_dims or not len(one) or sizes not in (None, found):
        wanted = "[L, D]" if sizes is None else str([*(["L"] if num_dims > 1 else []), *sizes]).replace("'", "")
        raise UsageError(
            f"{name} has the shape {list(value.shape)}, not {wanted}",
            f"a call makes one video, of one prompt: {_ENCODE}",
        )
    if max_tokens is not None and num_dims > 1 and len(one) > max_tokens:
        raise UsageError(f"{name} has {len(one)} tokens, and the model reads {max_tokens}", _ENCODE)
    if not torch.isfinite(one).all():
        raise UsageError(f"{name} holds NaN or infinity", _ENCODE)
    return one.detach().float().cpu()


_ENCODE: Final = "pipe.encode_prompt(text) makes one of a text"
