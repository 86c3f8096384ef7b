"""`serve`: real HTTP requests, to a run in a folder and to one in object storage."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.run.report import make_report
from pipeline.report.page import write_report
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from pipeline.upkeep.loopback import HOST, PortTakenError
from pipeline.upkeep.serve import RunServer, open_server
from tests.made_run import MadeRun, make_run, video_bytes
from tests.pace import paced


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> MadeRun:
    place = tmp_path / "out" if request.param == "local" else request.getfixturevalue("s3_root")
    return make_run(open_storage(place), tmp_path, 4, failed=(2,))


@pytest.fixture
def local_run(tmp_path: Path) -> MadeRun:
    return make_run(LocalStorage(tmp_path / "out"), tmp_path, 4)


def served(run: MadeRun, folder: Path) -> Iterator[RunServer]:
    make_report(run.storage, str(folder), served=True)
    server = RunServer(run.storage, folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(run: MadeRun, tmp_path: Path) -> Iterator[RunServer]:
    yield from served(run, tmp_path / "page")


@pytest.fixture
def local_server(local_run: MadeRun, tmp_path: Path) -> Iterator[RunServer]:
    yield from served(local_run, tmp_path / "page")


def ask(
    server: RunServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body; the path is sent as it is."""
    connection = http.client.HTTPConnection(HOST, server.server_address[1], timeout=paced(30))
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_the_page_and_its_videos(run: MadeRun, server: RunServer) -> None:
    status, headers, page = ask(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert f"./{run.video(0)}".encode() in page
    assert ask(server, "/report.html")[2] == page
    status, headers, body = ask(server, f"/{run.video(1)}")
    assert (status, headers["Content-Type"], headers["Accept-Ranges"]) == (200, "video/mp4", "bytes")
    assert body == video_bytes(1)


def test_what_a_page_of_many_rows_loads(local_run: MadeRun, tmp_path: Path) -> None:
    rows = [{"row": row, "status": "ok", "uri": local_run.storage.uri(local_run.video(0))} for row in range(2001)]
    write_report(rows, {}, tmp_path / "many", strips=lambda cards: {0: b"x" * 2_000_000})
    server = RunServer(local_run.storage, tmp_path / "many")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    files = sorted((tmp_path / "many").glob("report-files-*/*"))
    assert {path.name for path in files} >= {"index.js", "rows-00008.js", "words-00000.js", "strip-0000000.jpg"}
    for path in files:
        status, headers, body = ask(server, f"/{path.parent.name}/{path.name}")
        assert (status, body) == (200, path.read_bytes())
        kind = "image/jpeg" if path.suffix == ".jpg" else "text/javascript; charset=utf-8"
        assert headers["Content-Type"] == kind
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0), ("bytes=0-", 0, None), ("bytes=5-99", 5, 99), ("bytes=5-", 5, None),
        ("bytes=-7", -7, None),
        ("bytes=-99999999", 0, None), ("bytes=3-99999999", 3, None), ("bytes= 1-2 ", 1, 2),
    ],
)  # fmt: skip
@pytest.mark.sampled(6)
def test_ranges(run: MadeRun, server: RunServer, asked: str, first: int, last: int | None) -> None:
    whole = video_bytes(1)
    wanted = whole[first:] if last is None else whole[first : last + 1]
    at = whole.index(wanted) if first < 0 else first
    for method in ("GET", "HEAD"):
        status, headers, body = ask(server, f"/{run.video(1)}", method, Range=asked)
        assert status == 206
        assert headers["Content-Range"] == f"bytes {at}-{at + len(wanted) - 1}/{len(whole)}"
        assert headers["Content-Length"] == str(len(wanted))
        assert body == (wanted if method == "GET" else b"")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=99999999-100000000", "bytes=-0"])
def test_ranges_beyond_the_file(run: MadeRun, server: RunServer, asked: str) -> None:
    status, headers, _ = ask(server, f"/{run.video(1)}", Range=asked)
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(video_bytes(1))}")


@pytest.mark.parametrize(
    "asked", ["bytes=", "bytes=-", "bytes=9-3", "bytes=0-1,4-5", "bytes=x-1", "frames=0-1", f"bytes={'9' * 5000}-", ""]
)
def test_what_is_no_range_gives_all(local_run: MadeRun, local_server: RunServer, asked: str) -> None:
    status, headers, body = ask(local_server, f"/{local_run.video(1)}", Range=asked)
    assert (status, headers["Content-Range"], body) == (200, None, video_bytes(1))


def test_a_video_that_is_known_is_not_sent_again(local_run: MadeRun, local_server: RunServer) -> None:
    path = f"/{local_run.video(1)}"
    tag = ask(local_server, path)[1]["ETag"]
    assert ask(local_server, path, If_None_Match=tag)[::2] == (304, b"")
    assert ask(local_server, path, If_None_Match='"other"')[0] == 200
    assert ask(local_server, path, Range="bytes=0-3", If_Range=tag)[0] == 206
    assert ask(local_server, path, Range="bytes=0-3", If_Range='"other"')[::2] == (200, video_bytes(1))


def test_head_says_the_size_and_sends_nothing(run: MadeRun, server: RunServer) -> None:
    for path, size in ((f"/{run.video(1)}", len(video_bytes(1))), ("/", len(ask(server, "/")[2]))):
        status, headers, body = ask(server, path, "HEAD")
        assert (status, headers["Content-Length"], body) == (200, str(size), b"")


def test_several_requests_go_over_one_connection(local_run: MadeRun, local_server: RunServer) -> None:
    connection = http.client.HTTPConnection(HOST, local_server.server_address[1], timeout=paced(30))
    for path, wanted in ((f"/{local_run.video(0)}", 200), ("/none", 404), (f"/{local_run.video(1)}", 200)):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (wanted, True)
    connection.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading(local_server: RunServer, method: str) -> None:
    status, headers, _ = ask(local_server, "/", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


ELSEWHERE = [
    "/run.json", "/manifest/shard-00000.parquet", "/done/00000/", "/video", "/video/", "/video/00000",
    "/video/00000/", "/../secret.txt", "/video/../run.json", "/video/00000/../../run.json", "/%2e%2e/secret.txt",
    "/video/%2e%2e/run.json", "/video/00000/..%2f..%2frun.json", "/video/00000/%2e%2e%2f%2e%2e%2frun.json",
    "/..%5c..%5crun.json", "//etc/passwd", "/video/00000/%252e%252e/run.json", "/etc/passwd", "/video//00000/x.mp4",
    "/report.html/", "/report.html%00", "/report.html/../run.json", "/report-files-000000000000/../report.html",
    "/report-files-000000000000/rows-00000.js", "/report-files-000000000000/",
    "/video/00000/00000000-0000000000000000-e1a1.mp4", "/video/00000/x.mp4", "http://127.0.0.1/", "*",
    "/" + "x" * 5000,
]  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize("path", ELSEWHERE)
def test_nothing_else_is_there(local_run: MadeRun, local_server: RunServer, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    status, _, body = ask(local_server, path)
    assert status == 404
    assert not any(word in body for word in (b"secret", b"root:", b"config", b"00000000-"))


def test_nothing_else_is_there_in_a_bucket(run: MadeRun, server: RunServer) -> None:
    for path in ELSEWHERE:
        assert ask(server, path)[0] == 404, path


def test_no_link_is_followed(local_run: MadeRun, local_server: RunServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    out = Path(local_run.storage.root)
    name = Path(local_run.video(0)).name
    os.symlink(secret, out / "video" / "00000" / name.replace("e1a1", "e1a2"))
    os.symlink(tmp_path / "elsewhere", out / "video" / "00009")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / name).write_bytes(b"secret")
    (out / "video" / "00000" / name.replace("e1a1", "e1a3")).mkdir()
    os.mkfifo(out / "video" / "00000" / name.replace("e1a1", "e1a4"))
    for path in (*(f"video/00000/{name.replace('e1a1', f'e1a{n}')}" for n in (2, 3, 4)), f"video/00009/{name}"):
        status, _, body = ask(local_server, f"/{path}")
        assert (status, b"secret" in body) == (404, False), path
    assert ask(local_server, f"/video/00000/{name}")[0] == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8765", "127.0.0.1", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_this_machine_s_names_are_answered(local_server: RunServer, host: str) -> None:
    assert ask(local_server, "/", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost", "",
        "127.0.0.1@evil.example", "evil.example#localhost", "[::1].evil.example", "localhost:80:80", "0.0.0.0",
        "127.0.0.2", "localhost evil.example",
    ],
)  # fmt: skip
def test_names_that_were_led_here_are_refused(local_run: MadeRun, local_server: RunServer, host: str) -> None:
    for path in ("/", f"/{local_run.video(0)}"):
        status, headers, body = ask(local_server, path, Host=host)
        assert (status, b"<html" in body) == (403, False)
        assert "Access-Control-Allow-Origin" not in headers


def test_an_address_of_elsewhere_is_refused(local_server: RunServer) -> None:
    assert ask(local_server, "http://evil.example/")[0] == 403
    assert ask(local_server, "http://evil.example/", Host="localhost")[0] == 404


def test_a_request_without_a_host_or_with_two_is_refused(local_server: RunServer) -> None:
    for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection((HOST, local_server.server_address[1]), timeout=paced(30)) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_other_sites_may_not_embed_what_is_served(local_run: MadeRun, local_server: RunServer) -> None:
    for path in ("/", f"/{local_run.video(0)}", "/none"):
        headers = ask(local_server, path, Origin="http://evil.example")[1]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in headers


def test_it_listens_on_loopback_alone(local_server: RunServer) -> None:
    assert local_server.socket.getsockname()[0] == "127.0.0.1"


def test_a_reader_that_goes_away_disturbs_nobody(
    local_run: MadeRun, local_server: RunServer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = local_run.video(0)
    with open(local_run.storage.uri(path), "ab") as file:
        file.write(bytes(20 << 20))
    for _ in range(3):
        with socket.create_connection((HOST, local_server.server_address[1]), timeout=paced(30)) as connection:
            connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert len(ask(local_server, f"/{path}")[2]) == len(video_bytes(0)) + (20 << 20)
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken(local_run: MadeRun, local_server: RunServer, tmp_path: Path) -> None:
    taken = local_server.server_address[1]
    with pytest.raises(PortTakenError, match=f"cannot listen on port {taken}"):
        open_server(local_run.storage, tmp_path / "page", taken)
    servers = [open_server(local_run.storage, tmp_path / "page") for _ in range(2)]
    assert len({server.address for server in servers}) == 2
    for server in servers:
        server.server_close()
