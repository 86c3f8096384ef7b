"""The embedded checkpoint: in the real format, small, and as good as its card says on a sample of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from transformers import T5TokenizerFast, UMT5EncoderModel

from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.sprites.evaluate import base_clips, detail_errors, vae_clips
from miga.backbones.sprites.family import CHECKPOINT as FOLDER
from miga.backbones.sprites.family import CHECKPOINTS
from miga.backbones.sprites.train_transformer import UNKNOWN_ID, TextToVideo, build_tokenizer
from miga.backbones.sprites.world import held_out_scenes
from miga.backbones.wan.backbone import WanBackbone
from miga.base_clip import advance_base_clip, start_base_clip
from miga.denoise_pass import Stepper, run_in_batches
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.solvers import UniPCSolver

PROMPT = "a red circle moving side to side on a grey ground"
VAE_ERRORS = {
    "subject tint": 0.05,
    "ground tint": 0.025,
    "brightness": 0.025,
    "size": 0.04,
    "texture": 0.015,
    "second object": 0.035,
}
"""How far from what was drawn the wide model's VAE may return, by the mean of twelve clips; its card has that of 32."""


@pytest.fixture(scope="module")
def backbone() -> WanBackbone:
    return load_backbone("sprites", device="cpu")


def test_the_folder_is_a_wan_checkpoint_of_at_most_12_mb() -> None:
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    assert index["transformer"][1] == "WanTransformer3DModel"
    assert index["vae"][1] == "AutoencoderKLWan"
    assert index["text_encoder"][1] == "UMT5EncoderModel"
    assert index["scheduler"][1] == "UniPCMultistepScheduler"
    assert index["tokenizer"][1] == "T5TokenizerFast"
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 12_000_000


def test_one_window_at_uniform_levels_equals_diffusers_own_pipeline(backbone: WanBackbone) -> None:
    """Latents and video of a whole base clip against `WanPipeline` on this checkpoint."""
    config = resolve_config("no-reflection", backbone.spec, {"num_steps": 10})
    pipeline = WanPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(1, 8, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = {
        "prompt": PROMPT, "negative_prompt": "", "height": 64, "width": 64, "num_frames": 45,
        "num_inference_steps": config.num_steps, "guidance_scale": config.guidance_scale,
    }  # fmt: skip
    after: dict[int, torch.Tensor] = {}

    def keep(pipeline: WanPipeline, step: int, time: int, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        after[step] = values["latents"].clone()
        return values

    video = pipeline(**asked, latents=start.clone(), output_type="np", callback_on_step_end=keep).frames[0]
    latents = after[config.num_steps - 1]

    embedding, negative = backbone.encode_prompts([PROMPT, ""])
    denoiser = backbone.denoiser(config)
    stepper = Stepper(
        denoiser.schedule,
        UniPCSolver(denoiser.schedule),
        PromptTrack([backbone.condition(embedding, negative)]),
        lambda purpose, indices, candidate=0: start[0].transpose(0, 1),
        run_in_batches(denoiser),
    )
    clip = start_base_clip(config, stepper)
    with torch.no_grad():
        for _ in range(config.num_steps):
            clip = advance_base_clip(clip, config, stepper)
        frames = backbone.frame_decoder().decode_float(clip.x_FCHW)
    torch.testing.assert_close(clip.x_FCHW.transpose(0, 1)[None], latents, atol=3e-5, rtol=1e-5)
    assert np.abs(np.asarray(frames) - video).max() <= 3e-5


@pytest.mark.slow  # of the checkpoint, not of the program
def test_the_vae_keeps_what_the_scorer_reads(backbone: WanBackbone) -> None:
    """At least 98 % of frames right, beyond the longest clips it was trained on too."""
    scores = [clip.score for clip in vae_clips(backbone, 3, num_frames=93)]
    assert np.mean([one.all_right for one in scores]) >= 0.98
    assert np.mean([one.motion for one in scores]) >= 0.98


@pytest.mark.slow
def test_the_base_model_makes_held_out_prompts(backbone: WanBackbone) -> None:
    """A sample of what `jobs.bench model` measures on 64 prompts (there: at least 90 %)."""
    clips = base_clips(backbone, resolve_config("paper", backbone.spec), held_out_scenes(64, seed=0)[:3])
    assert [clip.score.all_right for clip in clips] == [1.0] * 3


def test_training_goes_on_from_the_shipped_weights() -> None:
    """Old words keep their numbers and embeddings, new ones come behind them; a caption of old words means the same."""
    shipped = T5TokenizerFast.from_pretrained(FOLDER / "tokenizer")
    tokenizer = build_tokenizer()
    assert shipped.get_vocab().items() <= tokenizer.get_vocab().items()
    model = TextToVideo(tokenizer).eval()
    model.load_checkpoint(FOLDER)
    encoder = UMT5EncoderModel.from_pretrained(FOLDER / "text_encoder", dtype=torch.float32).eval()
    ids = tokenizer([PROMPT], return_tensors="pt").input_ids
    assert ids.tolist() == shipped([PROMPT], return_tensors="pt").input_ids.tolist()
    with torch.no_grad():
        found, expected = (one(input_ids=ids).last_hidden_state for one in (model.text_encoder, encoder))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert tokenizer.unk_token_id not in tokenizer(["a small red dot on a striped grey ground"]).input_ids[0]
    assert tokenizer.unk_token_id == UNKNOWN_ID
    assert UNKNOWN_ID in tokenizer(["a panda"]).input_ids[0]


def test_training_resumes_exactly(tmp_path: Path) -> None:
    """Ten steps in one go and five and five give the same weights."""
    from miga.backbones.sprites.training import Schedule, train

    def trained(state: Path, *stops: int) -> torch.Tensor:
        for stop in stops:
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))

            def loss_of(step: int, model: torch.nn.Module = model) -> tuple[torch.Tensor, dict[str, float]]:
                x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
                return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

            schedule = Schedule(10, 1e-2, num_warmup_steps=2)
            train("test", model, loss_of, schedule, state, stop_at=stop)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    torch.testing.assert_close(trained(tmp_path / "a.pt", 10), trained(tmp_path / "b.pt", 5, 10), rtol=0, atol=0)


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_every_embedded_model_is_loaded_by_its_name(name: str) -> None:
    """Under a revision of its own, with a tokenizer that knows what training of today names, or a part of it."""
    folder = CHECKPOINTS[name]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 12_000_000
    spec = load_backbone(name, device="cpu", components=("text",)).spec
    assert spec.revision not in {load_spec(other).revision for other in CHECKPOINTS if other != name}
    saved = T5TokenizerFast.from_pretrained(folder / "tokenizer").get_vocab()
    assert saved.items() <= build_tokenizer().get_vocab().items()


@pytest.mark.slow
def test_the_wide_model_s_vae_keeps_what_captions_leave_open() -> None:
    """Of clips with details, against what they were drawn with."""
    wide = load_backbone("sprites-wide", device="cpu")
    clips = vae_clips(wide, 12, detailed=True)
    assert np.mean([clip.score.all_right for clip in clips]) >= 0.97
    errors = detail_errors(clips)
    assert {name: error for name, error in errors.items() if error > VAE_ERRORS[name]} == {}
