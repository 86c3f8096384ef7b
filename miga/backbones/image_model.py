"""Features of frames by an image model of transformers (DINO, DINOv2, CLIP, …), for consistency scores.

VBench takes DINO (`facebook/dino-vitb16`) for the subject and CLIP (`openai/clip-vit-base-patch32`) for the background:
"facebook/dino-vitb16,openai/clip-vit-base-patch32" here. Each model's own preprocessing is used.

Legend: F frames, H height, W width, C = 3 (RGB), D entries of a feature; frames are uint8.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from miga.backbones.loading import resolve_folder, revision_of
from miga.backbones.weight_files import first_line, visible_files
from miga.errors import ModelError

FILES: Final = ("*.json", "*.safetensors")
"""Files of a hub model that are downloaded: weights in any other format could run code."""


class ImageModelFeatures:
    """Features by one image model, or by two: the first for the subject, the second for the background.

    Args:
        names: a local folder or hub name; two, with a comma between them.
        device: by default a GPU if there is one.

    Raises:
        ModelError: if one cannot be loaded.
    """

    def __init__(self, names: str, device: str | torch.device | None = None) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        parts = [part.strip() for part in names.split(",")]
        if len(parts) > 2 or not all(parts):
            raise ModelError(
                f"{names!r} names no one or two image models",
                "write one name, or two with a comma: the first for the subject, the second for the background",
            )
        self._models = [ImageModel(part, device) for part in parts]
        self.name = ",".join(f"{model.name}@{model.revision}" for model in self._models)

    def __call__(self, frames_FHWC: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Features for the subject and for the background: two arrays `[F, D]`, D of each its model's own."""
        features = [model.embed(frames_FHWC) for model in self._models]
        return features[0], features[-1]


class ImageModel:
    """One model: a vector per image.

    It is the image embedding of models that have one (CLIP, SigLIP); else the class token after the last normalisation
    (ViT, DINO, DINOv2), or the mean over places (networks of convolutions).
    """

    def __init__(self, name_or_dir: str, device: str | torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel

        folder = resolve_folder(name_or_dir, None, FILES)
        if not visible_files(folder, ".safetensors"):
            raise ModelError(
                f"image model {name_or_dir!r} has no weights in safetensors format",
                "other formats can run code when they are loaded: name a model that has *.safetensors",
            )
        self.name, self.revision = name_or_dir, revision_of(folder)
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model, info = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises of everything: OSError, ValueError, KeyError, ImportError, …
            raise ModelError(
                f"image model {name_or_dir!r} cannot be loaded: {type(error).__name__}: {first_line(error)}",
                "name one that AutoModel and AutoImageProcessor of transformers load, such as facebook/dinov2-base",
            ) from error
        # The pooling layer on top is not used, and DINO's checkpoints come without one.
        missing = sorted(key for key in map(str, info["missing_keys"]) if not key.startswith("pooler."))
        if missing or info["mismatched_keys"]:
            raise ModelError(
                f"the weights of image model {name_or_dir!r} do not fit its config.json ({(missing or ['shapes'])[0]})",
                "download the model again",
            )
        self._model: Any = model.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def embed(self, frames_FHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """One vector per frame, `[F, D]`."""
        pixels = self._processor(images=list(frames_FHWC), return_tensors="pt")["pixel_values"].to(self._device)
        if hasattr(self._model, "get_image_features"):
            found = self._model.get_image_features(pixel_values=pixels)
            vectors = found if isinstance(found, torch.Tensor) else found.pooler_output
        else:
            hidden = self._model(pixel_values=pixels).last_hidden_state
            vectors = hidden[:, 0] if hidden.ndim == 3 else hidden.flatten(2).mean(dim=2)
        features: npt.NDArray[np.float32] = vectors.float().cpu().numpy()
        return features
