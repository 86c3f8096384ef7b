"""Settings of direct sampling, and its profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from miga.methods.base import Method
from miga.methods.extended_settings import ExtendedSettings, extended_method


@dataclass(frozen=True, kw_only=True)
class DirectSettings(ExtendedSettings):
    """Of a network that is shown more latents than it was trained on, and nothing else."""


METHOD: Final[Method] = extended_method(
    "direct",
    DirectSettings,
    "the whole video in one window and nothing on, the honest baseline",
    eta=1.0,
)
