"""The simulated cluster against closed forms: where the answer is known, the simulation gives it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from miga.backbones.registry import load_spec
from miga.cost import count_calls
from miga.errors import UsageError
from miga.profiles import resolve_config
from miga.virtual_time import make_virtual_video
from pipeline.scheduling.simulation import Scenario, VideoCost, measure_speed_up, simulate, video_cost

CALLS = 100
NO_OVERHEAD: dict[str, Any] = {
    "load_s": 0.0, "resume_s": 0.0, "tail_s": 0.0, "upload_s": 0.0, "checkpoint_s": 0.0, "call_s": 1.0,
}  # fmt: skip


def scenario(num_gpus: int, num_videos: int, cost: VideoCost | None = None, **values: Any) -> Scenario:
    return Scenario(
        num_gpus=num_gpus,
        num_videos=num_videos,
        **{"costs": {9: cost or VideoCost(calls=CALLS)}, "lengths": {9: 1.0}, **NO_OVERHEAD, **values},
    )


def test_equal_videos_that_divide_evenly_leave_nobody_idle() -> None:
    outcome = simulate(scenario(8, 40))
    assert outcome.makespan_s == pytest.approx(5 * CALLS)
    assert outcome.ideal_s == pytest.approx(5 * CALLS)
    assert outcome.busy_share == pytest.approx(1)
    assert outcome.useful_share == pytest.approx(1)
    assert outcome.computed_h == pytest.approx(40 * CALLS / 3600)
    assert (outcome.num_ok, outcome.num_quarantined, outcome.lost_h) == (40, 0, 0)


def test_without_sharing_the_rest_of_a_division_idles() -> None:
    outcome = simulate(scenario(8, 41, share="nothing"))
    assert outcome.makespan_s == pytest.approx(6 * CALLS)
    assert outcome.tail_start_s == pytest.approx(5 * CALLS)
    assert outcome.tail_s == pytest.approx(CALLS)
    assert outcome.busy_before_tail == pytest.approx(1)
    assert outcome.useful_before_tail == pytest.approx(1)
    assert outcome.busy_share == pytest.approx(41 / 48)


def test_one_worker_does_one_thing_after_the_other() -> None:
    times = {"load_s": 60.0, "tail_s": 3.0, "upload_s": 20.0, "checkpoint_s": 0.5, "checkpoint_every_s": 40.0}
    outcome = simulate(scenario(1, 3, **times))
    # checkpoints 40 s after the start and 40 s after that one; the uploads of the first two are hidden
    assert outcome.num_checkpoints == 3 * 2
    assert outcome.makespan_s == pytest.approx(60 + 3 * (CALLS + 2 * 0.5 + 3) + 20)
    assert outcome.first_video_s == pytest.approx(60)
    assert outcome.useful_share == pytest.approx(3 * CALLS / (3 * (CALLS + 4) + 20))


def test_an_upload_that_is_slower_than_its_video_holds_the_worker_back() -> None:
    outcome = simulate(scenario(1, 3, upload_s=500.0, max_uploads=1))
    # the third video waits until the first is stored
    assert outcome.makespan_s == pytest.approx(CALLS + 500 + CALLS + 500)
    assert simulate(scenario(1, 3, upload_s=500.0, max_uploads=2)).makespan_s == pytest.approx(3 * CALLS + 500)


def test_one_video_is_as_much_faster_as_its_helpers_make_it() -> None:
    speed_up = ((1, 1.0), (4, 3.7), (8, 6.5))
    for parallelism, expected in ((1, 1.0), (4, 3.7), (6, 5.1), (8, 6.5), (12, 6.5)):
        cost = VideoCost(calls=CALLS, parallelism=parallelism, speed_up=speed_up)
        assert simulate(scenario(12, 1, cost)).makespan_s == pytest.approx(CALLS / expected)


@pytest.mark.slow
def test_the_speed_up_is_that_of_the_video_made_in_virtual_time() -> None:
    config = resolve_config("swift", load_spec("simulated:wan"))
    (one, alone), (four, faster), (last, _) = measure_speed_up(config, 41, 6, 0.0)
    assert (one, alone, four, last) == (1, 1.0, 4, 6)
    seconds = [make_virtual_video(config, 41, slots).seconds for slots in (1, 4)]
    assert faster == seconds[0] / seconds[1]
    assert 2 < faster < 4


@pytest.mark.slow
def test_helpers_that_take_candidates_alone_are_one_for_each() -> None:
    config = resolve_config("paper", load_spec("simulated:wan"))
    cost = video_cost(config, 41, "candidates")
    assert cost.parallelism == 1 + config.num_candidates
    found = measure_speed_up(config, 41, cost.parallelism, 0.3, "candidates")
    assert [size for size, _ in found] == [1, 2, 3, 4]
    for size, speed_up in found:
        seconds = [
            make_virtual_video(config, 41, slots, search_share=0.3, share="candidates").seconds for slots in (1, size)
        ]
        assert speed_up == seconds[0] / seconds[1]
    assert [speed_up for _, speed_up in measure_speed_up(config, 41, 4, 0.0, "candidates")] == [1.0] * 4


def test_the_last_videos_share_the_workers_evenly() -> None:
    outcome = simulate(scenario(8, 2, VideoCost(calls=CALLS, parallelism=8)))
    assert outcome.makespan_s == pytest.approx(CALLS / 4)
    assert outcome.busy_share == pytest.approx(1)


def test_speeds_weigh_what_workers_do() -> None:
    # one node of each speed: 8 videos take 100 s on speed 1 and 50 s on speed 2, so 24 of them take 100 s on both
    values = {"speeds": {1.0: 1.0, 2.0: 1.0}, "share": "nothing"}
    outcomes = [simulate(scenario(16, 24, seed=seed, **values)) for seed in range(8)]
    mixed = [outcome for outcome in outcomes if outcome.ideal_s == pytest.approx(100)]
    assert mixed, "no seed gives one node of each"
    for outcome in mixed:
        assert outcome.makespan_s == pytest.approx(100)
        assert outcome.useful_share == pytest.approx(1)


def test_searches_come_at_their_rate() -> None:
    cost = VideoCost(calls=CALLS, calls_per_search=10, num_evaluations=20)
    outcome = simulate(scenario(10, 2000, cost, search_rate=0.3))
    mean = CALLS + 20 * 0.3 * 10
    deviation = 10 * math.sqrt(20 * 0.3 * 0.7 / 2000)
    assert outcome.computed_h * 3600 / 2000 == pytest.approx(mean, abs=5 * deviation)


def test_a_kill_loses_half_an_interval_on_average() -> None:
    interval_s, kills_per_hour = 50.0, 3.0
    values = {"kills_per_gpu_hour": kills_per_hour, "checkpoint_every_s": interval_s, "max_attempts": 10}
    outcome = simulate(scenario(40, 400, VideoCost(calls=4000), share="nothing", **values))
    assert outcome.num_kills > 500
    # uniform over the interval: its deviation is interval / sqrt(12)
    deviation_s = interval_s / math.sqrt(12 * outcome.num_kills)
    assert outcome.loss_per_kill_s == pytest.approx(interval_s / 2, abs=5 * deviation_s)
    share = kills_per_hour / 3600 * interval_s / 2
    assert outcome.lost_share == pytest.approx(share, rel=5 / math.sqrt(outcome.num_kills) + share)
    assert outcome.num_ok == 400
    assert outcome.useful_share + outcome.lost_share == pytest.approx(1, abs=0.02)


def test_kills_come_at_their_rate() -> None:
    outcome = simulate(scenario(40, 400, VideoCost(calls=4000), kills_per_gpu_hour=0.5, checkpoint_every_s=60.0))
    expected = 40 * outcome.makespan_s / 3600 * 0.5
    assert outcome.num_kills == pytest.approx(expected, abs=5 * math.sqrt(expected))


def test_a_notice_long_enough_saves_everything() -> None:
    values = {"preemptions_per_node_hour": 0.5, "checkpoint_every_s": math.inf, "share": "nothing"}
    noticed = simulate(scenario(64, 200, VideoCost(calls=3000), notice_s=30.0, suspend_s=15.0, **values))
    assert noticed.num_preemptions > 5
    assert noticed.num_suspensions >= 8
    assert noticed.lost_h == 0
    assert noticed.num_ok == 200
    silent = simulate(scenario(64, 200, VideoCost(calls=3000), notice_s=0.0, **values))
    assert silent.num_suspensions == 0
    assert silent.lost_h > 1
    assert silent.num_ok == 200, "a node's end costs no attempt"


def test_without_checkpoints_a_row_is_given_up_after_its_attempts() -> None:
    num_videos, kills_per_hour = 2000, 20.0
    values = {"kills_per_gpu_hour": kills_per_hour, "checkpoint_every_s": math.inf, "max_attempts": 2}
    outcome = simulate(scenario(20, num_videos, share="nothing", progress_every_s=5.0, **values))
    dies = 1 - math.exp(-kills_per_hour / 3600 * CALLS)
    deviation = math.sqrt(dies**2 * (1 - dies**2) / num_videos)
    assert outcome.num_quarantined / num_videos == pytest.approx(dies**2, abs=5 * deviation)
    assert outcome.num_ok + outcome.num_quarantined == num_videos


def test_the_same_seed_gives_the_same_run() -> None:
    values = {"kills_per_gpu_hour": 1.0, "preemptions_per_node_hour": 1.0, "checkpoint_every_s": 20.0}

    def played(seed: int) -> dict[str, Any]:
        plain = simulate(scenario(32, 200, seed=seed, **values)).to_dict()
        return {name: value for name, value in plain.items() if not name.startswith("ledger_")}

    assert played(1) == played(1)
    assert played(1) != played(2)


def test_the_timeline_adds_up() -> None:
    outcome = simulate(scenario(8, 41, share="nothing"))
    width_s = outcome.makespan_s / len(outcome.timeline)
    assert sum(point[1] for point in outcome.timeline) * width_s == pytest.approx(
        outcome.busy_share * outcome.makespan_s, rel=0.02
    )
    assert all(0 <= share <= 1 + 1e-9 for _, *shares, _, _ in outcome.timeline for share in shares)


def test_a_run_that_gets_nowhere_is_given_up() -> None:
    values = {"preemptions_per_node_hour": 50.0, "notice_s": 0.0, "checkpoint_every_s": math.inf}
    with pytest.raises(UsageError, match="no end in sight"):
        simulate(scenario(8, 8, VideoCost(calls=2500), progress_every_s=1000.0, **values))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"call_s": 0.0}, "call_s"),
        ({"call_s": math.nan}, "call_s"),
        ({"call_s": math.inf}, "call_s"),
        ({"load_s": -1.0}, "load_s"),
        ({"kills_per_gpu_hour": math.inf}, "kills_per_gpu_hour"),
        ({"search_rate": 1.5}, "search_rate"),
        ({"checkpoint_every_s": 0.0}, "checkpoint_every_s"),
        ({"gpus_per_node": 0}, "gpus_per_node"),
        ({"share": "helpers"}, "share 'helpers' must be one of windows, candidates, nothing"),
        ({"speeds": {}}, "speeds"),
        ({"speeds": {-1.0: 1.0}}, "speeds"),
        ({"lengths": {9: 0.0}}, "lengths"),
        ({"lengths": {13: 1.0}}, "13"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        scenario(8, 8, **values)


@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
@pytest.mark.parametrize("profile", ["paper", "swift", "fifo", "stage-2-only"])
@pytest.mark.sampled(9)
def test_the_cost_of_a_video_is_that_of_its_sampler(family: str, profile: str) -> None:
    spec = load_spec(f"simulated:{family}")
    config = resolve_config(profile, spec)
    count = count_calls(config, spec.num_latents(spec.default_num_frames))
    cost = video_cost(config, spec.num_latents(spec.default_num_frames))
    assert cost.calls == count.total
    assert cost.calls + cost.num_evaluations * cost.calls_per_search == count.most
    assert 1 <= cost.parallelism <= cost.calls
