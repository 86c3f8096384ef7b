"""Positions in time with gaps: diffusers' own rotary embedding of a long clip, taken at those positions."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from miga.backbones.wan.denoiser import WanDenoiser
from miga.backbones.wan.padding import has_compact_padding, use_compact_padding
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.backbones.wan.positions import positions, use_positions
from miga.schedule import schedule_for
from tests.miga.closed_form import make_config
from tests.tiny_wan import NUM_CHANNELS, TEXT_DIM, build_transformer

F, H, W = 6, 4, 6
TOKENS = (H // 2) * (W // 2)
GAPS = torch.tensor([[0, 17, 18, 40, 41, 63], [0, 1, 2, 3, 9, 10]])
TIMESTEPS = torch.tensor([[999, 999, 500, 500, 20, 1], [5, 400, 3, 2, 400, 0]])


@pytest.fixture(scope="module")
def plain() -> WanTransformer3DModel:
    """Time steps per latent, diffusers' own positions."""
    transformer = build_transformer()
    use_per_latent_timesteps(transformer)
    return transformer


@pytest.fixture(scope="module", params=["plain", "compact padding"])
def ours(plain: WanTransformer3DModel, request: pytest.FixtureRequest) -> WanTransformer3DModel:
    transformer = copy.deepcopy(plain)
    use_positions(transformer)
    use_positions(transformer)  # once is enough
    if request.param == "compact padding":
        use_compact_padding(transformer, num_tokens=9)
    return transformer


def run(transformer: Any, position_BF: torch.Tensor | None = None, rows: slice = slice(2)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, NUM_CHANNELS, F, H, W, generator=generator)
    text = torch.randn(2, 9, TEXT_DIM, generator=generator)
    with torch.no_grad(), positions(position_BF):
        return transformer(x[rows], TIMESTEPS[rows], text[rows], return_dict=False)[0]


class LongTable(torch.nn.Module):
    """diffusers' embedding of a clip as long as its table, of which each latent takes the row of its position."""

    def __init__(self, rope: torch.nn.Module, position_F: torch.Tensor) -> None:
        super().__init__()
        self.rope, self.position_F = rope, position_F

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        clip = torch.zeros(1, x.shape[1], 64, *x.shape[3:])
        return tuple(
            table.view(64, TOKENS, -1)[self.position_F].reshape(1, F * TOKENS, 1, -1) for table in self.rope(clip)
        )


def test_without_gaps_nothing_changes(plain: WanTransformer3DModel, ours: WanTransformer3DModel) -> None:
    usual = run(ours)
    assert torch.equal(run(ours, torch.arange(F).expand(2, F)), usual)
    assert float((usual - run(plain)).abs().max()) <= 1e-6 * float(usual.abs().max())
    if not has_compact_padding(ours):
        assert torch.equal(usual, run(plain))


@pytest.mark.parametrize("window", [0, 1])
def test_the_angles_are_those_of_a_long_clip_at_the_same_places(
    plain: WanTransformer3DModel, ours: WanTransformer3DModel, window: int
) -> None:
    x = torch.zeros(1, NUM_CHANNELS, F, H, W)
    with positions(GAPS[window : window + 1]):
        found = ours.rope(x)
    for one, other in zip(found, LongTable(plain.rope, GAPS[window])(x), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype == torch.float32


@pytest.mark.parametrize("window", [0, 1])
def test_the_network_computes_what_it_does_with_that_table(
    plain: WanTransformer3DModel, ours: WanTransformer3DModel, window: int
) -> None:
    reference, rows = copy.deepcopy(plain), slice(window, window + 1)
    reference.rope = LongTable(reference.rope, GAPS[window])
    expected = run(reference, rows=rows)
    found = run(ours, GAPS[rows], rows)
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
    assert not torch.allclose(found, run(ours, rows=rows), atol=1e-4), "a gap matters"
    assert torch.allclose(run(ours, GAPS, slice(2))[rows], found, atol=1e-6), "every window has its own"


def test_positions_are_relative(ours: WanTransformer3DModel) -> None:
    assert torch.allclose(run(ours, GAPS + 500), run(ours, GAPS), atol=1e-5)


def test_another_thread_has_positions_of_its_own(ours: WanTransformer3DModel) -> None:
    usual, found = run(ours), []
    with positions(GAPS):
        thread = threading.Thread(target=lambda: found.append(ours.rope(torch.zeros(1, NUM_CHANNELS, F, H, W))))
        thread.start()
        thread.join()
    assert found[0][0].shape == (1, F * TOKENS, 1, 12)
    assert torch.equal(run(ours), usual)


def test_positions_that_do_not_fit(ours: WanTransformer3DModel) -> None:
    with pytest.raises(ValueError, match=r"positions \[2, 5\] for 2 windows of 6 latents"):
        run(ours, GAPS[:, :5])


def test_the_denoiser_takes_them_in_both_branches() -> None:
    config = make_config(num_steps=8)
    denoiser = WanDenoiser(build_transformer(), schedule_for(config), F, 3.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, F, NUM_CHANNELS, H, W, generator=generator)
    level = torch.tensor([[1, 2, 3, 4, 5, 6], [8] * 6])
    conditions = [tuple(torch.randn(5, TEXT_DIM, generator=generator) for _ in range(2)) for _ in range(2)]
    whole = denoiser(x, level, conditions, GAPS)  # type: ignore[arg-type]
    parts = [denoiser.predict_branch(x, level, conditions, branch, GAPS) for branch in (0, 1)]  # type: ignore[arg-type]
    assert torch.equal(denoiser.combine(x, level, parts), whole)
    usual = [denoiser.predict_branch(x, level, conditions, branch) for branch in (0, 1)]  # type: ignore[arg-type]
    assert all(not torch.allclose(one, other, atol=1e-4) for one, other in zip(parts, usual, strict=True))
