"""Profiles as commands and benches show them and take them.

- `choice.py`: a profile as it is said on a command line, with overrides behind it.
- `table.py`: all profiles side by side.
- `drawing.py`: what a profile does, pass by pass.
"""
