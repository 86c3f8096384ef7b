"""Figures of the embedded backbone on this machine: `python -m jobs.bench model | quality | memory | demo`.

Each prints a table, or with `--json` the same for machines; docs/benchmarks.md holds the recorded ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miga.backbones.registry import load_backbone
from miga.backbones.sprites.evaluate import (
    base_clip_scores,
    share_all_right,
    share_of_frames,
    vae_scores,
    world_scores,
)
from miga.backbones.sprites.scorer import Score, score
from miga.backbones.sprites.world import held_out_scenes
from miga.config import resolve_config
from miga.video import make_video
from pipeline.manifest import Manifest
from pipeline.storage import open_storage

LONG_LATENTS = 96
"""Eight times the 12 latents of a clip."""
NUM_RESAMPLES = 2000


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    benches = parser.add_subparsers(required=True, metavar="BENCH")
    model = benches.add_parser("model", help="the world, the VAE and the base clip, by the scorer")
    model.add_argument("--prompts", type=int, default=64)
    model.set_defaults(bench=bench_model)
    quality = benches.add_parser("quality", help="long videos of held-out prompts, profile by profile")
    quality.add_argument("--prompts", type=int, default=16)
    quality.add_argument("--latents", type=int, default=LONG_LATENTS)
    quality.add_argument("--profiles", nargs="+", default=["fifo", "paper"])
    quality.set_defaults(bench=bench_quality)
    memory = benches.add_parser("memory", help="peak memory over the length of a video, each in a fresh process")
    memory.add_argument("--latents", type=int, nargs="+", default=[250, 500, 1000])
    memory.add_argument("--profile", default="paper")
    memory.set_defaults(bench=bench_memory)
    demo = benches.add_parser("demo", help="the run of `make demo`: wall time, memory of all its processes, each video")
    demo.add_argument("--prompts-file", default="examples/prompts.jsonl")
    demo.add_argument("--config", default="jobs/configs/demo.toml")
    demo.set_defaults(bench=bench_demo)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    bench: Callable[[argparse.Namespace], list[dict[str, Any]]] = options.bench
    rows = bench(options)
    print(json.dumps(rows) if options.json else _table(rows))
    return 0


def bench_model(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Shares of frames (world, VAE) and of clips (base model) that show what they should."""
    backbone = load_backbone("sprites", device="cpu")
    config = resolve_config("paper", backbone.spec)
    started_s = time.monotonic()
    clips = base_clip_scores(backbone, config, held_out_scenes(options.prompts, seed=0))
    clip_s = (time.monotonic() - started_s) / options.prompts
    return [
        {"what": "drawn by the world, frames", **share_of_frames(world_scores(options.prompts))},
        {"what": "after the VAE, frames", **share_of_frames(vae_scores(backbone, options.prompts))},
        {"what": f"base clip ({clip_s:.1f} s each), frames", **share_of_frames(clips)},
        {"what": "base clip, whole clips", **_renamed(share_all_right(clips))},
    ]


def bench_quality(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Long videos of held-out prompts: mean of each score with its 95 % bootstrap interval, seconds and calls."""
    backbone = load_backbone("sprites", device="cpu")
    scenes = held_out_scenes(options.prompts, seed=1)
    rows = []
    for profile in options.profiles:
        config = resolve_config(profile, backbone.spec)
        (negative,) = backbone.encode_prompts([backbone.spec.negative_prompt])
        scores: list[Score] = []
        calls: list[int] = []
        searches: list[int] = []
        started_s = time.monotonic()
        for number, scene in enumerate(scenes):
            embeddings = backbone.encode_prompts([scene.caption(number % 3)])
            frames = []
            for step in make_video(backbone, config, embeddings, negative, options.latents, seed=number):
                if step.frames is not None:
                    frames.append(step.frames)
            scores.append(score(np.concatenate(frames) / np.float32(255.0), scene))
            calls.append(step.num_calls)
            searches.append(sum(step.trace.searched))
            print(f"{profile} {number + 1}/{len(scenes)}: {scores[-1]}", file=sys.stderr, flush=True)
        rows.append(
            {
                "profile": profile,
                **{name: _interval([asdict(one)[name] for one in scores]) for name in asdict(scores[0])},
                "calls": float(np.mean(calls)),
                "searches": float(np.mean(searches)),
                "s/video": (time.monotonic() - started_s) / len(scenes),
            }
        )
    return rows


def bench_memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak resident memory of a process that makes one video and keeps none of its frames."""
    rows = []
    for num_latents in options.latents:
        started_s = time.monotonic()
        command = [sys.executable, "-m", "jobs.bench_memory_once", options.profile, str(num_latents)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(
            {"latents": num_latents, **json.loads(out.splitlines()[-1]), "s": round(time.monotonic() - started_s, 1)}
        )
    return rows


def bench_demo(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One whole run on a local Ray: a row per video, then one for the run."""
    with tempfile.TemporaryDirectory(prefix="miga-bench-") as folder:
        command = [
            sys.executable,
            "-m",
            "jobs.cli",
            "generate",
            options.prompts_file,
            folder,
            "--config",
            options.config,
        ]
        started_s = time.monotonic()
        run = subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL)
        peak_bytes = 0
        while run.poll() is None:
            peak_bytes = max(peak_bytes, tree_memory_bytes(run.pid))
            time.sleep(0.2)
        wall_s = time.monotonic() - started_s
        if run.returncode:
            raise SystemExit(f"the run ended with status {run.returncode}")
        storage = open_storage(folder)
        made = list(Manifest(storage, 1000).read_rows())
    rows: list[dict[str, Any]] = [
        {
            "video": row.id,
            "frames": row.num_frames,
            "calls": row.network_calls,
            "searches": row.num_searches,
            "s": (row.denoise_s or 0) + (row.decode_s or 0) + (row.encode_video_s or 0) + (row.upload_s or 0),
            "peak MiB": (row.peak_memory_bytes or 0) / 2**20,
        }
        for row in made
    ]
    return [
        *rows,
        {
            "video": "whole run",
            "frames": sum(row.num_frames or 0 for row in made),
            "calls": sum(row.network_calls or 0 for row in made),
            "searches": sum(row.num_searches for row in made),
            "s": wall_s,
            "peak MiB": peak_bytes / 2**20,
        },
    ]


def tree_memory_bytes(pid: int) -> int:
    """Memory of a process and all it has started, shared pages counted once (Linux: proportional set size)."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    total, todo = 0, [pid]
    while todo:
        current = todo.pop()
        todo += children.get(current, [])
        with contextlib.suppress(OSError):
            fields = (Path("/proc") / str(current) / "smaps_rollup").read_text().split()
            total += int(fields[fields.index("Pss:") + 1]) * 1024
    return total


def peak_memory_mib() -> float:
    """Of this process so far."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _interval(values: list[float]) -> str:
    """Mean and 95 % bootstrap interval over the prompts."""
    data = np.asarray([value for value in values if not np.isnan(value)])
    rng = np.random.default_rng(0)
    means = rng.choice(data, size=(NUM_RESAMPLES, len(data))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{data.mean():.4f} [{low:.4f}, {high:.4f}]"


def _renamed(values: dict[str, float]) -> dict[str, float]:
    return {"all_right" if name.startswith("colour,") else name: value for name, value in values.items()}


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    cells = [[_text(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in [names, *cells]) for column in range(len(names))]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) and abs(value) < 10 else (
        f"{value:.1f}" if isinstance(value, float) else str(value)
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
