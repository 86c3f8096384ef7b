"""Models of the user's own: `package.module:factory`, named in full and imported as it is written.

Nothing is searched for or registered: what is imported is what `model` says, from where Python finds it. The page
`docs/bring-your-own-model.md` is about writing one. Where the name is that of a `Family`, it is asked as ours are.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, ClassVar, Final, Protocol

import torch

from miga.backbones.base import Backbone, BackboneSpec, Component
from miga.backbones.family import Family
from miga.backbones.loading import device_and_dtype
from miga.backbones.spec import why_no_default_length
from miga.backbones.weight_files import first_line
from miga.errors import MigaError, ModelError

IMPORT_PATH: Final = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+(\.(?!\d)\w+)*")
NEEDED: Final[dict[str, tuple[str, ...]]] = {
    "tokenizer": ("check_prompt",),
    "text": ("check_prompt", "encode_prompts"),
    "denoiser": ("condition", "denoiser"),
    "vae": ("frame_decoder",),
}
"""What a backbone must have, by the part that is asked for."""


class Factory(Protocol):
    """What an import path names: a function, or a class or its method, that loads the parts asked for."""

    def __call__(self, *, components: Sequence[Component], device: torch.device, dtype: torch.dtype) -> Backbone:
        """A backbone with those parts; of no parts its `spec` alone is needed, which must cost next to nothing."""
        ...


def is_import_path(name: str) -> bool:
    """Whether a model's name is such a path, and no file or folder of that name is there."""
    return IMPORT_PATH.fullmatch(name) is not None and not os.path.lexists(name)


class OwnFamily(Family):
    """See `Family`: whatever is named by an import path."""

    name: ClassVar[str] = "own"
    keeps_cache: ClassVar[bool] = True  # it may; whether it does shows when it is loaded

    def knows(self, model: str) -> bool:
        """See `Family.knows`."""
        return is_import_path(model)

    def behind(self, model: str) -> Family:
        """See `Family.behind`: the family that the path names, if it names one."""
        found = _import(model)
        return found if isinstance(found, Family) else self

    def concern(self, model: str) -> str:
        """See `Family.concern`."""
        return "it is code, which would be run here"

    def load_spec(self, model: str, revision: str | None) -> BackboneSpec:
        """See `Family.load_spec`."""
        return load_own(model, (), "cpu", torch.float32, revision).spec

    def load_backbone(
        self,
        model: str,
        *,
        revision: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        components: Sequence[Component],
    ) -> Backbone:
        """See `Family.load_backbone`."""
        return load_own(model, components, device, dtype, revision)


FAMILY: Final = OwnFamily()


def load_own(
    name: str,
    components: Sequence[Component],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> Backbone:
    """Calls the factory, and checks what it returns.

    Args:
        name: the import path.
        components: parts to load.
        device: by default a GPU if there is one.
        dtype: by default bfloat16 on a GPU, float32 on the CPU.
        revision: None; an own model says in its spec which it is.

    Raises:
        ModelError: if there is no such factory, it fails, or what it returns is no backbone.
    """
    if revision is not None:
        raise ModelError(
            f"revision {revision!r} is said of {name!r}, which is imported, not downloaded",
            "leave it out; which weights were loaded is for the factory to say, in `spec.revision`",
        )
    device, dtype = device_and_dtype(device, dtype)
    factory = _factory(name)
    try:
        backbone = factory(components=tuple(components), device=device, dtype=dtype)
    except (MigaError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises: this model cannot be loaded
        raise ModelError(
            f"{name!r} failed to load {', '.join(components) or 'its spec'}: {type(error).__name__}: "
            f"{first_line(error)}",
            "call it in Python to see where: factory(components=(...), device=torch.device(...), dtype=...)",
        ) from error
    _check(name, backbone, components)
    backbone.spec = replace(backbone.spec, name=name)
    return backbone


def _factory(name: str) -> Factory:
    factory = _import(name)
    if not callable(factory):
        raise ModelError(f"model {name!r} is a {type(factory).__name__}, not a function", _PAGE)
    result: Factory = factory
    return result


def _import(name: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        raise ModelError(
            f"model {name!r}: there is no module {absent!r}"
            if absent and f"{module_name}.".startswith(f"{absent}.")
            else f"model {name!r}: importing {module_name!r} failed: {type(error).__name__}: {first_line(error)}",
            "install its package where the driver and every worker run, or set PYTHONPATH to the folder it lies in",
        ) from error
    try:
        return reduce(getattr, path.split("."), module)
    except AttributeError as error:
        near = difflib.get_close_matches(path, [item for item in vars(module) if not item.startswith("_")], 1)
        raise ModelError(
            f"model {name!r}: module {module_name!r} has no {path!r}",
            f"did you mean {module_name}:{near[0]}?" if near else "name a function of it that returns a backbone",
        ) from error


_PAGE: Final = "docs/bring-your-own-model.md says what a factory takes and returns"


def _check(name: str, backbone: Any, components: Sequence[Component]) -> None:
    spec = getattr(backbone, "spec", None)
    if not isinstance(spec, BackboneSpec):
        raise ModelError(f"model {name!r} returned a {type(backbone).__name__} whose `spec` is no BackboneSpec", _PAGE)
    needed = dict.fromkeys(method for component in components for method in NEEDED[component])
    lacking = [method for method in needed if not callable(getattr(backbone, method, None))]
    lacking += ["device"] if components and not isinstance(getattr(backbone, "device", None), torch.device) else []
    if lacking:
        raise ModelError(f"model {name!r} returned a {type(backbone).__name__} without {', '.join(lacking)}", _PAGE)
    counts = {
        field: getattr(spec, field)
        for field in (
            "window", "latent_channels", "latent_height", "latent_width", "height", "width", "fps",
            "frames_per_latent", "frames_first_latent", "default_num_frames",
        )
    }  # fmt: skip
    if wrong := [field for field, count in counts.items() if type(count) is not int or count < 1]:
        raise ModelError(
            f"spec.{wrong[0]} of {name!r} is {counts[wrong[0]]!r}: it must be a whole number above 0", _PAGE
        )
    kinds = {"family": str, "revision": str, "negative_prompt": str, "sampler": dict}
    if wrong := [field for field, kind in kinds.items() if not isinstance(getattr(spec, field), kind)]:
        raise ModelError(f"spec.{wrong[0]} of {name!r} is no {kinds[wrong[0]].__name__}", _PAGE)
    if type(spec.forward_flops) not in (int, float) or not 0 <= spec.forward_flops < math.inf:
        raise ModelError(f"spec.forward_flops of {name!r} is {spec.forward_flops!r}: it must be a number", _PAGE)
    if reason := why_no_default_length(spec):
        raise ModelError(f"spec.default_num_frames of {name!r}: {reason}", _PAGE)
    if not spec.revision or not spec.family:
        raise ModelError(
            f"spec of {name!r} names no revision or no family",
            "a run is resumed with the same weights alone: `revision` must say which they are, such as a digest",
        )
