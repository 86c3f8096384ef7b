"""A profile as it is said on a command line: a name, with overrides behind it."""

from __future__ import annotations

import json
import re
from typing import Any

from miga.backbones.base import BackboneSpec
from miga.config import SamplerConfig
from miga.errors import UsageError
from miga.profiles import resolve_config


def parse_profile(text: str, spec: BackboneSpec) -> SamplerConfig:
    """The settings that `NAME` or `NAME:FIELD=VALUE,...` stands for; values are written as in JSON.

    Raises:
        UsageError: if the text is not of that form.
        ConfigError: if the profile, a field or a value is not known.
    """
    name, overrides = split_profile(text)
    return resolve_config(name, spec, overrides)


def split_profile(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the overrides of such a text.

    Raises:
        UsageError: if it is not of that form.
    """
    name, colon, rest = text.partition(":")
    overrides: dict[str, Any] = {}
    for part in re.split(r",(?=\w+=)", rest) if colon else []:
        field, equals, value = part.partition("=")
        if not field or not equals:
            raise UsageError(f"profile {text!r}: {part!r} is not FIELD=VALUE", "write paper:num_guidance_latents=0")
        try:
            overrides[field] = json.loads(value)
        except json.JSONDecodeError:
            overrides[field] = value
    return name, overrides
