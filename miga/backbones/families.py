"""The families of backbones: ours, and those that installed packages register as entry points of "miga.families"."""

from __future__ import annotations

import functools
from typing import Final

from miga.backbones.family import Family
from miga.backbones.own import FAMILY as OWN
from miga.backbones.simulated.family import SimulatedFamily
from miga.backbones.sprites.family import FAMILY as SPRITES
from miga.backbones.sprites.family import TRAINED_ON_FAMILY as SPRITES_CAUSAL
from miga.backbones.videocrafter2.family import FAMILY as VIDEOCRAFTER2
from miga.backbones.wan.family import FAMILY as WAN
from miga.entry_points import registered
from miga.errors import ModelError

GROUP: Final = "miga.families"


def _with_published_models() -> dict[str, Family]:
    """Those that simulated GPUs can take after; Wan, the usual one, first."""
    found = {name: family for name, family in families().items() if family.published}
    return {WAN.name: WAN, **found}


_OURS: Final = (SimulatedFamily(_with_published_models), OWN, SPRITES, SPRITES_CAUSAL, VIDEOCRAFTER2, WAN)
"""In the order in which they are asked. Wan is last: it takes what nobody claims, and says what is wrong with it."""


@functools.cache
def families() -> dict[str, Family]:
    """Every family by its name, in the order in which they are asked: those of other packages before ours.

    Raises:
        ModelError: if one that a package registers cannot be had, saying which and why.
    """
    table: dict[str, Family] = {}
    ours = {family.name: family for family in _OURS}
    for entry in registered(GROUP, "the family of models", ModelError):
        family: Family = entry.load(Family)
        if not isinstance(getattr(family, "name", None), str) or not family.name:
            raise entry.refused("it has no name")
        if family.name in table or family.name in ours:
            raise entry.refused(f"there is a family {family.name!r} already")
        table[family.name] = family
    return table | ours
