"""Checks of `miga doctor` that misbehave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(words: list[str]) -> int:
    name, file, *arguments = words
    said = Path(file)
    said.write_text(json.dumps({"doing": f"trying to {name}"}) + "\n")
    if name == "hang":  # with a child, and deaf to SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(json.loads(arguments[0])).write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "exit":
        sys.exit("the library says no")
    if name == "ray":  # one whose tasks never end
        import ray

        from jobs.doctor import checks

        ray.get = lambda *arguments, **options: time.sleep(600)
        return checks.main([name, file, *arguments])
    if name == "garble":
        said.write_text(said.read_text() + '{"finding": {"name"')
    return 0
