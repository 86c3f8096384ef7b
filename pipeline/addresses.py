"""Addresses that a user gives: they are written into run.json, the manifest and logs, so none may hold a secret."""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from miga.errors import MigaError

_SECRET_QUERY: Final = re.compile(
    r"(^|[-_])(sig|signature|token|secret|password|credential|key)$|(access|api)_?key|^x-(amz|goog)-", re.IGNORECASE
)
_SECRET_VARIABLES: Final = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


_HINT: Final = (
    "give credentials by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) or by the machine's "
    "role, and leave them out of the address"
)


def refuse_secrets(address: str, error: type[MigaError], name: str) -> None:
    """Returns if `address` holds no credentials: neither `user:password@`, nor a signed query.

    Args:
        address: a path, or an address with a scheme.
        error: what to raise.
        name: of the argument, for the message, which does not repeat the address.

    Raises:
        MigaError: of class `error`.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return
    place, _, query = rest.partition("?")
    if "@" in place.partition("/")[0]:
        raise error(f"{name}: the {scheme}:// address holds a user or a password before the @", _HINT)
    try:
        names = [key for key, _ in parse_qsl(urlsplit(f"x://x/?{query}").query, keep_blank_values=True)]
    except ValueError:
        names = [query]
    if secret := [key for key in names if _SECRET_QUERY.search(key)]:
        raise error(f"{name}: the {scheme}:// address is signed (it holds {', '.join(sorted(set(secret)))})", _HINT)


def without_secrets(text: str) -> str:
    """`text` with the values of AWS's secret variables blotted out, for messages that come from libraries."""
    for variable in _SECRET_VARIABLES:
        if len(value := os.environ.get(variable, "")) >= 8:
            text = text.replace(value, f"[{variable}]")
    return text
