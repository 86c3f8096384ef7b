"""Weights: looked for and checked before any work, never fetched, read without running what a file says."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from miga.errors import ModelError
from miga.evaluation import weights
from miga.evaluation.networks.amt import AmtS
from miga.evaluation.networks.vision import ClipImages, Dino, DinoV2, clip_names, dino_names, dinov2_names
from miga.evaluation.weights import WEIGHTS, find_weights, load_network
from tests.miga.evaluation.filled import filled_like


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIGA_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def _head(folder: Path, name: str = "head.safetensors") -> Path:
    path = folder / name
    save_file({"weight": torch.ones(1, 768), "bias": torch.zeros(1)}, path)
    return path


def test_what_is_missing_is_named_with_licence_and_command() -> None:
    with pytest.raises(ModelError) as caught:
        find_weights(["amt", "raft", "aesthetic-head"])
    for name in ("amt", "raft", "aesthetic-head"):
        assert f"{name}:" in caught.value.message
        assert WEIGHTS[name].command(weights.weights_folder()) in caught.value.message
        assert WEIGHTS[name].licence in caught.value.message
    assert "CC-BY-NC" in caught.value.message


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_network_says_whose_it_is(name: str) -> None:
    about = WEIGHTS[name]
    assert about.licence
    assert about.source
    command = about.command("/weights")
    assert command.startswith(("hf download ", "curl "))
    assert "/weights" in command
    assert about.is_non_commercial == (name == "amt")


def test_a_file_by_its_place(folder: Path) -> None:
    path = _head(folder)
    found = find_weights(["aesthetic-head"], {"aesthetic-head": str(path)})["aesthetic-head"]
    assert found.path == str(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(load_network(found).weight, torch.ones(1, 768))


def test_a_file_called_like_the_published_one_must_be_it(folder: Path) -> None:
    torch.save({"weight": torch.ones(1, 768), "bias": torch.zeros(1)}, folder / "sa_0_4_vit_l_14_linear.pth")
    with pytest.raises(ModelError, match="published file 4,071"):
        find_weights(["aesthetic-head"])
    (folder / "sa_0_4_vit_l_14_linear.pth").write_bytes(os.urandom(4071))
    with pytest.raises(ModelError, match="is not the published file: its SHA-256"):
        find_weights(["aesthetic-head"])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"weight": torch.ones(1, 768)}, "lacks bias"),
        ({"weight": torch.ones(1, 512), "bias": torch.zeros(1)}, "has another shape for weight"),
        ({"weight": torch.ones(1, 768), "bias": torch.zeros(1), "more": torch.zeros(1)}, "has no place for more"),
    ],
)
def test_weights_of_another_network_are_refused(folder: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    save_file(tensors, folder / "other.safetensors")
    found = find_weights(["aesthetic-head"], {"aesthetic-head": str(folder / "other.safetensors")})["aesthetic-head"]
    with pytest.raises(ModelError, match=f"holds the weights of another network: it {said}"):
        load_network(found)


@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps([1, 2]), b"PK\x03\x04broken"])
def test_what_is_no_file_of_weights_is_refused(folder: Path, content: bytes) -> None:
    (folder / "broken.pth").write_bytes(content)
    found = find_weights(["raft"], {"raft": str(folder / "broken.pth")})["raft"]
    with pytest.raises(ModelError, match=r"cannot be read|holds no weights by name"):
        load_network(found)


class _Settings:
    """What a file may hold beside its weights."""

    def __init__(self) -> None:
        self.width = 1


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("beside", [_Settings(), _Attack()], ids=["settings", "attack"])
def test_what_a_file_holds_beside_tensors_is_not_run(
    folder: Path, beside: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMT's published file holds settings, so it is read past them; any other with such is refused."""
    monkeypatch.chdir(folder)
    state = AmtS().state_dict()
    torch.save({"state_dict": state, "settings": beside}, folder / "filled.pth")
    network = load_network(find_weights(["amt"], {"amt": str(folder / "filled.pth")})["amt"])
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(ModelError, match="cannot be read"):
        load_network(find_weights(["raft"], {"raft": str(folder / "filled.pth")})["raft"])
    assert not (folder / "attacked").exists()


def test_files_of_an_older_torch_are_read(folder: Path) -> None:
    head = {"weight": torch.ones(1, 768), "bias": torch.zeros(1)}
    torch.save(head, folder / "old.pth", _use_new_zipfile_serialization=False)
    found = find_weights(["aesthetic-head"], {"aesthetic-head": str(folder / "old.pth")})["aesthetic-head"]
    assert torch.equal(load_network(found).weight, torch.ones(1, 768))


def test_a_program_is_not_loaded(folder: Path) -> None:
    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Program()).save(str(folder / "program.pt"))
    found = find_weights(["clip-b32"], {"clip-b32": str(folder / "program.pt")})["clip-b32"]
    with pytest.raises(ModelError, match="TorchScript program, and none that is known"):
        load_network(found)


def test_the_hubs_cache_is_looked_into(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = folder / "hub" / "models--lalala125--AMT" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "amt-s.pth").write_bytes(b"weights")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(folder / "hub"))
    assert find_weights(["amt"])["amt"].path == str(snapshot / "amt-s.pth")


def _small(kind: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A small tower of ours, and transformers' own of the same form."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    if kind == "dino":
        config = ViTConfig(**size, layer_norm_eps=1e-6)
        return Dino(config), ViTModel(config)
    if kind == "dinov2":
        config2 = Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
        )
        return DinoV2(config2), Dinov2Model(config2)
    clip = CLIPVisionConfig(**size, projection_dim=16)
    return ClipImages(clip), CLIPVisionModelWithProjection(clip)


@pytest.mark.parametrize(("kind", "translate"), [("dino", dino_names), ("dinov2", dinov2_names), ("clip", clip_names)])
def test_towers_take_the_hubs_files(kind: str, translate: object, folder: Path) -> None:
    from safetensors.torch import load_file

    ours, theirs = _small(kind)
    theirs.load_state_dict(filled_like(theirs.state_dict(), 1.5))
    theirs.save_pretrained(folder / kind)
    ours.load_state_dict(translate(load_file(folder / kind / "model.safetensors")))  # type: ignore[operator]
    frames = torch.linspace(-1, 1, 2 * 3 * 224 * 224).view(2, 3, 224, 224)
    with torch.inference_mode():
        found, output = ours(frames), theirs.eval()(frames)
    wanted = output.image_embeds if kind == "clip" else output.last_hidden_state[:, 0]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_image_tower_of_openais_file() -> None:
    """OpenAI's layout is made here from the hub's, piece by piece, and must come back."""
    ours, theirs = _small("clip")
    state = filled_like(theirs.state_dict(), 1.5)
    openai = {
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "transformer.resblocks.0.ln_1.weight": torch.zeros(3),
        "logit_scale": torch.zeros(()),
    }
    for kind in ("weight", "bias"):
        openai[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        openai[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        for layer in range(2):
            block, hub = f"visual.transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}"
            parts = [state[f"{hub}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            openai[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
            openai[f"{block}.attn.out_proj.{kind}"] = state[f"{hub}.self_attn.out_proj.{kind}"]
            openai[f"{block}.mlp.c_fc.{kind}"] = state[f"{hub}.mlp.fc1.{kind}"]
            openai[f"{block}.mlp.c_proj.{kind}"] = state[f"{hub}.mlp.fc2.{kind}"]
            for number in (1, 2):
                openai[f"{block}.ln_{number}.{kind}"] = state[f"{hub}.layer_norm{number}.{kind}"]
    found = clip_names(openai)
    assert found.keys() == ours.state_dict().keys()
    assert all(torch.equal(found[f"model.{name}"], tensor) for name, tensor in state.items())
