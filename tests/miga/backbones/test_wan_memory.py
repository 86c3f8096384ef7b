"""Memory plans: what is counted is what modules of full size hold, and a plan says what it chose and why."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from miga.backbones.base import BackboneSpec
from miga.backbones.memory_plan import (
    MemoryPlan,
    available_memory,
    card_bytes,
    check_machine_memory,
    plan_memory,
    queue_bytes,
)
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.backbones.wan.positions import positions, use_positions
from miga.backbones.wan.spec import ARCHITECTURES, PUBLISHED, WanArchitecture, load_architecture
from miga.backbones.wan.vae import WanFrameDecoder
from miga.errors import ModelError
from miga.frame_attention import FrameCall
from miga.methods.freelong.attention import SpectralAttention
from miga.methods.freenoise.attention import WindowedAttention
from miga.profiles import resolve_config
from tests.alive_bytes import AliveBytes, shapes_only
from tests.tiny_wan import SETTINGS, load_pipeline

SMALL, LARGE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers"
HEADS = {SMALL: 12, LARGE: 40}


def transformer(name: str, **overrides: Any) -> WanTransformer3DModel:
    architecture = ARCHITECTURES[name]
    config = {"num_layers": architecture.num_layers, **overrides}
    return WanTransformer3DModel(num_attention_heads=HEADS[name], ffn_dim=architecture.ffn_width, **config)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_weights_of_the_published_models(name: str) -> None:
    umt5_xxl = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        assert ARCHITECTURES[name].transformer_parameters == count(transformer(name))
        assert ARCHITECTURES[name].vae_parameters == count(AutoencoderKLWan())
        assert ARCHITECTURES[name].text_parameters == count(UMT5EncoderModel(umt5_xxl))


def test_weights_of_a_folder(wan_folder: Path) -> None:
    architecture = load_architecture(wan_folder)
    pipeline = load_pipeline(wan_folder)
    assert architecture.transformer_parameters == count(pipeline.transformer)
    assert architecture.vae_parameters == count(pipeline.vae)


def test_fp8_weights() -> None:
    with torch.device("meta"):
        model = transformer(SMALL, num_layers=2).bfloat16()
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert replace(ARCHITECTURES[SMALL], num_layers=2).transformer_bytes(fp8=True) == held


@pytest.mark.parametrize("name", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.slow
def test_activations_of_a_call(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.Tensor, "unique", lambda t, **_: (t, torch.arange(len(t))))
    with shapes_only(dtype):
        model = transformer(name, num_layers=1)
        use_per_latent_timesteps(model)
        with AliveBytes() as alive:
            model(torch.randn(1, 16, 21, 60, 104), torch.full((1, 21), 500), torch.randn(1, 512, 4096))
    planned = 32760 * ARCHITECTURES[name].activation_bytes_per_token(dtype)
    assert alive.peak <= planned <= 1.1 * alive.peak


@pytest.mark.slow
@pytest.mark.parametrize("attention", [None, WindowedAttention(21, 5), SpectralAttention(21)])
def test_activations_of_a_call_over_a_whole_video(monkeypatch: pytest.MonkeyPatch, attention: Any) -> None:
    """Whatever stands in for attention, 41 latents at once take what is planned for 41."""
    monkeypatch.setattr(torch.Tensor, "unique", lambda t, **_: (t, torch.arange(len(t))))
    frames = None if attention is None else FrameCall(attention, (500.0,))
    with shapes_only(torch.bfloat16):
        model = transformer(SMALL, num_layers=1)
        use_per_latent_timesteps(model)
        use_positions(model)
        with AliveBytes() as alive, positions(None, None, frames):
            model(torch.randn(1, 16, 41, 60, 104), torch.full((1, 41), 500), torch.randn(1, 512, 4096))
    planned = ARCHITECTURES[SMALL].window_bytes(PUBLISHED[SMALL], 41, torch.bfloat16)
    assert alive.peak <= planned <= 1.1 * alive.peak


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decoding(dtype: torch.dtype) -> None:
    architecture, cells = WanArchitecture(), 60 * 104
    with shapes_only(dtype):
        decoder = WanFrameDecoder(AutoencoderKLWan())
        with AliveBytes() as alive:
            for _ in range(3):
                decoder._decode_next(torch.randn(16, 60, 104))
        assert decoder._features is not None
        cache = sum(entry.nbytes for entry in decoder._features if isinstance(entry, torch.Tensor))
    assert cache == dtype.itemsize * cells * architecture.vae_cache_per_cell
    planned = dtype.itemsize * cells * architecture.vae_peak_per_cell
    assert alive.peak - cache <= planned <= 1.15 * (alive.peak - cache)


def test_the_queue_of_the_paper() -> None:
    """315 latents of 480x832 with UniPC's history are 480 MiB; Stage 2's wavefront and the new latents come on top."""
    spec = PUBLISHED[SMALL]
    config = resolve_config("paper", spec)
    per_latent = 16 * 60 * 104 * 4
    assert 315 * 4 * per_latent == pytest.approx(480 * 2**20, rel=0.01)
    assert queue_bytes(spec, config) == (315 + 9 * 20) * 5 * per_latent


def plan(name: str, card_gb: float, **changes: Any) -> MemoryPlan:
    spec: BackboneSpec = PUBLISHED[name]
    size = {side: changes.pop(side) for side in ("height", "width") if side in changes}
    if size:
        spec = ARCHITECTURES[name].resized(spec, **size)
    return plan_memory(ARCHITECTURES[name], spec, resolve_config("paper", spec), card_bytes(card_gb), **changes)


@pytest.mark.parametrize(
    ("name", "card_gb", "fp8", "vae_dtype", "beside"),
    [
        (SMALL, 80, False, torch.float32, True),
        (SMALL, 48, False, torch.float32, True),
        (SMALL, 24, False, torch.float32, True),
        (SMALL, 16, False, torch.float32, True),
        (SMALL, 14, False, torch.float32, False),
        (SMALL, 12, False, torch.bfloat16, True),
        (SMALL, 8, True, torch.bfloat16, False),
        (LARGE, 80, False, torch.float32, True),
        (LARGE, 48, False, torch.float32, True),
        (LARGE, 40, False, torch.float32, False),
        (LARGE, 32, True, torch.float32, True),
        (LARGE, 24, True, torch.bfloat16, False),
    ],
)
def test_choices(name: str, card_gb: float, fp8: bool, vae_dtype: torch.dtype, beside: bool) -> None:
    chosen = plan(name, card_gb)
    assert (chosen.fp8, chosen.vae_dtype, chosen.decodes_beside) == (fp8, vae_dtype, beside)
    assert chosen.total_bytes <= chosen.card_bytes == round(card_gb * 0.98 * 2**30)
    assert ("fp8" in chosen.reason) == fp8
    assert ("bfloat16" in chosen.reason) == (vae_dtype == torch.bfloat16)
    assert ("decoding takes turns with the network" in chosen.reason) != beside
    assert chosen.to_dict()["decoding"] == ("beside the network" if beside else "takes turns with the network")
    assert "text encoder" in chosen.reason
    assert chosen.to_dict()["total"] == f"{chosen.total_bytes / 1e9:.1f} GB"


@pytest.mark.slow
@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_less_is_given_up_the_more_memory_there_is(name: str) -> None:
    """Results first: down from the largest card, turns come before each step in precision."""
    found = []
    for card_gb in range(80, 0, -1):
        with contextlib.suppress(ModelError):
            chosen = plan(name, card_gb)
            found.append((chosen.fp8, chosen.vae_dtype == torch.bfloat16, not chosen.decodes_beside))
    assert found == sorted(found)
    assert found[0] == (False, False, False)
    assert found[-1] == (True, True, True)
    assert (False, False, True) in found, "exact, in turn"


def test_activations_beside_and_in_turn() -> None:
    """A call of 14B takes more than a decode in float32, one of 1.3B less than that, and less than one in bfloat16."""
    cells, decoder = 60 * 104, WanArchitecture().vae_peak_per_cell
    for name, card_gb, vae_bytes in ((SMALL, 16, 4), (SMALL, 14, 4), (SMALL, 8, 2), (LARGE, 40, 4), (LARGE, 24, 2)):
        call = 32760 * ARCHITECTURES[name].activation_bytes_per_token(torch.bfloat16)
        both = (call, vae_bytes * cells * decoder)
        chosen = plan(name, card_gb)
        assert chosen.activations_bytes == (sum(both) if chosen.decodes_beside else max(both))


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(
        ModelError, match=r"14B-Diffusers' at 480x832 needs 2\d\.\d GB .* the card has 12\.6 GB"
    ) as error:
        plan(LARGE, 12)
    assert "a card of 24 GB" in error.value.hint
    with pytest.raises(ModelError) as error:
        plan(SMALL, 12, height=1088, width=1920)
    assert "frames of 480x832" in error.value.hint
    assert plan(SMALL, 12, height=480, width=832)


@pytest.mark.parametrize(
    ("name", "card_gb", "text_dtype", "vae_dtype", "beside"),
    [
        (SMALL, 24, torch.bfloat16, torch.bfloat16, True),
        (SMALL, 48, torch.float32, torch.float32, True),
        (SMALL, 80, torch.float32, torch.float32, True),
        (LARGE, 48, torch.bfloat16, torch.bfloat16, False),
        (LARGE, 80, torch.float32, torch.float32, True),
    ],
)
def test_the_text_encoder_on_the_same_card(
    name: str, card_gb: float, text_dtype: torch.dtype, vae_dtype: torch.dtype, beside: bool
) -> None:
    """UMT5-XXL, 22.7 GB or half of it, and another process's reserve beside what the backbone takes."""
    chosen = plan(name, card_gb, text_dtype=text_dtype, text_on_card=True)
    assert (chosen.vae_dtype, chosen.fp8, chosen.decodes_beside) == (vae_dtype, False, beside)
    assert chosen.text_bytes == text_dtype.itemsize * 5_680_910_336
    alone = chosen.transformer_bytes + chosen.vae_bytes + chosen.queue_bytes + chosen.activations_bytes
    assert chosen.total_bytes == alone + chosen.text_bytes + 2 * 10**9 <= chosen.card_bytes
    assert chosen.to_dict()["text encoder"].endswith("of the card")
    assert "the text encoder is on this card" in chosen.reason


def test_a_text_encoder_that_does_not_fit_beside() -> None:
    with pytest.raises(ModelError, match=r"text encoder 22\.7 GB.*the card has 25\.3 GB") as error:
        plan(SMALL, 24, text_on_card=True)
    assert 'text_dtype = "bfloat16"' in error.value.hint
    assert "text_gpus = 0 in [workers]" in error.value.hint
    assert "a card of 32 GB" in error.value.hint


@pytest.mark.parametrize(
    ("name", "card_gb", "said"),
    [
        (SMALL, 24, "no room for it here"),
        (SMALL, 32, "room for it too in bfloat16"),
        (SMALL, 40, "room for it too in float32"),
        (LARGE, 24, "no room for it here"),
        (LARGE, 48, "no room for it here"),
        (LARGE, 80, "room for it too in float32"),
    ],
)
def test_where_the_text_encoder_would_fit(name: str, card_gb: float, said: str) -> None:
    """As everything else is chosen there."""
    chosen = plan(name, card_gb)
    assert said in chosen.reason
    if "room for it too" in said:
        dtype = torch.bfloat16 if "bfloat16" in said else torch.float32
        assert plan(name, card_gb, text_dtype=dtype, text_on_card=True).vae_dtype == chosen.vae_dtype
    assert chosen.to_dict()["text encoder"] == "22.7 GB in float32, of the machine's memory"


def test_actors_that_a_machine_without_a_gpu_holds() -> None:
    """1.3B in float32: 5.7 GB of weights, 4.3 GB of VAE and cache, 7.8 GB of activations, in every actor."""
    sampler = resolve_config("paper", PUBLISHED[SMALL])

    def check(num_actors: int, gigabytes: float, **dtypes: torch.dtype) -> None:
        check_machine_memory(
            ARCHITECTURES[SMALL], PUBLISHED[SMALL], sampler, num_actors, int(gigabytes * 1e9), **dtypes
        )

    check(2, 70)
    with pytest.raises(ModelError, match=r"2 actors .* need 63\.0 GB .* text encoder 22\.7 GB.*has 50\.0 GB") as error:
        check(2, 50)
    both = 'dtype = "bfloat16" and text_dtype = "bfloat16"'
    assert error.value.hint == f"what would fit: num_actors = 1, or {both}"
    check(1, 50)
    check(2, 50, dtype=torch.bfloat16, text_dtype=torch.bfloat16)
    with pytest.raises(ModelError):
        check(2, 50, text_dtype=torch.bfloat16)
    check(2, 52, text_dtype=torch.bfloat16)
    with pytest.raises(ModelError) as error:
        check(1, 35)
    assert 'text_dtype = "bfloat16"' in error.value.hint
    check(1, 35, text_dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="1 actors") as error:
        check(1, 8)
    assert "even one actor in bfloat16 needs" in error.value.hint


def test_memory_that_is_left() -> None:
    left = available_memory()
    assert left is not None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < left <= total


def test_weights_are_those_of_the_transformer() -> None:
    for name in (SMALL, LARGE):
        with torch.device("meta"):
            weights = {key: tuple(value.shape) for key, value in transformer(name, num_layers=2).state_dict().items()}
        assert replace(ARCHITECTURES[name], num_layers=2).weights() == weights


def test_float32_is_not_stored_in_fp8() -> None:
    with pytest.raises(ModelError):
        plan(LARGE, 48, dtype=torch.float32)
    assert plan(LARGE, 80, dtype=torch.float32).transformer_bytes == 4 * 14_288_491_584


def test_windows_in_a_batch_count() -> None:
    spec, architecture = PUBLISHED[SMALL], ARCHITECTURES[SMALL]
    plans = [
        plan_memory(architecture, spec, resolve_config("paper", spec, {"windows_per_batch": n}), card_bytes(80))
        for n in (1, 4)
    ]
    per_window = 32760 * architecture.activation_bytes_per_token(torch.bfloat16)
    assert plans[1].activations_bytes - plans[0].activations_bytes == 3 * per_window


def test_sizes_of_the_tiny_model(wan_folder: Path) -> None:
    architecture = load_architecture(wan_folder)
    assert architecture.tokens_per_latent(SETTINGS["height"], SETTINGS["width"]) == 6


PAGE = Path(__file__).parents[3] / "docs" / "models.md"
NAMES = {"1.3B": SMALL, "14B": LARGE}


def rows_of_the_page(num_columns: int) -> list[list[str]]:
    """Of the tables of cards, by their number of columns."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    return [row for row in rows if len(row) == num_columns and row[0] in NAMES and "GB" in row[1]]


def cards_of(cell: str) -> list[int]:
    cards = [int(number) for number in re.findall(r"(\d+) GB", cell)]
    return [*cards, 80] if "and more" in cell else cards


def choice_of(chosen: MemoryPlan) -> str:
    parts = ["transformer in fp8"] * chosen.fp8 + ["VAE in bfloat16"] * (chosen.vae_dtype == torch.bfloat16)
    parts += [] if chosen.decodes_beside else ["decoding in turn"]
    return ", ".join(parts) or "everything as it is"


def test_the_tables_of_the_page() -> None:
    rows = rows_of_the_page(8)
    assert len(rows) == 7
    for model, cards, *figures, what in rows:
        for card in cards_of(cards):
            chosen = plan(NAMES[model], card)
            parts = (chosen.transformer_bytes, chosen.vae_bytes, chosen.queue_bytes, chosen.activations_bytes)
            assert figures == [f"{count / 1e9:.1f}" for count in (*parts, chosen.total_bytes)]
            assert what == choice_of(chosen)
    rows = rows_of_the_page(5)
    assert len(rows) == 5
    for model, cards, text, total, what in rows:
        (card,) = cards_of(cards)
        if text == "none fits":
            with pytest.raises(ModelError):
                plan(NAMES[model], card, text_dtype=torch.bfloat16, text_on_card=True)
            continue
        gigabytes, dtype = text.split(" in ")
        chosen = plan(NAMES[model], card, text_dtype=getattr(torch, dtype), text_on_card=True)
        assert [gigabytes, total] == [f"{count / 1e9:.1f}" for count in (chosen.text_bytes, chosen.total_bytes)]
        assert what == choice_of(chosen)


# ---- several videos at once ----


def test_each_video_in_step_has_a_cache_of_each_kind_of_its_own() -> None:
    spec, architecture = PUBLISHED[SMALL], ARCHITECTURES[SMALL]
    sampler = resolve_config("longlive-infinity", spec, {})
    one, three = (plan_memory(architecture, spec, sampler, card_bytes(192), num_videos=count) for count in (1, 3))
    keys = 12 * 2 * 30 * (60 * 104 // 4) * 1536 * 2  # latents, keys and values, layers, tokens, width, bytes
    assert (one.cache_bytes, three.cache_bytes) == (keys, 3 * keys)
    assert three.transformer_bytes == one.transformer_bytes
    cells = spec.latent_height * spec.latent_width
    assert three.vae_bytes - one.vae_bytes == 2 * 4 * cells * architecture.vae_cache_per_cell
    call = architecture.window_bytes(spec, sampler.window, torch.bfloat16)
    assert three.activations_bytes - one.activations_bytes == 2 * call, "one video is decoded at a time"


@pytest.mark.parametrize("gb", [16, 24, 48, 80])
def test_auto_is_as_many_as_fit_beside_a_model_held_as_for_one(gb: int) -> None:
    spec, architecture = PUBLISHED[SMALL], ARCHITECTURES[SMALL]
    sampler, card = resolve_config("longlive-infinity", spec, {}), card_bytes(gb)
    one, most = (plan_memory(architecture, spec, sampler, card, num_videos=count) for count in (1, "auto"))
    assert most.total_bytes <= card
    held = ("transformer_bytes", "fp8", "vae_dtype", "decodes_beside")
    assert [getattr(most, name) for name in held] == [getattr(one, name) for name in held]
    each = one.cache_bytes + one.queue_bytes + architecture.window_bytes(spec, sampler.window, torch.bfloat16)
    cells = spec.latent_height * spec.latent_width
    each += one.vae_dtype.itemsize * cells * architecture.vae_cache_per_cell
    if one.decodes_beside:
        assert most.num_videos == 1 + (card - one.total_bytes) // each
    assert (most.num_videos > 1) == (gb >= 32)


def test_a_number_that_does_not_fit_is_refused_with_the_number_that_would() -> None:
    spec, architecture = PUBLISHED[SMALL], ARCHITECTURES[SMALL]
    sampler = resolve_config("longlive-infinity", spec, {})
    with pytest.raises(ModelError, match="making 9 videos at once") as caught:
        plan_memory(architecture, spec, sampler, card_bytes(24), num_videos=9)
    assert "keys and values 31.1 GB" in str(caught.value)
    (number,) = re.findall(r"videos_per_actor = (\d+)", caught.value.hint)
    assert plan_memory(architecture, spec, sampler, card_bytes(24), num_videos=int(number))
    with pytest.raises(ModelError):
        plan_memory(architecture, spec, sampler, card_bytes(24), num_videos=int(number) + 1)
    with pytest.raises(ModelError, match="memory") as caught:
        check_machine_memory(architecture, spec, sampler, 1, 60 * 10**9, num_videos=9)
    (number,) = re.findall(r"videos_per_actor = (\d+)", caught.value.hint)
    check_machine_memory(architecture, spec, sampler, 1, 60 * 10**9, num_videos=int(number))
