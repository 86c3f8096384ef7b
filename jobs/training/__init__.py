"""Error-recycling fine-tuning as `python -m jobs.train_svi` runs it.

- `plan.py`: options become a checked plan; nothing is done.
- `make.py`: clips are encoded, the processes of the training are started, told to go on, and started again if they die.
- `progress.py`: figures of steps to `progress.jsonl` and curves.
"""
