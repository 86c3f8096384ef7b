"""Noise predictions to clean latents against recorded DDIM steps; guidance by level; the base clip's `use_scale`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from miga.backbones.videocrafter2.denoiser import VideoCrafter2Denoiser
from miga.backbones.videocrafter2.schedule import schedule_of
from miga.backbones.videocrafter2.spec import PUBLISHED, PUBLISHED_NAME, Settings
from miga.backbones.videocrafter2.unet import VideoCrafter2UNet
from miga.base_clip import base_clip_stepper
from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.errors import ConfigError, NonFiniteError
from miga.generate import Sampler
from miga.noise import NamedNoise
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.schedule import ddim_schedule, ddim_signal_scale
from miga.solvers import make_solver
from tests.tiny_videocrafter2 import architecture, recorded_unet

RECORDED = load_file(Path(__file__).parents[3] / "fixtures" / "vc2_ddim_fixture.safetensors")
TEXTS = (torch.ones(77, 8), torch.zeros(77, 8))


class StubUNet:
    """Predicts what it is told to, and remembers how it was called."""

    dtype = torch.float32

    def __init__(self, predict: Any) -> None:
        self.predict = predict
        self.calls: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        self.calls.append(arguments)
        return self.predict(*arguments)


def settings_for(**overrides: Any) -> SamplerConfig:
    return resolve_config("paper", PUBLISHED[PUBLISHED_NAME], overrides)


def frames_first(name: str) -> torch.Tensor:
    """A recorded `[B, C, F, H, W]` as `[B, F, C, H, W]`."""
    return RECORDED[name].transpose(1, 2)


def recorded_prediction() -> tuple[VideoCrafter2Denoiser, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A denoiser that predicts the recorded noise; latents, their levels, and their clean latents by it."""
    unet: Any = StubUNet(lambda *_: RECORDED["step.eps"])
    denoiser = VideoCrafter2Denoiser(unet, schedule_of(settings_for(), Settings()), 16, 1.0, 8)
    x = frames_first("step.x")
    level = (RECORDED["step.indices"] + 1).expand(2, -1)
    return denoiser, x, level, denoiser(x, level, [TEXTS, TEXTS])


def test_clean_latents_are_the_recorded_ones() -> None:
    _, _, _, clean = recorded_prediction()
    torch.testing.assert_close(clean, frames_first("step.fifo.eta1.0.pred_x0"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["fifo", "scaled"])
def test_steps_are_the_recorded_ones(kind: str, eta: float) -> None:
    """Single latents are stepped without the factor on the signal, the base clip with it."""
    denoiser, x, level, clean = recorded_prediction()
    nobody: Any = None
    stepper = Stepper(denoiser.schedule, make_solver("ddim", denoiser.schedule, eta), nobody, nobody, nobody)
    solver = base_clip_stepper(stepper, eta).solver if kind == "scaled" else stepper.solver
    flat = (value.flatten(0, 1) for value in (x, level, clean))
    noise = frames_first("step.noise").flatten(0, 1)
    stepped, _ = solver.step(*flat, {}, noise)
    expected = frames_first(f"step.{kind}.eta{eta}.x_prev").flatten(0, 1)
    torch.testing.assert_close(stepped, expected, rtol=1e-5, atol=2e-5)


def test_without_use_scale_the_base_clip_is_stepped_like_all_else() -> None:
    schedule = schedule_of(settings_for(), Settings(use_scale=False))
    nobody: Any = None
    stepper = Stepper(schedule, make_solver("ddim", schedule, 1.0), nobody, nobody, nobody)
    assert base_clip_stepper(stepper, 1.0) is stepper


def test_one_window_equals_a_plain_loop_of_the_published_sampler() -> None:
    """The whole base clip through `Sampler`, against the recorded schedule's own tables in a loop written here."""
    config = settings_for(window=4, stride=2, num_guidance_latents=2, zigzag_width=2, guidance_scale=1.0)
    unet: Any = StubUNet(lambda x, timestep, *_: torch.sin(3 * x + timestep[:, None, None, None, None] / 100))
    denoiser = VideoCrafter2Denoiser(unet, schedule_of(config, Settings()), config.window, config.guidance_scale, 8)
    noise = NamedNoise(3, (4, 2, 3))
    sampler = Sampler(denoiser, config, PromptTrack([TEXTS], 100), noise, None)
    state = sampler.start()
    while state.base is not None and int(state.base.level_F[0]) > 1:
        state, _ = sampler.advance(state)

    x = noise("base", range(4))
    tables = {name: RECORDED[f"fifo.ddim_{name}"].double() for name in ("alphas", "alphas_prev", "sigmas_eta1")}
    scale, scale_prev = (RECORDED[f"fifo.ddim_{name}"].double() for name in ("scale_arr", "scale_arr_prev"))
    for index in range(63, 0, -1):
        eps = torch.sin(3 * x + RECORDED["fifo.timesteps64"][index] / 100)
        a, a_prev, sigma = (tables[name][index].item() for name in ("alphas", "alphas_prev", "sigmas_eta1"))
        clean = (x - (1 - a) ** 0.5 * eps) / a**0.5 / scale[index].item()
        x = a_prev**0.5 * scale_prev[index].item() * clean + max(0.0, 1 - a_prev - sigma**2) ** 0.5 * eps
        x = x + sigma * noise(f"base/step@{index + 1}", range(4))
    torch.testing.assert_close(state.base.x_FCHW, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("spacing", "recorded", "num_steps"), [("linspace", "fifo", 64), ("strided", "orig", 67)])
def test_both_recorded_schedules(spacing: Any, recorded: str, num_steps: int) -> None:
    schedule = schedule_of(settings_for(num_steps=num_steps), Settings(spacing=spacing))
    assert schedule.num_steps == num_steps
    assert torch.equal(schedule.timestep[1:], RECORDED[f"{recorded}.timesteps64"])
    torch.testing.assert_close(schedule.alpha[1:] ** 2, RECORDED[f"{recorded}.ddim_alphas"].double())
    torch.testing.assert_close(schedule.alpha[:-1] ** 2, RECORDED[f"{recorded}.ddim_alphas_prev"].double())
    torch.testing.assert_close(schedule.base_clip_scale[1:], RECORDED[f"{recorded}.ddim_scale_arr"].double())
    torch.testing.assert_close(schedule.base_clip_scale[:-1], RECORDED[f"{recorded}.ddim_scale_arr_prev"].double())
    assert torch.equal(schedule.base_clip_scale, ddim_signal_scale(ddim_schedule(64, spacing)))


def test_steps_that_a_schedule_does_not_have() -> None:
    with pytest.raises(ConfigError, match="every n-th of 1000") as error:
        schedule_of(settings_for(num_steps=64), Settings(spacing="strided"))
    assert "63" in error.value.hint
    assert "67" in error.value.hint
    with pytest.raises(ConfigError, match="unipc"):
        schedule_of(settings_for(solver="unipc"), Settings())
    with pytest.raises(ConfigError, match="num_steps = 2000"):
        schedule_of(replace(settings_for(), num_steps=2000), Settings())


def test_what_the_network_is_told() -> None:
    unet: Any = StubUNet(lambda x, *_: x)
    denoiser = VideoCrafter2Denoiser(unet, ddim_schedule(64), 16, 12.0, 8)
    x = torch.randn(2, 3, 4, 2, 2)
    denoiser(x, torch.tensor([[64, 64, 64], [5, 5, 5]]), [TEXTS, TEXTS])
    for (given, timestep, context, fps), text in zip(unet.calls, TEXTS, strict=True):
        assert torch.equal(given, x.transpose(1, 2))
        assert torch.equal(timestep, RECORDED["fifo.timesteps64"][[63, 4]]), "one time step a window"
        assert torch.equal(context, torch.stack([text, text]))
        assert fps.tolist() == [8, 8]
    unet.calls.clear()
    denoiser(x, torch.tensor([[64, 64, 64], [5, 6, 0]]), [TEXTS, TEXTS])
    expected = RECORDED["fifo.timesteps64"][torch.tensor([[63, 63, 63], [4, 5, 0]])]
    assert all(torch.equal(call[1], expected) for call in unet.calls), "one a latent; level 0 is told level 1's"


def guided(scale: float, levels: tuple[int, int] | None = None) -> tuple[torch.Tensor, int]:
    """Clean latents at levels 2, 30 and 60 where prompt and negative prompt ask for noise of 1 and of 0."""
    unet: Any = StubUNet(lambda x, _, context, __: torch.ones_like(x) * context[0, 0, 0])
    denoiser = VideoCrafter2Denoiser(unet, ddim_schedule(64), 16, scale, 8, levels)
    return denoiser(torch.zeros(1, 3, 4, 2, 2), torch.tensor([[2, 30, 60]]), [TEXTS])[0], len(unet.calls)


def test_guidance_by_level() -> None:
    """With guidance w the noise is 0 + w * (1 - 0); a latent at zero is then at -w * sigma / alpha."""
    schedule = ddim_schedule(64)
    plain = -(schedule.sigma / schedule.alpha)[[2, 30, 60]].float()[:, None, None, None].expand(-1, 4, 2, 2)
    for scale, levels, factors, calls in (
        (12.0, None, (12, 12, 12), 2),
        (1.0, None, (1, 1, 1), 1),
        (12.0, (10, 64), (1, 12, 12), 2),
        (12.0, (30, 30), (1, 12, 1), 2),
        (12.0, (61, 64), (1, 1, 1), 1),
    ):
        clean, num_calls = guided(scale, levels)
        torch.testing.assert_close(clean, plain * torch.tensor(factors)[:, None, None, None], rtol=1e-5, atol=1e-5)
        assert num_calls == calls


def test_the_network_itself_equals_its_recorded_output() -> None:
    recorded, config = recorded_unet(), architecture().unet
    with torch.device("meta"):
        unet = VideoCrafter2UNet(config)
    weights = {name.removeprefix("weight."): w.float() for name, w in recorded.items() if name.startswith("weight.")}
    unet.load_state_dict(weights, assign=True)
    schedule = ddim_schedule(1000)  # level t + 1 is time t
    denoiser = VideoCrafter2Denoiser(unet.eval(), schedule, 16, 1.0, int(recorded["in.fps"][0]))
    x, level = recorded["in.x"][:1].transpose(1, 2), recorded["in.t_perframe"][:1] + 1
    clean = denoiser(x, level, [(recorded["in.context"][0], recorded["in.context"][0])])
    eps = recorded["out.perframe"][:1].transpose(1, 2)
    a = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    a = a[recorded["in.t_perframe"][0]].float()[:, None, None, None]
    torch.testing.assert_close(clean * a.sqrt(), x - (1 - a).sqrt() * eps, rtol=1e-4, atol=4e-5)


def test_a_network_that_breaks_down() -> None:
    unet: Any = StubUNet(lambda x, *_: x * float("nan"))
    denoiser = VideoCrafter2Denoiser(unet, ddim_schedule(64), 16, 1.0, 8)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        denoiser(torch.ones(1, 3, 4, 2, 2), torch.tensor([[2, 30, 60]]), [TEXTS])
