"""A worker node on a spot instance: `ray start --block`, which drains when EC2 announces the interruption.

    python spot_node.py --address=HEAD:6379 [other options of `ray start`]

EC2 says two minutes ahead, in the instance's metadata, that it takes the instance back. SIGTERM to `ray start --block`
then marks the node as draining: the run writes a checkpoint of what is made there and ends its actor. Standard library
only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request

METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
POLL_S = float(os.environ.get("SPOT_POLL_S", "5"))
COMMAND = os.environ.get("SPOT_NODE_COMMAND", "ray start --block")


def interruption() -> str | None:
    """What EC2 says of taking the instance back; None while it says nothing, or cannot be asked."""
    try:
        request = urllib.request.Request(
            f"{METADATA}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        with urllib.request.urlopen(request, timeout=2) as answer:
            token = answer.read().decode()
        request = urllib.request.Request(
            f"{METADATA}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
        )
        with urllib.request.urlopen(request, timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:  # 404 is the usual answer: nothing is announced
        return None


def main(arguments: list[str]) -> int:
    """Runs the node until it ends; returns its exit status."""
    node = subprocess.Popen([*COMMAND.split(), *arguments])
    ended = threading.Event()

    def forward(number: int, frame: object) -> None:
        node.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)

    def watch() -> None:
        while not ended.wait(POLL_S):
            if notice := interruption():
                print(f"EC2 takes this instance back: {notice}; the node drains", flush=True)
                node.send_signal(signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        return node.wait()
    finally:
        ended.set()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
