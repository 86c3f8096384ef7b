"""The denoiser against WanPipeline, one window at uniform levels, and against itself at mixed levels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel

from miga.backbones.guided_denoiser import TextCondition
from miga.backbones.loading import load_component
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.denoiser import WanDenoiser
from miga.errors import NonFiniteError
from miga.schedule import flow_unipc_schedule
from miga.solvers.unipc import UniPCSolver
from tests.tiny_wan import NUM_CHANNELS, TEXT_DIM, TRANSFORMER_CONFIG, build_tiny_wan, build_transformer, load_pipeline

PROMPT, NEGATIVE = "a red ball rolls, slowly.", "blurred, slow"
WINDOW, LATENT = 6, (NUM_CHANNELS, 4, 6)
NUM_STEPS, SHIFT = 54, 5.0


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "residual"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_wan(tmp_path_factory.mktemp("wan"), residual=request.param)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(ours: torch.Tensor, reference: torch.Tensor) -> None:
    scale = max(1.0, float(reference.abs().max()))
    assert float((ours - reference).abs().max()) <= 1e-5 * scale


def make_denoiser(transformer: torch.nn.Module, guidance_scale: float = 5.0) -> WanDenoiser:
    return WanDenoiser(transformer, flow_unipc_schedule(NUM_STEPS, SHIFT), WINDOW, guidance_scale)


def sample(denoiser: WanDenoiser, x_FCHW: torch.Tensor, condition: TextCondition) -> torch.Tensor:
    solver = UniPCSolver(denoiser.schedule)
    history = solver.fresh_history(x_FCHW)
    for r in range(denoiser.schedule.num_steps, 0, -1):
        level = torch.full((len(x_FCHW),), r)
        x_FCHW, history = solver.step(x_FCHW, level, denoiser(x_FCHW[None], level[None], [condition])[0], history)
    return x_FCHW


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.sampled(8)
def test_latents_and_video_equal_the_pipeline(folder: Path, compact: bool, guidance_scale: float) -> None:
    backbone = WanBackbone.from_pretrained(folder, device="cpu")
    if not compact:
        backbone.network = load_component(WanTransformer3DModel, "transformer", folder, torch.float32)
    x = noise(WINDOW, *LATENT)
    condition = backbone.condition(*backbone.encode_prompts([PROMPT, NEGATIVE]))
    latents = sample(make_denoiser(backbone.network, guidance_scale), x, condition)
    frames = backbone.frame_decoder().decode_float(latents)

    pipeline = load_pipeline(folder)
    arguments = dict(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=32,
        width=48,
        num_frames=4 * WINDOW - 3,
        num_inference_steps=NUM_STEPS,
        guidance_scale=guidance_scale,
    )
    x_BCFHW = x.transpose(0, 1)[None]
    reference = pipeline(**arguments, latents=x_BCFHW, output_type="latent").frames[0].transpose(0, 1)
    video = torch.from_numpy(pipeline(**arguments, latents=x_BCFHW, output_type="np").frames[0])
    assert_near(latents, reference)
    assert float((frames - video).abs().max()) <= 1e-5


@pytest.fixture(scope="module")
def conditions() -> list[TextCondition]:
    return [(noise(length, TEXT_DIM, seed=length), noise(4, TEXT_DIM, seed=4)) for length in (9, 17)]


def test_windows_of_a_batch_are_independent(conditions: list[TextCondition]) -> None:
    denoiser = make_denoiser(build_transformer())
    x = noise(3, WINDOW, *LATENT)
    level = torch.tensor([[54, 54, 20, 20, 3, 0], [7] * 6, [1, 2, 3, 4, 5, 6]])
    conditions = [conditions[0], conditions[1], conditions[0]]
    together = denoiser(x, level, conditions)
    for b in range(3):
        alone = denoiser(x[b : b + 1], level[b : b + 1], conditions[b : b + 1])
        assert_near(together[b : b + 1], alone)
    assert torch.equal(together[0, 5], x[0, 5])  # level 0 is clean already


def test_every_latent_sees_its_own_time_step(conditions: list[TextCondition]) -> None:
    """SkyReels V2's transformer is the same network with one time step per latent."""
    transformer = build_transformer()
    oracle = SkyReelsV2Transformer3DModel(**TRANSFORMER_CONFIG).eval()
    oracle.load_state_dict(transformer.state_dict(), strict=True)
    denoiser = make_denoiser(transformer, guidance_scale=1.0)
    x = noise(2, WINDOW, *LATENT)
    level = torch.tensor([[54, 40, 40, 20, 3, 1], [1, 2, 3, 4, 5, 6]])
    text = torch.stack([torch.nn.functional.pad(text, (0, 0, 0, 512 - len(text))) for text, _ in conditions])
    with torch.no_grad():
        timestep = denoiser.schedule.timestep[level]
        velocity = oracle(x.transpose(1, 2), timestep, text, enable_diffusion_forcing=True, return_dict=False)[0]
    expected = x - denoiser.schedule.at(denoiser.schedule.sigma, level, x) * velocity.transpose(1, 2)
    assert_near(denoiser(x, level, conditions), expected)


def test_nan_is_the_rows_error(conditions: list[TextCondition]) -> None:
    denoiser = make_denoiser(build_transformer())
    x = noise(1, WINDOW, *LATENT)
    x[0, 2, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        denoiser(x, torch.full((1, WINDOW), 30), conditions[:1])


def test_bfloat16_stays_near_float32(conditions: list[TextCondition], tmp_path: Path) -> None:
    transformers = [build_transformer(), build_transformer()]
    transformers[0].save_pretrained(tmp_path)
    transformers[1] = type(transformers[0]).from_pretrained(tmp_path, dtype=torch.bfloat16)
    x, level = noise(1, WINDOW, *LATENT), torch.tensor([[54, 40, 40, 20, 3, 1]])
    full, half = (make_denoiser(transformer, 1.0)(x, level, conditions[:1]) for transformer in transformers)
    assert half.dtype == torch.float32
    assert float((full - half).abs().max()) < 0.1
