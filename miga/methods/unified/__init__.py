"""Stage 2 alone, from pure noise."""

from miga.methods.base import Method
from miga.methods.unified.settings import PROFILES, UnifiedSettings
from miga.methods.unified.unified_only import UnifiedOnly, UnifiedOnlyState

METHOD = Method(
    name="unified",
    settings=UnifiedSettings,
    state=UnifiedOnlyState,
    begin=UnifiedOnly,
    profiles=PROFILES,
    needs_base_clip=False,
)
