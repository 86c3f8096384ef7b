"""Makes an ablation, or goes on with it where it was left: a run for each setting, then scores and tables."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from jobs.ablation.plan import PROMPTS_FILE, AblationPlan, check_out, manifest_of
from jobs.ablation.score import extractor_of, score_all
from jobs.ablation.tables import as_dict, write_tables
from jobs.run.make import generate
from jobs.run.plan import Plan, run_record
from jobs.shared.exit_status import status_of_run
from pipeline import terminal
from pipeline.ablation import fill_table
from pipeline.records.run_folder import check_run
from pipeline.storage.open import open_storage


def ablate(
    plan: AblationPlan, *, address: str | None = None, quiet: bool = False, failed_rows_ok: bool = False
) -> dict[str, Any]:
    """Makes the ablation, or goes on with it where it was left.

    Args:
        plan: the ablation.
        address: of a Ray cluster.
        quiet: whether to show no progress.
        failed_rows_ok: whether the exit status is 0 where only rows failed.

    Returns:
        The summary: what ablation.json holds, where the files are, and `exit_status`.

    Raises:
        MigaError: if a run failed; what was finished stays, and the same command goes on from there.
    """
    from actors.runtime import ray_session

    say: Callable[[str], None] = (lambda text: None) if quiet else terminal.say
    started_s = time.monotonic()
    check_out(plan)
    extractor = extractor_of(plan.features)  # before hours of work: it may not be there
    storage = open_storage(plan.out)
    with contextlib.ExitStack() as stack:
        session = _Once(lambda: stack.enter_context(ray_session(plan.base.config.workers, address)))
        if not storage.exists(PROMPTS_FILE):
            session()  # where Ray does not start, OUT is not begun
        storage.write_bytes(PROMPTS_FILE, plan.prompts)
        for number, name in enumerate(plan.samplers, 1):
            run_plan = plan.run_plan(name)
            if _is_complete(run_plan):
                continue
            say(f"setting {number} of {len(plan.samplers)}: {name}")
            session()
            generate(run_plan, address=address, quiet=quiet)
    videos_of, failed = score_all(plan, extractor, storage, say)
    filled = [
        fill_table(table, {name: videos_of[run] for name, run in plan.runs.items()}) for table in plan.grid.tables
    ]
    files = write_tables(plan, storage, filled, videos_of, failed, extractor.name)
    return {
        **as_dict(plan, filled, videos_of, failed, extractor.name),
        "out": storage.root,
        "files": files,
        "seconds": round(time.monotonic() - started_s, 1),
        "exit_status": status_of_run(sum(map(bool, failed.values())), failed_rows_ok),
    }


class _Once:
    """Calls something the first time it is called: an ablation that is complete starts no Ray."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._action: Callable[[], Any] | None = action

    def __call__(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


def _is_complete(plan: Plan) -> bool:
    """Whether every row of the run is settled, so that it need not be opened again."""
    if check_run(open_storage(plan.out), run_record(plan)) is None:
        return False
    return sum(1 for _ in manifest_of(plan).read_rows()) >= plan.num_rows
