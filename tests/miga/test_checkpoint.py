"""The file of a video in the making: whole or not at all, and refused with what differs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from miga.checkpoint import (
    VERSION,
    VideoCheckpoint,
    check_file,
    load_checkpoints,
    load_state,
    num_whole,
    save_checkpoint,
    save_state,
)
from miga.config import SamplerConfig
from miga.errors import CheckpointError, MigaError
from miga.generate import VideoState
from miga.methods.fifo.fifo import FifoState
from miga.methods.miga.two_stage import TwoStageState
from miga.methods.unified.unified_only import UnifiedOnlyState
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace
from miga.unified import UnifiedState
from tests.miga.closed_form import GaussianDenoiser, make_config, make_fifo_config, make_sampler

CONFIG = make_config()
FIFO = make_fifo_config()
UNIFIED = make_config(method="unified")


def make_queue(first: int, count: int, dtype: torch.dtype = torch.float32) -> FrameQueue:
    chance = torch.Generator().manual_seed(first + count)
    x = torch.randn(count, 2, 3, 4, generator=chance).to(dtype)
    taken = torch.arange(count) % 3
    return FrameQueue(x, torch.arange(1, count + 1), {"previous": 2 * x, "num_taken": taken}, first)


TRACE = ReflectionTrace((4, 6), (0.1 + 0.2, -1e-17), (False, True), (False, False))
STATES = {
    "base clip": VideoState(base=make_queue(0, 3)),
    "two stages": VideoState(
        method=TwoStageState(
            make_queue(7, 4),
            UnifiedState((make_queue(2, 3), None, make_queue(0, 0)), (5, 0, 2)),
            9,
            TRACE,
        ),
        num_finished=6,
    ),
    "fifo": VideoState(method=FifoState(make_queue(-3, 3), make_queue(0, 5)), num_finished=0),
    "fifo without context": VideoState(method=FifoState(None, make_queue(0, 5))),
    "stage 2 only": VideoState(method=UnifiedOnlyState(UnifiedState((None,), (0,)), 3)),
}


def assert_same(found: Any, expected: Any) -> None:
    """The same classes, values and dtypes throughout."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
    elif is_dataclass(expected):
        for field in fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, dict):
        assert list(found) == sorted(expected) or list(found) == list(expected)
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def config_of(state: VideoState) -> SamplerConfig:
    """One of the method whose state it is."""
    return {FifoState: FIFO, UnifiedOnlyState: UNIFIED}.get(type(state.method), CONFIG)


def save(state: VideoState, file: Path, **other: Any) -> None:
    save_state(state, file, **({"config": config_of(state), "num_latents": 9, "seed": 1} | other))


def load(file: Path, **other: Any) -> VideoState:
    """Of whatever method the file says it is, unless `other` says."""
    config = CONFIG
    with contextlib.suppress(Exception), safe_open(file, framework="pt") as opened:
        method = json.loads(opened.metadata()["config"])["method"]
        config = {"fifo": FIFO, "unified": UNIFIED}.get(method, CONFIG)
    return load_state(file, **({"config": config, "num_latents": 9, "seed": 1} | other))


@pytest.mark.parametrize("name", STATES)
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    save(STATES[name], tmp_path / "state")
    assert_same(load(tmp_path / "state"), STATES[name])
    assert os.listdir(tmp_path) == ["state"], "nothing else is left behind"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    state = VideoState(base=make_queue(0, 3, dtype))
    save(state, tmp_path / "state")
    assert_same(load(tmp_path / "state"), state)


@pytest.mark.parametrize("score", [0.1, 1 / 3, 5e-324, -1.7976931348623157e308, math.inf])
def test_numbers_are_kept_to_the_last_bit(score: float, tmp_path: Path) -> None:
    trace = ReflectionTrace((0,), (score,), (False,), (False,))
    save(VideoState(method=FifoState(None, make_queue(0, 1), trace)), tmp_path / "state")
    assert load(tmp_path / "state").trace.scores[0].hex() == score.hex()


def test_views_and_shared_storage_are_saved_as_what_they_show(tmp_path: Path) -> None:
    wide = torch.arange(96.0).view(8, 3, 2, 2)
    x = wide[:4]
    parts = {
        "transposed": x.transpose(1, 2),
        "every second": wide[::2],
        "expanded": x[:1].expand(4, -1, -1, -1),
        "same": x,
        "part": wide[3:7],
    }
    state = VideoState(base=FrameQueue(x, torch.arange(4), parts))
    save(state, tmp_path / "state")
    found = load(tmp_path / "state")
    assert_same(found, state)
    assert found.base is not None
    for tensor in (found.base.x_FCHW, *found.base.history.values()):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_what_is_loaded_does_not_hang_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "state"
    save(STATES["two stages"], file)
    found = load(file)
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert_same(found, STATES["two stages"])


def test_levels_stay_on_the_cpu_whatever_the_device(tmp_path: Path) -> None:
    save(STATES["two stages"], tmp_path / "state")
    method = load(tmp_path / "state", device="meta").method
    assert isinstance(method, TwoStageState)
    assert method.queue.level_F.tolist() == [1, 2, 3, 4]
    for tensor in (method.queue.x_FCHW, *method.queue.history.values()):
        assert tensor.device.type == "meta"


@pytest.mark.gpu
def test_onto_a_gpu_and_back(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    save(STATES["two stages"], tmp_path / "state")
    there = load(tmp_path / "state", device="cuda")
    assert isinstance(there.method, TwoStageState)
    assert there.method.queue.x_FCHW.is_cuda
    save(there, tmp_path / "state")
    assert_same(load(tmp_path / "state"), STATES["two stages"])


def test_a_video_without_end_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    save(STATES["fifo"], tmp_path / "state", num_latents=None)
    assert_same(load(tmp_path / "state", num_latents=None), STATES["fifo"])
    with pytest.raises(CheckpointError, match="num_latents None there, 9 here"):
        load(tmp_path / "state")


DIFFERENT: list[tuple[dict[str, Any], list[str]]] = [
    ({"seed": 2}, ["seed 1 there, 2 here"]),
    ({"num_latents": 10}, ["num_latents 9 there, 10 here"]),
    ({"config": replace(CONFIG, drain=True)}, ["sampler.drain False there, True here"]),
    (
        {"config": replace(CONFIG, num_steps=13, profile="other"), "seed": 7},
        ["seed 1 there, 7 here", "sampler.num_steps 12 there, 13 here", "sampler.profile 'test' there, 'other' here"],
    ),
]


@pytest.mark.parametrize(("other", "differs"), DIFFERENT)
def test_of_another_video_says_what_differs(other: dict[str, Any], differs: list[str], tmp_path: Path) -> None:
    file = tmp_path / "state"
    save(STATES["two stages"], file)
    with pytest.raises(CheckpointError) as raised:
        load(file, **other)
    assert str(file) in raised.value.message
    assert raised.value.message.count(" there, ") == len(differs)
    for difference in differs:
        assert difference in raised.value.message
    assert "delete it" in raised.value.hint
    assert (raised.value.scope, raised.value.retryable) == ("row", False)


@pytest.mark.parametrize("change", [{"timesteps": (1000, 500), "num_steps": 2, "window": 4}, {"flow_shift": 0.1 + 0.2}])
def test_lists_and_floats_of_a_config_are_the_same_again(change: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(method="unified", solver="euler", **change)
    save(STATES["stage 2 only"], tmp_path / "state", config=config)
    assert_same(load(tmp_path / "state", config=config), STATES["stage 2 only"])


def test_a_field_that_only_one_of_two_programs_knows(tmp_path: Path) -> None:
    file = tmp_path / "state"
    save(STATES["fifo"], file)
    edit(file, lambda metadata: metadata | {"config": json.dumps({**json.loads(metadata["config"]), "speed": 3})})
    with pytest.raises(CheckpointError, match=r"sampler\.speed 3 there, missing here"):
        load(file)


@pytest.mark.parametrize("name", ["two stages", "fifo", "stage 2 only"])
def test_an_earlier_version_noted_the_settings_of_all_methods(name: str, tmp_path: Path) -> None:
    file, others = tmp_path / "state", CONFIG.to_dict() | FIFO.to_dict() | {"num_beams": 0, "released_branch": ""}
    save(STATES[name], file)
    edit(file, lambda metadata: metadata | {"config": json.dumps(others | json.loads(metadata["config"]))})
    assert_same(load(file), STATES[name])


def parts_of(file: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a safetensors file, and what follows it."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(file: Path, header: dict[str, Any], rest: bytes) -> None:
    """The file that was written with that header: its checksum is right."""
    metadata = header.get("__metadata__", {})
    if "sha256" in metadata:
        header = header | {"__metadata__": metadata | {"sha256": "0" * 64}}
    head = json.dumps(header, separators=(",", ":")).encode()
    content = struct.pack("<Q", len(head)) + head + rest
    file.write_bytes(content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1))


def as_version_1(file: Path) -> None:
    """The file as the version before would have written it."""
    edit(file, lambda metadata: {key: metadata[key] for key in metadata if key != "sha256"} | {"version": "1"})


def edit(file: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    header, rest = parts_of(file)
    put_together(file, header | {"__metadata__": change(header["__metadata__"])}, rest)


def edit_state(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    def of_metadata(metadata: dict[str, str]) -> dict[str, str]:
        state = json.loads(metadata["state"])
        change(state)
        return metadata | {"state": json.dumps(state)}

    edit(file, of_metadata)


def test_of_another_version(tmp_path: Path) -> None:
    file = tmp_path / "state"
    save(STATES["fifo"], file)
    edit(file, lambda metadata: metadata | {"version": json.dumps(VERSION + 1)})
    with pytest.raises(CheckpointError, match=f"is of version {VERSION + 1}, this program reads version {VERSION}"):
        load(file)


def test_cut_off_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "state"
    save(STATES["two stages"], file)
    content = file.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1}:
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is no whole checkpoint") as raised:
            load(file)
        assert "made from the start" in raised.value.hint
    file.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        load(file)


def test_the_noted_checksum_is_that_of_the_file_with_zeros_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "state"
    save(STATES["two stages"], file)
    noted = parts_of(file)[0]["__metadata__"]["sha256"]
    content = file.read_bytes()
    assert content.count(noted.encode()) == 1
    assert hashlib.sha256(content.replace(noted.encode(), b"0" * 64)).hexdigest() == noted


@pytest.mark.slow
@pytest.mark.parametrize("num_bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_whatever_bit_of_a_file_flips_it_is_refused(num_bits: int, tmp_path: Path) -> None:
    """Of every byte of its length and its header, and of many of its latents."""
    file = tmp_path / "state"
    save_checkpoint(make_checkpoint(), file, config=CONFIG, seed=1)
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    chance = random.Random(0)
    for place in [*range(start), *chance.sample(range(start, len(content)), 400), len(content) - 1]:
        for bit in chance.sample(range(8), num_bits):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            with pytest.raises(CheckpointError) as raised:
                check_file(file)
            assert str(file) in raised.value.message
            assert raised.value.hint
    file.write_bytes(content)
    check_file(file)


def test_bits_that_flip_between_header_and_latents_are_told_as_damage(tmp_path: Path) -> None:
    file = tmp_path / "state"
    save(STATES["two stages"], file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"it is damaged, its SHA-256 is [0-9a-f]{64} and not [0-9a-f]{64}"):
        load(file)


def test_how_many_of_a_videos_files_are_whole(tmp_path: Path) -> None:
    files = save_parts(tmp_path, make_checkpoint(0, 2), make_checkpoint(2, 2), make_checkpoint(4, 2))
    assert num_whole(files) == 3
    content = bytearray(files[1].read_bytes())
    content[-3] ^= 1
    files[1].write_bytes(content)
    assert num_whole(files) == 1
    assert num_whole([]) == 0
    with pytest.raises(FileNotFoundError):
        num_whole([files[0], tmp_path / "gone"])


# ---- files of the version before ----


def test_a_file_without_a_checksum_is_of_version_1_alone(tmp_path: Path) -> None:
    file = tmp_path / "state"
    save(STATES["two stages"], file)
    as_version_1(file)
    check_file(file)
    assert_same(load(file), STATES["two stages"])
    edit(file, lambda metadata: metadata | {"version": "2"})
    for read in (check_file, load):
        with pytest.raises(CheckpointError, match=r"it is damaged, .* not noted"):
            read(file)


@pytest.mark.parametrize(
    ("num_prompts", "num_latents", "is_the_same"),
    [(1, 41, True), (2, 41, True), (3, 42, True), (3, 40, False), (4, 6, False), (50, 41, True), (5, None, True)],
)
def test_version_1_shared_out_several_prompts_less_evenly(
    num_prompts: int, num_latents: int | None, is_the_same: bool, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    save(STATES["two stages"], file, num_latents=num_latents)
    as_version_1(file)
    if is_the_same:
        load(file, num_latents=num_latents, num_prompts=num_prompts)
        return
    with pytest.raises(CheckpointError, match="of version 1, which made this video otherwise") as raised:
        load(file, num_latents=num_latents, num_prompts=num_prompts)
    assert "made from the start" in raised.value.hint


@pytest.mark.parametrize(
    ("branch", "num_latents", "is_the_same"),
    [("wan", 6, False), ("wan", 7, True), ("wan", None, True), ("videocrafter2", 6, True)],
)
def test_version_1_made_shorter_videos_of_released_with_fewer_groups(
    branch: str, num_latents: int | None, is_the_same: bool, tmp_path: Path
) -> None:
    """Here initialisation takes 3 passes: so many groups of 2, or fewer, did not fill the queue then."""
    config = make_config(method="released", released_branch=branch)
    assert config.num_initial_passes == 3
    file = tmp_path / "state"
    save(STATES["base clip"], file, config=config, num_latents=num_latents)
    as_version_1(file)
    if is_the_same:
        load(file, config=config, num_latents=num_latents)
        return
    with pytest.raises(CheckpointError, match="of version 1, which made this video otherwise"):
        load(file, config=config, num_latents=num_latents)


@pytest.mark.parametrize("content", [b"hello", bytes(100), pickle.dumps({"a": 1}), b'{"a": 1}'])
def test_a_file_that_is_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        load(tmp_path / "state")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_something_else(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "state", metadata)
    with pytest.raises(CheckpointError, match="is not a checkpoint of a video"):
        load(tmp_path / "state")


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(CheckpointError):
        load(tmp_path / "state")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(STATES["fifo"], tmp_path / "state")
    assert os.listdir(tmp_path) == ["state"]


def test_no_file_is_no_broken_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "state")


def set_class(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: state["method"].update({"class": name})


WRONG_STATES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (set_class("Path"), "method is a Path, not a"),
    (set_class("SamplerConfig"), "method is a SamplerConfig, not a"),
    (set_class("FrameQueue"), "method is a FrameQueue, not a"),
    (set_class("UnifiedOnlyState"), "method is a UnifiedOnlyState, not a TwoStageState"),
    (lambda state: state.update({"class": "ReflectionTrace"}), "the state is a ReflectionTrace, not a VideoState"),
    (lambda state: state["method"]["queue"].pop("first"), "method.queue has fields"),
    (lambda state: state["method"]["queue"].update(extra=1), "method.queue has fields"),
    (lambda state: state["method"]["queue"].update(first="1"), "method.queue.first is a str, not a int"),
    (lambda state: state["method"]["queue"].update(first=True), "method.queue.first is a bool, not a int"),
    (lambda state: state["method"]["queue"].update(x_FCHW=None), "method.queue.x_FCHW is a NoneType, not a Tensor"),
    (lambda state: state["method"]["unified"]["num_done"].append(1.5), "num_done.3 is a float, not a int"),
    (lambda state: state["method"]["queue"]["history"].update(more={"class": "Tensor"}), "method.queue.history.more"),
    (lambda state: state["method"]["queue"].update(x_FCHW={"class": "FrameQueue"}), "is a FrameQueue, not a Tensor"),
    (lambda state: state["method"]["queue"]["history"].pop("previous"), "of no state: method.queue.history.previous"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_STATES)
def test_nothing_is_made_but_what_the_state_is_declared_as(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    save(STATES["two stages"], file)
    edit_state(file, change)
    with pytest.raises(CheckpointError) as raised:
        load(file)
    assert message in str(raised.value)


def test_a_tensor_left_out_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "state"
    save(VideoState(base=make_queue(0, 2)), file)
    header, rest = parts_of(file)
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    begin, _ = header.pop(last)["data_offsets"]
    put_together(file, header, rest[:begin])
    with pytest.raises(CheckpointError, match="is no whole checkpoint: KeyError") as raised:
        load(file)
    assert last in str(raised.value)


@dataclass(frozen=True)
class Queue(FrameQueue):
    """One field more than what the state is declared as."""

    speed: int = 0


@pytest.mark.parametrize(
    "state",
    [
        VideoState(num_finished=1.0),  # type: ignore[arg-type]
        VideoState(num_finished=True),
        VideoState(base=Queue(torch.zeros(1), torch.zeros(1), {})),
        VideoState(method=FifoState(None, None)),  # type: ignore[arg-type]
        VideoState(method=FifoState(None, make_queue(0, 1), ReflectionTrace([1]))),  # type: ignore[arg-type]
    ],
)
def test_what_is_not_as_declared_is_not_saved(state: VideoState, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=", not a "):
        save(state, tmp_path / "state")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("stopped_in", ["os.fsync", "os.replace"])
def test_stopped_while_writing_leaves_the_one_before(
    stopped_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state"
    save(STATES["fifo"], file)

    def stop(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"miga.checkpoint.{stopped_in}", stop)
        with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left on device"):
            save(STATES["two stages"], file)
    assert_same(load(file), STATES["fifo"])
    assert os.listdir(tmp_path) == ["state"]


def test_content_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        done.append(f"-> {new.name}")
        assert parts_of(old)[0]["__metadata__"]["format"] == "miga checkpoint", "it is whole by then"
        rename(old, new)

    monkeypatch.setattr("miga.checkpoint.os.fsync", synced)
    monkeypatch.setattr("miga.checkpoint.os.replace", renamed)
    save(STATES["fifo"], tmp_path / "state")
    assert len(done) == 3
    assert done[0].startswith(".state.")
    assert done[1:] == ["-> state", tmp_path.name]


def test_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(STATES["fifo"], tmp_path / "gone" / "state")


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("what", "do")))
    assert isinstance(error, MigaError)
    assert (error.message, error.hint, error.scope) == ("what", "do", "row")


@pytest.mark.parametrize("num_passes", [3, 30])
def test_the_size_of_a_file_is_that_of_the_latents_alive(num_passes: int, tmp_path: Path) -> None:
    """An endless video's state, saved: the latents, their history, and a few kilobytes."""
    config: SamplerConfig = make_config(self_reflection=True)
    sampler = make_sampler(GaussianDenoiser(config), config, None)
    state = sampler.start()
    for _ in range(num_passes):
        state, _ = sampler.advance(state)
    save(state, tmp_path / "state", config=config, num_latents=None)
    most = config.queue_length + (config.handoff_level - 1) * (config.window - 1)
    bytes_per_latent = 3 * 24 * 4 + 2 * 8
    assert (tmp_path / "state").stat().st_size <= most * bytes_per_latent + 12_000


# ---- with the latents that are finished ----


def make_checkpoint(num_before: int = 4, num_new: int = 2, **other: Any) -> VideoCheckpoint:
    """Of a video of 9 latents, `num_before + num_new` of them finished."""
    state = replace(STATES["two stages"], num_finished=num_before + num_new)
    latents_FCHW = torch.arange(float(num_before), num_before + num_new)[:, None, None, None].expand(-1, 2, 3, 4)
    return VideoCheckpoint(
        **({"state": state, "latents_FCHW": latents_FCHW, "num_latents": 9, "num_calls": 33} | other)
    )


def save_parts(folder: Path, *parts: VideoCheckpoint) -> list[Path]:
    files = [folder / f"part {number}" for number in range(len(parts))]
    for part, file in zip(parts, files, strict=True):
        save_checkpoint(part, file, config=CONFIG, seed=1)
    return files


def load_parts(files: list[Path], **other: Any) -> VideoCheckpoint:
    return load_checkpoints(files, **({"config": CONFIG, "num_latents": 9, "seed": 1} | other))


def test_parts_are_joined_and_the_last_state_counts(tmp_path: Path) -> None:
    first = make_checkpoint(0, 4, state=replace(STATES["two stages"], num_finished=4), num_calls=20)
    files = save_parts(tmp_path, first, make_checkpoint(4, 0), make_checkpoint(4, 2))
    found = load_parts(files)
    assert_same(found.state, make_checkpoint().state)
    assert found.latents_FCHW[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (found.num_latents_done, found.first_latent, found.num_calls, found.is_open) == (6, 0, 33, False)
    assert sorted(os.listdir(tmp_path)) == ["part 0", "part 1", "part 2"]


def test_finished_latents_stay_on_the_cpu(tmp_path: Path) -> None:
    found = load_parts(save_parts(tmp_path, make_checkpoint(0, 3)), device="meta")
    assert found.latents_FCHW.device.type == "cpu"
    assert isinstance(found.state.method, TwoStageState)
    assert found.state.method.queue.x_FCHW.device.type == "meta"


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([1, 2], r"latents 0 \.\.\. 1 are in none of them"),
        ([0, 2], r"latents 2 \.\.\. 3 are in none of them"),
        ([0, 1, 1], r"latents 2 \.\.\. 3 are in two of them"),
        ([1, 0], "do not follow one another"),
        ([], "no checkpoint to go on from"),
    ],
)
def test_a_part_that_is_missing(kept: list[int], message: str, tmp_path: Path) -> None:
    files = save_parts(tmp_path, make_checkpoint(0, 2), make_checkpoint(2, 2), make_checkpoint(4, 2))
    with pytest.raises(CheckpointError, match=message) as raised:
        load_parts([files[number] for number in kept])
    assert raised.value.hint


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_parts([*save_parts(tmp_path, make_checkpoint(0, 2)), tmp_path / "gone"])


@pytest.mark.parametrize(
    ("other", "differs"), [({"seed": 2}, "seed 1 there, 2 here"), ({"num_latents": 10}, "num_latents 9 there, 10 here")]
)
def test_parts_of_another_video(other: dict[str, Any], differs: str, tmp_path: Path) -> None:
    files = save_parts(tmp_path, make_checkpoint(0, 2), make_checkpoint(2, 2))
    with pytest.raises(CheckpointError, match=differs):
        load_parts(files, **other)


def test_an_open_one_is_of_every_longer_video(tmp_path: Path) -> None:
    files = save_parts(tmp_path, make_checkpoint(0, 2, is_open=True))
    for num_latents in (9, 10, 1000):
        assert load_parts(files, num_latents=num_latents).is_open
    for num_latents in (8, None):
        with pytest.raises(CheckpointError, match=f"num_latents 9 there, {num_latents} here"):
            load_parts(files, num_latents=num_latents)
    with pytest.raises(CheckpointError, match="seed 1 there, 3 here"):
        load_parts(files, num_latents=10, seed=3)


def test_a_state_alone_is_no_checkpoint_of_a_video(tmp_path: Path) -> None:
    save(STATES["two stages"], tmp_path / "state")
    with pytest.raises(CheckpointError, match="is a VideoState, not a VideoCheckpoint"):
        load_parts([tmp_path / "state"])
    (file,) = save_parts(tmp_path, make_checkpoint(0, 2))
    with pytest.raises(CheckpointError, match="is a VideoCheckpoint, not a VideoState"):
        load(file)


def test_parts_cut_off_anywhere(tmp_path: Path) -> None:
    (file,) = save_parts(tmp_path, make_checkpoint(0, 2))
    content = file.read_bytes()
    for length in (0, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is no whole checkpoint"):
            load_parts([file])


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("num_calls"),
        lambda content: content.update(num_calls="33"),
        lambda content: content.update(latents_FCHW=None),
        lambda content: content["state"].update({"class": "Path"}),
    ],
)
def test_parts_that_are_not_as_declared(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    (file,) = save_parts(tmp_path, make_checkpoint(0, 2))
    edit_state(file, change)
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        load_parts([file])
