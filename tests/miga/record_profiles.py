"""What every profile makes, written down: `python -m tests.miga.record_profiles` adds what is missing.

The figures of `tests/fixtures/profiles_recorded.json` are of the version before methods got folders of their own;
`test_profiles_recorded.py` makes the same again. Delete an entry only for a reason that the changelog gives, for it
means that videos change.

A video: the embedded model (float32, one thread), or a small VideoCrafter2 with the recorded weights; one of three
sizes: "short", "long" and "two prompts". SHA-256 is of bytes that a processor's kernels have a say in, so the kind of
processor is written down beside them, and means that hold on any.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from miga.backbones.registry import load_backbone, load_spec
from miga.cost import count_calls
from miga.profiles import resolve_config
from miga.video import VideoRun
from tests.machine import machine
from tests.miga.closed_form import PROFILES
from tests.tiny_videocrafter2 import build_tiny_videocrafter2

FILE: Final = Path(__file__).parents[1] / "fixtures" / "profiles_recorded.json"
SEED: Final = 7
PROMPTS: Final = ("a red circle", "a blue ring")
SMALL_MODEL: Final = "tiny videocrafter2"
SMALL_MODEL_PROFILES: Final = ("released", "fifo", "paper")
FORCED: Final = ("paper", "swift", "released")
"""Profiles whose self-reflection searches at every fall of the score, too."""


@dataclass(frozen=True)
class Case:
    """One video that is made.

    Attributes:
        model: "sprites" or `SMALL_MODEL`.
        profile: of the sampler.
        size: "short", "long", "two prompts" or "searches" (a short one that searches at every fall).
    """

    model: str
    profile: str
    size: str

    @property
    def name(self) -> str:
        """What it stands under in the file."""
        return f"{self.model}/{self.profile}/{self.size}"


def cases() -> list[Case]:
    """All of them."""
    found = []
    for model, names in (("sprites", tuple(PROFILES)), (SMALL_MODEL, SMALL_MODEL_PROFILES)):
        for profile in names:
            sizes = ["short", "long", "two prompts"] + ["searches"] * (profile in FORCED)
            found += [Case(model, profile, size) for size in sizes]
    return found


@cache
def model_folder(model: str) -> str:
    """What loads it; a small one is made first."""
    if model != SMALL_MODEL:
        return model
    return str(build_tiny_videocrafter2(Path(tempfile.mkdtemp(prefix="miga-recorded-")) / "tiny"))


@cache
def backbone_of(model: str) -> Any:
    """Loaded once."""
    return load_backbone(model_folder(model), device="cpu")


def config_of(case: Case, spec: Any) -> Any:
    """The profile's settings, on the embedded model in fewer steps than published: a video in a third of the time."""
    overrides: dict[str, Any] = {"reflection_threshold": 0.0} if case.size == "searches" else {}
    if case.model == "sprites":
        overrides["num_steps"] = 18
        published = resolve_config(case.profile, spec)
        if getattr(published, "self_reflection", False):
            overrides["judged_group"] = 3 if published.zigzag_width > 1 else 4
    return resolve_config(case.profile, spec, overrides)


def make(case: Case) -> dict[str, Any]:
    """The video's figures, as they stand in the file."""
    torch.set_num_threads(1)
    spec, backbone = load_spec(model_folder(case.model)), backbone_of(case.model)
    config = config_of(case, spec)
    num_latents = 2 * spec.window + 5 if case.size == "long" else spec.window + 3
    prompts = PROMPTS if case.size == "two prompts" else PROMPTS[:1]
    *embeddings, negative = backbone.encode_prompts([*prompts, spec.negative_prompt])
    latents, frames = [], []
    with VideoRun(backbone, config, embeddings, negative, num_latents, SEED) as run:
        for step in run.steps():
            if step.frames is not None:
                frames.append(step.frames)
            if run.sampler_state.num_finished > sum(map(len, latents)):
                latents.append(run.checkpoint().latents_FCHW)
        trace, num_calls = run.sampler_state.trace, run.sampler.num_calls
    latents_FCHW, frames_FHWC = torch.cat(latents), np.concatenate(frames)
    assert len(latents_FCHW) == num_latents
    count = count_calls(config, num_latents)
    return {
        "latents": num_latents,
        "frames": len(frames_FHWC),
        "calls": num_calls,
        "counted_calls": count.total,
        "counted_per_search": count.per_search,
        "evaluations": len(trace.scores),
        "searches": sum(trace.searched),
        "corrections": sum(trace.corrected),
        "latents_sha256": hashlib.sha256(latents_FCHW.contiguous().numpy().tobytes()).hexdigest(),
        "frames_sha256": hashlib.sha256(frames_FHWC.tobytes()).hexdigest(),
        "latents_mean_std": [
            round(float(latents_FCHW.double().mean()), 6),
            round(float(latents_FCHW.double().std()), 6),
        ],
        "frames_mean": round(float(frames_FHWC.mean()), 3),
    }


def read() -> dict[str, Any]:
    """The file."""
    return json.loads(FILE.read_text()) if FILE.exists() else {"machine": machine(), "videos": {}}


def main() -> int:
    """Adds what is missing."""
    recorded = read()
    if recorded["machine"] != machine():
        print(f"the file is of {recorded['machine']}, this machine is {machine()}", file=sys.stderr)
        return 1
    for case in cases():
        if case.name not in recorded["videos"]:
            recorded["videos"][case.name] = make(case)
            FILE.write_text(json.dumps(recorded, indent=1) + "\n")
            print(case.name, recorded["videos"][case.name]["calls"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
