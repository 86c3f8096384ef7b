"""What people write who know diffusers: taken and carried out, or refused with what to write instead."""

from __future__ import annotations

import copy
import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from miga import LongVideoPipeline, habits
from miga.backbones.registry import load_backbone
from miga.cost import count_calls
from miga.errors import ConfigError, ModelError, UsageError
from miga.profiles import levels_at, resolve_config

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
SHORT: dict[str, Any] = {"num_frames": 5}


def loaded(model: Path, **arguments: Any) -> LongVideoPipeline:
    pipe = LongVideoPipeline.from_pretrained(str(model), device="cpu", **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> LongVideoPipeline:
    return loaded(tiny_model)


def parameters(function: Any) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls", "others", "where")}


# ---- nothing of diffusers' pipeline is left without an answer ----


def test_every_argument_of_a_call_has_an_answer() -> None:
    theirs = parameters(WanPipeline.__call__)
    assert theirs <= parameters(LongVideoPipeline.__call__) | habits.CALL.keys()
    assert not habits.CALL.keys() & parameters(LongVideoPipeline.__call__)


def test_every_habit_of_loading_and_placing_has_an_answer() -> None:
    kinds = ("enable_", "set_", "load_lora", "fuse", "unfuse", "unload", "delete", "disable_lora", "save_", "push_")
    theirs = {name for name in dir(WanPipeline) if name.startswith(kinds)}
    unknown = theirs - set(dir(LongVideoPipeline)) - habits.ATTRIBUTES.keys()
    inner = {"set_attention_slice", "set_use_memory_efficient_attention_xformers", "enable_lora", "save_config",
             "save_lora_weights", "enable_lora_hotswap", "fused_loras", "load_lora_into_transformer"}  # fmt: skip
    assert unknown <= inner
    assert not habits.ATTRIBUTES.keys() & set(dir(LongVideoPipeline))
    assert not habits.LOAD.keys() & parameters(LongVideoPipeline.from_pretrained)


def test_the_page_has_every_one() -> None:
    text = PAGE.read_text(encoding="utf-8")
    taken = parameters(LongVideoPipeline.__call__) | parameters(LongVideoPipeline.from_pretrained)
    names = {*habits.CALL, *habits.LOAD, *habits.ATTRIBUTES, *taken}
    assert {name for name in names if f"`{name}" not in text and f"{name}=" not in text} == set()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", habits.CALL)
def test_arguments_that_mean_nothing_here(pipe: LongVideoPipeline, name: str) -> None:
    for call in (pipe, pipe.stream):
        with pytest.raises(UsageError, match=f"takes no {name}") as caught:
            call("a red circle", **SHORT, **{name: object()})  # type: ignore[operator]
        assert caught.value.hint == habits.CALL[name]
    pipe("a red circle", num_frames=1, **{name: None})


@pytest.mark.parametrize("name", habits.ATTRIBUTES)
def test_attributes_that_are_not_here(pipe: LongVideoPipeline, name: str) -> None:
    with pytest.raises(UsageError, match=f"no {name} here") as caught:
        getattr(pipe, name)
    assert caught.value.hint == habits.ATTRIBUTES[name]
    assert not hasattr(pipe, name)
    with pytest.raises(UsageError, match=f"no {name} here to set"):
        setattr(pipe, name, None)


def test_a_pipeline_is_an_object_like_any(pipe: LongVideoPipeline) -> None:
    assert not hasattr(pipe, "_repr_html_")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipe.nothing
    again = copy.copy(pipe)
    assert again.backbone is pipe.backbone
    assert repr(pipe).endswith("profile='swift', 32x32, torch.float32 on cpu)")
    assert "\n" not in repr(pipe)


# ---- several prompts ----


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_list_of_prompts_shows_both_ways_of_writing(pipe: LongVideoPipeline, kind: type, count: int) -> None:
    prompts = kind(["a red circle", "a blue circle", "a green circle"][:count])
    for call in (pipe, pipe.stream):
        with pytest.raises(UsageError, match=f"a {kind.__name__} of {count}: in diffusers that asks for") as caught:
            call(prompts)  # type: ignore[operator]
        assert "pipe(prompts_in_turn=['a red circle'" in caught.value.hint
        assert "[pipe(text) for text in ['a red circle'" in caught.value.hint


@pytest.mark.slow
def test_both_ways_of_writing_do_what_they_say(pipe: LongVideoPipeline) -> None:
    prompts = ["a red circle", "a blue square"]
    turns = pipe(prompts_in_turn=prompts, num_frames=61)
    assert turns.pixels.shape[0] == 61
    assert np.array_equal(np.stack(list(pipe.stream(prompts_in_turn=prompts, num_frames=61))), turns.pixels)
    alone = [pipe(text, num_frames=61) for text in prompts]
    assert not np.array_equal(alone[0].pixels, alone[1].pixels)
    assert not np.array_equal(turns.pixels, alone[0].pixels)


# ---- what a call is told ----


@pytest.mark.slow
def test_steps_of_one_call(pipe: LongVideoPipeline, tiny_model: Path) -> None:
    video = pipe("x", num_inference_steps=12, num_frames=29)
    levels = levels_at("swift", pipe.backbone.spec, 12, {})
    other = loaded(tiny_model, sampler={"num_steps": 12, **levels})
    assert np.array_equal(video.pixels, other("x", num_frames=29).pixels)
    assert video.num_calls == count_calls(other.config, 8).total > pipe("x", num_frames=29).num_calls
    assert pipe.config.num_steps == 8, "the next call is as before"
    assert np.array_equal(np.stack(list(pipe.stream("x", num_inference_steps=12, num_frames=29))), video.pixels)


@pytest.mark.slow
def test_guidance_of_one_call(pipe: LongVideoPipeline, tiny_model: Path) -> None:
    video = pipe("x", guidance_scale=4, **SHORT)
    assert np.array_equal(video.pixels, loaded(tiny_model, sampler={"guidance_scale": 4.0})("x", **SHORT).pixels)
    without = loaded(tiny_model, sampler={"guidance_scale": 1.0})("x", **SHORT).pixels
    for scale in (1, 1.0, 0.0, 0.5):
        assert np.array_equal(pipe("x", guidance_scale=scale, **SHORT).pixels, without), "as in diffusers"
    assert not np.array_equal(pipe("x", **SHORT).pixels, without)


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "handoff_level"), [("paper", 2), ("swift", 4)])
def test_what_was_said_of_the_sampler_holds_in_every_call(tiny_model: Path, profile: str, handoff_level: int) -> None:
    said = {"handoff_level": handoff_level, "num_steps": 6}
    pipe = loaded(tiny_model, profile=profile, sampler=said)
    built = LongVideoPipeline(load_backbone(str(tiny_model), device="cpu"), pipe.config)
    built.set_progress_bar_config(disable=True)
    wanted = resolve_config(profile, pipe.backbone.spec, {**said, "num_steps": 9})
    for each in (pipe, built):
        assert each._config_for(9, None) == wanted
        assert each._config_for(None, 3.0) == resolve_config(
            profile, pipe.backbone.spec, {**said, "guidance_scale": 3.0}
        )
    assert np.array_equal(
        built("x", num_inference_steps=9, **SHORT).pixels, pipe("x", num_inference_steps=9, **SHORT).pixels
    )


@pytest.mark.slow
def test_the_size_of_one_call(pipe: LongVideoPipeline, tiny_model: Path) -> None:
    video = pipe("x", height=48, width=64, **SHORT)
    assert video.pixels.shape == (5, 48, 64, 3)
    assert np.array_equal(video.pixels, loaded(tiny_model, height=48, width=64)("x", **SHORT).pixels)
    assert next(pipe.stream("x", height=48, **SHORT)).shape == (48, 32, 3)
    assert pipe("x", **SHORT).pixels.shape == (5, 32, 32, 3), "the next call is as before"
    with pytest.raises(ModelError, match="multiple of 16"):
        pipe("x", height=50)


def test_seeds_of_generators(pipe: LongVideoPipeline) -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(7)

    first = generator()
    one, two = pipe("x", generator=first, **SHORT), pipe("x", generator=first, **SHORT)
    again = pipe("x", generator=[generator()], **SHORT)
    assert np.array_equal(one.pixels, again.pixels)
    assert one.seed == again.seed != two.seed
    assert not np.array_equal(one.pixels, two.pixels), "a generator goes on, as in diffusers"
    assert np.array_equal(pipe("x", seed=one.seed, **SHORT).pixels, one.pixels)
    assert np.array_equal(np.stack(list(pipe.stream("x", generator=generator(), **SHORT))), one.pixels)


@pytest.mark.slow
def test_embeddings_in_place_of_texts(pipe: LongVideoPipeline) -> None:
    wanted = pipe("a red circle", negative_prompt="grey", **SHORT).pixels
    prompt, negative = pipe.encode_prompt("a red circle", "grey")
    assert prompt.ndim == 3
    for given in ((prompt, negative), (prompt[0], negative[0]), (prompt.double(), negative)):
        found = pipe(prompt_embeds=given[0], negative_prompt_embeds=given[1], **SHORT).pixels
        assert np.array_equal(found, wanted)
    assert np.array_equal(pipe("a red circle", negative_prompt_embeds=negative, **SHORT).pixels, wanted)
    assert np.array_equal(pipe(prompt_embeds=prompt, negative_prompt="grey", **SHORT).pixels, wanted)
    padded = torch.nn.functional.pad(prompt, (0, 0, 0, 512 - prompt.shape[1]))
    found = pipe(prompt_embeds=padded, negative_prompt="grey", **SHORT).pixels
    assert np.abs(found.astype(int) - wanted).max() <= 2, "diffusers pads with zeros"


def test_embeddings_of_diffusers(pipe: LongVideoPipeline, tiny_model: Path) -> None:
    """As its own pipeline encodes them."""
    theirs = WanPipeline.from_pretrained(tiny_model, transformer=None, vae=None)
    prompt, negative = theirs.encode_prompt("a red circle", "grey", device="cpu")
    found = pipe(prompt_embeds=prompt, negative_prompt_embeds=negative, **SHORT).pixels
    wanted = pipe("a red circle", negative_prompt="grey", **SHORT).pixels
    assert np.abs(found.astype(int) - wanted).max() <= 2


def test_output_types(pipe: LongVideoPipeline) -> None:
    pixels = pipe("x", **SHORT).pixels
    assert np.array_equal((pipe("x", output_type="np", **SHORT).frames * 255).round(), pixels)
    tensor = pipe("x", output_type="pt", **SHORT).frames
    assert (tensor.shape, tensor.dtype) == ((5, 3, 32, 32), torch.float32)
    assert [image.size for image in pipe("x", output_type="pil", **SHORT).frames] == [(32, 32)] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "latent"}, "output_type 'latent' cannot be"),
        ({"output_type": "mp4"}, "output_type 'mp4' is unknown"),
        ({"output_type": ["np"]}, "is unknown"),
        ({"num_videos_per_prompt": 2}, "a call makes one video"),
        ({"num_videos_per_prompt": "many"}, "a call makes one video"),
        ({"max_sequence_length": 226}, "the model reads 512 tokens"),
        ({"num_inference_steps": 0}, "num_inference_steps 0 cannot be"),
        ({"num_inference_steps": 8.0}, "num_inference_steps 8.0 cannot be"),
        ({"num_inference_steps": 1001}, "with num_inference_steps=1001: sampler.num_steps"),
        ({"guidance_scale": "5"}, "guidance_scale '5' cannot be"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan cannot be"),
        ({"guidance_scale": 1e6}, "with guidance_scale=1000000.0: sampler.guidance_scale"),
        ({"height": 32.0}, "height 32.0 cannot be"),
        ({"width": -16}, "width -16 cannot be"),
        ({"generator": 3}, "generator is a int"),
        ({"generator": [torch.Generator()] * 2}, "generator is a list"),
        ({"generator": torch.Generator(), "seed": 3}, "seed and generator are both given"),
        ({"prompt_embeds": torch.zeros(3, 16)}, "more than one of prompt"),
        ({"prompt": None, "prompt_embeds": [1.0]}, "no tensor of floating-point numbers"),
        ({"prompt": None, "prompt_embeds": torch.zeros(3, 16, dtype=torch.int64)}, "no tensor of floating-point"),
        ({"prompt": None, "prompt_embeds": torch.zeros(2, 3, 16)}, "has the shape [2, 3, 16], not [L, "),
        ({"prompt": None, "prompt_embeds": torch.zeros(3, 7)}, "has the shape [3, 7], not [L, "),
        ({"prompt": None, "prompt_embeds": torch.zeros(0, 16)}, "has the shape [0, 16]"),
        ({"negative_prompt": "x", "negative_prompt_embeds": torch.zeros(3, 16)}, "are both given"),
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"steps": 3}, "takes no steps"),
    ],
)
def test_arguments_that_cannot_be(pipe: LongVideoPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        pipe(**({"prompt": "a red circle", **SHORT} | arguments))
    assert message in str(caught.value)
    assert caught.value.hint


def test_embeddings_that_cannot_be(pipe: LongVideoPipeline) -> None:
    prompt, _ = pipe.encode_prompt("x")
    with pytest.raises(UsageError, match="NaN or infinity"):
        pipe(prompt_embeds=prompt * float("nan"), **SHORT)
    with pytest.raises(UsageError, match="has 600 tokens, and the model reads 512"):
        pipe(prompt_embeds=prompt[0, :1].expand(600, -1), **SHORT)


def test_arguments_that_change_nothing(pipe: LongVideoPipeline) -> None:
    wanted = pipe("x", **SHORT).pixels
    found = pipe(
        "x", latents=None, attention_kwargs=None, return_dict=True, num_videos_per_prompt=1, max_sequence_length=512,
        callback_on_step_end=None, generator=None, **SHORT,
    )  # fmt: skip
    assert np.array_equal(found.pixels, wanted)


def test_another_profile_of_the_same_model(pipe: LongVideoPipeline, tiny_model: Path) -> None:
    other = LongVideoPipeline.from_pipe(pipe, profile="fifo")
    assert other.backbone is pipe.backbone
    assert np.array_equal(other("x", **SHORT).pixels, loaded(tiny_model, profile="fifo")("x", **SHORT).pixels)
    with pytest.raises(ConfigError, match="unknown profile"):
        LongVideoPipeline.from_pipe(pipe, profile="fiffo")


def test_devices_and_dtypes_of_a_loaded_model(pipe: LongVideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pipe.to("cpu") is pipe.to(torch.device("cpu")) is pipe.to("cpu", torch.float32) is pipe
    for move in (
        lambda: pipe.to("cuda"),
        lambda: pipe.to(device="cuda:1"),
        pipe.enable_model_cpu_offload,
        lambda: pipe.enable_model_cpu_offload(gpu_id=1),
    ):
        with pytest.raises(UsageError, match="no GPU here"):
            move()
    with pytest.raises(UsageError, match=r"loaded in torch\.float32") as caught:
        pipe.to("cpu", torch.bfloat16)
    assert "torch_dtype=torch.bfloat16" in caught.value.hint
    with pytest.raises(UsageError, match="takes no devise"):
        pipe.to(devise="cpu")


# ---- progress ----


@pytest.mark.parametrize("profile", ["swift", "paper", "fifo", "scalingnoise"])
@pytest.mark.sampled(4)
def test_progress_counts_calls_of_the_network(tiny_model: Path, profile: str) -> None:
    """Those that are really made, by a count of the network's own; and as many as were known before the first."""
    pipe = loaded(tiny_model, profile=profile)
    windows: list[int] = []
    network: Any = pipe.backbone.network  # type: ignore[attr-defined]
    pipe.backbone.spec.sampler["guidance_scale"] = 1.0
    pipe.config = resolve_config(profile, pipe.backbone.spec, {"guidance_scale": 1.0})
    handle = network.patch_embedding.register_forward_hook(lambda *_: windows.append(1))
    told: list[tuple[int, int]] = []
    video = pipe("x", num_frames=61, on_progress=lambda done, total: told.append((done, total)))
    handle.remove()
    count = count_calls(pipe.config, 16)
    assert [done for done, _ in told] == list(range(1, len(windows) + 1))
    assert told[0][1] == count.total
    assert told[-1] == (video.num_calls, count.total + count.per_search * sum(video.trace.searched))
    assert all(done <= total for done, total in told)


@pytest.mark.slow
def test_the_bar(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")
    capsys.readouterr()
    video = pipe("x", **SHORT)
    assert f"{video.num_calls}/{video.num_calls}" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe("x", **SHORT)
    assert capsys.readouterr() == ("", "")
    shown = io.StringIO()
    pipe.set_progress_bar_config(file=shown, desc="corgi")
    pipe("x", **SHORT)
    assert "corgi: 100%" in shown.getvalue()
    list(pipe.stream("x", **SHORT))
    assert capsys.readouterr() == ("", "")


def test_a_video_can_be_ended(pipe: LongVideoPipeline) -> None:
    class EnoughError(Exception):
        pass

    def on_progress(done: int, total: int) -> None:
        if done == 3:
            raise EnoughError

    with pytest.raises(EnoughError):
        pipe("x", num_frames=61, on_progress=on_progress)
    assert pipe("x", **SHORT).pixels.shape[0] == 5
