"""What a simulated GPU does where a prompt asks for it: a killed process, a hang, NaN, no memory."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from miga.errors import BadRowError

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
