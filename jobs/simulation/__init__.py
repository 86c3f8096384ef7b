"""The ledger of a run on clusters of any size, under a virtual clock; and the ledger alone, timed.

- `scenarios.py`: what is simulated, from the options of `miga simulate`, and the simulation itself.
- `outcomes.py`, `plots.py`: what came out, as a table, as figures and for machines.
- `ledger_speed.py`: the ledger alone, timed.
"""
