"""Every profile's settings for a model, beside the paper's values."""

from __future__ import annotations

from typing import Any

from miga.backbones.base import BackboneSpec
from miga.cost import count_calls, windows_worth
from miga.errors import ConfigError
from miga.generate import rules_of_pictures
from miga.methods import methods
from miga.profiles import default_num_frames, field_names, profiles, published, resolve_config

NOT_READ = "-"


def profiles_as_dict(spec: BackboneSpec) -> dict[str, dict[str, Any]]:
    """Profile → its resolved settings for the model, or why it has none."""
    result: dict[str, dict[str, Any]] = {}
    for name, profile in profiles().items():
        try:
            config = resolve_config(name, spec)
            rules_of_pictures(spec, config)
            settings = config.to_dict()
        except ConfigError as error:
            settings = {"error": str(error)}
        result[name] = {"summary": profile.summary, **settings}
    return result


def profile_table(spec: BackboneSpec) -> str:
    """The main profiles side by side; the last column is what the paper publishes for the model's family.

    A setting that a profile does not read is `-`. Calls that show more than a window are given as calls of one, too.
    Methods that need a network with a cache, or a picture, have a table each, of what they read. The ablations follow,
    each with what it changes in `paper`.
    """
    resolved = {name: values for name, values in profiles_as_dict(spec).items() if "error" not in values}
    known, paper = profiles(), published(spec.family)
    shown = [name for name in resolved if not known[name].ablates]
    rooms: dict[str, list[str]] = {}
    for name in shown:
        method = methods()[resolved[name]["method"]]
        rooms.setdefault(method.name if method.needs_cache or method.needs_picture else "", []).append(name)
    ablations = {part: changes for profile in known.values() for part, changes in profile.ablates.items()}
    num_ablated = sum(bool(profile.ablates) for profile in known.values())
    lines: list[str] = []
    for room, names in rooms.items():
        read = [name for name in field_names() if name != "profile" and any(name in resolved[each] for each in names)]
        header = ["setting", *names, *([] if room else [f"paper ({spec.family})"])]
        rows = [
            [
                field,
                *(_cell(resolved[name], field) for name in names),
                *([] if room else [_text(paper.get(field, ""))]),
            ]
            for field in read
        ]
        ends = [] if room else [""]
        rows.append([f"calls, {spec.default_num_frames} frames", *(_calls(name, spec) for name in names), *ends])
        if any(methods()[resolved[name]["method"]].settings.one_window for name in names):
            rows.append(["as calls of one window", *(_windows_worth(name, spec) for name in names), *ends])
            rows.append(["memory", *(_memory(name, spec) for name in names), *ends])
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        title = [f"method {room}", ""] if room else []
        lines += [*title, *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                  for row in [header, ["-" * width for width in widths], *rows]), ""]  # fmt: skip
    return "\n".join(
        [
            f"model {spec.name}: window of {spec.window} latents; {NOT_READ} marks what a profile does not read",
            "",
            *lines,
            *(f"{name}: {known[name].summary}" for name in shown),
            "",
            f"Ablations of `paper`, joined with `-` in this order ({num_ablated} profiles):",
            *(f"  {name}: {', '.join(f'{key} = {_text(value)}' for key, value in changes.items())}"
              for name, changes in ablations.items()),
            *(f"not for this model: {name} ({known[name].summary})" for name in known if name not in resolved),
        ]
    )  # fmt: skip


def _cell(settings: dict[str, Any], field: str) -> str:
    return _text(settings[field]) if field in settings else NOT_READ


def _calls(name: str, spec: BackboneSpec) -> str:
    config = resolve_config(name, spec)
    spec = spec.of_clips(config.clips)
    count = count_calls(config, spec.num_latents(default_num_frames(config, spec)))
    return str(count.total) if count.most == count.total else f"{count.total} to {count.most}"


def _windows_worth(name: str, spec: BackboneSpec) -> str:
    """The least that a video takes, in calls of a whole window."""
    config = resolve_config(name, spec)
    num_latents = spec.num_latents(default_num_frames(config, spec))
    return str(round(windows_worth(config, spec, num_latents) or count_calls(config, num_latents).total))


def _memory(name: str, spec: BackboneSpec) -> str:
    return "grows" if resolve_config(name, spec).one_window else "constant"


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}.get(value, "") if isinstance(value, bool) else str(value)
