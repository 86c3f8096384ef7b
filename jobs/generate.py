"""`python -m jobs.generate ...`, for `ray job submit`: the same as `miga generate ...`."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["generate", *sys.argv[1:]]))
