"""Clients of Google Cloud Storage and Azure Blob Storage (of obstore) for the requests of a lane (`lanes.py`).

One tries once and knows no time limit, since the lane's watch knows better. Uploads in parts have a client of their own
for each: obstore keeps the number of an upload to itself, so that it alone can try a part again, and abort the upload
when that fails.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

from pipeline.storage.cloud_settings import GS_PREFIXES, azure_config, certificates, google_config
from pipeline.storage.lanes import ClientSettingsError, Settings

_CONNECT_S: Final = 10.0
_NO_LIMIT: Final = timedelta(days=30)
_TRIES_OF_A_PART: Final = 8


class CloudClient:
    """A bucket of Google's, or a container of Azure's.

    Args:
        scheme: `gs` or `az`.
        bucket: its name.

    Attributes:
        store: of obstore, for requests that try once.

    Raises:
        ClientSettingsError: if there can be none of what the environment says.
    """

    def __init__(self, scheme: str, bucket: str) -> None:
        self._scheme, self._bucket = scheme, bucket
        self.store = self._make(_NO_LIMIT, {"max_retries": 0})

    def for_parts(self, request_s: float, tries_s: float) -> Any:
        """A store for one upload in parts.

        Args:
            request_s: that one request may take.
            tries_s: after which a part that fails is not tried again.
        """
        retries = {
            "max_retries": _TRIES_OF_A_PART,
            "retry_timeout": timedelta(seconds=tries_s),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        }
        return self._make(timedelta(seconds=request_s), retries)

    def _make(self, limit: timedelta, retries: dict[str, Any]) -> Any:
        try:
            from obstore.store import AzureStore, GCSStore

            is_google = self._scheme == "gs"
            config, is_plain = google_config() if is_google else azure_config()
            options: dict[str, Any] = {
                "timeout": limit,
                "connect_timeout": min(limit, timedelta(seconds=_CONNECT_S)),
                "allow_http": is_plain,
            }
            if authority := certificates():
                options["root_certificate"] = authority
            kind: Any = GCSStore if is_google else AzureStore
            return kind(self._bucket, config=config, client_options=options, retry_config=retries)
        except Exception as error:  # of obstore, for whatever stands in the environment
            raise ClientSettingsError(str(error).partition("\n\nDebug source")[0]) from error


@asynccontextmanager
async def cloud_client(scheme: str, bucket: str) -> AsyncIterator[CloudClient]:
    """A client, made of what the environment says.

    Raises:
        ClientSettingsError: if it cannot be.
    """
    yield CloudClient(scheme, bucket)


def present_settings(scheme: str, bucket: str) -> Settings:
    """What a client of a bucket goes by: its name, and variables of the environment as they stand there now."""
    prefixes = GS_PREFIXES if scheme == "gs" else ("AZURE_",)
    also = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "HOME")
    variables = {
        (name, value)
        for name, value in os.environ.items()
        if name.startswith(prefixes) or name in also or name.lower().endswith("_proxy")
    }
    return frozenset(variables | {("", f"{scheme}://{bucket}")})
