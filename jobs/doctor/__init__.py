"""What of this machine, its packages and its storage would keep a run from being made: `miga doctor`.

- `findings.py`: what a check says.
- `packages.py`: Python, versions of packages, the machine and its environment, looked at in this process.
- `checks.py`: what may crash or hang (drivers, Ray, storage, weights), each run in a process of its own.
- `examine.py`: all of them in turn, with a limit of time for each.
"""
