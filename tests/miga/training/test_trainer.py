"""Training step by step: it learns, goes on bit for bit with its bank, and two processes do as was recorded."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from miga.backbones.lora_files import Lora
from miga.backbones.wan.lora import fuse_loras
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.training import WanVelocity, prepare
from miga.errors import ConfigError, InputError, UsageError
from miga.training.chance import SeededChance
from miga.training.encoded import EncodedClips
from miga.training.erft import RecyclingSettings
from miga.training.error_bank import Banks
from miga.training.group import Alone, Distributed, Group
from miga.training.lora import write_lora
from miga.training.state import SavedStep, name_latest, read_part, saved_step, write_part
from miga.training.trainer import Trainer, TrainingSettings, store_residuals
from tests.miga.training.encoded import write_random_clips
from tests.tiny_wan import NUM_CHANNELS, build_transformer

FIXTURES = Path(__file__).parents[2] / "fixtures" / "svi"
SETTINGS = TrainingSettings(
    mixture={"film-5": 1.0}, learning_rate=3e-3, batch=2, num_grids=4, capacity=3, num_gathered=2,
    recycling=RecyclingSettings(p_clean=0.4, p_noise=0.3),
)  # fmt: skip


def network(rank: int | None = 4) -> Any:
    made = build_transformer(in_channels=2 * NUM_CHANNELS + 4)
    use_compact_padding(made)
    layers = prepare(made, rank=rank, alpha=4.0, seed=3, checkpointing=False)
    return made, layers


def trainer(clips: EncodedClips, settings: TrainingSettings = SETTINGS, group: Group | None = None) -> Trainer:
    made, _ = network()
    return Trainer(made, WanVelocity(made), clips, settings, torch.device("cpu"), group)


def in_two_threads(work: Callable[[int, Distributed], Any]) -> list[Any]:
    """The same work by two processes' groups of gloo, in one process."""
    store = dist.HashStore()
    found: list[Any] = [None, None]

    def run(rank: int) -> None:
        found[rank] = work(rank, Distributed(dist.ProcessGroupGloo(dist.PrefixStore("test", store), rank, 2)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert None not in found
    return found


def streams(step: int) -> tuple[SeededChance, SeededChance]:
    return SeededChance(0, step, 0), SeededChance(0, step, 3)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(part, other[name]) for name, part in one.items())


def test_it_goes_on_bit_for_bit_with_its_bank(tmp_path: Path) -> None:
    clips = write_random_clips(tmp_path / "clips")
    whole = trainer(clips)
    figures = [whole.advance() for _ in range(10)]
    begun = trainer(clips)
    for _ in range(6):
        begun.advance()
    write_part(tmp_path, begun.step, 0, begun.banks.state(), begun.state())
    name_latest(tmp_path, SavedStep(begun.step, 1))
    resumed = trainer(clips)
    latest = saved_step(tmp_path)
    assert latest == SavedStep(6, 1)
    resumed.load_state(*read_part(tmp_path, latest.step, 0))
    assert [resumed.advance() for _ in range(4)] == figures[6:]
    assert same(resumed.weights(), whole.weights())
    assert same(resumed.banks.state(), whole.banks.state())
    assert sum(whole.banks.clean.sizes) > 0
    without_bank = trainer(clips)
    state, _ = read_part(tmp_path, latest.step, 0)
    without_bank.load_state(state, {})
    assert [without_bank.advance() for _ in range(4)] != figures[6:], "the bank is part of what it goes on from"


@pytest.mark.slow
def test_a_lora_learns_and_its_file_makes_the_same_model(tmp_path: Path) -> None:
    clips = write_random_clips(tmp_path / "clips", 2)
    made, layers = network()
    settings = replace(SETTINGS, batch=8, learning_rate=1e-2, recycling=RecyclingSettings(p_clean=1.0))
    teacher = Trainer(made, WanVelocity(made), clips, settings, torch.device("cpu"))
    losses = [teacher.advance()["loss"] for _ in range(40)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    write_lora(tmp_path / "lora.safetensors", layers, 4.0)
    plain = build_transformer(in_channels=2 * NUM_CHANNELS + 4)
    use_compact_padding(plain)
    fuse_loras(plain, [Lora("lora", 1.0, tmp_path / "lora.safetensors", "0")])
    clip = clips[0]
    shown = torch.cat([clip.clean_CFHW, clip.conditions["film-5"]])[None]
    asked = (shown, torch.tensor([500.0]), [clip.text_LD], None)
    with torch.no_grad():
        assert torch.allclose(WanVelocity(plain.eval())(*asked), WanVelocity(made.eval())(*asked), atol=1e-5)


def test_two_processes_gather_as_recorded() -> None:
    """60 recorded updates of a bank, from two gloo processes in turn: both hold what was recorded, after each pair."""
    recorded, tensors = json.loads((FIXTURES / "bank.json").read_text()), load_file(FIXTURES / "bank.safetensors")
    errors, timesteps = tensors["errors"], tensors["timesteps"]

    def work(rank: int, group: Distributed) -> Any:
        banks = Banks.of_errors(tensors["anchors"], 3)
        held = []
        for number in range(rank, len(errors), 2):
            # E_clean = -s r: at sigma 1 the bank of clean latents holds what was recorded, but for its sign
            sigma = torch.ones(1)
            store_residuals(banks, -errors[number : number + 1], sigma, timesteps[number : number + 1], [True], group)
            held.append(
                [
                    [next(n for n in range(len(errors)) if torch.equal(errors[n], stored.error[0])) for stored in kept]
                    for kept in (banks.clean.samples(grid) for grid in range(banks.clean.num_grids))
                ]
            )
        return held

    wanted = recorded["l2_batch"]["after_each_update"][1::2]
    assert in_two_threads(work) == [wanted, wanted]


def test_two_processes_end_with_the_recorded_banks() -> None:
    """The residuals of upstream's own steps, every other one by each of two gloo processes, all gathered."""
    steps = json.loads((FIXTURES / "erft_steps.json").read_text())
    tensors = load_file(FIXTURES / "erft_steps.safetensors")
    stored = [step for step in steps["steps"] if step["stored"]]

    def work(rank: int, group: Distributed) -> dict[str, torch.Tensor]:
        banks = Banks.of_errors(tensors["bank_anchor_timesteps"], steps["settings"]["error_buffer_size"])
        for number, step in enumerate(stored):
            is_last = number == len(stored) - 1  # an odd one: everybody's own
            if number % 2 != rank and not is_last:
                continue
            noise, clean = (tensors[f"s{step['step']:02}.E_{name}"] for name in ("noise", "clean"))
            index = torch.tensor([step["torch_randint"][0][2]])
            sigma_B, timestep_B = tensors["train_sigmas"][index], tensors["train_timesteps"][index]
            residual = noise - clean  # (1 - s) r + s r
            of = Alone() if is_last else group
            store_residuals(banks, residual, sigma_B, timestep_B, [True], of)
        return banks.state()

    for state in in_two_threads(work):
        for name in ("noise", "clean"):
            recorded = {key: part for key, part in tensors.items() if key.startswith(f"final_{name}_bank.")}
            ours = {key: part for key, part in state.items() if key.startswith(f"{name}.") and key.endswith(".error")}
            assert len(recorded) == len(ours)
            for key, part in recorded.items():
                _, grid, slot = key.rsplit(".", 2)
                assert float((ours[f"{name}.{grid}.{slot}.error"] - part).abs().max()) <= 1e-5


@pytest.mark.slow
def test_two_processes_learn_one_model_and_fill_two_banks(tmp_path: Path) -> None:
    clips = write_random_clips(tmp_path / "clips")

    def work(rank: int, group: Distributed) -> Any:
        made = trainer(clips, replace(SETTINGS, batch=1), group)
        banks = []
        for _ in range(5):
            made.advance()
            banks.append(made.banks.state())
        return made.weights(), banks

    (weights, banks), (others, other_banks) = in_two_threads(work)
    assert same(weights, others)
    assert not same(banks[-1], other_banks[-1]), "after the first steps each keeps its own"


def test_a_bank_is_bounded_in_bytes(tmp_path: Path) -> None:
    clips = write_random_clips(tmp_path / "clips")
    sample = 2 * clips[0].clean_CFHW.numel()
    settings = replace(SETTINGS, bank_bytes=2 * 4 * sample, num_gathered=0)
    bounded = trainer(clips, settings)
    for _ in range(12):
        bounded.advance()
        assert bounded.bank_figures()["bank_bytes"] <= 2 * 4 * sample
    assert max(bounded.banks.clean.sizes) == 2
    with pytest.raises(ConfigError, match="no room"):
        trainer(clips, replace(settings, bank_bytes=4 * sample - 1)).advance()


@pytest.mark.slow
def test_scale_and_clean_inputs(tmp_path: Path) -> None:
    clips = write_random_clips(tmp_path / "clips")
    still = replace(SETTINGS, learning_rate=1e-12)
    always = RecyclingSettings(p_clean=0.0, p_condition=1.0, p_latent=1.0, p_noise=1.0)
    one, half = (trainer(clips, replace(still, recycling=replace(always, scale=scale))) for scale in (1.0, 0.5))
    for _ in range(3):
        first, second = one.advance(), half.advance()
    assert second["injected_condition_rms"] == pytest.approx(0.5 * first["injected_condition_rms"], rel=0.3)
    assert first["clean_inputs"] == 0.0
    clean = trainer(clips, replace(SETTINGS, recycling=RecyclingSettings(p_clean=1.0)))
    figures = [clean.advance() for _ in range(3)]
    assert all(line["clean_inputs"] == 1.0 and "injected_latent_rms" not in line for line in figures)
    injected_into = trainer(clips, replace(still, recycling=always))
    control = trainer(clips, replace(still, recycling=RecyclingSettings(p_clean=1.0)))
    pairs = [(injected_into._draw(*streams(step)), control._draw(*streams(step))) for step in range(3)]
    assert all(torch.equal(one.clip.clean_CFHW, other.clip.clean_CFHW) for one, other in pairs)
    assert all(one.index == other.index for one, other in pairs), "the control sees the same clips and noise levels"
    assert 0.0 < clean.measured_hand_over(2)["hand_over_rms"] < 100.0


def test_a_model_that_holds_its_first_latents(tmp_path: Path) -> None:
    """TI2V-5B's way: what is known is shown clean at time step 0, errors and all, and is not learnt."""
    clips = write_random_clips(tmp_path / "clips", names=("film-5", "film-1", "pro-1", "none"))
    made = build_transformer()
    use_compact_padding(made)
    prepare(made, rank=4, alpha=4.0, seed=3, checkpointing=False, holds=True)
    velocity, seen = WanVelocity(made), []

    def predict(x: torch.Tensor, time: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append((x, time))
        return velocity(x, time, *others)

    always = RecyclingSettings(p_clean=0.0, p_condition=1.0, num_condition_latents=2)
    for name, num_held in (("film-5", 2), ("film-1", 1), ("pro-1", 2), ("none", 0)):
        settings = replace(SETTINGS, mixture={name: 1.0}, recycling=always, num_gathered=0)
        held = Trainer(made, predict, clips, settings, torch.device("cpu"), holds=True)
        drawn = held._draw(*streams(0))  # the first clip of the first step: there is no error yet
        assert drawn.num_held == num_held
        known = drawn.example.y_BCFHW
        assert known is not None
        seen.clear()
        figures = [held.advance() for _ in range(4)]
        assert all(np.isfinite(line["loss"]) for line in figures)
        x, time = seen[0]
        assert x.shape[1] == NUM_CHANNELS
        assert torch.equal(time[:, :num_held], torch.zeros(2, num_held))
        assert (time[:, num_held:] > 0.0).all()
        assert torch.equal(x[:1, :, :num_held], known[:, 4:, :num_held])
        assert not torch.equal(x[:1, :, num_held:], known[:, 4:, num_held:])
        stored = [each.error for each in held.banks.clean.all_samples()]
        assert stored
        assert all(not error[:, :, :num_held].any() and error[:, :, num_held:].any() for error in stored)
        assert ("injected_condition_rms" in figures[-1]) == (name != "none")
        assert np.isfinite(held.measured_hand_over(2)["hand_over_rms"])


def test_what_cannot_be_trained_is_refused_by_name(tmp_path: Path) -> None:
    clips = write_random_clips(tmp_path / "clips")
    with pytest.raises(ConfigError, match="condition 'movie' is unknown"):
        replace(SETTINGS, mixture={"movie": 1.0})
    with pytest.raises(ConfigError, match=r"learning_rate = -1.0 is out of range"):
        replace(SETTINGS, learning_rate=-1.0)
    with pytest.raises(ConfigError, match="none of shot-1 is among them"):
        trainer(clips, replace(SETTINGS, mixture={"shot-1": 1.0})).advance()
    lost = trainer(clips)
    lost._weight = torch.full_like(lost._weight, torch.nan)
    with pytest.raises(UsageError, match=r"the loss of step 0 is nan"):
        lost.advance()
    (tmp_path / "clips" / "00000002.safetensors").unlink()
    with pytest.raises(InputError, match=r"00000002\.safetensors"):
        EncodedClips(tmp_path / "clips")
