"""Windows of many passes at once: each runs as soon as the latents it sees are there.

The sampler's code (Zigzag, Unified, self-reflection, …) stays what it is: queue in, queue out. Under a `LazyStepper` a
pass returns at once, a `LazyQueue` of latents yet to come; only who looks at latents waits for them. So the windows of
consecutive passes overlap, Stage 2 runs beside Stage 1, and the candidates of a search beside both. What a window
computes, and from what, is the same as in order: so is the video, bit for bit.

Source: MIGA Alg. 3-7; algorithm and result are those of `denoise_pass.py`.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

import torch

from miga.anchors import Anchors
from miga.backbones.base import BranchedDenoiser, Denoiser
from miga.denoise_pass import Pass, Stepper, WindowCall
from miga.queue import FrameQueue, History, map_queues
from miga.windows import Window

RUN_AHEAD: Final = 8
"""Windows per slot that may be planned and not done; a pass that comes on top waits. A search leaves most slots to the
windows of earlier passes, or, where helpers take candidates alone, the host's: there must be enough of them."""
WAITING_PER_SLOT: Final = 1
"""Calls per slot that are handed over before a slot is free, so that it never waits for the next one."""


class WindowExecutor(Protocol):
    """Runs window calls: on this machine's GPU, on others, or in virtual time."""

    @property
    def num_slots(self) -> int:
        """Calls that can run at once just now; it may change at any time."""
        ...

    @property
    def num_general_slots(self) -> int:
        """Of these slots, those that take any call; the others take those of a search's candidates alone."""
        ...

    def submit(self, call: WindowCall, priority: int, *, is_candidate: bool) -> Future[torch.Tensor]:
        """Queues a call (see `run_call`); of those that wait, the lowest priority goes first.

        Where a slot may take either, those of a search's candidates go before all others: everything behind the judged
        latents waits for them.

        Returns at once, and takes calls from any thread. The future's result is complete: on a GPU, nothing that
        writes it or reads the call's input is still running. It is as exact as here: the same bits wherever it ran. A
        future that fails ends the video; whoever can try elsewhere does so before.
        """
        ...


@runtime_checkable
class SteppedExecutor(Protocol):
    """A `WindowExecutor` in which no time passes by itself."""

    def advance(self) -> None:
        """Goes on to the next end of a call."""
        ...


class Block:
    """Latents that one window keeps (or that were there from the start), once they are there.

    Attributes:
        value: a queue; None until then.
        like: an empty tensor of their dtype, on their device.
    """

    __slots__ = ("dependents", "like", "value")

    def __init__(self, like: torch.Tensor, value: Any = None) -> None:
        self.like = like
        self.value = value
        self.dependents: list[_Node] = []


Part: TypeAlias = tuple[Block, int, int]
"""Latents `start ... stop - 1` of a block."""


class LazyQueue(FrameQueue):
    """A `FrameQueue` of which only length, levels and place are known yet; reading latents waits for them."""

    def __init__(self, wavefront: Wavefront, parts: Sequence[Part], level_F: torch.Tensor, first: int) -> None:
        object.__setattr__(self, "wavefront", wavefront)
        filled = [part for part in parts if part[2] > part[1]]
        object.__setattr__(self, "parts", tuple(filled or parts[:1]))  # an empty queue is an empty part of a block
        object.__setattr__(self, "level_F", level_F)
        object.__setattr__(self, "first", first)

    wavefront: Wavefront
    parts: tuple[Part, ...]

    @property
    def x_FCHW(self) -> torch.Tensor:  # noqa: N802 (the field's name)
        """The latents, as soon as they are there."""
        return torch.cat([value.x_FCHW for value in self._values()])

    @property
    def history(self) -> History:
        """What the solver remembers of each, as soon as they are there."""
        return self.materialised().history

    @property
    def like(self) -> torch.Tensor:
        """See `FrameQueue.like`."""
        return self.parts[0][0].like

    @property
    def is_there(self) -> bool:
        """Whether reading it would not wait."""
        return all(block.value is not None for block, _, _ in self.parts)

    def materialised(self) -> FrameQueue:
        """The ordinary queue, as soon as its latents are there."""
        return FrameQueue(self.x_FCHW, self.level_F, _joined([value.history for value in self._values()]), self.first)

    def at(self, positions: Sequence[int]) -> list[Part]:
        """The latents at these positions, which ascend."""
        parts: list[Part] = []
        remaining = iter(self.parts)
        block, start, stop = next(remaining)
        offset = 0  # position of the latent at `start`
        for position in positions:
            while position >= offset + stop - start:
                offset += stop - start
                block, start, stop = next(remaining)
            row = start + position - offset
            if parts and parts[-1][0] is block and parts[-1][2] == row:
                parts[-1] = (block, parts[-1][1], row + 1)
            else:
                parts.append((block, row, row + 1))
        return parts

    def __getitem__(self, part: slice) -> LazyQueue:
        start, stop, step = part.indices(len(self))
        assert step == 1, "a queue has no gaps"
        block, place, _ = self.parts[0]
        parts = self.at(range(start, stop)) or [(block, place, place)]
        return LazyQueue(self.wavefront, parts, self.level_F[start:stop], self.first + start)

    def append(self, tail: FrameQueue) -> LazyQueue:
        """See `FrameQueue.append`."""
        assert tail.first == self.first + len(self), f"{tail.first} does not follow {self.first} + {len(self)}"
        behind = self.wavefront.lazy(tail)
        return LazyQueue(
            self.wavefront, (*self.parts, *behind.parts), torch.cat([self.level_F, tail.level_F]), self.first
        )

    def compact(self) -> LazyQueue:
        """Itself: latents are kept window by window."""
        return self

    def _values(self) -> list[FrameQueue]:
        self.wavefront.wait_for([block for block, _, _ in self.parts])
        return [block.value[start:stop] for block, start, stop in self.parts]


def _joined(histories: Sequence[History]) -> History:
    return {name: torch.cat([history[name] for history in histories]) for name in histories[0]}


@dataclass(frozen=True, kw_only=True)
class LazyStepper(Stepper):
    """A stepper whose passes return at once.

    Attributes:
        wavefront: runs their windows.
        count: told how many calls a pass takes.
    """

    wavefront: Wavefront
    count: Callable[[int], None]

    @classmethod
    def of(cls, stepper: Stepper, wavefront: Wavefront, count: Callable[[int], None]) -> LazyStepper:
        """A stepper made lazy."""
        plain = {field.name: getattr(stepper, field.name) for field in fields(Stepper)}
        return cls(**plain, wavefront=wavefront, count=count)

    def pass_over(self, queue: FrameQueue, plan: Sequence[Window], anchors: Anchors = ()) -> FrameQueue:
        """See `Stepper.pass_over`; what it returns is still to come."""
        seen, beside = self.wavefront.lazy(queue), tuple(self.wavefront.lazy(anchor) for anchor in anchors)
        self.count(len(plan))
        blocks = self.wavefront.add([self._node(seen, window, beside) for window in plan])
        parts = [(block, 0, window.keep_stop - window.keep_start) for block, window in zip(blocks, plan, strict=True)]
        kept = seen.level_F[plan[0].keep_start : plan[-1].keep_stop]
        return LazyQueue(self.wavefront, parts, kept - 1, seen.first + plan[0].keep_start)

    def pass_over_all(self, passes: Sequence[Pass]) -> list[FrameQueue]:
        """See `Stepper.pass_over_all`; windows that nobody keeps anything of are counted, and not run."""
        self.count(sum(len(each.unkept) for each in passes))
        return [each.stepper.pass_over(each.queue, each.plan, each.anchors) for each in passes]

    def fresh(self, x_FCHW: torch.Tensor, level_F: torch.Tensor, first: int) -> FrameQueue:
        """See `Stepper.fresh`."""
        return self.wavefront.lazy(super().fresh(x_FCHW, level_F, first))

    def _node(self, queue: LazyQueue, window: Window, anchors: Anchors) -> _Node:
        kept = queue[window.keep_start : window.keep_stop]
        seen = queue.at(window.positions)
        shown = self.shown(queue, window, anchors)
        beside = [part for anchor, _ in shown.anchors if isinstance(anchor, LazyQueue) for part in anchor.parts]
        first, device = queue.first, queue.like.device

        def call() -> WindowCall:
            x_FCHW = torch.cat([block.value.x_FCHW[start:stop] for block, start, stop in seen])
            return self.call_of(x_FCHW, first, window, shown)

        def step(clean_FCHW: torch.Tensor) -> FrameQueue:
            clean_FCHW = self.kept_of(clean_FCHW.to(device), first, window)
            return self.step(kept.materialised(), clean_FCHW)

        # the noisiest first: the tail is what the next pass's judgement waits for, and what has furthest to go
        steps_taken = self.schedule.num_steps - int(kept.level_F[0])
        sees = [block for block, _, _ in [*seen, *beside]]
        return _Node(sees, queue.like, call, step, steps_taken, self.candidate > 0)


class _Node:
    """One window, from plan to result.

    Attributes:
        num_missing: blocks it sees that are not there yet.
    """

    def __init__(
        self,
        sees: Sequence[Block],
        like: torch.Tensor,
        call: Callable[[], WindowCall],
        finish: Callable[[torch.Tensor], Any],
        priority: int,
        is_candidate: bool,
    ) -> None:
        self.sees = set(sees)
        self.call = call
        self.finish = finish
        self.priority = priority
        self.is_candidate = is_candidate
        self.block = Block(like)
        self.num_missing = 0
        self.asked: WindowCall | None = None
        self.outputs: dict[int, torch.Tensor] = {}
        self.num_outputs = 1


_Event: TypeAlias = tuple[_Node, int, "Future[torch.Tensor]"] | None
"""A call that ended: its window, branch and future; None: look again."""


class Wavefront:
    """Hands windows to an executor as their latents come in, and takes their steps.

    Whatever it does itself (putting together what a window sees, the solver's steps) happens in a thread of its own, on
    a GPU on a stream of its own: executor threads only report, and whoever drives the sampler only plans. With a
    `SteppedExecutor` there is no thread: whoever waits does it all, the same way every time.

    Args:
        denoiser: combines the branches of guided calls; it is not called.
        executor: runs the calls.
        run_ahead: windows per slot that may be planned and not done.

    Attributes:
        num_done: windows done so far.
    """

    def __init__(self, denoiser: Denoiser, executor: WindowExecutor, run_ahead: int = RUN_AHEAD) -> None:
        self._branched = denoiser if isinstance(denoiser, BranchedDenoiser) else None
        self._executor = executor
        self._run_ahead = run_ahead
        self._changed = threading.Condition()
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._ready: dict[bool, list[tuple[int, int, _Node]]] = {True: [], False: []}  # of candidates, and others
        self._order = itertools.count()
        self._running: set[Future[torch.Tensor]] = set()
        self._num_running = {True: 0, False: 0}
        self._num_planned = 0
        self.num_done = 0
        self._error: BaseException | None = None
        self._is_closed = False
        self._stream: torch.cuda.Stream | None = None
        self._is_stepped = isinstance(executor, SteppedExecutor)
        self._thread: threading.Thread | None = None

    # ---- for whoever drives the sampler ----

    def lazy(self, queue: FrameQueue) -> LazyQueue:
        """A queue that is there, as a lazy one."""
        if isinstance(queue, LazyQueue):
            return queue
        if queue.x_FCHW.is_cuda:
            torch.cuda.current_stream(queue.x_FCHW.device).synchronize()
            self._use_stream(queue.x_FCHW.device)
        return LazyQueue(self, [(Block(queue.like, queue), 0, len(queue))], queue.level_F, queue.first)

    def add(self, nodes: Sequence[_Node]) -> list[Block]:
        """Plans windows; their blocks will hold what they keep."""
        with self._changed:
            for node in nodes:
                missing = [block for block in node.sees if block.value is None]
                node.num_missing = len(missing)
                for block in missing:
                    block.dependents.append(node)
                if not missing:
                    self._push(node)
            self._num_planned += len(nodes)
            if self._thread is None and not self._is_stepped and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="miga-wavefront", daemon=True)
                self._thread.start()
        self._events.put(None)
        return [node.block for node in nodes]

    def run_windows(self, calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        """A `RunWindows`: runs the calls side by side, and waits for all of them."""
        nodes = [_Node([], call.x_FCHW[:0], lambda call=call: call, lambda clean: clean, 0, False) for call in calls]  # type: ignore[misc]
        blocks = self.add(nodes)
        self.wait_for(blocks)
        return [block.value.to(call.x_FCHW.device) for block, call in zip(blocks, calls, strict=True)]

    def wait_for(self, blocks: Sequence[Block]) -> None:
        """Waits until they are there.

        Raises:
            Whatever ended the video meanwhile.
        """
        if any(block.value is None for block in blocks):
            self._wait(lambda: all(block.value is not None for block in blocks))

    @property
    def is_idle(self) -> bool:
        """Whether every window that was planned is done."""
        return not self._num_planned

    def wait_for_room(self) -> None:
        """Waits while more windows are planned than it needs to keep every slot busy.

        Raises:
            Whatever ended the video meanwhile.
        """
        self._wait(lambda: self._num_planned <= self._run_ahead * max(1, self._executor.num_slots))

    def on_stream(self) -> AbstractContextManager[object]:
        """On a GPU, the stream that queues are read and written on: none of its work waits for a window to end."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def close(self) -> None:
        """Drops what is not done. Latents that are not there yet cannot be waited for any more."""
        with self._changed:
            self._is_closed = True
            self._error = self._error or RuntimeError("this video's run is closed")
            self._forget_ready()
            running = list(self._running)
            self._changed.notify_all()
        for future in running:
            future.cancel()
        self._events.put(None)
        if self._thread is not None:
            self._thread.join()

    def _wait(self, is_over: Callable[[], bool]) -> None:
        with self._changed:
            while not is_over():
                if self._error is not None:
                    raise self._error
                if not self._is_stepped:
                    self._changed.wait()
                elif not self._work():
                    cast(SteppedExecutor, self._executor).advance()

    # ---- in the thread ----

    def _run(self) -> None:
        while True:
            event = self._events.get()
            with self._changed:
                if self._is_closed:
                    return
                self._work(event)
                self._changed.notify_all()

    def _work(self, event: _Event = None) -> bool:
        """Takes in what has ended and hands over what is ready; whether anything had ended."""
        events = [event, *self._waiting_events()]
        ended = [event for event in events if event is not None]
        try:
            with torch.no_grad(), self.on_stream():
                for node, branch, future in ended:
                    self._take_in(node, branch, future)
                return self._hand_over() or bool(ended)
        except BaseException as error:  # whatever it is, it belongs to whoever waits for the latents
            self._fail(error)
            return True

    def _waiting_events(self) -> Iterator[_Event]:
        with contextlib.suppress(Empty):
            while True:
                yield self._events.get_nowait()

    def _take_in(self, node: _Node, branch: int, future: Future[torch.Tensor]) -> None:
        self._running.discard(future)
        self._num_running[node.is_candidate] -= 1
        node.outputs[branch] = future.result()
        if len(node.outputs) < node.num_outputs:
            return
        node.block.value = node.finish(self._combined(node))
        if self._stream is not None:
            self._stream.synchronize()  # from here on anybody may read it, and what it came from is let go
        self._num_planned -= 1
        self.num_done += 1
        for dependent in node.block.dependents:
            dependent.num_missing -= 1
            if not dependent.num_missing:
                self._push(dependent)
        node.block.dependents.clear()

    def _combined(self, node: _Node) -> torch.Tensor:
        outputs = [node.outputs[branch].to(node.block.like.device) for branch in range(node.num_outputs)]
        if node.num_outputs == 1:
            return outputs[0]
        assert self._branched is not None
        assert node.asked is not None
        x_1FCHW, level_1F = node.asked.x_FCHW[None], node.asked.level_F[None]
        return self._branched.combine(x_1FCHW, level_1F, [output[None] for output in outputs])[0]

    def _push(self, node: _Node) -> None:
        heapq.heappush(self._ready[node.is_candidate], (node.priority, next(self._order), node))

    def _hand_over(self) -> bool:
        """Submits what is ready, as much as the slots will need soon; whether there was anything."""
        return sum(self._hand_over_kind(is_candidate) for is_candidate in (True, False)) > 0

    def _hand_over_kind(self, is_candidate: bool) -> int:
        """The same for windows of candidates, or for all others; how many it submitted.

        While slots would be left idle, the branches of a guided call go to two of them.
        """
        ready, num_submitted = self._ready[is_candidate], 0
        while ready:
            num_slots, num_idle, num_rivals = self._slots(is_candidate)
            if num_idle <= -WAITING_PER_SLOT * num_slots:
                break
            _, _, node = heapq.heappop(ready)
            node.asked = node.call()
            if self._branched is not None and num_rivals < num_idle:
                node.num_outputs = self._branched.num_branches(node.asked.level_F[None])
            for branch in range(node.num_outputs):
                call = node.asked if node.num_outputs == 1 else replace(node.asked, branch=branch)
                self._submit(node, branch, call)
            num_submitted += 1
        return num_submitted

    def _slots(self, is_candidate: bool) -> tuple[int, int, int]:
        """Slots that take such a call, how many of them are idle, and how many windows are ready for them.

        Calls that were handed over and wait for a slot make the second negative.
        """
        num_slots = max(1, self._executor.num_slots)
        num_general = max(1, min(self._executor.num_general_slots, num_slots))
        running, ready = self._num_running, {kind: len(nodes) for kind, nodes in self._ready.items()}
        if num_general == num_slots:
            return num_slots, num_slots - sum(running.values()), sum(ready.values())
        if is_candidate:
            num_taken = min(num_general, running[False] + ready[False])
            return num_slots, num_slots - num_taken - running[True], ready[True]
        return num_general, num_general - running[False], ready[False]

    def _submit(self, node: _Node, branch: int, call: WindowCall) -> None:
        future = self._executor.submit(call, node.priority, is_candidate=node.is_candidate)
        self._running.add(future)
        self._num_running[node.is_candidate] += 1
        future.add_done_callback(lambda ended: self._events.put((node, branch, ended)))

    def _forget_ready(self) -> None:
        for nodes in self._ready.values():
            nodes.clear()

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, CancelledError):
            error = RuntimeError("a window of this video was cancelled")
        self._error = self._error or error
        self._forget_ready()
        for future in self._running:
            future.cancel()

    def _use_stream(self, device: torch.device) -> None:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


def is_there(state: Any) -> bool:
    """Whether no latent of a state is still to come."""
    missing: list[FrameQueue] = []

    def look(queue: FrameQueue) -> FrameQueue:
        if isinstance(queue, LazyQueue) and not queue.is_there:
            missing.append(queue)
        return queue

    map_queues(state, look)
    return not missing


def materialised(state: Any, *, drops_missing: bool = False) -> Any:
    """A state of ordinary queues, as the sampler has it without an executor; waits for the latents to come.

    Args:
        state: of the sampler.
        drops_missing: whether a queue of which latents are still to come is left empty instead.
    """

    def change(queue: FrameQueue) -> FrameQueue:
        if not isinstance(queue, LazyQueue):
            return queue
        if drops_missing and not queue.is_there:
            return FrameQueue(queue.like, queue.level_F[:0], {}, queue.first)
        return queue.materialised()

    return map_queues(state, change)
