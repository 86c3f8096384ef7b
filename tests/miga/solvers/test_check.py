"""Whatever a config may hold, its schedule either can be stepped through, or is refused by the name of the setting."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miga.backbones.registry import check_schedule, load_spec
from miga.backbones.wan.schedule import schedule_of
from miga.config import MAX_GUIDANCE, MAX_STEPS, SamplerConfig
from miga.errors import ConfigError
from miga.generate import Sampler
from miga.noise import NamedNoise
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.schedule import NoiseSchedule, check_levels, ddim_schedule, flow_unipc_schedule
from miga.solvers import make_solver
from miga.solvers.check import check_steps
from tests.miga.closed_form import SHAPE, GaussianDenoiser, make_config

EXTREMES = [
    5e-324, 1e-310, 2.3e-308, 1e-300, 1e-46, 1e-38, 1e-12, 1e-7, 1e-4, 0.01, 1.0, 5.0, 100.0, 1e3, 1e4, 3e4, 1e5, 1e7,
    1e16, 1e38, 1e300, 1.79e308,
]  # fmt: skip
SOLVERS: list[dict[str, Any]] = [
    {"solver": "unipc"}, {"solver": "ddim"}, {"solver": "ddim", "eta": 1.0}, {"solver": "euler"}, {"solver": "renoise"},
    {"solver": "unipc", "method": "released", "released_branch": "wan"},
]  # fmt: skip


def steps_down(config: SamplerConfig, schedule: NoiseSchedule, dtype: torch.dtype) -> torch.Tensor:
    """Latents of every starting level, taken down to 0 by a network that knows each one's clean latent."""
    solver = make_solver(config.solver, schedule, config.eta)
    chance = torch.Generator().manual_seed(0)
    clean = torch.randn(config.num_steps, 1, 2, 2, generator=chance).to(dtype)
    level = torch.arange(1, config.num_steps + 1)
    x = schedule.add_noise(clean, torch.randn(clean.shape, generator=chance).to(dtype), level)
    history, ended = solver.fresh_history(x), []
    while len(level):
        noise = torch.randn(x.shape, generator=chance).to(dtype)
        x, history = solver.step(x, level, clean, history, noise)
        assert bool(torch.isfinite(x).all())
        ended.append((x[:1] - clean[:1]).float())
        x, level, clean = x[1:], level[1:] - 1, clean[1:]
        history = {name: tensor[1:] for name, tensor in history.items()}
    return torch.cat(ended)


def check(config: SamplerConfig) -> bool:
    """Whether a schedule is taken; if so, it works in every precision. If not, the settings are named."""
    schedule = schedule_of(config)
    try:
        check_steps(config, schedule)
    except ConfigError as error:
        message = error.message
        named = "sampler.timesteps = " if config.timesteps else "sampler.num_steps = "
        assert named in message, message
        assert "sampler.flow_shift = " in message
        return False
    for dtype, most in ((torch.float32, 1e-3), (torch.bfloat16, 0.5), (torch.float64, 1e-3)):
        assert float(steps_down(config, schedule, dtype).abs().max()) < most
    return True


@pytest.mark.sampled(5)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("shift", EXTREMES)
def test_extreme_shifts_work_or_are_refused(shift: float, solver: dict[str, Any]) -> None:
    taken = [check(make_config(flow_shift=shift, num_steps=num_steps, **solver)) for num_steps in (12, 54)]
    if 1e-4 <= shift <= 1e3:
        assert all(taken)
    if not 1e-40 < shift < 1e30:
        assert not any(taken)


@settings(max_examples=150, deadline=None)
@given(
    shift=st.floats(min_value=5e-324, max_value=1.79e308),
    num_steps=st.integers(12, 60),
    solver=st.sampled_from(SOLVERS),
)
def test_any_shift_works_or_is_refused(shift: float, num_steps: int, solver: dict[str, Any]) -> None:
    check(make_config(flow_shift=shift, num_steps=num_steps, **solver))


@settings(max_examples=100, deadline=None)
@given(
    shift=st.floats(min_value=5e-324, max_value=1.79e308),
    timesteps=st.lists(st.integers(1, 1000), min_size=1, max_size=8, unique=True),
    solver=st.sampled_from(["euler", "renoise"]),
)
def test_any_list_of_few_steps_works_or_is_refused(shift: float, timesteps: list[int], solver: Any) -> None:
    falling = sorted(timesteps, reverse=True)
    check(make_config(method="unified", solver=solver, timesteps=falling, num_steps=len(falling), flow_shift=shift))


@pytest.mark.parametrize("shift", [0.0, -0.0, -1.0, -5e-324, math.nan, math.inf, -math.inf])
def test_shifts_that_are_none(shift: float) -> None:
    with pytest.raises(ConfigError, match=r"sampler\.flow_shift = "):
        make_config(flow_shift=shift)
    with pytest.raises(ValueError, match="flow_shift"):
        flow_unipc_schedule(12, shift)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_steps": MAX_STEPS + 1}, "num_steps"),
        ({"num_steps": 10**18}, "num_steps"),
        ({"window": 10**12}, "window"),
        ({"guidance_scale": MAX_GUIDANCE * 1.1}, "guidance_scale"),
        ({"guidance_scale": 1e300}, "guidance_scale"),
        ({"guidance_scale": math.nan}, "guidance_scale"),
        ({"self_reflection": True, "num_candidates": 10**9}, "num_candidates"),
        ({"eta": 5e-324}, "eta"),
        ({"eta": math.nan}, "eta"),
    ],
)
def test_other_settings_that_no_machine_bears(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"sampler\.{name} = "):
        make_config(**changes)


@pytest.mark.slow
def test_as_many_steps_as_may_be() -> None:
    assert check(make_config(num_steps=MAX_STEPS))


def test_found_before_a_run_and_by_the_sampler() -> None:
    config = resolve_config("swift", load_spec("simulated:wan"), {"flow_shift": 1e300})
    with pytest.raises(ConfigError, match=r"sampler\.flow_shift = 1e\+300"):
        check_schedule("sprites", config)
    small = make_config(flow_shift=1e300)
    with pytest.raises(ConfigError, match=r"sampler\.flow_shift = 1e\+300"):
        Sampler(GaussianDenoiser(small), small, PromptTrack([0.5]), NamedNoise(0, SHAPE), 5)
    with pytest.raises(ConfigError, match="the denoiser's schedule has 12 steps"):
        Sampler(GaussianDenoiser(make_config()), make_config(num_steps=13), PromptTrack([0.5]), NamedNoise(0, SHAPE), 5)


@pytest.mark.parametrize("model", ["simulated:wan", "simulated:videocrafter2"])
def test_simulated_models_are_checked_as_their_families_are(model: str) -> None:
    spec = load_spec(model)
    check_schedule(model, resolve_config("paper", spec))
    if spec.family == "wan":
        with pytest.raises(ConfigError, match=r"sampler\.flow_shift = "):
            check_schedule(model, resolve_config("paper", spec, {"flow_shift": 1e-300}))


@pytest.mark.parametrize("profile", ["swift", "paper", "fifo", "stage-2-only", "released"])
def test_the_published_settings_are_taken(profile: str) -> None:
    for name in ("simulated:wan", "simulated:videocrafter2"):
        check_schedule(name, resolve_config(profile, load_spec(name)))


def test_renoise_would_leave_noise_on_finished_latents_of_videocrafter2() -> None:
    """Its schedule ends at sigma 0.029; with a flow schedule, which ends at 0, the last step is the prediction."""
    spec = load_spec("simulated:videocrafter2")
    with pytest.raises(ConfigError, match=r"sampler\.solver = 'renoise' would leave noise on this model's finished"):
        resolve_config("swift", spec, {"solver": "renoise"})
    schedule = ddim_schedule(12)
    assert float(schedule.sigma[0]) > 0.02
    config = make_config(solver="renoise")
    with pytest.raises(ConfigError, match=r"would leave noise of 0\.0\d+ on finished latents"):
        check_steps(config, schedule)
    check_steps(config, schedule_of(config))
    for solver in ("ddim", "euler"):
        check_steps(make_config(solver=solver), schedule)


TABLES = flow_unipc_schedule(4, 5.0)


def changed(table: str, level: int, value: float) -> NoiseSchedule:
    tensor = getattr(TABLES, table).clone().double()
    tensor[level] = value
    return replace(TABLES, **{table: tensor})


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (changed("sigma", 2, math.nan), "its sigma is not finite at level 2"),
        (changed("alpha", 3, math.inf), "its alpha is not finite at level 3"),
        (changed("timestep", 1, math.nan), "its timestep is not finite at level 1"),
        (changed("sigma", 2, 0.0), "a level above 0 has no noise"),
        (changed("alpha", 4, -0.1), "or one a signal below 0"),
        (changed("sigma", 2, 2.0), "no step leads from level 3"),
        (replace(TABLES, sigma=TABLES.sigma[:3]), "its alpha is no table over levels"),
        (NoiseSchedule(torch.ones(1), torch.zeros(1), torch.zeros(1)), "its alpha is no table over levels"),
        (NoiseSchedule(torch.ones(3), torch.tensor([0.0, 0.5, 0.5]), torch.arange(3)), "no step leads from level 2"),
    ],
)
def test_levels_that_no_solver_can_step_between(schedule: NoiseSchedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_levels(schedule)


def test_a_first_step_that_changes_nothing_is_no_fault() -> None:
    """VideoCrafter2's 64 steps: level 1 stands where level 0 does."""
    schedule = ddim_schedule(64)
    assert schedule.sigma[0] == schedule.sigma[1]
    check_levels(schedule)
