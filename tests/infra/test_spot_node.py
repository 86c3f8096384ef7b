"""The watcher of a spot instance, against a metadata service of our own and a node that is a shell script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.pace import paced
from tests.processes import wait_for

SCRIPT = Path(__file__).parents[2] / "infra/aws/spot_node.py"
NOTICE = '{"action": "terminate", "time": "2026-01-01T00:02:00Z"}'


class Metadata(ThreadingHTTPServer):
    """EC2's, as far as it goes: tokens, and the interruption once it is announced."""

    announced = False
    asked = 0


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    class Handler(BaseHTTPRequestHandler):
        server: Metadata

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_PUT(self) -> None:
            ttl = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self.answer(200, "token-1" if self.path == "/latest/api/token" and ttl else "")

        def do_GET(self) -> None:
            if self.headers["X-aws-ec2-metadata-token"] != "token-1":
                self.answer(401, "")
            elif self.path != "/latest/meta-data/spot/instance-action" or not self.server.announced:
                self.server.asked += 1
                self.answer(404, "Not Found")
            else:
                self.answer(200, NOTICE)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = Metadata(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def start(metadata: Metadata, folder: Path) -> subprocess.Popen[str]:
    """The watcher over a node that notes its arguments, drains on SIGTERM, and then ends with status 7."""
    node = folder / "node.sh"
    node.write_text(
        f'#!/bin/bash\ntrap "echo drained >> {folder}/log; exit 7" TERM\necho "$@" > {folder}/arguments\n'
        "while true; do sleep 0.05; done\n"
    )
    node.chmod(0o755)
    env = os.environ | {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{metadata.server_port}",
        "SPOT_POLL_S": "0.05",
        "SPOT_NODE_COMMAND": f"{node} start --block",
    }
    command = [sys.executable, str(SCRIPT), "--address=head:6379", "--metrics-export-port=8080"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (folder / "arguments").exists() and metadata.asked >= 3, 20)
    return process


def test_a_node_drains_when_the_interruption_is_announced_and_not_before(metadata: Metadata, tmp_path: Path) -> None:
    process = start(metadata, tmp_path)
    assert process.poll() is None
    assert not (tmp_path / "log").exists()
    metadata.announced = True
    output, _ = process.communicate(timeout=paced(20))
    assert process.returncode == 7
    assert NOTICE in output
    assert (tmp_path / "log").read_text() == "drained\n"  # told once
    assert (tmp_path / "arguments").read_text().split() == [
        "start", "--block", "--address=head:6379", "--metrics-export-port=8080",
    ]  # fmt: skip


def test_being_told_to_end_is_passed_on(metadata: Metadata, tmp_path: Path) -> None:
    process = start(metadata, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=paced(20))
    assert process.returncode == 7
    assert (tmp_path / "log").read_text() == "drained\n"
