"""Causal sampling: blocks of latents before a cache of keys and values of clean ones."""

from miga.methods.base import Method
from miga.methods.causal.course import Causal, CausalState
from miga.methods.causal.settings import PROFILES, CausalSettings

METHOD = Method(
    name="causal",
    settings=CausalSettings,
    state=CausalState,
    begin=Causal,
    profiles=PROFILES,
    needs_base_clip=False,
    is_lazy=False,
    needs_cache=True,
    makes_together=True,
)
