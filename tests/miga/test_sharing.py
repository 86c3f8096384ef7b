"""Who takes which waiting call, for each thing that helpers may take."""

from __future__ import annotations

import pytest

from miga.sharing import SHARES, Share, WaitingCalls, slots_of


def waiting(share: Share) -> WaitingCalls[str]:
    """Calls named by kind and priority, put in an order that is not theirs."""
    calls: WaitingCalls[str] = WaitingCalls(share)
    for name in ("own 2", "candidate 5", "own 1", "own 2, younger", "candidate 4"):
        kind, priority = name.split(",")[0].split()
        calls.put(name, int(priority), is_candidate=kind == "candidate")
    return calls


def all_of_host(calls: WaitingCalls[str], num_idle_helpers: int = 0) -> list[str]:
    taken = []
    while (call := calls.take_for_host(num_idle_helpers)) is not None:
        taken.append(call)
    return taken


def all_of_helpers(calls: WaitingCalls[str]) -> list[str]:
    taken = []
    while (call := calls.take_for_helper()) is not None:
        taken.append(call)
    return taken


CANDIDATES = ["candidate 4", "candidate 5"]
OWN = ["own 1", "own 2", "own 2, younger"]


@pytest.mark.parametrize(
    ("share", "of_helpers", "of_host"),
    [("windows", CANDIDATES + OWN, []), ("candidates", CANDIDATES, OWN), ("nothing", [], CANDIDATES + OWN)],
)
def test_what_helpers_take_and_what_they_leave(share: Share, of_helpers: list[str], of_host: list[str]) -> None:
    calls = waiting(share)
    assert calls.num_for_helpers == len(of_helpers)
    assert all_of_helpers(calls) == of_helpers
    assert calls.num_for_helpers == 0
    assert all_of_host(calls) == of_host


def test_a_host_takes_the_most_urgent_call_where_helpers_take_any() -> None:
    assert all_of_host(waiting("windows"), num_idle_helpers=9) == CANDIDATES + OWN


@pytest.mark.parametrize(("num_idle_helpers", "joined"), [(0, CANDIDATES), (1, ["candidate 4"]), (2, []), (3, [])])
def test_a_host_joins_in_on_candidates_when_it_has_nothing_else_and_helpers_are_too_few(
    num_idle_helpers: int, joined: list[str]
) -> None:
    calls = waiting("candidates")
    assert all_of_host(calls, num_idle_helpers) == OWN + joined
    assert calls.num_for_helpers == len(CANDIDATES) - len(joined)


@pytest.mark.parametrize("share", SHARES)
def test_what_is_for_the_host_is_left_by_helpers_and_not_put_off(share: Share) -> None:
    calls = waiting(share)
    calls.put("candidate 3, come back", 3, is_candidate=True, is_for_host=True)
    assert calls.take_for_host(num_idle_helpers=9) == "candidate 3, come back"
    calls.put("own 0, come back", 0, is_candidate=False, is_for_host=True)
    assert "own 0, come back" not in all_of_helpers(calls)
    assert "own 0, come back" in all_of_host(calls)


@pytest.mark.parametrize("share", SHARES)
def test_all_are_taken_at_the_end(share: Share) -> None:
    calls = waiting(share)
    calls.put("come back", 0, is_candidate=True, is_for_host=True)
    assert sorted(calls.take_all()) == sorted([*CANDIDATES, *OWN, "come back"])
    assert all_of_host(calls) == all_of_helpers(calls) == []


@pytest.mark.parametrize(("share", "expected"), [("windows", (4, 4)), ("candidates", (4, 1)), ("nothing", (1, 1))])
def test_slots_of_a_host_with_three_helpers(share: Share, expected: tuple[int, int]) -> None:
    assert slots_of(share, 3) == expected
    assert slots_of(share, 0) == (1, 1)
