"""What the environment and ~/.aws say about S3, looked at before any request: what cannot work is named at once.

The names and their order are those of every AWS tool (botocore reads them): AWS_ENDPOINT_URL_S3 before
AWS_ENDPOINT_URL before `endpoint_url` of the profile; AWS_CA_BUNDLE before `ca_bundle` before REQUESTS_CA_BUNDLE;
HTTPS_PROXY or HTTP_PROXY as the endpoint's scheme is, unless NO_PROXY names its host. Nothing here asks a server.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from miga.errors import MigaError
from pipeline.terminal import escaped

_LOOKED_AT: Final = re.compile(r"AWS_\w+|REQUESTS_CA_BUNDLE|(https?|no)_proxy", re.IGNORECASE)
_IN_HEADERS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_DEFAULT_REGION")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_AWS_FILES: Final = (
    "~/.aws/config and ~/.aws/credentials (or what AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE name)"
)

Fault = tuple[str, str]
"""What is wrong, and what to do."""


def check_s3_settings(error: type[MigaError]) -> None:
    """Returns if nothing that a request to S3 would need is known to be wrong.

    Raises:
        MigaError: of class `error`, naming the variable or the file's setting; values that may be secret are not
            repeated.
    """
    if fault := _first_fault(_looked_at()):
        raise error(*fault)


def _looked_at() -> frozenset[tuple[str, Any]]:
    """All that the answer depends on: variables, and which files there are."""
    names = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
    files = {os.environ.get(name, "") for name in names} | {"~/.aws/config", "~/.aws/credentials"}
    variables = ((name, value) for name, value in os.environ.items() if _LOOKED_AT.fullmatch(name))
    return frozenset((*variables, *((file, _version(file)) for file in files)))


def _version(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(os.path.expanduser(file))
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=16)
def _first_fault(looked_at: frozenset[tuple[str, Any]]) -> Fault | None:
    """For each thing that it depends on once: botocore's own reading of them takes a while."""
    return next((fault for check in (_variables, _pair, _files) for fault in check()), None)


def _variables() -> Iterator[Fault]:
    for name, value in sorted(os.environ.items()):
        if _LOOKED_AT.fullmatch(name) and (what := fault_of_text(name, value)):
            yield f"{name} {what}", f"set {name} again without it"


def fault_of_text(name: str, value: str) -> str:
    """What no value may be; empty if there is nothing."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds bytes that are no UTF-8 text"
    if value.endswith(("\n", "\r")):
        return "ends in a line break"
    if _CONTROL.search(value):
        return "holds a control character, such as a line break or a tab"
    if name.upper().endswith("_PROXY"):
        return ""
    if value != value.strip():
        return "begins or ends with a space"
    if name in _IN_HEADERS and not value.isascii():
        return "holds other characters than ASCII's"
    return ""


def _pair() -> Iterator[Fault]:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    there = [name for name in names if os.environ.get(name)]
    if len(there) == 1:
        (missing,) = set(names) - set(there)
        yield f"{there[0]} is set, but {missing} is not", f"set both, or neither to use {_AWS_FILES}"


def _files() -> Iterator[Fault]:
    """What ~/.aws says, and what depends on it."""
    from botocore.configloader import load_config, raw_config_parse
    from botocore.exceptions import ConfigNotFound, ConfigParseError

    whole: dict[str, Any] = {}
    profiles: dict[str, dict[str, Any]] = {}
    try:
        with suppress(ConfigNotFound):
            whole = load_config(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"))
            profiles = dict(whole["profiles"])
        with suppress(ConfigNotFound):
            for name, values in raw_config_parse(
                os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
            ).items():
                profiles[name] = profiles.get(name, {}) | values
    except ConfigParseError as error:
        yield f"{error.kwargs.get('path', _AWS_FILES)} cannot be read as a config file", "put its syntax right"
        return
    variable = next((name for name in ("AWS_DEFAULT_PROFILE", "AWS_PROFILE") if name in os.environ), None)
    chosen = os.environ[variable] if variable else "default"
    if variable and chosen not in profiles:
        known = ", ".join(escaped(name) for name in sorted(profiles)[:10]) or "none"
        yield (
            f"{variable} names the profile {chosen!r}, which is not there; there are: {known}",
            f"unset {variable}, or write the profile into {_AWS_FILES}",
        )
        return
    profile = profiles.get(chosen, {})
    yield from _region(profile)
    endpoint, where = _endpoint(profile, whole)
    if endpoint is not None:
        yield from _fault_of_endpoint(endpoint, where)
    yield from _ca_bundle(profile)
    yield from _proxy(endpoint or "https://s3.amazonaws.com")


def _region(profile: dict[str, Any]) -> Iterator[Fault]:
    from botocore.exceptions import InvalidRegionError
    from botocore.utils import validate_region_name

    is_set = "AWS_DEFAULT_REGION" in os.environ
    region = os.environ["AWS_DEFAULT_REGION"] if is_set else profile.get("region")
    try:
        validate_region_name(str(region) if region is not None else None)
    except InvalidRegionError:
        where = "AWS_DEFAULT_REGION" if is_set else "region (in ~/.aws/config)"
        yield f"{where} is {region!r}, which is no region's name", "write one such as us-east-1"


def _endpoint(profile: dict[str, Any], whole: dict[str, Any]) -> tuple[str | None, str]:
    """The endpoint and where it is said; None where AWS's own is used."""
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None, ""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if value := os.environ.get(name):
            return value, name
    services = whole.get("services", {}).get(profile.get("services"))
    of_s3 = services.get("s3") if isinstance(services, dict) else None
    for values in (of_s3, profile):
        if isinstance(values, dict) and values.get("endpoint_url"):
            return str(values["endpoint_url"]), "endpoint_url (in ~/.aws/config)"
    return None, ""


def _fault_of_endpoint(value: str, where: str) -> Iterator[Fault]:
    from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

    if "@" in value:
        yield f"{where} holds a user or a password before the @", "leave them out of it: credentials are variables too"
        return
    scheme, separator, rest = value.partition("://")
    if separator and not rest:
        yield f"{where} is {value!r}, which names no host", "write it as http://host:port"
        return
    if not separator:
        bare = re.sub(r"^(https?:)?/*", "", value, flags=re.IGNORECASE)
        yield (
            f"{where} is {value!r}: http:// or https:// is missing before it",
            f"write http://{bare} or https://{bare}",
        )
        return
    if scheme.lower() not in ("http", "https"):
        yield f"{where} is {value!r}: an endpoint begins with http:// or https://", "write the server's own address"
        return
    try:
        _ = urlsplit(value).port
        is_valid = is_valid_endpoint_url(value) or is_valid_ipv6_endpoint_url(value)
    except ValueError:
        is_valid = False
    if not is_valid or "?" in value or "#" in value or re.search(r"\s", value):
        yield f"{where} is {value!r}, which is no address of a server", "write it as http://host:port"


def _ca_bundle(profile: dict[str, Any]) -> Iterator[Fault]:
    for where, value in (
        ("AWS_CA_BUNDLE", os.environ.get("AWS_CA_BUNDLE")),
        ("ca_bundle (in ~/.aws/config)", profile.get("ca_bundle")),
        ("REQUESTS_CA_BUNDLE", os.environ.get("REQUESTS_CA_BUNDLE")),
    ):
        if value is None:
            continue
        if reason := why_no_bundle(str(value)):
            yield f"{where} is {str(value)!r}: {reason}", f"name a file of certificates (PEM), or unset {where}"
        return


def why_no_bundle(path: str) -> str:
    """What is wrong with a file of certificates; empty if nothing is."""
    return _why_no_bundle(path, _version(path))


@lru_cache(maxsize=4)
def _why_no_bundle(path: str, version: tuple[int, int] | None) -> str:
    """What is wrong with a version of a file; empty if nothing is. A whole bundle takes a while to read."""
    if not path.strip():
        return "it is empty"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except FileNotFoundError:
        return "there is no such file"
    except ssl.SSLError:
        return "it holds no certificates"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return ""


def _proxy(endpoint: str) -> Iterator[Fault]:
    """The proxy that requests to the endpoint would go through."""
    address = urlsplit(endpoint)
    proxy = getproxies().get(address.scheme.lower())
    if not proxy or proxy_bypass(address.netloc):
        return
    names = [f"{address.scheme}_proxy".lower(), f"{address.scheme}_proxy".upper()]
    where = next((name for name in names if name in os.environ), names[-1])
    scheme, separator, rest = proxy.partition("://")
    if separator and scheme.lower() not in ("http", "https"):
        yield f"{where} names a {scheme}:// proxy, and only http:// and https:// ones can be used", f"unset {where}"
        return
    try:
        parts = urlsplit(f"http://{rest if separator else proxy.lstrip('/')}")
        is_valid = bool(parts.hostname) and parts.port != 0 and not re.search(r"[\s\\]", parts.netloc)
    except ValueError:
        is_valid = False
    if not is_valid:
        yield f"{where} is no address of a proxy", f"write it as http://host:port, or unset {where}"
