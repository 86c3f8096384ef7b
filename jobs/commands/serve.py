"""`miga serve`: a run in the browser, wherever OUT lies."""

from __future__ import annotations

import argparse
import signal
import tempfile
from typing import Any, Final

from jobs.commands.common import add_command
from jobs.commands.report import checked_strips
from pipeline.terminal import say, show, show_json

GROUP: Final = "look at a run"
EXAMPLES: Final = ("miga serve s3://bucket/run",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    serve = add_command(commands, "serve", _run, "look at a run in the browser of this machine, wherever OUT lies")
    serve.add_argument("--port", type=int, help="of 127.0.0.1; 0: any that is free (default: 8765, or if taken any)")
    serve.add_argument("--strips", type=int, metavar="N", help="videos that get a contact strip (default: none)")


def _run(options: argparse.Namespace) -> int:
    from jobs.run.report import make_report
    from miga.errors import UsageError
    from pipeline.storage.open import open_storage
    from pipeline.upkeep.loopback import serve_until_stopped
    from pipeline.upkeep.serve import open_server

    if options.port is not None and not 0 <= options.port < 65536:
        raise UsageError(f"--port {options.port} is no port", "give one from 1 to 65535, or 0 for any that is free")
    storage = open_storage(options.out)
    with tempfile.TemporaryDirectory(prefix="miga-serve-") as folder:
        make_report(storage, folder, served=True, num_strips=checked_strips(options.strips), say=say)
        server = open_server(storage, folder, options.port)
        if options.json:
            show_json({"page": server.address})
        else:
            show(f"page: {server.address}")
            say("what is there now; start again to see what a run has made since. Ctrl-C ends this")
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        try:
            serve_until_stopped(server)
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0
