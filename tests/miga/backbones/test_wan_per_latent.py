"""A time step for every latent: equal to the uniform call, to diffusers' own way per token, and as cheap as uniform."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel

from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from tests.alive_bytes import AliveBytes, shapes_only
from tests.tiny_wan import NUM_CHANNELS, TEXT_DIM, TRANSFORMER_CONFIG, build_transformer

F, H, W = 6, 4, 6
TOKENS = (H // 2) * (W // 2)
MIXED = torch.tensor([[999, 999, 500, 500, 20, 1], [5, 400, 3, 2, 400, 0]])


@pytest.fixture(scope="module")
def plain() -> WanTransformer3DModel:
    return build_transformer()


@pytest.fixture(scope="module")
def ours(plain: WanTransformer3DModel) -> WanTransformer3DModel:
    transformer = copy.deepcopy(plain)
    use_per_latent_timesteps(transformer)
    use_per_latent_timesteps(transformer)  # once is enough
    return transformer


def inputs(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, NUM_CHANNELS, F, H, W, generator=generator)
    return x.to(dtype), torch.randn(batch, 9, TEXT_DIM, generator=generator).to(dtype)


def velocity(transformer: torch.nn.Module, timestep: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x, text = inputs(len(timestep), dtype)
    with torch.no_grad():
        return transformer(x, timestep, text, return_dict=False)[0]


def assert_near(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert float((ours - reference).abs().max()) <= 1e-6 * max(1.0, float(reference.abs().max()))


def per_token(timestep_BF: torch.Tensor) -> torch.Tensor:
    return timestep_BF.repeat_interleave(TOKENS, dim=1)


@pytest.mark.parametrize("timestep", [[999], [0], [500, 300], [7, 7]])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_uniform_levels_are_bit_equal(
    plain: WanTransformer3DModel, ours: WanTransformer3DModel, timestep: list[int], dtype: torch.dtype
) -> None:
    timestep_B = torch.tensor(timestep, dtype=dtype)
    expected = velocity(plain, timestep_B)
    assert torch.equal(velocity(ours, timestep_B[:, None].expand(-1, F)), expected)
    assert torch.equal(velocity(ours, timestep_B), expected)  # diffusers' own pipeline gives [B]


def test_uniform_levels_are_bit_equal_in_bfloat16(plain: WanTransformer3DModel) -> None:
    half = copy.deepcopy(plain).to(torch.bfloat16)
    timestep = torch.tensor([993, 20])
    expected = velocity(half, timestep, torch.bfloat16)
    use_per_latent_timesteps(half)
    assert torch.equal(velocity(half, timestep[:, None].expand(-1, F), torch.bfloat16), expected)


def test_mixed_levels_equal_diffusers_per_token(plain: WanTransformer3DModel, ours: WanTransformer3DModel) -> None:
    assert_near(velocity(ours, MIXED), velocity(plain, per_token(MIXED)))


def test_mixed_levels_equal_skyreels(ours: WanTransformer3DModel) -> None:
    """SkyReels V2's transformer is the same network with one time step per latent; it rounds time elsewhere."""
    oracle = SkyReelsV2Transformer3DModel(**TRANSFORMER_CONFIG).eval()
    oracle.load_state_dict(ours.state_dict(), strict=True)
    x, text = inputs()
    with torch.no_grad():
        expected = oracle(x, MIXED, text, enable_diffusion_forcing=True, return_dict=False)[0]
    scale = max(1.0, float(expected.abs().max()))
    assert float((velocity(ours, MIXED) - expected).abs().max()) <= 1e-5 * scale


def test_levels_matter_at_all(ours: WanTransformer3DModel) -> None:
    """Otherwise the tests above would prove nothing."""
    assert float((velocity(ours, MIXED) - velocity(ours, MIXED.flip(1))).abs().max()) > 1e-2


@pytest.mark.parametrize("padding_first", [True, False])
def test_with_compact_padding(plain: WanTransformer3DModel, padding_first: bool) -> None:
    both, padded = copy.deepcopy(plain), copy.deepcopy(plain)
    steps = [use_compact_padding, use_per_latent_timesteps]
    for step in steps if padding_first else steps[::-1]:
        step(both)
    use_compact_padding(padded)
    timestep = torch.tensor([500, 300])
    assert torch.equal(velocity(both, timestep[:, None].expand(-1, F)), velocity(padded, timestep))
    assert_near(velocity(both, MIXED), velocity(padded, per_token(MIXED)))


def test_copies_stand_on_their_own(ours: WanTransformer3DModel) -> None:
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        twin.condition_embedder.time_proj.weight.zero_()
        twin.blocks[0].attn1.to_q.weight.zero_()
    assert not torch.equal(velocity(twin, MIXED), velocity(ours, MIXED))
    twin.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(velocity(twin, MIXED), velocity(ours, MIXED))


def test_gradients_equal(plain: WanTransformer3DModel) -> None:
    gradients = []
    for ours in (False, True):
        transformer = copy.deepcopy(plain).requires_grad_()
        if ours:
            use_per_latent_timesteps(transformer)
            transformer.enable_gradient_checkpointing()
            transformer.train()
        x, text = inputs()
        timestep = MIXED if ours else per_token(MIXED)
        transformer(x, timestep, text, return_dict=False)[0].square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in transformer.named_parameters()})
    for name, reference in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], reference, rtol=1e-3, atol=1e-5)


def test_with_layerwise_casting(plain: WanTransformer3DModel) -> None:
    """Weights stored in 8 bits and widened layer by layer: the same hooks with and without time steps per latent."""
    results = []
    for ours in (False, True):
        transformer = copy.deepcopy(plain)
        if ours:
            use_per_latent_timesteps(transformer)
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        assert transformer.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
        results.append(velocity(transformer, MIXED if ours else per_token(MIXED)))
    assert_near(results[1], results[0])


@pytest.mark.slow
def test_compiled_blocks(plain: WanTransformer3DModel) -> None:
    """Whole blocks are one graph each (`fullgraph`); the eager backend traces them without a compiler."""
    transformer = copy.deepcopy(plain)
    use_compact_padding(transformer)
    use_per_latent_timesteps(transformer)
    eager = velocity(transformer, MIXED)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert_near(velocity(transformer, MIXED), eager)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


@pytest.mark.parametrize(
    ("timestep", "message"),
    [
        (torch.zeros(2, F + 1, dtype=torch.int64), "do not fit"),
        (torch.zeros(2, F * TOKENS, dtype=torch.int64), "do not fit"),
        (torch.zeros(2, F, dtype=torch.bfloat16), "993 to 992"),
    ],
)
def test_time_steps_that_cannot_be(ours: WanTransformer3DModel, timestep: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        velocity(ours, timestep)


def test_models_that_cannot_have_them() -> None:
    with pytest.raises(ValueError, match="covers 2 latents"):
        use_per_latent_timesteps(build_transformer(patch_size=[2, 2, 2]))


@torch.no_grad()
def test_models_that_read_pictures() -> None:
    """diffusers' own way, a time step per token, beside the tokens of a picture."""
    plain, ours = (build_transformer(added_kv_proj_dim=24, image_dim=8) for _ in range(2))
    use_per_latent_timesteps(ours)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, 4, 6, generator=generator)
    text, tokens = torch.randn(2, 512, 16, generator=generator), torch.randn(2, 5, 8, generator=generator)
    timestep = torch.tensor([[900, 500, 0], [3, 3, 700]])
    expected = plain(x, timestep.repeat_interleave(6, dim=1), text, tokens, return_dict=False)[0]
    assert torch.allclose(ours(x, timestep, text, tokens, return_dict=False)[0], expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [{}, {"num_attention_heads": 40, "ffn_dim": 13824}], ids=["1.3B", "14B"])
def test_memory_at_full_size(monkeypatch: pytest.MonkeyPatch, size: dict[str, int]) -> None:
    """32,760 tokens: at most 1 % above the uniform call, and no tensor of six widths per token."""
    config = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 1, **size}
    width = 128 * config["num_attention_heads"]
    alive = {}
    for way in ("uniform", "latent", "token"):
        with shapes_only(torch.bfloat16):
            transformer = WanTransformer3DModel(**config)
            timestep = torch.tensor([500])
            if way == "latent":  # what is distinct depends on values: here all of them are
                use_per_latent_timesteps(transformer)
                monkeypatch.setattr(torch.Tensor, "unique", lambda t, **_: (t, torch.arange(len(t))))
                timestep = timestep[:, None].expand(1, 21)
            if way == "token":
                timestep = timestep[:, None].expand(1, 32760)
            with AliveBytes() as count:
                transformer(torch.randn(1, 16, 21, 60, 104), timestep, torch.randn(1, 512, 4096))
        alive[way] = count
    per_token = 32760 * 6 * width * 2
    assert alive["latent"].peak <= 1.01 * alive["uniform"].peak
    assert alive["latent"].largest < per_token <= alive["token"].largest
