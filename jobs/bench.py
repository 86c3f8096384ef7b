"""`python -m jobs.bench ...`: the same as `miga bench ...`."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["bench", *sys.argv[1:]]))
