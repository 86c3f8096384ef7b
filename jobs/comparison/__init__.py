"""What `miga compare` does: a table, a plot and a page of runs of the same prompts."""
