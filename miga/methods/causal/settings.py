"""Settings of causal sampling, and its presets, each named after the system whose weights or idea it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from miga.config import SamplerConfig
from miga.methods.base import Profile

Eviction = Literal["window", "ema", "compress"]
PositionKind = Literal["absolute", "relative"]
SwitchAction = Literal["text", "recache", "flush", "flush-cut"]

SINK_COLLAPSE: Final = 132
"""Latents from which on a sink at its absolute position may take over the picture (LoL names 132 and 201)."""


@dataclass(frozen=True, kw_only=True)
class CausalSettings(SamplerConfig):
    """Of blocks of latents that are made one after the other, each from noise to clean, before a cache of clean ones.

    Attributes:
        block: latents that are made together.
        first_block: latents of the first block; 0: as many as of the others.
        first_timesteps: time steps of the first block, before the shift; empty: those of the others.
        context_noise: the time step that the network is told of a clean block when its keys and values are kept.
        cache_latents: latents in the cache at most, those being made included.
        sink_latents: of them, the video's first ones that never leave.
        eviction: what becomes of the oldest ones behind the sink: "window" forgets them, "ema" blends them into the
            sink, "compress" keeps the tokens most looked at of a full cache.
        ema_alpha: share of the sink that stays in a blend.
        compressed_latents: latents that a full cache is compressed to.
        recent_latents: latents at the cache's end that are not compressed, those being made included.
        positions: "absolute": of every latent its index in the video; "relative": its place in the cache.
        cut_position: where a block stands that begins a cut scene, with relative positions.
        on_switch: what happens when the prompt changes: "text" alone; "recache": keys and values of the last latents
            are computed anew under the new prompt; "flush": all but the first and the last two latents leave;
            "flush-cut": also the block stands at `cut_position`.
        recache_sink: whether a re-cache computes the sink anew too, from the last latents.
        rolling: whether so many blocks as there are steps are denoised together, one step apart.
        attention_latents: of rolling, latents that a call sees at most, its own included.
        rope_jitter: how far bases of RoPE differ from head to head; 0: not at all.
        rope_scale: by how much slow frequencies of time are slowed; 1: not at all.
        rope_low, rope_high: turns in a clip of 21 latents, in hundredths: frequencies of fewer than `rope_low` are
            slowed whole, those of more than `rope_high` are kept.
        antiphase: correlation of a latent's noise with that of the one before it, -1 to 1; 0: independent.
        antiphase_restart: latents after which that chain begins anew; 0: never.
    """

    block: int = 3
    first_block: int = 0
    first_timesteps: tuple[int, ...] = ()
    context_noise: float = 0.0
    cache_latents: int = 21
    sink_latents: int = 0
    eviction: Eviction = "window"
    ema_alpha: float = 0.999
    compressed_latents: int = 16
    recent_latents: int = 4
    positions: PositionKind = "absolute"
    cut_position: int = 45
    on_switch: SwitchAction = "text"
    recache_sink: bool = False
    rolling: bool = False
    attention_latents: int = 21
    rope_jitter: float = 0.0
    rope_scale: float = 1.0
    rope_low: int = 30
    rope_high: int = 300
    antiphase: float = 0.0
    antiphase_restart: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "first_timesteps", tuple(self.first_timesteps))
        super().__post_init__()

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        self.require(
            self.guidance_scale == 1.0, "guidance_scale",
            "1: causal weights are distilled to need none, and a second cache for the negative prompt is not kept",
        )  # fmt: skip
        self.require(self.solver == "renoise", "solver", "'renoise': a block is predicted clean and noised afresh")
        self.require(bool(self.timesteps), "timesteps", "the few time steps that the weights were distilled for")
        falls = all(high > low for high, low in zip(self.first_timesteps, self.first_timesteps[1:], strict=False))
        held = falls and all(1 <= each <= 1000 for each in self.first_timesteps)
        self.require(held, "first_timesteps", "falling whole numbers from 1000 to 1")
        self.require(0.0 <= self.context_noise <= 1000.0, "context_noise", "0 to 1000, a time step")
        self.require(self.block >= 1, "block", "at least 1")
        self.require(self.first_block >= 0, "first_block", "0 or more")
        self.require(self.sink_latents >= 0, "sink_latents", "0 or more")
        least = self.sink_latents + max(self.block, self.first_block)
        why = "a window must hold its sink and the block that is made"
        self.require(self.cache_latents >= least, "cache_latents", f"at least {least}: {why}")
        self._check_eviction()
        self._check_switch()
        self._check_rolling()
        self._check_extras()

    def _check_eviction(self) -> None:
        if self.eviction == "ema":
            why = "what leaves is blended into the sink slot by slot"
            self.require(self.sink_latents == self.block, "sink_latents", f"block = {self.block}: {why}")
            self.require(self.first_block in (0, self.block), "first_block", f"0: {why}")
            self.require(0.0 <= self.ema_alpha <= 1.0, "ema_alpha", "0 to 1")
        if self.eviction == "compress":
            top = self.compressed_latents - self.recent_latents - self.sink_latents
            self.require(self.first_block in (0, self.block), "first_block", "0 with eviction 'compress'")
            held = self.block <= self.recent_latents <= 2 * self.block
            self.require(held, "recent_latents", f"{self.block} to {2 * self.block}: one or two blocks")
            at_least = self.sink_latents + self.recent_latents + 1
            fits = top >= 1 and self.compressed_latents <= self.cache_latents
            self.require(fits, "compressed_latents", f"{at_least} to cache_latents = {self.cache_latents}")

    def _check_switch(self) -> None:
        self.require(self.cut_position >= 0, "cut_position", "0 or more")
        is_cut = self.on_switch == "flush-cut"
        self.require(
            not is_cut or self.positions == "relative",
            "on_switch",
            "another than 'flush-cut': it needs relative positions",
        )
        plain = self.on_switch in ("text", "flush", "flush-cut") or self.eviction == "window"
        self.require(plain, "on_switch", f"another than {self.on_switch!r} with eviction {self.eviction!r}")

    def _check_rolling(self) -> None:
        if not self.rolling:
            return
        self.require(self.first_block in (0, self.block), "first_block", "0 where blocks roll")
        self.require(not self.first_timesteps, "first_timesteps", "empty where blocks roll: all have the same steps")
        self.require(self.eviction == "window", "eviction", "'window' where blocks roll")
        self.require(self.positions == "absolute", "positions", "'absolute' where blocks roll")
        self.require(self.on_switch == "text", "on_switch", "'text' where blocks roll")
        self.require(
            self.sink_latents == self.block, "sink_latents", f"block = {self.block}: the first block is the anchor"
        )
        least = self.num_steps * self.block + self.sink_latents
        self.require(
            self.attention_latents >= least, "attention_latents", f"at least {least}: the window and its anchor"
        )

    def _check_extras(self) -> None:
        self.require(0.0 <= self.rope_jitter < 1.0, "rope_jitter", "0 or more, below 1")
        self.require(1.0 <= self.rope_scale <= 1000.0, "rope_scale", "1 or more, at most 1000")
        self.require(0 <= self.rope_low < self.rope_high, "rope_low", f"0 or more, below rope_high = {self.rope_high}")
        both = self.rope_jitter and self.rope_scale != 1.0
        self.require(not both, "rope_scale", "1 with rope_jitter: frequencies are changed in one way")
        self.require(-1.0 < self.antiphase < 1.0, "antiphase", "between -1 and 1")
        self.require(self.antiphase_restart >= 0, "antiphase_restart", "0 or more")

    # ---- what follows ----

    @property
    def queue_length(self) -> int:
        """Latents in the making at once."""
        return self.block * (self.num_steps if self.rolling else 1)

    @property
    def num_cached(self) -> int:
        """See `SamplerConfig.num_cached`."""
        return self.cache_latents

    def block_at(self, first: int) -> range:
        """The latents of the block that begins at one."""
        return range(first, first + (self.first_block or self.block if first == 0 else self.block))

    def lengths_near(self, num_latents: int) -> tuple[int, ...]:
        """See `SamplerConfig.lengths_near`: a video is whole blocks."""
        head = self.first_block or self.block
        rest = (num_latents - head) % self.block
        if num_latents < head:
            return (head,)
        return (num_latents - rest, num_latents - rest + self.block) if rest else ()

    def concern(self, num_latents: int | None) -> str:
        """See `SamplerConfig.concern`: a sink at its absolute position may take over the picture."""
        has_far_sink = self.sink_latents and self.positions == "absolute" and not (self.rolling or self.rope_jitter)
        if not has_far_sink or (num_latents is not None and num_latents <= SINK_COLLAPSE):
            return ""
        return (
            f"profile {self.profile!r} keeps its sink at absolute positions: from latent {SINK_COLLAPSE} on videos are "
            'known to fall back to their first latents (sink collapse); take positions = "relative" '
            "(profile 'longlive-infinity'), or rope_jitter"
        )

    def work(self, num_latents: int) -> tuple[float, float]:
        """See `SamplerConfig.work`."""
        shown, seen = self._rolling_work(num_latents) if self.rolling else self._block_work(num_latents)
        return float(shown), float(seen)

    def _block_work(self, num_latents: int) -> tuple[int, int]:
        shown = seen = first = cached = 0
        while first < num_latents:
            block = self.block_at(first)
            if cached + len(block) > self.cache_latents:
                cached = (self.compressed_latents if self.eviction == "compress" else self.cache_latents) - len(block)
            steps = self.first_timesteps if not first and self.first_timesteps else self.timesteps
            shown += (len(steps) + 1) * len(block)
            seen += (len(steps) + 1) * len(block) * (cached + len(block))
            first, cached = block.stop, cached + len(block)
        return shown, seen

    def _rolling_work(self, num_latents: int) -> tuple[int, int]:
        shown = seen = 0
        num_blocks, most = num_latents // self.block, self.num_steps
        for window in range(num_blocks + most - 1):
            first = max(0, window - most + 1)
            own = (min(window, num_blocks - 1) - first + 1) * self.block
            done = first * self.block
            others = min(done, self.cache_latents, self.attention_latents - own)
            clean = min(done, self.attention_latents - self.block) if window >= most - 1 else 0
            shown += own + self.block
            seen += own * (own + others) + self.block * (self.block + clean)
        return shown, seen

    def num_switch_calls(self, num_latents: int, num_prompts: int, starts: tuple[int, ...] = ()) -> int:
        """See `SamplerConfig.num_switch_calls`: a re-cache is one."""
        if self.on_switch != "recache":
            return 0
        latents = starts[1:] or [-(-number * num_latents // num_prompts) for number in range(1, num_prompts)]
        return len({first for latent in latents if (first := self.first_under(latent)) < num_latents})

    @property
    def why_no_picture(self) -> str:
        """See `SamplerConfig.why_no_picture`: a picture is a latent, and stands where a block does."""
        if self.rolling:
            return f"profile {self.profile!r} rolls blocks over the video, and begins with noise"
        if (self.first_block or self.block) == 1:
            return ""
        return (
            f"profile {self.profile!r} begins with a block of {self.first_block or self.block} latents, and a picture "
            f"is one: set first_block = 1 in [sampler] (videos are 1 + {self.block}k latents then)"
        )

    @property
    def num_calls_for_picture(self) -> int:
        """See `SamplerConfig.num_calls_for_picture`: its latent is shown clean, and that is all."""
        return len(self.first_timesteps or self.timesteps)

    def first_under(self, latent: int) -> int:
        """See `SamplerConfig.first_under`: a block is made under one prompt, that of its first latent."""
        head = self.first_block or self.block
        return 0 if latent <= 0 else head + max(0, -(-(latent - head) // self.block)) * self.block


_WAN_STEPS: Final = (1000, 750, 500, 250)
_SHARED: Final[dict[str, Any]] = {
    "guidance_scale": 1.0, "solver": "renoise", "eta": 0.0, "flow_shift": 5.0, "timesteps": _WAN_STEPS, "num_steps": 4,
}  # fmt: skip


def published(**settings: Any) -> dict[str, Any]:
    """What all presets share, and those."""
    return {**_SHARED, **settings}


def _deep(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sink, kept and window latents for a model of another window than Wan's 21, in proportion."""
    window, block = values["window"], values["block"]
    sink, top, recent = round(window * 10 / 21), max(1, round(window * 2 / 21)), block + 1
    return {
        "cache_latents": window, "sink_latents": sink, "recent_latents": recent,
        "compressed_latents": sink + top + recent,
    }  # fmt: skip


def _whole_window(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"cache_latents": values["window"]}


_LONGLIVE: Final = {"cache_latents": 12, "sink_latents": 3, "on_switch": "recache"}

PROFILES: Final[dict[str, Profile]] = {
    "self-forcing": Profile(
        "Self-Forcing: blocks before a cache of one clip, absolute positions; past one clip the oldest leave",
        published(),
        derive=_whole_window,
    ),
    "longlive": Profile(
        "LongLive: window of 12 latents with a sink of 3, absolute positions, re-cache when the prompt changes",
        published(**_LONGLIVE),
    ),
    "longlive-infinity": Profile(
        "LongLive with relative positions: no last latent, and the sink stays as near as it was",
        published(**_LONGLIVE, positions="relative"),
    ),
    "infinity-rope": Profile(
        "Infinity-RoPE: window of 6 with a sink of 1, relative positions, KV flush when the prompt changes",
        published(cache_latents=6, sink_latents=1, positions="relative", on_switch="flush"),
    ),
    "reward-forcing": Profile(
        "Reward Forcing: window of 9, what leaves it is blended into the sink of 3 (EMA sink)",
        published(cache_latents=9, sink_latents=3, positions="relative", eviction="ema"),
    ),
    "rolling-forcing": Profile(
        "Rolling Forcing: five blocks one step apart roll over the video, its first block their anchor",
        published(timesteps=(1000, 800, 600, 400, 200), num_steps=5, rolling=True, cache_latents=24, sink_latents=3),
    ),
    "causal-forcing": Profile(
        "Causal Forcing, two steps: the first block takes four, all others two",
        published(timesteps=(1000, 500), num_steps=2, first_timesteps=_WAN_STEPS),
        derive=_whole_window,
    ),
    "deep-forcing": Profile(
        "after Deep Forcing, over Self-Forcing's weights: a deep sink; the tokens most looked at stay (our reading)",
        published(positions="relative", eviction="compress"),
        derive=_deep,
    ),
    "lol": Profile(
        "after LoL, over LongLive's or Self-Forcing's weights: every head has a RoPE base of its own (our reading)",
        published(cache_latents=12, sink_latents=3, rope_jitter=0.8),
    ),
    "flex-like": Profile(
        "after FLEX's abstract: slow frequencies slowed, antiphase noise, a sink (our reconstruction, no parity)",
        published(cache_latents=12, sink_latents=3, rope_scale=4.0, antiphase=-0.7, antiphase_restart=3),
    ),
}
