"""The Python API: `LongVideoPipeline`."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from miga import habits
from miga.backbones.base import Backbone, BackboneSpec
from miga.backbones.memory_plan import MemoryPlan
from miga.backbones.options import configured_spec
from miga.backbones.registry import check_schedule, load_spec
from miga.call_arguments import (
    check_one_video,
    check_size,
    embedding_of,
    is_length,
    is_number,
    name_of,
    num_latents_of,
    options_of,
    parameters_of,
    placing_of,
    prompt_starts_of,
    seed_of,
    texts_of,
)
from miga.call_progress import CallsCounted, OnProgress
from miga.config import SamplerConfig
from miga.errors import ConfigError, UsageError
from miga.generate import rules_of_pictures
from miga.image_condition import Pictures, pictures_of, require_pictures
from miga.loaded_model import LoadedModel, parse_device
from miga.methods.base import Features
from miga.pictures import read_picture
from miga.profiles import (
    check_profile,
    default_num_frames,
    levels_at,
    resolve_config,
    warn_of_concerns,
    why_no_length,
)
from miga.video import Progress, make_video
from miga.video_output import FrameStream, LongVideo, check_output_type


class LongVideoPipeline:
    """Long videos from a model that knows short clips.

    Example:
        pipe = LongVideoPipeline.from_pretrained("sprites", profile="swift")
        video = pipe("a red circle moving side to side on a grey ground", num_frames=177, seed=0)
        video.save("circle.mp4")
        for frame in pipe.stream("a blue ring circling clockwise on a white ground"):
            ...  # for ever
    """

    def __init__(self, backbone: Backbone, config: SamplerConfig, features: Features | None = None) -> None:
        """The pipeline of a model that you have built; it stays where it is, and encodes its own prompts.

        Args:
            backbone: the model, loaded whole.
            config: the sampler's settings.
            features: what ScalingNoise's search compares latents by (`[F, C, H, W]` to `[F, D]`); None: themselves.
        """
        self._model = LoadedModel.of(backbone)
        self._sampler: dict[str, Any] | None = None
        self._progress_bar_config: dict[str, Any] = {}
        self.config = config
        self.features = features

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str] = "sprites",
        *,
        profile: str = "swift",
        sampler: Mapping[str, Any] | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        device_map: str | torch.device | Mapping[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        text_dtype: torch.dtype | str | None = None,
        text_gpus: float = 0.0,
        lora: str | Sequence[str] = (),
        height: int | None = None,
        width: int | None = None,
        attention: str = "auto",
        compile: bool = False,
        **others: Any,
    ) -> LongVideoPipeline:
        """Loads a model and resolves a profile for it. On a card it is held by the memory plan that a run makes.

        Args:
            name_or_dir: "sprites" (the embedded model), a folder in diffusers layout, or a hub name.
            profile: a name of `miga.profiles.profiles()`.
            sampler: settings of the profile's method to override.
            revision: of a hub name.
            device: by default a GPU if there is one.
            device_map: the same under diffusers' name; one device, since a pipeline is on one.
            dtype: of the transformer; by default bfloat16 on a GPU, float32 on the CPU.
            torch_dtype: of the transformer, and of the text encoder too unless that is said.
            text_dtype: of the text encoder; float32 by default, bfloat16 halves its memory.
            text_gpus: above 0: the text encoder stays on the card, and the plan counts it; 0: it is there to encode at
                most, if there is room.
            lora: `FILE_OR_NAME[:scale]`, one or several, fused into the transformer in that order.
            height: pixels of a frame; by default the model's.
            width: the same.
            attention: a backend of diffusers for self-attention, which then holds for the whole process.
            compile: whether the transformer's blocks are compiled; the first call is then slow.
            **others: arguments of diffusers' that mean nothing here are refused, with what to write instead.

        Raises:
            UsageError: if an argument cannot be.
            ConfigError: if the settings are not possible with the model. Both before weights are loaded.
            ModelError: if the model cannot be loaded, or the card has too little memory for it, saying what would fit.
        """
        habits.refuse_arguments(others, habits.LOAD, parameters_of(cls.from_pretrained), "from_pretrained")
        check_profile(profile)
        placing = placing_of(device, device_map, dtype, torch_dtype, text_dtype, text_gpus)
        name, options = name_of(name_or_dir), options_of(lora, height, width, attention, compile)
        spec = configured_spec(load_spec(name, revision), options, revision)
        config = resolve_config(profile, spec, sampler)
        check_schedule(name, config, revision)
        rules_of_pictures(spec, config)
        model = LoadedModel.load(name, revision, options, placing, spec, config)
        pipe = cls(model.backbone, resolve_config(profile, model.backbone.spec, sampler))
        pipe._model, pipe._sampler = model, dict(sampler or {})
        return pipe

    @classmethod
    def from_pipe(
        cls, pipe: LongVideoPipeline, *, profile: str = "swift", sampler: Mapping[str, Any] | None = None
    ) -> LongVideoPipeline:
        """Another profile for a model that is loaded already; both share it.

        Raises:
            ConfigError: if the settings are not possible with the model.
            ModelError: if they do not fit into the card as the model is held.
        """
        config = resolve_config(profile, pipe.backbone.spec, sampler)
        rules_of_pictures(pipe.backbone.spec, config)
        pipe._model.require_room(pipe.backbone.spec, config)
        other = cls(pipe.backbone, config, pipe.features)
        other._model, other._sampler = pipe._model, dict(sampler or {})
        other._progress_bar_config = pipe._progress_bar_config
        return other

    # ---- where the model is ----

    @property
    def backbone(self) -> Backbone:
        """The model: its network and its VAE."""
        return self._model.backbone

    @property
    def spec(self) -> BackboneSpec:
        """What is known of the model, and of how videos are made of its clips in this profile."""
        return self.backbone.spec.of_clips(self.config.clips)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._model.placing.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's arithmetic."""
        return self._model.placing.dtype

    @property
    def memory(self) -> MemoryPlan | None:
        """What of the model goes where on its card (`.to_dict()` is for people); None without a card."""
        return self._model.memory

    def to(self, *where: Any, device: Any = None, dtype: torch.dtype | None = None, **others: Any) -> LongVideoPipeline:
        """Moves the model; to a card as the memory plan for that card says.

        Args:
            *where: the device, as in `pipe.to("cuda")`.
            device: the same by name.
            dtype: the one it has; another one is chosen when the model is loaded.
            **others: None is known.

        Returns:
            This pipeline.

        Raises:
            UsageError: if there is no such device, or the dtype is another one.
            ModelError: if it does not fit there, saying what would.
        """
        habits.refuse_arguments(others, {"silence_dtype_warnings": ""}, ("device", "dtype"), "to")
        for value in where:
            if isinstance(value, torch.dtype):
                dtype = value
            else:
                device = value
        if dtype is not None and dtype != self.dtype:
            raise UsageError(
                f"the model was loaded in {self.dtype}, and is not changed to {dtype}",
                f"say it when it is loaded: from_pretrained(..., torch_dtype={dtype})",
            )
        if device is not None:
            self._model.move(parse_device(device), self.config)
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keeps the text encoder off the card but to encode; the rest is there, as the memory plan says.

        That is so by default: it only moves a model that is on the CPU, and undoes `text_gpus`.

        Args:
            gpu_id: number of the card.
            device: the card, instead.

        Raises:
            UsageError: if there is no such device.
            ModelError: if the model does not fit there, saying what would.
        """
        where = parse_device(device or ("cuda" if gpu_id is None else f"cuda:{gpu_id}"))
        self._model.let_text_go()
        self._model.move(where, self.config)

    def load_lora_weights(
        self,
        name_or_dir: str,
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        scale: float | None = None,
        **others: Any,
    ) -> None:
        """Adds a LoRA to the network's weights, for good.

        Args:
            name_or_dir: a .safetensors file, a folder that holds one, `owner/name` or `owner/name/file.safetensors` on
                the hub; `:0.8` behind it is its scale.
            adapter_name: changes nothing: what is added has no name any more.
            weight_name: the file in that folder or repository.
            scale: what its change of the weights is multiplied by; by default 1.
            **others: arguments of diffusers' that mean nothing here are refused.

        Raises:
            UsageError: if an argument cannot be.
            ModelError: if there is no such file, it is for another model, or the model takes no LoRAs. Nothing is
                changed then.
        """
        refused = {"subfolder": "write it into the name: 'owner/name/folder/file.safetensors'"} | habits.LOAD
        habits.refuse_arguments(others, refused, ("weight_name", "scale"), "load_lora_weights")
        if not isinstance(name_or_dir, str):
            raise UsageError(
                f"a LoRA is named by its file, not given as a {type(name_or_dir).__name__}",
                "write it into a file: safetensors.torch.save_file(weights, 'style.safetensors')",
            )
        if scale is not None and not is_number(scale):
            raise UsageError(f"scale {scale!r} cannot be", "take a number, such as 0.8")
        name = name_or_dir if weight_name is None else f"{name_or_dir.rstrip('/')}/{weight_name}"
        self._model.fuse(name if scale is None else f"{name}:{scale!r}")

    # ---- progress ----

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Settings of tqdm for the bar that a call shows, such as `disable=True`."""
        self._progress_bar_config = settings

    def progress_bar(self, total: int) -> Any:
        """A bar of tqdm with those settings."""
        return tqdm(**{"total": total, "unit": "call", "dynamic_ncols": True, **self._progress_bar_config})

    # ---- making videos ----

    def __call__(
        self,
        prompt: str | None = None,
        *,
        prompts_in_turn: Sequence[str] | None = None,
        negative_prompt: str | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "np",
        on_progress: OnProgress | None = None,
        num_videos_per_prompt: int | None = 1,
        max_sequence_length: int | None = None,
        image: Any = None,
        last_image: Any = None,
        prompt_frames: Sequence[int] | None = None,
        **others: Any,
    ) -> LongVideo:
        """Makes a whole video: one, of one prompt or of several in turn.

        Args:
            prompt: the prompt.
            prompts_in_turn: several instead, each for an even share of the video.
            negative_prompt: by default the model's own.
            num_frames: length, one of those the VAE can make; by default the model's.
            height: pixels of a frame; by default those the model was loaded for.
            width: the same.
            num_inference_steps: the sampler's `num_steps`, for this call; what follows from it does.
            guidance_scale: for this call; at 1 and below there is no guidance.
            seed: 0 ... 2**64 - 1; the same seed gives the same video.
            generator: a seed is drawn from it instead: of a generator seeded alike the first video is the same, the
                next another one.
            prompt_embeds: a prompt's embedding instead of the prompt, `[L, D]` or `[1, L, D]` (`encode_prompt`).
            negative_prompt_embeds: the same of the negative prompt.
            output_type: what `frames` of the result are: "np", "pil" or "pt".
            on_progress: is told the network's calls done and in all, after every one; what it raises ends the video.
            num_videos_per_prompt: 1: a call makes one video.
            max_sequence_length: tokens that the model reads: no other number is taken, and nothing is cut.
            image: picture that the video begins with: of PIL, an array, or a path. It is turned as its EXIF says,
                scaled until it covers the frame, and cut around its middle.
            last_image: the same of the picture that it ends with, where the model takes one.
            prompt_frames: frame at which each of `prompts_in_turn` begins, from 0 on, where shares are not even.
            **others: arguments of diffusers' that mean nothing here are refused, with what to write instead.

        Raises:
            UsageError: if an argument has the wrong type or cannot be; ConfigError of them, if settings of the sampler
                cannot be.
            BadRowError: if a prompt is blank or too long for the text encoder.
            ModelError: if the model cannot make that size, or the card has no room for it.
        """
        habits.refuse_arguments(others, habits.CALL, parameters_of(type(self).__call__), "a call")
        kind = check_output_type(output_type)
        check_one_video(num_videos_per_prompt)
        self._check_sequence_length(max_sequence_length)
        asked = _Asked(
            prompt, prompts_in_turn, negative_prompt, prompt_embeds, negative_prompt_embeds,
            default_num_frames(self.config, self.spec) if num_frames is None else num_frames,
            height, width, num_inference_steps, guidance_scale, seed_of(seed, generator), image, last_image,
            prompt_frames,
        )  # fmt: skip
        job = self._job(asked)
        frames = []
        assert job.num_latents is not None, "a call makes a video that ends"
        counted = CallsCounted(job.backbone, job.config, job.num_latents, self.progress_bar, on_progress)
        with counted as counting:
            for step in self._steps(replace(job, backbone=counting.backbone)):
                counting.look(step)
                if step.frames is not None:
                    frames.append(step.frames)
        return LongVideo(
            np.concatenate(frames),
            job.backbone.spec.fps,
            step.num_calls,
            step.trace,
            list(step.final_consistency),
            job.seed,
            kind,
        )

    def stream(
        self,
        prompt: str | None = None,
        *,
        prompts_in_turn: Sequence[str] | None = None,
        negative_prompt: str | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        frames_per_prompt: float | None = None,
        image: Any = None,
        last_image: Any = None,
        prompt_frames: Sequence[int] | None = None,
        **others: Any,
    ) -> FrameStream:
        """Frames uint8 `[H, W, 3]` as they are finished, in constant memory; for ever if `num_frames` is None.

        `pipe.stream(...).mp4()` gives them as bytes of an MP4, `pipe.stream(...).save("video.mp4")` writes a file.

        Args:
            prompt: see `__call__`.
            prompts_in_turn: see `__call__`.
            negative_prompt: see `__call__`.
            num_frames: length; None for a video without end.
            height: see `__call__`.
            width: see `__call__`.
            num_inference_steps: see `__call__`.
            guidance_scale: see `__call__`.
            seed: see `__call__`.
            generator: see `__call__`.
            frames_per_prompt: frames that each prompt but the last holds for; by default an even share, or a clip's
                length in a video without end.
            image: see `__call__`.
            last_image: see `__call__`.
            prompt_frames: see `__call__`; instead of `frames_per_prompt`.
            **others: see `__call__`.

        Raises:
            UsageError, BadRowError, ModelError: see `__call__`; before the first frame.
        """
        habits.refuse_arguments(others, habits.CALL, parameters_of(type(self).stream), "stream")
        if frames_per_prompt is not None and prompt_frames is not None:
            raise UsageError("frames_per_prompt and prompt_frames are both given", "give one of them")
        if frames_per_prompt is not None and not is_length(frames_per_prompt):
            raise UsageError(f"frames_per_prompt {frames_per_prompt!r} cannot be", "take a number of frames, 1 or more")
        asked = _Asked(
            prompt, prompts_in_turn, negative_prompt, None, None, num_frames,
            height, width, num_inference_steps, guidance_scale, seed_of(seed, generator), image, last_image,
            prompt_frames,
        )  # fmt: skip
        job = self._job(asked, frames_per_prompt)
        steps = self._steps(job)

        def frames() -> Generator[npt.NDArray[np.uint8]]:
            try:
                for step in steps:
                    if step.frames is not None:
                        yield from step.frames
            finally:
                steps.close()

        return FrameStream(frames(), job.backbone.spec.fps, is_endless=num_frames is None)

    def encode_prompt(self, prompt: str, negative_prompt: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of a prompt and of a negative one, `[1, L, D]` float32 on the CPU, without padding.

        Args:
            prompt: one prompt.
            negative_prompt: by default the model's own.

        Raises:
            UsageError, BadRowError: see `__call__`.
        """
        texts = texts_of(prompt, None)
        negative = self._negative(negative_prompt)
        for text in texts:
            self._model.check_prompt(text)
        embedding, negative_embedding = self._model.encode([*texts, negative])
        return embedding[None], negative_embedding[None]

    def __repr__(self) -> str:
        spec = self.backbone.spec
        return (
            f"LongVideoPipeline({spec.name!r}, profile={self.config.profile!r}, {spec.height}x{spec.width}, "
            f"{self.dtype} on {self.device})"
        )

    def __getattr__(self, name: str) -> Any:
        if name in habits.ATTRIBUTES:
            raise habits.HabitError(f"a pipeline has no {name} here", habits.ATTRIBUTES[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in habits.ATTRIBUTES:
            raise habits.HabitError(f"a pipeline has no {name} here to set", habits.ATTRIBUTES[name])
        super().__setattr__(name, value)

    # ---- what was asked for ----

    def _job(self, asked: _Asked, frames_per_prompt: float | None = None) -> _Job:
        """What is to be made. Whatever can be wrong is found before a prompt is encoded."""
        check_size(asked.height, asked.width)
        texts = texts_of(asked.prompt, asked.prompts_in_turn, asked.prompt_embeds)
        negative = self._negative(asked.negative_prompt, asked.negative_prompt_embeds)
        spec = self.spec
        num_latents = None if asked.num_frames is None else num_latents_of(spec, asked.num_frames)
        config = self._config_for(asked.num_inference_steps, asked.guidance_scale)
        config.require_end(num_latents)
        if asked.num_frames is not None and (reason := why_no_length(config, spec, asked.num_frames)):
            raise UsageError(reason, "take one of those counts")
        if reason := config.why_no_prompts(len(texts), spec):
            raise UsageError(reason, "give one prompt, or take one of these profiles")
        starts = prompt_starts_of(asked.prompt_frames, len(texts), config, spec, asked.num_frames)
        backbone = self._model.sized(asked.height, asked.width)
        warn_of_concerns(config, backbone.spec, num_latents, spec)
        if backbone is not self.backbone or config != self.config or config.one_window:
            self._model.require_room(backbone.spec, config, num_latents)
        pictures = self._pictures(asked, backbone, config)
        for text in texts:
            self._model.check_prompt(text)
        *embeddings, negative_embedding = self._embeddings(texts, negative, asked)
        latents_per_prompt = None
        if frames_per_prompt is not None:
            latents_per_prompt = max(1, round(frames_per_prompt / spec.frames_per_latent))
        return _Job(
            backbone, config, embeddings, negative_embedding, num_latents, asked.seed, latents_per_prompt, starts,
            pictures,
        )  # fmt: skip

    def _pictures(self, asked: _Asked, backbone: Backbone, config: SamplerConfig) -> Pictures | None:
        """The pictures that were given, fitted to the frames.

        Raises:
            BadRowError: if one is none that can be used, or no video can be made with it, or without.
        """
        spec = backbone.spec
        first, last = (
            None if given is None else read_picture(given, name).fitted(spec.height, spec.width)
            for name, given in (("image", asked.image), ("last_image", asked.last_image))
        )
        pictures = pictures_of(backbone, first, last)
        require_pictures(rules_of_pictures(spec, config), pictures)
        return pictures

    def _embeddings(self, texts: Sequence[str], negative: str, asked: _Asked) -> list[torch.Tensor]:
        """Of the prompts, and at last of the negative one; those that were given are made to fit."""
        wanted = [*texts, *([negative] if asked.negative_prompt_embeds is None else [])]
        found = self._model.encode(wanted) if wanted else []
        like, most = (found[0] if found else None), self._max_tokens
        if asked.prompt_embeds is not None:
            found = [embedding_of(asked.prompt_embeds, "prompt_embeds", like, most), *found]
        if asked.negative_prompt_embeds is not None:
            found = [*found, embedding_of(asked.negative_prompt_embeds, "negative_prompt_embeds", found[0], most)]
        return found

    def _negative(self, negative_prompt: Any, embedding: Any = None) -> str:
        if negative_prompt is not None and not isinstance(negative_prompt, str):
            raise UsageError(f"negative_prompt is a {type(negative_prompt).__name__}", "give a text, or None")
        if negative_prompt is not None and embedding is not None:
            raise UsageError("negative_prompt and negative_prompt_embeds are both given", "give one of them")
        return self.backbone.spec.negative_prompt if negative_prompt is None else negative_prompt

    @property
    def _max_tokens(self) -> int | None:
        """Tokens of a prompt that the model reads; None where that is not known."""
        most = getattr(getattr(self._model.text, "text", None), "max_tokens", None)
        return most if isinstance(most, int) else None

    def _check_sequence_length(self, length: Any) -> None:
        most = self._max_tokens
        if length is not None and length != most:
            reads = "as many tokens as its text encoder does" if most is None else f"{most} tokens"
            raise UsageError(
                f"max_sequence_length {length!r} cannot be: the model reads {reads}",
                "leave it out: a prompt that is too long is an error, and never cut",
            )

    def _config_for(self, num_inference_steps: Any, guidance_scale: Any) -> SamplerConfig:
        """The settings of one call."""
        said: dict[str, Any] = {}
        if num_inference_steps is not None:
            if type(num_inference_steps) is not int or num_inference_steps < 1:
                raise UsageError(
                    f"num_inference_steps {num_inference_steps!r} cannot be", "take a whole number, 1 or more"
                )
            said["num_steps"] = num_inference_steps
        if guidance_scale is not None:
            if not is_number(guidance_scale):
                raise UsageError(f"guidance_scale {guidance_scale!r} cannot be", "take a number; 1 is no guidance")
            said["guidance_scale"] = max(1.0, float(guidance_scale))
        if not said:
            return self.config
        config, spec = self.config, self.backbone.spec
        before = _overrides(config, spec) if self._sampler is None else self._sampler
        if num_inference_steps is not None and num_inference_steps != config.num_steps:
            said = levels_at(config.profile, spec, num_inference_steps, before) | said
        try:
            changed = resolve_config(config.profile, spec, {**before, **said})
            check_schedule(spec.name, changed, self._model.revision)
        except ConfigError as error:
            names = {"num_steps": "num_inference_steps", "guidance_scale": "guidance_scale"}
            call = ", ".join(f"{names[name]}={value}" for name, value in said.items() if name in names)
            raise ConfigError(
                f"with {call}: {error.message}",
                f"{error.hint}; settings that go with it are said in from_pretrained(..., sampler={{...}})",
            ) from None
        return changed

    def _steps(self, job: _Job) -> Generator[Progress]:
        yield from make_video(
            job.backbone,
            job.config,
            job.embeddings,
            job.negative_embedding,
            job.num_latents,
            job.seed,
            latents_per_prompt=job.latents_per_prompt,
            prompt_starts=job.prompt_starts,
            features=self.features,
            pictures=job.pictures,
        )


@dataclass(frozen=True)
class _Asked:
    """Arguments of a call, as they were given."""

    prompt: Any
    prompts_in_turn: Any
    negative_prompt: Any
    prompt_embeds: Any
    negative_prompt_embeds: Any
    num_frames: Any
    height: Any
    width: Any
    num_inference_steps: Any
    guidance_scale: Any
    seed: int
    image: Any = None
    last_image: Any = None
    prompt_frames: Any = None


@dataclass(frozen=True)
class _Job:
    """A video to be made; the arguments of `make_video`."""

    backbone: Backbone
    config: SamplerConfig
    embeddings: Sequence[torch.Tensor]
    negative_embedding: torch.Tensor
    num_latents: int | None
    seed: int
    latents_per_prompt: int | None
    prompt_starts: tuple[int, ...] = ()
    pictures: Pictures | None = None


def _overrides(config: SamplerConfig, spec: BackboneSpec) -> dict[str, Any]:
    """What was said over a profile, as far as settings tell that are resolved already."""
    settings = {name: value for name, value in config.to_dict().items() if name != "profile"}
    said = {"num_steps": config.num_steps, "method": config.method}
    try:
        base = resolve_config(config.profile, spec, said).to_dict()
    except ConfigError:  # only what was said makes the rest possible
        base = {"guidance_high_level": config.num_steps}
    return said | {name: value for name, value in settings.items() if name not in base or base[name] != value}
