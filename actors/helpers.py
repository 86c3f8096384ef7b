"""The GPUs that one video can use: the host's own, and those of the helpers that it has just now.

A host computes a video's windows itself and hands single ones to its helpers, called directly, so that the coordinator
sees none of it. All of them take windows from one queue, the most urgent first. A helper may join, leave, die or err at
any time: its window goes back into the queue, and the video is the same in the last bit wherever its windows ran.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import torch

from miga.backbones.base import Condition, Denoiser
from miga.denoise_pass import WindowCall, run_call
from miga.errors import MigaError

NUM_CALLS_PER_HELPER: Final = 2
"""Windows on the way to a helper or in work there: while it computes one, the next is carried to it."""


class Helper(Protocol):
    """Another worker, as the host sees it. Both calls may raise anything; then it is dropped."""

    name: str

    def open_video(self) -> None:
        """Tells it the prompts of the video."""
        ...

    def run_window(
        self, prompt: int, x_FCHW: np.ndarray, level_F: np.ndarray, branch: int | None
    ) -> tuple[np.ndarray, float]:
        """What `run_call` returns there, and the seconds that the GPU took."""
        ...

    def is_dead(self, error: BaseException) -> bool:
        """Whether an error of its calls says that its process is gone."""
        ...


@dataclass(order=True)
class _Window:
    """A window that waits: the lower `priority`, the sooner; of equals the older."""

    priority: int
    number: int
    call: WindowCall = field(compare=False)
    future: Future[torch.Tensor] = field(compare=False)
    is_for_host: bool = field(default=False, compare=False)


class HelperPool:
    """See `miga.wavefront.WindowExecutor`.

    Args:
        denoiser: the host's own.
        conditions: those of the video, by the number of the prompt.
        lost: told of a helper that was dropped, with the error.

    Attributes:
        num_slots: windows that can be computed at once just now.
        num_helper_calls: windows that helpers have computed; one branch of a guided call is half of one.
        helper_s: seconds that their GPUs took.
    """

    def __init__(
        self, denoiser: Denoiser, conditions: Sequence[Condition], lost: Callable[[Helper, BaseException], None]
    ) -> None:
        self._denoiser = denoiser
        self._conditions = conditions
        self._lost = lost
        self._changed = threading.Condition()
        self._waiting: list[_Window] = []
        self._num_for_helpers = 0
        self._numbers = itertools.count()
        self._helpers: dict[str, Helper] = {}
        self._is_closed = False
        self.num_slots = 1
        self.num_helper_calls = 0.0
        self.helper_s = 0.0
        self._host = threading.Thread(target=self._work_here, name="miga-windows", daemon=True)
        self._host.start()

    # ---- what the sampler sees ----

    def submit(self, call: WindowCall, priority: int) -> Future[torch.Tensor]:
        """Runs a call somewhere, some time; the result is what `run_call` returns."""
        window = _Window(priority, next(self._numbers), call, Future())
        self._put(window)
        return window.future

    # ---- what the worker sees ----

    def set_helpers(self, helpers: Mapping[str, Helper]) -> None:
        """Those, and no others, from now on; one that leaves finishes the windows it has."""
        with self._changed:
            joined = [helper for name, helper in helpers.items() if name not in self._helpers]
            self._helpers = {name: self._helpers.get(name, helper) for name, helper in helpers.items()}
            self.num_slots = 1 + len(self._helpers)
            self._changed.notify_all()
        for helper in joined:
            thread = threading.Thread(target=self._begin, args=(helper,), name=f"miga-{helper.name}", daemon=True)
            thread.start()

    def close(self) -> None:
        """Ends the threads; windows that still wait are never computed."""
        with self._changed:
            self._is_closed = True
            self._helpers = {}
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for window in waiting:
            window.future.cancel()
        if self._host is not threading.current_thread():
            self._host.join()

    # ---- inside ----

    def _put(self, window: _Window) -> None:
        with self._changed:
            if self._is_closed:
                window.future.cancel()  # or, if it has been begun, nobody waits for it any more
                return
            heapq.heappush(self._waiting, window)
            self._num_for_helpers += not window.is_for_host
            self._changed.notify_all()

    def _take(self, may_take: Callable[[], bool], is_over: Callable[[], bool], is_host: bool) -> _Window | None:
        """The most urgent window, as soon as there is one that may be taken; None once it is over."""
        with self._changed:
            while True:
                if self._is_closed or is_over():
                    return None
                if may_take() and (window := self._pop(is_host)):
                    return window
                self._changed.wait()

    def _pop(self, is_host: bool) -> _Window | None:
        kept: list[_Window] = []
        found: _Window | None = None
        while self._waiting and found is None:
            window = heapq.heappop(self._waiting)
            if window.is_for_host and not is_host:
                kept.append(window)
                continue
            self._num_for_helpers -= not window.is_for_host
            if window.future.running() or window.future.set_running_or_notify_cancel():
                found = window
        for window in kept:
            heapq.heappush(self._waiting, window)
        return found

    def _work_here(self) -> None:
        """The host's own GPU."""
        while window := self._take(lambda: True, lambda: False, is_host=True):
            call = window.call
            try:
                with torch.inference_mode():
                    output_FCHW = run_call(self._denoiser, call)
            except BaseException as error:  # whatever it is, it belongs to whoever waits for the window
                window.future.set_exception(error)
            else:
                window.future.set_result(output_FCHW)

    def _begin(self, helper: Helper) -> None:
        """A helper's first thread: makes it know the video, then feeds it."""
        try:
            helper.open_video()
        except Exception as error:  # of Ray's, or of the helper's: either way it is of no use
            self._drop(helper, error)
            return
        for _ in range(NUM_CALLS_PER_HELPER - 1):
            spare = threading.Thread(target=self._feed, args=(helper, True), name=f"miga-{helper.name}", daemon=True)
            spare.start()
        self._feed(helper, False)

    def _feed(self, helper: Helper, is_spare: bool) -> None:
        """Hands windows to a helper; a spare thread only while there are more of them than GPUs."""

        def may_take() -> bool:
            return not is_spare or self._num_for_helpers > self.num_slots

        while window := self._take(may_take, lambda: self._helpers.get(helper.name) is not helper, is_host=False):
            call = window.call
            try:
                prompt = next(
                    number for number, condition in enumerate(self._conditions) if condition is call.condition
                )
                x_FCHW, level_F = call.x_FCHW.cpu().numpy(), call.level_F.numpy()
                output, seconds = helper.run_window(prompt, x_FCHW, level_F, call.branch)
            except Exception as error:  # of Ray's, or of the helper's
                window.is_for_host = isinstance(error, MigaError) and error.scope == "row"
                self._put(window)
                if window.is_for_host:  # if it is the window's own fault, the host will find the same
                    continue
                self._drop(helper, error)
                return
            self.num_helper_calls += 1.0 if call.branch is None else 0.5
            self.helper_s += seconds
            window.future.set_result(torch.from_numpy(np.array(output)).to(call.x_FCHW.device))

    def _drop(self, helper: Helper, error: BaseException) -> None:
        with self._changed:
            is_news = self._helpers.get(helper.name) is helper
            if is_news:
                del self._helpers[helper.name]
                self.num_slots = 1 + len(self._helpers)
            self._changed.notify_all()
        if is_news:
            self._lost(helper, error)
