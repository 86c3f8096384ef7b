"""MIGA as its authors' two programs do it, where that differs from the paper."""

from miga.methods.base import Method
from miga.methods.queue_settings import PUBLISHED, at_steps, in_proportion
from miga.methods.released.released import Released, ReleasedState
from miga.methods.released.settings import PROFILES, ReleasedSettings

METHOD = Method(
    name="released",
    settings=ReleasedSettings,
    state=ReleasedState,
    begin=Released,
    profiles=PROFILES,
    published=PUBLISHED,
    in_proportion=in_proportion,
    at_steps=at_steps,
)
