"""Clip after clip from a picture: Stable Video Infinity's inference, with any image-to-video model."""

from miga.methods.base import Method
from miga.methods.chain.chain import Chain, ChainState
from miga.methods.chain.settings import PROFILES, ChainSettings

METHOD = Method(
    name="chain",
    settings=ChainSettings,
    state=ChainState,
    begin=Chain,
    profiles=PROFILES,
    needs_base_clip=False,
    is_lazy=False,
    needs_picture=True,
)
