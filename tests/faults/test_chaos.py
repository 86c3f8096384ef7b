"""A short chaos run; `make chaos` makes longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import run_chaos

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]


def test_twelve_videos_under_faults_are_those_of_a_calm_run(tmp_path: Path) -> None:
    struck = run_chaos(seed=3, num_videos=12, last_s=15.0, folder=tmp_path, limit_s=240.0)
    assert sum(struck.values()) >= 5, struck
