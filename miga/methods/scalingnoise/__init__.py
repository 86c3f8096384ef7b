"""ScalingNoise: FIFO-Diffusion that searches over the noise of every new latent."""

from miga.methods.base import Method
from miga.methods.scalingnoise.beam_search import BeamSearch, BeamSearchState
from miga.methods.scalingnoise.settings import PROFILES, ScalingNoiseSettings

METHOD = Method(
    name="scalingnoise",
    settings=ScalingNoiseSettings,
    state=BeamSearchState,
    begin=BeamSearch,
    profiles=PROFILES,
    takes_features=True,
    is_lazy=False,
    had_other_name=lambda values: values.get("method") == "fifo" and bool(values.get("num_beams")),
)
