"""What an ablation would cost, setting by setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.ablation.plan import AblationPlan
from jobs.run.estimate import cost_model, estimate
from pipeline.ablation import aligned


def dry_run(plan: AblationPlan, num_workers: int) -> dict[str, Any]:
    """What the ablation would cost, setting by setting and in all; nothing is written, no weights are loaded."""
    lengths: dict[int, int] = {}
    for row in plan.rows:
        lengths[row.num_frames] = lengths.get(row.num_frames, 0) + 1
    settings = {}
    for name, sampler in plan.samplers.items():
        cost = estimate(plan.base.spec, sampler, lengths, num_workers)
        settings[name] = {
            "profile": sampler.profile,
            "shared_by": [other for other, run in plan.runs.items() if run == name and other != name],
            "network_calls": cost["network_calls"],
            "network_calls_max": cost["network_calls_max"],
            "seconds_per_call": cost_model(plan.base.spec, sampler, num_workers).seconds_per_call,
            "estimated_hours": cost["estimated_hours"],
            "estimated_hours_max": cost["estimated_hours_max"],
            "basis": cost["basis"]["estimated_hours"],
        }
    totals = {
        name: sum(setting[name] for setting in settings.values())
        for name in ("network_calls", "network_calls_max", "estimated_hours", "estimated_hours_max")
    }
    return {
        "model": plan.base.spec.name,
        "tables": [table.name for table in plan.grid.tables],
        "settings": settings,
        "videos": len(plan.rows) * len(plan.samplers),
        "videos_per_setting": len(plan.rows),
        "features": plan.features,
        **totals,
    }


def cost_table(costs: Mapping[str, Any]) -> str:
    """The figures of a dry run for people."""
    settings = costs["settings"]
    head = ["setting", "profile", "calls", "with every search", "s a call", "hours", "with every search"]
    lines = [
        [name, one["profile"], f"{one['network_calls']:,}", f"{one['network_calls_max']:,}",
         f"{one['seconds_per_call']:.3g}", f"{one['estimated_hours']:.2f}", f"{one['estimated_hours_max']:.2f}"]
        for name, one in settings.items()
    ]  # fmt: skip
    lines.append(
        ["in all", "", f"{costs['network_calls']:,}", f"{costs['network_calls_max']:,}", "",
         f"{costs['estimated_hours']:.2f}", f"{costs['estimated_hours_max']:.2f}"]
    )  # fmt: skip
    shared = [
        f"{name}: also {', '.join(one['shared_by'])}" for name, one in costs["settings"].items() if one["shared_by"]
    ]
    basis = next(iter(settings.values()))["basis"]
    return "\n".join(
        [
            f"{len(settings)} settings of {costs['videos_per_setting']} videos each on {costs['model']}, "
            f"for tables {', '.join(costs['tables'])}; consistency by {costs['features']}",
            "",
            aligned(head, lines),
            "",
            f"hours: {basis}; scoring not counted",
            *([f"the same sampler, run once: {'; '.join(shared)}"] if shared else []),
        ]
    )
