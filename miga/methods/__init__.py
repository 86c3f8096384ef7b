"""The methods: ours, and those that installed packages register as entry points of group "miga.methods"."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Final

from miga.config import SamplerConfig
from miga.entry_points import registered
from miga.errors import ConfigError
from miga.methods import (
    causal,
    chain,
    direct,
    fifo,
    freelong,
    freenoise,
    freepca,
    miga,
    released,
    riflex,
    scalingnoise,
    unified,
)
from miga.methods.base import Method

GROUP: Final = "miga.methods"
_OURS: Final = (
    miga.METHOD,
    released.METHOD,
    fifo.METHOD,
    scalingnoise.METHOD,
    unified.METHOD,
    causal.METHOD,
    chain.METHOD,
    direct.METHOD,
    freenoise.METHOD,
    freelong.METHOD,
    freepca.METHOD,
    riflex.METHOD,
)


@functools.cache
def methods() -> Mapping[str, Method]:
    """Every method by its name.

    Raises:
        ConfigError: if one that a package registers cannot be had, saying which and why.
    """
    table = {method.name: method for method in _OURS}
    taken = {name for method in _OURS for name in method.profiles}
    for entry in registered(GROUP, "the method", ConfigError):
        method: Method = entry.load(Method)
        if not (is_dataclass(method.settings) and issubclass(method.settings, SamplerConfig)):
            raise entry.refused("its settings are no dataclass that derives from miga.config.SamplerConfig")
        if not is_dataclass(method.state):
            raise entry.refused("its state is no dataclass")
        if method.name in table:
            raise entry.refused(f"there is a method {method.name!r} already")
        if again := sorted(taken & method.profiles.keys()):
            raise entry.refused(f"there is a profile {again[0]!r} already")
        table[method.name] = method
        taken |= method.profiles.keys()
    return table
