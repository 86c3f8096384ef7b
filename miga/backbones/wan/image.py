"""What Wan2.1's image models read of a whole picture: the tokens of CLIP's image encoder, last layer but one.

Pictures are stretched to the encoder's square in floating point, as Wan's own program does it: nothing is cropped, and
nothing rounded to 8 bits on the way (transformers' processors do that). So a motion frame handed over in full precision
stays so.

Legend: F pictures, C = 3, H, W pixels of -1 ... 1; L tokens, D channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch.nn import functional

from miga.backbones.loading import load_component
from miga.backbones.wan.spec import image_config_of_folder

MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures, of 0 ... 1."""


class ImageReader:
    """Reads pictures.

    Args:
        encoder: transformers' `CLIPVisionModel`.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> ImageReader:
        """The reader of a model's folder, in float32.

        Raises:
            ModelError: if it is missing or broken.
        """
        config = image_config_of_folder(folder)
        kind = transformers.CLIPVisionModel
        return cls(load_component(kind, "image_encoder", folder, torch.float32, config=config).to(device))

    @torch.no_grad()
    def tokens(self, frames_FCHW: torch.Tensor) -> torch.Tensor:
        """Tokens `[F * L, D]`, float32, picture by picture."""
        side = self.encoder.config.image_size
        pixels = functional.interpolate(frames_FCHW.float(), size=(side, side), mode="bicubic", align_corners=False)
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        pixels = ((pixels * 0.5 + 0.5) - mean) / std
        found = self.encoder(pixels.to(self.encoder.device, self.encoder.dtype), output_hidden_states=True)
        tokens: torch.Tensor = found.hidden_states[-2].float()
        return tokens.flatten(0, 1)
