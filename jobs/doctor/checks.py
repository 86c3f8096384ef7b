"""The checks that may crash or hang. Each runs in a process of its own (`main`).

What it says goes to a file, a line of JSON each: findings, and before each step what is being done, so that of a
process that died it is known at what. What libraries print does not matter.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from jobs.doctor.findings import Finding, note, ok, wrong
from miga.errors import MigaError
from pipeline.storage.addresses import without_secrets
from pipeline.storage.base import PROBE_PREFIX, Storage

Doing: TypeAlias = Callable[[str], None]
Check: TypeAlias = Callable[..., Iterator[Finding]]

MODULES: Final = (
    "numpy", "torch", "safetensors", "transformers", "diffusers", "accelerate", "peft", "ray", "pyarrow", "fsspec",
    "s3fs", "aiobotocore", "obstore", "imageio_ffmpeg", "pydantic", "jinja2", "matplotlib.figure",
)  # fmt: skip
REINSTALL: Final = "install the packages again: pip install --force-reinstall -r {}".format
LOW_DISK_BYTES: Final = 1 << 30
_NVIDIA_S: Final = 20.0


def check_imports(doing: Doing) -> Iterator[Finding]:
    """Whether every library that is needed can be imported."""
    broken: list[str] = []
    for name in MODULES:
        doing(f"importing {name}")
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken library raises
            broken.append(f"{name} ({_line(error)})")
    if broken:
        lock = Path(__file__).parent.parent / "requirements.lock"
        yield wrong("imports", f"cannot be imported: {', '.join(broken)}", REINSTALL(lock))
    else:
        yield ok("imports", f"{len(MODULES)} libraries can be imported")


def check_gpu(doing: Doing) -> Iterator[Finding]:
    """Which GPUs there are for PyTorch, whether they compute, and what the driver says."""
    doing("asking nvidia-smi")
    cards = _nvidia_smi()
    doing("importing torch")
    import torch

    built = f"PyTorch {torch.__version__}" + (f" for CUDA {torch.version.cuda}" if torch.version.cuda else " for CPUs")
    doing("asking PyTorch for GPUs")
    if not torch.cuda.is_available():
        yield _no_gpu(cards, built, torch.version.cuda is not None)
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        driver = cards[0].split(", ")[0] if cards else "unknown"
        text = f"{about.name}, {about.total_memory / 1e9:.1f} GB, driver {driver}; {built}"
        doing(f"computing on GPU {index}")
        try:
            found = (
                (torch.ones(64, 64, device=f"cuda:{index}") @ torch.ones(64, 64, device=f"cuda:{index}")).sum().item()
            )
        except RuntimeError as error:
            yield wrong(f"gpu {index}", f"{text}: {_line(error)}", "restart what uses it, or update driver and PyTorch")
            continue
        if found == 64**3:
            yield ok(f"gpu {index}", text)
        else:
            yield wrong(f"gpu {index}", f"{text}: it computes {found} where {64**3} is right", "take this card out")


def _no_gpu(cards: list[str], built: str, is_for_cuda: bool) -> Finding:
    if not cards:
        return note(
            "gpu", f"none ({built})", "the embedded model needs none; Wan and VideoCrafter2 take hours a video without"
        )
    to_do = (
        "update the driver to one for that CUDA, and look at CUDA_VISIBLE_DEVICES"
        if is_for_cuda
        else "install PyTorch for CUDA: pip install torch --index-url https://download.pytorch.org/whl/cu130"
    )
    return wrong("gpu", f"nvidia-smi shows {len(cards)} ({cards[0]}), and PyTorch sees none ({built})", to_do)


def _nvidia_smi() -> list[str]:
    """A line for each card: driver, name, memory; nothing where there is no such program, or it does not answer."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_S, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def check_ray(doing: Doing, address: str | None = None) -> Iterator[Finding]:
    """Whether a Ray of a run's own starts, or the cluster at `address` answers, and a task runs there."""
    doing("importing ray")
    import ray

    from actors.runtime import cluster_address, ray_session
    from pipeline.config import WorkersConfig

    where = cluster_address(address)
    doing("starting Ray" if where is None else f"joining the Ray cluster at {where}")
    with ray_session(WorkersConfig(), address) as slots:
        doing("running a task on Ray")
        task: Any = ray.remote(num_cpus=0)(lambda: 6 * 7)
        answer = ray.get(task.remote(), timeout=120)
        resources = ray.cluster_resources()
        nodes = len(ray.nodes())
        doing("stopping Ray")
    there = f"{resources.get('CPU', 0):g} CPU slots, {resources.get('GPU', 0):g} GPUs on {nodes} nodes"
    start = "starts here" if where is None else f"answers at {where}"
    if answer == 42:
        yield ok("ray", f"{ray.__version__} {start}: {there}; a run has {slots.num_actors} actors")
    else:
        yield wrong("ray", f"a task came back with {answer!r}", "look at Ray's logs")


def check_ffmpeg(doing: Doing) -> Iterator[Finding]:
    """Whether ffmpeg is there and makes a video whose colours come back, and which other codecs do."""
    doing("importing imageio_ffmpeg")
    import imageio_ffmpeg

    from pipeline.config import VideoConfig, settings_of_codec
    from pipeline.video import check_codec, encoders, usual_codecs

    doing("asking ffmpeg for its version")
    version = f"{imageio_ffmpeg.get_ffmpeg_version()} at {imageio_ffmpeg.get_ffmpeg_exe()}"
    default = VideoConfig()
    doing(f"making a video with {default.codec}")
    try:
        check_codec(default)
    except MigaError as error:
        yield wrong("ffmpeg", f"{version}: {error.message}", error.hint)
        return
    yield ok("ffmpeg", f"{version} makes videos with {default.codec}")
    works, fails = [], []
    for codec in usual_codecs():
        if codec == default.codec or codec not in encoders():
            continue
        doing(f"making a video with {codec}")
        try:
            check_codec(settings_of_codec(codec))
            works.append(codec)
        except MigaError:
            fails.append(codec)
    text = f"these work here too: {', '.join(works) or 'none'}"
    yield ok("codecs", text + (f"; these do not: {', '.join(fails)}" if fails else ""))


def check_storage(doing: Doing, out: str) -> Iterator[Finding]:
    """Whether files can be written to OUT and removed, and its conditional PUT holds; nothing of it stays there."""
    from pipeline.storage.local import LocalStorage
    from pipeline.storage.open import open_storage

    doing(f"opening {out}")
    storage = open_storage(out)
    made = _missing_folders(Path(storage.root)) if isinstance(storage, LocalStorage) else []
    name, data = f"{PROBE_PREFIX}{uuid.uuid4().hex}", os.urandom(1 << 16)
    started_s = time.monotonic()
    try:
        yield from _probed(storage, name, data, doing)
    finally:
        with suppress(MigaError):
            storage.delete(name)
        _remove(made)
    seconds = time.monotonic() - started_s
    if isinstance(storage, LocalStorage):
        yield _room(Path(storage.root))
    else:
        yield ok("round trip", f"{seconds:.1f} s for all of that")


def _probed(storage: Storage, name: str, data: bytes, doing: Doing) -> Iterator[Finding]:
    fault = ""
    doing(f"writing a file of 64 KiB to {storage.root}")
    storage.write_bytes(name, data)
    doing("reading it")
    if storage.read_bytes(name) != data:
        fault = "what was written comes back otherwise"
    doing("listing it")
    if name not in storage.children():
        fault = fault or "a listing lacks a file just written"
    doing("writing where something is already (conditional PUT)")
    storage.probe()
    if storage.write_bytes(name, b"other", if_absent=True):
        fault = fault or "a conditional PUT has replaced a file that was there"
    doing("removing it")
    storage.delete(name)
    if storage.exists(name):
        fault = fault or "a file that was removed is still there"
    if fault:
        yield wrong("storage", f"{storage.root}: {fault}", "use another storage: this one would lose videos")
    else:
        yield ok("storage", f"{storage.root} is written, read, listed and removed from; its conditional PUT holds")


def _missing_folders(root: Path) -> list[Path]:
    """The folders that writing there would make, the innermost first."""
    return [folder for folder in (root, *root.parents) if not os.path.lexists(folder)]


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # it was not made, or somebody has put something there
            return


def _room(root: Path) -> Finding:
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free at {there}"
    return (
        ok("room", found) if free >= LOW_DISK_BYTES else wrong("room", found, "free some space, or choose another OUT")
    )


def check_weights(doing: Doing, model: str, revision: str | None = None) -> Iterator[Finding]:
    """Whether a model is there, whole and finite, has its tokenizer, and fits this machine. Nothing is downloaded."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    doing("importing torch")
    import torch

    from miga.backbones import registry
    from miga.backbones.loading import HUB_NAME
    from miga.backbones.memory_plan import available_memory, check_machine_memory, plan_memory
    from miga.profiles import resolve_config
    from pipeline.config import RunConfig

    doing(f"looking for {model}")
    may_be_on_hub = registry.is_on_hub(model) and HUB_NAME.fullmatch(model)
    is_here = not may_be_on_hub or _is_downloaded(model, revision)
    if not is_here:
        yield note(
            "weights", f"{model} is not on this machine", f"a run downloads it; to do so now: hf download {model}"
        )
        if registry.family_named(model) is None:
            return
    spec = registry.load_spec(model, revision)
    if is_here:
        doing(f"reading all weights of {model}")
        registry.load_backbone(model, revision=revision, device="cpu", components=("tokenizer",))
        registry.check_weights(model, revision, download=True)
        yield ok("weights", f"{model}: {spec.width}x{spec.height}, clips of {spec.num_frames(spec.window)} frames")
    footprint = registry.footprint_of(model, revision)
    if footprint is None:
        return
    doing("planning its memory")
    sampler, text = resolve_config(RunConfig().profile, spec), getattr(torch, RunConfig().text_dtype)
    try:
        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(0).total_memory
            plan = plan_memory(footprint, spec, sampler, card, torch.bfloat16, text).to_dict()
            yield ok("memory", "; ".join(f"{name}: {value}" for name, value in plan.items()))
        elif (available := available_memory()) is not None:
            check_machine_memory(footprint, spec, sampler, 1, available, torch.float32, text)
            yield ok("memory", f"one actor of it fits into the {available / 1e9:.1f} GB that are left")
    except MigaError as error:
        yield wrong("memory", error.message, error.hint)


def _is_downloaded(model: str, revision: str | None) -> bool:
    """Whether weights of a hub's model are in its cache here, all or some."""
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True))
    except Exception:  # the hub's own errors, and those of names that are none
        return False
    return any(folder.rglob("*.safetensors"))


CHECKS: Final[dict[str, Check]] = {
    "imports": check_imports,
    "gpu": check_gpu,
    "ray": check_ray,
    "ffmpeg": check_ffmpeg,
    "storage": check_storage,
    "weights": check_weights,
}


def _line(error: Exception) -> str:
    lines = [line for line in without_secrets(str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:300]}" if lines else type(error).__name__


def main(arguments: list[str]) -> int:
    """Runs a check; SIGTERM ends it in order, so that Ray is stopped and files are removed.

    Args:
        arguments: the check's name, the file that it writes to, and its own arguments, each as JSON.
    """
    name, file, *rest = arguments
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    with open(file, "w", encoding="utf-8", errors="backslashreplace") as said:

        def tell(**values: Any) -> None:
            said.write(json.dumps(values) + "\n")
            said.flush()

        try:
            for finding in CHECKS[name](lambda text: tell(doing=text), *(json.loads(text) for text in rest)):
                tell(finding=finding.to_dict())
        except MigaError as error:
            tell(finding=wrong(name, without_secrets(error.message), error.hint or "correct that").to_dict())
        except Exception as error:  # said in a sentence; a check's own faults are no traceback
            tell(finding=wrong(name, _line(error), "see the log of the library that says so").to_dict())
    return 0
