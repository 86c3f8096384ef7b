"""RAFT, AMT-S, MUSIQ and DINO against what their own programs made of the same weights and frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import ViTConfig

from miga.evaluation.networks.amt import AmtS
from miga.evaluation.networks.musiq import Musiq, cut
from miga.evaluation.networks.raft import Raft, own_names
from miga.evaluation.networks.vision import Dino, dino_names
from miga.evaluation.preprocessing import as_tensor, dino
from tests.miga.evaluation.filled import GAINS, filled, filled_like, texture
from tests.miga.evaluation.recorded import arrays, figures, relative

KEYS = figures("state_dict_keys")
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return as_tensor(texture(3, 128, 160, "net", vx=3, vy=1.5))


def _shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("kind", "file"), [(Raft, "raft-things"), (AmtS, "amt-s"), (Musiq, "musiq-spaq")])
def test_names_and_shapes_are_those_of_the_published_file(kind: type, file: str) -> None:
    with torch.device("meta"):
        assert _shapes(kind()) == {name: tuple(shape) for name, shape, _ in KEYS[file]}


def test_dino_takes_every_tensor_of_its_file() -> None:
    with torch.device("meta"):
        theirs = {name: torch.empty(shape) for name, shape, _ in KEYS["dino_vitb16"]}
        assert _shapes(Dino()) == {name: tuple(tensor.shape) for name, tensor in dino_names(theirs).items()}


@pytest.mark.parametrize(
    ("steps", "within"), [(1, 1e-3), pytest.param(2, 1e-3, marks=SLOW), pytest.param(20, 1e-2, marks=SLOW)]
)
def test_raft(frames: torch.Tensor, steps: int, within: float) -> None:
    network, recorded = Raft(), arrays("raft")
    network.load_state_dict(filled_like(network.state_dict(), GAINS["raft"]))
    with torch.inference_mode():
        low, full = network(frames[:1], frames[1:2], steps)
    assert relative(low[0].numpy(), recorded[f"flow_low_{steps}"]) < within
    assert relative(full[0, :, ::4, ::4].numpy(), recorded[f"flow_up_{steps}"]) < within


def test_raft_takes_torchvisions_names() -> None:
    with torch.device("meta"):
        network = Raft().state_dict()
        table = figures("raft_to_torchvision_keys")
        theirs = {name: network[ours] for ours, name in table.items() if name is not None}
        assert set(theirs) == {name for name, _, _ in KEYS["torchvision_raft_large"]}
        found = own_names(theirs)
    assert found.keys() == network.keys()
    assert all(found[ours] is theirs[name] for ours, name in table.items() if name is not None)
    assert own_names({f"module.{name}": tensor for name, tensor in network.items()}).keys() == network.keys()


def test_amt_s(frames: torch.Tensor) -> None:
    network, recorded = AmtS(), arrays("amt_s")
    network.load_state_dict(filled_like(network.state_dict(), GAINS["amt"]))
    with torch.inference_mode():
        found = network(frames[:1] / 255, frames[2:] / 255)
    assert relative(found.frame_NCHW[0, :, ::4, ::4].numpy(), recorded["imgt_pred"]) < 1e-3
    for level in (1, 2, 3, 4):
        every = 4 if level == 1 else 2
        for name, flows in (("flow0", found.flow0), ("flow1", found.flow1)):
            assert relative(flows[level][0][..., ::every, ::every].numpy(), recorded[f"{name}_{level}"]) < 1e-3
    for level in (1, 2, 3):
        every = 4 if level == 1 else 2
        features = found.features[level][0, ::4, ::every, ::every].numpy()
        assert relative(features, recorded[f"ft_{level}"]) < 1e-3


@pytest.mark.parametrize("name", ["a", pytest.param("b", marks=SLOW), pytest.param("c", marks=SLOW)])
def test_musiq(name: str) -> None:
    case = figures("musiq_tiny")[name]
    config = figures("networks")["musiq_tiny"]["config"]
    network = Musiq(**config)
    network.load_state_dict(filled_like(network.state_dict(), GAINS["musiq"]))
    image = as_tensor(texture(1, case["height"], case["width"], f"musiq{name}")) / 255
    tokens = cut(image)
    assert tokens.places_T.tolist() == case["spatial_index"]
    assert tokens.scales_T.tolist() == case["scale_index"]
    assert tokens.mask_T.int().tolist() == case["mask"]
    assert float(tokens.patches_NTP.abs().sum(dtype=torch.float64)) == pytest.approx(case["patch_abs_sum"], rel=1e-5)
    with torch.inference_mode():
        assert float(network(image)[0]) == pytest.approx(case["score"], rel=1e-3)


@pytest.mark.parametrize(
    "size", [(480, 832), (224, 224), pytest.param((832, 480), marks=SLOW), pytest.param((144, 176), marks=SLOW)]
)
def test_dino_of_other_sizes(size: tuple[int, int]) -> None:
    small = {768: 32, 2304: 96, 3072: 128}
    shapes = [
        (name, tuple(16 if index > 1 and width == 16 else small.get(width, width) for index, width in enumerate(shape)))
        for name, shape, _ in KEYS["dino_vitb16"]
        if not name.startswith("blocks.") or int(name.split(".")[1]) < 2
    ]
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, layer_norm_eps=1e-6
    )
    network = Dino(config)
    weights = filled(((name, shape, torch.float32) for name, shape in shapes), GAINS["dino"])
    network.load_state_dict(dino_names(weights))
    with torch.inference_mode():
        features = network(dino(as_tensor(texture(1, *size, "dino", vx=6)))).numpy()
    wanted = arrays("preprocessing")[f"dino_tiny/{size[0]}x{size[1]}"][:1]
    assert np.abs(features - wanted).max() < 1e-5
