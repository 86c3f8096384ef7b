"""MIGA as the paper gives it: a zigzag queue, then unified denoising."""

from miga.methods.base import Method
from miga.methods.miga.settings import PROFILES, MigaSettings
from miga.methods.miga.two_stage import TwoStage, TwoStageState
from miga.methods.queue_settings import PUBLISHED, at_steps, in_proportion

METHOD = Method(
    name="miga",
    settings=MigaSettings,
    state=TwoStageState,
    begin=TwoStage,
    profiles=PROFILES,
    published=PUBLISHED,
    in_proportion=in_proportion,
    at_steps=at_steps,
)
