"""Benchmarks: figures of the embedded backbone on this machine. `miga bench --help`, or `python -m jobs.bench`."""
