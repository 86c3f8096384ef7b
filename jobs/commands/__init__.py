"""The commands of `miga`, a file each: what they are told, what they call, what they print.

Each file has `add`, which adds its command to the parser; the rooms beside this one do the work, and are imported only
by the command that is run.
"""
