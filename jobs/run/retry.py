"""Makes the rows of a run again that were given up, and no others, as the run was configured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from jobs.run.make import generate
from jobs.run.plan import Plan, make_plan
from miga.errors import InputError, UsageError
from pipeline.config import RunConfig, override, parse_config
from pipeline.prompts.source import look_at
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import RunRecord, read_run, shard_of
from pipeline.rows import BadRow, PromptRow
from pipeline.storage.open import open_storage
from pipeline.upkeep.trust import check_model, prompts_of


@dataclass(frozen=True, kw_only=True)
class RetryPlan(Plan):
    """A plan of the settled rows only: those that were made are skipped, as ever, and those given up made again."""

    @property
    def is_whole(self) -> bool:
        """See `Plan`."""
        return False

    def rows(self, judge_prompts: bool = True, read_ahead: int = 1) -> Iterator[PromptRow | BadRow]:
        """The prompt file's rows that are settled; rows of an unfinished run that are not stay for that run."""
        per_shard = self.config.run.prompts_per_shard
        manifest = Manifest(open_storage(self.out), per_shard)
        last = max(manifest.shards(), default=-1)
        shard, settled = -1, set[int]()
        for row in super().rows(judge_prompts, read_ahead):
            if (its := shard_of(row.index, per_shard)) != shard:
                if its > last:
                    return
                shard, settled = its, set(manifest.statuses(its))
            if row.index in settled:
                yield row


def retry_failed(
    out: str,
    *,
    prompts: str | None = None,
    model: str | None = None,
    trust: bool = False,
    num_actors: int | None = None,
    address: str | None = None,
    quiet: bool = False,
    failed_rows_ok: bool = False,
) -> dict[str, Any]:
    """Makes the rows of the run in `out` again that were given up.

    Args:
        out: of the run.
        prompts: where the prompt file lies now, if not where it lay when the run was started.
        model: the run's, in the user's own words, which it takes if it is code or would be downloaded.
        trust: whether all that OUT itself names is taken without such a word.
        num_actors: backbone actors; None takes the run's.
        address: of a Ray cluster.
        quiet: whether to show no progress.
        failed_rows_ok: whether rows that fail again are no failure of the run.

    Returns:
        The summary, as `generate` does.

    Raises:
        OutputError: if there is no run.
        UsageError: if no row has failed, the prompt file or the model is another, or the user has to name one of them.
        MigaError: as `generate`.
    """
    storage = open_storage(out)
    record = read_run(storage)
    config = override(recorded_config(record), workers={"num_actors": num_actors})
    check_model(config, storage.root, named=model, is_trusted=trust)
    if model not in (None, config.model):
        raise UsageError(
            f"{storage.root} was made with the model {config.model!r}, not with {model!r}",
            "name that one; another model is for a new OUT",
        )
    path = prompts_of(record.prompts.path, storage.root, named=prompts, is_trusted=trust)
    check_prompts(path, record)
    manifest = Manifest(storage, config.run.prompts_per_shard)
    statuses = [status for shard in manifest.shards() for status in manifest.statuses(shard).values()]
    if "failed" not in statuses:
        raise UsageError(
            f"{storage.root}: no row was given up ({len(statuses)} were made)", "there is nothing to retry"
        )
    plan = make_plan(path, storage.root, config)
    values = {item.name: getattr(plan, item.name) for item in fields(plan)}
    return generate(
        RetryPlan(**(values | {"num_rows": len(statuses)})),
        address=address,
        quiet=quiet,
        retry_failed=True,
        failed_rows_ok=failed_rows_ok,
    )


def recorded_config(record: RunRecord) -> RunConfig:
    """The config that a run was started with, without its limit: which rows there are, the manifest says.

    Nor has it a tracker: OUT alone does not decide where else is written.
    """
    left_out = ("limit", "logs")
    return parse_config({key: value for key, value in record.config.items() if key not in left_out}, "run.json")


def check_prompts(path: str, record: RunRecord) -> None:
    """Whether `path` still is the prompt file of the run.

    Raises:
        UsageError: if it is another.
        InputError: if it cannot be read.
    """
    try:
        there = look_at(path)
    except InputError as error:
        raise InputError(error.message, "say where the prompt file lies now: --prompts PATH") from error
    if there.sha256 != record.prompts.sha256:
        raise UsageError(
            f"{path} has changed since the run was started ({there.bytes} bytes; {record.prompts.bytes} then)",
            "restore it, or name an unchanged copy: --prompts PATH; changed prompts are for a new OUT",
        )
