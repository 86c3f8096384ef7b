"""Trains `sprites-i2v`, image-conditioned clips of the sprite world: `python -m jobs.train_sprites_i2v --out FOLDER`.

It begins from any sprites checkpoint, by default `sprites-wide`, which knows in what pictures of the world differ: its
transformer is widened, or, where it takes pictures already, trained on. Clips and the state of training are kept under
`--work-dir`, and gone on with when the command is run again. With `--steps 0` it writes the widened model as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from miga.backbones.sprites.family import CHECKPOINTS
from miga.backbones.sprites.image_to_video import (
    LEARNING_RATE,
    conditioned_loss,
    encode_world_clips,
    read_backbone,
    train_image_to_video,
    widened,
    write_image_to_video,
)
from miga.backbones.sprites.train_transformer import BATCH
from miga.backbones.sprites.training import pick_device
from miga.errors import MigaError


def main(arguments: list[str] | None = None) -> int:
    """Trains, and writes the checkpoint folder."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train_sprites_i2v", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument(
        "--begin-from",
        type=Path,
        default=CHECKPOINTS["sprites-wide"],
        metavar="FOLDER",
        help="a sprites checkpoint (default: sprites-wide)",
    )
    parser.add_argument("--work-dir", type=Path, default=Path("training/i2v"), help="state and encoded clips")
    parser.add_argument("--clips", type=int, default=2560, help="clips that are encoded and learnt from")
    parser.add_argument("--steps", type=int, default=1500, help="of the schedule; 0 writes the widened model untrained")
    parser.add_argument("--stop-at", type=int, help="stop after so many steps of the schedule, to be gone on with")
    parser.add_argument("--batch", type=int, default=BATCH, help="clips in a step")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    for name in ("clips", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} is out of range: it must be 1 or more")
    if options.steps < 0 or (options.stop_at is not None and not 0 < options.stop_at <= options.steps):
        parser.error(f"--steps {options.steps} and --stop-at {options.stop_at} do not go together")
    torch.set_num_threads(options.threads)
    try:
        return _train(options)
    except MigaError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _train(options: argparse.Namespace) -> int:
    device = pick_device(options.device)
    backbone = read_backbone(options.begin_from, device)
    takes_pictures = backbone.spec.image_input == "channels"
    transformer = backbone.network if takes_pictures else widened(backbone.network)
    if options.steps:
        options.work_dir.mkdir(parents=True, exist_ok=True)
        clips = encode_world_clips(backbone, options.clips, options.seed, options.work_dir / "clips")
        before = conditioned_loss(transformer, clips)
        assert backbone.text is not None
        transformer = train_image_to_video(
            transformer,
            backbone.text.encoder,
            backbone.text.tokenizer,
            clips,
            options.work_dir / "transformer.pt",
            options.steps,
            options.seed,
            batch=options.batch,
            device=device,
            stop_at=options.stop_at,
            learning_rate=options.learning_rate,
        )
        print(f"loss under pictures: {before:.4f} as it began, {conditioned_loss(transformer, clips):.4f} now")
    write_image_to_video(options.out, backbone, transformer)
    print(f"checkpoint: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
