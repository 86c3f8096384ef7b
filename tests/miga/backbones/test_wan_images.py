"""Image models and Wan2.2 against diffusers' pipelines: one uniform window, from the folder's files to the frames."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline

from miga.backbones.guided_denoiser import TextCondition
from miga.backbones.registry import experts_of_levels, load_backbone, load_spec
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.denoiser import WanCondition, WanDenoiser
from miga.cost import count_calls
from miga.errors import BadRowError
from miga.image_condition import Channels, HeldFirst, Pictures, condition_of_frames
from miga.profiles import resolve_config
from miga.schedule import flow_unipc_schedule
from miga.solvers.unipc import UniPCSolver
from miga.video import VideoRun
from tests.tiny_wan import IMAGE_KINDS, NUM_CHANNELS, build_tiny_image_wan, build_transformer

PROMPT, NEGATIVE = "a red ball rolls, slowly.", "blurred, slow"
WINDOW, NUM_STEPS, SHIFT, GUIDANCE = 6, 12, 5.0, 4.0
NUM_FRAMES = 4 * WINDOW - 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {kind: build_tiny_image_wan(tmp_path_factory.mktemp(kind), kind) for kind in IMAGE_KINDS}


def picture(seed: int = 3) -> torch.Tensor:
    """`[3, H, W]`, -1 ... 1."""
    return torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def config_of(backbone: WanBackbone) -> Any:
    settings = {"num_steps": NUM_STEPS, "flow_shift": SHIFT, "guidance_scale": GUIDANCE, "window": WINDOW}
    return resolve_config("stage-2-only", backbone.spec, {**settings, "stride": 3, "unified_stride": 3})


def sample(backbone: WanBackbone, x_FCHW: torch.Tensor, condition: TextCondition, pictures: Any) -> torch.Tensor:
    denoiser = backbone.denoiser(config_of(backbone))
    solver = UniPCSolver(denoiser.schedule)
    history, indices = solver.fresh_history(x_FCHW), list(range(len(x_FCHW)))
    for r in range(NUM_STEPS, 0, -1):
        level = torch.full((len(x_FCHW),), r)
        seen, at = (x_FCHW, level) if pictures is None else pictures.show(x_FCHW, level, indices)
        clean = denoiser(seen[None], at[None], [condition])[0]
        clean = clean if pictures is None else pictures.keep(clean, indices)
        x_FCHW, history = solver.step(x_FCHW, level, clean, history)
    return x_FCHW


def of_diffusers(kind: type[Any], folder: Path, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents `[F, C, H, W]` and frames of a pipeline."""
    pipeline = kind.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.register_to_config(flow_shift=SHIFT)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, flow_shift=SHIFT)
    shared = dict(
        prompt=PROMPT, negative_prompt=NEGATIVE, height=32, width=48, num_frames=NUM_FRAMES,
        num_inference_steps=NUM_STEPS, guidance_scale=GUIDANCE, **arguments,
    )  # fmt: skip
    latents = pipeline(**shared, output_type="latent").frames[0].transpose(0, 1)
    return latents, torch.from_numpy(pipeline(**shared, output_type="np").frames[0])


def noise(backbone: WanBackbone) -> torch.Tensor:
    return torch.randn(WINDOW, *backbone.spec.latent_shape, generator=torch.Generator().manual_seed(0))


def assert_near(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    assert float((ours - reference).abs().max()) <= 1e-5 * max(1.0, float(reference.abs().max()))


def condition_of(backbone: WanBackbone) -> Any:
    return backbone.condition(*backbone.encode_prompts([PROMPT, NEGATIVE]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "has_last"), [("i2v", False), ("i2v-a14b", False), ("i2v-a14b", True)], ids=["2.1", "2.2", "2.2-last"]
)
def test_channels(folders: Mapping[str, Path], kind: str, has_last: bool) -> None:
    backbone = load_backbone(str(folders[kind]), device="cpu")
    assert isinstance(backbone, WanBackbone)
    first, last = picture(), picture(4)
    y = condition_of_frames(backbone.encode_frames, first[None], NUM_FRAMES, 4, last_CHW=last if has_last else None)
    tokens = backbone.image_tokens(first[None])
    x, condition = noise(backbone), condition_of(backbone)
    with pytest.raises(BadRowError, match="from a picture"):
        backbone.denoiser(config_of(backbone))(x[None], torch.full((1, WINDOW), 3), [condition])
    latents = sample(backbone, x, backbone.with_image(condition, tokens), Channels(y))
    arguments: dict[str, Any] = {"image": first[None], "latents": x.transpose(0, 1)[None]}
    arguments |= {"last_image": last[None]} if has_last else {}
    if kind == "i2v":  # diffusers' processor rounds and crops pictures first (`wan/image.py`): its tokens are another's
        assert tokens is not None
        pipeline = WanImageToVideoPipeline.from_pretrained(folders[kind], local_files_only=True)
        assert tokens.shape == (5, 20)
        square = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(1)).mul(255).round()
        theirs = pipeline.encode_image(square[0].permute(1, 2, 0).to(torch.uint8).numpy())[0]
        assert float((backbone.image_tokens(square / 127.5 - 1.0) - theirs).abs().max()) <= 1e-5  # type: ignore[operator]
        arguments = {**arguments, "image_embeds": tokens[None]}
        pipeline_kind: type[Any] = _WithBoth
    else:
        assert tokens is None
        pipeline_kind = WanImageToVideoPipeline
    expected, video = of_diffusers(pipeline_kind, folders[kind], **arguments)
    assert_near(latents, expected)
    frames = backbone.frame_decoder().decode_float(latents)
    assert float((frames - video).abs().max()) <= 1e-5


class _WithBoth(WanImageToVideoPipeline):
    """diffusers refuses a picture beside its tokens; it needs both."""

    def check_inputs(self, *args: Any, **kwargs: Any) -> None:
        return


def test_two_experts(folders: Mapping[str, Path]) -> None:
    backbone = load_backbone(str(folders["t2v-a14b"]), device="cpu")
    assert isinstance(backbone, WanBackbone)
    backbone.low_noise_guidance = 0.75
    x = noise(backbone)
    latents = sample(backbone, x, condition_of(backbone), None)
    expected, video = of_diffusers(
        WanPipeline, folders["t2v-a14b"], guidance_scale_2=0.75 * GUIDANCE, latents=x.transpose(0, 1)[None]
    )
    assert_near(latents, expected)
    assert float((backbone.frame_decoder().decode_float(latents) - video).abs().max()) <= 1e-5


def test_each_latent_takes_its_own_experts_answer(folders: Mapping[str, Path]) -> None:
    backbone = load_backbone(str(folders["t2v-a14b"]), device="cpu")
    assert isinstance(backbone, WanBackbone)
    denoiser, condition = backbone.denoiser(config_of(backbone)), condition_of(backbone)
    is_low = denoiser.schedule.timestep < 875
    highest_low = int(is_low.nonzero()[-1])
    assert 0 < highest_low < NUM_STEPS
    level = torch.tensor([[1, highest_low, highest_low + 1, NUM_STEPS, highest_low, highest_low + 1]])
    x = noise(backbone)[None]
    mixed = denoiser(x, level, [condition])
    assert denoiser.experts.low is not None
    calls = []
    for network in denoiser.experts.all:
        alone = type(denoiser)(network, denoiser.schedule, WINDOW, GUIDANCE)
        calls.append(alone(x, level, [condition]))
    for place, r in enumerate(level[0].tolist()):
        assert_near(mixed[0, place], calls[int(r <= highest_low)][0, place])
    assert float((calls[0] - calls[1]).abs().max()) > 0.1


def test_one_expert_on_the_device_at_a_time(folders: Mapping[str, Path]) -> None:
    """Places are traded; the answers stay. (Without a card the other device is the one without memory.)"""
    backbone = load_backbone(str(folders["t2v-a14b"]), device="cpu")
    assert isinstance(backbone, WanBackbone)
    experts = backbone.experts
    moved: list[tuple[int, str]] = []
    for number, network in enumerate(experts.all):
        network.to = lambda device, number=number: moved.append((number, str(device)))  # type: ignore[method-assign, misc]
    backbone.save_memory(fp8=False, vae_dtype=torch.float32, one_expert=True)
    experts.to(torch.device("meta"))
    assert moved == [(0, "meta"), (1, "cpu")]
    moved.clear()
    with experts.asked(1) as network:
        assert network is experts.low
    assert moved == [(0, "cpu"), (1, "meta")]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("has_picture", [False, True])
def test_first_latent(folders: Mapping[str, Path], has_picture: bool) -> None:
    """Wan2.2 5B: clean latents have time step 0, as diffusers' `expand_timesteps` has it."""
    folder = folders["ti2v"]
    backbone = load_backbone(str(folder), device="cpu")
    assert isinstance(backbone, WanBackbone)
    x, pictures = noise(backbone), None
    arguments: dict[str, Any] = {"latents": x.transpose(0, 1)[None]}
    if has_picture:
        pictures = HeldFirst(backbone.encode_frames(picture()[None]))
        arguments["image"] = picture()[None]
    latents = sample(backbone, x, condition_of(backbone), pictures)
    kind = WanImageToVideoPipeline if has_picture else WanPipeline
    expected, video = of_diffusers(kind, folder, **arguments)
    assert_near(latents, expected)
    assert float((backbone.frame_decoder().decode_float(latents) - video).abs().max()) <= 1e-5


def test_a_model_between_two_pictures_needs_both() -> None:
    network = build_transformer(
        in_channels=2 * NUM_CHANNELS + 4, added_kv_proj_dim=24, image_dim=8, pos_embed_seq_len=10
    )
    denoiser = WanDenoiser(network, flow_unipc_schedule(NUM_STEPS, SHIFT), WINDOW, 1.0)
    x, level = torch.randn(1, WINDOW, 12, 4, 6), torch.full((1, WINDOW), 3)
    text = torch.randn(4, 16)
    assert denoiser(x, level, [WanCondition(text, text, torch.randn(10, 8))]).shape == (1, WINDOW, NUM_CHANNELS, 4, 6)
    with pytest.raises(BadRowError, match="between two pictures"):
        denoiser(x, level, [WanCondition(text, text, torch.randn(5, 8))])


def test_specs_of_the_folders(folders: Mapping[str, Path]) -> None:
    specs = {kind: load_spec(str(folder)) for kind, folder in folders.items()}
    assert {kind: spec.image_input for kind, spec in specs.items()} == {
        "i2v": "channels", "t2v-a14b": "held", "i2v-a14b": "channels", "ti2v": "first_latent",
    }  # fmt: skip
    assert [specs[kind].expert_boundary for kind in ("i2v", "t2v-a14b", "i2v-a14b")] == [None, 0.875, 0.9]
    assert [specs[kind].takes_last_image for kind in ("i2v", "i2v-a14b", "ti2v")] == [False, True, False]
    assert all(spec.latent_channels == NUM_CHANNELS for spec in specs.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "profile",
    ["swift", *(pytest.param(each, marks=pytest.mark.slow) for each in ("svi-shot", "no-reflection", "fifo"))],
)
def test_forwards_of_two_experts_are_as_counted(folders: Mapping[str, Path], profile: str) -> None:
    """Every forward of either network of a whole video, against what a dry run says."""
    kind = "i2v-a14b" if profile.startswith("svi") else "t2v-a14b"
    backbone = load_backbone(str(folders[kind]), device="cpu")
    assert isinstance(backbone, WanBackbone)
    settings: dict[str, Any] = {"num_steps": 10, "guidance_scale": GUIDANCE}
    if profile in ("swift", "no-reflection"):
        settings |= {"num_guidance_latents": 2, "judged_group": 1, "handoff_level": 5}
    config = resolve_config(profile, backbone.spec, settings)
    num_latents = 2 * WINDOW if kind == "i2v-a14b" else 14
    asked = [0, 0]

    def count(number: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked[number] += len(args[0] if args else kwargs["hidden_states"])

    for number, network in enumerate(backbone.experts.all):
        network.register_forward_pre_hook(functools.partial(count, number), with_kwargs=True)
    texts = backbone.encode_prompts([PROMPT, NEGATIVE])
    pictures = Pictures(backbone, picture()) if kind == "i2v-a14b" else None
    run = VideoRun(backbone, config, [texts[0]], texts[1], num_latents, 0, pictures=pictures)
    for _ in run.steps():
        pass
    experts = experts_of_levels(backbone.spec, config)
    assert set(experts) == {0, 1}
    found = count_calls(config, num_latents, experts)
    assert run.num_calls == found.total
    assert sum(asked) == found.forwards
    assert (found.num_by_both > 0) == (kind == "t2v-a14b"), "clips are at one level, queues are not"
    assert min(asked) > 0
