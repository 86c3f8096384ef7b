"""Trains the embedded backbone on to few steps: `python -m jobs.train_sprites_causal`, causal, or for windows.

Causal weights come by teacher forcing, then causal consistency distillation, then distribution matching over the
student's own rollouts. `--kind window` distils alone, all latents of a window seeing each other. Every stage keeps its
state under `--work-dir` and goes on from it when the command is run again; one of 0 steps is left out. What comes out
is a model's folder, and the difference that `--model sprites-causal` (or `sprites-few-step`) reads.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file
from transformers import T5TokenizerFast, UMT5EncoderModel

from miga.backbones.registry import load_spec
from miga.backbones.sprites.difference import save_difference, with_difference
from miga.backbones.sprites.family import CHECKPOINT, DIFFERENCES, FEW_STEPS
from miga.backbones.sprites.self_forcing import match
from miga.backbones.sprites.train_causal import (
    BATCH,
    BLOCK,
    WINDOW,
    Captions,
    Examples,
    distil,
    train_teacher,
)
from miga.backbones.sprites.train_transformer import EncodedClips, encode_clips
from miga.backbones.sprites.training import pick_device
from miga.errors import MigaError

MATCHING_STEPS = 800
_NAMES = {"causal": "sprites-causal", "window": "sprites-few-step"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.train_sprites_causal", description=__doc__)
    parser.add_argument("--base", type=Path, default=CHECKPOINT, help="checkpoint to train on from (%(default)s)")
    parser.add_argument("--begin-from", type=Path, help="difference from it that the first stage begins from")
    parser.add_argument("--kind", choices=_NAMES, default="causal", help="whose few steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder to write, a model for --model (default: none)")
    parser.add_argument("--difference", type=Path, help="file to write (default: the package's own)")
    parser.add_argument("--work-dir", type=Path, default=Path("training-causal"), help="states and encoded clips")
    parser.add_argument("--clips", type=int, default=1024, help="clips encoded (default: %(default)s)")
    parser.add_argument("--latents", type=int, default=24, help="of a clip, whole blocks (default: %(default)s)")
    parser.add_argument("--teacher-steps", type=int, default=2000, help="of teacher forcing (default: %(default)s)")
    parser.add_argument("--distil-steps", type=int, default=1000, help="of distillation (default: %(default)s)")
    parser.add_argument(
        "--matching-steps", type=int, help=f"of distribution matching, causal alone (default: {MATCHING_STEPS})"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help="clips a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="compile the transformer (needs a C++ compiler)")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program with a message where what was asked for cannot be."""
    if options.latents < WINDOW or options.latents % BLOCK:
        parser.error(f"--latents {options.latents}: take {WINDOW} or more, a multiple of {BLOCK}")
    if options.matching_steps is None:
        options.matching_steps = MATCHING_STEPS if options.kind == "causal" else 0
    if options.matching_steps and options.kind != "causal":
        parser.error("--matching-steps is for --kind causal: it rolls out block by block")
    for name in ("teacher_steps", "distil_steps", "matching_steps"):
        if getattr(options, name) < 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: take 0 or more")
    if not (options.base / "transformer").is_dir():
        parser.error(f"--base {options.base} is no model's folder: it has no transformer/")
    if options.begin_from is not None and not options.begin_from.is_file():
        parser.error(f"--begin-from {options.begin_from}: there is no such file")


def main(arguments: list[str] | None = None) -> int:
    """Trains, and writes the folder and the difference."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    torch.set_num_threads(options.threads)
    try:
        return _train(options)
    except MigaError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _train(options: argparse.Namespace) -> int:
    torch.manual_seed(options.seed)
    device, base, work = pick_device(options.device), options.base, options.work_dir
    work.mkdir(parents=True, exist_ok=True)

    encoder = UMT5EncoderModel.from_pretrained(base, subfolder="text_encoder", dtype=torch.float32)
    encoder = encoder.to(device).eval().requires_grad_(False)
    tokenizer = T5TokenizerFast.from_pretrained(base / "tokenizer")
    captions = Captions(encoder, tokenizer, options.seed, options.batch, device)
    student = _transformer(base)
    before = load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")
    if options.begin_from is not None:
        student.load_state_dict(with_difference(options.begin_from, before))
    student = student.to(device)
    is_causal, compiled = options.kind == "causal", options.compile
    if (is_causal and options.teacher_steps) or options.distil_steps:
        examples = Examples(**vars(captions), clips=_clips(options, device))
    if is_causal and options.teacher_steps:
        student = train_teacher(student, examples, work / "teacher.pt", options.teacher_steps, compiled=compiled)
    if options.distil_steps:
        state_file = work / f"distil-{options.kind}.pt"
        student = distil(options.kind, student, examples, state_file, options.distil_steps, compiled=compiled)
    if options.matching_steps:
        spec, state_file = load_spec(str(base)), work / "matching.pt"
        window_teacher = _transformer(base).to(device)
        latent_size = (spec.latent_height, spec.latent_width)
        steps = options.matching_steps
        student = match(student, window_teacher, captions, latent_size, state_file, steps, compiled=compiled)

    weights = {name: tensor.detach().cpu() for name, tensor in student.state_dict().items()}
    file = options.difference or DIFFERENCES / f"{_NAMES[options.kind]}.safetensors"
    told = ("kind", "clips", "latents", "teacher_steps", "distil_steps", "matching_steps", "batch", "seed")
    notes = {name: str(getattr(options, name)) for name in told}
    if options.begin_from is not None:
        notes["begin_from"] = options.begin_from.name
    save_difference(file, before, weights, notes)
    print(f"difference: {file}")
    if options.out is not None:
        write_folder(options.out, base, student, few_steps=options.kind == "window")
        print(f"checkpoint: {options.out}")
    return 0


def _transformer(base: Path) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(base, subfolder="transformer", torch_dtype=torch.float32)


def _clips(options: argparse.Namespace, device: torch.device) -> EncodedClips:
    vae = AutoencoderKLWan.from_pretrained(options.base, subfolder="vae").to(device, torch.float32).eval()
    num_frames = 1 + 4 * (options.latents - 1)
    folder = options.work_dir / f"clips-{options.latents}"
    return encode_clips(vae, options.clips, options.seed, folder, num_frames)


def write_folder(out: Path, base: Path, student: WanTransformer3DModel, *, few_steps: bool) -> None:
    """A checkpoint's folder with another transformer, in half precision.

    Args:
        out: to write; the transformer of one that is there is replaced.
        base: the checkpoint that all else is of.
        student: the transformer.
        few_steps: whether window methods take its few steps unless told otherwise.
    """
    shutil.copytree(base, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
    student.to("cpu", torch.float16).save_pretrained(out / "transformer")
    if few_steps:
        settings = json.loads((out / "miga.json").read_text())
        settings["sampler"] = {**settings["sampler"], **FEW_STEPS}
        (out / "miga.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
