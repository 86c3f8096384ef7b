"""The queue is a value: cutting and joining lose nothing and change nothing."""

from __future__ import annotations

import pytest
import torch

from miga.queue import FrameQueue


def make_queue(count: int = 6, first: int = 10) -> FrameQueue:
    x = torch.randn(count, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    return FrameQueue(x, torch.arange(count), {"previous": 2.0 * x, "num_taken": torch.arange(count)}, first)


def assert_same(a: FrameQueue, b: FrameQueue) -> None:
    assert a.first == b.first
    assert torch.equal(a.x_FCHW, b.x_FCHW)
    assert torch.equal(a.level_F, b.level_F)
    assert a.history.keys() == b.history.keys()
    assert all(torch.equal(a.history[name], b.history[name]) for name in a.history)


@pytest.mark.parametrize("cut", range(7))
def test_cut_and_joined_it_is_the_same(cut: int) -> None:
    queue = make_queue()
    head, tail = queue.pop(cut)
    assert (len(head), len(tail)) == (cut, 6 - cut)
    assert_same(head.append(tail), queue)
    assert_same(queue, make_queue())


def test_every_part_knows_its_place_in_the_video() -> None:
    part = make_queue()[2:5]
    assert list(part.indices) == [12, 13, 14]
    assert part.level_F.tolist() == part.history["num_taken"].tolist() == [2, 3, 4]
    assert list(make_queue()[-2:].indices) == [14, 15]


def test_only_what_follows_can_be_appended() -> None:
    queue = make_queue()
    with pytest.raises(AssertionError, match="does not follow"):
        queue[:2].append(queue[3:])
    with pytest.raises(AssertionError, match="no gaps"):
        queue[::2]


def test_compact_owns_its_storage() -> None:
    part = make_queue()[2:4].compact()
    assert_same(part, make_queue()[2:4])
    for tensor in (part.x_FCHW, part.level_F, *part.history.values()):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
