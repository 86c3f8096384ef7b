"""The methods: ours, and those that installed packages register as entry points of group "miga.methods"."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from miga.config import SamplerConfig
from miga.errors import ConfigError
from miga.methods import fifo, miga, released, scalingnoise, unified
from miga.methods.base import Method

GROUP: Final = "miga.methods"
_OURS: Final = (miga.METHOD, released.METHOD, fifo.METHOD, scalingnoise.METHOD, unified.METHOD)


@functools.cache
def methods() -> Mapping[str, Method]:
    """Every method by its name.

    Raises:
        ConfigError: if one that a package registers cannot be had, saying which and why.
    """
    table = {method.name: method for method in _OURS}
    taken = {name for method in _OURS for name in method.profiles}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        method = _registered(entry)
        if method.name in table:
            raise _refused(entry, f"there is a method {method.name!r} already")
        if again := sorted(taken & method.profiles.keys()):
            raise _refused(entry, f"there is a profile {again[0]!r} already")
        table[method.name] = method
        taken |= method.profiles.keys()
    return table


def _registered(entry: EntryPoint) -> Method:
    try:
        method = entry.load()
    except Exception as error:  # whatever a foreign module raises
        raise _refused(entry, f"{type(error).__name__}: {error}") from error
    if not isinstance(method, Method):
        raise _refused(entry, f"it is a {type(method).__name__}, not a miga.methods.base.Method")
    if not (is_dataclass(method.settings) and issubclass(method.settings, SamplerConfig)):
        raise _refused(entry, "its settings are no dataclass that derives from miga.config.SamplerConfig")
    if not is_dataclass(method.state):
        raise _refused(entry, "its state is no dataclass")
    return method


def _refused(entry: EntryPoint, why: str) -> ConfigError:
    package = "" if entry.dist is None else f" of package {entry.dist.name!r}"
    return ConfigError(
        f"the method {entry.name!r}{package} ({entry.value}) cannot be used: {why}",
        "mend that package, or uninstall it",
    )
