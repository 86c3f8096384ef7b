"""Error-recycling steps and banks against what upstream's own training step did (recorded, tests/fixtures/svi)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from miga.errors import ConfigError
from miga.training import erft
from miga.training.error_bank import Banks, ErrorBank, Replacement

FIXTURES = Path(__file__).parents[2] / "fixtures" / "svi"
STEPS = json.loads((FIXTURES / "erft_steps.json").read_text())
SETTINGS = erft.RecyclingSettings(p_noise=0.6, p_condition=0.9, p_latent=0.9, p_clean=0.25, p_store_clean=0.5)


class Recorded:
    """The numbers that were drawn, in order; asked for another kind, or among another number, it fails."""

    def __init__(self, draws: Sequence[Sequence[Any]], randints: Sequence[Sequence[int]]) -> None:
        self.draws: Iterator[Sequence[Any]] = iter(draws)
        self.randints = iter(randints)

    def _next(self, kind: str) -> Sequence[Any]:
        found = next(self.draws)
        assert found[0] == kind
        return found

    def random(self) -> float:
        return float(self._next("random")[1])

    def uniform(self, low: float, high: float) -> float:
        value = float(self._next("uniform")[1])
        assert low <= value <= high
        return value

    def choice(self, count: int) -> int:
        _, number, among = self._next("choice")
        assert among == count
        return int(number)

    def first_latent(self, count: int) -> int:
        low, high, number = next(self.randints)
        assert (low, high) == (0, count)
        return int(number)

    @property
    def is_used_up(self) -> bool:
        return next(self.draws, None) is None and next(self.randints, None) is None


def near(ours: torch.Tensor, recorded: torch.Tensor, most: float = 1e-5) -> None:
    assert ours.shape == recorded.shape
    assert float((ours - recorded).abs().max()) <= most


def test_steps() -> None:
    tensors = load_file(FIXTURES / "erft_steps.safetensors")
    banks = Banks.of_errors(tensors["bank_anchor_timesteps"], STEPS["settings"]["error_buffer_size"])
    for number, step in enumerate(STEPS["steps"]):
        recorded = {name[4:]: tensor for name, tensor in tensors.items() if name.startswith(f"s{number:02}.")}
        index = step["torch_randint"][0][2]
        sigma, timestep = (tensors[f"train_{name}"][index] for name in ("sigmas", "timesteps"))
        assert float(timestep) == pytest.approx(step["timestep"])
        chance = Recorded(step["python_draws"][3:], step["torch_randint"][1:])  # three belong to the data
        assert banks.grid_of(float(timestep)) == step["grid"]
        injected = erft.draw_errors(banks, float(timestep), recorded["clean"].shape[2], SETTINGS, chance)
        example = erft.inject(recorded["clean"], recorded["noise"], recorded["y_clean"], sigma, injected)
        assert example.y_BCFHW is not None
        near(example.y_BCFHW, recorded["y_injected"])
        near(example.x_BCFHW, recorded["x_t"])
        residual = erft.residual(recorded["v_hat"], example.target_BCFHW)
        weight = tensors["train_weights"][index : index + 1]
        loss = erft.weighted_loss(recorded["v_hat"], example.target_BCFHW, weight)
        assert float(loss) == pytest.approx(step["loss"], rel=1e-5)
        stored = erft.is_stored(injected, SETTINGS, chance)
        assert stored == step["stored"]
        if stored:
            banks.store(residual, float(sigma), float(timestep), chance)
            near((1.0 - sigma) * residual, recorded["E_noise"])
            near(-sigma * residual, recorded["E_clean"])
        assert banks.noise.sizes == step["bank_sizes_noise"]
        assert banks.clean.sizes == step["bank_sizes_clean"]
        assert chance.is_used_up
    for grid in range(STEPS["num_grids"]):
        for slot, (noise, clean) in enumerate(zip(banks.noise.samples(grid), banks.clean.samples(grid), strict=True)):
            near(banks.noise_error(noise), tensors[f"final_noise_bank.{grid}.{slot}"])
            near(banks.clean_error(clean), tensors[f"final_clean_bank.{grid}.{slot}"])


def test_schedule() -> None:
    tensors = load_file(FIXTURES / "erft_steps.safetensors")
    sigma, timestep, weight = erft.training_schedule()
    near(sigma, tensors["train_sigmas"], 1e-6)
    near(timestep, tensors["train_timesteps"], 1e-3)
    near(weight, tensors["train_weights"], 1e-5)
    assert float(weight[0]) == 0.0
    assert float(weight.mean()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("replacement", "recorded_as"), [("l2", "l2_batch"), ("l2", "l2_similarity"), ("fifo", "fifo")]
)
def test_bank(replacement: Replacement, recorded_as: str) -> None:
    recorded, tensors = json.loads((FIXTURES / "bank.json").read_text()), load_file(FIXTURES / "bank.safetensors")
    errors = tensors["errors"]
    bank = ErrorBank(tensors["anchors"], 3, replacement)
    for update, timestep in enumerate(tensors["timesteps"].tolist()):
        grid = bank.grid_of(timestep)
        assert grid == recorded["grid_of_update"][update]
        bank.add(grid, errors[update], 0.5)
        held = [
            [next(n for n in range(len(errors)) if torch.equal(errors[n], stored.error)) for stored in bank.samples(g)]
            for g in range(bank.num_grids)
        ]
        assert held == recorded[recorded_as]["after_each_update"][update]
    assert held == recorded[recorded_as]["final"]


def test_bank_is_bounded_in_bytes_and_comes_back_from_its_state() -> None:
    errors = torch.randn(100, 2, 3, generator=torch.Generator().manual_seed(0))
    bank = ErrorBank([900.0, 100.0], 50, max_bytes=2 * 7 * 12, dtype=torch.float16)  # 12 bytes each: 7 a grid
    for number, error in enumerate(errors):
        bank.add(number % 2, error, number / 100)
        assert bank.num_bytes <= 2 * 7 * 12
    assert bank.sizes == [7, 7]
    twin = ErrorBank([900.0, 100.0], 50, max_bytes=2 * 7 * 12, dtype=torch.float16)
    twin.load_state(bank.state())
    for each in (bank, twin):
        each.add(0, errors[3], 0.25)
    for name, tensor in bank.state().items():
        assert torch.equal(tensor, twin.state()[name])
    with pytest.raises(ConfigError, match="no room"):
        ErrorBank([900.0, 100.0], 50, max_bytes=30).add(0, errors[0], 0.1)
    with pytest.raises(ValueError, match="has no place"):
        ErrorBank([900.0], 50).load_state(bank.state())


def test_one_step_takes_the_share_sigma_of_an_error_away() -> None:
    """x_t - s v = x0 + (1 - s) E, by algebra; the exact target lands on x0."""
    clean, noise, error = torch.randn(3, 1, 2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for sigma in (0.1, 0.5, 1.0):
        example = erft.inject(clean, noise, None, sigma, erft.Injected(latent=error, noise=0.5 * error))
        landed = example.x_BCFHW - sigma * example.target_BCFHW
        assert torch.allclose(landed, clean + (1 - sigma) * error)
        exact = erft.exact_target(example.x_BCFHW, clean, sigma, 1e-3)
        assert torch.allclose(example.x_BCFHW - sigma * exact, clean)


def test_one_bank_of_residuals_holds_both_errors_in_half_the_bytes() -> None:
    residuals = torch.randn(6, 1, 2, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    two, one = Banks.of_errors([900.0, 100.0], 3), Banks.of_residuals([900.0, 100.0], 3)
    for banks in (two, one):
        for number, residual in enumerate(residuals):
            banks.store(residual, 0.1 + 0.15 * number, (900.0, 100.0)[number % 2])
    assert 2 * one.clean.num_bytes == two.clean.num_bytes + two.noise.num_bytes
    for grid in range(2):
        for slot in range(3):
            for name in ("noise", "clean"):
                apart, joined = (getattr(banks, name).samples(grid)[slot] for banks in (two, one))
                make = f"{name}_error"
                assert torch.allclose(getattr(two, make)(apart), getattr(one, make)(joined))
    twin = Banks.of_residuals([900.0, 100.0], 3)
    twin.load_state(one.state())
    assert all(torch.equal(tensor, twin.state()[name]) for name, tensor in one.state().items())
