"""What must hold on a CUDA card: `python -m pytest -m gpu`. Without one these fail; `make test` leaves them out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.messages import VideoFailed, VideoTask, WorkerSettings
from actors.worker.backbone import BackboneWorker
from jobs.benches.backbone import BackboneBench
from jobs.benches.device_clock import peak_memory, seconds_of
from jobs.benches.network_calls import PER_LATENT, UNIFORM, NetworkCalls
from jobs.benches.overlap import make_apart, make_overlapped
from miga import LongVideoPipeline
from miga.backbones.family import ModelOptions
from miga.backbones.random_model import PLAIN, RandomModel, Reduction
from miga.backbones.registry import load_backbone, load_spec, random_model
from miga.errors import WorkerError
from miga.profiles import resolve_config
from miga.video import make_video
from pipeline.config import VideoConfig
from tests.tiny_videocrafter2 import build_tiny_videocrafter2

pytestmark = pytest.mark.gpu

FULL_WINDOW = Reduction(layers=2)
"""32,760 tokens of Wan, through two of its blocks: what takes time and memory is there, in a second."""


@pytest.fixture(scope="module")
def device() -> torch.device:
    assert torch.cuda.is_available(), "a CUDA GPU is needed: leave these tests out with -m 'not gpu'"
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"wan": tiny_model, "videocrafter2": build_tiny_videocrafter2(tmp_path_factory.mktemp("models") / "tiny")}


@pytest.fixture(scope="module")
def wan(device: torch.device) -> RandomModel:
    return random_model("wan-1.3b", device=device, dtype=torch.bfloat16, reduction=FULL_WINDOW, with_vae=False)


# ---- results ----


def clean_latents(folder: Path, device: torch.device, dtype: torch.dtype, guidance_scale: float) -> torch.Tensor:
    """Of a window of mixed levels, the same one everywhere."""
    backbone = load_backbone(str(folder), device=device, dtype=dtype, components=("text", "denoiser"))
    config = resolve_config("paper", backbone.spec, {"guidance_scale": guidance_scale})
    condition = backbone.condition(*backbone.encode_prompts(["a red ball", "a boat"]))
    generator = torch.Generator().manual_seed(5)
    x_BFCHW = torch.randn(1, config.window, *backbone.spec.latent_shape, generator=generator).to(device)
    level_F = config.num_steps - torch.arange(config.window) % (config.num_steps // 2)
    with torch.inference_mode():
        return backbone.denoiser(config)(x_BFCHW, level_F[None], [condition]).cpu()


@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
@pytest.mark.parametrize(
    ("dtype", "guidance_scale", "tolerance"),
    [(torch.float32, 3.0, 2e-3), (torch.bfloat16, 1.0, 3e-2)],
)
def test_a_gpu_computes_what_a_cpu_does_in_float32(
    family: str,
    dtype: torch.dtype,
    guidance_scale: float,
    tolerance: float,
    folders: dict[str, Path],
    device: torch.device,
) -> None:
    """Root mean square of the difference, to that of the values: rounding, and no more (float32: TF32 convolutions)."""
    expected = clean_latents(folders[family], torch.device("cpu"), torch.float32, guidance_scale)
    found = clean_latents(folders[family], device, dtype, guidance_scale)
    assert found.dtype == torch.float32
    assert float((found - expected).square().mean().sqrt()) <= tolerance * float(expected.square().mean().sqrt())


@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
def test_a_gpu_decodes_what_a_cpu_does(family: str, folders: dict[str, Path], device: torch.device) -> None:
    frames = []
    for where in (torch.device("cpu"), device):
        backbone = load_backbone(str(folders[family]), device=where, components=("vae",))
        generator = torch.Generator().manual_seed(6)
        x_FCHW = torch.randn(3, *backbone.spec.latent_shape, generator=generator).to(where)
        frames.append(backbone.frame_decoder().decode(x_FCHW).cpu().numpy().astype(np.int16))
    assert np.abs(frames[0] - frames[1]).max() <= 2


@pytest.mark.parametrize("name", ["wan-1.3b", "wan-14b"])
def test_per_latent_time_steps_are_bit_equal_to_a_uniform_one(name: str, device: torch.device) -> None:
    model = random_model(name, device=device, dtype=torch.bfloat16, reduction=FULL_WINDOW, with_vae=False)
    calls = NetworkCalls(model)
    transformer: Any = model.backbone.network
    x_BCFHW = calls.x_BFCHW.transpose(1, 2).to(torch.bfloat16)
    text_BLD = calls.texts_LD[0][None].to(device, torch.bfloat16)
    timestep_B = torch.tensor([993], device=device)
    calls.forwards()  # takes time steps per latent from here on
    with torch.inference_mode():
        uniform = transformer(x_BCFHW, timestep_B, text_BLD, return_dict=False)[0]
        per_latent = transformer(x_BCFHW, timestep_B[:, None].expand(1, 21), text_BLD, return_dict=False)[0]
    assert torch.equal(uniform, per_latent)


# ---- memory ----


def test_per_latent_time_steps_take_no_more_memory(wan: RandomModel, device: torch.device) -> None:
    forwards = NetworkCalls(wan).forwards()
    with torch.inference_mode():
        for name in (UNIFORM, PER_LATENT, PLAIN):
            forwards[name]()  # libraries take their workspaces
        peaks = {name: peak_memory(forwards[name], device) for name in (UNIFORM, PER_LATENT, PLAIN)}
    uniform, per_latent, plain = (peaks[name] for name in (UNIFORM, PER_LATENT, PLAIN))
    assert uniform
    assert per_latent
    assert plain
    assert per_latent.total_bytes <= 1.01 * uniform.total_bytes
    assert per_latent.beside_bytes <= 1.01 * uniform.beside_bytes
    assert per_latent.total_bytes <= 1.01 * plain.total_bytes


def test_decoding_holds_as_much_after_many_latents_as_after_two(device: torch.device) -> None:
    reduction = Reduction(layers=1, channels=0.1)
    model = random_model("wan-1.3b", device=device, dtype=torch.bfloat16, reduction=reduction)
    decoder, held = model.backbone.frame_decoder(), []
    for _ in range(8):
        decoder.decode(torch.randn(1, *model.spec.latent_shape, device=device))
        held.append(torch.cuda.memory_allocated(device))
    assert held[-1] == held[2]


# ---- decoding beside the network ----


@pytest.mark.parametrize("name", ["wan-1.3b", "videocrafter2"])
def test_frames_decoded_beside_the_network_are_the_same(name: str, device: torch.device) -> None:
    """On a stream of its own: latents must be finished before they are read, and not be overwritten before that."""
    reduction = Reduction(scale=0.3, layers=1, channels=0.2)
    model = random_model(name, device=device, dtype=torch.bfloat16, reduction=reduction)
    config = resolve_config("swift", model.spec, {"num_steps": 12, "handoff_level": 3})
    for _ in range(3):
        apart, overlapped = (make(model, config, 20) for make in (make_apart, make_overlapped))
        assert apart.num_frames == overlapped.num_frames == model.spec.num_frames(20)
        assert apart.digest == overlapped.digest


def test_frames_that_are_handed_out_are_the_same_twice(folders: dict[str, Path], device: torch.device) -> None:
    backbone = load_backbone(str(folders["wan"]), device=device)
    config = resolve_config("swift", backbone.spec)
    prompt, negative = backbone.encode_prompts(["a red ball", "a boat"])
    videos = []
    for _ in range(2):
        steps = make_video(backbone, config, [prompt], negative, 11, seed=3)
        videos.append(np.concatenate([step.frames for step in steps if step.frames is not None]))
    assert videos[0].shape[0] == backbone.spec.num_frames(11)
    assert np.array_equal(videos[0], videos[1])


# ---- out of memory ----


@pytest.fixture
def no_more_memory(device: torch.device) -> Iterator[Any]:
    """A function after which the GPU gives no more memory."""

    def stop() -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-6, device)

    yield stop
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.cuda.empty_cache()


@pytest.fixture
def worker(folders: dict[str, Path], device: torch.device, tmp_path: Path) -> BackboneWorker:
    """At a size whose tensors do not fit into what the allocator has put by."""
    spec = load_spec(str(folders["wan"]))
    worker = BackboneWorker(
        WorkerSettings(
            model=str(folders["wan"]),
            revision=None,
            sampler=resolve_config("swift", spec),
            video=VideoConfig(),
            out=str(tmp_path / "out"),
            num_threads=1,
            device="cuda",
            options=ModelOptions(height=512, width=512),
        )
    )
    worker.load()
    return worker


def embeddings(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    backbone = load_backbone(str(folder), device="cpu", components=("text",))
    first, second = (embedding.numpy() for embedding in backbone.encode_prompts(["a red ball", "a boat"]))
    return first, second


def test_a_video_without_memory_is_for_another_worker(
    worker: BackboneWorker, folders: dict[str, Path], no_more_memory: Any
) -> None:
    prompt, negative = embeddings(folders["wan"])
    no_more_memory()
    task = VideoTask(row=0, attempt=0, num_latents=11, num_frames=41, seed=0, path="video.mp4")
    worker.make_video(task, (negative, 0.0), (prompt, 0.0))
    (failed,) = [event for event in worker.news(1.0).events if isinstance(event, VideoFailed)]
    assert (failed.scope, failed.retryable, failed.needs_new_process) == ("worker", True, True)
    assert "memory" in failed.error


def test_a_window_without_memory_is_for_another_helper(
    worker: BackboneWorker, folders: dict[str, Path], no_more_memory: Any
) -> None:
    prompt, negative = embeddings(folders["wan"])
    worker.open_video("video", negative, prompt)
    x_FCHW = np.zeros((6, 4, 64, 64), np.float32)
    no_more_memory()
    with pytest.raises(WorkerError, match="out of memory") as error:
        worker.run_window("video", 0, x_FCHW, np.full(6, 5), None)
    assert error.value.retryable


# ---- the benchmark ----


def test_a_gpu_is_waited_for(device: torch.device) -> None:
    """A thousand products are asked for in a moment, and take longer than one."""
    matrix = torch.randn(2048, 2048, device=device)

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(matrix, matrix)

    products(10)
    assert seconds_of(lambda: products(1000), device) > 20 * seconds_of(lambda: products(1), device)


def test_calls_are_measured_with_their_memory(wan: RandomModel) -> None:
    bench = BackboneBench(wan, 1e15, num_repeats=2)
    rows = {row["call"]: row for row in bench.calls()}
    assert not [row for row in rows.values() if "why not" in row]
    assert rows[PER_LATENT]["peak, MiB"] > rows[PER_LATENT]["beside weights, MiB"] > 0
    assert set(bench.facts) == {"of matmul", "per latent, time", "per latent, memory"}
    assert 0.0 < bench.facts["of matmul"] < 1.0


# ---- the Python API ----


@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
def test_python_holds_a_model_by_the_plan_and_its_text_encoder_leaves(
    family: str, folders: dict[str, Path], device: torch.device
) -> None:
    pipe = LongVideoPipeline.from_pretrained(folders[family])
    parts: Any = pipe.backbone
    text: Any = pipe._model.text
    assert pipe.memory is not None
    assert pipe.memory.card_bytes == torch.cuda.get_device_properties(device).total_memory
    assert pipe.memory.has_room_to_encode
    assert pipe.device == parts.network.device == parts.vae.device == device
    seen: list[str] = []
    text.text.encoder.register_forward_pre_hook(lambda module, _: seen.append(module.device.type))
    assert pipe("a red ball", num_frames=pipe.backbone.spec.num_frames(8)).num_calls
    assert set(seen) == {"cuda"}
    assert text.text.encoder.device.type == "cpu"
    stays = LongVideoPipeline.from_pretrained(folders[family], text_gpus=1)
    stays.encode_prompt("a red ball")
    assert stays._model.text.text.encoder.device == device  # type: ignore[attr-defined]
    moved = LongVideoPipeline.from_pretrained(folders[family], device="cpu", torch_dtype=torch.bfloat16).to("cuda")
    assert moved.memory is not None
    assert moved.device == device
    assert moved.to("cpu").device.type == "cpu"
