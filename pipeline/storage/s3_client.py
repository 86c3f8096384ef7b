"""A client of an S3 server for the requests of a lane (`lanes.py`).

It tries once, and sends bodies without asking first: "100 Continue" is never asked for, since a server that does not
send it could not be told from one that is slow to.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final

from pipeline.storage.lanes import ClientSettingsError, Progress, Settings

_CONNECT_S: Final = 10.0


class Body(io.BytesIO):
    """What a request sends; each part that is taken of it is progress."""

    def __init__(self, data: bytes, progress: Progress) -> None:
        super().__init__(data)
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BytesIO`."""
        data = super().read(size)
        self._progress.moved(len(data))
        return data


@asynccontextmanager
async def s3_client() -> AsyncIterator[Any]:
    """A client of aiobotocore, made of what the environment says.

    Raises:
        ClientSettingsError: if it cannot be.
    """
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    config = AioConfig(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=_CONNECT_S,
        read_timeout=None,  # `Progress` knows better
        max_pool_connections=32,
        request_checksum_calculation="when_required",  # servers differ in which of the newer ones they know
        response_checksum_validation="when_required",
    )
    try:
        session = AioSession()
        session.register_component("data_loader", _descriptions())
        context = session.create_client("s3", config=config)
        client = await context.__aenter__()
    except Exception as error:  # of many modules, for whatever stands in the environment
        raise ClientSettingsError(" ".join(str(error).split()) or type(error).__name__) from error
    client.meta.events.unregister("before-call.s3", add_expect_header)
    try:
        yield client
    finally:
        await context.__aexit__(None, None, None)


@lru_cache(maxsize=1)
def _descriptions() -> Any:
    """Of services, which take longer to read than all else that a client needs."""
    from botocore.loaders import create_loader

    return create_loader(os.environ.get("AWS_DATA_PATH"))


def present_settings() -> Settings:
    """Variables of the environment that a client goes by, as they stand there now."""
    return frozenset(
        (variable, value)
        for variable, value in os.environ.items()
        if variable.startswith("AWS_") or variable == "REQUESTS_CA_BUNDLE" or variable.lower().endswith("_proxy")
    )
