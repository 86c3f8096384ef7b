"""The command line of the benchmarks. Each imports what it runs only when it is asked for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, TypeAlias

Tables: TypeAlias = dict[str, list[dict[str, Any]]]
"""Rows by title."""
Bench: TypeAlias = Callable[[argparse.Namespace], Tables]

LONG_LATENTS = 96
"""Eight times the 12 latents of a clip."""
PROFILE_HELP = "a profile, or one with overrides: paper:num_guidance_latents=0,stride=8"


def add_benches(parser: argparse.ArgumentParser) -> None:
    """Adds one subcommand per benchmark; each sets `command`, a function from its options to the exit status."""
    benches = parser.add_subparsers(required=True, metavar="BENCH")

    model = _add(benches, "model", _model, "the world, the VAE and the base clip, by the scorer")
    model.add_argument("--prompts", type=int, default=64, help="held-out scenes (default: 64)")

    quality = _add(benches, "quality", _quality, "long videos of held-out prompts, profile against profile")
    quality.add_argument("--prompts", type=int, default=32, help="held-out prompts (default: 32)")
    quality.add_argument("--first-prompt", type=int, default=0, help="leave out those before it (default: 0)")
    quality.add_argument("--seeds", type=int, default=2, help="videos of each (default: 2)")
    quality.add_argument("--latents", type=int, default=LONG_LATENTS, help=f"of a video (default: {LONG_LATENTS})")
    quality.add_argument(
        "--profiles", nargs="+", default=["fifo", "paper", "swift"], metavar="PROFILE", help=PROFILE_HELP
    )
    quality.add_argument("--against", default="paper", metavar="PROFILE", help="what the others are compared with")
    quality.add_argument(
        "--captions", choices=("full", "partial", "empty"), default="full", help="how much of the scene a prompt names"
    )
    quality.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the network")
    quality.add_argument("--processes", type=int, help="videos made at a time, one thread each (default: cores)")
    quality.add_argument(
        "--out", metavar="FILE.jsonl", help="a line per finished video: what is there already is not made again"
    )
    quality.add_argument("--read-only", action="store_true", help="make none, show what --out holds")

    memory = _add(benches, "memory", _memory, "resident memory of a worker over the length of one video")
    memory.add_argument("--profiles", nargs="+", default=["paper", "swift"], metavar="PROFILE", help=PROFILE_HELP)
    memory.add_argument(
        "--frames", type=int, nargs="+", default=[500, 1000, 1500, 2000], help="when to look; the last is the length"
    )

    sampler = _add(benches, "sampler", _sampler, "what the sampler itself costs: its share of a run, its solver steps")
    sampler.add_argument(
        "--profiles", nargs="+", default=["fifo", "paper", "swift"], metavar="PROFILE", help=PROFILE_HELP
    )
    sampler.add_argument("--frames", type=int, default=101, help="length of the videos")

    demo = _add(benches, "demo", _demo, "the run of `make demo`: wall time, memory of all its processes, each video")
    demo.add_argument("--prompts-file", default="examples/prompts.jsonl")
    demo.add_argument("--config", default="jobs/configs/demo.toml")


def _add(benches: Any, name: str, bench: Bench, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = benches.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.add_argument("--threads", type=int, default=1, help="of the network (default: 1)")
    parser.set_defaults(command=lambda options: _run(bench, options))
    return parser


def _run(bench: Bench, options: argparse.Namespace) -> int:
    import torch

    from jobs.bench.table import format_table
    from miga.allocator import keep_heap_steady
    from miga.errors import UsageError

    for name, value in vars(options).items():
        least = 0 if name == "first_prompt" else 1
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool) and number < least:
                raise UsageError(f"--{name.replace('_', '-')} {number} is too small", f"it must be at least {least}")
    keep_heap_steady()
    torch.set_num_threads(options.threads)
    tables = bench(options)
    if options.json:
        print(json.dumps(tables))
    else:
        print("\n\n".join(f"{title}\n\n{format_table(rows)}" for title, rows in tables.items()))
    return 0


def _model(options: argparse.Namespace) -> Tables:
    from jobs.bench.model import bench_model

    return bench_model(options.prompts)


def _quality(options: argparse.Namespace) -> Tables:
    from jobs.bench.quality import bench_quality

    return bench_quality(options)


def _memory(options: argparse.Namespace) -> Tables:
    from jobs.bench.memory import bench_memory

    return bench_memory(options.profiles, options.frames, options.threads)


def _sampler(options: argparse.Namespace) -> Tables:
    from jobs.bench.run_share import bench_run_share
    from jobs.bench.solver_speed import bench_solver_speed

    return bench_run_share(options.profiles, options.frames) | bench_solver_speed()


def _demo(options: argparse.Namespace) -> Tables:
    from jobs.bench.demo import bench_demo

    return bench_demo(options.prompts_file, options.config)
