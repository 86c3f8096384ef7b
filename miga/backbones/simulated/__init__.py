"""Simulated GPUs: a backbone of a published model's shape whose calls take the time they are told, and compute little.

For measuring how a cluster is kept busy on any machine, and for tests of what goes wrong:

    simulated:wan                                        Wan2.1's window, VAE and sampler settings; 1.4 s a window
    simulated:videocrafter2?call_s=0.6&decode_s=0.02     a call and a decoded latent take so long
    simulated:wan?call_s=0&faults=1                      prompts that begin with "fault:" make it happen (`Fault`)
    simulated:wan?cells=20                               larger latents: self-reflection takes less noise for a fall

Nothing is drawn, but all else is as with a model: latents (tiny ones) depend on prompt, noise, level and on their
neighbours in the window, and are the same in the last bit wherever they are computed; frames depend on the latent
before, so a video whose latents are decoded in another order is another video.

The environment variable `MIGA_SIMULATED_SPEED` of a process makes its GPU so many times as fast: set it on a node, and
the cluster has cards of two kinds.

`spec.py` names and options · `gpu.py` the card · `faults.py` what goes wrong · `backbone.py` the model.
"""
