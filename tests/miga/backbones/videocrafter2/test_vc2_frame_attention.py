"""VideoCrafter2 under FreeNoise, FreeLong and FreePCA, against what their own programs computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from miga.backbones.videocrafter2.blocks import Conditioning, clips_of, frames_of
from miga.backbones.videocrafter2.denoiser import VideoCrafter2Denoiser
from miga.backbones.videocrafter2.footprint import VideoCrafter2Architecture
from miga.backbones.videocrafter2.schedule import schedule_of
from miga.backbones.videocrafter2.spec import PUBLISHED, PUBLISHED_NAME, Settings
from miga.backbones.videocrafter2.unet import UNetConfig, VideoCrafter2UNet
from miga.base_clip import base_clip_stepper
from miga.denoise_pass import Stepper, run_in_batches
from miga.errors import BadRowError
from miga.frame_attention import FrameAttention, FrameCall, FrameGrid
from miga.frame_texts import SeveralConditions
from miga.methods.freelong.attention import SpectralAttention
from miga.methods.freenoise.attention import WindowedAttention
from miga.methods.freenoise.text import MotionInjection
from miga.methods.freepca.attention import PrincipalAttention
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.solvers import make_solver
from miga.windows import Window
from tests.alive_bytes import AliveBytes, shapes_only
from tests.tiny_videocrafter2 import FIXTURES, architecture, recorded_unet, weight_names

RECORDED = load_file(FIXTURES / "extended_attention.safetensors")
X, TEXTS = RECORDED["freenoise.unet.in"], [*RECORDED["freenoise.unet.context"]]
NEGATIVE = RECORDED["freenoise.unet.negative"][0]
FREENOISE, FREELONG, FREEPCA = WindowedAttention(), SpectralAttention(), PrincipalAttention()


@pytest.fixture(scope="module")
def unet() -> VideoCrafter2UNet:
    recorded = recorded_unet()
    with torch.device("meta"):
        unet = VideoCrafter2UNet(architecture().unet)
    weights = {name: recorded[f"weight.{name}"].float() for name in weight_names(recorded, "weight.")}
    unet.load_state_dict(weights, assign=True)
    return unet.eval().requires_grad_(False)


def through(layer: Any, x_BCFHW: torch.Tensor, attention: FrameAttention | None, timestep: float = 801.0) -> Any:
    """A temporal transformer under an attention, not at the full resolution."""
    nothing: Any = None
    call = None if attention is None else FrameCall(attention, (timestep,) * len(x_BCFHW))
    conditioning = Conditioning(x_BCFHW.shape[2], nothing, nothing, call)
    return clips_of(layer(frames_of(x_BCFHW), conditioning), x_BCFHW.shape[2])


def call_of(attention: FrameAttention | None, *timesteps: float) -> dict[str, Any]:
    return {} if attention is None else {"frames": FrameCall(attention, timesteps)}


BLOCKS: dict[str, tuple[FrameAttention, str, str, float]] = {
    "freenoise": (FREENOISE, "freenoise.block.in", "freenoise.block.out", 801),
    "freelong, an odd height": (FREELONG, "freenoise.block.in", "freelong.block_odd.out", 801),
    "freelong, 128 frames": (FREELONG, "freelong.block_128.in", "freelong.block_128.out", 801),
    "freepca": (FREEPCA, "freenoise.block.in", "freepca.block.out_t801", 801),
    "freepca, late": (FREEPCA, "freenoise.block.in", "freepca.block.out_t250", 250),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_one_temporal_transformer(unet: VideoCrafter2UNet, name: str) -> None:
    attention, given, expected, timestep = BLOCKS[name]
    layer = unet.middle_block[2]
    out = through(layer, RECORDED[given], attention, timestep)
    torch.testing.assert_close(out, RECORDED[expected], atol=1e-5, rtol=0)
    without = through(layer, RECORDED[given], None)
    assert float((without - RECORDED[expected]).abs().max()) > 0.1


def test_freepca_fuses_above_its_time_step_alone(unet: VideoCrafter2UNet) -> None:
    late, early = (RECORDED[f"freepca.block.out_t{t}"] for t in (250, 801))
    assert float((late - early).abs().max()) > 0.1
    two = RECORDED["freenoise.block.in"].repeat(2, 1, 1, 1, 1)
    nothing: Any = None
    conditioning = Conditioning(64, nothing, nothing, FrameCall(FREEPCA, (250.0, 801.0)))
    out = clips_of(unet.middle_block[2](frames_of(two), conditioning), 64)
    torch.testing.assert_close(out, torch.cat([late, early]), atol=1e-5, rtol=0)


def test_the_first_temporal_transformer(unet: VideoCrafter2UNet) -> None:
    x, expected = RECORDED["freenoise.init_block.in"], RECORDED["freenoise.init_block.out"]
    torch.testing.assert_close(through(unet.init_attn[0], x, FREENOISE), expected, atol=1e-5, rtol=0)


class AsPublished:
    """FreeNoise where its windows leave a rest: the program gives that no attention."""

    def __call__(self, query: Any, key: Any, value: Any, grid: FrameGrid, timesteps: tuple[float, ...]) -> torch.Tensor:
        covered = (grid.num_frames - 16) // 4 * 4 + 16
        parts = [tensor[:, :, :covered] for tensor in (query, key, value)]
        out = torch.zeros_like(value)
        out[:, :, :covered] = FREENOISE(*parts, replace(grid, num_frames=covered), timesteps)
        return out


def test_frames_that_the_program_leaves_out(unet: VideoCrafter2UNet) -> None:
    x, expected = RECORDED["freenoise.block.in"][:, :, :30], RECORDED["freenoise.block.out_30_frames"]
    layer = unet.middle_block[2]
    torch.testing.assert_close(through(layer, x, AsPublished()), expected, atol=1e-5, rtol=0)
    ours = through(layer, x, FREENOISE)
    assert float((ours - expected)[:, :, 28:].abs().max()) > 0.1, "ours stands over them with a last window"


CALLS: dict[str, tuple[FrameAttention, str, int, int]] = {
    "freenoise": (FREENOISE, "freenoise.unet.out", 801, 16),
    "freelong": (FREELONG, "freelong.unet.out", 801, 28),
    "freepca": (FREEPCA, "freepca.unet.out_t801", 801, 28),
    "freepca, late": (FREEPCA, "freepca.unet.out_t201", 201, 28),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_the_network(unet: VideoCrafter2UNet, name: str) -> None:
    attention, expected, timestep, fps = CALLS[name]
    for given, agrees in ((attention, True), (None, False)):
        told = call_of(given, timestep)
        out = unet(X, torch.tensor([timestep]), TEXTS[0][None], torch.tensor([fps]), **told)
        assert (float((out - RECORDED[expected]).abs().max()) < 5e-5) == agrees
        assert agrees or float((out - RECORDED[expected]).norm() / out.norm()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("attention", [FREENOISE, FREELONG, FREEPCA])
def test_a_clip_does_not_depend_on_the_others_of_its_batch(unet: VideoCrafter2UNet, attention: FrameAttention) -> None:
    x = torch.cat([X[:, :, :22], X[:, :, 30:52]])
    timestep, text, fps = torch.tensor([801, 201]), torch.stack(TEXTS), torch.tensor([16, 28])
    together = unet(x, timestep, text, fps, **call_of(attention, 801, 201))
    for clip in range(2):
        one = slice(clip, clip + 1)
        alone = unet(x[one], timestep[one], text[one], fps[one], **call_of(attention, float(timestep[clip])))
        torch.testing.assert_close(together[one], alone, atol=2e-5, rtol=1e-5)


def test_texts_of_frames(unet: VideoCrafter2UNet) -> None:
    texts = [MotionInjection()(TEXTS, 32, step) for step in range(20)]
    expected = RECORDED["freenoise.mp.context_of_frame"]
    injected = [not torch.equal(down_FLD, up_FLD) for down_FLD, up_FLD in texts]
    assert injected == [step < 5 or step > 15 for step in range(20)]
    for step, (down_FLD, up_FLD) in enumerate(texts):
        torch.testing.assert_close(up_FLD, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            down_FLD, TEXTS[1].expand_as(down_FLD) if injected[step] else expected, atol=1e-6, rtol=0
        )
    with pytest.raises(BadRowError, match="3 prompts of one video"):
        MotionInjection()([*TEXTS, TEXTS[0]], 32, 0)


@pytest.mark.slow
def test_a_call_under_two_prompts(unet: VideoCrafter2UNet) -> None:
    expected = {injects: RECORDED[f"freenoise.mp.unet_out_injection_{injects}"] for injects in (0, 1)}
    for step, injects in ((7, 0), (2, 1)):
        down_FLD, up_FLD = MotionInjection()(TEXTS, 32, step)
        out = unet(
            X[:, :, :32], torch.tensor([801]), down_FLD, torch.tensor([16]),
            up_context_BLD=up_FLD, **call_of(FREENOISE, 801),
        )  # fmt: skip
        assert float((out - expected[injects]).abs().max()) < 5e-5
        assert float((out - expected[1 - injects]).norm() / out.norm()) > 0.1


def denoiser_of(unet: Any, num_steps: int, fps: int, attention: FrameAttention | None) -> VideoCrafter2Denoiser:
    """As the backbone makes it, with the published guidance of the three methods."""
    config = resolve_config("stage-2-only", PUBLISHED[PUBLISHED_NAME], {"num_steps": num_steps})
    schedule = schedule_of(config, Settings(spacing="strided", use_scale=True))
    return VideoCrafter2Denoiser(
        unet, schedule, 16, 12.0, fps, frame_attention=attention, frame_texts=MotionInjection()
    )


def trajectory(
    denoiser: VideoCrafter2Denoiser,
    noise_CFHW: torch.Tensor,
    condition: Any,
    eta: float,
    noises: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """The latents `[C, F, H, W]` after every step of one window over all of them; the steps' noise is passed in."""
    left, schedule, count = [*noises], denoiser.schedule, noise_CFHW.shape[1]
    nothing: Any = lambda *_: left.pop(0).transpose(0, 1)  # noqa: E731
    stepper = Stepper(
        schedule, make_solver("ddim", schedule, eta), PromptTrack([condition]), nothing, run_in_batches(denoiser)
    )
    stepper = base_clip_stepper(stepper, eta)
    queue, steps = stepper.fresh(noise_CFHW.transpose(0, 1), torch.full((count,), schedule.num_steps), 0), []
    for _ in range(schedule.num_steps):
        queue = stepper.pass_over(queue, [Window((), 0, count, 0, count)])
        steps.append(queue.x_FCHW.transpose(0, 1))
    return steps


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out - expected).norm() / expected.norm())


@pytest.mark.slow
def test_a_denoising_of_freenoise(unet: VideoCrafter2UNet) -> None:
    noise, expected = RECORDED["freenoise.noise.initial"], RECORDED["freenoise.ddim.x"]
    for attention, agrees in ((FREENOISE, True), (None, False)):
        steps = trajectory(denoiser_of(unet, 5, 16, attention), noise, (TEXTS[0], NEGATIVE), 0.0, [])
        differences = [relative(steps[step], x) for step, x in zip((0, 4), expected, strict=True)]
        assert max(differences) < 1e-4 if agrees else min(differences) > 1e-2


@pytest.mark.slow
def test_a_denoising_under_two_prompts(unet: VideoCrafter2UNet) -> None:
    noise, expected = RECORDED["freenoise.noise.initial"][:, :24], RECORDED["freenoise.mp.ddim_x"]
    condition = SeveralConditions(tuple((text, NEGATIVE) for text in TEXTS))
    steps = trajectory(denoiser_of(unet, 20, 16, FREENOISE), noise, condition, 0.0, [])
    for step, x in zip((4, 5, 19), expected, strict=True):
        assert relative(steps[step], x) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("attention", [FREELONG, FREEPCA])
def test_an_ancestral_denoising(unet: VideoCrafter2UNet, attention: FrameAttention) -> None:
    """Two steps with noise that is passed in, against DDIM as it is written in the paper (Song et al., Eq. 12, 16)."""
    draw = torch.Generator().manual_seed(0)
    first, *noises = (torch.randn(4, 18, 8, 12, generator=draw) for _ in range(3))
    steps = trajectory(denoiser_of(unet, 2, 28, attention), first, (TEXTS[0], NEGATIVE), 1.0, noises)
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = (1 - beta).cumprod(0).float()
    scale = torch.cat([torch.linspace(1, 0.7, 400), torch.full((600,), 0.7)])
    x = first[None]
    for number, (t, before) in enumerate(((501, 1), (1, 0))):
        eps, away = (
            unet(x, torch.tensor([t]), text[None], torch.tensor([28]), **call_of(attention, t))
            for text in (TEXTS[0], NEGATIVE)
        )
        eps = away + 12 * (eps - away)
        clean = (x - (1 - a[t]).sqrt() * eps) / a[t].sqrt() / scale[t]
        spread = ((1 - a[before]) / (1 - a[t]) * (1 - a[t] / a[before])).sqrt()
        direction = (1 - a[before] - spread**2).sqrt() * eps
        x = a[before].sqrt() * scale[before] * clean + direction + spread * noises[number]
        assert relative(steps[number], x[0]) < 1e-4


def test_the_denoiser_gives_its_attention_to_the_call_and_leaves_the_network_alone() -> None:
    """Two denoisers of one network, of which one has an attention: the other's call is told nothing."""
    calls: list[dict[str, Any]] = []

    class Network:
        dtype = torch.float32

        def __call__(self, x: torch.Tensor, *_: torch.Tensor, **told: Any) -> torch.Tensor:
            calls.append(told)
            return x

    network = Network()
    x, level = torch.zeros(2, 20, 4, 2, 3), torch.tensor([[3] * 20, [1] * 20])
    conditions = [(TEXTS[0], NEGATIVE)] * 2
    denoiser_of(network, 4, 16, FREENOISE)(x, level, conditions)
    denoiser_of(network, 4, 16, None)(x, level, conditions)
    assert [told.keys() for told in calls] == [{"frames"}] * 2 + [{}.keys()] * 2
    assert calls[0]["frames"] == FrameCall(FREENOISE, (501.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("attention", [FREENOISE, FREELONG, FREEPCA])
def test_memory_of_128_frames(attention: FrameAttention) -> None:
    """The two upper levels of the published network, which hold the most: what a call takes beyond its weights.

    The whole network was measured once, in bfloat16: 0.95 of the plan's figure in all of them (docs/log.md).
    """
    spec, plan = PUBLISHED[PUBLISHED_NAME], VideoCrafter2Architecture()
    config = UNetConfig(channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2, 1))
    peaks = []
    with shapes_only(torch.bfloat16):
        unet = VideoCrafter2UNet(config)
        for frames, height, width in ((1, 1, 1), (128, 40, 64)):
            inputs = torch.randn(1, 4, frames, height, width), torch.full((1,), 801), torch.randn(1, 77, 1024)
            with AliveBytes() as alive:
                unet(*inputs, torch.ones(1), **call_of(attention, 801))
            peaks.append(alive.peak)
    assert peaks[1] - peaks[0] <= 1.1 * plan.window_bytes(spec, 128, torch.bfloat16)
