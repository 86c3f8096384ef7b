"""Addresses that a user gives: they are written into run.json, the manifest and logs, so none may hold a secret.

What is refused, and never repeated in the message, after percent-escapes are undone:

- an `@` before the first `/` of an address (`s3://KEY:SECRET@bucket/x`, `https://token@host/x`);
- a `:` there, unless it is a port (never on s3, where `s3://KEY:SEC/RET@bucket/x` begins so) or an ARN's;
- anywhere a `:` that an `@` follows, since a secret may hold slashes: `s3://KE/Y:SECRET@bucket`. A key with an `@`
  alone is fine (`s3://bucket/dir/a@b.jsonl`), and so is one with a `:` alone; one that has both, in that order, has to
  be renamed;
- a signed query (`?X-Amz-Signature=…`).

A local path is no address, and may hold what it likes. What begins as an address with a slash too few
(`s3:/bucket`, `s3:KEY:SECRET@bucket`) would be taken for a path, and is refused; `./s3:/x` is a path.
"""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from miga.errors import MigaError
from pipeline.terminal import escaped

_SECRET_QUERY: Final = re.compile(
    r"(^|[-_])(sig|signature|token|secret|password|credential|key)$|(access|api)_?key|^x-(amz|goog)-", re.IGNORECASE
)
_SECRET_VARIABLES: Final = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "GOOGLE_BEARER_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
    "AZURE_ENCRYPTION_KEY",
)
_PORT: Final = re.compile(r"[^:@]*:\d{1,5}|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_ARN: Final = re.compile(r"arn:aws[a-z-]*:s3[a-z-]*:[A-Za-z0-9:._-]+")
_SCHEMES: Final = "s3|s3a|s3n|gs|gcs|az|abfs|abfss|adl|https?|ftp|sftp|hf|hdfs|file|memory"
_SLASH_TOO_FEW: Final = re.compile(rf"(?:({_SCHEMES}):(?!//)|([a-z][a-z0-9+.-]*):[/\\](?!/))", re.IGNORECASE)
_USER_IN_ADDRESS: Final = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"<>]*:[^\s'\"<>]*@")
_SIGNED: Final = re.compile(
    r"((?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|\bsig|AccountKey)=)[^&;\s'\"<>]+", re.I
)

_HINT: Final = (
    "give credentials by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE; "
    "GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY) or by the machine's role, "
    "and leave them out of the address"
)
_OF_ACCOUNT: Final = re.compile(r"([^:@/]+)@([a-z0-9]{3,24})\.(?:dfs|blob)\.core\.windows\.net", re.IGNORECASE)


def check_address(address: str, error: type[MigaError], name: str) -> None:
    """Returns if `address` can be written down and used: no secret, no chain, text, and S3 set up where it is that.

    Args:
        address: a path, or an address with a scheme.
        error: what to raise.
        name: of the argument, for the message.

    Raises:
        MigaError: of class `error`.
    """
    rest = address.partition("://")[2]
    if rest and "::" in address and not _ARN.match(rest):
        raise error(
            f"{name}: the address holds '::', which chains file systems; one place is named here",
            "name the file itself, or rename one that has '::' in its name",
        )
    refuse_secrets(address, error, name)
    if found := _SLASH_TOO_FEW.match(address):
        scheme = found[1] or found[2]
        raise error(
            f"{name} begins with {scheme}:, and no // follows, so it would be taken for a local path",
            f"write {scheme}://…, or put ./ before a path that begins so",
        )
    try:
        address.encode()
    except UnicodeEncodeError:
        raise error(
            f"{name} is not UTF-8: {escaped(address)}", "rename it: its path is written into files that are UTF-8"
        ) from None
    scheme, separator, _ = address.partition("://")
    if not separator:
        return
    if not is_printable(address):
        raise error(f"{name} holds unprintable characters: {escaped(address)}", "name it without them")
    if scheme in ("s3", "s3a"):
        from pipeline.storage.s3_settings import check_s3_settings

        check_s3_settings(error)
    elif scheme in ("gs", "gcs", "az", "abfs", "abfss"):
        from pipeline.storage.cloud_settings import check_cloud_settings

        check_cloud_settings("gs" if scheme in ("gs", "gcs") else "az", error)


def refuse_secrets(address: str, error: type[MigaError], name: str) -> None:
    """Returns if `address` holds no credentials; see the top of this file.

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
    scheme = scheme if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,15}", scheme) else "given"
    place, _, query = _unescaped(rest).partition("?")
    authority, _, path = place.partition("/")
    has_port = scheme.lower() not in ("s3", "s3a", "s3n") and _PORT.fullmatch(authority)
    if has_port or _ARN.fullmatch(authority):
        authority = ""
    is_path = scheme.lower() == "file" and not authority
    if scheme.lower() in ("abfs", "abfss", "az") and (found := _OF_ACCOUNT.fullmatch(authority)):
        raise error(
            f"{name}: the {scheme}:// address names a storage account, which the environment is to name here",
            f"set AZURE_STORAGE_ACCOUNT_NAME={found[2]}, and write az://{found[1]}/…",
        )
    if "@" in authority or ":" in authority or (re.search(r":.*@", path, re.DOTALL) and not is_path):
        raise error(
            f"{name}: the {scheme}:// address holds a user or a password, or what looks like it (a ':' before an '@', "
            "or one of them before the first '/')",
            _HINT,
        )
    try:
        names = [key for key, _ in parse_qsl(urlsplit(f"x://x/?{query}").query, keep_blank_values=True)]
    except ValueError:
        names = [query]
    if secret := [key for key in names if _SECRET_QUERY.search(key)]:
        raise error(f"{name}: the {scheme}:// address is signed (it holds {', '.join(sorted(set(secret)))})", _HINT)


def _unescaped(text: str) -> str:
    for _ in range(3):
        text = unquote(text, errors="surrogateescape")
    return text


def is_printable(path: str) -> bool:
    """Whether `path` is text, without a character that a terminal would act on."""
    return escaped(path) == path


def without_secrets(text: str) -> str:
    """`text`, a message that comes from a library, with whatever may be a secret blotted out.

    That is the values of secret variables, escaped for an address or not; what stands before the @ of an address; and
    signatures in a query.
    """
    for variable in _SECRET_VARIABLES:
        if len(value := os.environ.get(variable, "")) >= 8:
            for form in (value, quote(value, safe=""), quote(value), " ".join(value.split())):
                text = text.replace(form, f"[{variable}]")
    return _SIGNED.sub(r"\1[…]", _USER_IN_ADDRESS.sub(r"\1[…]@", text))
