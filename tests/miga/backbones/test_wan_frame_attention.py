"""What stands in for Wan's self-attention and its frequencies of time, against diffusers' own processor and tables."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanRotaryPosEmbed

from miga.backbones.wan.denoiser import WanDenoiser
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.backbones.wan.positions import frequencies, positions, use_positions
from miga.frame_attention import FrameAttention, frame_call, frame_windows, softmax_attention
from miga.methods.freelong.attention import SpectralAttention
from miga.methods.freenoise.attention import WindowedAttention
from miga.methods.riflex.frequency import LoweredFrequency
from miga.schedule import schedule_for
from tests.miga.closed_form import make_config
from tests.tiny_wan import NUM_CHANNELS, TEXT_DIM, build_transformer

F, H, W = 7, 4, 6
GRID = F, H // 2, W // 2
TOKENS = GRID[1] * GRID[2]
WINDOW, STRIDE = 4, 2


@pytest.fixture(scope="module")
def ours() -> WanTransformer3DModel:
    transformer = build_transformer()
    use_per_latent_timesteps(transformer)
    use_positions(transformer)
    return transformer


def run(transformer: Any, frames: FrameAttention | None = None, num_latents: int = F, rotation: Any = None) -> Any:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, NUM_CHANNELS, num_latents, H, W, generator=generator)
    text = torch.randn(2, 9, TEXT_DIM, generator=generator)
    timestep = torch.tensor([900, 400])
    with torch.no_grad(), positions(None, rotation, frame_call(frames, timestep)):
        return transformer(x, timestep, text, return_dict=False)[0]


class Reference(WanAttnProcessor):
    """diffusers' processor asked for parts of a window; what it says of them is joined by `join`.

    The output projection is linear and shares add up to one, so it may stand before the joining.
    """

    def __init__(self, join: Callable[[Callable[[Sequence[int]], torch.Tensor]], torch.Tensor]) -> None:
        super().__init__()
        self.join = join

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        text, mask, rotary = (*others, None, None, None)[:3]
        if text is not None:
            return super().__call__(attn, hidden_states, text, mask, rotary)

        def part(latents: Sequence[int]) -> torch.Tensor:
            tokens = [latent * TOKENS + token for latent in latents for token in range(TOKENS)]
            turned = tuple(table[:, tokens] for table in rotary)
            return WanAttnProcessor.__call__(self, attn, hidden_states[:, tokens], None, None, turned)

        return self.join(part)


def by_reference(join: Any) -> torch.Tensor:
    transformer = build_transformer()
    for block in transformer.blocks:
        block.attn1.set_processor(Reference(join))
    return run(transformer)


def windows_joined(part: Callable[[Sequence[int]], torch.Tensor]) -> torch.Tensor:
    weights = torch.tensor([1.0, 2.0, 2.0, 1.0])[:, None, None].expand(-1, TOKENS, 1).reshape(-1, 1)
    total = summed = None
    for start, stop in frame_windows(F, WINDOW, STRIDE):
        out = part(range(start, stop))
        if total is None or summed is None:
            total, summed = torch.zeros(2, F * TOKENS, out.shape[-1]), torch.zeros(F * TOKENS, 1)
        total[:, start * TOKENS : stop * TOKENS] += weights * out
        summed[start * TOKENS : stop * TOKENS] += weights
    assert total is not None
    assert summed is not None
    return total / summed


def frequencies_joined(part: Callable[[Sequence[int]], torch.Tensor]) -> torch.Tensor:
    whole = part(range(F))
    near = []
    for latent in range(F):
        seen = range(max(0, latent - WINDOW // 2), min(F, latent + WINDOW // 2 + 1))
        own = seen.index(latent) * TOKENS
        near.append(part(seen)[:, own : own + TOKENS])
    local = torch.cat(near, dim=1)
    axes = [2.0 * torch.arange(size) / size - 1.0 for size in GRID]
    square = sum(each**2 / 0.25**2 for each in torch.meshgrid(*axes, indexing="ij"))
    assert isinstance(square, torch.Tensor)
    gain = torch.fft.ifftshift(torch.exp(-0.5 * square))[None, ..., None]
    spectra = [torch.fft.fftn(each.unflatten(1, GRID), dim=(1, 2, 3)) for each in (whole, local)]
    return torch.fft.ifftn(spectra[0] * gain + spectra[1] * (1 - gain), dim=(1, 2, 3)).real.flatten(1, 3)


@pytest.mark.parametrize(
    ("strategy", "join"),
    [(WindowedAttention(WINDOW, STRIDE), windows_joined), (SpectralAttention(WINDOW), frequencies_joined)],
)
def test_a_strategy_is_what_diffusers_processor_makes_of_the_parts(
    ours: WanTransformer3DModel, strategy: FrameAttention, join: Any
) -> None:
    plain, found = run(ours), run(ours, strategy)
    assert (found - by_reference(join)).abs().max() < 2e-6
    assert (found - plain).abs().max() > 1e-3, "with the strategy off the test would fail"
    assert torch.equal(run(ours), plain), "nothing is left in the network"


def test_attention_itself_as_a_strategy_changes_nothing(ours: WanTransformer3DModel) -> None:
    def itself(query: Any, key: Any, value: Any, grid: Any, timesteps: tuple[float, ...]) -> torch.Tensor:
        assert (grid.num_clips, grid.num_frames, grid.height, grid.width) == (2, *GRID)
        assert (grid.tokens_per_frame, grid.is_top, timesteps) == (TOKENS, False, (900.0, 400.0))
        return softmax_attention(query, key, value)

    assert (run(ours, itself) - run(ours)).abs().max() < 1e-6
    assert (run(ours, WindowedAttention(F, STRIDE)) - run(ours)).abs().max() < 1e-6, "one window is no window"


@pytest.mark.parametrize("strategy", [WindowedAttention(WINDOW, STRIDE), SpectralAttention(WINDOW)])
def test_rows_may_be_cut_in_any_way(ours: WanTransformer3DModel, strategy: Any) -> None:
    whole = run(ours, strategy)
    for at_once in (1, 2):
        cut = type(strategy)(**{**vars(strategy), "rows_at_once": at_once})
        assert (run(ours, cut) - whole).abs().max() < 1e-6


# ---- positions ----


def longer_rope(transformer: WanTransformer3DModel, frequency_K: torch.Tensor, length: int) -> WanRotaryPosEmbed:
    """diffusers' own embedding with a table of that length, its columns for time computed anew from frequencies."""
    config = transformer.config
    rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, length)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency_K
    for table, values in ((rope.freqs_cos, angle.cos()), (rope.freqs_sin, angle.sin())):
        table[:, : rope.t_dim] = values.repeat_interleave(2, 1).float()
    return rope


@pytest.mark.parametrize("num_latents", [5, 64, 70])
def test_a_lowered_frequency_and_any_length(ours: WanTransformer3DModel, num_latents: int) -> None:
    own_K = frequencies(ours.rope.t_dim)
    assert torch.equal(own_K, torch.tensor([1.0, 0.01], dtype=torch.float64)), "periods of 6.3 and 628 latents"
    rotation = LoweredFrequency(0, 9)
    changed_K = own_K.clone()
    if num_latents > 6:
        changed_K[0] = 0.9 * 2 * torch.pi / num_latents
    x = torch.zeros(1, NUM_CHANNELS, num_latents, H, W)
    for told, wanted_K in ((None, own_K), (rotation, changed_K)):
        with positions(None, told):
            found = ours.rope(x)
        wanted = longer_rope(ours, wanted_K, 80)(x)
        for table, expected in zip(found, wanted, strict=True):
            assert table.shape == expected.shape
            assert (table - expected).abs().max() < 1e-7
    assert torch.isfinite(run(ours, num_latents=num_latents)).all()


def test_a_denoiser_hands_its_strategy_to_every_call_and_to_no_other(ours: WanTransformer3DModel) -> None:
    config = make_config(method="direct", num_steps=4)
    schedule = schedule_for(config)
    transformer = copy.deepcopy(ours)
    plain, windowed, lowered = (
        WanDenoiser(transformer, schedule, WINDOW, 2.0, **told)
        for told in (
            {},
            {"frame_attention": WindowedAttention(WINDOW, STRIDE)},
            {"time_rotation": LoweredFrequency(1, 9)},
        )
    )
    x = torch.randn(1, 9, NUM_CHANNELS, H, W, generator=torch.Generator().manual_seed(1))
    level = torch.full((1, 9), 4)
    text = torch.randn(2, 9, TEXT_DIM, generator=torch.Generator().manual_seed(3))
    clean = plain(x, level, [(text[0], text[1])])
    for other in (windowed, lowered):
        assert (other(x, level, [(text[0], text[1])]) - clean).abs().max() > 1e-4
        assert torch.equal(plain(x, level, [(text[0], text[1])]), clean)
