"""`miga config`: what a config may say, and what one comes to."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import add_config_options, add_model_options, add_sampler_options, model_settings
from pipeline.terminal import show, show_json, show_text

GROUP: Final = "models and settings"
EXAMPLES: Final = (
    "miga config list",
    "miga config schema > miga-config.schema.json",
    "miga config schema grid > miga-grid.schema.json",
    "miga config show --config wan --set sampler.num_steps=40",
)


def add(commands: Any) -> None:
    """Adds the command, with a command of its own for each question."""
    text = "configs: their schema, the shipped ones, what one comes to"
    config = commands.add_parser("config", help=text, description=text)
    questions = config.add_subparsers(required=True, metavar="QUESTION")

    schema_text = "print a JSON schema of configs, or of grids, by which editors complete and check them"
    schema = questions.add_parser("schema", help=schema_text, description=schema_text)
    schema.add_argument(
        "what", metavar="WHAT", nargs="?", choices=("run", "grid"), default="run",
        help="run: what --config takes; grid: what `miga ablate --grid` takes (default: run)",
    )  # fmt: skip
    schema.set_defaults(command=_schema)

    show_help = "print a whole config as TOML: with its defaults, and the sampler's settings for its model"
    show_ = questions.add_parser("show", help=show_help, description=show_help)
    add_config_options(show_.add_argument_group("config"))
    add_model_options(show_.add_argument_group("model"))
    add_sampler_options(show_.add_argument_group("videos"))
    show_.add_argument("--json", action="store_true", help="print for machines")
    show_.set_defaults(command=_show)

    list_help = "name the shipped configs, which --config takes, and where they are"
    list_ = questions.add_parser("list", help=list_help, description=list_help)
    list_.add_argument("--json", action="store_true", help="print for machines")
    list_.set_defaults(command=_list)


def _schema(options: argparse.Namespace) -> int:
    from pipeline.config_schema import config_schema
    from pipeline.grid_schema import grid_schema

    show_json(grid_schema() if options.what == "grid" else config_schema(), indent=2)
    return 0


def _show(options: argparse.Namespace) -> int:
    from jobs.run.plan import resolve_settings
    from jobs.shared.run_config import read_config
    from jobs.shared.toml import to_toml
    from pipeline.config import override

    said = read_config(options.config, options.settings, **model_settings(options), profile=options.profile)
    spec, sampler, num_frames = resolve_settings(said)
    settings = {name: value for name, value in sampler.to_dict().items() if name != "profile"}
    values = override(said, num_frames=num_frames).to_dict() | {"sampler": settings}
    if options.json:
        show_json(values, indent=2)
    else:
        show(f"# frames of {spec.width}x{spec.height} at {spec.fps} a second; a window is {spec.window} latents")
        show_text(to_toml(values).rstrip("\n"))
    return 0


def _list(options: argparse.Namespace) -> int:
    from jobs.shared.run_config import shipped_configs

    configs = {name: str(path) for name, path in shipped_configs().items()}
    if options.json:
        show_json(configs)
    else:
        width = max(map(len, configs))
        show(*(f"{name:<{width}}  {path}" for name, path in configs.items()))
    return 0
