"""Wan's transformer with a cache of keys and values: `cache.py`, `rope.py`, `network.py`, `convert.py`."""
