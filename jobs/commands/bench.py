"""`miga bench`: figures of this machine. Each bench imports what it runs only when it is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pipeline.terminal import show_json, show_text

GROUP: Final = "measure"
EXAMPLES: Final = ("miga bench sampler --profiles paper swift",)

Tables: TypeAlias = dict[str, list[dict[str, Any]]]
"""Rows by title."""
Bench: TypeAlias = Callable[[argparse.Namespace], Tables]

LONG_LATENTS = 96
"""Eight times the 12 latents of a clip."""
RANDOM_MODELS = ("wan-1.3b", "videocrafter2", "wan-14b")
"""Published models that `backbone` and `gpu` make with random weights."""
PARTS = ("calls", "decode", "frames", "dce", "overlap", "attention", "whole-video", "compile")
"""Tables of `backbone`."""
DTYPES = ("float32", "bfloat16", "float16")
USUAL_PARTS = PARTS[:-2]
FRAME_PROFILES = ("fifo", "no-guidance-no-reflection", "paper", "swift")
CAUSAL_PROFILES = (
    "self-forcing", "longlive", "longlive-infinity", "infinity-rope", "reward-forcing", "rolling-forcing",
    "causal-forcing", "deep-forcing", "lol", "flex-like",
)  # fmt: skip
CLUSTER_PARTS = ("busy", "one-video", "reflection", "rows", "memory")
PROFILE_HELP = "a profile, or one with overrides: paper:num_guidance_latents=0,stride=8"


def add(commands: Any) -> None:
    """Adds the command, with a command of its own for each bench."""
    parser = commands.add_parser("bench", help="figures of the embedded model on this machine")
    benches = parser.add_subparsers(required=True, metavar="BENCH")

    model = _add(benches, "model", _model, "the world, the VAE and the base clip, by the scorer")
    model.add_argument("--prompts", type=int, default=64, help="held-out scenes (default: 64)")
    _add_model(model)

    quality = _add(benches, "quality", _quality, "long videos of held-out prompts, profile against profile")
    _add_comparison(quality, ("full", "partial", "empty", "turns", "details"))
    quality.add_argument("--every-pair", action="store_true", help="compare the others with each other too")

    turns = _add(benches, "turns", _turns, "two prompts in turn: what they name changes, what they leave open stays")
    _add_comparison(turns, ("full", "partial", "empty"))

    drift = _add(benches, "drift", _drift, "identity over the time of long videos of held-out prompts, as a plot")
    drift.add_argument("--prompts", type=int, default=4, help="held-out prompts (default: 4)")
    drift.add_argument("--frames", type=int, default=4001, help="length of the videos (default: 4001)")
    drift.add_argument(
        "--profiles",
        nargs="+",
        default=["fifo", "paper", "released", "swift"],
        metavar="PROFILE",
        help=PROFILE_HELP,
    )
    drift.add_argument(
        "--captions",
        choices=("full", "partial", "empty", "details"),
        default="partial",
        help="how much a prompt names; details: a texture as well",
    )
    drift.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the network")
    _add_making(drift)
    drift.add_argument(
        "--out", metavar="FILE.jsonl", help="a line per finished video: what is there already is not made again"
    )
    drift.add_argument("--read-only", action="store_true", help="make none, show what --out holds")
    drift.add_argument("--plot", metavar="FILE.png", help="where the plot goes")

    chains = _add(
        benches, "chains", _chains, "drift of chains of clips from pictures of the world, model against model"
    )
    chains.add_argument(
        "--models", nargs="+", required=True, metavar="LABEL=FOLDER", help="base=... control=... recycled=..."
    )
    chains.add_argument("--profile", default="svi-shot:num_steps=8,guidance_scale=1.0", help=PROFILE_HELP)
    chains.add_argument("--prompts", type=int, default=32, help="chains, each of a held-out scene (default: 32)")
    chains.add_argument("--clips", type=int, default=20, help="of a chain (default: 20)")
    chains.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the network")
    chains.add_argument("--processes", type=int, help="chains made at a time, one thread each (default: cores)")
    chains.add_argument(
        "--out", metavar="FILE.jsonl", help="a line per finished chain: what is there already is not made again"
    )
    chains.add_argument("--read-only", action="store_true", help="make none, show what --out holds")
    chains.add_argument("--plot", metavar="FILE.png", help="where the plot goes")

    pictures = _add(
        benches,
        "pictures",
        _pictures,
        "videos from pictures of the world, profile against profile: what is kept of them",
    )
    pictures.add_argument("--model", required=True, metavar="FOLDER", help="sprites-i2v, as it was trained; or sprites")
    pictures.add_argument(
        "--profiles",
        nargs="+",
        default=["swift", "swift:image_condition=reference"],
        metavar="PROFILE",
        help=PROFILE_HELP,
    )
    pictures.add_argument("--prompts", type=int, default=16, help="pictures, each of a held-out scene (default: 16)")
    pictures.add_argument("--frames", type=int, default=177, help="of a video (default: 177)")
    pictures.add_argument("--processes", type=int, help="videos made at a time, one thread each (default: cores)")
    pictures.add_argument(
        "--out", metavar="FILE.jsonl", help="a line per finished video: what is there already is not made again"
    )
    pictures.add_argument("--read-only", action="store_true", help="make none, show what --out holds")

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
    demo.add_argument("--prompts-file", metavar="FILE", help="as for generate (default: those of the demo)")
    demo.add_argument("--config", default="demo", metavar="FILE_OR_NAME", help="as for generate (default: demo)")
    demo.add_argument(
        "--set", dest="settings", metavar="KEY=VALUE", action="append", default=[], help="as for generate"
    )

    evaluation = _add(
        benches, "evaluate", _evaluate, "what evaluation costs: operations against making, frames a second"
    )
    evaluation.add_argument("--height", type=int, default=480, help="of the frames that are timed (default: 480)")
    evaluation.add_argument("--width", type=int, default=832, help="of the frames that are timed (default: 832)")
    evaluation.add_argument("--device", help="cpu or cuda[:N] (default: the GPU, where there is one)")
    evaluation.add_argument("--count-only", action="store_true", help="time nothing")

    report = _add(benches, "report", _report, "the page of a run of many rows: writing it, its size, its first card")
    report.add_argument("--rows", type=int, nargs="+", default=[1000, 20_000, 100_000], help="of each run")

    cluster = _add(benches, "cluster", _cluster, "simulated GPUs: how busy they are kept, what the coordinator takes")
    cluster.add_argument(
        "--parts", nargs="+", choices=CLUSTER_PARTS, default=CLUSTER_PARTS, help="tables to make (default: all)"
    )
    cluster.add_argument("--gpus", type=int, default=8, help="simulated, each an actor (default: 8)")
    cluster.add_argument(
        "--call-s", type=float, help="of a window, where a GPU takes 1.4 (default: 0.05, for reflection 0.1)"
    )
    cluster.add_argument("--videos", type=int, default=200, help="of mixed length, for busy (default: 200)")
    cluster.add_argument("--frames", type=int, default=1001, help="of the long video, for one-video (default: 1001)")
    cluster.add_argument(
        "--profiles", nargs="+", default=["paper", "swift"], metavar="PROFILE", help=f"for one-video: {PROFILE_HELP}"
    )
    cluster.add_argument(
        "--reflection-frames", type=int, default=241, help="of the video, for reflection (default: 241)"
    )
    cluster.add_argument(
        "--cells",
        type=int,
        default=28,
        help="rows and columns of a latent, for busy and reflection: the fewer, the more searches (default: 28)",
    )
    cluster.add_argument("--rows", type=int, default=20_000, help="for rows (default: 20000)")
    cluster.add_argument("--memory-rows", type=int, default=1_000_000, help="for memory (default: 1000000)")

    backbone = _add(
        benches, "backbone", _backbone, "a published model with random weights, part by part, on this machine"
    )
    backbone.add_argument("--model", choices=RANDOM_MODELS, default=RANDOM_MODELS[0], help="(default: wan-1.3b)")
    backbone.add_argument("--scale", type=float, default=1.0, help="of a frame's sides (default: 1)")
    backbone.add_argument("--layers", type=int, help="blocks of Wan, or blocks a level of VideoCrafter2 (default: all)")
    backbone.add_argument("--channels", type=float, default=1.0, help="share of the network's channels (default: 1)")
    backbone.add_argument("--device", help="cpu or cuda[:N] (default: the GPU, where there is one)")
    backbone.add_argument("--dtype", choices=DTYPES, help="(default: bfloat16 on a GPU)")
    backbone.add_argument(
        "--parts", nargs="+", choices=PARTS, default=USUAL_PARTS, help="(default: all but the last two)"
    )
    backbone.add_argument("--whole-video", action="store_true", help="make a video too: of the last profile")
    backbone.add_argument("--profiles", nargs="+", default=FRAME_PROFILES, metavar="PROFILE", help=PROFILE_HELP)
    backbone.add_argument("--frames", type=int, help="length of videos (default: the model's)")
    backbone.add_argument("--repeats", type=int, default=5, help="timings of each (default: 5); 1: not even a warm-up")
    backbone.add_argument("--most-s", type=int, default=120, help="time no table for longer (default: 120)")

    causal = _add(benches, "causal", _causal, "causal presets on a published model with random weights, caches full")
    causal.add_argument("--profiles", nargs="+", default=CAUSAL_PROFILES, metavar="PROFILE", help=PROFILE_HELP)
    causal.add_argument("--model", choices=("wan-1.3b", "wan-14b"), default="wan-1.3b", help="(default: wan-1.3b)")
    causal.add_argument("--scale", type=float, default=1.0, help="of a frame's sides (default: 1)")
    causal.add_argument("--layers", type=int, help="blocks of the transformer (default: all)")
    causal.add_argument("--channels", type=float, default=1.0, help="share of the network's channels (default: 1)")
    causal.add_argument("--device", help="cpu or cuda[:N] (default: the GPU, where there is one)")
    causal.add_argument("--dtype", choices=DTYPES, help="(default: bfloat16 on a GPU)")
    causal.add_argument("--blocks", type=int, default=10, help="timed once the cache is full (default: 10)")
    causal.add_argument("--compile", action="store_true", help="compile the transformer's blocks first")
    causal.add_argument("--no-decode", action="store_true", help="leave decoding out")
    causal.add_argument("--repeats", type=int, default=5, help="timings of matrix products (default: 5)")

    gpu = _add(benches, "gpu", _gpu, "all models on a CUDA GPU, with random weights: one Markdown section")
    gpu.add_argument("--out", metavar="FILE.md", help="where the section goes, table by table, besides being printed")
    gpu.add_argument("--budget-min", type=float, default=20.0, help="drop what exceeds it (default: 20)")
    gpu.add_argument("--models", nargs="+", choices=RANDOM_MODELS, default=RANDOM_MODELS, help="(default: all)")
    gpu.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="(default: bfloat16)"
    )
    gpu.add_argument("--repeats", type=int, default=5, help="timings of each call (default: 5)")


def _add(benches: Any, name: str, bench: Bench, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = benches.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.add_argument("--threads", type=int, default=1, help="of the network (default: 1)")
    parser.set_defaults(command=lambda options: _run(bench, options))
    return parser


def _add_comparison(bench: argparse.ArgumentParser, captions: tuple[str, ...]) -> None:
    """What a bench of videos takes that holds profiles against each other."""
    bench.add_argument("--prompts", type=int, default=32, help="held-out prompts (default: 32)")
    bench.add_argument("--first-prompt", type=int, default=0, help="leave out those before it (default: 0)")
    bench.add_argument("--seeds", type=int, default=2, help="videos of each (default: 2)")
    bench.add_argument("--latents", type=int, default=LONG_LATENTS, help=f"of a video (default: {LONG_LATENTS})")
    bench.add_argument(
        "--profiles", nargs="+", default=["fifo", "paper", "swift"], metavar="PROFILE", help=PROFILE_HELP
    )
    bench.add_argument("--against", default="paper", metavar="PROFILE", help="what the others are compared with")
    bench.add_argument(
        "--captions",
        choices=captions,
        default="full",
        help="how much of the scene a prompt names"
        + ("; turns: two full prompts, one attribute apart; details: a texture as well" if "turns" in captions else ""),
    )
    bench.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the network")
    _add_making(bench)
    bench.add_argument(
        "--out", metavar="FILE.jsonl", help="a line per finished video: what is there already is not made again"
    )
    bench.add_argument("--read-only", action="store_true", help="make none, show what --out holds")


def _add_model(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "--model",
        default="sprites",
        metavar="MODEL",
        help="the embedded one, or a folder that `jobs.train_sprites` wrote (default: sprites)",
    )


def _add_making(bench: argparse.ArgumentParser) -> None:
    """Of what videos are made."""
    _add_model(bench)
    bench.add_argument("--processes", type=int, help="videos made at a time, one thread each (default: cores)")


def _run(bench: Bench, options: argparse.Namespace) -> int:
    import torch

    from jobs.shared.table import format_table
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
        show_json(tables)
    else:
        show_text("\n\n".join(f"{title}\n\n{format_table(rows)}" for title, rows in tables.items()))
    return 0


def _model(options: argparse.Namespace) -> Tables:
    from jobs.benches.model import bench_model

    return bench_model(options.prompts, options.model)


def _quality(options: argparse.Namespace) -> Tables:
    from jobs.benches.quality import bench_quality

    return bench_quality(options)


def _turns(options: argparse.Namespace) -> Tables:
    from jobs.benches.turns import bench_turns

    return bench_turns(options)


def _drift(options: argparse.Namespace) -> Tables:
    from jobs.benches.drift import bench_drift

    return bench_drift(options)


def _chains(options: argparse.Namespace) -> Tables:
    from jobs.benches.chains import bench_chains

    return bench_chains(options)


def _pictures(options: argparse.Namespace) -> Tables:
    from jobs.benches.pictures import bench_pictures

    return bench_pictures(options)


def _memory(options: argparse.Namespace) -> Tables:
    from jobs.benches.memory import bench_memory

    return bench_memory(options.profiles, options.frames, options.threads)


def _sampler(options: argparse.Namespace) -> Tables:
    from jobs.benches.run_share import bench_run_share
    from jobs.benches.solver_speed import bench_solver_speed

    return bench_run_share(options.profiles, options.frames) | bench_solver_speed()


def _demo(options: argparse.Namespace) -> Tables:
    from jobs.benches.demo import bench_demo

    return bench_demo(options.prompts_file, options.config, options.settings)


def _report(options: argparse.Namespace) -> Tables:
    from jobs.benches.report_page import bench_report

    return bench_report(options.rows)


def _evaluate(options: argparse.Namespace) -> Tables:
    from jobs.benches.evaluation import bench_evaluate

    return bench_evaluate(options.height, options.width, options.device, not options.count_only)


def _cluster(options: argparse.Namespace) -> Tables:
    from jobs.benches.cluster import bench_cluster

    return bench_cluster(options)


def _backbone(options: argparse.Namespace) -> Tables:
    from jobs.benches.backbone import bench_backbone

    return bench_backbone(options)


def _causal(options: argparse.Namespace) -> Tables:
    from jobs.benches.causal import bench_causal

    return bench_causal(options)


def _gpu(options: argparse.Namespace) -> Tables:
    from jobs.benches.gpu import bench_gpu

    return bench_gpu(options)
