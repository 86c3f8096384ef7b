"""How good the videos of a run are, or those of a folder: what `miga evaluate` calls."""
