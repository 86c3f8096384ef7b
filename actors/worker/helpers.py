"""The GPUs that one video can use: the host's own, and those of the helpers that it has just now.

A host computes a video's windows itself and hands single ones to its helpers, called directly, so that the coordinator
sees none of it. All of them take windows from one queue, the most urgent first; which of them a helper may take, and
when the host joins in, is decided in `miga/sharing.py`. A helper may join, leave, die or err at any time: its window
goes back into the queue, and the video is the same in the last bit wherever its windows ran.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch

from miga.backbones.base import Condition, Denoiser
from miga.denoise_pass import WindowCall, run_call
from miga.errors import MigaError
from miga.sharing import Share, WaitingCalls, slots_of

NUM_CALLS_PER_HELPER: Final = 2
"""Windows on the way to a helper or in work there: while it computes one, the next is carried to it."""


class Helper(Protocol):
    """Another worker, as the host sees it. Both calls may raise anything; then it is dropped."""

    name: str

    def open_video(self) -> None:
        """Tells it the prompts of the video."""
        ...

    def run_window(
        self,
        prompt: int,
        x_FCHW: np.ndarray,
        level_F: np.ndarray,
        branch: int | None,
        position_F: np.ndarray | None,
    ) -> tuple[np.ndarray, float]:
        """What `run_call` returns there, and the seconds that the GPU took."""
        ...

    def is_dead(self, error: BaseException) -> bool:
        """Whether an error of its calls says that its process is gone."""
        ...


@dataclass(frozen=True)
class _Window:
    """A window on its way to a result."""

    call: WindowCall
    priority: int
    is_candidate: bool
    future: Future[torch.Tensor]


class HelperPool:
    """See `miga.wavefront.WindowExecutor`.

    Args:
        denoiser: the host's own.
        conditions: those of the video, by the number of the prompt.
        lost: told of a helper that was dropped, with the error.
        share: which windows helpers take.

    Attributes:
        num_helper_calls: windows that helpers have computed; one branch of a guided call is half of one.
        helper_s: seconds that their GPUs took.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: Sequence[Condition],
        lost: Callable[[Helper, BaseException], None],
        share: Share,
    ) -> None:
        self._denoiser = denoiser
        self._conditions = conditions
        self._lost = lost
        self._share = share
        self._changed = threading.Condition()
        self._waiting: WaitingCalls[_Window] = WaitingCalls(share)
        self._helpers: dict[str, Helper] = {}
        self._num_idle_helpers = 0
        self._is_closed = False
        self.num_helper_calls = 0.0
        self.helper_s = 0.0
        self._host = threading.Thread(target=self._work_here, name="miga-windows", daemon=True)
        self._host.start()

    # ---- what the sampler sees ----

    @property
    def num_slots(self) -> int:
        """See `WindowExecutor`."""
        return slots_of(self._share, len(self._helpers))[0]

    @property
    def num_general_slots(self) -> int:
        """See `WindowExecutor`."""
        return slots_of(self._share, len(self._helpers))[1]

    def submit(self, call: WindowCall, priority: int, *, is_candidate: bool) -> Future[torch.Tensor]:
        """Runs a call somewhere, some time; the result is what `run_call` returns."""
        window = _Window(call, priority, is_candidate, Future())
        self._put(window, is_for_host=call.cached is not None)  # the cache is here
        return window.future

    # ---- what the worker sees ----

    def set_helpers(self, helpers: Mapping[str, Helper]) -> None:
        """Those, and no others, from now on; one that leaves finishes the windows it has."""
        with self._changed:
            joined = [helper for name, helper in helpers.items() if name not in self._helpers]
            self._helpers = {name: self._helpers.get(name, helper) for name, helper in helpers.items()}
            self._changed.notify_all()
        for helper in joined:
            thread = threading.Thread(target=self._begin, args=(helper,), name=f"miga-{helper.name}", daemon=True)
            thread.start()

    def close(self) -> None:
        """Ends the threads; windows that still wait are never computed."""
        with self._changed:
            self._is_closed = True
            self._helpers = {}
            waiting = self._waiting.take_all()
            self._changed.notify_all()
        for window in waiting:
            window.future.cancel()
        if self._host is not threading.current_thread():
            self._host.join()

    # ---- inside ----

    def _put(self, window: _Window, *, is_for_host: bool = False) -> None:
        with self._changed:
            if self._is_closed:
                window.future.cancel()  # or, if it has been begun, nobody waits for it any more
                return
            self._waiting.put(window, window.priority, is_candidate=window.is_candidate, is_for_host=is_for_host)
            self._changed.notify_all()

    def _next_here(self) -> _Window | None:
        """What the host computes next, as soon as there is something; None at the end."""
        with self._changed:
            while not self._is_closed:
                if window := _begun(lambda: self._waiting.take_for_host(self._num_idle_helpers)):
                    return window
                self._changed.wait()
            return None

    def _next_for(self, helper: Helper, is_spare: bool) -> _Window | None:
        """What a helper computes next, as soon as there is something; None once it is none any more."""
        window: _Window | None = None
        with self._changed:
            self._num_idle_helpers += not is_spare
            while not self._is_closed and self._helpers.get(helper.name) is helper:
                if not is_spare or self._waiting.num_for_helpers > self.num_slots:
                    window = _begun(self._waiting.take_for_helper)
                if window is not None:
                    break
                self._changed.wait()
            self._num_idle_helpers -= not is_spare
            if window is None:
                self._changed.notify_all()  # the host may have left something to this helper
            return window

    def _work_here(self) -> None:
        """The host's own GPU."""
        while window := self._next_here():
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
        while window := self._next_for(helper, is_spare):
            call = window.call
            try:
                known = [number for number, condition in enumerate(self._conditions) if condition is call.condition]
                if not known:  # made on the way, of a picture: the helper was not told of it
                    self._put(window, is_for_host=True)
                    continue
                (prompt,) = known[:1]
                x_FCHW, level_F = call.x_FCHW.cpu().numpy(), call.level_F.numpy()
                position_F = None if call.position_F is None else call.position_F.numpy()
                output, seconds = helper.run_window(prompt, x_FCHW, level_F, call.branch, position_F)
            except Exception as error:  # of Ray's, or of the helper's
                is_rows_fault = isinstance(error, MigaError) and error.scope == "row"
                self._put(window, is_for_host=is_rows_fault)
                if is_rows_fault:  # the host will find the same
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
            self._changed.notify_all()
        if is_news:
            self._lost(helper, error)


def _begun(take: Callable[[], _Window | None]) -> _Window | None:
    """The next window that nobody has cancelled, begun from now on."""
    while window := take():
        if window.future.running() or window.future.set_running_or_notify_cancel():
            return window
    return None
