"""The Wan backbone keeps to the protocols (by signature; mypy checks the types where it is used)."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from miga.backbones.base import Backbone, Denoiser, FrameDecoder
from miga.backbones.wan import WanBackbone
from miga.backbones.wan_denoiser import WanDenoiser
from miga.backbones.wan_vae import WanFrameDecoder
from miga.solvers.base import Solver
from miga.solvers.unipc import UniPCSolver

PAIRS = [(Backbone, WanBackbone), (Denoiser, WanDenoiser), (FrameDecoder, WanFrameDecoder), (Solver, UniPCSolver)]


@pytest.mark.parametrize(("protocol", "implementation"), PAIRS)
def test_same_parameters(protocol: Any, implementation: Any) -> None:
    methods = [name for name in vars(protocol) if name == "__call__" or not name.startswith("_")]
    assert methods
    for name in methods:
        wanted, given = (inspect.signature(getattr(kind, name)).parameters for kind in (protocol, implementation))
        assert list(wanted) == list(given)
