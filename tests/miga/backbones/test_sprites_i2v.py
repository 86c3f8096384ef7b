"""`sprites-i2v`: before training it is the text-to-video model bit for bit; it learns, and goes on bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.train_sprites_i2v import main
from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.sprites import image_to_video
from miga.backbones.sprites.family import CHECKPOINT
from miga.backbones.sprites.image_to_video import (
    KINDS,
    conditioned_loss,
    encode_world_clips,
    read_backbone,
    train_image_to_video,
    widened,
)
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.errors import ModelError, OutputError
from miga.image_condition import Pictures
from miga.profiles import resolve_config
from miga.training.encoded import EncodedClips
from miga.video import make_video

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> WanBackbone:
    return read_backbone(CHECKPOINT, CPU)


@pytest.fixture(scope="module")
def clips(backbone: WanBackbone, tmp_path_factory: pytest.TempPathFactory) -> EncodedClips:
    return encode_world_clips(backbone, 12, 0, tmp_path_factory.mktemp("clips"))


def test_before_training_it_is_the_text_to_video_model_bit_for_bit(backbone: WanBackbone) -> None:
    """Under an empty condition, at one noise level and at many, one clip and two."""
    wide = widened(backbone.network)
    assert wide.config.in_channels == 20
    assert (
        sum(part.numel() for part in wide.parameters()) - sum(part.numel() for part in backbone.network.parameters())
        == 12 * 192 * 4
    )
    for network in (wide, backbone.network):
        use_compact_padding(network)
        use_per_latent_timesteps(network)
    generator = torch.Generator().manual_seed(0)
    for batch, level in ((1, None), (2, None), (2, 12)):
        x = torch.randn(batch, 8, 12, 8, 8, generator=generator)
        text = torch.randn(batch, 7, 64, generator=generator)
        shape = (batch,) if level is None else (batch, level)
        time = 1000.0 * torch.rand(shape, generator=generator)
        empty = torch.zeros(batch, 12, 12, 8, 8)
        with torch.no_grad():
            narrow = backbone.network(x, time, text, return_dict=False)[0]
            assert torch.equal(wide(torch.cat([x, empty], 1), time, text, return_dict=False)[0], narrow)
            filled = wide(torch.cat([x, torch.ones_like(empty)], 1), time, text, return_dict=False)[0]
            assert torch.equal(filled, narrow), "new columns are zero"
    with pytest.raises(ModelError, match="has a condition already"):
        widened(wide)


@pytest.mark.slow
def test_conditions_of_the_world(backbone: WanBackbone, clips: EncodedClips) -> None:
    """Firsts are shown their own first frame, others what comes before them; masks say what is given."""
    kinds = {tuple(sorted(clips[index].conditions)) for index in range(len(clips))}
    assert kinds == {("film-1", "pro-0", "shot-1"), ("film-5", "pro-1", "shot-1")}
    assert set(KINDS) == {*(name for kind in kinds for name in kind), "none"}
    for index in range(4):
        clip = clips[index]
        for name, y in clip.conditions.items():
            assert torch.equal(y[:4, 0], torch.ones(4, 8, 8))
            assert y[:4, 1:].abs().max() == 0.0
            if name == "pro-1":  # latents of the same four frames, seen from either side of the hand-over
                assert torch.equal(y[4:, 2:], torch.zeros(8, 10, 8, 8))
                assert float((y[4:, 1]).abs().max()) > 0.0
            elif name != "pro-0":  # the first latent sees the first frame alone
                assert torch.allclose(y[4:, 0], clip.clean_CFHW[:, 0], atol=2e-2)


@pytest.mark.slow
def test_clips_of_another_model_are_not_gone_on_with(backbone: WanBackbone, clips: EncodedClips) -> None:
    """The embedded weights are trained anew now and then."""
    assert len(encode_world_clips(backbone, 2, 0, clips.folder)) == 2
    with pytest.raises(OutputError, match="clips of another seed"):
        encode_world_clips(backbone, 2, 1, clips.folder)
    other = WanBackbone(replace(backbone.spec, revision="retrained"), CPU)
    with pytest.raises(OutputError, match="clips of another model"):
        encode_world_clips(other, 2, 0, clips.folder)
    assert len(encode_world_clips(backbone, 12, 0, clips.folder)) == 12


@pytest.mark.slow
def test_it_learns_and_goes_on_bit_for_bit(backbone: WanBackbone, clips: EncodedClips, tmp_path: Path) -> None:
    assert backbone.text is not None

    def trained(file: Path, stop_at: int | None, told: list[float]) -> dict[str, torch.Tensor]:
        wide = widened(backbone.network)
        found = train_image_to_video(
            wide, backbone.text.encoder, backbone.text.tokenizer, clips, file, 16, 0, batch=4, device=CPU,
            stop_at=stop_at, told=told,
        )  # fmt: skip
        return {name: part.clone() for name, part in found.state_dict().items()}

    losses: list[float] = []
    whole = trained(tmp_path / "whole.pt", None, losses)
    trained(tmp_path / "halves.pt", 5, [])
    halves = trained(tmp_path / "halves.pt", None, [])
    assert all(torch.equal(part, halves[name]) for name, part in whole.items())
    wide = widened(backbone.network)
    before = conditioned_loss(wide, clips, most=6)
    wide.load_state_dict(whole)
    after = conditioned_loss(wide, clips, most=6)
    print("loss under pictures", before, "->", after, "steps", np.round(losses, 3))
    assert after < 0.97 * before


@pytest.mark.slow
def test_the_command_writes_a_model_that_chains_take(tmp_path: Path) -> None:
    """Untrained: a clip of each profile that hands over something else; frames as long as said."""
    assert main(["--out", str(tmp_path / "i2v"), "--steps", "0", "--threads", "1"]) == 0
    spec = load_spec(str(tmp_path / "i2v"))
    assert (spec.image_input, spec.needs_image, spec.num_condition_channels) == ("channels", True, 12)
    backbone = load_backbone(str(tmp_path / "i2v"), device="cpu")
    words = backbone.encode_prompts(["a red circle on a grey ground", ""])
    picture = torch.zeros(3, 64, 64)
    for profile, length in (("svi-film", 85), ("svi-shot", 89), ("svi-2-pro", 86)):
        config = resolve_config(profile, spec, {"num_steps": 2})
        length = spec.of_clips(config.clips).num_frames(24)
        steps = make_video(
            backbone,
            config,
            [words[0]],
            words[1],
            24,
            0,
            pictures=Pictures(backbone, picture),  # type: ignore[arg-type]
        )
        frames = np.concatenate([step.frames for step in steps if step.frames is not None])
        assert len(frames) == length
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "no"), "--begin-from", str(tmp_path / "nowhere"), "--steps", "0"])
    assert spec.frames_per_latent == image_to_video.MASK_CHANNELS
