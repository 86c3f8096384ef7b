"""A causal method at work on one video: block after block, each before a cache of the clean ones.

A block is denoised in a few calls, then shown once more as it is clean: keys and values of that call are what later
blocks see. The cache is no part of the state, which is only where the video stands: whoever goes on from a state shows
the finished latents to an empty cache again, block by block (`replay`), and has the very same one.

Source: the systems of `settings.py`; decisions/0013.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from miga.backbones.base import CachedDenoiser
from miga.cached_call import CachedCall, Compression
from miga.denoise_pass import Stepper
from miga.errors import CheckpointError, ConfigError
from miga.methods.base import Begin
from miga.methods.causal.noise import AntiphaseNoise
from miga.methods.causal.positions import Places, absolute, anchored, cut, frequencies_of, relative
from miga.methods.causal.settings import CausalSettings, SwitchAction
from miga.methods.causal.slots import Compressed, EmaSink, Policy, SlotTable, Window, flush
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.schedule import NUM_TRAIN_TIMESTEPS, shifted

BLOCKS: Final = "blocks"
CLEAN: Final = "clean passes"


@dataclass(frozen=True)
class CausalState:
    """One video.

    Attributes:
        num_done: latents that are clean, and have been handed out.
        queue: latents in the making, where blocks roll; else None.
        given: clean latents that the video begins with, until they are handed out.
    """

    num_done: int
    queue: FrameQueue | None = None
    given: torch.Tensor | None = None


@dataclass(frozen=True)
class Steps:
    """A block's few steps: the time step and noise scale of each, and of none left.

    Attributes:
        timesteps, sigmas: by level, `T ... 1` steps left; entry 0 is of the clean latent.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @classmethod
    def of(cls, timesteps: Sequence[int], flow_shift: float) -> Steps:
        """Those of a list as it is published, unshifted.

        Both are entries of a table of 1,000, in the float32 arithmetic of the programs that causal weights come from:
        952.38104 for 800 under shift 5, and not 952.38095, which moves what the network says by 6e-5.
        """
        table = _table(flow_shift)
        sigmas = [float(table[NUM_TRAIN_TIMESTEPS - each]) for each in reversed(timesteps)]
        times = [float((table * NUM_TRAIN_TIMESTEPS)[NUM_TRAIN_TIMESTEPS - each]) for each in reversed(timesteps)]
        return cls((0.0, *times), (0.0, *sigmas))

    @classmethod
    def as_given(cls, timesteps: Sequence[float], flow_shift: float) -> Steps:
        """Time steps that the network is told as they stand; the noise scale is that of the table's nearest entry."""
        table = _table(flow_shift)
        nearest = [int((table * NUM_TRAIN_TIMESTEPS - each).abs().argmin()) for each in reversed(timesteps)]
        return cls((0.0, *map(float, reversed(timesteps))), (0.0, *(float(table[place]) for place in nearest)))

    @property
    def count(self) -> int:
        """How many."""
        return len(self.sigmas) - 1


def _table(flow_shift: float) -> torch.Tensor:
    """Noise scales from 1 down, float32."""
    even = torch.linspace(1.0, 0.0, NUM_TRAIN_TIMESTEPS + 1)[:-1]
    return shifted(even, flow_shift)


@dataclass
class Memory:
    """The cache of a video, and what is known of it.

    Attributes:
        cache: of the network; None where only a plan is made.
        table: who is in which slot.
        num_done: latents whose keys and values it has been shown.
        tail: the last of them, clean, as many as the cache holds.
    """

    cache: Any
    table: SlotTable
    num_done: int = 0
    tail: torch.Tensor | None = None


@dataclass
class Causal:
    """See `Course`.

    Args:
        config: the settings.
        begin: what the video begins with; without a denoiser only its plan is made.
        actions: what happens at the change to a prompt, by its number, where that is not `config.on_switch`.
        policy: who leaves the cache, where that is not what the config says.
        steps: of the blocks, where they are not the config's.

    Raises:
        ConfigError: if the denoiser keeps no cache, or blocks do not divide the length.
    """

    config: CausalSettings
    begin: Begin
    actions: Mapping[int, SwitchAction] = field(default_factory=dict)
    policy: Policy | None = None
    steps: Steps | None = None

    def __post_init__(self) -> None:
        config, num_latents = self.config, self.begin.num_latents
        if num_latents is not None and (near := config.lengths_near(num_latents)):
            raise ConfigError(
                f"a video of {num_latents} latents is no whole number of blocks of {config.block} "
                f"(profile {config.profile!r})",
                f"take {' or '.join(map(str, near))} latents",
            )
        denoiser = self.begin.denoiser
        if denoiser is not None and not isinstance(denoiser, CachedDenoiser):
            raise ConfigError(
                f"profile {config.profile!r} needs a network that keeps keys and values, and this model's does not",
                "take a model of Wan's architecture, or another profile",
            )
        self.denoiser = denoiser
        stepper: Stepper = self.begin.stepper
        if config.antiphase and denoiser is not None:
            noise = AntiphaseNoise(stepper.noise, config.antiphase, config.antiphase_restart)
            stepper = replace(stepper, noise=noise)
        self.stepper = stepper
        self._steps = self.steps or Steps.of(config.timesteps, config.flow_shift)
        self._first_steps = (
            Steps.of(config.first_timesteps, config.flow_shift) if config.first_timesteps else self._steps
        )
        self.policy = self.policy or policy_of(config)
        self.memory: Memory | None = None

    # ---- Course ----

    def start(self, clean_FCHW: torch.Tensor | None) -> CausalState:
        """Nothing is made; or the video begins with given clean latents, which are whole blocks, or with a picture."""
        if clean_FCHW is None and self.begin.pictures is not None:
            clean_FCHW = self.begin.pictures.anchor()
        if clean_FCHW is None:
            return CausalState(0)
        if self.config.rolling or self.config.lengths_near(len(clean_FCHW)):
            raise ConfigError(
                f"profile {self.config.profile!r} cannot begin with {len(clean_FCHW)} given latents",
                "rolling blocks begin with noise"
                if self.config.rolling
                else "they must be whole blocks: set first_block",
            )
        return CausalState(0, given=clean_FCHW)

    def advance(self, state: CausalState) -> tuple[CausalState, FrameQueue | None]:
        """One block further, or where blocks roll one window."""
        memory = self._memory_at(state.num_done)
        if self.config.rolling:
            return self._roll(state, memory)
        if state.given is not None:
            return self._take_given(state, memory)
        block, steps = self._block(state.num_done), self._steps_of(state.num_done)
        is_cut = self._switch(memory, block.start)
        compression = self._make_room(memory, len(block))
        queue = self._denoised(memory, block, steps, is_cut, compression, steps.count)
        self._keep(memory, queue, is_cut)
        return CausalState(block.stop), queue

    def is_open(self, state: CausalState) -> bool:
        """Where blocks do not roll, always: none knows how many follow."""
        return not self.config.rolling or self.begin.num_latents is None or not self._is_at_end(state)

    def replay(self, finished_FCHW: torch.Tensor) -> None:
        """Shows finished latents, all from the video's first on, to an empty cache: the state behind them can go on.

        It takes one clean call a block, and one more of blocks before which the cache is compressed.
        """
        memory = self._empty()
        clean_FCHW = finished_FCHW.to(self.stepper.noise.device if hasattr(self.stepper.noise, "device") else "cpu")
        while memory.num_done < len(clean_FCHW):
            block = self._block(memory.num_done)
            level_F = torch.zeros(len(block), dtype=torch.int64)
            queue = FrameQueue(clean_FCHW[block.start : block.stop], level_F, {}, block.start)
            if self.config.rolling:
                self._keep_rolled(memory, queue)
                continue
            is_cut = self._switch(memory, block.start)
            compression = self._make_room(memory, len(block))
            if compression is not None:
                self._denoised(memory, block, self._steps_of(block.start), is_cut, compression, 1)
            self._keep(memory, queue, is_cut)
        self.memory = memory

    # ---- a block ----

    def _denoised(
        self, memory: Memory, block: range, steps: Steps, is_cut: bool, compression: Compression | None, count: int
    ) -> FrameQueue:
        """A block after `count` of its steps, from noise."""
        stepper = self.stepper.in_part(BLOCKS)
        queue = stepper.noise_queue(block.start, len(block), steps.count, "push")
        for level in range(steps.count, steps.count - count, -1):
            places = self._places(memory.table, block, is_cut)
            timesteps, sigmas = ([table[level]] * len(block) for table in (steps.timesteps, steps.sigmas))
            call = self._call(memory, block.start, timesteps, sigmas, places)
            if compression is not None and call is not None:
                call = replace(call, compression=compression)
            compression = None
            queue = stepper.pass_cached(queue, call, [steps.sigmas[level - 1]] * len(block))
        return queue

    def _keep(self, memory: Memory, clean: FrameQueue, is_cut: bool) -> None:
        """Shows a clean block; the cache keeps it."""
        slots = self._free_slots(memory, len(clean))
        call = self._clean_call(memory, clean.first, self._places(memory.table, clean.indices, is_cut), slots)
        if call is not None and self.config.eviction == "compress":
            call = replace(call, keeps_queries=True)
        self.stepper.in_part(CLEAN).show_cached(clean, call)
        memory.table.put(slots, clean.first)
        self._remember(memory, clean)

    def _take_given(self, state: CausalState, memory: Memory) -> tuple[CausalState, FrameQueue]:
        """The next block of those given: clean already."""
        assert state.given is not None
        block = self._block(state.num_done)
        queue = FrameQueue(state.given[: len(block)], torch.zeros(len(block), dtype=torch.int64), {}, block.start)
        is_cut = self._switch(memory, block.start)
        self._make_room(memory, len(block))
        self._keep(memory, queue, is_cut)
        rest = state.given[len(block) :]
        return CausalState(block.stop, given=rest if len(rest) else None), queue

    # ---- the prompt changes ----

    def _switch(self, memory: Memory, first: int) -> bool:
        """What is to be done before the block that begins there; whether it stands behind a cut."""
        prompts: Any = self.stepper.prompts
        if self.denoiser is None or not first:
            return False
        now, before = prompts.index(first), prompts.index(self._start_before(first))
        if now == before:
            return False
        action = self.actions.get(now, self.config.on_switch)
        if action == "recache":
            self._recache(memory, first)
        elif action != "text":
            flush(memory.table, 1, 2)
        return action == "flush-cut"

    def _recache(self, memory: Memory, first: int) -> None:
        """Keys and values of the last latents anew, in one clean call in which they all see each other.

        Source: LongLive. Its sink stays under the old prompt (`recache_sink` false) unless the last latents still begin
        with it; then, and with `recache_sink`, the cache is those latents and nothing else.
        """
        config, table = self.config, memory.table
        assert memory.tail is not None
        x_FCHW = memory.tail[-config.cache_latents :]
        own = range(first - len(x_FCHW), first)
        keeps_sink = not config.recache_sink and own.start > 0
        sink = config.sink_latents if keeps_sink else 0
        num_unseen = len(own) - (len(table) - sink) if keeps_sink else 0
        if not keeps_sink:
            table.drop(0, len(table))
            table.put(table.free(len(own)), own.start)
        slots = tuple(table.slots[:sink])
        if config.positions == "relative":
            places = relative(slots, own, num_unseen)
        else:
            places = absolute(table.latents[:sink], own)
        writes = (-1,) * num_unseen + tuple(table.slots[sink:])
        call = self._clean_call(memory, own.start, places, writes, slots)
        assert call is not None
        queue = FrameQueue(x_FCHW, torch.zeros(len(own), dtype=torch.int64), {}, own.start)
        prompts = PromptTrack([self.stepper.prompts.at(first)])
        stepper = replace(self.stepper.in_part(CLEAN), prompts=prompts)
        stepper.show_cached(queue, replace(call, num_unseen=num_unseen))

    # ---- blocks that roll ----

    def _roll(self, state: CausalState, memory: Memory) -> tuple[CausalState, FrameQueue | None]:
        """One window of blocks a step apart: all one step down, the first one shown to the cache.

        Source: Rolling Forcing. Also before the first block is done its estimate is shown, which is overwritten.
        """
        config, steps, stepper = self.config, self._steps, self.stepper.in_part(BLOCKS)
        queue = state.queue
        end = state.num_done if queue is None else queue.first + len(queue)
        if self.begin.num_latents is None or end < self.begin.num_latents:
            pushed = stepper.noise_queue(end, config.block, steps.count, "push")
            queue = pushed if queue is None else queue.append(pushed)
        assert queue is not None
        levels = queue.level_F.tolist()
        places, slots = self._rolling_places(memory.table, queue.indices)
        timesteps, sigmas = ([table[level] for level in levels] for table in (steps.timesteps, steps.sigmas))
        call = self._call(memory, queue.first, timesteps, sigmas, places, slots)
        passed = stepper.pass_cached(queue, call, [steps.sigmas[level - 1] for level in levels])
        first, rest = passed[: config.block], passed[config.block :]
        self._keep_rolled(memory, first)
        if int(first.level_F[0]) > 0:
            return CausalState(state.num_done, passed), None
        return CausalState(first.first + len(first), rest.compact() if len(rest) else None), first.compact()

    def _keep_rolled(self, memory: Memory, first: FrameQueue) -> None:
        """Shows a window's first block; until it is clean, what is kept of it is overwritten."""
        config, table = self.config, memory.table
        is_clean = int(first.level_F[0]) == 0
        if not is_clean:
            return self.stepper.in_part(CLEAN).show_cached(first, self._unfinished(memory, first))
        self._make_room(memory, len(first))
        slots = self._free_slots(memory, len(first))
        seen = table.slots[max(0, len(table) + len(first) - config.attention_latents) :]
        latents = table.latents[len(table) - len(seen) :]
        clean_call = self._clean_call(memory, first.first, absolute(latents, first.indices), slots, tuple(seen))
        self.stepper.in_part(CLEAN).show_cached(first, clean_call)
        table.put(slots, first.first)
        self._remember(memory, first)

    def _unfinished(self, memory: Memory, first: FrameQueue) -> CachedCall | None:
        """The call of a block that is not clean yet: seen by itself, kept nowhere."""
        return self._clean_call(memory, first.first, absolute((), first.indices), (-1,) * len(first), ())

    def _rolling_places(self, table: SlotTable, own: range) -> tuple[Places, tuple[int, ...]]:
        """What a window sees: the anchor right before the last few latents before it, and those."""
        config, num_anchor = self.config, self.config.sink_latents
        if not own.start:
            return absolute((), own), ()
        room = config.attention_latents - len(own) - num_anchor
        num_working = min(len(table) - num_anchor, room)
        start = len(table) - num_working
        slots = (*table.slots[:num_anchor], *table.slots[start:])
        return anchored(num_anchor, table.latents[start:], own), slots

    def _is_at_end(self, state: CausalState) -> bool:
        """Whether the last block is in the making."""
        assert self.begin.num_latents is not None
        end = state.num_done if state.queue is None else state.queue.first + len(state.queue)
        return end >= self.begin.num_latents

    # ---- calls ----

    def _places(self, table: SlotTable, own: range, is_cut: bool) -> Places:
        if is_cut:
            return cut(table.slots, own, self.config.cut_position)
        return relative(table.slots, own) if self.config.positions == "relative" else absolute(table.latents, own)

    def _call(
        self,
        memory: Memory,
        first: int,
        timesteps: Sequence[float],
        sigmas: Sequence[float],
        places: Places,
        slots: tuple[int, ...] | None = None,
        writes: tuple[int, ...] | None = None,
    ) -> CachedCall | None:
        """A call from latent `first` on that sees all cached latents, or those in `slots`; None of a plan."""
        if self.denoiser is None:
            return None
        return CachedCall(
            cache=memory.cache,
            timesteps=tuple(timesteps),
            sigmas=tuple(sigmas),
            positions=places.own,
            slots=tuple(memory.table.slots) if slots is None else slots,
            slot_positions=places.cached,
            writes=(-1,) * len(places.own) if writes is None else writes,
            first=first,
        )

    def _clean_call(
        self,
        memory: Memory,
        first: int,
        places: Places,
        writes: tuple[int, ...],
        slots: tuple[int, ...] | None = None,
    ) -> CachedCall | None:
        """A call over clean latents, which are kept."""
        count = len(places.own)
        return self._call(
            memory, first, [float(self.config.context_noise)] * count, [0.0] * count, places, slots, writes
        )

    # ---- what is remembered ----

    def _memory_at(self, num_done: int) -> Memory:
        """The cache as it is behind so many latents."""
        if self.denoiser is None:
            return Memory(None, SlotTable(0), num_done)
        if num_done == 0 and (self.memory is None or self.memory.num_done):
            self.memory = self._empty()
        if self.memory is None or self.memory.num_done != num_done:
            raise CheckpointError(
                f"the cache behind {num_done} latents is not there", "hand the finished latents to Sampler.restore"
            )
        return self.memory

    def _make_room(self, memory: Memory, count: int) -> Compression | None:
        """Before so many latents are made."""
        if memory.cache is None:
            return None
        assert self.policy is not None
        return self.policy.make_room(memory.table, count, memory.cache.blend)

    def _free_slots(self, memory: Memory, count: int) -> tuple[int, ...]:
        return (-1,) * count if memory.cache is None else memory.table.free(count)

    def _empty(self) -> Memory:
        config, shape = self.config, getattr(self.stepper.noise, "latent_shape", None)
        assert self.denoiser is not None, "a plan has no cache"
        assert shape is not None, "a noise source says what shape a latent has"
        cache = self.denoiser.open_cache(config.cache_latents, shape[1:], time_frequencies=frequencies_of(config))
        return Memory(cache, SlotTable(config.cache_latents))

    def _remember(self, memory: Memory, clean: FrameQueue) -> None:
        memory.num_done = clean.first + len(clean)
        if memory.cache is not None and "recache" in (self.config.on_switch, *self.actions.values()):
            tail = clean.x_FCHW if memory.tail is None else torch.cat([memory.tail, clean.x_FCHW])
            memory.tail = tail[-self.config.cache_latents :].clone()

    def _block(self, first: int) -> range:
        return self.config.block_at(first)

    def _steps_of(self, first: int) -> Steps:
        return self._steps if first else self._first_steps

    def _start_before(self, first: int) -> int:
        """Where the block before that one begins."""
        return max(0, first - self.config.block)


def policy_of(config: CausalSettings) -> Policy:
    """Who leaves the cache, as the settings say."""
    if config.eviction == "ema":
        return EmaSink(config.cache_latents, config.sink_latents, config.ema_alpha)
    if config.eviction == "compress":
        return Compressed(config.cache_latents, config.sink_latents, config.compressed_latents, config.recent_latents)
    return Window(config.cache_latents, config.sink_latents)
