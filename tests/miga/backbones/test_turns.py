"""Turns: one at a time, in the order of asking, whatever happens to those before."""

from __future__ import annotations

import threading

import pytest

from miga.backbones.turns import Turns
from tests.pace import paced
from tests.processes import wait_for


def asking(turns: Turns, num_asked: int) -> None:
    """Waits until so many have asked."""
    wait_for(lambda: turns._next_ticket >= num_asked, every_s=0.001)
    assert turns._next_ticket == num_asked


def test_who_asks_again_at_once_waits_for_who_has_asked_before() -> None:
    """As a decoder beside a thread that makes call after call."""
    turns, served = Turns(), []

    def decode() -> None:
        with turns.taken():
            served.append("decode")

    thread = threading.Thread(target=decode)
    with turns.taken():
        served.append("call")
        thread.start()
        asking(turns, 2)
    with turns.taken():
        served.append("call")
    thread.join(paced(10.0))
    assert served == ["call", "decode", "call"]


def test_an_error_ends_the_turn() -> None:
    turns = Turns()
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), turns.taken():
            raise error
    thread = threading.Thread(target=lambda: turns.taken().__enter__(), daemon=True)
    thread.start()
    thread.join(paced(10.0))
    assert not thread.is_alive()
