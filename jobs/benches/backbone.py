"""What a model costs on this machine, part by part, with random weights at full size or reduced: no checkpoint is read.

A part is a table. `bench_backbone` measures one model; `gpu.py` runs all of them on a card within a time.
"""

from __future__ import annotations

import argparse
import math
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from jobs.benches.device_clock import (
    FEWEST_REPEATS,
    Call,
    PeakMemory,
    Timing,
    count_flops,
    matmul_rates,
    peak_memory,
    seconds_of,
    time_calls,
    wall_seconds,
)
from jobs.benches.frame_cost import (
    PROFILES,
    WITHOUT_DCE,
    Prices,
    calls_per_latent,
    dce_rows,
    frame_rows,
    long_frame_s,
)
from jobs.benches.network_calls import (
    BATCHED,
    NUM_FORWARDS,
    PER_LATENT,
    UNIFORM,
    WINDOW_ONE,
    WINDOW_TWO,
    NetworkCalls,
)
from jobs.benches.overlap import Stretch, make_apart, make_overlapped
from jobs.profiles.choice import parse_profile
from jobs.shared.options import num_latents_of
from miga.backbones.base import BackboneSpec
from miga.backbones.random_model import PER_TOKEN, PLAIN, RandomModel, Reduction
from miga.backbones.registry import planned_spec, random_model
from miga.backbones.weight_files import first_line
from miga.errors import MigaError, UsageError
from pipeline.video import VideoWriter

Rows: TypeAlias = list[dict[str, Any]]
Tables: TypeAlias = dict[str, Rows]

NUM_ENCODED: Final = 48
"""Frames that encoding is timed on."""
NOT_WORTH_IT: Final = 3.0
"""An attention backend that takes so many times as long as the usual one is not timed again."""
MOST_LETTERS: Final = 160
"""Of the reason why something failed."""
LARGER: Final = (PLAIN, PER_TOKEN, BATCHED)
"""Calls that take more memory than those of the product: where they do not fit the others are measured all the same."""
NUM_OVERLAPPED: Final = 3
"""Latents that are decoded while the network works, at least."""


class BackboneBench:
    """Measures one model on one device.

    Args:
        model: with random weights.
        rate: FLOP/s of matrix products on its device, in its dtype.
        num_repeats: timings of each call.
        most_s: seconds after which no further round of timings of a table is begun.
        profiles: whose seconds a frame are counted; a video is made of the last.
        num_frames: length of videos; by default the model's.

    Attributes:
        timings: of what has been measured.
        facts: what there are targets for, as far as it has been measured.
    """

    def __init__(
        self,
        model: RandomModel,
        rate: float,
        *,
        num_repeats: int = 5,
        most_s: float = math.inf,
        profiles: Sequence[str] = PROFILES,
        num_frames: int | None = None,
    ) -> None:
        self.model, self.device, self.spec = model, model.backbone.device, model.spec
        self.rate, self.num_repeats, self.most_s = rate, num_repeats, most_s
        self.num_latents = _num_latents(self.spec, num_frames)
        self.configs = {profile: parse_profile(profile, self.spec) for profile in profiles}
        self.timings: dict[str, Timing] = {}
        self.facts: dict[str, float] = {}

    @cached_property
    def network(self) -> NetworkCalls:
        """The calls; made once, with diffusers' own transformer beside ours."""
        return NetworkCalls(self.model)

    @torch.inference_mode()
    def calls(self) -> Rows:
        """Seconds, operations, share of the device's rate and peak memory of every kind of call."""
        calls = self.network.forwards() | self.network.windows()
        flops: dict[str, int] = {}
        peaks: dict[str, PeakMemory | None] = {}
        failed: Rows = []
        for name, call in list(calls.items()):
            try:
                with torch.no_grad():
                    flops[name] = count_flops(call)
                peaks[name] = peak_memory(call, self.device)
            except torch.OutOfMemoryError as error:
                if name not in LARGER:
                    raise
                failed.append({"call": name, "why not": _why(error)})
                del calls[name]
                torch.cuda.empty_cache()
        self.timings |= self._timed(calls, is_warm=True)
        plain = peaks.get(PLAIN) or peaks[UNIFORM]
        rows = []
        for name in calls:
            rate = flops[name] / self.timings[name].median_s
            row = {"call": name, "s": str(self.timings[name]), "TFLOP": flops[name] / 1e12, "TFLOP/s": rate / 1e12}
            row |= {"of matmul": f"{rate / self.rate:.1%}", "to one time step": f"{self._extra(name):+.1%}"}
            rows.append(row | self._peak_cells(peaks[name], plain))
        self.facts["of matmul"] = flops[WINDOW_TWO] / self.timings[WINDOW_TWO].median_s / self.rate
        self.facts["per latent, time"] = self._extra(PER_LATENT)
        uniform, per_latent = peaks[UNIFORM], peaks[PER_LATENT]
        if self.device.type == "cuda" and uniform and per_latent:
            self.facts["per latent, memory"] = per_latent.total_bytes / uniform.total_bytes - 1
        return rows + failed

    @torch.inference_mode()
    def attention(self) -> Rows:
        """Every attention backend: seconds, how far its result is from that of PyTorch's choice, or why it fails."""
        call = self.network.forwards()[PER_LATENT]
        usual: Any = call()
        usual_s = self._timed({PER_LATENT: call}, is_warm=True)[PER_LATENT].median_s
        rows: Rows = []
        for name in self.model.attention_backends():
            if name.endswith("_hub"):
                rows.append({"attention": name, "why not": "not tried: it downloads code from the hub"})
                continue
            try:
                with self.model.attention(name):
                    other, timing = self._try(call, usual_s)
            except Exception as error:  # packages and kernels refuse in their own ways, and that is what is asked for
                rows.append({"attention": name, "why not": _why(error)})
                continue
            difference = float((other - usual).abs().max() / usual.abs().max())
            change = f"{timing.median_s / usual_s - 1:+.1%}"
            rows.append({"attention": name, "s": str(timing), "to the usual": change, "largest difference": difference})
        return sorted(rows, key=lambda row: "why not" in row)

    @torch.inference_mode()
    def compiled(self) -> Rows:
        """The network compiled, for good: seconds of the first call, and of later ones beside those before."""
        calls = {PER_LATENT: self.network.forwards()[PER_LATENT], **self.network.windows()}
        before = {name: self.timings.get(name) for name in calls}
        if missing := {name: calls[name] for name, timing in before.items() if timing is None}:
            before |= self._timed(missing)
        started_s = time.monotonic()
        try:
            self.model.compile()
            calls[PER_LATENT]()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except Exception as error:  # a missing compiler, a graph break: each of its own kind
            return [{"call": PER_LATENT, "why not": _why(error)}]
        first_s = time.monotonic() - started_s
        after = self._timed(calls)
        return [
            {
                "call": name,
                "plain, s": str(before[name]),
                "compiled, s": str(after[name]),
                "change": f"{after[name].median_s / timing.median_s - 1:+.1%}",
                "first call, s": first_s if name == PER_LATENT else "",
            }
            for name, timing in before.items()
            if timing is not None
        ]

    @torch.inference_mode()
    def decoding(self) -> Rows:
        """Seconds of decoding a latent and of encoding a frame."""
        x_FCHW = torch.randn(2, *self.spec.latent_shape, device=self.device)
        first = {"first": lambda: self.model.backbone.frame_decoder().decode(x_FCHW[:1])}
        timings = self._timed(first)
        decoder = self.model.backbone.frame_decoder()
        decoder.decode(x_FCHW)
        later = {"later": lambda: decoder.decode(x_FCHW[1:])}
        timings |= self._timed(later)
        peak = peak_memory(later["later"], self.device)
        num = (self.spec.frames_first_latent, self.spec.frames_per_latent)
        encode_s = encoding_seconds(self.spec.height, self.spec.width, self.spec.fps)
        self.timings |= {f"decode {name}": timing for name, timing in timings.items()} | {"encode": encode_s}
        size = f"{self.spec.height}x{self.spec.width}"
        return [
            {"what": f"decode the first latent (frames: {num[0]})", "s": str(timings["first"])},
            {"what": f"decode a later latent (frames: {num[1]})", "s": str(timings["later"]), **self._peak_cells(peak)},
            {"what": f"encode a frame of {size}, checking the file included", "s": str(encode_s)},
        ]

    def prices(self) -> Prices:
        """Medians of what `calls` and `decoding` measured; measured now where they have not been."""
        if WINDOW_TWO not in self.timings:
            with torch.inference_mode():
                self.timings |= self._timed(self.network.windows())
        if "encode" not in self.timings:
            self.decoding()
        names = (WINDOW_TWO, WINDOW_ONE, "decode first", "decode later", "encode")
        return Prices(*(self.timings[name].median_s for name in names))

    def frames(self) -> Rows:
        """Seconds a frame of each profile, its calls priced as whole windows: nothing but calls is measured here."""
        return frame_rows(self.configs, self.prices(), self.num_latents, self.spec, self.model.is_full_size)

    def dce(self) -> Rows:
        """What guidance and searches cost; see `dce_rows`."""
        with_dce, without = (parse_profile(profile, self.spec) for profile in ("paper", WITHOUT_DCE))
        self.facts["guidance"] = long_frame_s(with_dce, self.prices(), self.spec) / long_frame_s(
            without, self.prices(), self.spec
        )
        return dce_rows(with_dce, without, self.prices(), self.spec)

    def overlap(self) -> Rows:
        """Decoding and encoding while the network works, in the proportion that a long video has them in.

        The product's own decoding thread, with as many calls as `swift` makes for so many latents: the fewest, so that
        there is the least to hide behind.
        """
        config = parse_profile("swift", self.spec)
        num_latents = max(NUM_OVERLAPPED, round(1 / calls_per_latent(config)))
        stretch = Stretch(self.network, num_latents, max(1, round(num_latents * calls_per_latent(config))))
        with torch.inference_mode():
            calls: dict[str, Call] = {"denoise": stretch.denoise, "finish": stretch.finish, "both": stretch.both}
            seconds = [{name: wall_seconds(call) for name, call in calls.items()} for _ in range(FEWEST_REPEATS)]
        timings = {name: Timing.of([round_[name] for round_ in seconds]) for name in calls}
        denoise_s, finish_s, both_s = (timings[name].median_s for name in calls)
        self.facts["not hidden"] = max(0.0, both_s - denoise_s) / both_s
        return [
            {
                "profile": config.profile,
                "calls": stretch.num_calls,
                "latents": num_latents,
                "calls alone, s": str(timings["denoise"]),
                "decode and encode alone, s": str(timings["finish"]),
                "both at once, s": str(timings["both"]),
                "hidden": f"{min(1.0, (denoise_s + finish_s - both_s) / finish_s):.1%}",
                "of the wall not hidden": f"{self.facts['not hidden']:.1%}",
            }
        ]

    def whole_video(self) -> Rows:
        """One video of the last profile, from noise to its file: one thing after the other, and as the product does."""
        name, config = list(self.configs.items())[-1]
        apart, overlapped = (make(self.model, config, self.num_latents) for make in (make_apart, make_overlapped))
        saved_s, finish_s = apart.wall_s - overlapped.wall_s, apart.wall_s - apart.denoise_s
        return [
            {
                "video": f"{name}, {how}",
                "frames": made.num_frames,
                "calls": made.num_calls,
                "s": made.wall_s,
                "s a frame": made.wall_s / made.num_frames,
                "denoise": made.denoise_s,
                "decode": made.decode_s,
                "encode": made.encode_s,
                "hidden": f"{min(1.0, saved_s / finish_s):.1%}" if made is overlapped else "",
                "same frames": ("yes" if made.digest == apart.digest else "NO") if made is overlapped else "",
            }
            for how, made in (("one after the other", apart), ("overlapped", overlapped))
        ]

    def _timed(self, calls: Mapping[str, Call], is_warm: bool = False) -> dict[str, Timing]:
        is_warm = is_warm or self.num_repeats == 1  # one timing alone is for calls of minutes
        return time_calls(calls, self.device, num_repeats=self.num_repeats, most_s=self.most_s, is_warm=is_warm)

    def _try(self, call: Call, usual_s: float) -> tuple[Any, Timing]:
        """A call's result and its timing: of its first run alone where that shows that nobody wants it."""
        results: list[Any] = []
        first_s = seconds_of(lambda: results.append(call()), self.device)
        if first_s > NOT_WORTH_IT * usual_s:
            return results[0], Timing.of([first_s])
        return results[0], self._timed({"": call}, is_warm=True)[""]

    def _extra(self, name: str) -> float:
        """By how much of a forward with one time step each forward of a call takes longer."""
        forward_s = self.timings[name].median_s / NUM_FORWARDS.get(name, 1)
        return forward_s / self.timings[UNIFORM].median_s - 1

    def _peak_cells(self, peak: PeakMemory | None, plain: PeakMemory | None = None) -> dict[str, Any]:
        """What else is resident in a process on a CPU is not the call's."""
        if peak is None:
            return {}
        cells: dict[str, Any] = {"beside weights, MiB": round(peak.beside_bytes / 2**20)}
        if self.device.type == "cuda":
            cells["peak, MiB"] = round(peak.total_bytes / 2**20)
            if plain is not None:
                cells["peak to the plain call's"] = f"{peak.total_bytes / plain.total_bytes - 1:+.2%}"
        return cells


def encoding_seconds(height: int, width: int, fps: int, num_repeats: int = 2) -> Timing:
    """Seconds a frame of writing and checking a video of smooth random frames, as the product writes it."""
    generator = np.random.default_rng(0)
    coarse_FHWC = generator.integers(0, 256, (NUM_ENCODED, -(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    blurred = torch.nn.functional.interpolate(
        torch.from_numpy(coarse_FHWC).permute(0, 3, 1, 2).float(), (height, width), mode="bilinear"
    )
    frames_FHWC = blurred.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    seconds = []
    with tempfile.TemporaryDirectory(prefix="miga-bench-") as folder:
        for number in range(num_repeats):
            with VideoWriter(Path(folder) / f"{number}.mp4", fps=fps, num_frames=NUM_ENCODED) as writer:
                writer.write(frames_FHWC)
                seconds.append(writer.finish().encode_s / NUM_ENCODED)
    return Timing.of(seconds)


def _num_latents(spec: BackboneSpec, num_frames: int | None) -> int:
    num_frames = spec.default_num_frames if num_frames is None else num_frames
    return num_latents_of(spec, num_frames, f"--frames {num_frames}", "take the nearest")


def _why(error: BaseException) -> str:
    """Of an error of ours, the one it was made from, which the table's other column leads up to."""
    cause = error.__cause__ if isinstance(error, MigaError) and error.__cause__ else error
    return f"{type(cause).__name__}: {first_line(cause)[:MOST_LETTERS]}"


PARTS: Final[dict[str, tuple[str, Callable[[BackboneBench], Rows]]]] = {
    "calls": ("calls of one window, seconds (median [lowest, highest] of how many)", BackboneBench.calls),
    "decode": ("decoding and encoding", BackboneBench.decoding),
    "frames": ("seconds a frame, calls counted and priced as above, without searches", BackboneBench.frames),
    "dce": ("dual consistency enhancement, a frame more of a long video", BackboneBench.dce),
    "overlap": ("decoding and encoding while the network works", BackboneBench.overlap),
    "attention": ("attention backends", BackboneBench.attention),
    "whole-video": ("whole videos", BackboneBench.whole_video),
    "compile": ("compiled, for good: comes last", BackboneBench.compiled),
}
"""By name: what the table is headed with, and what fills it. In the order in which they are run."""


def bench_backbone(options: argparse.Namespace) -> Tables:
    """One model on this machine: a table a part, each headed with what was measured, where, and how much smaller."""
    device = known_device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    reduction = Reduction(scale=options.scale, layers=options.layers, channels=options.channels)
    wanted = {*options.parts, *(["whole-video"] if options.whole_video else [])}
    spec = planned_spec(options.model, reduction)
    _num_latents(spec, options.frames)  # refuses before anything is measured
    for profile in options.profiles:
        parse_profile(profile, spec)
    rates = matmul_rates(device, dtype, options.repeats)
    bench = BackboneBench(
        random_model(options.model, device=device, dtype=dtype, reduction=reduction),
        max(rates.values()),
        num_repeats=options.repeats,
        most_s=options.most_s,
        profiles=options.profiles,
        num_frames=options.frames,
    )
    where = device_name(device)
    if device.type == "cpu":
        where += ", one thread, processor seconds" if options.threads == 1 else f", {options.threads} threads"
    tables = {f"matrix products in {dtype_name(dtype)} on {where}": rate_rows(rates)}
    for name, (title, measure) in PARTS.items():
        if name in wanted:
            tables[f"{bench.model.label}, {dtype_name(dtype)} on {where}: {title}"] = measure(bench)
    return tables


def rate_rows(rates: dict[int, float]) -> Rows:
    """Of `matmul_rates`."""
    return [{"side": side, "TFLOP/s": rate / 1e12} for side, rate in rates.items()]


def device_name(device: torch.device) -> str:
    """For people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def dtype_name(dtype: torch.dtype) -> str:
    """Without the "torch."."""
    return str(dtype).removeprefix("torch.")


def known_device(name: str | None) -> torch.device:
    """The device of that name; by default the GPU, where there is one.

    Raises:
        UsageError: if it is not here.
    """
    has_gpu = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if has_gpu else "cpu"))
    except RuntimeError as error:
        raise UsageError(f"--device {name}: {first_line(error)}", "say cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not measured here", "say cpu, cuda or cuda:N")
    if device.type == "cuda" and (not has_gpu or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"--device {name}: no such CUDA GPU is at hand", "leave it out, or say --device cpu")
    return device
