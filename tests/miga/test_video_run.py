"""One video: frames in order from a thread of their own, stopped and gone on with anywhere, made longer afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.family import ModelOptions
from miga.backbones.memory_plan import plan_memory
from miga.backbones.options import configure
from miga.backbones.registry import load_backbone, require_footprint
from miga.checkpoint import VideoCheckpoint, join_checkpoints, load_checkpoints, save_checkpoint
from miga.config import SamplerConfig
from miga.denoise_pass import run_call
from miga.errors import CheckpointError, NonFiniteError
from miga.generate import Sampler
from miga.noise import NamedNoise
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.video import Progress, VideoRun, make_video
from miga.virtual_time import VirtualExecutor
from tests.miga.closed_form import PROFILES, SHAPE, VIDEOCRAFTER2, MixingDenoiser, make_config, profile_config
from tests.miga.test_wavefront import RestlessExecutor, assert_same
from tests.pace import paced
from tests.tiny_videocrafter2 import build_tiny_videocrafter2

NUM_LATENTS = 13
SEED = 5
NOTHING = torch.zeros(0)


class RunningDecoder:
    """Two frames a latent that depend on every latent before, as a causal VAE's do."""

    def __init__(self) -> None:
        self.sum = torch.zeros(SHAPE)

    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        frames = []
        for x_CHW in x_FCHW:
            self.sum = 0.5 * self.sum + x_CHW
            pixels = (self.sum[:3].permute(1, 2, 0) * 40.0 + 128.0).clamp(0, 255).to(torch.uint8)
            frames += [pixels, 255 - pixels]
        return torch.stack(frames)


def make_backbone(config: SamplerConfig, denoiser: Any = None, decoder: Any = RunningDecoder) -> Any:
    channels, height, width = SHAPE
    spec = BackboneSpec(
        family="wan", name="closed form", revision="", window=config.window, latent_channels=channels,
        latent_height=height, latent_width=width, height=height, width=width, fps=16,
    )  # fmt: skip
    return SimpleNamespace(
        spec=spec,
        device=torch.device("cpu"),
        condition=lambda positive, negative: float(positive.sum()),
        denoiser=lambda config: denoiser or MixingDenoiser(config),
        frame_decoder=decoder,
    )


def make_run(config: SamplerConfig, num_latents: int | None = NUM_LATENTS, **others: Any) -> VideoRun:
    backbone = others.pop("backbone", None) or make_backbone(config)
    prompts = others.pop("prompts", [torch.tensor([0.5])])
    return VideoRun(backbone, config, prompts, NOTHING, num_latents, SEED, **others)


def stepped(config: SamplerConfig, num_slots: int = 3) -> VirtualExecutor:
    denoiser = MixingDenoiser(config)
    return VirtualExecutor(num_slots, lambda call: run_call(denoiser, call), lambda call: 1.0)


def frames_of(steps: Iterator[Progress]) -> tuple[np.ndarray, list[Progress]]:
    every = list(steps)
    return np.concatenate([step.frames for step in every if step.frames is not None]), every


def undisturbed(config: SamplerConfig, num_latents: int = NUM_LATENTS, seed: int = SEED) -> np.ndarray:
    """The frames, from the sampler and the decoder alone."""
    noise = NamedNoise(seed, SHAPE)
    sampler = Sampler(MixingDenoiser(config), config, PromptTrack([0.5]), noise, num_latents)
    latents = [finished for _, finished in sampler.run() if finished is not None]
    frames: np.ndarray = RunningDecoder().decode(torch.cat(latents)).numpy()
    return frames


PROFILE_CASES: list[tuple[str, dict[str, Any]]] = [
    *((profile, {}) for profile in PROFILES if profile.count("no-") <= 1),
    ("released", VIDEOCRAFTER2),
    ("stage-2-only", {"unified_stride": 2}),
]
WAYS = ["alone", "consumed", "executor", "executor, consumed"]


def of_way(way: str, config: SamplerConfig, consumed: list[np.ndarray]) -> dict[str, Any]:
    """Arguments of a run."""
    settings: dict[str, Any] = {"executor": stepped(config)} if "executor" in way else {}
    return settings | ({"consume": consumed.append} if "consumed" in way else {})


# ---- frames ----


@pytest.mark.sampled(6)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("profile", ["paper", "swift", "fifo", "released", "scalingnoise", "stage-2-only"])
def test_the_frames_are_those_of_the_latents_in_order(profile: str, way: str) -> None:
    config = profile_config(profile)
    before = set(threading.enumerate())
    consumed: list[np.ndarray] = []
    run = make_run(config, **of_way(way, config, consumed))
    steps = list(run.steps())
    handed_out = [step.frames for step in steps if step.frames is not None]
    assert not (consumed and handed_out)
    assert np.array_equal(np.concatenate(handed_out or consumed), undisturbed(config))
    assert [len(frames) for frames in handed_out or consumed] == [2] * NUM_LATENTS, "latent by latent"
    counts = [step.num_latents_done for step in steps]
    assert counts == sorted(counts)
    assert counts[-1] == NUM_LATENTS
    sequential = Sampler(MixingDenoiser(config), config, PromptTrack([0.5]), NamedNoise(SEED, SHAPE), NUM_LATENTS)
    states = [state for state, _ in sequential.run()]
    assert steps[-1].num_calls == sequential.num_calls
    assert steps[-1].trace == states[-1].trace
    assert len(steps[-1].final_consistency) == (NUM_LATENTS - 8) // 4
    assert steps[-1].decode_s > 0.0
    assert set(threading.enumerate()) == before, "no thread is left"


def test_make_video_is_the_same() -> None:
    config = profile_config("swift")
    steps = make_video(make_backbone(config), config, [torch.tensor([0.5])], NOTHING, NUM_LATENTS, SEED)
    assert np.array_equal(frames_of(steps)[0], undisturbed(config))


def test_decoding_goes_on_beside_the_network() -> None:
    """The network finishes five latents while the first is in the decoder."""
    config = profile_config("fifo")
    passes_go_on = threading.Event()

    def consume(frames: np.ndarray) -> None:
        assert passes_go_on.wait(paced(10.0)), "the network waited for the decoder"

    run = make_run(config, consume=consume)
    for step in run.steps():
        if run.sampler_state.num_finished == 5 and not passes_go_on.is_set():
            assert step.num_latents_done == 0
            passes_go_on.set()
    assert step.num_latents_done == NUM_LATENTS


def test_latents_that_wait_for_the_decoder_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miga.decoding.MOST_WAITING", 3)
    config = profile_config("fifo")
    lock, num_consumed = threading.Lock(), 0
    backlog: list[int] = []

    def consume(frames: np.ndarray) -> None:
        nonlocal num_consumed
        with lock:
            num_consumed += 1
        threading.Event().wait(0.002)

    run = make_run(config, 40, consume=consume)
    for _ in run.steps():
        with lock:
            backlog.append(run.sampler_state.num_finished - num_consumed)
    assert max(backlog) <= 3 + 2


@pytest.mark.parametrize("way", ["consumed", "executor, consumed", "executor"])
@pytest.mark.parametrize("stop_after", [0, 1, 14, 17])
@pytest.mark.sampled(3)
def test_closing_early_leaves_no_thread(way: str, stop_after: int) -> None:
    config = profile_config("swift")
    before = set(threading.enumerate())
    steps = make_run(config, **of_way(way, config, [])).steps()
    for _ in range(stop_after):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) == before
    with make_run(config, **of_way(way, config, [])) as run:
        for _ in zip(range(stop_after), run.steps(), strict=False):
            pass
    assert set(threading.enumerate()) == before


class BrokenError(Exception):
    pass


class BrokenDecoder(RunningDecoder):
    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        raise BrokenError("decoder")


@pytest.mark.parametrize("way", WAYS)
def test_an_error_in_the_decoder_surfaces_in_the_steps(way: str) -> None:
    config = profile_config("swift")
    before = set(threading.enumerate())
    run = make_run(config, backbone=make_backbone(config, decoder=BrokenDecoder), **of_way(way, config, []))
    with pytest.raises(BrokenError, match="decoder"):
        list(run.steps())
    assert set(threading.enumerate()) == before


def test_an_error_in_the_encoder_surfaces_in_the_steps() -> None:
    config = profile_config("swift")
    written: list[np.ndarray] = []

    def consume(frames: np.ndarray) -> None:
        if len(written) == 3:
            raise BrokenError("disk full")
        written.append(frames)

    with pytest.raises(BrokenError, match="disk full"):
        list(make_run(config, consume=consume).steps())
    assert len(written) == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("bad", "message"), [(float("nan"), "latent 0 "), (float("inf"), "latent 0 ")])
def test_latents_that_are_not_finite_are_no_video(way: str, bad: float, message: str) -> None:
    """A network that goes wrong at the first latent at its lowest level, and does not see it itself."""
    config = make_config()
    good = MixingDenoiser(config)

    class Wrong(MixingDenoiser):
        def __call__(self, x: torch.Tensor, level: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
            clean = good(x, level, conditions)
            return torch.where((level == 1)[..., None, None, None], clean * bad, clean)

    wrong = Wrong(config)
    consumed: list[np.ndarray] = []
    settings = of_way(way, config, consumed)
    if "executor" in way:
        settings["executor"] = VirtualExecutor(2, lambda call: run_call(wrong, call), lambda call: 1.0)
    run = make_run(config, backbone=make_backbone(config, wrong), **settings)
    with pytest.raises(NonFiniteError, match=f"{message}of the video is NaN or infinite, at level 0") as raised:
        list(run.steps())
    assert raised.value.scope == "row"
    assert "float32" in raised.value.hint
    assert not consumed


# ---- checkpoints ----


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for the disk: `test_checkpoint.py` has what that is for."""
    monkeypatch.setattr("miga.checkpoint.os.fsync", lambda _: None)


@pytest.mark.parametrize("way", ["alone", "executor"])
@pytest.mark.parametrize(("profile", "settings"), PROFILE_CASES)
@pytest.mark.sampled(16)
def test_stopped_at_any_pass_and_gone_on_with(profile: str, settings: dict[str, Any], way: str, tmp_path: Path) -> None:
    """Through files, again and again, by runs that are stopped after a few passes: the frames of the last one are those
    of a run that was never stopped, and no call is counted twice. (With an executor a checkpoint may be some passes
    back, so runs must go further to get on.)"""
    config = profile_config(profile, **settings)
    expected, straight = frames_of(make_run(config).steps())
    files: list[Path] = []
    consumed: list[np.ndarray] = []
    num_passes = (2 if way == "alone" else 4) if profile == "stage-2-only" else (4 if way == "alone" else 12)
    for number in range(30):
        resume = None
        if files:
            resume = load_checkpoints(files, config=config, num_latents=NUM_LATENTS, seed=SEED)
            assert resume.first_latent == 0
        consumed.clear()
        executor = stepped(config, num_slots=1) if way == "executor" else None
        run = make_run(config, resume=resume, consume=consumed.append, executor=executor)
        last, passed = None, [run.sampler_state]
        for step in run.steps():
            last = step
            if run.sampler_state is not passed[-1]:
                passed.append(run.sampler_state)
            if len(files) < 8 and len(passed) == num_passes + number % 2:
                files.append(tmp_path / f"{number}")
                save_checkpoint(run.checkpoint(), files[-1], config=config, seed=SEED)
                break
        run.close()
        if last is not None and last.num_latents_done == NUM_LATENTS:
            break
    assert files
    assert np.array_equal(np.concatenate(consumed), expected)
    assert last is not None
    assert last.num_calls == straight[-1].num_calls
    assert last.trace == straight[-1].trace
    assert last.final_consistency == straight[-1].final_consistency


@pytest.mark.parametrize("way", ["alone", "executor"])
@pytest.mark.parametrize("profile", ["paper", "swift", "fifo", "scalingnoise", "released", "stage-2-only"])
@pytest.mark.sampled(9)
def test_the_parts_of_one_run_hold_every_latent_once(profile: str, way: str) -> None:
    """Taken at random passes; a run goes on from any of them, with all before it, to the same frames."""
    config = profile_config(profile)
    expected = undisturbed(config)
    chance = np.random.default_rng(1)
    run = make_run(config, consume=lambda frames: None, **of_way(way, config, []))
    parts = [run.checkpoint()]
    for _ in run.steps():
        if chance.random() < 0.4:
            parts.append(run.checkpoint())
    parts.append(run.checkpoint())
    assert len(parts) > 5
    assert [part.num_latents_done for part in parts] == sorted(part.num_latents_done for part in parts)
    for count in range(1, len(parts) + 1, 3):
        resumed = make_run(config, resume=join_checkpoints(parts[:count]))
        assert np.array_equal(frames_of(resumed.steps())[0], expected)
    finished = join_checkpoints(parts)
    assert finished.num_latents_done == len(finished.latents_FCHW) == NUM_LATENTS
    assert np.array_equal(RunningDecoder().decode(finished.latents_FCHW).numpy(), expected)
    assert finished.state.trace == list(run_alone(config))[-1].trace


def run_alone(config: SamplerConfig) -> Iterator[Progress]:
    return make_run(config).steps()


@pytest.mark.parametrize("profile", ["paper", "swift", "fifo", "stage-2-only"])
def test_with_an_executor_a_checkpoint_is_that_of_some_pass_without(profile: str) -> None:
    config = profile_config(profile)
    run = make_run(config)
    parts = {}
    for _ in run.steps():
        parts[len(parts)] = (run.sampler_state, run.checkpoint().num_calls)
    ours = make_run(config, executor=stepped(config))
    num_found = 0
    for _ in ours.steps():
        checkpoint = ours.checkpoint()
        found = [state for state, num_calls in parts.values() if num_calls == checkpoint.num_calls]
        if found:  # none at the very start
            num_found += 1
            assert_same(checkpoint.state, found[0])
    assert num_found > 5


def test_a_thread_that_decodes_late_loses_nothing(tmp_path: Path) -> None:
    """A checkpoint is of what is finished, decoded or not."""
    config = profile_config("fifo")
    gate = threading.Event()
    run = make_run(config, consume=lambda frames: gate.wait(paced(10.0)) and None)
    for _ in run.steps():
        if run.sampler_state.num_finished >= 6:
            checkpoint = run.checkpoint()
            gate.set()
            break
    assert checkpoint.num_latents_done == len(checkpoint.latents_FCHW) == 6
    run.close()
    assert np.array_equal(frames_of(make_run(config, resume=checkpoint).steps())[0], undisturbed(config))


def test_what_cannot_be_gone_on_with() -> None:
    config = profile_config("fifo")
    run = make_run(config)
    parts: list[VideoCheckpoint] = []
    for _ in run.steps():
        parts.append(run.checkpoint())
    assert len(parts) > 6
    with pytest.raises(CheckpointError, match="is of a video of 13 latents, not 14, and depends on that length"):
        make_run(config, 14, resume=parts[0])
    with pytest.raises(CheckpointError, match=r"latents 0 \.\.\. \d+ are missing"):
        make_run(config, resume=parts[-1])
    full = [part for part in parts if len(part.latents_FCHW)]
    with pytest.raises(CheckpointError, match=r"latents 0 \.\.\. \d+ are in none of them"):
        join_checkpoints(full[1:])
    with pytest.raises(CheckpointError, match=r"are in two of them"):
        join_checkpoints([full[0], full[0]])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        join_checkpoints([])


# ---- made longer afterwards ----


def other_length_states(config: SamplerConfig, num_latents: int) -> list[Any]:
    noise = NamedNoise(SEED, SHAPE)
    sampler = Sampler(MixingDenoiser(config), config, PromptTrack([0.5]), noise, num_latents)
    states = [sampler.start()]
    while not sampler.is_done(states[-1]):
        states.append(sampler.advance(states[-1])[0])
    return states


@pytest.mark.parametrize(("profile", "settings"), PROFILE_CASES)
@pytest.mark.parametrize("num_latents", [1, 4, 9, 18])
@pytest.mark.sampled(35)
def test_an_open_state_is_that_of_every_longer_video(profile: str, settings: dict[str, Any], num_latents: int) -> None:
    config = profile_config(profile, **settings)
    sampler = Sampler(MixingDenoiser(config), config, PromptTrack([0.5]), NamedNoise(SEED, SHAPE), num_latents)
    states = other_length_states(config, num_latents)
    is_open = [sampler.is_open(state) for state in states]
    assert is_open == sorted(is_open, reverse=True), "once it depends on the length it always does"
    for longer in (num_latents + 1, num_latents + 2, num_latents + 7, 40):
        of_longer = other_length_states(config, longer)
        for number, state in enumerate(states[: sum(is_open)]):
            assert_same(state, of_longer[number])
    if num_latents == 18:
        assert sum(is_open) > len(states) / 2, "near its end alone"


@pytest.mark.parametrize("way", ["alone", "executor"])
@pytest.mark.parametrize(("profile", "settings"), PROFILE_CASES)
@pytest.mark.sampled(18)
def test_a_longer_video_goes_on_from_a_shorter_one(
    profile: str, settings: dict[str, Any], way: str, tmp_path: Path
) -> None:
    config = profile_config(profile, **settings)
    short = make_run(config, keeps_open=True, **of_way(way, config, []))
    for number, _ in enumerate(short.steps()):
        if number % 4 == 0:
            short.checkpoint()  # does not get in its way
    checkpoint = short.open_checkpoint()
    assert checkpoint is not None
    assert checkpoint.is_open
    save_checkpoint(checkpoint, tmp_path / "open", config=config, seed=SEED)
    for num_latents in (NUM_LATENTS + 1, 22):
        resume = load_checkpoints([tmp_path / "open"], config=config, num_latents=num_latents, seed=SEED)
        longer = make_run(config, num_latents, resume=resume, keeps_open=True, **of_way(way, config, []))
        found, steps = frames_of(longer.steps())
        straight, straight_steps = frames_of(make_run(config, num_latents).steps())
        assert np.array_equal(found, straight)
        assert steps[-1].num_calls == straight_steps[-1].num_calls
        assert steps[-1].trace == straight_steps[-1].trace
    again = longer.open_checkpoint()
    assert again is not None
    assert again.num_latents == 22
    extended = make_run(config, 30, resume=again)
    assert np.array_equal(frames_of(extended.steps())[0], frames_of(make_run(config, 30).steps())[0])
    with pytest.raises(CheckpointError):
        make_run(config, NUM_LATENTS - 1, resume=checkpoint)


def test_of_several_prompts_only_the_base_clip_is_open() -> None:
    """How many latents stand under each depends on the length, unless it is said."""
    config = make_config()
    prompts = [torch.tensor([0.5]), torch.tensor([-1.0])]
    for latents_per_prompt, expected in ((None, True), (4, False)):
        settings: dict[str, Any] = {"prompts": prompts, "latents_per_prompt": latents_per_prompt}
        run = make_run(config, keeps_open=True, **settings)
        list(run.steps())
        checkpoint = run.open_checkpoint()
        assert checkpoint is not None
        assert (checkpoint.state.base is not None) == expected
        found, _ = frames_of(make_run(config, 24, resume=checkpoint, **settings).steps())
        assert np.array_equal(found, frames_of(make_run(config, 24, **settings).steps())[0])


def test_a_run_in_threads_that_take_their_time(tmp_path: Path) -> None:
    """Everything at once: an executor of restless threads, an encoder, checkpoints, a resume."""
    config = profile_config("paper")
    executor = RestlessExecutor(MixingDenoiser(config), 4)
    expected = undisturbed(config)
    consumed: list[np.ndarray] = []
    run = make_run(config, executor=executor, consume=consumed.append)
    parts = []
    for number, step in enumerate(run.steps()):
        if number % 5 == 4:
            parts.append(run.checkpoint())
        if step.num_latents_done > 3:
            break
    run.close()
    consumed.clear()
    list(make_run(config, executor=executor, consume=consumed.append, resume=join_checkpoints(parts)).steps())
    executor.threads.shutdown()
    assert np.array_equal(np.concatenate(consumed), expected)


# ---- real networks ----


class Watched(RestlessExecutor):
    """Remembers which branches were asked for."""

    def submit(self, call: Any, priority: int, *, is_candidate: bool) -> Any:
        self.branches = [*getattr(self, "branches", []), call.branch]
        return super().submit(call, priority, is_candidate=is_candidate)


def assert_same_in_threads(backbone: Any, config: SamplerConfig, num_latents: int = 7) -> None:
    """Frames with windows and branches in four threads are those of one after the other."""
    prompt, negative = backbone.encode_prompts(["a red circle", "blue"])
    executor = Watched(backbone.denoiser(config), 4)
    run = VideoRun(backbone, config, [prompt], negative, num_latents, SEED, executor=executor)
    found, steps = frames_of(run.steps())
    executor.threads.shutdown()
    expected, straight = frames_of(VideoRun(backbone, config, [prompt], negative, num_latents, SEED).steps())
    assert np.array_equal(found, expected)
    assert steps[-1].num_calls == straight[-1].num_calls
    assert {0, 1} <= set(executor.branches), "some calls were split"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("profile", ["paper", "swift"])
def test_wan_in_threads(profile: str, tiny_model: Path) -> None:
    backbone = load_backbone(str(tiny_model), device="cpu")
    assert_same_in_threads(backbone, resolve_config(profile, backbone.spec))


@pytest.mark.slow
def test_videocrafter2_in_threads(tmp_path: Path) -> None:
    backbone = load_backbone(str(build_tiny_videocrafter2(tmp_path / "model")), device="cpu")
    settings = {"num_steps": 6, "handoff_level": 3, "guidance_scale": 3.0}
    assert_same_in_threads(backbone, resolve_config("swift", backbone.spec, settings), num_latents=1)


def test_simulated_gpus_in_threads() -> None:
    backbone = load_backbone("simulated:wan?call_s=0&decode_s=0", device="cpu")
    assert_same_in_threads(backbone, resolve_config("swift", backbone.spec))


class Overlaps:
    """Counts how often a forward of the network and the decoding of a latent begin while the other runs.

    Until there was one, a decode waits `patience_s` for it.
    """

    def __init__(self, network: Any, decoder: Any, patience_s: float) -> None:
        self.count = 0
        self.num_run = {"call": 0, "decode": 0}
        self._running = {"call": 0, "decode": 0}
        self._changed = threading.Condition()
        self._patience_s = patience_s
        network.forward = self._watched("call", "decode", network.forward)
        decoder.forward = self._watched("decode", "call", decoder.forward)

    def _watched(self, name: str, other: str, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._changed:
                self.num_run[name] += 1
                self._running[name] += 1
                self.count += self._running[other] > 0
                self._changed.notify_all()
                if name == "decode" and not self.count:
                    self._changed.wait_for(lambda: self.count, self._patience_s)
            try:
                return forward(*args, **kwargs)
            finally:
                with self._changed:
                    self._running[name] -= 1

        return run


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("family", "way"),
    [("wan", "consumed"), ("wan", "executor"), ("wan", "executor, consumed"), ("videocrafter2", "executor, consumed")],
)
def test_where_memory_is_short_decoding_takes_turns_with_the_network(
    family: str, way: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The same frames; where there is room, some of them are decoded while a call runs."""
    folder = tiny_model if family == "wan" else build_tiny_videocrafter2(tmp_path / "model")
    made = {}
    for beside, patience_s in ((True, paced(10.0)), (False, 0.05)):
        backbone: Any = load_backbone(str(folder), device="cpu")
        config = resolve_config("fifo", backbone.spec, {"num_steps": 8})
        plan = plan_memory(require_footprint(backbone.spec.name), backbone.spec, config, 10**12)
        configure(backbone, ModelOptions(), memory=replace(plan, decodes_beside=beside))
        overlaps = Overlaps(backbone.network, backbone.vae.decoder, patience_s)
        prompt, negative = backbone.encode_prompts(["a red circle", "blue"])
        executor = RestlessExecutor(backbone.denoiser(config), 3) if "executor" in way else None
        consumed: list[np.ndarray] = []
        consume = consumed.append if "consumed" in way else None
        run = VideoRun(backbone, config, [prompt], negative, 5, SEED, executor=executor, consume=consume)
        handed_out = [step.frames for step in run.steps() if step.frames is not None]
        if executor is not None:
            executor.threads.shutdown()
        made[beside] = np.concatenate(consumed or handed_out)
        assert overlaps.num_run["decode"] == 5
        assert overlaps.num_run["call"] > 5
        assert (overlaps.count > 0) == beside
    assert np.array_equal(made[True], made[False])


@pytest.mark.gpu
@pytest.mark.parametrize("profile", ["paper", "swift", "fifo"])
def test_on_a_gpu_in_threads(profile: str, tiny_model: Path) -> None:
    """Every thread with work on streams of its own: what one writes another reads."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    backbone = load_backbone(str(tiny_model), device="cuda", dtype=torch.float32)
    for _ in range(5):
        assert_same_in_threads(backbone, resolve_config(profile, backbone.spec, {"guidance_scale": 2.0}))
