"""The server of `miga judge`: pairs of videos in the browser of this machine, and answers into a file.

What is answered, and nothing else:

    GET  /?token=…         once: the browser that opens it may take part, and is led to the page
    GET  /                 the page
    GET  /video/NAME.mp4   a video of a pair that is being shown, under a name made for this showing
    POST /join             {"person"}: who is there; answers with what is shown next
    POST /next             {"person"}: the same again, as after a pause
    POST /answer           {"person", "trial", "answers", "plays"}: answers with what is shown next

Nothing that is sent to a browser says which system made a video. A browser takes part by a cookie that the token of one
address buys; that address works once, and the next one is said on the terminal. Requests of other sites are refused by
their Host and Origin headers, and have no cookie. Whoever has not watched both videos to their end is told to do so:
answers that come sooner than that takes are refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.resources
import json
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from miga.errors import MigaError
from miga.outside_data import OutsideDataError, parse_json_object
from pipeline.evaluation.broken_copy import write_broken_copy
from pipeline.evaluation.judging import (
    QUESTIONS,
    Answered,
    Answers,
    Person,
    Side,
    Study,
    Trial,
    answer_line,
    person_line,
    trials_of,
)
from pipeline.evaluation.line_log import LineLog
from pipeline.evaluation.pairs import Asked, System
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.terminal import say
from pipeline.upkeep.loopback import PATIENCE_S, LoopbackAnswer, LoopbackServer

_MOST_BODY_BYTES: Final = 64 * 1024
_MOST_SESSIONS: Final = 1000
_COOKIE: Final = "miga-judge"
_VIDEO: Final = re.compile(r"/video/(?P<name>[A-Za-z0-9_-]{16,32})\.mp4", re.ASCII)
_EARLY: Final = 0.9
"""Of the videos' length: answers that come sooner than that after a pair was sent were given without a whole view."""
_MOST_NAME: Final = 80


class RefusedError(Exception):
    """A request that is not done; the text is for the page."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class _Shown:
    """A trial that a person is being shown."""

    trial: Trial
    names: tuple[str, str]
    since_s: float
    length_s: float


@dataclass
class _Taking:
    """Somebody who takes part."""

    person: Person
    trials: Sequence[Trial]
    done: dict[int, Answered] = field(default_factory=dict)
    shown: _Shown | None = None

    def next_trial(self) -> Trial | None:
        """The first that has no answer; None: all have."""
        return next((trial for trial in self.trials if trial.number not in self.done), None)


class JudgeSession:
    """The state of a study while it is served; its methods may be called by many threads.

    Args:
        study: what is asked.
        systems: whose videos are shown, by name.
        log: the file of answers, which the study's line is in already.
        answers: what it holds.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        study: Study,
        systems: Mapping[str, System],
        log: LineLog,
        answers: Answers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study = study
        self._systems = {name: (system, system.storage.with_patience(PATIENCE_S)) for name, system in systems.items()}
        self._log, self._clock = log, clock
        self._lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="miga-judge-")
        self._copies: dict[tuple[int, str], str] = {}
        self._making = threading.Lock()
        self._videos: dict[str, tuple[Storage, str]] = {}
        self._people: dict[str, _Taking] = {}
        for person in answers.people:
            self._people[person.person] = _Taking(person, trials_of(study, person.number))
        for (name, trial), answered in answers.by_trial.items():
            self._people[name].done[trial] = answered

    def close(self) -> None:
        """Removes what was made for the study's time."""
        self._folder.cleanup()

    def join(self, name: Any) -> dict[str, Any]:
        """Somebody takes part, or comes back.

        Raises:
            RefusedError: if that is no name.
        """
        if not isinstance(name, str) or not (name := name.strip()) or len(name) > _MOST_NAME or not name.isprintable():
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"Give a name of 1 to {_MOST_NAME} letters.")
        with self._lock:
            if name not in self._people:
                person = Person(person=name, number=len(self._people), at=_now())
                self._log.append(person_line(person))
                self._people[name] = _Taking(person, trials_of(self.study, person.number))
        return self.next(name)

    def next(self, name: Any) -> dict[str, Any]:
        """What a person is shown now, as the page takes it.

        Raises:
            RefusedError: if nobody of that name has joined.
            MigaError: if the broken copy that a check shows cannot be made.
        """
        with self._lock:
            taking = self._taking(name)
            trial = taking.next_trial()
            about = {"person": name, "done": len(taking.done), "total": len(taking.trials)}
            if trial is None:
                return about | {"trial": None}
        sides = [self._place(trial, side) for side in ("left", "right")]
        row = self._row(trial)
        with self._lock:
            if taking.shown is not None:
                for old in taking.shown.names:
                    self._videos.pop(old, None)
            names = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
            self._videos |= zip(names, sides, strict=True)
            taking.shown = _Shown(trial, names, self._clock(), row.duration_s or 0.0)
        return about | {
            "trial": trial.number,
            "left": f"/video/{names[0]}.mp4",
            "right": f"/video/{names[1]}.mp4",
            "width": row.width,
            "height": row.height,
            "fps": row.fps,
        }

    def answer(self, name: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """Notes the answers to a trial; what is answered again is recognised, and the first answers count.

        Returns:
            What is shown next.

        Raises:
            RefusedError: if the answers are none, come too soon, or are others than those that were noted.
            OutputError: if they cannot be written.
        """
        with self._lock:
            taking = self._taking(name)
            number, chosen, plays = self._parsed(values)
            if (before := taking.done.get(number)) is not None:
                if before.answers != chosen:
                    raise RefusedError(HTTPStatus.CONFLICT, "This pair was answered before; the first answers count.")
            else:
                shown = taking.shown
                if shown is None or shown.trial.number != number:
                    raise RefusedError(HTTPStatus.CONFLICT, "Another pair is to be shown now.")
                took_s = self._clock() - shown.since_s
                if chosen and (plays < 1 or took_s < _EARLY * shown.length_s):
                    raise RefusedError(HTTPStatus.CONFLICT, "Watch both videos to their end first.")
                answered = _answered(taking.person.person, shown.trial, chosen, plays, took_s)
                self._log.append(answer_line(answered))
                taking.done[number] = answered
        return self.next(name)

    def video(self, name: str) -> tuple[Storage, str] | None:
        """Where the video of that name lies; None if none is shown under it."""
        with self._lock:
            return self._videos.get(name)

    def _taking(self, name: Any) -> _Taking:
        if not isinstance(name, str) or name not in self._people:
            raise RefusedError(HTTPStatus.CONFLICT, "Join first.")
        return self._people[name]

    def _parsed(self, values: Mapping[str, Any]) -> tuple[int, dict[str, Side], int]:
        number, chosen, plays = (values.get(key) for key in ("trial", "answers", "plays"))
        is_whole = type(number) is int and type(plays) is int and isinstance(chosen, dict) and plays >= 0
        if not is_whole or (chosen and set(chosen) != set(self.study.questions)):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Answer all questions.")
        assert isinstance(chosen, dict)
        assert isinstance(number, int)
        assert isinstance(plays, int)
        if not all(side in ("left", "tie", "right") for side in chosen.values()):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Answers are left, tie or right.")
        return number, {question: chosen[question] for question in self.study.questions if chosen}, plays

    def _asked(self, trial: Trial) -> Asked:
        item = self.study.items[trial.item]
        return item.prompts, item.seed

    def _row(self, trial: Trial) -> Any:
        return self._systems[trial.left][0].rows[self._asked(trial)]

    def _place(self, trial: Trial, side: str) -> tuple[Storage, str]:
        """Where the video of a side lies."""
        name = trial.left if side == "left" else trial.right
        system, storage = self._systems[name]
        path = system.video_path(self._asked(trial))
        if trial.broken != side:
            return storage, path
        folder = LocalStorage(self._folder.name)
        with self._making:
            if (trial.item, name) not in self._copies:
                copy = f"{secrets.token_hex(8)}.mp4"
                write_broken_copy(storage, path, Path(self._folder.name) / copy, seed=trial.item)
                self._copies[trial.item, name] = copy
        return folder, self._copies[trial.item, name]


def _answered(person: str, trial: Trial, chosen: dict[str, Side], plays: int, took_s: float) -> Answered:
    return Answered(
        person=person,
        trial=trial.number,
        kind=trial.kind,
        item=trial.item,
        left=trial.left,
        right=trial.right,
        broken=trial.broken,
        answers=chosen,
        plays=plays,
        took_s=round(took_s, 3),
        at=_now(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class JudgeServer(LoopbackServer):
    """Serves a study; it listens when it is made, and answers in `serve_forever`.

    Args:
        session: the study's state.
        port: 0 means any that is free.

    Raises:
        PortTakenError: if it is not.
    """

    def __init__(self, session: JudgeSession, port: int = 0) -> None:
        self.session = session
        self.page, self.policy = _page(session.study)
        self._lock = threading.Lock()
        self._token = secrets.token_urlsafe(24)
        self._cookies: list[str] = []
        super().__init__(_Answer, port)

    @property
    def invitation(self) -> str:
        """The address that lets one browser take part."""
        return f"{self.address}?token={self._token}"

    def admit(self, token: str) -> str | None:
        """The cookie that the token buys, once; None if it is not the one that is good now."""
        with self._lock:
            if not hmac.compare_digest(token.encode(), self._token.encode()):
                return None
            self._token = secrets.token_urlsafe(24)
            cookie = secrets.token_urlsafe(24)
            self._cookies = [*self._cookies[-_MOST_SESSIONS:], cookie]
        say(f"a browser takes part; for another one: {self.invitation}")
        return cookie

    def knows(self, cookie: str) -> bool:
        """Whether a browser with that cookie takes part."""
        with self._lock:
            return any(hmac.compare_digest(cookie.encode(), known.encode()) for known in self._cookies)


class _Answer(LoopbackAnswer):
    server: JudgeServer

    def answer(self) -> None:
        parts = urlsplit(self.path if self.path.startswith("/") else "/-")
        token = parse_qs(parts.query).get("token", [""])[0]
        if parts.path == "/" and token:
            self._admit(token)
        elif parts.path == "/favicon.ico":  # every browser asks for it
            self.head(HTTPStatus.NO_CONTENT, {})
        elif not self._takes_part():
            self.say(HTTPStatus.FORBIDDEN, "open the address that `miga judge` has printed; it lets one browser in")
        elif parts.path == "/":
            about = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": self.server.policy}
            self._send(HTTPStatus.OK, self.server.page, about)
        elif (found := _VIDEO.fullmatch(parts.path)) and (place := self.server.session.video(found["name"])):
            self.send_video(*place, found["name"])
        else:
            self.say(HTTPStatus.NOT_FOUND, "there is nothing here; the page is at /")

    def answer_post(self) -> None:
        """Answers a POST from this machine."""
        data = self._body()
        if data is None:
            return
        session = self.server.session
        asked: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "/join": lambda values: session.join(values.get("person")),
            "/next": lambda values: session.next(values.get("person")),
            "/answer": lambda values: session.answer(values.get("person"), values),
        }
        try:
            if self.path not in asked:
                raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
            self._send_json(HTTPStatus.OK, asked[self.path](parse_json_object(data)))
        except RefusedError as refusal:
            self._send_json(refusal.status, {"error": str(refusal)})
        except OutsideDataError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except MigaError as error:
            say(f"miga: {error}")
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": error.message})

    def _body(self) -> bytes | None:
        """What was sent, if it is to be heeded; otherwise the sender has been told why not."""
        length = self.headers.get("Content-Length") or ""
        kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        refusal = None
        if self.headers.get("Origin") not in self._own_origins() or not self._takes_part():
            refusal = HTTPStatus.FORBIDDEN, "answers are taken from the page that this server has sent alone"
        elif kind != "application/json":
            refusal = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "answers are JSON"
        elif not re.fullmatch(r"\d{1,9}", length, re.ASCII):
            refusal = HTTPStatus.LENGTH_REQUIRED, "say how long it is"
        elif int(length) > _MOST_BODY_BYTES:
            refusal = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "answers are shorter"
        if refusal is not None:
            self.close_connection = True  # what was sent is not read
            self.say(*refusal)
            return None
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise ConnectionError("the answer was cut off")
        return data

    def _own_origins(self) -> set[str]:
        port = self.server.server_address[1]
        return {f"http://{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    def _admit(self, token: str) -> None:
        cookie = self.server.admit(token)
        if cookie is None:
            self.say(HTTPStatus.FORBIDDEN, "this address has been used; `miga judge` has printed the next one")
            return
        port = self.server.server_address[1]
        kept = f"{_COOKIE}-{port}={cookie}; HttpOnly; SameSite=Strict; Path=/"
        self.head(HTTPStatus.SEE_OTHER, {"Location": "/", "Set-Cookie": kept, "Content-Length": "0"})

    def _takes_part(self) -> bool:
        cookies: SimpleCookie = SimpleCookie()
        with suppress(CookieError):
            cookies.load(self.headers.get("Cookie") or "")
        kept = cookies.get(f"{_COOKIE}-{self.server.server_address[1]}")
        return kept is not None and self.server.knows(kept.value)

    def _send_json(self, status: HTTPStatus, values: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _send(self, status: HTTPStatus, data: bytes, about: dict[str, str]) -> None:
        self.head(status, {**about, "Content-Length": str(len(data))})
        if self.command != "HEAD":
            self.wfile.write(data)


def _page(study: Study) -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy: its own style and script, and what this server sends."""
    folder = importlib.resources.files("pipeline") / "templates" / "judge"
    style, script = ("\n" + (folder / f"judge.{kind}").read_text("utf-8") for kind in ("css", "js"))
    questions = [{"name": name, "text": QUESTIONS.get(name, name)} for name in study.questions]
    page = (folder / "judge.html").read_text("utf-8")
    data = json.dumps(questions).replace("<", "\\u003c")
    for name, text in (("STYLE", style), ("SCRIPT", script), ("QUESTIONS", data)):
        page = page.replace(f"@{name}@", text)
    sources = {"style": _hash(style), "script": _hash(script)}
    policy = (
        "default-src 'none'; media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; " + "; ".join(f"{kind}-src '{source}'" for kind, source in sources.items())
    )
    return page.encode(), policy


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
