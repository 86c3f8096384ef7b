"""`miga profiles`: every profile's settings for a model, beside the paper's values."""

from __future__ import annotations

from typing import Any

from miga.backbones.base import BackboneSpec
from miga.config import FIELD_NAMES, PROFILES, PUBLISHED, resolve_config


def profiles_as_dict(spec: BackboneSpec) -> dict[str, dict[str, Any]]:
    """Profile → its resolved settings for the model."""
    return {name: {"summary": PROFILES[name].summary, **resolve_config(name, spec).to_dict()} for name in PROFILES}


def profile_table(spec: BackboneSpec) -> str:
    """The same as a table; the last column is what the paper publishes for the model's family."""
    resolved = {name: resolve_config(name, spec).to_dict() for name in PROFILES}
    published = PUBLISHED[spec.family]
    header = ["setting", *PROFILES, f"paper ({spec.family})"]
    rows = [
        [field, *(_text(values[field]) for values in resolved.values()), _text(published.get(field, ""))]
        for field in FIELD_NAMES
        if field != "profile"
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in
             [header, ["-" * width for width in widths], *rows]]  # fmt: skip
    summaries = [f"{name}: {PROFILES[name].summary}" for name in PROFILES]
    return "\n".join([f"model {spec.name}: window of {spec.window} latents", "", *lines, "", *summaries])


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, "") if isinstance(value, bool) else str(value)
