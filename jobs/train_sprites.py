"""Trains the embedded backbone from nothing: `python -m jobs.train_sprites`.

Both stages keep their state under `--work-dir` and go on from it when the command is run again. A GPU is used if there
is one; the CPU works too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from miga.backbones.sprites.checkpoint_folder import save_checkpoint
from miga.backbones.sprites.family import CHECKPOINT
from miga.backbones.sprites.train_transformer import train_transformer
from miga.backbones.sprites.train_vae import train_vae
from miga.backbones.sprites.training import pick_device


def main(arguments: list[str] | None = None) -> int:
    """Trains, and writes the checkpoint folder."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train_sprites", description=__doc__)
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="checkpoint folder (default: %(default)s)")
    parser.add_argument("--work-dir", type=Path, default=Path("training"), help="states and encoded clips")
    parser.add_argument("--vae-steps", type=int, default=3200)
    parser.add_argument("--clips", type=int, default=5120, help="clips encoded for the transformer")
    parser.add_argument("--transformer-steps", type=int, default=4600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    options.work_dir.mkdir(parents=True, exist_ok=True)

    vae = train_vae(options.work_dir / "vae.pt", options.vae_steps, options.seed, device)
    transformer, text_encoder, tokenizer = train_transformer(
        vae,
        options.work_dir / "clips.pt",
        options.work_dir / "transformer.pt",
        options.clips,
        options.transformer_steps,
        options.seed,
    )
    save_checkpoint(options.out, vae, transformer, text_encoder, tokenizer)
    print(f"checkpoint: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
