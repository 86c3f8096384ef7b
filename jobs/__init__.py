"""What is started, and what it calls.

A file here is a program: `cli.py` is `miga`, each other one `python -m jobs.<name>`. The rooms, from the outside in:

- `commands/`: the commands of `miga`, a file each.
- `ablation/`, `extension/`, `simulation/`, `benches/`: what is made of runs, or beside them.
- `run/`: what makes a run.
- `profiles/`: profiles as commands and benches show them and take them.
- `shared/`: what all of these have in common.
"""
