"""Our VideoCrafter2 UNet against the original: the published checkpoint's keys, recorded outputs of a tiny network.

Legend: B clips in a batch, F frames of a clip, N = B * F, C channels, H, W latent cells, L tokens, D text channels.
"""

import gzip
import json
from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file

from miga.backbones.videocrafter2.attention import SpatialTransformer, TemporalTransformer
from miga.backbones.videocrafter2.blocks import Conditioning, GroupNorm32
from miga.backbones.videocrafter2.unet import UNetConfig, VideoCrafter2UNet, sinusoidal_embedding

FIXTURES = Path(__file__).parents[3] / "fixtures"
PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "vc2_tiny_fixture.safetensors")


@pytest.fixture(scope="module")
def tiny_config():
    return UNetConfig.from_dict(json.loads((FIXTURES / "vc2_tiny_fixture.json").read_text())["config"])


def load_tiny(recorded, config):
    prefix = "weight."
    weights = {key.removeprefix(prefix): value.float() for key, value in recorded.items() if key.startswith(prefix)}
    with torch.device("meta"):
        unet = VideoCrafter2UNet(config)
    unet.load_state_dict(weights, strict=True, assign=True)
    return unet.eval().requires_grad_(False)


def assert_agrees(out, expected):
    """To the rounding of float32; the norm tells apart even a group norm's epsilon of 1e-6 and of 1e-5."""
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-4)
    assert relative_error(out, expected) < 2.5e-6


def relative_error(out, expected):
    return (out.float() - expected).norm() / expected.norm()


@pytest.fixture(scope="module")
def unet(recorded, tiny_config):
    return load_tiny(recorded, tiny_config)


@pytest.fixture
def inputs(recorded):
    """Latents, per-frame time steps, text and frame rates of two clips."""
    return [recorded[f"in.{name}"] for name in ("x", "t_perframe", "context", "fps")]


def test_published_model_has_the_checkpoint_s_tensors():
    checkpoint = json.loads(gzip.decompress((FIXTURES / "vc2_state_dict.json.gz").read_bytes()))["state_dict"]
    expected = {
        key.removeprefix(PREFIX): tuple(tensor["shape"]) for key, tensor in checkpoint.items() if key.startswith(PREFIX)
    }
    with torch.device("meta"):
        unet = VideoCrafter2UNet(UNetConfig())
    shapes = {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()}
    assert shapes == expected
    assert len(shapes) == 1_484
    assert sum(parameter.numel() for parameter in unet.parameters()) == 1_413_284_420


def test_uniform_time_steps_agree_with_the_original(unet, recorded, inputs):
    x_BCFHW, _, context_BLD, fps_B = inputs
    out = unet(x_BCFHW, recorded["in.t_uniform"], context_BLD, fps_B)
    assert_agrees(out, recorded["out.uniform"])


def test_frame_rate_16_is_what_the_original_assumes_without_one(unet, recorded, inputs):
    x_BCFHW, _, context_BLD, _ = inputs
    out = unet(x_BCFHW[:1], recorded["in.t_uniform"][:1], context_BLD[:1], torch.tensor([16]))
    assert_agrees(out, recorded["out.uniform_fps16"])


def test_per_frame_time_steps_agree_with_the_original_inside_and_out(unet, recorded, inputs):
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _module, _args, out, name=name: seen.setdefault(name, out))
        for name, module in (("time_embed", unet.time_embed), ("middle_block", unet.middle_block))
    ]
    out = unet(*inputs)
    for hook in hooks:
        hook.remove()
    for name, tensor in seen.items():
        expected = recorded[f"dbg.{name}_perframe"]
        assert_agrees(tensor.unflatten(0, (2, 4)), expected)
    assert len(seen) == 2
    assert_agrees(out, recorded["out.perframe"])


def test_more_frames_than_in_training_agree_with_the_original(unet, recorded, inputs):
    _, _, context_BLD, fps_B = inputs
    out = unet(recorded["in.x_t6"], recorded["in.t_t6"][None], context_BLD[:1], fps_B[:1])
    assert_agrees(out, recorded["out.t6"])


def test_a_clip_does_not_depend_on_the_others_of_its_batch(unet, inputs):
    together = unet(*inputs)
    alone = torch.cat([unet(*(tensor[clip : clip + 1] for tensor in inputs)) for clip in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_equal_time_steps_per_frame_are_one_time_step_per_clip(unet, recorded, inputs):
    x_BCFHW, _, context_BLD, fps_B = inputs
    timestep_B = recorded["in.t_uniform"]
    per_frame = unet(x_BCFHW, timestep_B[:, None].expand(-1, 4), context_BLD, fps_B)
    assert torch.equal(per_frame, unet(x_BCFHW, timestep_B, context_BLD, fps_B))
    assert torch.equal(per_frame, unet(x_BCFHW, timestep_B.double(), context_BLD, fps_B.float()))


def test_a_time_step_reaches_its_own_frame_alone(unet, inputs):
    _, timestep_BF, _, fps_B = inputs
    changed_BF = timestep_BF.clone()
    changed_BF[1, 2] += 100
    before, after = (unet._embed(timestep, fps_B).unflatten(0, (2, 4)) for timestep in (timestep_BF, changed_BF))
    differs = (before != after).any(dim=-1)
    assert differs.nonzero().tolist() == [[1, 2]]


def test_sinusoidal_embedding_is_the_field_s():
    positions = torch.tensor([0, 1, 16, 499, 999])
    expected = get_timestep_embedding(positions, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(positions, 320), expected)


def of_type(unet, layer_type):
    return next(module for module in unet.middle_block if isinstance(module, layer_type))


def test_frames_do_not_meet_in_the_spatial_transformer(unet, inputs):
    layer = of_type(unet, SpatialTransformer)
    context_BLD = inputs[2]
    h_NCHW = torch.randn(6, 64, 3, 2, generator=torch.Generator().manual_seed(0))
    together = layer(h_NCHW, Conditioning(3, torch.empty(0), context_BLD))
    for frame in range(6):
        alone = layer(h_NCHW[[frame]], Conditioning(1, torch.empty(0), context_BLD[[frame // 3]]))
        torch.testing.assert_close(together[[frame]], alone, atol=1e-5, rtol=1e-5)


def test_the_temporal_transformer_knows_no_order_of_frames(unet):
    layer = of_type(unet, TemporalTransformer)
    conditioning = Conditioning(5, torch.empty(0), torch.empty(0))
    h_NCHW = torch.randn(5, 64, 3, 2, generator=torch.Generator().manual_seed(0))
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(
        layer(h_NCHW[order], conditioning), layer(h_NCHW, conditioning)[order], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (3, 5, 7), (2, 1, 9)])
def test_any_number_of_frames_and_any_size(unet, inputs, frames, height, width):
    _, timestep_BF, context_BLD, fps_B = inputs
    x_BCFHW = torch.randn(2, 4, frames, height, width, generator=torch.Generator().manual_seed(0))
    out = unet(x_BCFHW, timestep_BF[:, :frames], context_BLD, fps_B)
    assert out.shape == x_BCFHW.shape
    alone = unet(x_BCFHW[1:], timestep_BF[1:, :frames], context_BLD[1:], fps_B[1:])
    torch.testing.assert_close(out[1:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "most_error"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_half_precision_stays_near_the_recorded_output(recorded, tiny_config, inputs, dtype, most_error):
    unet = load_tiny(recorded, tiny_config).to(dtype)
    out = unet(*inputs)
    expected = recorded["out.perframe"]
    assert out.dtype == unet.dtype == dtype
    assert relative_error(out, expected) < most_error


def test_group_norm_computes_in_float32_whatever_the_dtype():
    # squares of these overflow float16, and their spread is a few of its steps
    generator = torch.Generator().manual_seed(0)
    x_NCL = (1_000 + 4 * torch.randn(2, 64, 7, dtype=torch.float64, generator=generator)).half()
    norm = GroupNorm32(64)
    groups = x_NCL.double().reshape(2, 32, -1)
    centred = groups - groups.mean(dim=-1, keepdim=True)
    expected = (centred / (centred.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()).reshape(x_NCL.shape)
    out = norm.half()(x_NCL)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), expected, atol=1e-3, rtol=1e-3)


def test_arguments_of_different_batches_are_refused(unet, inputs):
    x_BCFHW, timestep_BF, context_BLD, fps_B = inputs
    for wrong in (
        (x_BCFHW, timestep_BF[:, :3], context_BLD, fps_B),
        (x_BCFHW, timestep_BF[0], context_BLD, fps_B),  # one clip's frames, mistaken for clips
        (x_BCFHW, timestep_BF, context_BLD[:1], fps_B),
        (x_BCFHW, timestep_BF, context_BLD, fps_B[:1]),
    ):
        with pytest.raises(ValueError, match="2 clips of 4 frames"):
            unet(*wrong)


def test_config_survives_json(tiny_config):
    assert tiny_config != UNetConfig()
    for config in (tiny_config, UNetConfig()):
        assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 320}, "unknown key 'channels'"),
        ({"model_channels": 320.0}, "model_channels = 320.0 must be a whole number"),
        ({"num_res_blocks": True}, "num_res_blocks = True must be a whole number"),
        ({"use_causal_attention": True}, "use_causal_attention = True is not supported"),
        ({"model_channels": 100}, "model_channels = 100 must be a multiple of 32"),
        ({"num_head_channels": 48}, "no whole number of attention heads"),
        ({"channel_mult": []}, r"channel_mult = \(\) must be one or more whole numbers"),
        ({"channel_mult": 4}, "channel_mult = 4 must be one or more whole numbers"),
        ({"attention_resolutions": [4, 0]}, r"attention_resolutions = \(4, 0\)"),
        ({"num_res_blocks": 0}, "num_res_blocks = 0 must be a whole number, at least 1"),
    ],
)
def test_config_of_another_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict(UNetConfig().to_dict() | change)
