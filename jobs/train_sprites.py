"""Trains the embedded backbone: `python -m jobs.train_sprites`, from nothing, or on from a checkpoint's weights.

All stages keep their state under `--work-dir` and go on from it when the command is run again, with more steps or more
clips too. A GPU is used if there is one; the CPU works too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from miga.backbones.sprites.checkpoint_folder import save_checkpoint
from miga.backbones.sprites.family import CHECKPOINT
from miga.backbones.sprites.train_transformer import BATCH, encode_clips, train_transformer
from miga.backbones.sprites.train_vae import train_decoder, train_vae
from miga.backbones.sprites.training import pick_device
from miga.errors import MigaError


def main(arguments: list[str] | None = None) -> int:
    """Trains, and writes the checkpoint folder."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train_sprites", description=__doc__)
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="checkpoint folder (default: %(default)s)")
    parser.add_argument("--work-dir", type=Path, default=Path("training"), help="states and encoded clips")
    parser.add_argument(
        "--begin-from",
        type=Path,
        metavar="FOLDER",
        help="checkpoint whose weights both stages begin from (default: none)",
    )
    parser.add_argument("--vae-steps", type=int, default=3200, help="0 keeps the VAE of --begin-from")
    parser.add_argument("--decoder-steps", type=int, default=0, help="steps of the VAE's decoder alone, at the end")
    parser.add_argument("--clips", type=int, default=5120, help="clips encoded for the transformer")
    parser.add_argument("--transformer-steps", type=int, default=4600)
    parser.add_argument("--batch", type=int, default=BATCH, help="clips in a step of the transformer")
    parser.add_argument("--compile", action="store_true", help="compile the transformer (needs a C++ compiler)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    if not options.vae_steps and options.begin_from is None:
        parser.error("--vae-steps 0 needs --begin-from, which names the VAE to keep")
    if options.begin_from is not None and not (options.begin_from / "transformer").is_dir():
        parser.error(f"--begin-from {options.begin_from} is no checkpoint's folder: it has no transformer/")
    torch.set_num_threads(options.threads)
    try:
        return _train(options)
    except MigaError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _train(options: argparse.Namespace) -> int:
    device = pick_device(options.device)
    work = options.work_dir
    work.mkdir(parents=True, exist_ok=True)

    if options.vae_steps:
        vae = train_vae(work / "vae.pt", options.vae_steps, options.seed, device, options.begin_from)
    else:
        vae = AutoencoderKLWan.from_pretrained(options.begin_from, subfolder="vae").to(device, torch.float32).eval()
    transformer, text_encoder, tokenizer = train_transformer(
        vae,
        encode_clips(vae, options.clips, options.seed, work / "clips"),
        work / "transformer.pt",
        options.transformer_steps,
        options.seed,
        begin_from=options.begin_from,
        batch=options.batch,
        compiled=options.compile,
    )
    if options.decoder_steps:
        vae = train_decoder(vae, work / "decoder.pt", options.decoder_steps, options.seed, device)
    save_checkpoint(options.out, vae, transformer, text_encoder, tokenizer)
    print(f"checkpoint: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
