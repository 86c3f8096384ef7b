"""What an ablation writes: ablation.md, ablation.json and the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.ablation.plan import PROMPT_KEY, AblationPlan
from jobs.ablation.ranking import ranking_of
from pipeline.ablation import FilledTable, ScoredVideo, table_as_dict, to_markdown
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage


def as_dict(
    plan: AblationPlan,
    filled: Sequence[FilledTable],
    videos_of: Mapping[str, Sequence[ScoredVideo]],
    failed: Mapping[str, int],
    features: str,
) -> dict[str, Any]:
    """What ablation.json holds."""
    return {
        "model": plan.base.spec.name,
        "model_revision": plan.base.spec.revision,
        "num_prompts": len({row.metadata[PROMPT_KEY] for row in plan.rows}),
        "num_videos_per_setting": len(plan.rows),
        "num_frames": sorted({row.num_frames for row in plan.rows}),
        "features": features,
        "settings": {
            name: {
                "run": run,
                "profile": plan.grid.settings[name].profile,
                "overrides": plan.grid.settings[name].sampler,
                "sampler": plan.samplers[run].to_dict(),
                "videos": len(videos_of[run]),
                "failed": failed[run],
            }
            for name, run in plan.runs.items()
        },
        "tables": [{**table_as_dict(table), **_ranking(table)} for table in filled],
    }


def _ranking(filled: FilledTable) -> dict[str, str]:
    ranking = ranking_of(filled)
    return {"ranking": ranking} if ranking else {}


def write_tables(
    plan: AblationPlan,
    storage: Storage,
    filled: Sequence[FilledTable],
    videos_of: Mapping[str, Sequence[ScoredVideo]],
    failed: Mapping[str, int],
    features: str,
) -> list[str]:
    """ablation.md, ablation.json and the plots.

    Returns:
        Where they are.
    """
    from jobs.ablation.plots import draw_plot

    values = as_dict(plan, filled, videos_of, failed, features)
    plots = {f"{one.table.plot.file}.png": draw_plot(one) for one in filled if one.table.plot}
    files = {
        "ablation.md": _page(values, filled, plots).encode(),
        "ablation.json": (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode(),
        **{name: data for name, data in plots.items() if data is not None},
    }
    for name, data in files.items():
        storage.write_bytes(name, data)
    return [storage.uri(name) for name in files]


def _page(values: Mapping[str, Any], filled: Sequence[FilledTable], plots: Mapping[str, bytes | None]) -> str:
    lengths = ", ".join(f"{count:,}" for count in values["num_frames"])
    parts = [
        f"# Ablation on {values['model']}\n",
        f"{values['num_prompts']} prompts, {values['num_videos_per_setting']} videos of {lengths} frames a setting; "
        f"consistency by `{values['features']}`. Figures are means over videos with 95 % bootstrap intervals, prompts "
        "resampled (all seeds of a prompt together); the best of a column is bold. The column against the first row "
        "compares the same prompts and seeds, pair by pair: where its interval excludes 0, it is more than chance.",
        "",
    ]
    if lost := {name: one["failed"] for name, one in values["settings"].items() if one["failed"]}:
        parts += ["Rows that failed: " + ", ".join(f"{count} of {name}" for name, count in lost.items()) + ".", ""]
    for one in filled:
        parts.append(to_markdown(one))
        parts += [f"{ranking}\n"] if (ranking := ranking_of(one)) else []
        if one.table.plot and plots.get(f"{one.table.plot.file}.png"):
            parts.append(f"![{one.table.title}]({one.table.plot.file}.png)\n")
    return "\n".join(parts)


def tables_text(summary: Mapping[str, Any], out: str) -> str:
    """ablation.md of a finished ablation, to be printed, and where the files are."""
    page = open_storage(out).read_bytes("ablation.md").decode()
    return page + "\n" + "\n".join(f"wrote {file}" for file in summary["files"])
