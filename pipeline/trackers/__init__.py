"""A run as one person watches it: in TensorBoard, trackio or Weights & Biases.

- `base.py`: what a tracker takes: scalars, a text, a video.
- `tensorboard.py`, `wandb_api.py`: the trackers. Their packages are optional, and imported only here.
- `open.py`: which one a config names, and whether it can be used.
- `run_log.py`: what a run tells it, in a thread of its own; what fails there never harms the run.
"""
