"""What holds for every solver: one clock per latent, purity, names, and convergence to what Gaussian data must give.

Where clean latents are N(mean, std^2), every level is Gaussian too and all is known: the posterior mean is linear, the
probability flow maps quantiles to quantiles, and a step changes mean and variance by its weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from miga.schedule import (
    NoiseSchedule,
    ddim_schedule,
    few_step_schedule,
    flow_euler_schedule,
    flow_unipc_schedule,
    released_flow_schedule,
)
from miga.solvers import SOLVERS, DDIMSolver, EulerSolver, History, RenoiseSolver, Solver, UniPCSolver, make_solver

MEAN, STDS = 0.4, (0.3, 0.7, 1.5)
SETTINGS = [("unipc", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("euler", 0.0), ("renoise", 0.0)]
STOCHASTIC = [("ddim", 0.5), ("ddim", 1.0), ("renoise", 0.0)]
SCHEDULES = [flow_unipc_schedule(12, 5.0), ddim_schedule(12)]
ODD_SHAPE = (3, 7, 11)  # not a multiple of any vector's width


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- one clock per latent


def mixed_batch(solver: Solver) -> tuple[torch.Tensor, torch.Tensor, History]:
    """Latents at mixed levels that have taken 0 to 3 steps."""
    xs, levels, histories = [], [], []
    for index, (start, warm) in enumerate([(12, 0), (12, 1), (9, 2), (9, 3), (5, 0), (4, 3), (2, 1), (1, 0)]):
        x = randn(1, *ODD_SHAPE, seed=index)
        history, level = solver.fresh_history(x), torch.tensor([start])
        for _ in range(warm):
            x, history = solver.step(x, level, torch.tanh(x), history, randn(1, *ODD_SHAPE, seed=100 + index))
            level = level - 1
        xs.append(x), levels.append(level), histories.append(history)
    joined = {name: torch.cat([history[name] for history in histories]) for name in histories[0]}
    return torch.cat(xs), torch.cat(levels), joined


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "eta"), SETTINGS)
def test_a_mixed_batch_equals_each_latent_alone(name: str, eta: float, schedule: NoiseSchedule) -> None:
    solver = make_solver(name, schedule, eta)
    x, level, history = mixed_batch(solver)
    clean, noise = randn(*x.shape, seed=50), randn(*x.shape, seed=51)
    together, joined = solver.step(x, level, clean, history, noise)
    for index in range(len(x)):
        one = slice(index, index + 1)
        own_history = {key: tensor[one] for key, tensor in history.items()}
        alone, own_history = solver.step(x[one], level[one], clean[one], own_history, noise[one])
        assert torch.equal(together[one], alone)
        assert own_history.keys() == joined.keys()
        assert all(torch.equal(joined[key][one], own_history[key]) for key in joined)


@pytest.mark.parametrize(("name", "eta"), SETTINGS)
def test_permuted_latents_give_permuted_results(name: str, eta: float) -> None:
    solver = make_solver(name, SCHEDULES[0], eta)
    x, level, history = mixed_batch(solver)
    clean, noise = randn(*x.shape, seed=50), randn(*x.shape, seed=51)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    stepped, after = solver.step(x, level, clean, history, noise)
    permuted = {key: tensor[order] for key, tensor in history.items()}
    again, after_again = solver.step(x[order], level[order], clean[order], permuted, noise[order])
    assert torch.equal(again, stepped[order])
    assert all(torch.equal(after_again[key], after[key][order]) for key in after)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "eta"), SETTINGS)
def test_no_argument_is_changed(name: str, eta: float, schedule: NoiseSchedule) -> None:
    solver = make_solver(name, schedule, eta)
    x, level, history = mixed_batch(solver)
    arguments = [x, level, randn(*x.shape, seed=50), randn(*x.shape, seed=51), *history.values()]
    before, names = [tensor.clone() for tensor in arguments], list(history)
    stepped, _ = solver.step(x, level, arguments[2], history, arguments[3])
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
    assert list(history) == names
    assert all(stepped.data_ptr() != tensor.data_ptr() for tensor in arguments)


@pytest.mark.parametrize(("name", "eta"), SETTINGS)
def test_histories_hold_one_entry_per_latent(name: str, eta: float) -> None:
    solver = make_solver(name, SCHEDULES[0], eta)
    x, level, history = mixed_batch(solver)
    _, after = solver.step(x, level, torch.tanh(x), history, randn(*x.shape))
    fresh = solver.fresh_history(x)
    assert fresh.keys() == after.keys()
    assert all(len(tensor) == len(x) for tensor in (*fresh.values(), *after.values()))


# ---- names and errors


def test_names_lead_to_solvers() -> None:
    kinds = {"unipc": UniPCSolver, "ddim": DDIMSolver, "euler": EulerSolver, "renoise": RenoiseSolver}
    assert kinds.keys() == SOLVERS.keys()
    assert all(isinstance(make_solver(name, SCHEDULES[0]), kind) for name, kind in kinds.items())


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"'dpm'.*unipc, ddim, euler, renoise"):
        make_solver("dpm", SCHEDULES[0])


@pytest.mark.parametrize("name", ["unipc", "euler", "renoise"])
def test_eta_is_not_ignored_in_silence(name: str) -> None:
    with pytest.raises(ValueError, match="only 'ddim' reads it"):
        make_solver(name, SCHEDULES[0], eta=1.0)


def test_eta_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="eta = 2"):
        make_solver("ddim", SCHEDULES[0], eta=2.0)


@pytest.mark.parametrize(("name", "eta"), SETTINGS)
def test_stochastic_solvers_need_noise_and_no_others(name: str, eta: float) -> None:
    solver = make_solver(name, SCHEDULES[0], eta)
    assert solver.is_stochastic == ((name, eta) in STOCHASTIC)
    x = randn(2, *ODD_SHAPE)
    arguments = (x, torch.tensor([12, 7]), torch.tanh(x), solver.fresh_history(x))
    if solver.is_stochastic:
        with pytest.raises(ValueError, match=f"'{name}' is stochastic and was given no noise"):
            solver.step(*arguments)
    else:
        assert torch.equal(solver.step(*arguments)[0], solver.step(*arguments, randn(*x.shape, seed=1))[0])


@pytest.mark.parametrize("schedule", [flow_euler_schedule(4, 5.0), few_step_schedule((1000, 500), 5.0)])
def test_unipc_refuses_levels_without_signal(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match="signal scale 0: take flow_unipc_schedule"):
        make_solver("unipc", schedule)


# ---- Gaussian data


def variance(schedule: NoiseSchedule, std: float) -> list[float]:
    """Of the noised data, by level."""
    return (schedule.alpha**2 * std**2 + schedule.sigma**2).tolist()


def posterior_mean(schedule: NoiseSchedule, std: float, level: int, x: torch.Tensor) -> torch.Tensor:
    """What the best network predicts."""
    alpha = float(schedule.alpha[level])
    return MEAN + alpha * std**2 / variance(schedule, std)[level] * (x - alpha * MEAN)


def flow_endpoint(schedule: NoiseSchedule, std: float, level: int, x: torch.Tensor) -> torch.Tensor:
    """What the best step-distilled network predicts: where the probability flow leads to, a sample of the data."""
    return MEAN + std / math.sqrt(variance(schedule, std)[level]) * (x - float(schedule.alpha[level]) * MEAN)


def flow_error(solver: Solver, schedule: NoiseSchedule, std: float) -> float:
    """Distance from the exact solution of the probability flow, for a latent 1.3 deviations off the mean."""
    alpha, spread = schedule.alpha, [math.sqrt(v) for v in variance(schedule, std)]
    x = torch.full((1, 1, 1, 1), float(alpha[-1]) * MEAN + 1.3 * spread[-1], dtype=torch.float64)
    history = solver.fresh_history(x)
    for level in range(schedule.num_steps, 0, -1):
        x, history = solver.step(x, torch.tensor([level]), posterior_mean(schedule, std, level, x), history)
    return abs(float(x) - (float(alpha[0]) * MEAN + 1.3 * spread[0]))


def even_in_log_snr(num_steps: int) -> NoiseSchedule:
    a = torch.linspace(3.0, -3.0, num_steps + 1, dtype=torch.float64).mul(2.0).sigmoid()
    return NoiseSchedule(alpha=a.sqrt(), sigma=(1.0 - a).sqrt(), timestep=torch.arange(num_steps + 1))


def few_even_steps(num_steps: int) -> NoiseSchedule:
    return few_step_schedule([1000 * step // num_steps for step in range(num_steps, 0, -1)], 5.0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "make", "order"),
    [
        ("unipc", even_in_log_snr, 2.0),
        ("unipc", lambda num_steps: flow_unipc_schedule(num_steps, 1.0), 2.0),
        ("euler", even_in_log_snr, 1.0),
        ("euler", lambda num_steps: flow_unipc_schedule(num_steps, 5.0), 1.0),
        ("euler", lambda num_steps: flow_euler_schedule(num_steps, 5.0), 1.0),
        ("euler", few_even_steps, 1.0),
        ("euler", ddim_schedule, 1.0),
        ("ddim", even_in_log_snr, 1.0),
        ("ddim", ddim_schedule, 1.0),
        ("ddim", lambda num_steps: released_flow_schedule(num_steps, 5.0), 1.0),
    ],
)
def test_order_of_convergence_to_the_probability_flow(
    name: str, make: Callable[[int], NoiseSchedule], order: float
) -> None:
    errors = [
        sum(flow_error(make_solver(name, schedule), schedule, std) for std in STDS)
        for schedule in (make(num_steps) for num_steps in (16, 32, 64, 128))
    ]
    assert all(after < before for before, after in itertools.pairwise(errors))
    observed = math.log2(errors[0] / errors[-1]) / 3
    assert observed > order - 0.15, f"errors {errors} fall at order {observed:.2f}"
    assert errors[-1] < (0.1 if order == 1.0 else 0.001)


def test_unipc_beats_euler_at_equal_steps() -> None:
    for num_steps in (8, 20, 54):
        schedule = flow_unipc_schedule(num_steps, 5.0)
        unipc, euler = (
            sum(flow_error(make_solver(name, schedule), schedule, std) for std in STDS) for name in ("unipc", "euler")
        )
        assert unipc < euler


@pytest.mark.parametrize("name", ["unipc", "ddim", "euler"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_data_without_spread_is_reached_in_any_number_of_steps(name: str, num_steps: int) -> None:
    """The prediction is then the same at all levels, and every order is exact: the noise left is that of level 0."""
    for schedule in (flow_unipc_schedule(num_steps, 5.0), ddim_schedule(num_steps)):
        assert flow_error(make_solver(name, schedule), schedule, std=0.0) < 1e-9


Predict = Callable[[NoiseSchedule, float, int, torch.Tensor], torch.Tensor]


def moments(solver: Solver, schedule: NoiseSchedule, std: float, predict: Predict) -> tuple[float, float]:
    """Mean and variance at level 0 of latents that start as the noised data; three of them tell a linear step."""
    mean, spread = float(schedule.alpha[-1]) * MEAN, variance(schedule, std)[-1]
    x, noise = torch.eye(3, dtype=torch.float64)[1:, :, None, None, None]
    for level in range(schedule.num_steps, 0, -1):
        clean = predict(schedule, std, level, x)
        stepped, _ = solver.step(x, torch.full((3,), level), clean, solver.fresh_history(x), noise)
        offset, at_1, with_noise = stepped.flatten().tolist()
        mean = offset + (at_1 - offset) * mean
        spread = (at_1 - offset) ** 2 * spread + (with_noise - offset) ** 2
    return mean, spread


@pytest.mark.sampled(3)
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("make", [ddim_schedule, lambda num_steps: flow_unipc_schedule(num_steps, 5.0)])
@pytest.mark.parametrize("std", STDS)
def test_ddim_with_noise_converges_to_the_data(make: Callable[[int], NoiseSchedule], eta: float, std: float) -> None:
    errors = []
    for num_steps in (64, 128, 256, 512):
        schedule = make(num_steps)
        mean, spread = moments(make_solver("ddim", schedule, eta), schedule, std, posterior_mean)
        assert mean == pytest.approx(float(schedule.alpha[0]) * MEAN, abs=1e-9)
        errors.append(abs(spread - variance(schedule, std)[0]) / std**2)
    assert all(after < 0.7 * before for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.08


@pytest.mark.parametrize(
    "schedule",
    [few_step_schedule((1000, 750, 500, 250), 5.0), few_step_schedule((1000,), 5.0), flow_unipc_schedule(8, 3.0)],
)
@pytest.mark.parametrize("std", STDS)
def test_renoise_gives_the_data_in_any_number_of_steps(schedule: NoiseSchedule, std: float) -> None:
    """For a network that predicts samples, as step-distilled ones do."""
    mean, spread = moments(RenoiseSolver(schedule), schedule, std, flow_endpoint)
    assert mean == pytest.approx(MEAN, abs=1e-9)
    assert spread == pytest.approx(std**2, rel=1e-9)


def test_renoise_loses_variance_where_the_network_predicts_means() -> None:
    """Half of it, in the limit of many steps: why the solver is for distilled models alone."""
    schedule = flow_unipc_schedule(512, 5.0)
    _, spread = moments(RenoiseSolver(schedule), schedule, 0.7, posterior_mean)
    assert spread == pytest.approx(0.5 * 0.7**2, rel=0.05)
