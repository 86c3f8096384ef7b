"""`miga export`: the dataset as training code and dataset libraries take it."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import add_command, say_unless
from pipeline.storage.open import open_storage
from pipeline.terminal import show, show_json

GROUP: Final = "keep a run in order"
EXAMPLES: Final = ("miga export out/ dataset/ --format webdataset",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    export = add_command(commands, "export", _run, "the dataset as training code and dataset libraries take it")
    export.add_argument(
        "dest", metavar="DEST", help="a new folder, or s3://, gs:// or az://bucket/prefix; running again goes on"
    )
    export.add_argument(
        "--format", choices=("parquet", "webdataset", "hf", "csv"), default="parquet", help="of what is written"
    )
    export.add_argument(
        "--videos", choices=("copy", "link", "reference"), default="copy", help="hard links need the same disk"
    )
    export.add_argument("--status", choices=("ok", "failed", "all"), default="ok", help="of the rows (default: ok)")
    export.add_argument("--min-consistency", type=float, metavar="SCORE", help="least mean score of a video")
    export.add_argument(
        "--license", default="unknown", metavar="NAME", help="of the data set, for its card, such as apache-2.0"
    )
    export.add_argument(
        "--push-to-hub", metavar="USER/NAME", help="then put DEST on the Hugging Face hub, as a data set of that name"
    )
    export.add_argument("--public", action="store_true", help="a data set that is made there is for all to see")
    export.add_argument("--quiet", action="store_true", help="no progress")


def _run(options: argparse.Namespace) -> int:
    from miga.errors import UsageError
    from pipeline.upkeep.dataset_card import checked_licence
    from pipeline.upkeep.export import ExportOptions, export
    from pipeline.upkeep.push_to_hub import check_push, push_to_hub

    chosen = ExportOptions(
        format=options.format, videos=options.videos, status=options.status, min_consistency=options.min_consistency
    )
    dest, progress = open_storage(options.dest), say_unless(options.quiet or options.json)
    if options.push_to_hub is not None:
        check_push(options.push_to_hub, dest, chosen)
    elif options.public:
        raise UsageError("--public is about the hub", "name a data set there: --push-to-hub USER/NAME")
    licence = checked_licence(options.license)
    summary = export(open_storage(options.out), dest, chosen, progress, licence=licence)
    if options.push_to_hub is not None:
        summary["hub"] = push_to_hub(dest, options.push_to_hub, is_public=options.public, say=progress)
    if options.json:
        show_json(summary)
        return 0
    left = {name.removeprefix("left_out_"): n for name, n in summary.items() if name.startswith("left_out_") and n}
    show(f"{summary['rows']} rows, {summary['bytes']:,} bytes of video")
    if left:
        show("left out: " + ", ".join(f"{count} {why}" for why, count in left.items()))
    for file in summary["files"]:
        show(file)
    if "hub" in summary:
        show(summary["hub"])
    return 0
