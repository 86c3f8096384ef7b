"""Limits of tests grow with the time that things take on this machine, and with nothing else."""

from __future__ import annotations

import pytest
import pytest_timeout

from tests.pace import IMPORTS, IMPORTS_S, KEPT_S, LOOP, LOOP_S, PACE, Limit, Pace


class Machine:
    """A clock that only this test moves, and processes that take `busy` times as long as on an idle machine."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.busy = 1.0
        self.disk = 1.0
        self.measured: list[tuple[str, ...]] = []

    def measure(self, arguments: tuple[str, ...]) -> float:
        self.measured.append(arguments)
        return {LOOP: LOOP_S * self.busy, IMPORTS: IMPORTS_S * self.busy * self.disk}[arguments]

    def pace(self) -> Pace:
        return Pace(self.measure, lambda: self.now_s)


@pytest.mark.parametrize(("busy", "factor"), [(0.2, 1.0), (1.0, 1.0), (25.0, 25.0)])
def test_a_faster_machine_changes_nothing_and_a_slower_one_lengthens(busy: float, factor: float) -> None:
    machine = Machine()
    machine.busy = busy
    assert machine.pace().factor() == pytest.approx(factor)


def test_the_load_is_measured_anew_after_a_while() -> None:
    machine = Machine()
    pace = machine.pace()
    assert pace.factor() == 1.0
    machine.busy, machine.now_s = 8.0, KEPT_S / 2
    assert pace.factor() == 1.0
    machine.now_s = KEPT_S
    assert pace.factor() == pytest.approx(8.0)
    assert len(machine.measured) == 2


def test_a_slow_disk_counts_once_it_was_measured_and_is_measured_where_the_load_is_another() -> None:
    machine = Machine()
    machine.disk = 3.0
    pace = machine.pace()
    assert pace.factor() == 1.0
    assert pace.calibrate() == pytest.approx(3.0)
    machine.disk = 1.0
    assert pace.calibrate() == pytest.approx(3.0), "at the same load it is not measured each time"
    machine.busy = 2.0
    assert pace.calibrate() == pytest.approx(2.0)
    assert machine.measured.count(IMPORTS) == 2


def test_a_limit_counts_each_second_at_the_pace_of_its_time() -> None:
    machine = Machine()
    limit = Limit(KEPT_S + 10.0, machine.pace(), lambda: machine.now_s)
    machine.now_s = KEPT_S
    assert not limit.is_over
    machine.busy = 10.0
    machine.now_s = 2 * KEPT_S  # the second stretch is one of a tenth
    assert not limit.is_over
    machine.now_s = 2 * KEPT_S + 80.0
    assert not limit.is_over
    machine.now_s = 2 * KEPT_S + 86.0
    assert limit.is_over


def test_the_timer_of_each_test_is_lengthened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[float] = []
    monkeypatch.setattr(PACE, "factor", lambda: 40.0)
    monkeypatch.setattr(pytest_timeout, "pytest_timeout_set_timer", lambda item, settings: set_to.append(settings[0]))
    settings = pytest_timeout.Settings(300.0, "signal", False, None)
    request.config.hook.pytest_timeout_set_timer(item=request.node, settings=settings)
    assert set_to == [12_000.0]
