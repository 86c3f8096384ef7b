"""Causal training: who sees whom, against calls with a cache; what is learnt; losses that fall; what resumes."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from jobs.train_sprites_causal import main, write_folder
from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.sprites import family, training
from miga.backbones.sprites.difference import save_difference, with_difference
from miga.backbones.sprites.family import CHECKPOINT, FEW_STEPS
from miga.backbones.sprites.self_forcing import SIGMAS, match, roll_out
from miga.backbones.sprites.train_causal import (
    FLOW_SHIFT,
    Examples,
    Windows,
    causal_window,
    distil,
    first_window,
    train_teacher,
)
from miga.backbones.sprites.train_transformer import (
    TRANSFORMER_CONFIG,
    EncodedClips,
    build_text_encoder,
    build_tokenizer,
)
from miga.backbones.sprites.training import Schedule, autocast, train
from miga.backbones.wan.causal.network import CausalWan
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.spec import NUM_TEXT_TOKENS
from miga.cached_call import CachedCall
from miga.cost import count_calls
from miga.errors import ModelError, OutputError
from miga.methods.causal.course import Steps
from miga.profiles import resolve_config
from miga.training.causal import (
    Velocity,
    block_sigmas,
    consistency_loss,
    denoising_loss,
    grid_sigmas,
    matching_loss,
    noised,
    shown_latents,
    teacher_forcing_mask,
)
from tests.miga.methods.causal.recorded import SHAPE, tiny_transformer


def test_who_sees_whom() -> None:
    mask = teacher_forcing_mask(6, 3)
    clean = torch.tensor([[1, 1, 1, 0, 0, 0]] * 3 + [[1] * 6] * 3, dtype=torch.bool)
    own = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool()
    before = torch.tensor([[0] * 6] * 3 + [[1, 1, 1, 0, 0, 0]] * 3, dtype=torch.bool)
    assert torch.equal(mask, torch.cat([torch.cat([clean, torch.zeros(6, 6).bool()], 1), torch.cat([before, own], 1)]))


@pytest.mark.parametrize("is_compact", [False, True])
def test_a_noised_block_is_told_what_a_call_before_a_cache_is_told(is_compact: bool) -> None:
    """Teacher forcing over nine latents, against the blocks one by one as a video is made."""
    transformer = copy.deepcopy(tiny_transformer())
    if is_compact:
        use_compact_padding(transformer, 8)
    network = CausalWan(transformer)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 9, *SHAPE, generator=generator) for _ in range(2))
    text = torch.randn(5, 24, generator=generator)
    sigma_BF = block_sigmas(9, 3, torch.randn(1, 3, generator=generator))
    x = noised(clean, noise, sigma_BF)
    position_F = torch.arange(9.0, dtype=torch.float64).repeat(2)
    times = torch.cat([torch.zeros_like(sigma_BF), 1000.0 * sigma_BF], 1)
    sequence = torch.cat([clean, x], 1)
    found = network.masked(sequence, times, position_F, teacher_forcing_mask(9, 3), text[None], 8)[:, 9:]
    cache = network.open_cache(9, SHAPE[1:])
    for start in (0, 3, 6):
        own, seen = tuple(range(start, start + 3)), tuple(range(start))
        places: Any = {"positions": tuple(map(float, own)), "slots": seen, "slot_positions": tuple(map(float, seen))}
        moments = tuple(float(each) for each in 1000.0 * sigma_BF[0, list(own)])
        noisy = CachedCall(cache, moments, (0.5,) * 3, writes=(-1,) * 3, **places)
        expected = network(x[:, list(own)], noisy, [text], 8)
        torch.testing.assert_close(found[:, list(own)], expected, rtol=0, atol=1e-5)
        shown = CachedCall(cache, (0.0,) * 3, (0.0,) * 3, writes=own, **places)
        network(clean[:, list(own)], shown, [text], 8)
    unmasked = network.masked(sequence, times, position_F, None, text[None], 8)[:, 9:]
    assert float((unmasked - found).abs().max()) > 1e-2


def test_which_latents_a_window_shows() -> None:
    assert shown_latents(24, 12, 3, 0.0) == (list(range(12)), list(range(12)))
    shown, learnt = shown_latents(24, 12, 3, 0.999)
    assert shown == [0, 1, 2, *range(15, 24)]
    assert learnt == [9, 10, 11]
    assert shown_latents(12, 12, 3, 0.999) == (list(range(12)), list(range(12)))
    gaps = {shown_latents(24, 12, 3, choice / 100)[0][3] for choice in range(100)}
    assert gaps == {3, 6, 9, 12, 15}


def test_a_shift_moves_sigmas_as_it_moves_a_schedule() -> None:
    draw_BN = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    plain, shifted = block_sigmas(6, 3, draw_BN), block_sigmas(6, 3, draw_BN, flow_shift=5.0)
    torch.testing.assert_close(shifted, 5.0 * plain / (1.0 + 4.0 * plain), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_first_block_is_learnt_alone_by_more_clips() -> None:
    """As many tokens a step as of windows, which show twelve clean and twelve noised latents."""
    examples, choices = small_examples(), []
    for step in range(60):
        batch = examples.draw("counted", step, 0.0, causal_window)
        again = examples.draw("counted", step, 0.0, causal_window)
        assert torch.equal(batch.clean, again.clean)
        count, num_latents = batch.clean.shape[:2]
        assert (count, batch.learnt) in ((16, [0, 1, 2]), (2, list(range(12))), (2, [9, 10, 11]))
        assert num_latents == (3 if count == 16 else 12)
        assert len(batch.text) == len(batch.no_text) == count
        choices.append(len(batch.learnt) if num_latents == 12 else 0)
    assert [0.1 < choices.count(kind) / 60 < 0.6 for kind in (0, 3, 12)] == [True] * 3


def test_a_first_block_sees_no_clean_latents() -> None:
    """Alone it is told what it is told as the first of a window."""
    examples = small_examples()
    windows = Windows("causal", small_transformer())
    batch = examples.draw("seen", 0, 0.0, first_window)
    sigma_BF = torch.full(batch.clean.shape[:2], 0.8)
    x = noised(batch.clean, batch.noise, sigma_BF)
    with torch.no_grad():
        whole = windows.velocity(batch.clean, batch.text)(x, sigma_BF)[:, :3]
        alone = windows.velocity(batch.clean[:, :3], batch.text)(x[:, :3], sigma_BF[:, :3])
    torch.testing.assert_close(alone, whole, rtol=0, atol=2e-2 if isinstance(autocast("cpu"), torch.autocast) else 1e-5)


def test_a_state_of_other_optimisers_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bfloat16 is slow matrices are trained by AdamW: Muon's state cannot be gone on with there."""
    state = tmp_path / "state.pt"
    monkeypatch.setattr(training, "computes_bfloat16", lambda device: True)
    train_teacher(small_transformer(), small_examples(), state, 2, stop_at=0)
    monkeypatch.setattr(training, "computes_bfloat16", lambda device: False)
    with pytest.raises(OutputError, match=r"state\.pt' was written where bfloat16 is fast, or slow"):
        train_teacher(small_transformer(), small_examples(), state, 2)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    state = tmp_path / "state.pt"
    train_teacher(small_transformer(), small_examples(), state, 2, stop_at=0)
    state.write_bytes(state.read_bytes()[:keep])
    with pytest.raises(OutputError, match=r"state\.pt' cannot be read: it is damaged"):
        train_teacher(small_transformer(), small_examples(), state, 2)


@pytest.mark.parametrize("content", [{}, {"model": {"no": torch.zeros(1)}}, [1], {"model": 3}])
def test_a_state_of_another_network_is_refused_by_name(tmp_path: Path, content: object) -> None:
    state = tmp_path / "state.pt"
    torch.save(content, state)
    with pytest.raises(OutputError, match=r"state\.pt' is no state of this network"):
        train_teacher(small_transformer(), small_examples(), state, 2)


def test_the_grid_holds_the_few_steps() -> None:
    """Sigmas of 1000, 750, 500, 250 under shift 5, as the sampler has them."""
    assert grid_sigmas(5.0)[[0, 12, 24, 36, 48]].tolist() == pytest.approx([1.0, 0.9375, 0.833333, 0.625, 0.0])


def test_a_consistent_student_has_no_loss() -> None:
    """Of one clip that all noise leads to, the exact velocity is its own fixed point; another one is not."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, *SHAPE, generator=generator) for _ in range(2))
    sigma_B, next_B = torch.tensor([0.9, 0.1]), torch.tensor([0.8, 0.0])

    def exact(x: torch.Tensor, sigma_BF: torch.Tensor) -> torch.Tensor:
        return (x - clean) / sigma_BF.clamp(min=1e-9)[:, :, None, None, None]

    def other(x: torch.Tensor, sigma_BF: torch.Tensor) -> torch.Tensor:
        return exact(x, sigma_BF) + 1.0

    x = noised(clean, noise, sigma_B[:, None].expand(2, 4))
    assert float(consistency_loss(exact, exact, exact, x, sigma_B, next_B, range(4))) < 1e-10
    off = float(consistency_loss(other, exact, exact, x, sigma_B, next_B, range(4)))
    assert off == pytest.approx((0.81 + 0.01) / 2, rel=1e-4)


def gaussian_velocity(mean: torch.Tensor) -> Velocity:
    """The exact one of clips whose every number is of a normal distribution around `mean`, of variance 1."""

    def of(x: torch.Tensor, sigma_BF: torch.Tensor) -> torch.Tensor:
        sigma = sigma_BF[:, :, None, None, None]
        variance = (1 - sigma) ** 2 + sigma**2
        clean = mean + (1 - sigma) / variance * (x - (1 - sigma) * mean)
        return (x - clean) / sigma

    return of


def test_matching_moves_clips_from_the_critics_distribution_to_the_teachers() -> None:
    """Of two normal distributions the predictions differ by a known number, in the same direction under any noise."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(3, 4, *SHAPE, generator=generator).requires_grad_()
    noise = torch.randn(made.shape, generator=generator)
    sigma_B = torch.tensor([0.9, 0.5, 0.2])
    real, fake = gaussian_velocity(torch.tensor(2.0)), gaussian_velocity(torch.tensor(0.5))
    matching_loss(made, real, fake, noise, sigma_B).backward()
    assert made.grad is not None
    for clip, sigma in enumerate(sigma_B.tolist()):
        apart = (0.5 - 2.0) * (1 - (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2))
        x = (1 - sigma) * made.detach()[clip : clip + 1] + sigma * noise[clip : clip + 1]
        predicted = x - sigma * real(x, torch.full((1, 4), sigma))
        wanted = apart / float((made.detach()[clip] - predicted[0]).abs().mean()) / made.numel()
        torch.testing.assert_close(made.grad[clip], torch.full_like(made[clip], wanted), rtol=1e-3, atol=1e-8)


def test_what_is_matched_ends_at_the_teachers_distribution() -> None:
    """A student that makes `mean + noise`, with a critic that knows that exactly."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([mean], lr=0.05)
    for _ in range(150):
        made = mean + torch.randn(8, 4, *SHAPE, generator=generator)
        noise, sigma_B = torch.randn(made.shape, generator=generator), 0.05 + 0.9 * torch.rand(8, generator=generator)
        optimizer.zero_grad()
        fake = gaussian_velocity(mean.detach())
        matching_loss(made, gaussian_velocity(torch.tensor(2.0)), fake, noise, sigma_B).backward()
        optimizer.step()
    assert float(mean.detach()) == pytest.approx(2.0, abs=0.1)


def test_the_critics_loss_is_that_of_flow_matching() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, *SHAPE, generator=generator) for _ in range(2))
    told: list[torch.Tensor] = []

    def off_by_one(x: torch.Tensor, sigma_BF: torch.Tensor) -> torch.Tensor:
        told.append(sigma_BF)
        torch.testing.assert_close(x, noised(clean, noise, sigma_BF))
        return noise - clean + 1.0

    assert float(denoising_loss(off_by_one, clean, noise, torch.tensor([0.2, 0.7]))) == pytest.approx(1.0)
    torch.testing.assert_close(told[0], torch.tensor([[0.2] * 3, [0.7] * 3]))


# ---- the stages, on a small network of the embedded one's kind ----


def small_examples() -> Examples:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    encoder = build_text_encoder(tokenizer).eval().requires_grad_(False)
    moving = torch.randn(1, 8, 1, 4, 4) + 0.3 * torch.arange(24.0).view(1, 1, 24, 1, 1)
    clips = EncodedClips((moving + 0.1 * torch.randn(4, 8, 24, 4, 4)).half(), [0, 5, 9, 30], ["plain"] * 4, [""] * 4)
    return Examples(encoder, tokenizer, seed=0, batch=2, clips=clips)


def small_transformer() -> WanTransformer3DModel:
    torch.manual_seed(1)
    return WanTransformer3DModel(**{**TRANSFORMER_CONFIG, "num_layers": 1, "num_attention_heads": 2, "ffn_dim": 64})


def weights_of(transformer: WanTransformer3DModel) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in transformer.parameters()])


@pytest.mark.slow
def test_every_stage_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    examples, losses = small_examples(), {}

    def noted(name: str, made: Any, steps: int) -> WanTransformer3DModel:
        whole = made(tmp_path / f"{name}-whole.pt", steps)
        for stop in (steps // 2, steps):
            parts = made(tmp_path / f"{name}-parts.pt", stop)
        assert torch.equal(weights_of(whole), weights_of(parts))
        return whole

    def teacher(state: Path, stop: int) -> WanTransformer3DModel:
        return train_teacher(small_transformer(), examples, state, 60, stop_at=stop, learning_rate=2e-3)

    trained = noted("teacher", teacher, 60)
    for name, network in (("before", small_transformer()), ("after", trained)):
        use_compact_padding(network)
        batch = examples.draw("judged", 0, 0.0, first_window)
        sigma_BF = torch.full(batch.clean.shape[:2], 0.6)
        sequence = torch.cat([batch.clean, noised(batch.clean, batch.noise, sigma_BF)], 1)
        times = torch.cat([torch.zeros_like(sigma_BF), 1000.0 * sigma_BF], 1)
        mask, places = teacher_forcing_mask(12, 3), torch.arange(12.0).repeat(2)
        with torch.no_grad():
            out = CausalWan(network).masked(sequence, times, places, mask, batch.text, NUM_TEXT_TOKENS)[:, 12:]
        losses[name] = float((out - (batch.noise - batch.clean)).square().mean())
    assert losses["after"] < 0.7 * losses["before"]

    for kind in ("causal", "window"):

        def student(state: Path, stop: int, kind: Any = kind) -> WanTransformer3DModel:
            return distil(kind, copy.deepcopy(trained), examples, state, 10, stop_at=stop, learning_rate=5e-4)

        distilled = noted(kind, student, 10)
        assert not torch.equal(weights_of(distilled), weights_of(trained))


def test_levels_of_a_rollout_are_those_of_the_sampler() -> None:
    assert tuple(reversed(Steps.of(FEW_STEPS["timesteps"], FLOW_SHIFT).sigmas[1:])) == pytest.approx(SIGMAS, abs=1e-7)


def test_a_rollout_is_what_the_student_predicts_of_it_before_a_cache() -> None:
    """The masked call that gradients flow through gives what was made, block by block, and its cached calls saw."""
    examples, student = small_examples(), small_transformer()
    use_compact_padding(student)
    text = examples.texts(["a red circle moving diagonally on a teal ground", "a blue ring on a pink ground"])
    rolled = roll_out(student, text, (4, 4), [1, 3, 4, 2], torch.Generator().manual_seed(0))
    wanted = [SIGMAS[calls - 1] for calls in (1, 3, 4, 2) for _ in range(3)]
    assert rolled.sigma_BF.tolist() == [pytest.approx(wanted)] * 2
    velocity = Windows("causal", student).velocity(rolled.made_BFCHW, text)
    with torch.no_grad():
        again = rolled.x_BFCHW - rolled.sigma_BF[:, :, None, None, None] * velocity(rolled.x_BFCHW, rolled.sigma_BF)
    tolerance = 2e-2 if isinstance(autocast("cpu"), torch.autocast) else 1e-5
    torch.testing.assert_close(again, rolled.made_BFCHW, rtol=0, atol=tolerance)
    assert not torch.allclose(rolled.made_BFCHW[:, :3], rolled.made_BFCHW[:, 3:6], atol=0.1)


def test_a_part_of_a_module_learns_at_a_rate_of_its_own(tmp_path: Path) -> None:
    """AdamW's first steps are as long as the rate: the critic's numbers move twice as far as the student's."""
    both = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2, bias=False) for name in ("student", "critic")})
    before = {name: each.detach().clone() for name, each in both.named_parameters()}

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        return sum((each.sum() for each in both.parameters()), torch.zeros(())), {}

    schedule = Schedule(1, 1e-2, num_warmup_steps=1)
    train("rates", both, loss_of, schedule, tmp_path / "state.pt", ema_decay=0.0, factors={"critic": 2.0})
    for name, each in both.named_parameters():
        moved = before[name] - each.detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 2e-2 if "critic" in name else 1e-2), rtol=1e-3, atol=0)


@pytest.mark.slow
def test_matching_moves_student_and_critic_alone_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    teacher = train_teacher(small_transformer(), small_examples(), tmp_path / "a.pt", 40, learning_rate=2e-3)
    before = weights_of(teacher)

    def matched(state: Path, stop: int) -> WanTransformer3DModel:
        student = copy.deepcopy(teacher)
        return match(student, teacher, small_examples(), (4, 4), state, 8, stop_at=stop, learning_rate=1e-3)

    whole = matched(tmp_path / "whole.pt", 8)
    matched(tmp_path / "parts.pt", 3)
    assert torch.equal(weights_of(matched(tmp_path / "parts.pt", 8)), weights_of(whole))
    assert torch.equal(weights_of(teacher), before)
    assert not torch.equal(weights_of(whole), before)
    state = torch.load(tmp_path / "whole.pt")["model"]
    assert not all(torch.equal(state["critic." + name], each) for name, each in teacher.state_dict().items())


# ---- what is stored and loaded ----


def test_a_difference_is_small_exact_and_of_its_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = {"a.weight": torch.randn(6, 5).half(), "a.bias": torch.randn(6).half(), "b": torch.randn(1, 6, 4).half()}
    weights = {name: each.float() + 0.01 * torch.randn(each.shape) for name, each in base.items()}
    weights["a.bias"] = base["a.bias"].float()
    save_difference(tmp_path / "d.safetensors", base, weights, {"steps": 3})
    found = with_difference(tmp_path / "d.safetensors", base)
    for name, weight in weights.items():
        change = (weight - base[name].float()).abs().max()
        assert float((found[name] - weight).abs().max()) <= float(change) / 250
    assert torch.equal(found["a.bias"], weights["a.bias"])
    with pytest.raises(ModelError, match="difference from other weights"):
        with_difference(tmp_path / "d.safetensors", {**base, "b": base["b"] + 1})
    (tmp_path / "d.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be read"):
        with_difference(tmp_path / "d.safetensors", base)


def test_the_names_that_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "DIFFERENCES", tmp_path)
    with pytest.raises(ModelError, match=r"'sprites-causal' are not here.*") as caught:
        load_spec("sprites-causal")
    assert "jobs.train_sprites_causal" in str(caught.value.hint)
    from safetensors.torch import load_file

    base = load_file(CHECKPOINT / "transformer" / "diffusion_pytorch_model.safetensors")
    moved = {name: each.float() + (0.01 if name == "proj_out.bias" else 0.0) for name, each in base.items()}
    for name in ("sprites-causal", "sprites-few-step"):
        save_difference(tmp_path / f"{name}.safetensors", base, moved, {})
        assert (tmp_path / f"{name}.safetensors").stat().st_size < 4_100_000
        assert load_spec(name).revision != load_spec("sprites").revision
    backbone: Any = load_backbone("sprites-causal", device="cpu", components=("denoiser",))
    assert (backbone.spec.name, backbone.spec.revision) == ("sprites-causal", load_spec("sprites-causal").revision)
    difference = backbone.network.proj_out.bias - base["proj_out.bias"].float()
    torch.testing.assert_close(difference, torch.full_like(difference, 0.01))
    few = resolve_config("swift", load_spec("sprites-few-step"))
    assert (few.num_steps, few.guidance_scale, few.solver) == (4, 1.0, "renoise")
    assert count_calls(few, 45).total > 0
    assert resolve_config("longlive", load_spec("sprites-causal")).num_steps == 4
    assert resolve_config("swift", load_spec("sprites-causal")).num_steps == 30


def test_what_is_shipped() -> None:
    """Both differences are of the embedded weights, are finite, and say how they were made and not where."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    base = load_file(CHECKPOINT / "transformer" / "diffusion_pytorch_model.safetensors")
    for name in ("sprites-causal", "sprites-few-step"):
        file = family.DIFFERENCES / f"{name}.safetensors"
        weights = with_difference(file, base)
        moved = [float((weights[each] - base[each].float()).abs().max()) for each in base]
        assert all(0.0 < each < 1.0 for each in moved), name
        with safe_open(file, framework="pt") as stored:
            notes = stored.metadata()["notes"]
        assert "distil_steps" in notes
        assert "/" not in notes


@pytest.mark.slow
def test_the_whole_command_gives_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "--work-dir",
        str(tmp_path / "work"),
        "--clips",
        "2",
        "--latents",
        "12",
        "--batch",
        "1",
        "--device",
        "cpu",
    ]
    command += ["--teacher-steps", "1", "--distil-steps", "1", "--difference", str(tmp_path / "d.safetensors")]
    command += ["--matching-steps", "1"]
    assert main([*command, "--out", str(tmp_path / "model")]) == 0
    assert (tmp_path / "d.safetensors").stat().st_size < 4_100_000
    spec = load_spec(str(tmp_path / "model"))
    assert resolve_config("longlive-infinity", spec).window == 12
    backbone: Any = load_backbone(str(tmp_path / "model"), device="cpu", components=("denoiser",))
    write_folder(tmp_path / "few", CHECKPOINT, backbone.network, few_steps=True)
    assert json.loads((tmp_path / "few" / "miga.json").read_text())["sampler"]["num_steps"] == FEW_STEPS["num_steps"]
    with pytest.raises(SystemExit):
        main([*command, "--begin-from", str(tmp_path / "none.safetensors")])
    assert "none.safetensors: there is no such file" in capsys.readouterr().err
    (tmp_path / "no.safetensors").write_bytes(b"no weights")
    with pytest.raises(SystemExit):
        main([*command, "--begin-from", str(tmp_path / "no.safetensors")])
    assert "no.safetensors cannot be read" in capsys.readouterr().err
    further = [
        *command,
        "--begin-from",
        str(tmp_path / "d.safetensors"),
        "--difference",
        str(tmp_path / "e.safetensors"),
    ]
    shutil.rmtree(tmp_path / "work")
    assert main([*command, *further]) == 0
    with pytest.raises(SystemExit):
        main([*command, "--matching-steps", "-1"])
    assert "--matching-steps -1: take 0 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--kind", "window"])
    assert "--matching-steps is for --kind causal" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--latents", "13"])
    assert "a multiple of 3" in capsys.readouterr().err
