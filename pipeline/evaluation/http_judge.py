"""A judge behind an HTTP endpoint that speaks as OpenAI's does (`/chat/completions`): vLLM, SGLang, and many services.

What may pass is tried again: 408, 409, 429 and 5xx, a connection that breaks or is silent, an answer that is cut off
or is no JSON of that form. `Retry-After` is heeded. Redirections are not followed: the key would go where they lead.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

from miga.errors import UsageError
from miga.outside_data import OutsideDataError, parse_json_object
from pipeline.evaluation.vision_judge import ORDER, SYSTEM, JudgeFailedError, JudgeRefusedError

_AGAIN: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED: Final = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405})
_MOST_ANSWER_BYTES: Final = 4 << 20
_LONGEST_WAIT_S: Final = 120.0
_FIRST_WAIT_S: Final = 1.0
_MOST_SHOWN: Final = 200


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn; NarrLV's own values.

    Attributes:
        repetition_penalty: 1 leaves it out, as it must be for services that do not know it.
    """

    temperature: float = 0.7
    top_p: float = 0.8
    repetition_penalty: float = 1.05
    max_tokens: int = 32


@dataclass
class HttpJudge:
    """See `VisionJudge`.

    Attributes:
        url: of the endpoint, such as http://localhost:8000/v1.
        model: as the endpoint names it.
        key: sent as a bearer token; empty: none is.
        timeout_s: that a call may be silent.
        tries: calls for one sample.
        per_minute: calls that are begun in a minute; None: as many as can be.
        at_once: calls at the same time.
        clock, sleep: of time, for tests.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    sampling: Sampling = field(default_factory=Sampling)
    timeout_s: float = 120.0
    tries: int = 5
    per_minute: float | None = None
    at_once: int = 4
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.fragment:
            raise UsageError(f"--judge {self.url!r} is no address of an endpoint", "such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise UsageError("--judge holds a password", "put the key into the variable that --key-from names")
        self.name = f"{self.model} at {parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._parts, self._port = parts, port
        self._lock = threading.Lock()
        self._next_s = 0.0
        self._local = threading.local()

    def ask(self, frames: Sequence[bytes], question: str, sample: int) -> str:
        """See `VisionJudge.ask`."""
        body = json.dumps(self._request(frames, question, sample)).encode()
        fault, wait_s = "", _FIRST_WAIT_S
        for number in range(self.tries):
            if number:
                self.sleep(wait_s * random.uniform(0.8, 1.2))
            self._await_turn()
            try:
                return self._try(body)
            except _AgainError as error:
                fault = str(error)
                wait_s = min(_LONGEST_WAIT_S, error.wait_s or _FIRST_WAIT_S * 2**number)
        raise JudgeFailedError(f"{fault} ({self.tries} tries)")

    def _request(self, frames: Sequence[bytes], question: str, sample: int) -> dict[str, Any]:
        images = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(frame).decode()}"}}
            for frame in frames
        ]
        drawn = self.sampling
        values: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": [*images, {"type": "text", "text": f"{question} {ORDER}"}]},
            ],
            "temperature": drawn.temperature,
            "top_p": drawn.top_p,
            "max_tokens": drawn.max_tokens,
            "seed": sample,
        }
        return values | ({"repetition_penalty": drawn.repetition_penalty} if drawn.repetition_penalty != 1 else {})

    def _await_turn(self) -> None:
        """Returns when the next call may be begun."""
        if not self.per_minute:
            return
        with self._lock:
            now_s = self.clock()
            begin_s = max(now_s, self._next_s)
            self._next_s = begin_s + 60.0 / self.per_minute
        if begin_s > now_s:
            self.sleep(begin_s - now_s)

    def _try(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        connection = self._connection()
        try:
            connection.request("POST", f"{self._parts.path.rstrip('/')}/chat/completions", body, headers)
            answer = connection.getresponse()
            data = answer.read(_MOST_ANSWER_BYTES + 1)
            if answer.length and len(data) <= _MOST_ANSWER_BYTES:
                raise http.client.IncompleteRead(data, answer.length)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._forget()
            raise _AgainError(f"no whole answer: {type(error).__name__}: {error}") from error
        if len(data) > _MOST_ANSWER_BYTES or answer.will_close:
            self._forget()
        return self._read(answer.status, answer.getheader("Retry-After"), data)

    def _read(self, status: int, wait: str | None, data: bytes) -> str:
        if status in _REFUSED:
            raise JudgeRefusedError(
                f"{self.name} answers {status}: {_shown(data)}", "check --judge, --judge-model and the key"
            )
        if status in _AGAIN:
            raise _AgainError(f"HTTP {status}: {_shown(data)}", _seconds(wait))
        if status != 200:
            raise JudgeFailedError(f"HTTP {status}: {_shown(data)}")
        try:
            values = parse_json_object(data, max_bytes=_MOST_ANSWER_BYTES, integers=None)
            text = values["choices"][0]["message"]["content"]
        except (OutsideDataError, KeyError, IndexError, TypeError) as error:
            raise _AgainError(f"its answer cannot be read: {_shown(data)}") from error
        if not isinstance(text, str):
            raise _AgainError(f"its answer holds no text: {_shown(data)}")
        return text

    def _connection(self) -> http.client.HTTPConnection:
        """One for each thread, kept open."""
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if kept is None:
            host = self._parts.hostname
            assert host is not None
            if self._parts.scheme == "https":
                kept = http.client.HTTPSConnection(
                    host, self._port, timeout=self.timeout_s, context=ssl.create_default_context()
                )
            else:
                kept = http.client.HTTPConnection(host, self._port, timeout=self.timeout_s)
            self._local.connection = kept
        return kept

    def _forget(self) -> None:
        self._connection().close()
        self._local.connection = None


class _AgainError(Exception):
    """A call failed in a way that may pass."""

    def __init__(self, text: str, wait_s: float | None = None) -> None:
        super().__init__(text)
        self.wait_s = wait_s


def _seconds(wait: str | None) -> float | None:
    """What Retry-After says: seconds, or a date."""
    if not wait:
        return None
    try:
        return max(0.0, float(wait))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(wait).timestamp() - time.time())
    except ValueError:
        return None


def _shown(data: bytes) -> str:
    text = " ".join(data[:4096].decode(errors="replace").split())
    return (text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…") or "nothing"
