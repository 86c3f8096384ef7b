"""One video of one prompt, in this process, without Ray: what `miga sample` makes."""
