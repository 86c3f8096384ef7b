"""Every tensor of the published checkpoint has one place, by the recorded list of their names and shapes."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from miga.backbones.videocrafter2.checkpoint import (
    UNNEEDED,
    Architecture,
    place_of,
    read_checkpoint,
    require_sound,
    split_state,
)
from miga.errors import ModelError
from tests.tiny_videocrafter2 import architecture, build_state, schedule_tensors, write_checkpoint

FIXTURES = Path(__file__).parents[3] / "fixtures"
STATE = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def published() -> STATE:
    """The 2,039 tensors of the published file, without their numbers."""
    with gzip.open(FIXTURES / "vc2_state_dict.json.gz") as file:
        recorded = json.load(file)["state_dict"]
    return {
        key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for key, entry in recorded.items()
    }


@pytest.fixture(scope="module")
def tiny() -> STATE:
    return build_state()


def test_all_published_tensors_have_one_place(published: STATE) -> None:
    assert len(published) == 2039
    parts = split_state(published, Architecture())
    fused = [key for key in published if ".in_proj_" in key]
    assert {name: len(part) for name, part in parts.items()} == {
        "unet": 1484,
        "vae": 248,
        "text_encoder": 294 - 2 + 2 * len(fused),
    }
    used = sum(tensor.numel() for part in parts.values() for tensor in part.values())
    left_out = {key: tensor for key, tensor in published.items() if key in UNNEEDED}
    assert used + sum(tensor.numel() for tensor in left_out.values()) == sum(t.numel() for t in published.values())
    assert len(left_out) == len(UNNEEDED) == 13 + 2
    assert sum(tensor.numel() for tensor in parts["unet"].values()) == 1_413_284_420


def test_no_two_tensors_share_a_place(published: STATE) -> None:
    places = [place_of(key) for key in published if key not in UNNEEDED]
    names = Counter((place.component, name) for place in places if place for name in place.names)
    assert None not in places
    assert set(names.values()) == {1}


@pytest.mark.slow
def test_full_size_modules_take_all_of_it(published: STATE) -> None:
    """The libraries' own check of names and shapes, beside ours."""
    for component, part in split_state(published, Architecture()).items():
        module = Architecture().build(component)
        module.load_state_dict(part, strict=True, assign=True)
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in part.items()}


def test_a_fused_projection_is_query_then_key_then_value() -> None:
    key = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    state = build_state()
    layer = split_state(state, architecture())["text_encoder"]
    shares = [layer[f"encoder.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(shares), state[key])


def change(state: STATE, **changes: Any) -> STATE:
    """A copy, without the names that are given None."""
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


UNET_KEY, VAE_KEY = "model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_in.weight"
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "a tensor is missing": ({UNET_KEY: None}, "lacks, of the unet, out.2.weight"),
    "the VAE lacks one": ({VAE_KEY: None}, "lacks, of the vae, decoder.conv_in.weight"),
    "one too many": ({"model.diffusion_model.more": torch.ones(1)}, "has beside the unet more"),
    "one of another model": ({"model_ema.decay": torch.ones(1)}, "no place for model_ema.decay"),
    "another shape": ({UNET_KEY: torch.ones(4, 32, 1, 1)}, "another shape, of the unet, out.2.weight"),
    "another text width": (
        {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias": torch.ones(95)},
        "another shape, of the text_encoder",
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", OTHERS)
def test_another_model(tiny: STATE, case: str) -> None:
    changes, message = OTHERS[case]
    with pytest.raises(ModelError, match=message) as error:
        split_state(change(tiny, **changes), architecture())
    assert "VideoCrafter2" in error.value.message
    assert error.value.hint


@pytest.mark.slow
def test_a_stable_diffusion_checkpoint_is_another_model(published: STATE) -> None:
    """It has the same prefixes and another text encoder and no frames."""
    state = {key: value for key, value in published.items() if "temopral_conv" not in key and "init_attn" not in key}
    with pytest.raises(ModelError, match=r"lacks, of the unet, .* and \d+ more"):
        split_state(state, Architecture())


def test_tensors_are_read_as_they_are_stored(tmp_path: Path, tiny: STATE) -> None:
    read = read_checkpoint(write_checkpoint(tmp_path / "model.ckpt", tiny))
    assert read.keys() == tiny.keys()
    assert all(torch.equal(read[key], tiny[key]) and read[key].dtype == tiny[key].dtype for key in tiny)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"module": {f"_forward_module.{k}": v for k, v in s.items()}}])
def test_other_ways_to_wrap_the_weights(tmp_path: Path, wrap: Any) -> None:
    state = {"betas": torch.arange(3.0)}
    torch.save(wrap(state), tmp_path / "model.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "model.ckpt")["betas"], state["betas"])


class Code:
    """What a malicious pickle does when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    run = tmp_path / "was run"
    torch.save({"state_dict": {"betas": torch.ones(3)}, "more": Code(run)}, tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match="code or objects beside its weights; it was not loaded") as error:
        read_checkpoint(tmp_path / "model.ckpt")
    assert not run.exists()
    assert "state_dict" in error.value.hint
    torch.load(tmp_path / "model.ckpt", weights_only=False)
    assert run.exists(), "the pickle must be a dangerous one, or this tests nothing"


def truncated(file: Path) -> None:
    write_checkpoint(file, {"betas": torch.ones(1000)})
    file.write_bytes(file.read_bytes()[:-700])


BROKEN: dict[str, tuple[Any, str]] = {
    "missing": (lambda file: None, "does not exist"),
    "empty": (lambda file: file.write_bytes(b""), "cannot be read"),
    "truncated": (truncated, "cannot be read"),
    "old format": (
        lambda file: torch.save({"betas": torch.ones(3)}, file, _use_new_zipfile_serialization=False),
        "cannot be read",
    ),
    "safetensors": (lambda file: save_file({"betas": torch.ones(3)}, file), "cannot be read"),
    "a web page": (lambda file: file.write_text("<html>not found</html>"), "cannot be read|code or objects"),
    "no tensors": (lambda file: torch.save({"epoch": 3}, file), "holds no named tensors"),
    "a list": (lambda file: torch.save([torch.ones(3)], file), "holds no named tensors"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(tmp_path: Path, case: str) -> None:
    make, message = BROKEN[case]
    file = tmp_path / "model.ckpt"
    make(file)
    with pytest.raises(ModelError, match=message) as error:
        read_checkpoint(file)
    assert str(file) in error.value.message
    assert error.value.hint


def test_sound_weights(tiny: STATE) -> None:
    """The schedule's tensors are looked at, in either precision, and may be missing; another schedule's are refused."""
    require_sound(tiny)
    halved = {key: value.half() for key, value in tiny.items()}
    require_sound(halved)
    without = {key: value for key, value in tiny.items() if key not in ("alphas_cumprod", "scale_arr")}
    require_sound(without)
    for state in (tiny, halved, without):
        with pytest.raises(ModelError, match="another noise schedule"):
            require_sound(change(state, alphas_cumprod=tiny["alphas_cumprod"].flip(0)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(tiny: STATE, value: float) -> None:
    broken = tiny[VAE_KEY].clone()
    broken[3, 1, 0, 2] = value
    with pytest.raises(ModelError, match=f"NaN or infinite in {VAE_KEY}"):
        require_sound(change(tiny, **{VAE_KEY: broken}))


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 2, dtype=torch.int8),
        torch.ones(2, 2).to(torch.float8_e4m3fn),
        torch.ones(2, 2).to_sparse(),
    ],
    ids=["whole numbers", "fp8", "sparse"],
)
def test_weights_that_need_others_to_mean_something(tiny: STATE, value: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=f"not stored as plain numbers, in {VAE_KEY}"):
        require_sound(change(tiny, **{VAE_KEY: value}))


@pytest.mark.parametrize("key", ["alphas_cumprod", "scale_arr"])
def test_another_noise_schedule(key: str) -> None:
    tensors = schedule_tensors()
    other = tensors[key] * torch.linspace(1, 0.99, len(tensors[key]))
    with pytest.raises(ModelError, match=f"another noise schedule: its {key}"):
        require_sound({key: other})
    with pytest.raises(ModelError, match="another noise schedule"):
        require_sound({key: tensors[key][:500]})
