"""A model in one process: the plan that a run makes, on a card of so many bytes; where the text encoder is, and when.

No card is here: "cpu:0" stands for one, whose size the test says, and "cpu" is the machine's memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.worker import backbone as worker
from miga import LongVideoPipeline, loaded_model
from miga.backbones.family import ModelOptions
from miga.backbones.memory_plan import RESERVE_BYTES, MemoryPlan, as_held, card_bytes, plan_memory
from miga.backbones.registry import footprint_of, load_spec
from miga.backbones.wan.spec import ARCHITECTURES, PUBLISHED
from miga.errors import ConfigError, ModelError, UsageError
from miga.profiles import resolve_config
from tests.miga.backbones.test_wan_lora import diffusers_lora

SMALL, LARGE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers"
PLENTY = 10**12


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes a card of so many bytes of "cpu:0"."""

    def of(count: int) -> None:
        monkeypatch.setattr(loaded_model, "card_memory", lambda device: None if device.index is None else count)

    return of


def on_card(model: Path, **arguments: Any) -> LongVideoPipeline:
    pipe = LongVideoPipeline.from_pretrained(str(model), device="cpu:0", **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def needed(model: Path, **arguments: Any) -> int:
    """Bytes of the model with everything as it is."""
    name = str(model)
    spec, footprint = load_spec(name), footprint_of(name)
    assert footprint is not None
    return plan_memory(footprint, spec, resolve_config("swift", spec), PLENTY, **arguments).total_bytes


def assert_alike(one: np.ndarray, other: np.ndarray) -> None:
    """But for rounding: kernels round by where weights lie in memory, and what was moved lies elsewhere."""
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).max() <= 2


def watched(pipe: LongVideoPipeline) -> list[str]:
    """What befalls the text encoder from now on."""
    encoder: Any = pipe._model.text.text.encoder  # type: ignore[attr-defined]
    told: list[str] = []
    move = encoder.to

    def to(device: Any) -> Any:
        told.append(f"to {device}")
        return move(device)

    encoder.to = to
    encoder.register_forward_pre_hook(lambda *_: told.append("encodes"))
    return told


def outcome(make: Callable[[], MemoryPlan | None]) -> MemoryPlan | ModelError | None:
    try:
        return make()
    except ModelError as error:
        return error


@pytest.mark.parametrize("model", [SMALL, LARGE])
@pytest.mark.parametrize("card_gb", [16, 24, 32, 48, 80])
@pytest.mark.parametrize("text_gpus", [0.0, 0.2])
def test_the_plan_is_the_one_that_a_run_makes(
    model: str, card_gb: int, text_gpus: float, card: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the published models; of Python's answer the words alone are other ones."""
    spec, sampler = PUBLISHED[model], resolve_config("swift", PUBLISHED[model])
    size = SimpleNamespace(total_memory=card_bytes(card_gb))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    settings: Any = SimpleNamespace(
        sampler=sampler, dtype="bfloat16", text_dtype="bfloat16", text_gpus=text_gpus, videos_per_actor=1
    )
    card(card_bytes(card_gb))
    made: list[MemoryPlan] = []
    monkeypatch.setattr(loaded_model, "load_backbone", lambda *_, **__: None)
    monkeypatch.setattr(loaded_model, "configure", lambda *_, memory, **__: made.append(memory))
    placing = loaded_model.Placing(
        device=torch.device("cpu:0"), dtype=torch.bfloat16, text_dtype=torch.bfloat16, text_stays=text_gpus > 0
    )
    wanted = outcome(lambda: worker.plan_for(ARCHITECTURES[model], spec, settings, torch.device("cuda:0")))
    found = outcome(lambda: loaded_model.LoadedModel.load(model, None, ModelOptions(), placing, spec, sampler).memory)
    if isinstance(wanted, ModelError):
        assert isinstance(found, ModelError)
        assert found.message == wanted.message
        assert "[workers]" not in found.hint
        assert found.hint == wanted.hint.replace("text_gpus = 0 in [workers]", "text_gpus = 0")
        assert not made
    else:
        assert found == wanted
        assert made == [wanted]


def test_the_text_encoder_visits_where_there_is_room() -> None:
    """24 GB: 1.3B's network and VAE are 7.1 GB, the encoder 11.4; of 14B the network alone is 14.5."""
    for model, gigabytes, dtype, has_room in (
        (SMALL, 24, torch.bfloat16, True),
        (SMALL, 24, torch.float32, False),
        (SMALL, 32, torch.float32, True),
        (LARGE, 24, torch.bfloat16, False),
        (LARGE, 48, torch.bfloat16, True),
    ):
        spec = PUBLISHED[model]
        plan = plan_memory(
            ARCHITECTURES[model], spec, resolve_config("swift", spec), card_bytes(gigabytes), text_dtype=dtype
        )
        assert plan.has_room_to_encode is has_room, (model, gigabytes, dtype)


@pytest.mark.slow
def test_a_card_with_room_for_everything(tiny_model: Path, card: Callable[[int], None]) -> None:
    card(PLENTY)
    pipe = on_card(tiny_model)
    assert pipe.memory is not None
    assert (pipe.memory.card_bytes, pipe.memory.decodes_beside) == (PLENTY, True)
    assert pipe.memory.total_bytes == needed(tiny_model, dtype=torch.float32)
    assert pipe.device == pipe.backbone.device == torch.device("cpu:0")
    assert pipe._model.text.device == torch.device("cpu")
    told = watched(pipe)
    video = pipe("a red circle", num_frames=29)
    assert told == ["to cpu:0", "encodes", "encodes", "to cpu"], "it leaves before the network is called"
    pipe("a red circle", num_frames=29)
    assert len(told) == 4, "no distinct prompt is encoded twice"
    plain = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")
    assert_alike(video.pixels, plain("a red circle", num_frames=29).pixels)
    assert plain.memory is None


def test_a_card_without_room_for_the_text_encoder(tiny_model: Path, card: Callable[[int], None]) -> None:
    card(PLENTY)
    pipe = on_card(tiny_model)
    assert pipe.memory is not None
    pipe._model.memory = replace(pipe.memory, text_bytes=PLENTY)
    told = watched(pipe)
    pipe.encode_prompt("a red circle")
    assert told == ["encodes", "encodes"]


def test_a_card_that_others_have_filled(tiny_model: Path, card: Callable[[int], None]) -> None:
    card(PLENTY)
    pipe = on_card(tiny_model)
    told = watched(pipe)

    def full(*_: Any) -> None:
        """Once, on the card."""
        if told[-2:] == ["to cpu:0", "encodes"]:
            raise torch.OutOfMemoryError("out of memory")

    pipe._model.text.text.encoder.register_forward_pre_hook(full)  # type: ignore[attr-defined]
    found = pipe.encode_prompt("a red circle")
    assert told == ["to cpu:0", "encodes", "to cpu", "encodes", "encodes"]
    plain = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu").encode_prompt("a red circle")
    assert torch.equal(found[0], plain[0])


def test_a_text_encoder_that_stays_unless_it_is_let_go(tiny_model: Path, card: Callable[[int], None]) -> None:
    card(PLENTY)
    pipe = on_card(tiny_model, text_gpus=0.2)
    assert pipe.memory is not None
    assert pipe.memory.text_on_card
    assert pipe.memory.total_bytes == needed(tiny_model, dtype=torch.float32, text_on_card=True)
    assert pipe._model.text.device == torch.device("cpu:0")
    told = watched(pipe)
    pipe.encode_prompt("a red circle")
    assert told == ["encodes", "encodes"]
    pipe.enable_model_cpu_offload(device="cpu:0")
    assert told[2:] == ["to cpu"]
    assert not pipe.memory.text_on_card
    pipe.encode_prompt("a blue circle")
    assert told[3:] == ["to cpu:0", "encodes", "to cpu"]


@pytest.mark.slow
def test_a_card_that_the_model_has_to_be_made_small_for(tiny_model: Path, card: Callable[[int], None]) -> None:
    card(needed(tiny_model, dtype=torch.float32) - 1)
    pipe = on_card(tiny_model)
    assert pipe.memory is not None
    assert not pipe.memory.decodes_beside
    assert not pipe.backbone.decodes_beside  # type: ignore[attr-defined]
    plain = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")
    assert_alike(pipe("x", num_frames=29).pixels, plain("x", num_frames=29).pixels)


def test_a_card_that_is_too_small_says_what_would_fit(tiny_model: Path, card: Callable[[int], None]) -> None:
    card(10**9)
    with pytest.raises(ModelError, match=r"the card has 1\.0 GB") as caught:
        on_card(tiny_model)
    assert caught.value.hint.startswith("what would fit: a card of 8 GB")


def test_a_machine_that_is_too_small_says_what_would_fit(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a card all is in this process, whose own memory is taken already."""
    everything = needed(tiny_model, dtype=torch.float32, text_on_card=True) - 2 * RESERVE_BYTES
    monkeypatch.setattr(loaded_model, "available_memory", lambda: everything)
    assert LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu").memory is None
    monkeypatch.setattr(loaded_model, "available_memory", lambda: everything - 1)
    with pytest.raises(ModelError, match=r"32x32 needs .* this machine has 0\.\d GB left") as caught:
        LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")
    assert 'text_dtype = "bfloat16"' in caught.value.hint
    monkeypatch.setattr(loaded_model, "available_memory", lambda: everything // 4)
    with pytest.raises(ModelError) as caught:
        LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")
    assert caught.value.hint.startswith("all of it in bfloat16 needs")


def test_a_machine_that_does_not_hold_the_text_encoder_says_what_would_fit(
    tiny_model: Path, card: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    card(PLENTY)
    footprint = footprint_of(str(tiny_model))
    assert footprint is not None
    for available, fits in (
        (2 * footprint.text_parameters, 'text_dtype = "bfloat16", or text_gpus = 1, which leaves it on the card'),
        (2 * footprint.text_parameters - 1, "text_gpus = 1, which leaves it on the card"),
    ):
        monkeypatch.setattr(loaded_model, "available_memory", lambda available=available: available)
        with pytest.raises(ModelError, match=r"in torch\.float32, and this machine has") as caught:
            on_card(tiny_model)
        assert caught.value.hint == f"what would fit: {fits}"
    assert on_card(tiny_model, text_gpus=1).device == torch.device("cpu:0")


def test_moved_to_a_card_it_is_held_as_if_it_had_been_loaded_there(
    tiny_model: Path, card: Callable[[int], None]
) -> None:
    card(needed(tiny_model, dtype=torch.float32) - 1)
    pipe = LongVideoPipeline.from_pretrained(str(tiny_model), device_map="cpu")
    assert pipe.memory is None
    assert pipe.to("cpu:0") is pipe
    assert pipe.memory == on_card(tiny_model).memory
    assert pipe.backbone.device == torch.device("cpu:0")
    assert pipe._model.text.device == torch.device("cpu")
    assert not pipe.backbone.decodes_beside  # type: ignore[attr-defined]
    pipe.to("cpu:0")
    pipe.to(device="cpu")
    assert (pipe.memory, pipe.device) == (None, torch.device("cpu"))


def test_a_card_that_it_does_not_fit_leaves_it_where_it_was(tiny_model: Path, card: Callable[[int], None]) -> None:
    card(10**9)
    pipe = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")
    with pytest.raises(ModelError, match="the card has"):
        pipe.to("cpu:0")
    assert (pipe.device, pipe.backbone.device) == (torch.device("cpu"), torch.device("cpu"))
    assert pipe("x", num_frames=1).num_calls


def test_fp8_stays_where_it_is_moved(tiny_model: Path, card: Callable[[int], None]) -> None:
    """Of bfloat16; a second wrapping of the same layers would widen them twice."""
    name = str(tiny_model)
    spec, footprint = load_spec(name), footprint_of(name)
    assert footprint is not None
    sampler = resolve_config("swift", spec)
    ways = itertools.product((True, False), (torch.float32, torch.bfloat16), (True, False))
    card(min(as_held(plan_of(*way), footprint, spec, sampler).total_bytes for way in ways))
    pipe = LongVideoPipeline.from_pretrained(name, device="cpu:0", torch_dtype=torch.bfloat16)
    weight = pipe.backbone.network.blocks[0].ffn.net[2].weight  # type: ignore[attr-defined]
    assert weight.dtype == torch.float8_e4m3fn
    assert pipe.memory is not None
    assert pipe.memory.fp8
    before = pipe("x", num_frames=5).pixels
    hooks = len(pipe.backbone.network.blocks[0].ffn.net[2]._diffusers_hook.hooks)  # type: ignore[attr-defined]
    pipe.to("cpu")
    pipe.to("cpu:0")
    assert len(pipe.backbone.network.blocks[0].ffn.net[2]._diffusers_hook.hooks) == hooks  # type: ignore[attr-defined]
    assert np.array_equal(pipe("x", num_frames=5).pixels, before)


def plan_of(decodes_beside: bool, vae_dtype: torch.dtype, fp8: bool) -> MemoryPlan:
    zero = dict.fromkeys(("card_bytes", "transformer_bytes", "vae_bytes", "queue_bytes", "activations_bytes"), 0)
    return MemoryPlan(
        **zero, text_bytes=0, dtype=torch.bfloat16, fp8=fp8, vae_dtype=vae_dtype, decodes_beside=decodes_beside,
        text_dtype=torch.bfloat16,
    )  # fmt: skip


@pytest.mark.slow
def test_a_call_that_does_not_fit_as_the_model_is_held(tiny_model: Path, card: Callable[[int], None]) -> None:
    card(needed(tiny_model, dtype=torch.float32))
    pipe = on_card(tiny_model)
    with pytest.raises(ModelError, match="a video of 256x256 in 8 steps needs") as caught:
        pipe("x", num_frames=5, height=256, width=256)
    assert "from_pretrained(..., height=256, width=256" in caught.value.hint
    with pytest.raises(ModelError, match="in 400 steps needs"):
        pipe("x", num_frames=5, num_inference_steps=400)
    with pytest.raises(ModelError, match="in 400 steps needs"):
        LongVideoPipeline.from_pipe(pipe, sampler={"num_steps": 400})
    assert pipe("x", num_frames=5, height=16).pixels.shape == (5, 16, 32, 3)


def test_dtypes(tiny_model: Path) -> None:
    def loaded(**arguments: Any) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
        pipe = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu", **arguments)
        text: Any = pipe._model.text
        backbone: Any = pipe.backbone
        assert pipe.dtype == backbone.network.dtype
        return backbone.network.dtype, text.text.encoder.dtype, backbone.vae.dtype

    full, half = torch.float32, torch.bfloat16
    assert loaded() == (full, full, full)
    assert loaded(dtype=half) == (half, full, full)
    assert loaded(text_dtype="bfloat16") == (full, half, full)
    assert loaded(torch_dtype=half) == (half, half, full), "of diffusers' the text encoder's too"
    assert loaded(torch_dtype="bfloat16", text_dtype=full) == (half, full, full)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda"}, "no GPU here"),
        ({"device": "cuda:7"}, "no GPU here"),
        ({"device": "gpu"}, "none that PyTorch knows"),
        ({"device": 3.5}, "none that PyTorch knows"),
        ({"device_map": "auto"}, "spreads a model"),
        ({"device_map": "balanced"}, "spreads a model"),
        ({"device_map": {"transformer": "cpu", "vae": "cuda"}}, "spreads a model"),
        ({"device_map": "cpu", "device": "cpu"}, "both given"),
        ({"dtype": "float64"}, "dtype 'float64' cannot be"),
        ({"torch_dtype": torch.int8}, "torch_dtype torch.int8 cannot be"),
        ({"text_dtype": "float16"}, "text_dtype 'float16' cannot be"),
        ({"dtype": "float32", "torch_dtype": torch.bfloat16}, "dtype is torch.float32 and torch_dtype"),
        ({"text_gpus": 2}, "text_gpus 2 cannot be"),
        ({"text_gpus": "1"}, "text_gpus '1' cannot be"),
        ({"profile": "swfit"}, "unknown profile 'swfit'"),
        ({"sampler": {"num_stesp": 4}}, "num_stesp"),
        ({"sampler": {"num_steps": 0}}, "num_steps"),
        ({"variant": "fp16"}, "takes no variant"),
        ({"scheduler": object()}, "takes no scheduler"),
        ({"use_safetensors": False}, "takes no use_safetensors"),
        ({"profil": "swift"}, "did you mean 'profile'"),
        ({"lora": 3}, "lora is a int"),
        ({"lora": [3]}, "lora is a list"),
        ({"height": "32"}, "height '32' cannot be"),
        ({"attention": None}, "attention is a NoneType"),
        ({"compile": "yes"}, "compile is a str"),
    ],
)
def test_what_cannot_be_is_said_before_weights_are_loaded(
    tiny_model: Path, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(loaded_model, "load_backbone", never)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError) as caught:
        LongVideoPipeline.from_pretrained(str(tiny_model), **arguments)
    assert message in str(caught.value)
    assert caught.value.hint


def test_names_of_models(tiny_model: Path) -> None:
    assert LongVideoPipeline.from_pretrained(tiny_model, device="cpu").backbone.spec.name == str(tiny_model)
    for name in (None, 3, b"sprites", ""):
        with pytest.raises(UsageError, match=r"model .* cannot be"):
            LongVideoPipeline.from_pretrained(name)  # type: ignore[arg-type]


def test_a_misspelt_profile_is_said_before_the_model_is_looked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        LongVideoPipeline.from_pretrained("nobody/nowhere", profile="swfit")
    assert "did you mean 'swift'" in caught.value.hint


def test_what_asks_for_nothing_is_let_pass(tiny_model: Path) -> None:
    pipe = LongVideoPipeline.from_pretrained(
        str(tiny_model), device_map={"": "cpu"}, variant=None, use_safetensors=True, low_cpu_mem_usage=True, token=None
    )
    assert pipe.device == torch.device("cpu")


# ---- LoRAs ----


def test_a_lora_added_later_is_the_one_that_was_loaded_with(tiny_model: Path, tmp_path: Path) -> None:
    diffusers_lora(tmp_path / "style.safetensors")
    file = str(tmp_path / "style.safetensors")
    first = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu", lora=f"{file}:0.5")
    pipe = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")
    plain = pipe("x", num_frames=5).pixels
    pipe.load_lora_weights(str(tmp_path), weight_name="style.safetensors", adapter_name="style", scale=0.5)
    assert pipe.backbone.spec.revision == first.backbone.spec.revision
    with_lora = pipe("x", num_frames=5).pixels
    assert np.array_equal(with_lora, first("x", num_frames=5).pixels)
    assert not np.array_equal(with_lora, plain)
    assert pipe("x", num_frames=5, height=48).pixels.shape[1] == 48


def test_loras_that_cannot_be(tiny_model: Path, tmp_path: Path, card: Callable[[int], None]) -> None:
    pipe = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")
    revision = pipe.backbone.spec.revision
    with pytest.raises(UsageError, match="named by its file"):
        pipe.load_lora_weights({"a": torch.zeros(1)})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="scale 'much'"):
        pipe.load_lora_weights("style.safetensors", scale="much")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="did you mean 'weight_name'"):
        pipe.load_lora_weights("style.safetensors", weights_name="x")
    with pytest.raises(ModelError, match="does not exist"):
        pipe.load_lora_weights(str(tmp_path / "nothing.safetensors"))
    file = diffusers_lora(tmp_path / "wrong.safetensors", width=32)
    with pytest.raises(ModelError, match="shape"):
        pipe.load_lora_weights(str(file))
    assert pipe.backbone.spec.revision == revision
    card(PLENTY)
    held = on_card(tiny_model)
    assert held.memory is not None
    held._model._rounded = replace(held.memory, fp8=True)
    diffusers_lora(tmp_path / "style.safetensors")
    with pytest.raises(ModelError, match="fp8 already") as caught:
        held.load_lora_weights(str(tmp_path / "style.safetensors"))
    assert "from_pretrained(..., lora=" in caught.value.hint
