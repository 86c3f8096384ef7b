"""`python -m jobs.bench ...`: the same as `miga bench ...`."""

import sys

from jobs.cli import main

raise SystemExit(main(["bench", *sys.argv[1:]]))
