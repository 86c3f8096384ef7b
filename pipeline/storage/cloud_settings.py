"""What the environment says about Google Cloud Storage and Azure Blob Storage, looked at before any request.

obstore reads most variables by itself (`docs/storage.md` lists them); here stand those that it does not know and that
users have all the same, and what cannot work is named at once. Nothing here asks a server, and no value is repeated
that may be secret.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from miga.errors import MigaError
from miga.outside_data import OutsideDataError, parse_json_object
from pipeline.storage.s3_settings import Fault, fault_of_text, why_no_bundle

GS_PREFIXES: Final = ("GOOGLE_", "STORAGE_EMULATOR_HOST")
_ENDPOINTS: Final = {
    "gs": ("GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_GOOGLE_FILES: Final = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")
_GOOGLE_KINDS: Final = ("service_account", "authorized_user")
_ACCOUNTS: Final = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_KEYS: Final = (
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_KEY",
)
_SAS: Final = ("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN")
_CONNECTION: Final = "AZURE_STORAGE_CONNECTION_STRING"
_EMULATOR: Final = "AZURE_STORAGE_USE_EMULATOR"
_BUNDLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def check_cloud_settings(scheme: str, error: type[MigaError]) -> None:
    """Returns if nothing that a request to that cloud would need is known to be wrong.

    Args:
        scheme: `gs` or `az`.
        error: what to raise.

    Raises:
        MigaError: of class `error`, naming the variable.
    """
    checks = (_google if scheme == "gs" else _azure, _bundle)
    for fault in (
        fault for faults in (_texts(scheme), _endpoint(scheme), *(check() for check in checks)) for fault in faults
    ):
        raise error(*fault)


def google_config() -> tuple[dict[str, Any], bool]:
    """What obstore does not read by itself, and whether the endpoint is plain http."""
    config: dict[str, Any] = {}
    endpoint = os.environ.get("GOOGLE_BASE_URL", "")
    if not endpoint and (emulator := os.environ.get("STORAGE_EMULATOR_HOST")):
        endpoint = emulator if "://" in emulator else f"http://{emulator}"
        config["base_url"] = endpoint.rstrip("/")
        if not any(name in os.environ for name in (*_GOOGLE_FILES, "GOOGLE_BEARER_TOKEN")):
            config["bearer_token"] = "emulator"  # which looks at none
    return config, endpoint.lower().startswith("http://")


def azure_config() -> tuple[dict[str, Any], bool]:
    """What obstore does not read by itself, and whether the endpoint is plain http."""
    said = _connection_string()
    config: dict[str, Any] = {}
    if account := _first(_ACCOUNTS) or said.get("accountname"):
        config["account_name"] = account
    if not _first(_SAS) and (key := _first(_KEYS) or said.get("accountkey")):
        config["account_key"] = key
    if signature := _first(_SAS) or ("" if _first(_KEYS) else said.get("sharedaccesssignature", "")):
        config["sas_key"] = signature.removeprefix("?")
    is_emulated = os.environ.get(_EMULATOR, "").lower() in ("1", "true", "yes", "on", "y")
    if said.get("usedevelopmentstorage", "").lower() == "true":
        config["use_emulator"] = is_emulated = True
    endpoint = _first(_ENDPOINTS["az"])
    if not endpoint and not is_emulated and (endpoint := _endpoint_of(said)):
        config["endpoint"] = endpoint
    return config, is_emulated or endpoint.lower().startswith("http://")


def certificates() -> bytes | None:
    """Of authorities that are trusted beside the system's; None where the environment names no file."""
    name = _first(_BUNDLES)
    return Path(name).read_bytes() if name else None


def _first(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name))), "")


def _connection_string() -> dict[str, str]:
    """Its parts, by their names in lower case."""
    parts = (part.partition("=") for part in os.environ.get(_CONNECTION, "").split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in parts if value}


def _endpoint_of(said: dict[str, str]) -> str:
    """That of a connection string; empty where it is Azure's own."""
    if endpoint := said.get("blobendpoint"):
        return endpoint.rstrip("/")
    suffix, protocol = said.get("endpointsuffix", "core.windows.net"), said.get("defaultendpointsprotocol", "https")
    if (suffix, protocol) == ("core.windows.net", "https") or "accountname" not in said:
        return ""
    return f"{protocol}://{said['accountname']}.blob.{suffix}"


def _texts(scheme: str) -> Iterator[Fault]:
    prefixes = (
        GS_PREFIXES if scheme == "gs" else ("AZURE_STORAGE_", "AZURE_ENDPOINT", "AZURE_CLIENT_", "AZURE_TENANT_ID")
    )
    for name, value in sorted(os.environ.items()):
        if name.startswith(prefixes) and name != "GOOGLE_SERVICE_ACCOUNT_KEY" and (what := fault_of_text(name, value)):
            yield f"{name} {what}", f"set {name} again without it"


def _endpoint(scheme: str) -> Iterator[Fault]:
    for name in _ENDPOINTS[scheme]:
        if not (value := os.environ.get(name)):
            continue
        if "@" in value or "?" in value:
            yield (
                f"{name} holds a user, a password or a signature",
                "leave them out of it: credentials are variables too",
            )
            return
        if "://" not in value and name == "STORAGE_EMULATOR_HOST":
            value = f"http://{value}"
        try:
            parts = urlsplit(value)
            is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_valid = False
        if not is_valid:
            yield (
                f"{name} is {value!r}, which is no address of a server",
                "write it as https://host or http://host:port",
            )


def _json_of(file: Path) -> dict[str, Any]:
    """What stands in a file; nothing, if that is no JSON object."""
    try:
        return parse_json_object(file.read_bytes())
    except (OSError, OutsideDataError):
        return {}


def _google() -> Iterator[Fault]:
    for name in _GOOGLE_FILES:
        value = os.environ.get(name)
        if value is None:
            continue
        remedy = f"name a file of credentials (JSON), or unset {name} to use those of gcloud or of the machine's role"
        if not os.path.isfile(value):
            yield f"{name} is {value!r}: there is no such file", remedy
            return
        if not os.access(value, os.R_OK):
            yield f"{name} is {value!r}: it cannot be read", remedy
            return
        found = _json_of(Path(value))
        kind = found.get("type", "service_account" if "private_key" in found else None)
        if kind not in _GOOGLE_KINDS:
            what = (
                "it holds no credentials"
                if not isinstance(kind, str)
                else f"credentials of type {kind[:40]!r} are not known"
            )
            yield (
                f"{name} is {value!r}: {what}",
                "name the key file of a service account, or run gcloud auth application-default login; on Google's own "
                "machines unset it, and the machine's role is used",
            )
            return


def _azure() -> Iterator[Fault]:
    if text := os.environ.get(_CONNECTION):
        said = _connection_string()
        if not said.keys() & {"accountname", "usedevelopmentstorage", "blobendpoint"}:
            yield (
                f"{_CONNECTION} names no account ({len(text)} characters)",
                "copy it whole, AccountName=…;AccountKey=…",
            )
            return
    else:
        said = {}
    is_emulated = bool(os.environ.get(_EMULATOR)) or "usedevelopmentstorage" in said
    if not (_first(_ACCOUNTS) or said.get("accountname") or is_emulated):
        yield (
            "no storage account of Azure is named",
            "set AZURE_STORAGE_ACCOUNT_NAME (or AZURE_STORAGE_CONNECTION_STRING): az://container/path says none",
        )
        return
    for name, key in (
        *((name, os.environ.get(name)) for name in _KEYS),
        (f"AccountKey of {_CONNECTION}", said.get("accountkey")),
    ):
        if key and not _is_base64(key):
            yield f"{name} is no key of an account: it is not Base64", "copy it again from the account's access keys"
            return


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _bundle() -> Iterator[Fault]:
    for name in _BUNDLES:
        if (value := os.environ.get(name)) and (reason := why_no_bundle(value)):
            yield f"{name} is {value!r}: {reason}", f"name a file of certificates (PEM), or unset {name}"
