"""The example prompts that come with the package."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent.parent / "examples"
DEMO_PROMPTS: Final = FOLDER / "prompts.jsonl"
"""Of `make demo`, with its config `demo`."""
