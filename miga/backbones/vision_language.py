"""A vision-language model of transformers that answers questions about frames (Qwen2.5-VL, LLaVA, SmolVLM, …).

Frames are given as pictures, one after the other. Each model's own preprocessing and chat template are used.

Legend: H height, W width, C = 3 (RGB); frames are uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from miga.backbones.loading import resolve_folder, revision_of
from miga.backbones.weight_files import first_line, visible_files
from miga.errors import ModelError

FILES: Final = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model")
"""Files of a hub model that are downloaded: weights in any other format could run code."""
_HINT: Final = "name one that AutoModelForImageTextToText of transformers loads, such as Qwen/Qwen2.5-VL-7B-Instruct"


class VisionLanguageModel:
    """The model, loaded.

    Args:
        name_or_dir: a local folder or hub name.
        device: by default a GPU if there is one.
        dtype: of its weights; by default bfloat16 on a GPU, else float32.

    Raises:
        ModelError: if it cannot be loaded.
    """

    def __init__(
        self, name_or_dir: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if self._device.type == "cuda" else torch.float32)
        folder = resolve_folder(name_or_dir, None, FILES)
        if not visible_files(folder, ".safetensors"):
            raise ModelError(
                f"judge {name_or_dir!r} has no weights in safetensors format",
                "other formats can run code when they are loaded: name a model that has *.safetensors",
            )
        self.name, self.revision = name_or_dir, revision_of(folder)
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=dtype,
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises of everything: OSError, ValueError, KeyError, ImportError, …
            raise ModelError(
                f"judge {name_or_dir!r} cannot be loaded: {type(error).__name__}: {first_line(error)}", _HINT
            ) from error
        if missing := [*sorted(map(str, info["missing_keys"])), *map(str, info["mismatched_keys"])]:
            raise ModelError(
                f"the weights of judge {name_or_dir!r} do not fit its config.json ({missing[0]})",
                "download the model again",
            )
        if not getattr(self._processor, "chat_template", None):
            raise ModelError(f"judge {name_or_dir!r} has no chat template: it is not made to be asked", _HINT)
        self._model: Any = model.to(self._device).eval()

    @torch.inference_mode()
    def answer(
        self,
        frames: Sequence[npt.NDArray[np.uint8]],
        question: str,
        *,
        system: str,
        seed: int,
        temperature: float,
        top_p: float,
        repetition_penalty: float,
        max_tokens: int,
    ) -> str:
        """What the model says.

        Args:
            frames: each `[H, W, C]`, in the order in which they are in the video.
            question: put behind the frames.
            system: put before all of it.
            seed: of the sampling; the same seed gives the same answer on the same device.
            temperature: of the sampling; 0 takes the likeliest token.
            top_p: share of the likelihood that tokens are drawn from.
            repetition_penalty: 1 is none.
            max_tokens: of the answer.
        """
        content = [*({"type": "image"} for _ in frames), {"type": "text", "text": question}]
        talk = [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": content},
        ]
        text = self._processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        inputs = self._processor(text=[text], images=list(frames), return_tensors="pt").to(
            self._device, self._model.dtype
        )
        drawn = {"temperature": temperature, "top_p": top_p} if temperature > 0 else {}
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seed)
            tokens = self._model.generate(
                **inputs,
                do_sample=temperature > 0,
                max_new_tokens=max_tokens,
                repetition_penalty=repetition_penalty,
                **drawn,
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        said: str = self._processor.batch_decode(new, skip_special_tokens=True)[0]
        return said.strip()
