"""What makes a run, in the order in which a run goes through it.

- `plan.py`: a prompt file, OUT and a config become a `Plan`, resolved, with all that can be wrong in them found.
- `check.py`: whether OUT is this run's, and whether the model is to be had and fits here.
- `estimate.py`: what the run would cost, before anything is made.
- `make.py`: makes the run, or goes on with it: Ray, lease, ledger, workers, and the summary at the end.
- `report.py`: the page of a run.
- `status.py`: how far a run is, from its OUT alone.
- `retry.py`: makes the rows of a run again that were given up.
"""
