"""Image-to-video models in the windows of a queue: what each is conditioned on, what it costs, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.wan.spec import PUBLISHED
from miga.cost import count_calls
from miga.denoise_pass import run_call
from miga.errors import ConfigError
from miga.generate import Sampler, rules_of_pictures
from miga.image_condition import Pictures, WindowChannels, joined
from miga.noise import NamedNoise
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.virtual_time import VirtualExecutor
from tests.miga.closed_form import SHAPE, GaussianDenoiser, MixingDenoiser, profile_config

NUM_LATENTS, SEED, PER_LATENT = 17, 3, 4
CHANNELS = SHAPE[0]
SPEC = BackboneSpec(
    family="test", name="test", revision="1", window=6, latent_channels=CHANNELS, latent_height=SHAPE[1],
    latent_width=SHAPE[2], height=8, width=12, fps=8, noise_schedule="flow", image_input="channels", needs_image=True,
)  # fmt: skip
ANCHOR = torch.full((1, *SHAPE), 0.25)
PICTURE = torch.full((3, 8, 12), 0.5)
CASES = [
    (profile, later) for profile in ("swift", "paper", "fifo", "fifo-literal") for later in ("anchor", "reference")
]


def encode(frames_FCHW: torch.Tensor) -> torch.Tensor:
    """A causal encoder of a kind: the picture's latent is `ANCHOR`, those behind it are numbered, and tell grey."""
    num_latents = (len(frames_FCHW) - 1) // PER_LATENT + 1
    latents = torch.arange(num_latents, dtype=torch.float32)[:, None, None, None].expand(-1, *SHAPE) / 100
    means = frames_FCHW[1:].mean(dim=(1, 2, 3)).view(-1, PER_LATENT).mean(1)
    return torch.cat([ANCHOR, latents[1:] + means[:, None, None, None]])


def config_of(profile: str, later: str, **settings: Any) -> Any:
    """A small config; half a window is kept, and so much that the picture has room before it."""
    return profile_config(profile, image_condition=later, stride=2, **settings)


def pictures(tokens: torch.Tensor | None = None) -> Pictures:
    backbone: Any = SimpleNamespace(
        spec=SPEC,
        encode_frames=encode,
        image_tokens=lambda frames_FCHW: tokens,
        with_image=lambda condition, tokens_LD: condition + float(tokens_LD.sum()),
    )
    return Pictures(backbone, PICTURE)


class Channelled:
    """A network that takes the condition behind its latents' channels, and hands the latents to another.

    Every window is checked against what it must show.
    """

    def __init__(self, inner: Any, later: str) -> None:
        self.inner, self.later = inner, later
        self.window, self.schedule = inner.window, inner.schedule
        video_FCHW = PICTURE.expand(1 + 5 * PER_LATENT, -1, -1, -1).clone()
        video_FCHW[1:] *= float(later == "reference")
        mask_FC = torch.zeros(6, PER_LATENT)
        mask_FC[0] = 1.0
        self.y_FCHW = joined(mask_FC, encode(video_FCHW))
        self.seen: set[str] = set()

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        for x_FCHW, level_F in zip(x_BFCHW, level_BF, strict=True):
            assert x_FCHW.shape[1] == CHANNELS + PER_LATENT + CHANNELS
            self.seen.add(self.kind(x_FCHW[:, :CHANNELS], x_FCHW[:, CHANNELS:], level_F))
        return self.inner(x_BFCHW[:, :, :CHANNELS], level_BF, conditions)

    def kind(self, x_FCHW: torch.Tensor, y_FCHW: torch.Tensor, level_F: torch.Tensor) -> str:
        """Which condition it is: whatever it is not is refused here."""
        assert len(y_FCHW) <= self.window
        assert torch.equal(y_FCHW, self.y_FCHW[: len(y_FCHW)])
        return "the picture"


def video_of(config: Any, inner: Any, later: str, **more: Any) -> tuple[torch.Tensor, Sampler, Channelled]:
    denoiser = Channelled(inner, later)
    noise = NamedNoise(SEED, SHAPE)
    sampler = Sampler(denoiser, config, PromptTrack([0.5]), noise, NUM_LATENTS, pictures=pictures(), **more)
    return torch.cat([latents for _, latents in sampler.run() if latents is not None]), sampler, denoiser


@pytest.mark.parametrize(("profile", "later"), CASES)
def test_what_each_window_is_conditioned_on(profile: str, later: str) -> None:
    config = config_of(profile, later)
    _, _, denoiser = video_of(config, MixingDenoiser(config), later)
    assert denoiser.seen == {"the picture"}


@pytest.mark.parametrize(("profile", "later"), [case for case in CASES if case[0] != "paper"])
def test_a_network_that_treats_latents_alone_makes_the_same_video(profile: str, later: str) -> None:
    """Whatever stands beside a latent in its window, it takes its own steps and is kept from its own place.

    (`paper` searches, and grows its candidates by windows that differ.)
    """
    plain = profile_config(profile, stride=2)
    sampler = Sampler(GaussianDenoiser(plain), plain, PromptTrack([0.5]), NamedNoise(SEED, SHAPE), NUM_LATENTS)
    expected = torch.cat([latents for _, latents in sampler.run() if latents is not None])
    config = config_of(profile, later)
    latents, _, _ = video_of(config, GaussianDenoiser(config), later)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("profile", "later"), CASES)
def test_calls_are_counted(profile: str, later: str) -> None:
    config = config_of(profile, later)
    _, sampler, _ = video_of(config, MixingDenoiser(config), later)
    counted = count_calls(config, NUM_LATENTS)
    num_searches = counted.num_evaluations - 1 if counted.per_search else 0
    assert sampler.num_calls == counted.total + num_searches * counted.per_search


@pytest.mark.parametrize(("profile", "later"), [("paper", "anchor"), ("swift", "anchor"), ("fifo", "reference")])
def test_windows_elsewhere_show_the_same(profile: str, later: str) -> None:
    config = config_of(profile, later)
    denoiser = Channelled(MixingDenoiser(config), later)
    executor = VirtualExecutor(3, lambda call: run_call(denoiser, call), lambda call: 1.0)
    latents, _, _ = video_of(config, MixingDenoiser(config), later, executor=executor)
    assert torch.equal(latents, video_of(config, MixingDenoiser(config), later)[0])


def test_the_picture_before_a_window_is_as_noisy_as_its_cleanest_latent() -> None:
    """In its place before the window's own latents, at their lowest level; its noise is the same in every pass."""
    config = config_of("swift", "anchor")
    inner = MixingDenoiser(config)
    noise_1CHW = NamedNoise(SEED, SHAPE)("anchor", [0])
    num_shown = 0

    class Watching(Channelled):
        def kind(self, x_FCHW: torch.Tensor, y_FCHW: torch.Tensor, level_F: torch.Tensor) -> str:
            nonlocal num_shown
            level = level_F[:1]
            expected = inner.schedule.add_noise(ANCHOR, noise_1CHW, level)
            if torch.equal(x_FCHW[:1], expected):
                assert int(level) == int(level_F[1:].min())
                num_shown += 1
            return super().kind(x_FCHW, y_FCHW, level_F)

    noise = NamedNoise(SEED, SHAPE)
    sampler = Sampler(Watching(inner, "anchor"), config, PromptTrack([0.5]), noise, NUM_LATENTS, pictures=pictures())
    for _ in sampler.run():
        pass
    starts_elsewhere = sampler.num_calls - num_shown
    assert num_shown > starts_elsewhere > config.num_steps, "windows that begin with latent 0 show no other picture"


def test_what_the_network_reads_of_the_picture() -> None:
    """Tokens stand beside every prompt's text, as those of a chain's clip do."""
    config = config_of("fifo", "anchor")
    seen = set()

    class Reading(Channelled):
        def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
            seen.update(conditions)
            return super().__call__(x_BFCHW, level_BF, conditions)

    denoiser = Reading(MixingDenoiser(config), "anchor")
    track, shown = PromptTrack([0.5, 0.25], 8), pictures(torch.full((2, 2), 1.0))
    for _ in Sampler(denoiser, config, track, NamedNoise(SEED, SHAPE), NUM_LATENTS, pictures=shown).run():
        pass
    assert seen == {4.5, 4.25}


def test_where_the_picture_stands() -> None:
    """Before every window but those that begin with the video's first latent, among them FIFO's copies of it."""
    shown = WindowChannels.of(pictures(), 6, "anchor")
    assert shown.before([0, 3]) is None
    for indices in ([1, 2], [-2, -1, 0]):
        before = shown.before(indices)
        assert before is not None
        assert torch.equal(before, ANCHOR)


def test_the_setting_follows_from_the_model() -> None:
    text, image = (PUBLISHED[f"Wan-AI/Wan2.2-{kind}-A14B-Diffusers"] for kind in ("T2V", "I2V"))
    for profile in ("swift", "paper", "fifo"):
        plain, config = resolve_config(profile, text), resolve_config(profile, image)
        assert (plain.later_windows, plain.room) == ("", 21)
        assert (config.later_windows, config.room) == ("anchor", 20)
        assert "image_condition" not in plain.noted()
        assert config.noted()["image_condition"] == "anchor"
        assert count_calls(config, 81).total >= count_calls(plain, 81).total
        rules = rules_of_pictures(image, config)
        assert (rules.why_no_first, rules.is_needed) == ("", True)
        assert "first picture alone" in rules.why_no_last


REFERENCE = {"image_condition": "reference"}


def test_what_is_refused() -> None:
    text, image = (PUBLISHED[f"Wan-AI/Wan2.2-{kind}-A14B-Diffusers"] for kind in ("T2V", "I2V"))
    with pytest.raises(ConfigError, match=r"image_condition = 'reference' does nothing: .*T2V"):
        rules_of_pictures(text, resolve_config("swift", text, REFERENCE))
    for tried in ("finished", "none"):
        with pytest.raises(ConfigError, match=f"image_condition = '{tried}' is unknown"):
            resolve_config("swift", image, {"image_condition": tried})
    with pytest.raises(ConfigError, match="never shown a window") as caught:
        rules_of_pictures(image, resolve_config("stage-2-only", image))
    assert "'fifo'" in caught.value.hint
    with pytest.raises(ConfigError, match="does nothing in profile 'released'"):
        resolve_config("released", image, REFERENCE)
    with pytest.raises(ConfigError, match="unified_stride = 21 is out of range"):
        resolve_config("swift", image, {"unified_stride": 21})
