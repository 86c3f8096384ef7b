"""What people write who know diffusers and has no meaning here, each with what to write instead.

None and what changes nothing is let pass: `latents=None` asks for nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, Final

from miga.errors import UsageError

_NO_STEP: Final = (
    "the latents of a pass stand at different time steps, so there is no step to hand over; "
    "on_progress=lambda done, total: ... is called after every call of the network"
)
_LORA_SCALE: Final = (
    "a LoRA is added to the weights when it is loaded, with its scale: "
    "pipe.load_lora_weights('style.safetensors', scale=0.8)"
)
_TEXT_ALONE: Final = "text and pictures tell the models here what to show: leave it out"
_SAMPLER: Final = "it is a setting of the sampler: from_pretrained(..., sampler={{{0!r}: ...}})"
_MEMORY: Final = (
    "leave it out: a memory plan is made when the model is loaded (pipe.memory says which); latents are decoded one at "
    "a time, and turns, bfloat16 and fp8 are taken where a card needs it"
)
_PARTS: Final = "put the part into the model's folder, or build a backbone and give it to LongVideoPipeline(...)"
_SCHEDULER: Final = (
    "every latent has a clock of its own here, so the solver is a setting: "
    "from_pretrained(..., sampler={'solver': 'unipc', 'flow_shift': 8.0})"
)

CALL: Final[dict[str, str]] = {
    "latents": "noise is drawn by name from the seed, for a video of any length: give seed=... or generator=...",
    "callback_on_step_end": _NO_STEP,
    "callback_on_step_end_tensor_inputs": _NO_STEP,
    "callback": _NO_STEP,
    "callback_steps": _NO_STEP,
    "attention_kwargs": _LORA_SCALE,
    "cross_attention_kwargs": _LORA_SCALE,
    "guidance_scale_2": "the second network's follows (`low_noise_guidance` of miga.json): give guidance_scale=...",
    "guidance_rescale": "leave it out: guidance is not rescaled here",
    "num_images_per_prompt": "a call makes one video: [pipe(text, seed=seed) for seed in range(3)] makes three",
    "return_dict": "a call returns a LongVideo: its frames are pipe(...).frames",
    "video": _TEXT_ALONE,
    "strength": _TEXT_ALONE,
    "clip_skip": "leave it out: the text encoder's last layer is read",
    "timesteps": _SAMPLER.format("timesteps"),
    "sigmas": _SAMPLER.format("timesteps"),
    "eta": _SAMPLER.format("eta"),
    "flow_shift": _SAMPLER.format("flow_shift"),
    "shift": _SAMPLER.format("flow_shift"),
    "fps": "frames per second are said when the video is saved: video.save('video.mp4', fps=24)",
    "frame_rate": "frames per second are said when the video is saved: video.save('video.mp4', fps=24)",
}
"""Arguments of a call."""

LOAD: Final[dict[str, str]] = {
    "scheduler": _SCHEDULER,
    "transformer": _PARTS,
    "transformer_2": _PARTS,
    "unet": _PARTS,
    "vae": "leave it out: the VAE is in float32 here by itself, and in bfloat16 where a card needs that; another VAE "
    "goes into the model's folder",
    "text_encoder": _PARTS,
    "tokenizer": _PARTS,
    "quantization_config": _MEMORY,
    "variant": "weights are read under their plain name: name the folder that holds them, and say torch_dtype=...",
    "use_safetensors": "weights are read from safetensors alone: convert the others (`miga convert`)",
    "cache_dir": "set the environment variable HF_HOME to that folder",
    "token": "log in once with `hf auth login`, or set the environment variable HF_TOKEN",
    "local_files_only": "set the environment variable HF_HUB_OFFLINE=1",
    "force_download": "remove the model from the hub's cache (`hf cache`), and load it again",
    "subfolder": "name the folder itself",
    "custom_pipeline": "code of others is not run here; see docs/bring-your-own-model.md",
    "trust_remote_code": "code of others is not run here; see docs/bring-your-own-model.md",
    "max_memory": _MEMORY,
    "offload_folder": _MEMORY,
    "low_cpu_mem_usage": "leave it out: no second copy of the weights is ever in memory",
}
"""Arguments of `from_pretrained`."""

ATTRIBUTES: Final[dict[str, str]] = {
    "enable_sequential_cpu_offload": "pipe.enable_model_cpu_offload() keeps the text encoder off the card; " + _MEMORY,
    "enable_group_offload": "pipe.enable_model_cpu_offload() keeps the text encoder off the card; " + _MEMORY,
    "enable_vae_tiling": _MEMORY,
    "enable_vae_slicing": _MEMORY,
    "enable_attention_slicing": _MEMORY,
    "enable_xformers_memory_efficient_attention": "from_pretrained(..., attention='flash') names a backend",
    "set_attention_backend": "from_pretrained(..., attention='flash') names a backend",
    "set_adapters": _LORA_SCALE,
    "fuse_lora": _LORA_SCALE,
    "set_lora_device": _LORA_SCALE,
    "unfuse_lora": "a LoRA is added to the weights for good: load the model again, without it",
    "unload_lora_weights": "a LoRA is added to the weights for good: load the model again, without it",
    "delete_adapters": "a LoRA is added to the weights for good: load the model again, without it",
    "disable_lora": "a LoRA is added to the weights for good: load the model again, without it",
    "load_ip_adapter": _TEXT_ALONE,
    "save_pretrained": "the model's folder is as it was: copy that; LoRAs are named again when it is loaded",
    "push_to_hub": "the model's folder is as it was: push that",
    "scheduler": _SCHEDULER,
    "transformer": "it is pipe.backbone.network; from_pretrained(..., compile=True) compiles it",
    "unet": "it is pipe.backbone.network; from_pretrained(..., compile=True) compiles it",
    "vae": "it is pipe.backbone.vae; " + _MEMORY,
    "text_encoder": "pipe.encode_prompt(text) encodes; text_dtype and text_gpus of from_pretrained say where and how",
    "tokenizer": "pipe.encode_prompt(text) encodes; a prompt that is too long is an error, and never cut",
}
"""Attributes and methods of a pipeline."""


class HabitError(UsageError, AttributeError):
    """Something of diffusers' that a pipeline here has not got. `hasattr` says so too."""


def refuse_arguments(given: Mapping[str, Any], refused: Mapping[str, str], taken: Collection[str], where: str) -> None:
    """Returns if none of the arguments asks for anything.

    Args:
        given: arguments that `where` has no parameter for.
        refused: those that are known, with what to write instead.
        taken: names of its parameters.
        where: what was called.

    Raises:
        UsageError: naming the first, and what to write instead.
    """
    for name, value in given.items():
        if name in refused:
            if not _changes_nothing(name, value):
                raise UsageError(f"{where} takes no {name}", refused[name])
        else:
            near = difflib.get_close_matches(name, [*taken, *refused], 1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"{where} takes no {name}", f"{guess}it takes: {', '.join(taken)}")


_HARMLESS: Final[dict[str, tuple[Any, ...]]] = {
    "return_dict": (True,),
    "use_safetensors": (True,),
    "low_cpu_mem_usage": (True, False),
    "local_files_only": (False,),
    "force_download": (False,),
    "trust_remote_code": (False,),
    "num_images_per_prompt": (1,),
    "guidance_rescale": (0.0,),
}


def _changes_nothing(name: str, value: Any) -> bool:
    return value is None or any(value is harmless or value == harmless for harmless in _HARMLESS.get(name, ()))
