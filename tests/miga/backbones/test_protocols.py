"""The backbones keep to the protocols (by signature; mypy checks the types where they are used)."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from miga.backbones.base import Backbone, BranchedDenoiser, FrameDecoder
from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from miga.backbones.videocrafter2.denoiser import VideoCrafter2Denoiser
from miga.backbones.videocrafter2.vae import VideoCrafter2FrameDecoder
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.denoiser import WanDenoiser
from miga.backbones.wan.vae import WanFrameDecoder
from miga.solvers.base import Solver
from miga.solvers.unipc import UniPCSolver

PAIRS = [
    (Backbone, WanBackbone),
    (Backbone, VideoCrafter2Backbone),
    (BranchedDenoiser, WanDenoiser),
    (BranchedDenoiser, VideoCrafter2Denoiser),
    (FrameDecoder, WanFrameDecoder),
    (FrameDecoder, VideoCrafter2FrameDecoder),
    (Solver, UniPCSolver),
]


@pytest.mark.parametrize(("protocol", "implementation"), PAIRS)
def test_same_parameters(protocol: Any, implementation: Any) -> None:
    inherited = {name for kind in protocol.__mro__[:-1] for name in vars(kind)}
    methods = [name for name in inherited if inspect.isfunction(getattr(protocol, name)) and is_public(name)]
    assert methods
    for name in methods:
        wanted, given = (inspect.signature(getattr(kind, name)).parameters for kind in (protocol, implementation))
        assert list(given)[: len(wanted)] == list(wanted)
        more = list(given.values())[len(wanted) :]
        assert all(parameter.default is not parameter.empty for parameter in more), "of another protocol"


def is_public(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")
