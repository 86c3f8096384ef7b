"""What `[workers] share` makes of a run: how many helpers a video is lent."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.run.make import make_ledger, worker_settings
from jobs.run.plan import make_plan
from pipeline.config import RunConfig, parse_config
from pipeline.rows import PromptRow
from pipeline.scheduling.ledger import Helpers

NUM_WORKERS = 12


def num_helpers(tmp_path: Path, config: RunConfig) -> int:
    """Of the only video of a run, which all workers but its host have nothing to do beside."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    plan = make_plan(str(prompts), str(tmp_path / "out"), config)
    ledger = make_ledger(plan)
    decisions = [ledger.worker_ready(f"w{number}", 0.0, node="node") for number in range(NUM_WORKERS)]
    (row,) = plan.rows()
    assert isinstance(row, PromptRow)
    decisions += [ledger.row_read(row, 1.0), ledger.rows_exhausted(2.0)]
    lent = [decision for some in decisions for decision in some if isinstance(decision, Helpers)]
    return len(lent[-1].helpers) if lent else 0


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("share", "profile", "sampler", "expected"),
    [
        ("windows", "paper", {}, NUM_WORKERS - 1),
        ("candidates", "paper", {}, 3),
        ("candidates", "paper", {"num_candidates": 5}, 5),
        ("candidates", "paper", {"self_reflection": False}, 0),
        ("candidates", "swift", {}, 0),
        ("nothing", "paper", {}, 0),
        ("windows", "paper", {"windows_per_batch": 2}, 0),
        ("candidates", "paper", {"windows_per_batch": 2}, 0),
    ],
)
def test_helpers_of_a_video(
    tmp_path: Path, share: str, profile: str, sampler: dict[str, int | bool], expected: int
) -> None:
    values = {"model": "simulated:wan", "profile": profile, "sampler": sampler, "workers": {"share": share}}
    assert num_helpers(tmp_path, parse_config(values, "test")) == expected


def test_workers_are_told(tmp_path: Path) -> None:
    from actors.runtime import Slots

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    config = parse_config({"model": "simulated:wan", "workers": {"share": "candidates"}}, "test")
    plan = make_plan(str(prompts), str(tmp_path / "out"), config)
    assert worker_settings(plan, "out", Slots(num_actors=1, cpus=1.0, gpus=0.0)).share == "candidates"
