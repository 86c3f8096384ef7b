"""The networks that measures look through: each takes tensors and returns tensors, under its publication's names."""
