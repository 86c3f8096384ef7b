"""Error-recycling fine-tuning, step by step: a clip, errors of before, a forward pass, its residual into the bank.

Plain torch. Whatever is random in a step follows from the step's number and the process's, so a training that is gone
on with does what it would have done. What it goes on from: the weights that learn, the optimiser, and the bank.

Legend: B clips of a step, C channels, F latents, H, W cells; L tokens, D channels of a token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import torch
from torch import nn

from miga.errors import ConfigError, UsageError
from miga.training import erft
from miga.training.chance import SeededChance
from miga.training.conditions import NONE, Shown, check_mixture
from miga.training.encoded import EncodedClip, EncodedClips
from miga.training.erft import MASK_CHANNELS, Example, Injected, RecyclingSettings
from miga.training.error_bank import Banks, Replacement
from miga.training.group import Alone, Group

Predict: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, Sequence[torch.Tensor], Sequence[torch.Tensor] | None], torch.Tensor
]
"""Velocity `[B, C, F, H, W]` of latents with their condition, time steps (`[B]`, `[B, F]`), texts `[L, D]`, tokens."""
NUM_TIMESTEPS: Final = 1000
_DRAWS: Final = 0
_STORES: Final = 1
_MEASURES: Final = 2
_ERRORS: Final = 3
"""Streams of random numbers. Errors have their own: a control without any sees the same clips under the same noise."""
BANK_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What a training is told; the defaults are those published for SVI-Film, but for the bank.

    Attributes:
        mixture: how often each condition is drawn, among those that a clip has.
        recycling: errors injected and stored.
        learning_rate, weight_decay: of AdamW, constant.
        clip_norm: greatest norm of a step's gradient.
        batch: clips of a step, of every process.
        seed: of everything random.
        shift: of the noise levels, those trained at and those of the bank's grids.
        num_grids: steps of sampling, each a grid of the bank.
        capacity: samples of a grid at most (published: 500).
        bank_bytes: of the whole bank of a process at most; None: no such bound.
        bank_dtype: what samples are kept in.
        replacement: what a full grid drops, see `ErrorBank`.
        two_banks: whether errors of noise and of latents are kept apart, as published, in twice the bytes.
        num_gathered: first steps, in which every process stores everybody's residuals.
        low_timestep, high_timestep: time steps that are trained: from the first on, below the second.

    Raises:
        ConfigError: if a value is out of range.
    """

    mixture: Mapping[str, float] = field(default_factory=lambda: {"film-5": 0.9, "film-1": 0.1})
    recycling: RecyclingSettings = field(default_factory=RecyclingSettings)
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    batch: int = 1
    seed: int = 0
    shift: float = 5.0
    num_grids: int = 50
    capacity: int = 64
    bank_bytes: int | None = None
    bank_dtype: str = "float16"
    replacement: Replacement = "l2"
    two_banks: bool = False
    num_gathered: int = 50
    low_timestep: float = 0.0
    high_timestep: float = 1001.0

    def __post_init__(self) -> None:
        check_mixture(self.mixture)
        for name, is_fine, range_ in (
            ("learning_rate", 0.0 < self.learning_rate < float("inf"), "greater than 0"),
            ("weight_decay", 0.0 <= self.weight_decay < float("inf"), "0 or more"),
            ("clip_norm", self.clip_norm > 0.0, "greater than 0"),
            ("batch", self.batch >= 1, "1 or more"),
            ("seed", self.seed >= 0, "0 or more"),
            ("shift", 0.0 < self.shift < float("inf"), "greater than 0"),
            ("num_grids", 1 <= self.num_grids <= NUM_TIMESTEPS, f"1 to {NUM_TIMESTEPS}"),
            ("capacity", self.capacity >= 1, "1 or more"),
            ("bank_bytes", self.bank_bytes is None or self.bank_bytes >= 1, "1 or more"),
            ("bank_dtype", self.bank_dtype in BANK_DTYPES, f"one of {', '.join(BANK_DTYPES)}"),
            ("num_gathered", self.num_gathered >= 0, "0 or more"),
        ):
            if not is_fine:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is out of range", f"it must be {range_}")

    def banks(self) -> Banks:
        """Empty ones, with a grid for every step of sampling."""
        anchors = NUM_TIMESTEPS * erft.training_schedule(self.num_grids, self.shift)[0]
        make = Banks.of_errors if self.two_banks else Banks.of_residuals
        most = None if self.bank_bytes is None else self.bank_bytes // (2 if self.two_banks else 1)
        dtype = BANK_DTYPES[self.bank_dtype]
        return make(anchors, self.capacity, replacement=self.replacement, max_bytes=most, dtype=dtype)


@dataclass(frozen=True)
class _Drawn:
    """A clip of a step, before the network sees it."""

    clip: EncodedClip
    example: Example
    injected: Injected
    tokens: torch.Tensor | None
    index: int
    num_held: int = 0


class Trainer:
    """One process of a training.

    Args:
        network: its parameters that require gradients learn.
        predict: the network's velocity.
        clips: to learn from.
        settings: see there.
        device: of the network.
        group: all processes of the training.
        holds: whether the network takes a condition as clean first latents at time step 0 (Wan2.2 TI2V-5B), and not
            as channels beside its latents. Held latents are neither predicted nor learnt.

    Attributes:
        step: the next one, from 0 on.
        banks: of this process.

    Raises:
        ConfigError: if nothing is to learn, or no time step is in the range.
    """

    def __init__(
        self,
        network: nn.Module,
        predict: Predict,
        clips: EncodedClips,
        settings: TrainingSettings,
        device: torch.device,
        group: Group | None = None,
        *,
        holds: bool = False,
    ) -> None:
        self._holds = holds
        self.step = 0
        self.banks = settings.banks()
        self._predict, self._clips, self._settings, self._device = predict, clips, settings, device
        self._num_latents = clips[0].clean_CFHW.shape[1]
        self._group: Group = group or Alone()
        self._learning = {name: part for name, part in network.named_parameters() if part.requires_grad}
        if not self._learning:
            raise ConfigError("nothing of this model learns", "give it a LoRA, or train all of it")
        self._optimizer = torch.optim.AdamW(
            self._learning.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._sigma, self._timestep, self._weight = erft.training_schedule(NUM_TIMESTEPS, settings.shift)
        is_trained = (self._timestep >= settings.low_timestep) & (self._timestep < settings.high_timestep)
        self._indices = is_trained.nonzero().flatten().tolist()
        if not self._indices:
            raise ConfigError(
                f"no time step is from {settings.low_timestep} on and below {settings.high_timestep}",
                "they lie in 0 to 1000",
            )

    def advance(self) -> dict[str, float]:
        """One step of training; its figures by name, of this process.

        Raises:
            UsageError: if the loss is no number any more.
        """
        settings = self._settings
        draws, errors = (
            SeededChance(settings.seed, self.step, self._group.rank, stream) for stream in (_DRAWS, _ERRORS)
        )
        drawn = [self._draw(draws, errors) for _ in range(settings.batch)]
        examples = [each.example for each in drawn]
        x_BCFHW = torch.cat(
            [self._shown(each.x_BCFHW, _y(each), at.num_held) for each, at in zip(examples, drawn, strict=True)]
        )
        target_BCFHW = torch.cat([_unheld(each.example.target_BCFHW, each.num_held) for each in drawn])
        timestep_B = torch.cat([self._time(self._timestep[each.index], each.num_held) for each in drawn])
        tokens = [each.tokens for each in drawn if each.tokens is not None]
        texts = [each.clip.text_LD for each in drawn]
        predicted_BCFHW = self._predict(x_BCFHW, timestep_B, texts, tokens or None)
        velocity_BCFHW = torch.cat(
            [_unheld(predicted_BCFHW[at : at + 1], each.num_held) for at, each in enumerate(drawn)]
        )
        weight_B = torch.stack([self._weight[each.index] for each in drawn]).to(self._device)
        loss = erft.weighted_loss(velocity_BCFHW, target_BCFHW, weight_B)
        if not bool(torch.isfinite(loss)):
            raise UsageError(
                f"the loss of step {self.step} is {float(loss.detach())}",
                "take a smaller --learning-rate or --error-scale; what was saved before stays",
            )
        norm = self._learn(loss)
        residual_BCFHW = erft.residual(velocity_BCFHW.float(), target_BCFHW)
        self._store(residual_BCFHW, drawn)
        self.step += 1
        return {
            "loss": float(loss.detach()),
            "residual_rms": _rms(residual_BCFHW),
            "gradient_norm": norm,
            "clean_inputs": sum(each.injected.is_clean for each in drawn) / len(drawn),
            **self._injected_rms(drawn),
        }

    def measured_hand_over(self, num_steps: int = 8) -> dict[str, float]:
        """What the model itself gets wrong at the end of a clip, to be held against what is injected.

        A clip is sampled under its own condition, without guidance, and its last latents are held against the true
        ones. Where the text and the condition do not settle how a clip ends, that is an upper bound.

        Args:
            num_steps: Euler steps of the clip.
        """
        chance = SeededChance(self._settings.seed, self.step, self._group.rank, _MEASURES)
        clip = self._clips[chance.choice(len(self._clips))]
        name = self._name_of(clip, chance)
        y_BCFHW = self._condition(clip, name)
        tokens = [clip.tokens[name]] if name in clip.tokens else None
        num_held = self._num_held(name)
        sigmas = [*erft.training_schedule(num_steps, self._settings.shift)[0].tolist(), 0.0]
        x_BCFHW = chance.normal((1, *clip.clean_CFHW.shape)).to(self._device)
        with torch.no_grad():
            for sigma, following in itertools.pairwise(sigmas):
                time_B = self._time(torch.tensor(NUM_TIMESTEPS * sigma), num_held)
                velocity = self._predict(self._shown(x_BCFHW, y_BCFHW, num_held), time_B, [clip.text_LD], tokens)
                x_BCFHW = x_BCFHW + (following - sigma) * velocity.float()
        count = min(self._settings.recycling.num_condition_latents, x_BCFHW.shape[2])
        return {"hand_over_rms": _rms(x_BCFHW[0, :, -count:].cpu() - clip.clean_CFHW[:, -count:])}

    def bank_figures(self) -> dict[str, Any]:
        """What the bank of this process holds: samples, bytes, and the root mean square of each grid."""
        bank = self.banks.clean
        num_bytes = bank.num_bytes if self.banks.holds_residuals else bank.num_bytes + self.banks.noise.num_bytes
        return {"bank_samples": sum(bank.sizes), "bank_bytes": num_bytes, "bank_rms": bank.rms()}

    def weights(self) -> dict[str, torch.Tensor]:
        """What learns, by name, on the CPU: the same in every process."""
        return {name: part.detach().cpu().clone() for name, part in self._learning.items()}

    def state(self) -> dict[str, Any]:
        """What is the same in every process: weights, optimiser and step. The bank is apart (`banks.state`)."""
        return {"weights": self.weights(), "optimizer": self._optimizer.state_dict(), "step": self.step}

    def load_state(self, state: Mapping[str, Any], bank: Mapping[str, torch.Tensor]) -> None:
        """Goes on from what `state` and `banks.state` gave.

        Raises:
            ValueError: if it is the state of another model, or of a bank that this one has no room for.
        """
        saved = state["weights"]
        if saved.keys() != self._learning.keys():
            other = sorted(saved.keys() ^ self._learning.keys())[0]
            raise ValueError(f"what learns is not what learnt: {other}")
        with torch.no_grad():
            for name, part in self._learning.items():
                if saved[name].shape != part.shape:
                    raise ValueError(f"{name} is {list(part.shape)}, and was {list(saved[name].shape)}")
                part.copy_(saved[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.banks.load_state(bank)
        self.step = int(state["step"])

    # ---- of a step ---------------------------------------------------------------------------------------------------

    def _draw(self, chance: SeededChance, errors: SeededChance) -> _Drawn:
        clip = self._clips[chance.choice(len(self._clips))]
        name = self._name_of(clip, chance)
        index = self._indices[chance.choice(len(self._indices))]
        clean_BCFHW = clip.clean_CFHW[None].to(self._device)
        noise_BCFHW = chance.normal(clean_BCFHW.shape).to(self._device)
        timestep, recycling = float(self._timestep[index]), self._settings.recycling
        injected = erft.draw_errors(self.banks, timestep, clean_BCFHW.shape[2], recycling, errors)
        if name == NONE:  # a condition that shows nothing has no errors
            injected = replace(injected, condition=None)
        sigma = float(self._sigma[index])
        example = erft.inject(clean_BCFHW, noise_BCFHW, self._condition(clip, name), sigma, injected)
        return _Drawn(clip, example, injected, clip.tokens.get(name), index, self._num_held(name))

    def _num_held(self, name: str) -> int:
        """Latents that are shown clean, and not learnt."""
        return Shown.of(name).num_held(MASK_CHANNELS) if self._holds else 0

    def _shown(self, x_1CFHW: torch.Tensor, y_1CFHW: torch.Tensor, num_held: int) -> torch.Tensor:
        """What the network is shown of a clip: its condition beside the latents, or in place of the first ones."""
        if not self._holds:
            return torch.cat([x_1CFHW, y_1CFHW], dim=1)
        return torch.cat([y_1CFHW[:, MASK_CHANNELS:, :num_held], x_1CFHW[:, :, num_held:]], dim=2)

    def _time(self, timestep: torch.Tensor, num_held: int) -> torch.Tensor:
        """The time step of a clip `[1]`, or of each of its latents `[1, F]`."""
        if not self._holds:
            return timestep.reshape(1).to(self._device)
        time_F = timestep.float().repeat(self._num_latents)
        time_F[:num_held] = 0.0
        return time_F[None].to(self._device)

    def _name_of(self, clip: EncodedClip, chance: SeededChance) -> str:
        shares = {name: p for name, p in self._settings.mixture.items() if name == NONE or name in clip.conditions}
        if not shares:
            raise ConfigError(
                f"a clip has the conditions {', '.join(clip.conditions) or 'none'}, and none of "
                f"{', '.join(self._settings.mixture)} is among them",
                "encode the clips again for these, into another folder",
            )
        return chance.among(shares)

    def _condition(self, clip: EncodedClip, name: str) -> torch.Tensor:
        if name == NONE:
            channels, *rest = clip.clean_CFHW.shape
            return torch.zeros(1, channels + MASK_CHANNELS, *rest, device=self._device)
        return clip.conditions[name][None].to(self._device)

    def _learn(self, loss: torch.Tensor) -> float:
        """A step of the optimiser; the norm of the gradient before it was cut."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parts = list(self._learning.values())
        for part in parts:  # what a step did not touch has no gradient, and must be in every process's message
            if part.grad is None:
                part.grad = torch.zeros_like(part)
        self._group.average([part.grad for part in parts if part.grad is not None])
        norm = float(nn.utils.clip_grad_norm_(parts, self._settings.clip_norm))
        self._optimizer.step()
        return norm

    def _store(self, residual_BCFHW: torch.Tensor, drawn: Sequence[_Drawn]) -> None:
        """Residuals into the bank; in the first steps everybody's, as upstream has it."""
        chance = SeededChance(self._settings.seed, self.step, self._group.rank, _STORES)
        stored = [erft.is_stored(each.injected, self._settings.recycling, chance) for each in drawn]
        index_B = torch.tensor([each.index for each in drawn], device=residual_BCFHW.device)
        store_residuals(
            self.banks,
            residual_BCFHW,
            self._sigma[index_B.cpu()],
            self._timestep[index_B.cpu()],
            stored,
            self._group if self.step < self._settings.num_gathered else Alone(),
            chance,
        )

    def _injected_rms(self, drawn: Sequence[_Drawn]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in ("noise", "condition", "latent"):
            errors = [error for each in drawn if (error := getattr(each.injected, name)) is not None]
            if errors:
                found[f"injected_{name}_rms"] = sum(_rms(error) for error in errors) / len(errors)
        return found


def store_residuals(
    banks: Banks,
    residual_BCFHW: torch.Tensor,
    sigma_B: torch.Tensor,
    timestep_B: torch.Tensor,
    is_stored: Sequence[bool],
    group: Group,
    chance: SeededChance | None = None,
) -> None:
    """Puts the residuals of a step into a process's bank: its own, or with a group everybody's, process by process.

    Whether the b-th sample of each process is stored, this process's own b-th draw says (upstream's own rule).

    Args:
        banks: of this process.
        residual_BCFHW: of this process.
        sigma_B: noise levels of its inputs.
        timestep_B: the same, 0 ... 1000.
        is_stored: of each.
        group: whose residuals are stored.
        chance: see `ErrorBank.add`.
    """
    levels_2B = torch.stack([sigma_B, timestep_B]).to(residual_BCFHW)
    residuals, levels = group.gather(residual_BCFHW), group.gather(levels_2B)
    for residual, level_2B in zip(residuals, levels, strict=True):
        for number, is_kept in enumerate(is_stored):
            if is_kept:
                sigma, timestep = (float(level) for level in level_2B[:, number])
                banks.store(residual[number : number + 1], sigma, timestep, chance)


def _unheld(velocity_1CFHW: torch.Tensor, num_held: int) -> torch.Tensor:
    """Nothing in place of held latents."""
    if not num_held:
        return velocity_1CFHW
    return torch.cat([torch.zeros_like(velocity_1CFHW[:, :, :num_held]), velocity_1CFHW[:, :, num_held:]], dim=2)


def _y(example: Example) -> torch.Tensor:
    assert example.y_BCFHW is not None
    return example.y_BCFHW


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.float().square().mean().sqrt())
