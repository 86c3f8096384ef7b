"""A pytest plugin: as many tests as fit into so many seconds; the others are named as not run, and are no failure.

    python -m pytest -p tests.budget --budget-s 2400 --first tests/faults -m slow

Once the seconds are used up no test is begun; the one that is running goes on to its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("budget")
    group.addoption("--budget-s", type=float, help="seconds after which no further test is begun")
    group.addoption("--first", default=[], action="append", metavar="FOLDER", help="whose tests are run before others")


def pytest_configure(config: pytest.Config) -> None:
    budget_s = config.getoption("--budget-s")
    if budget_s is not None:
        config.pluginmanager.register(Budget(config, budget_s), "budget-of-tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the tests of those folders first, in their order."""
    folders = [config.rootpath / folder for folder in config.getoption("--first")]
    items.sort(key=lambda item: next((at for at, one in enumerate(folders) if _is_in(item.path, one)), len(folders)))


def _is_in(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


class Budget:
    """Begins tests until the seconds are used up.

    Args:
        config: of the session.
        budget_s: seconds, from now on.
        now_s: a steady clock.
    """

    def __init__(self, config: pytest.Config, budget_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._budget_s = budget_s
        self._now_s = now_s
        self._end_s = now_s() + budget_s
        self._not_run: list[pytest.Item] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """True says to pytest that the test is dealt with."""
        if self._now_s() < self._end_s:
            return None
        self._not_run.append(item)
        self._config.hook.pytest_deselected(items=[item])
        return True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What was left out."""
        if self._not_run:
            terminalreporter.section(f"not run: {len(self._not_run)} ({self._budget_s:g} s were used up)")
            for item in self._not_run:
                terminalreporter.write_line(f"not run: {item.nodeid}")
