"""Simulated GPUs: a backbone of a published model's shape whose calls take the time they are told, and compute little.

For measuring how a cluster is kept busy on any machine, and for tests of what goes wrong:

    simulated:wan                                        Wan2.1's window, VAE and sampler settings; 1.4 s a window
    simulated:videocrafter2?call_s=0.6&decode_s=0.02     a call and a decoded latent take so long
    simulated:wan?call_s=0&faults=1                      prompts that begin with "fault:" make it happen (`Fault`)
    simulated:wan?cells=20                               larger latents: self-reflection takes less noise for a fall

Nothing is drawn, but all else is as with a model: latents (tiny ones) depend on prompt, noise, level and on their
neighbours in the window, and are the same in the last bit wherever they are computed; frames depend on the latent
before, so a video whose latents are decoded in another order is another video.

The environment variable `MIGA_SIMULATED_SPEED` of a process makes its GPU so many times as fast: set it on a node, and
the cluster has cards of two kinds.

Legend: B windows in a batch, F latents, C channels, H, W cells.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import math
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.turns import Turns
from miga.backbones.videocrafter2 import spec as videocrafter2_spec
from miga.backbones.videocrafter2.schedule import schedule_of as videocrafter2_schedule
from miga.backbones.wan_schedule import schedule_of as wan_schedule
from miga.backbones.wan_spec import PUBLISHED as PUBLISHED_WAN
from miga.config import SamplerConfig
from miga.errors import BadRowError, ModelError, NonFiniteError
from miga.schedule import NoiseSchedule

PREFIX: Final = "simulated:"
SPEED_VARIABLE: Final = "MIGA_SIMULATED_SPEED"

NUM_CHANNELS: Final = 4
MAX_CELLS: Final = 128
PIXELS_PER_CELL: Final = 8
MAX_PROMPT_BYTES: Final = 4096

_MODELS: Final = {
    "wan": PUBLISHED_WAN["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"],
    videocrafter2_spec.FAMILY: videocrafter2_spec.PUBLISHED[videocrafter2_spec.PUBLISHED_NAME],
}


@dataclass(frozen=True, kw_only=True)
class SimulatedOptions:
    """What stands behind the "?" of a name; times are in seconds.

    Attributes:
        call_s: of a whole window with guidance, which is two forwards; without guidance half of it, shorter windows
            less in proportion.
        decode_s: of decoding a latent. It takes the GPU, as a call does.
        cells: rows, and columns, of a latent. The score of a latent's noise fluctuates the less, the more there are: at
            4 it falls by self-reflection's threshold in every second evaluation, at 32 in none.
        load_s: of loading the denoiser.
        text_s: of encoding a prompt.
        faults: whether prompts that begin with "fault:" make one happen.
        marks: folder that remembers which faults have happened "once", for processes started later.
    """

    call_s: float = 1.4
    decode_s: float = 0.05
    cells: int = 4
    load_s: float = 0.0
    text_s: float = 0.0
    faults: bool = False
    marks: str = ""


def is_simulated(name: str) -> bool:
    """Whether a model's name asks for simulated GPUs."""
    return name.startswith(PREFIX)


def load_spec(name: str, revision: str | None = None) -> BackboneSpec:
    """The spec of a simulated model: the published one's, but for its latents and frames, which are tiny.

    Raises:
        ModelError: if the name is not one of a simulated model, or a revision is asked for.
    """
    family, options = parse_name(name)
    if revision is not None:
        raise ModelError(f"{name!r} has no revisions", "leave the revision out")
    return replace(
        _MODELS[family],
        name=name,
        revision="simulated-1",
        latent_channels=NUM_CHANNELS,
        latent_height=options.cells,
        latent_width=options.cells,
        height=options.cells * PIXELS_PER_CELL,
        width=options.cells * PIXELS_PER_CELL,
    )


def parse_name(name: str) -> tuple[str, SimulatedOptions]:
    """The family of a simulated model, and its options.

    Raises:
        ModelError: if the family or an option is not known, or a value cannot be.
    """
    family, _, text = name.removeprefix(PREFIX).partition("?")
    if not is_simulated(name) or family not in _MODELS:
        models = " or ".join(f"{PREFIX}{model}" for model in _MODELS)
        raise ModelError(f"{name!r} is no simulated model", f"write {models}, options behind a '?'")
    known = [option.name for option in fields(SimulatedOptions)]
    values: dict[str, Any] = {}
    for part in text.split("&") if text else []:
        key, _, value = part.partition("=")
        if key not in known:
            alike = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {alike[0]!r}?" if alike else "write key=value, with a '&' between them"
            raise ModelError(f"{name!r}: unknown option {part!r}; there are {', '.join(known)}", hint)
        if key in values:
            raise ModelError(f"{name!r}: option {key!r} stands there twice", "leave one out")
        values[key] = _value(name, key, unquote(value))
    return family, SimulatedOptions(**values)


def _value(name: str, key: str, text: str) -> float | int | bool | str:
    if key == "marks":
        if not text:
            raise ModelError(f"{name!r}: option 'marks' names no folder", "write marks=FOLDER, or leave it out")
        return text
    if key == "faults":
        if text not in ("0", "1"):
            raise ModelError(f"{name!r}: option 'faults' is {text!r}", "write faults=1 or faults=0")
        return text == "1"
    if key == "cells":
        if re.fullmatch("[0-9]{1,3}", text) is None or not 1 <= int(text) <= MAX_CELLS:
            raise ModelError(f"{name!r}: option 'cells' is {text!r}", f"give a whole number from 1 to {MAX_CELLS}")
        return int(text)
    with contextlib.suppress(ValueError):
        if 0.0 <= (seconds := float(text)) < math.inf:
            return seconds
    raise ModelError(f"{name!r}: option {key!r} is {text!r}", "give seconds, such as 1.4; at least 0")


# ---- the GPU ----


class SimulatedGpu:
    """One card: whatever uses it waits for its turn, in the order of asking, and then takes its time.

    Args:
        speed: how many times as fast as it is told.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._turns = Turns()

    @contextlib.contextmanager
    def taken(self, seconds: float) -> Iterator[None]:
        """Holds the card for so many seconds, those that the block takes included."""
        with self._turns.taken():
            until_s = time.monotonic() + seconds / self.speed
            yield
            if (left_s := until_s - time.monotonic()) > 0:
                time.sleep(left_s)


def speed_of_process() -> float:
    """What `MIGA_SIMULATED_SPEED` says; 1 where it says nothing.

    Raises:
        ModelError: if it is no positive number.
    """
    text = os.environ.get(SPEED_VARIABLE, "1")
    with contextlib.suppress(ValueError):
        if 0.0 < (speed := float(text)) < math.inf:
            return speed
    raise ModelError(f"{SPEED_VARIABLE} is {text!r}", "set it to a number such as 0.5 (half as fast), or unset it")


# ---- faults ----

_FAULT: Final = re.compile(
    r"fault: *(kill|crash|error|nan|oom|hang)( once)?(?: at call ([1-9][0-9]{0,8}))? *(?:$|[;,.])"
)


@dataclass(frozen=True)
class Fault:
    """What a prompt makes happen: "fault: KIND [once] [at call N]", and whatever text behind it.

    Attributes:
        kind: "kill" (SIGKILL of the process), "crash" (the process aborts), "error" (an exception), "nan" (the
            network returns NaN), "oom" (the GPU is out of memory) or "hang" (the call never ends).
        is_once: whether it happens only once, whatever process is struck.
        at_call: at which call of the network for this prompt in one process, from 1.
        prompt: the prompt, which names it.
    """

    kind: str
    is_once: bool
    at_call: int
    prompt: str

    @classmethod
    def of(cls, prompt: str, marks: str) -> Fault | None:
        """The fault that a prompt asks for.

        Raises:
            BadRowError: if it begins with "fault:" and is none, or asks for one "once" where nothing remembers it.
        """
        if not prompt.startswith("fault:"):
            return None
        found = _FAULT.match(prompt)
        if found is None:
            raise BadRowError(
                f"{prompt[:60]!r} is no fault of a simulated GPU",
                "write 'fault: KIND [once] [at call N]' with kill, crash, error, nan, oom or hang",
            )
        if found[2] and not marks:
            raise BadRowError(
                f"{prompt[:60]!r} needs a memory that outlives the process",
                "add marks=FOLDER to the model's name",
            )
        return cls(found[1], bool(found[2]), int(found[3] or 1), prompt)

    def happens(self, num_calls: int, marks: str) -> bool:
        """Whether it strikes at this call; one that strikes once is noted in the folder `marks` first."""
        if num_calls < self.at_call:
            return False
        if not self.is_once:
            return True
        place = Path(marks) / hashlib.sha256(self.prompt.encode()).hexdigest()
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def strike(self) -> None:
        """Makes it happen ("nan" shows in the result instead)."""
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "crash":
            os.abort()
        if self.kind == "error":
            raise RuntimeError("the simulated network failed, as its prompt asked for")
        if self.kind == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory (simulated). Tried to allocate 20.00 GiB.")
        while self.kind == "hang":
            time.sleep(3600.0)


# ---- the model ----


class SimulatedCondition:
    """A prompt and a negative prompt, as numbers; and the fault that the prompt asks for, with its count of calls."""

    def __init__(self, prompt: str, negative: str, fault: Fault | None) -> None:
        self.prompt_C, self.negative_C = _numbers_of(prompt), _numbers_of(negative)
        self.fault = fault
        self.num_calls = 0


def _numbers_of(text: str) -> torch.Tensor:
    """A number per channel in [-1, 1], other ones for every text."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.tensor([byte / 127.5 - 1.0 for byte in digest[:NUM_CHANNELS]], dtype=torch.float32)


class SimulatedDenoiser:
    """See `miga.backbones.base.BranchedDenoiser`. Sums of neighbours only: no result depends on how it is computed."""

    def __init__(self, gpu: SimulatedGpu, options: SimulatedOptions, spec: BackboneSpec, config: SamplerConfig) -> None:
        self.window = config.window
        self.schedule = schedule_of(config, spec.family)
        self._gpu, self._options = gpu, options
        self._full_window = spec.window
        self._guidance_scale = config.guidance_scale
        self._guided_levels = (config.guidance_low_level, config.guidance_high_level)

    def __call__(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[SimulatedCondition]
    ) -> torch.Tensor:
        """Predicted clean latents, float32, after their time.

        Raises:
            NonFiniteError: if a prompt asks for NaN.
        """
        branches = range(self.num_branches(level_BF))
        predictions = [self.predict_branch(x_BFCHW, level_BF, conditions, branch) for branch in branches]
        return self.combine(x_BFCHW, level_BF, predictions)

    def num_branches(self, level_BF: torch.Tensor) -> int:
        """See `BranchedDenoiser`."""
        return 2 if self._guidance_scale != 1.0 and bool(self._is_guided(level_BF).any()) else 1

    @torch.no_grad()
    def predict_branch(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[SimulatedCondition], branch: int
    ) -> torch.Tensor:
        """Predicted clean latents under the prompt (branch 0) or the negative prompt (1)."""
        batch, length = level_BF.shape
        with self._gpu.taken(batch * self._options.call_s / 2 * length / self._full_window):
            struck = [] if branch else [fault for condition in conditions if (fault := self._struck(condition))]
            texts_C = [condition.negative_C if branch else condition.prompt_C for condition in conditions]
            clean_BFCHW = self._forward(x_BFCHW, level_BF, texts_C)
            return clean_BFCHW * math.nan if any(fault.kind == "nan" for fault in struck) else clean_BFCHW

    @torch.no_grad()
    def combine(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, predictions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """See `BranchedDenoiser`."""
        clean_BFCHW = predictions[0]
        if len(predictions) > 1:
            scale_BF = 1.0 + (self._guidance_scale - 1.0) * self._is_guided(level_BF).float()
            clean_BFCHW = predictions[1] + scale_BF[..., None, None, None] * (clean_BFCHW - predictions[1])
        if not torch.isfinite(clean_BFCHW).all():
            raise NonFiniteError("the network returned NaN or infinity", hint="the prompt asked for it")
        return clean_BFCHW

    def _is_guided(self, level_BF: torch.Tensor) -> torch.Tensor:
        return (self._guided_levels[0] <= level_BF) & (level_BF <= self._guided_levels[1])

    def _struck(self, condition: SimulatedCondition) -> Fault | None:
        condition.num_calls += 1
        fault = condition.fault
        if fault is None or not fault.happens(condition.num_calls, self._options.marks):
            return None
        fault.strike()
        return fault

    def _forward(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, texts_C: Sequence[torch.Tensor]) -> torch.Tensor:
        x_BFCHW = x_BFCHW.float()
        before = torch.cat([x_BFCHW[:, :1], x_BFCHW[:, :-1]], 1)
        behind = torch.cat([x_BFCHW[:, 1:], x_BFCHW[:, -1:]], 1)
        sigma = self.schedule.at(self.schedule.sigma, level_BF, x_BFCHW)
        text_BCHW = torch.stack(list(texts_C))[:, None, :, None, None]
        mixed = 0.6 * x_BFCHW + 0.25 * before + 0.15 * behind + 0.3 * text_BCHW
        return mixed / (1.0 + mixed.abs()) * (1.0 - 0.3 * sigma)


def schedule_of(config: SamplerConfig, family: str) -> NoiseSchedule:
    """The noise schedule of a simulated model: that of its family."""
    if family == "wan":
        return wan_schedule(config)
    return videocrafter2_schedule(config, videocrafter2_spec.Settings())


class SimulatedFrameDecoder:
    """See `miga.backbones.base.FrameDecoder`. Frames pass over from the latent before, evenly."""

    def __init__(self, gpu: SimulatedGpu, decode_s: float, spec: BackboneSpec) -> None:
        self._gpu, self._decode_s, self._spec = gpu, decode_s, spec
        self._last_CHW: torch.Tensor | None = None

    @torch.no_grad()
    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """Frames uint8 on the CPU."""
        spec = self._spec
        frames = [torch.zeros(0, spec.height, spec.width, 3, dtype=torch.uint8)]
        for x_CHW in x_FCHW.float():
            with self._gpu.taken(self._decode_s):
                count = spec.frames_first_latent if self._last_CHW is None else spec.frames_per_latent
                before_CHW = x_CHW if self._last_CHW is None else self._last_CHW
                frames += [
                    _picture(before_CHW + (x_CHW - before_CHW) * ((number + 1) / count))[None]
                    for number in range(count)
                ]
                self._last_CHW = x_CHW.clone()
        return torch.cat(frames)


def _picture(x_CHW: torch.Tensor) -> torch.Tensor:
    """The first three channels as colours `[height, width, 3]`."""
    colour_3HW = (x_CHW[:3].clamp(-1.0, 1.0) * 127.5 + 127.5).round().to(torch.uint8)
    large = colour_3HW.repeat_interleave(PIXELS_PER_CELL, 1).repeat_interleave(PIXELS_PER_CELL, 2)
    return large.permute(1, 2, 0)


class SimulatedBackbone:
    """See `miga.backbones.base.Backbone`.

    Args:
        name: of the model, with its options.
        components: parts to load, as for a model.
    """

    def __init__(self, name: str, components: Sequence[str] = ("text", "denoiser", "vae")) -> None:
        self.spec = load_spec(name)
        self.device = torch.device("cpu")
        self.options = parse_name(name)[1]
        self.gpu = SimulatedGpu(speed_of_process())
        if "denoiser" in components:
            time.sleep(self.options.load_s)

    def check_prompt(self, prompt: str) -> None:
        """Finds a bad prompt.

        Raises:
            BadRowError: if it is blank, longer than 4,096 bytes, or asks for a fault that there is not.
        """
        if not prompt.strip():
            raise BadRowError("the prompt is blank", hint="describe the video, or remove the row")
        self._check_length(prompt)
        self._fault(prompt)

    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """The bytes of each prompt, float32 `[bytes, 1]`.

        Raises:
            BadRowError: if a prompt is longer than 4,096 bytes.
        """
        embeddings = []
        for prompt in prompts:
            self._check_length(prompt)
            time.sleep(self.options.text_s)
            embeddings.append(torch.tensor(list(prompt.encode()), dtype=torch.float32)[:, None])
        return embeddings

    def condition(self, prompt_embedding: torch.Tensor, negative_embedding: torch.Tensor) -> SimulatedCondition:
        """What the denoiser takes for the two prompts."""
        prompt, negative = (
            bytes(embedding[:, 0].to(torch.uint8).tolist()).decode()
            for embedding in (prompt_embedding, negative_embedding)
        )
        return SimulatedCondition(prompt, negative, self._fault(prompt))

    def denoiser(self, config: SamplerConfig) -> SimulatedDenoiser:
        """The network under the schedule and guidance scale of `config`."""
        return SimulatedDenoiser(self.gpu, self.options, self.spec, config)

    def frame_decoder(self) -> SimulatedFrameDecoder:
        """A decoder at the start of a video; several may be open at once."""
        return SimulatedFrameDecoder(self.gpu, self.options.decode_s, self.spec)

    def _fault(self, prompt: str) -> Fault | None:
        return Fault.of(prompt, self.options.marks) if self.options.faults else None

    @staticmethod
    def _check_length(prompt: str) -> None:
        if len(prompt.encode()) > MAX_PROMPT_BYTES:
            raise BadRowError(
                f"the prompt has {len(prompt.encode())} bytes, the simulated model reads {MAX_PROMPT_BYTES}",
                hint="shorten it, or give it as several prompts",
            )
