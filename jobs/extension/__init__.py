"""A longer video of a row that was made, from the latents kept of it.

Nothing is made twice: it goes on from the last state that did not depend on the video's length yet, so it is the very
video that the longer length would have given from the start. What it began with is decoded again, and stays as it was.

The run in OUT stays as it is, one row for every row of its prompt file. The longer video and all that belongs to it lie
in a folder of their own, named by the row, its key and the new length:

    extended/00000017-<key16>-321.mp4                  the video
    extended/00000017-<key16>-321.json                 its row, as the manifest has them; written last
    extended/00000017-<key16>-321.safetensors          its latents; with "-open" what a still longer one goes on from
    extended/00000017-<key16>-321-checkpoint/          while it is being made; running the command again goes on
    extended/00000017-<key16>-321-lease/               whose work that is: a second command for the same is refused

The key in that row is the longer video's own, and may be extended in turn.

- `files.py`: those files, and which row a key names.
- `plan.py`: the row and the new length become an `Extension`, with all that can be wrong in them found.
- `make.py`: makes the longer video on this machine.
"""
