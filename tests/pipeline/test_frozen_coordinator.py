"""A coordinator that stands still at any point, is taken for dead, and goes on when others have done much: no record is
lost, none is doubled, and nothing that is recorded is made again.

It is frozen before a call of its storage; what others do meanwhile is done within that call, so every interleaving is
reached, and none by chance.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import pytest

from miga.errors import LeaseLostError, OutputError
from pipeline.records import lease as lease_module
from pipeline.records.lease import Lease, Owner
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import shard_of
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.collect_garbage import collect_garbage
from pipeline.upkeep.repair import repair
from pipeline.upkeep.verify import verify
from tests.made_run import PER_SHARD, MadeRun, make_run, video_bytes

NUM_ROWS: Final = 2 * PER_SHARD
STALE: Final = Owner(host="elsewhere", pid=1)
TTL_S: Final = 600.0


class Clock:
    """Steady, and moved by waiting alone."""

    now_s = 0.0

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_now_s", lambda: CLOCK.now_s)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class FrozenStorage(LocalStorage):
    """Before its call number `frozen_at`, `meanwhile` happens."""

    def __init__(self, root: str | Path, frozen_at: int, meanwhile: Callable[[], object]) -> None:
        super().__init__(root)
        self.num_calls, self.frozen_at, self.meanwhile = 0, frozen_at, meanwhile

    def step(self) -> None:
        self.num_calls += 1
        if self.num_calls == self.frozen_at:
            self.meanwhile()

    def with_patience(self, patience_s: float) -> FrozenStorage:
        return self


def _frozen(name: str) -> Callable[..., Any]:
    def call(self: FrozenStorage, *arguments: Any, **options: Any) -> Any:
        self.step()
        return getattr(LocalStorage, name)(self, *arguments, **options)

    return call


for _name in ("exists", "stat", "children", "read_bytes", "write_bytes", "put_file", "delete"):
    setattr(FrozenStorage, _name, _frozen(_name))


class Runs:
    """What may be done to one OUT, each as the commands do it."""

    def __init__(self, plan: MadeRun, root: Path) -> None:
        self.plan, self.root = plan, root
        self.made: dict[int, list[int]] = {}

    def generate(self, limit: int, storage: LocalStorage | None = None, failing: frozenset[int] = frozenset()) -> None:
        """A coordinator: makes the rows that are not settled, or failed, and seals shards of which all are."""
        storage = storage or LocalStorage(self.root)
        run = MadeRun(storage, self.plan.prompts, self.plan.record, Manifest(storage, PER_SHARD))
        with Lease.held(storage, owner=STALE, ttl_s=TTL_S, wait=CLOCK.wait) as lease:
            for first in range(0, limit, PER_SHARD):
                shard = shard_of(first, PER_SHARD)
                statuses, is_sealed, _ = run.manifest.settled(shard)
                rows = range(first, min(limit, first + PER_SHARD))
                todo = [index for index in rows if statuses.get(index) != "ok"]
                for index in todo:
                    status = "failed" if index in failing else "ok"
                    if status == "ok":
                        path = run.video(index, epoch=lease.epoch)
                        storage.write_bytes(path, video_bytes(index % 4))
                        self.made.setdefault(index, []).append(lease.epoch)
                    lease.check()
                    run.manifest.record(run.row(index, status, epoch=lease.epoch))
                if todo or not is_sealed:
                    lease.check_now()
                    run.manifest.seal(shard)

    def gc(self, sidecars: bool, storage: LocalStorage | None = None) -> None:
        collect_garbage(storage or LocalStorage(self.root), sidecars=sidecars, ttl_s=TTL_S, wait=CLOCK.wait)

    def repair(self, storage: LocalStorage | None = None) -> None:
        repair(storage or LocalStorage(self.root), ttl_s=TTL_S, wait=CLOCK.wait, quick=True)

    def check(self, settled: set[int]) -> None:
        """All those rows have a record, whose video is there, though perhaps not in the shard's file."""
        storage = LocalStorage(self.root)
        rows = {row.row: row for row in Manifest(storage, PER_SHARD).read_rows()}
        assert rows.keys() >= settled
        for index in settled:
            assert rows[index].status == "ok"
            assert Path(rows[index].uri or "").is_file(), f"the video of row {index} is gone"

    def check_end(self) -> None:
        """One more run, and everything is as if there had been only one: nothing recorded was made again."""
        rows = Manifest(LocalStorage(self.root), PER_SHARD).read_rows()
        before = {row.row: row.uri for row in rows if row.status == "ok"}
        self.made.clear()
        self.generate(NUM_ROWS)
        assert not self.made.keys() & before.keys()
        found = verify(LocalStorage(self.root), quick=True)
        assert found.faults == []
        after = {row.row: row.uri for row in Manifest(LocalStorage(self.root), PER_SHARD).read_rows()}
        assert {index: after[index] for index in before} == before
        assert pq.read_table(self.root / "manifest")["row"].to_pylist() == list(range(NUM_ROWS))
        self.gc(sidecars=True)
        assert verify(LocalStorage(self.root), quick=True).faults == []


@pytest.fixture
def plan(tmp_path: Path) -> MadeRun:
    return make_run(LocalStorage(tmp_path / "undisturbed"), tmp_path, NUM_ROWS)


def new_runs(plan: MadeRun, root: Path) -> Runs:
    shutil.rmtree(root, ignore_errors=True)
    runs = Runs(plan, root)
    LocalStorage(root).write_bytes("run.json", plan.record.to_json().encode())
    return runs


def going_on(work: Callable[[], object]) -> None:
    """What the frozen one does when it is there again; it may notice."""
    try:
        work()
    except LeaseLostError:
        pass
    except OutputError as error:
        if "go while it is read" not in error.message:
            raise


def raised_limit(runs: Runs) -> None:
    runs.generate(NUM_ROWS)
    runs.gc(sidecars=True)


def raised_limit_twice(runs: Runs) -> None:
    runs.generate(PER_SHARD)
    runs.gc(sidecars=True)
    runs.generate(NUM_ROWS)
    runs.gc(sidecars=True)
    runs.repair()


@pytest.mark.parametrize("frozen", ["first run", "retry", "gc", "repair"])
@pytest.mark.parametrize("meanwhile", [raised_limit, raised_limit_twice])
@pytest.mark.slow
def test_frozen_at_every_call(plan: MadeRun, tmp_path: Path, meanwhile: Callable[[Runs], None], frozen: str) -> None:
    num_frozen = 0
    for frozen_at in range(1, 1000):
        runs = new_runs(plan, tmp_path / "out")
        if frozen != "first run":
            runs.generate(PER_SHARD - 1, failing=frozenset({0} if frozen == "retry" else ()))

        def others(runs: Runs = runs) -> None:
            meanwhile(runs)
            runs.check(set(range(NUM_ROWS)))

        storage = FrozenStorage(tmp_path / "out", frozen_at, others)
        if frozen in ("first run", "retry"):
            going_on(lambda storage=storage, runs=runs: runs.generate(PER_SHARD - 1, storage))  # type: ignore[misc]
        elif frozen == "gc":
            going_on(lambda storage=storage, runs=runs: runs.gc(True, storage))  # type: ignore[misc]
        else:
            going_on(lambda storage=storage, runs=runs: runs.repair(storage))  # type: ignore[misc]
        if storage.num_calls < frozen_at:
            break
        num_frozen += 1
        runs.check(set(range(NUM_ROWS)))
        runs.check_end()
    assert num_frozen > 8


def test_the_older_file_that_arrives_late_loses_no_record(plan: MadeRun, tmp_path: Path) -> None:
    """The case itself: the seal of two rows arrives over that of three, whose sidecars are gone."""
    runs = new_runs(plan, tmp_path / "out")
    runs.generate(2)
    path = tmp_path / "out" / "manifest" / "shard-00000.parquet"
    older = path.read_bytes()
    runs.generate(PER_SHARD)
    runs.gc(sidecars=True)
    assert not list((tmp_path / "out" / "done").iterdir())
    path.write_bytes(older)
    runs.check(set(range(PER_SHARD)))
    runs.gc(sidecars=True)
    runs.check(set(range(PER_SHARD)))
    assert [fault.kind for fault in verify(LocalStorage(runs.root)).faults] == ["unsealed", "missing"]
    runs.repair()
    assert [fault.kind for fault in verify(LocalStorage(runs.root)).faults] == ["missing"], "of the second shard"
    assert runs.made == {0: [1], 1: [1], 2: [2]}
    runs.check_end()


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))])
def test_frozen_at_random(plan: MadeRun, tmp_path: Path, seed: int) -> None:
    """Two that are frozen one within the other, of any kind, at any call, between runs of any kind."""
    draw = random.Random(seed)
    runs = new_runs(plan, tmp_path / "out")
    settled: set[int] = set()

    def act(storage: LocalStorage | None = None) -> None:
        kind = draw.choice(("generate", "generate", "generate", "gc", "sidecars", "repair"))
        if kind == "generate":
            runs.generate(
                draw.randint(1, NUM_ROWS), storage, frozenset(draw.sample(range(NUM_ROWS), draw.choice((0, 0, 2))))
            )
        elif kind == "repair":
            runs.repair(storage)
        else:
            runs.gc(kind == "sidecars", storage)

    def frozen(depth: int) -> None:
        if depth == 0:
            for _ in range(draw.randint(1, 3)):
                act()
            note()
            return
        storage = FrozenStorage(tmp_path / "out", draw.randint(1, 40), lambda: frozen(depth - 1))
        going_on(lambda: act(storage))
        note()

    def note() -> None:
        runs.check(settled)
        rows = Manifest(LocalStorage(tmp_path / "out"), PER_SHARD).read_rows()
        settled.update(row.row for row in rows if row.status == "ok")

    for _ in range(6):
        frozen(draw.randint(0, 2))
    runs.check_end()
