"""Simulated GPUs: what they are told is what they do, in time, in bits and in faults."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from miga.backbones.base import BackboneSpec, BranchedDenoiser
from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.simulated import gpu
from miga.backbones.simulated.backbone import SimulatedBackbone
from miga.backbones.simulated.gpu import SPEED_VARIABLE, SimulatedGpu
from miga.backbones.simulated.spec import SimulatedOptions, parse_name
from miga.config import SamplerConfig
from miga.consistency import consistency_score
from miga.cost import count_calls
from miga.errors import BadRowError, ModelError, NonFiniteError
from miga.profiles import resolve_config
from miga.video import make_video
from tests.pace import paced
from tests.processes import wait_for

FAST = "simulated:wan?call_s=0&decode_s=0"


class FakeClock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(gpu.time, "monotonic", fake.monotonic)
    monkeypatch.setattr(gpu.time, "sleep", fake.sleep)
    return fake


def config_of(name: str, profile: str = "paper", **overrides: object) -> SamplerConfig:
    return resolve_config(profile, load_spec(name), overrides)


def window(backbone: SimulatedBackbone, config: SamplerConfig, prompt: str = "a cat", length: int | None = None):
    """The arguments of one call."""
    length = length or config.window
    x = torch.randn(1, length, *backbone.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    embedding, negative = backbone.encode_prompts([prompt, ""])
    return x, torch.full((1, length), config.num_steps), [backbone.condition(embedding, negative)]


@pytest.mark.parametrize(
    ("name", "family", "options"),
    [
        ("simulated:wan", "wan", SimulatedOptions()),
        ("simulated:videocrafter2?call_s=0.6", "videocrafter2", SimulatedOptions(call_s=0.6)),
        (
            "simulated:wan?call_s=2&decode_s=0.1&load_s=5&text_s=1&faults=1&marks=/tmp/a%20b",
            "wan",
            SimulatedOptions(call_s=2.0, decode_s=0.1, load_s=5.0, text_s=1.0, faults=True, marks="/tmp/a b"),
        ),
        ("simulated:wan?cells=1", "wan", SimulatedOptions(cells=1)),
        ("simulated:videocrafter2?cells=128", "videocrafter2", SimulatedOptions(cells=128)),
    ],
)
def test_a_name_says_the_family_and_its_times(name: str, family: str, options: SimulatedOptions) -> None:
    assert parse_name(name, ("wan", "videocrafter2")) == (family, options)
    spec = load_spec(name)
    assert (spec.family, spec.name) == (family, name)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("simulated:", "simulated:wan"),
        ("simulated:sora", "simulated:videocrafter2"),
        ("simulated:wan?calls=1", "did you mean 'call_s'"),
        ("simulated:wan?call_s", "'call_s' is ''"),
        ("simulated:wan?call_s=fast", "'fast'"),
        ("simulated:wan?call_s=-1", "'-1'"),
        ("simulated:wan?call_s=nan", "'nan'"),
        ("simulated:wan?call_s=inf", "'inf'"),
        ("simulated:wan?call_s=1&call_s=2", "twice"),
        *(
            (f"simulated:wan?cells={text}", "whole number from 1 to 128")
            for text in ("0", "129", "-3", "2.5", "", "x", "²")
        ),
        ("simulated:wan?cell=8", "did you mean 'cells'"),
        ("simulated:wan?faults=yes", "faults=1"),
        ("simulated:wan?marks=", "names no folder"),
        ("simulated:wan?call_s=1&", "unknown option ''"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, named: str) -> None:
    with pytest.raises(ModelError, match=named.replace("?", r"\?")):
        load_spec(name)


def test_a_revision_is_refused() -> None:
    with pytest.raises(ModelError, match="no revisions"):
        load_spec("simulated:wan", "main")


@pytest.mark.parametrize(("name", "window"), [("simulated:wan", 21), ("simulated:videocrafter2", 16)])
def test_the_sampler_sees_the_published_model(name: str, window: int) -> None:
    """So a video takes the calls that the published one takes."""
    spec: BackboneSpec = load_spec(name)
    assert spec.window == window
    published = load_spec({21: "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 16: "VideoCrafter/VideoCrafter2"}[window])
    assert (spec.frames_per_latent, spec.frames_first_latent, spec.fps) == (
        published.frames_per_latent,
        published.frames_first_latent,
        published.fps,
    )
    for profile in ("paper", "swift", "fifo"):
        ours, theirs = (resolve_config(profile, each) for each in (spec, published))
        assert count_calls(ours, 60) == count_calls(theirs, 60)


@pytest.mark.parametrize("cells", [1, 3, 20])
def test_cells_are_the_size_of_a_latent_and_of_its_frames(cells: int) -> None:
    backbone = load_backbone(f"{FAST}&cells={cells}")
    assert backbone.spec.latent_shape == (4, cells, cells)
    config = config_of(f"{FAST}&cells={cells}")
    x, level, conditions = window(backbone, config)  # type: ignore[arg-type]
    assert backbone.denoiser(config)(x, level, conditions).shape == x.shape
    frames = backbone.frame_decoder().decode(x[0, :2])
    assert frames.shape == (5, 8 * cells, 8 * cells, 3) == (5, backbone.spec.height, backbone.spec.width, 3)
    assert load_spec(FAST).latent_shape == (4, 4, 4)


@pytest.mark.parametrize("cells", [4, 16])
def test_the_more_cells_the_less_the_score_of_noise_fluctuates(cells: int) -> None:
    """A score is the mean of 7 x 14 cosines of independent directions, each of variance 1 over the number of cells."""
    shape = load_spec(f"{FAST}&cells={cells}").latent_shape
    noise = torch.randn(1500, 7 + 14, *shape, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([consistency_score(x[14:], x[:14]) for x in noise])
    assert scores.std().item() == pytest.approx(1 / (cells * math.sqrt(7 * 14)), rel=0.08)


def test_calls_take_the_time_they_are_told(clock: FakeClock) -> None:
    backbone = load_backbone("simulated:wan?call_s=1.4&decode_s=0.05")
    assert isinstance(backbone, SimulatedBackbone)
    guided, plain = config_of(FAST, guidance_scale=5.0), config_of(FAST, guidance_scale=1.0)
    for config, length, seconds in ((guided, 21, 1.4), (plain, 21, 0.7), (guided, 7, 1.4 / 3)):
        clock.slept_s = 0.0
        backbone.denoiser(config)(*window(backbone, config, length=length))
        assert clock.slept_s == pytest.approx(seconds)
    clock.slept_s = 0.0
    backbone.frame_decoder().decode(torch.zeros(4, *backbone.spec.latent_shape))
    assert clock.slept_s == pytest.approx(0.2)


def test_another_speed_of_a_process(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, "0.5")
    backbone = load_backbone("simulated:wan?call_s=1.4")
    assert isinstance(backbone, SimulatedBackbone)
    config = config_of(FAST, guidance_scale=5.0)
    backbone.denoiser(config)(*window(backbone, config))
    assert clock.slept_s == pytest.approx(2.8)
    for text in ("0", "fast", "-1", "inf"):
        monkeypatch.setenv(SPEED_VARIABLE, text)
        with pytest.raises(ModelError, match=SPEED_VARIABLE):
            load_backbone("simulated:wan")


def test_a_gpu_serves_one_at_a_time_in_the_order_of_asking() -> None:
    gpu, served, held = SimulatedGpu(), [], threading.Event()
    release = threading.Event()

    def hold() -> None:
        with gpu.taken(0.0):
            held.set()
            release.wait(paced(10.0))

    def ask(number: int) -> None:
        with gpu.taken(0.0):
            served.append(number)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(paced(10.0))
    asking = []
    for number in range(5):
        asking.append(threading.Thread(target=ask, args=(number,)))
        asking[-1].start()
        wait_for(lambda number=number: gpu._turns._next_ticket >= number + 2, every_s=0.001)  # type: ignore[misc]
    assert served == []
    release.set()
    for thread in (holder, *asking):
        thread.join(paced(10.0))
    assert served == [0, 1, 2, 3, 4]


def test_the_branches_of_a_call_make_the_call() -> None:
    backbone = load_backbone(FAST)
    for config in (config_of(FAST, guidance_scale=5.0), config_of(FAST, guidance_scale=1.0)):
        denoiser = backbone.denoiser(config)
        assert isinstance(denoiser, BranchedDenoiser)
        call = window(backbone, config)
        branches = range(denoiser.num_branches(call[1]))
        assert len(branches) == (2 if config.guidance_scale != 1.0 else 1)
        parts = [denoiser.predict_branch(*call, branch) for branch in branches]
        assert torch.equal(denoiser.combine(call[0], call[1], parts), denoiser(*call))


def test_windows_of_a_batch_are_those_of_single_calls() -> None:
    backbone = load_backbone(FAST)
    config = config_of(FAST)
    denoiser = backbone.denoiser(config)
    (x1, level, cat), (x2, _, dog) = window(backbone, config, "a cat"), window(backbone, config, "a dog")
    x2 = x2 + 1.0
    both = denoiser(torch.cat([x1, x2]), torch.cat([level, level]), [*cat, *dog])
    assert torch.equal(both, torch.cat([denoiser(x1, level, cat), denoiser(x2, level, dog)]))


def test_a_latent_depends_on_prompt_noise_level_and_neighbours() -> None:
    backbone = load_backbone(FAST)
    config = config_of(FAST)
    denoiser = backbone.denoiser(config)
    x, level, cat = window(backbone, config)
    clean = denoiser(x, level, cat)
    neighbour = x.clone()
    neighbour[0, 5] += 1.0
    for changed in (
        denoiser(x, level, window(backbone, config, "a dog")[2]),
        denoiser(x, level - 1, cat),
        denoiser(neighbour, level, cat),
    ):
        assert not torch.equal(changed[0, 4], clean[0, 4])


def frames_of(name: str, prompt: str = "a cat", seed: int = 0) -> torch.Tensor:
    backbone = load_backbone(name)
    embedding, negative = backbone.encode_prompts([prompt, ""])
    config = resolve_config("swift", backbone.spec)
    steps = make_video(
        backbone, config, [embedding], negative, backbone.spec.num_latents(backbone.spec.num_frames(30)), seed
    )
    return torch.cat([torch.from_numpy(step.frames) for step in steps if step.frames is not None])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [FAST, "simulated:videocrafter2?call_s=0&decode_s=0"])
def test_a_video_is_the_same_every_time_and_another_for_another_prompt_or_seed(name: str) -> None:
    frames, spec = frames_of(name), load_spec(name)
    assert frames.shape == (spec.num_frames(30), spec.height, spec.width, 3)
    assert torch.equal(frames, frames_of(name))
    assert not torch.equal(frames, frames_of(name, prompt="a dog"))
    assert not torch.equal(frames, frames_of(name, seed=1))


def test_frames_depend_on_the_order_of_decoding() -> None:
    backbone = load_backbone(FAST)
    x = torch.randn(3, *backbone.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    whole, decoder = backbone.frame_decoder().decode(x), backbone.frame_decoder()
    assert whole.shape[0] == backbone.spec.num_frames(3)
    assert torch.equal(torch.cat([decoder.decode(latent[None]) for latent in x]), whole)
    assert not torch.equal(backbone.frame_decoder().decode(x.flip(0))[-4:], whole[:4])


def test_bad_prompts_are_found_by_the_tokenizer_alone() -> None:
    backbone = load_backbone("simulated:wan?faults=1", components=("tokenizer",))
    backbone.check_prompt("ein Igel 🦔")
    backbone.check_prompt("fault: oom at call 3, and some words")
    for prompt, named in (
        ("  ", "blank"),
        ("a" * 5000, "5000 bytes"),
        ("fault: explode", "no fault"),
        ("fault: nano", "no fault"),
        ("fault: kill at call 0", "no fault"),
        ("fault: oom once", "marks"),
    ):
        with pytest.raises(BadRowError, match=named):
            backbone.check_prompt(prompt)
    load_backbone("simulated:wan").check_prompt("fault: explode")  # only a text, where faults are off


def call(name: str, prompt: str, times: int = 1) -> torch.Tensor:
    backbone = load_backbone(name)
    config = config_of(FAST)
    denoiser, arguments = backbone.denoiser(config), window(backbone, config, prompt)
    for _ in range(times):
        clean = denoiser(*arguments)
    return clean


@pytest.mark.parametrize(
    ("kind", "error"), [("nan", NonFiniteError), ("oom", torch.OutOfMemoryError), ("error", RuntimeError)]
)
def test_a_prompt_makes_its_fault_happen_every_time(kind: str, error: type[Exception]) -> None:
    for _ in range(2):
        with pytest.raises(error):
            call(FAST + "&faults=1", f"fault: {kind}")
    assert torch.isfinite(call(FAST, f"fault: {kind}")).all()


def test_a_fault_strikes_at_the_call_it_names() -> None:
    assert torch.isfinite(call(FAST + "&faults=1", "fault: oom at call 3", times=2)).all()
    with pytest.raises(torch.OutOfMemoryError):
        call(FAST + "&faults=1", "fault: oom at call 3", times=3)


def test_a_fault_that_strikes_once_is_remembered_by_other_processes(tmp_path: Path) -> None:
    name = f"{FAST}&faults=1&marks={tmp_path}"
    with pytest.raises(torch.OutOfMemoryError):
        call(name, "fault: oom once")
    assert torch.isfinite(call(name, "fault: oom once")).all()  # another backbone, as in another process
    with pytest.raises(torch.OutOfMemoryError):
        call(name, "fault: oom once; another row")


@pytest.mark.parametrize(("kind", "number"), [("kill", signal.SIGKILL), ("crash", signal.SIGABRT)])
@pytest.mark.slow
def test_a_prompt_ends_its_process(kind: str, number: signal.Signals) -> None:
    program = f"from tests.miga.backbones.test_simulated import call; call({FAST + '&faults=1'!r}, 'fault: {kind}')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -number


@pytest.mark.slow
def test_it_needs_no_library_that_loads_weights() -> None:
    program = (
        "import sys; from miga.backbones.registry import load_backbone; load_backbone('simulated:wan'); "
        "assert not {'diffusers', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
