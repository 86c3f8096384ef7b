"""Where long-range guidance comes from: by the rule written out, alone and with helpers, stopped and gone on with."""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miga.anchors import AnchorKeeper, parse_anchors
from miga.backbones.base import BackboneSpec
from miga.checkpoint import load_state, save_state
from miga.config import SamplerConfig
from miga.consistency import still_score
from miga.cost import count_calls, most_latents_held
from miga.denoise_pass import run_call
from miga.errors import ConfigError
from miga.generate import Sampler
from miga.guidance import Sources, guidance_indices, parse_sources, source_indices, told_positions
from miga.noise import NamedNoise
from miga.plan import plan_video
from miga.profiles import read_config, resolve_config
from miga.prompts import PromptTrack
from miga.queue import FrameQueue, map_queues
from miga.virtual_time import VirtualExecutor
from miga.wavefront import materialised
from miga.windows import plan_pass
from tests.miga.closed_form import SHAPE, MixingDenoiser, make_config, make_sampler, profile_config, sample
from tests.miga.reference_long_range import RememberingReference

MEANS = [0.5, -1.0, 0.2]


class PlacedDenoiser(MixingDenoiser):
    """What it predicts depends on all that is shown: latents, levels, order, and how far apart they are said to be."""

    takes_positions = True

    def __call__(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[float],
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        clean = super().__call__(x_BFCHW, level_BF, conditions)
        if position_BF is None:
            position_BF = torch.arange(x_BFCHW.shape[1])[None]
        far_BFF = (position_BF[:, :, None] - position_BF[:, None]).abs().float()
        near_BFF = torch.exp(-far_BFF / 5) / x_BFCHW.shape[1]
        return clean + 0.3 * (near_BFF @ x_BFCHW.flatten(2)).view(x_BFCHW.shape)


WIDE = {"num_guidance_latents": 3, "window": 8, "stride": 3, "zigzag_width": 2, "num_steps": 9, "handoff_level": 3}
REFLECTING = {"self_reflection": True, "reflection_threshold": 0.0, "judged_group": 3}
CASES: list[tuple[dict[str, Any], int]] = [
    ({"guidance_from": "head"}, 9),
    ({"guidance_from": "spread"}, 9),
    ({"guidance_from": "head:1,nearest:1"}, 9),
    (WIDE | {"guidance_from": "head:1,nearest:2"}, 17),
    (WIDE | {"guidance_from": "spread:1,head:1,nearest:1", "drain": True}, 17),
    (WIDE | {"guidance_from": "head:1,nearest:2", "guidance_gap": 100}, 17),
    (WIDE | {"guidance_from": "head:2,nearest:1", "guidance_gap": 4, "position_0_context": True}, 17),
    (WIDE | {"guidance_from": "anchors"}, 19),
    (WIDE | {"guidance_from": "anchors:1,nearest:2", "anchor_level": "window", "drain": True}, 19),
    (WIDE | {"guidance_from": "anchors:2,head:1", "guidance_anchors": "first", "guidance_gap": 50}, 40),
    (WIDE | {"guidance_from": "anchors:2,nearest:1", "guidance_anchors": "every:2", "max_anchors": 3}, 40),
    (WIDE | {"guidance_from": "anchors", "guidance_anchors": "every:3", "anchor_level": "window"}, 40),
    (WIDE | {"guidance_from": "anchors:2,nearest:1", "guidance_anchors": "prompt"}, 40),
    (WIDE | {"guidance_from": "anchors:2,nearest:1", "guidance_across_prompts": False}, 19),
    (WIDE | {"guidance_from": "anchors:1,head:1,spread:1", "guidance_across_prompts": False, "drain": True,
             "guidance_anchors": "every:2"}, 40),
    (WIDE | REFLECTING | {"guidance_from": "head:1,nearest:2"}, 17),
    (WIDE | REFLECTING | {"guidance_from": "anchors:1,head:1,nearest:1", "anchor_level": "window"}, 19),
    (WIDE | REFLECTING | {"guidance_from": "anchors:1,head:1,spread:1", "guidance_across_prompts": False,
                          "guidance_gap": 3}, 19),
]  # fmt: skip


def new_sampler(config: SamplerConfig, num_latents: int | None, executor: Any = None) -> Sampler:
    """As another process would make it."""
    prompts = PromptTrack(MEANS, 7)
    return Sampler(PlacedDenoiser(config), config, prompts, NamedNoise(3, SHAPE), num_latents, executor=executor)


def case_id(case: tuple[dict[str, Any], int]) -> str:
    return "-".join(str(value) for name, value in case[0].items() if name not in WIDE)


@pytest.mark.parametrize(("changes", "num_latents"), CASES, ids=map(case_id, CASES))
@pytest.mark.sampled(15)
def test_equals_the_rule_written_out(changes: dict[str, Any], num_latents: int) -> None:
    """Every latent depends on all that its windows were shown: one wrong latent, level or position shows."""
    config = make_config(**changes)
    sampler = new_sampler(config, num_latents)
    steps = list(sampler.run())
    found, trace = torch.cat([finished for _, finished in steps if finished is not None]), steps[-1][0].trace
    reference = RememberingReference(PlacedDenoiser(config), config, NamedNoise(3, SHAPE), MEANS, 7, num_latents)
    expected = reference.paper()
    assert float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()))
    assert (sum(trace.searched), sum(trace.corrected)) == (reference.num_searches, reference.num_corrections)
    assert bool(reference.num_searches) == config.self_reflection
    assert [each.first for each in steps[-1][0].method.anchors] == [each.index for each in reference.anchors]
    published = make_config(**{**changes, "guidance_from": "nearest", "guidance_gap": 1})
    assert not torch.allclose(found, sample(new_sampler(published, num_latents)), atol=1e-3)
    if not config.self_reflection:
        assert sampler.num_calls == count_calls(config, num_latents).total == count_calls(published, num_latents).total


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("changes", "num_latents"), CASES[3::3], ids=map(case_id, CASES[3::3]))
def test_helpers_change_no_bit(changes: dict[str, Any], num_latents: int) -> None:
    """Calls take times that come in no order; a head latent, or an anchor, is waited for."""
    config = make_config(**changes)
    alone = list(new_sampler(config, num_latents).run())
    expected = torch.cat([finished for _, finished in alone if finished is not None])
    for num_gpus in (1, 4):
        chance, denoiser = random.Random(num_gpus), PlacedDenoiser(config)
        executor = VirtualExecutor(
            num_gpus, lambda call, denoiser=denoiser: run_call(denoiser, call), lambda call, c=chance: c.random()  # type: ignore[misc]
        )  # fmt: skip
        sampler = new_sampler(config, num_latents, executor)
        state, queues = sampler.start(), []
        while not sampler.is_done(state):
            state, queue = sampler.advance_queue(state)
            queues += [] if queue is None else [queue]
        assert torch.equal(torch.cat([queue.x_FCHW for queue in queues]), expected)
        anchors, wanted = materialised(state).method.anchors, alone[-1][0].method.anchors
        assert [each.first for each in anchors] == [each.first for each in wanted]
        assert all(torch.equal(one.x_FCHW, other.x_FCHW) for one, other in zip(anchors, wanted, strict=True))


@pytest.mark.parametrize(("changes", "num_latents"), CASES[1::4], ids=map(case_id, CASES[1::4]))
@pytest.mark.sampled(4)
def test_gone_on_with_from_every_checkpoint(
    changes: dict[str, Any], num_latents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miga.checkpoint.os.fsync", lambda _: None)
    config, file = make_config(**changes), tmp_path / "state"
    straight = list(new_sampler(config, num_latents).run())
    state = new_sampler(config, num_latents).start()
    for expected_state, expected in straight:
        save_state(state, file, config=config, num_latents=num_latents, seed=3)
        state = load_state(file, config=config, num_latents=num_latents, seed=3)
        state, finished = new_sampler(config, num_latents).advance(state)
        assert (finished is None) == (expected is None)
        assert finished is None or expected is None or torch.equal(finished, expected)
        assert state.trace == expected_state.trace


RELEASED = [
    {"guidance_from": "head:1,nearest:1"},
    {"guidance_from": "anchors:1,nearest:1", "guidance_anchors": "first", "anchor_level": "window"},
    {"guidance_from": "anchors", "released_branch": "videocrafter2", "solver": "ddim", "anchor_level": "window"},
]


@pytest.mark.parametrize("changes", RELEASED, ids=lambda changes: changes["guidance_from"])
@pytest.mark.sampled(4)
def test_the_authors_program_takes_it_too(changes: dict[str, Any]) -> None:
    """As many calls, another video; with helpers and gone on with the same."""
    config = profile_config("released", **changes)
    num_latents = 60 if config.guidance_anchors == "first" else 25
    straight = list(new_sampler(config, num_latents).run())
    expected = torch.cat([finished for _, finished in straight if finished is not None])
    published = new_sampler(profile_config("released", **changes | {"guidance_from": "nearest"}), num_latents)
    assert not torch.allclose(sample(published), expected, atol=1e-4)
    sampler = new_sampler(config, num_latents)
    state, parts = sampler.start(), []
    while not sampler.is_done(state):
        sampler = new_sampler(config, num_latents)
        state, finished = sampler.advance(pickle.loads(pickle.dumps(state)))
        parts += [] if finished is None else [finished]
    assert torch.equal(torch.cat(parts), expected)
    denoiser = PlacedDenoiser(config)
    executor = VirtualExecutor(3, lambda call: run_call(denoiser, call), lambda call: 1.0)
    lazy = [finished for _, finished in new_sampler(config, num_latents, executor).run() if finished is not None]
    assert torch.equal(torch.cat(lazy), expected)


def test_windows_in_batches_are_told_their_positions() -> None:
    changes = WIDE | {"guidance_from": "head:1,nearest:2", "guidance_gap": 100}
    one, four = (make_config(**changes, windows_per_batch=count) for count in (1, 4))
    assert torch.allclose(sample(new_sampler(one, 15)), sample(new_sampler(four, 15)), atol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["first", "every:2", "prompt"])
def test_a_video_without_end_holds_no_more_than_is_said(kind: str) -> None:
    config = make_config(**WIDE, guidance_from="anchors:2,nearest", guidance_anchors=kind, max_anchors=4)
    sampler = make_sampler(MixingDenoiser(config), config, None, prompts=PromptTrack(MEANS, 40))
    state, most, held = sampler.start(), most_latents_held(config), 0

    def look(queue: FrameQueue) -> FrameQueue:
        nonlocal held
        held += len(queue)
        assert queue.x_FCHW.untyped_storage().nbytes() <= queue.x_FCHW.nbytes or len(queue) == 0, "a view holds more"
        return queue

    for _ in range(120):
        state, _ = sampler.advance(state)
        held = 0
        map_queues(state.method, look) if state.method else None
        assert held <= most
    assert 2 <= len(state.method.anchors) <= config.most_anchors


@pytest.mark.parametrize("kind", ["base", "first", "every:2"])
def test_the_plan_is_what_is_made(kind: str) -> None:
    """Which latents every window shows, anchors too; lengths that are counted by multiplying are counted right."""
    config = make_config(**WIDE, guidance_from="anchors:1,head:1,nearest:1", guidance_anchors=kind, max_anchors=4)
    made: list[tuple[int, ...]] = []

    class Noting(PlacedDenoiser):
        def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, *others: Any) -> torch.Tensor:
            made.extend(tuple(levels) for levels in level_BF.tolist())
            return super().__call__(x_BFCHW, level_BF, *others)

    sample(make_sampler(Noting(config), config, 40))
    planned = [
        (*(0 for _ in window.anchors), *(each.levels[position] for position in window.positions))
        for advance in plan_video(config, 40)
        for each in advance.passes
        for window in each.windows
    ]
    assert planned == made
    for num_latents in (40, 41, 173):
        total = sum(len(each.windows) for advance in plan_video(config, num_latents) for each in advance.passes)
        assert count_calls(config, num_latents).total == total


# ---- the rule ----


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 120), st.tuples(*[st.integers(0, 4)] * 3), st.integers(1, 8), st.integers(0, 60))
def test_as_many_as_asked_for_distinct_and_earlier(
    start: int, counts: tuple[int, int, int], width: int, own: int
) -> None:
    sources = Sources(0, *counts)
    chosen = source_indices(start, sources, width, min(own, start))
    if start < sum(counts):
        assert chosen == ()
        return
    assert len(chosen) == sum(counts)
    assert list(chosen) == sorted(set(chosen))
    assert not chosen or (chosen[0] >= 0 and chosen[-1] < start)
    if counts[0] == counts[1] == 0:
        assert chosen == guidance_indices(start, counts[2], width), "the published rule"


@pytest.mark.parametrize(
    ("start", "sources", "width", "own", "expected"),
    [
        (40, Sources(head=3), 4, 0, (2, 6, 10)),  # the middle of the first three groups
        (40, Sources(head=1, nearest=2), 4, 0, (2, 34, 38)),
        (40, Sources(spread=2), 4, 0, (10, 30)),
        (7, Sources(head=3), 4, 0, (1, 3, 5)),  # less room than three groups
        (3, Sources(head=1, nearest=2), 4, 0, (0, 1, 2)),  # 1 is the head's, so that the second nearest is 0
        (40, Sources(head=2, nearest=1), 4, 36, (37, 38, 39)),  # of its own prompt four are there: 37 and 39, then 38
        (40, Sources(head=2), 4, 40, (34, 38)),  # none are: the nearest
        (2, Sources(head=3), 4, 0, ()),
    ],
)
def test_written_out(start: int, sources: Sources, width: int, own: int, expected: tuple[int, ...]) -> None:
    assert source_indices(start, sources, width, own) == expected


def test_how_many_windows_there_are_and_what_they_keep_does_not_depend_on_it() -> None:
    for num_latents, offset in itertools.product(range(1, 60), (0, 2)):
        if num_latents - offset < 5:
            continue
        plans = [
            plan_pass(num_latents, 8, 3, 3, 2, offset, sources=sources)
            for sources in (None, Sources(head=3), Sources(anchors=1, spread=2), Sources(anchors=3))
        ]
        assert len({tuple((each.start, each.keep_start, each.keep_stop) for each in plan) for plan in plans}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nearest", Sources(nearest=3)),
        ("head:1,nearest:2", Sources(head=1, nearest=2)),
        ("head:1, nearest", Sources(head=1, nearest=2)),
        ("anchors:1,head:0,spread", Sources(anchors=1, spread=2)),
    ],
)
def test_the_text_form(text: str, expected: Sources) -> None:
    assert parse_sources(text, 3) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_from": "tail"}, "'tail' is none of anchors, head, spread, nearest"),
        ({"guidance_from": ""}, "'' is none of"),
        ({"guidance_from": "head:1,head:1"}, "'head' stands there twice"),
        ({"guidance_from": "head:x,nearest"}, "'x' is no number"),
        ({"guidance_from": "head:-1,nearest"}, "'-1' is no number"),
        ({"guidance_from": "head:1"}, "these are 1 latents, and num_guidance_latents = 2"),
        ({"guidance_from": "head:3,nearest"}, "these are 3 latents"),
        ({"guidance_from": "head,nearest"}, "head and nearest stand without a number"),
        ({"guidance_anchors": "last"}, "'last' is none of base, first, prompt, every:N"),
        ({"guidance_anchors": "every"}, "no number of latents"),
        ({"guidance_anchors": "every:0"}, "no number of latents"),
        ({"guidance_anchors": "base:2"}, "'base' takes no number"),
        ({"max_anchors": 1}, "max_anchors = 1"),
        ({"guidance_gap": 0}, "guidance_gap = 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(**changes)
    assert message in caught.value.message
    assert next(iter(changes)) in caught.value.message
    assert caught.value.hint


def test_a_model_without_positions_is_not_told_any() -> None:
    spec = BackboneSpec("videocrafter2", "VideoCrafter2", "0", 16, 4, 40, 64, 320, 512, 10)
    with pytest.raises(ConfigError, match=r"guidance_gap = 9 cannot be: the network of 'VideoCrafter2' is told no"):
        resolve_config("swift", spec, {"guidance_gap": 9})
    config = make_config(guidance_gap=9)
    with pytest.raises(ConfigError, match="guidance_gap = 9 cannot be: the network is told no positions"):
        make_sampler(MixingDenoiser(config), config, 9)
    assert resolve_config("swift", spec, {"guidance_from": "head"}).guidance_from == "head"


def test_at_its_defaults_nothing_more_is_noted() -> None:
    """So the names of videos stay, and records of versions before are read as they stand."""
    spec = BackboneSpec("wan", "test", "0", 21, 16, 60, 104, 480, 832, 16, takes_positions=True)
    for profile in ("swift", "paper", "released"):
        config = resolve_config(profile, spec)
        assert config.to_dict().keys() - config.noted().keys() == config.added_later
        assert read_config(config.noted(), "run.json") == config == read_config(config.to_dict(), "run.json")
        changed = resolve_config(profile, spec, {"guidance_from": "head", "guidance_gap": 30})
        followed = {"guidance_from", "guidance_gap", "guidance_across_prompts"}
        assert changed.noted().keys() - config.noted().keys() == followed
        assert read_config(changed.noted(), "run.json") == changed


@pytest.mark.parametrize("source", ["head", "spread", "anchors", "anchors:1,nearest"])
@pytest.mark.parametrize("profile", ["swift", "paper", "released"])
def test_what_is_remembered_is_of_the_windows_own_prompt_unless_said(profile: str, source: str) -> None:
    """Measured in docs/ablation.md: else a change of prompt takes several times as long."""
    spec = BackboneSpec("wan", "test", "0", 21, 16, 60, 104, 480, 832, 16, takes_positions=True)
    changes: dict[str, Any] = {"guidance_from": source}
    assert not resolve_config(profile, spec, changes).guidance_across_prompts
    said = resolve_config(profile, spec, changes | {"guidance_across_prompts": True})
    assert said.guidance_across_prompts
    assert resolve_config(profile, spec).guidance_across_prompts  # where it changes nothing: videos keep their names


def test_a_record_of_before_is_read_as_it_was_meant() -> None:
    spec = BackboneSpec("wan", "test", "0", 21, 16, 60, 104, 480, 832, 16, takes_positions=True)
    noted = resolve_config("swift", spec, {"guidance_from": "head"}).noted()
    assert noted.pop("guidance_across_prompts") is False
    before = read_config(noted, "run.json")
    assert before.guidance_across_prompts
    assert before.noted() == noted


# ---- anchors ----


def clean_latents(first: int, count: int) -> FrameQueue:
    return FrameQueue(torch.full((count, 1, 1, 1), float(first)), torch.zeros(count, dtype=torch.int64), {}, first)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(2, 9), st.lists(st.integers(1, 7), max_size=60))
def test_every_nth_is_kept_as_finely_as_there_is_room(spacing: int, most: int, chunks: list[int]) -> None:
    """The finest doubling of the spacing under which all multiples so far fit."""
    keeper = AnchorKeeper("every", spacing, 2, most, 6, PromptTrack([None]))
    held, total = keeper.begin(clean_latents(0, 6)), 0
    for count in chunks:
        held = keeper.after(held, clean_latents(total, count))
        total += count
        wide = spacing
        while len(range(0, total, wide)) > most:
            wide *= 2
        assert [anchor.first for anchor in held] == [*range(0, total, wide)]


def test_which_of_a_clip_are_kept() -> None:
    assert [parse_anchors(text) for text in ("base", "first", "every:12")] == [("base", 0), ("first", 0), ("every", 12)]
    prompts = PromptTrack([0, 1, 2], 20)
    clip, video = clean_latents(0, 12), clean_latents(0, 70)
    found = {
        kind: [each.first for each in (keeper.after(keeper.begin(clip), video[:total]))]
        for kind, total in (("base", 70), ("first", 70), ("prompt", 30), ("prompt ", 70))
        for keeper in [AnchorKeeper(kind.strip(), 0, 3, 8, 12, prompts)]
    }
    assert found == {"base": [2, 6, 10], "first": [2, 6, 10], "prompt": [22, 26], "prompt ": [42, 46, 50]}


def test_positions_told() -> None:
    assert told_positions([2, 34, 38, 40, 41], 1) == (0, 1, 2, 3, 4)
    assert told_positions([2, 34, 38, 40, 41], 1000) == (0, 32, 36, 38, 39)
    assert told_positions([2, 34, 38, 40, 41], 5) == (0, 5, 9, 11, 12)
    assert told_positions([2, 6, 4, 5], 1000) == (0, 4, 5, 6), "never back"


# ---- what stands still ----


def scene(places: Sequence[int], ground: float, noise: float = 0.0) -> torch.Tensor:
    """A bright column that moves over a ground, `[F, 2, 4, 8]`."""
    x = torch.full((len(places), 2, 4, 8), ground)
    x[:, 1] *= -1.0
    for number, place in enumerate(places):
        x[number, :, :, place] = 3.0
    return x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def test_motion_is_taken_out_of_the_judgement() -> None:
    """Where the column is does not matter, what the ground is does; the published score has it the other way round."""
    reference = scene([1, 3, 5, 7], 1.0)
    same = still_score(scene([1, 3, 5, 7], 1.0), reference)
    moved = still_score(scene([7, 5, 3, 1], 1.0), reference)
    other_ground = still_score(scene([1, 3, 5, 7], -1.0), reference)
    assert same == pytest.approx(1.0, abs=1e-6)
    assert moved == pytest.approx(same, abs=1e-6)
    assert other_ground < 0.5 * same
    assert still_score(5.0 * reference, reference) == pytest.approx(1.0, abs=1e-6), "a cosine"
    assert still_score(scene([1, 3, 5, 7], 1.0, 0.3), reference) > 0.9
    assert still_score(reference, reference[:1]) <= 1.0, "one reference latent has no variance"


def test_the_weight_of_a_cell() -> None:
    """By hand: one cell stands still, one moves."""
    reference = torch.tensor([[1.0, 1.0], [1.0, -3.0]]).view(2, 1, 1, 2)  # variance 0 and 4, so weights 1 and 1/3
    judged = torch.tensor([[2.0, 0.0]]).view(1, 1, 1, 2)
    mean, weight = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0 / 3.0])
    expected = (weight * mean * torch.tensor([2.0, 0.0])).sum() / ((weight * mean**2).sum() * 4.0).sqrt()
    assert still_score(judged, reference) == pytest.approx(float(expected), abs=1e-6)


def test_a_search_judged_by_what_stands_still() -> None:
    changes = WIDE | REFLECTING | {"guidance_from": "anchors:1,nearest:2", "reflection_judge": "still"}
    still, published = make_config(**changes), make_config(**{**changes, "reflection_judge": "neighbours"})
    traces = []
    for config in (still, published):
        *_, (state, _) = new_sampler(config, 17).run()
        traces.append(state.trace)
    assert traces[0].scores != traces[1].scores
    assert any(traces[0].corrected)
