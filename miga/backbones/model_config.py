"""The configurations of a model's parts, as diffusers and transformers write them: types and sizes checked before use.

Keys that are left out have the libraries' defaults; keys that are not known are passed over, as the libraries do. Sizes
are bounded, since modules of any size are built from them, if only on the meta device.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import Field

from miga.backbones.weight_files import printable, read_json
from miga.errors import ModelError
from miga.outside_data import OutsideDataError, shown, validated

T = TypeVar("T")

Size: TypeAlias = Annotated[int, Field(ge=1, le=2**17)]
Words: TypeAlias = Annotated[int, Field(ge=1, le=2**22)]
Few: TypeAlias = Annotated[int, Field(ge=1, le=64)]
Layers: TypeAlias = Annotated[int, Field(ge=1, le=128)]
Small: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Rate: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Token: TypeAlias = Annotated[int, Field(ge=0, le=2**22)]

QUANTIZATIONS: Final = ("quantization_config", "compression_config")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Of diffusers' schedulers, what says how a model was trained; steps and shift are settings of the sampler here."""

    prediction_type: str | None = None
    num_train_timesteps: Literal[1000] = 1000


def read_config(folder: Path, component: str, kind: type[T]) -> T:
    """A part's configuration.

    Args:
        folder: of the model.
        component: name of the part's folder.
        kind: a dataclass of its keys, such as `wan/config.py` has.

    Raises:
        ModelError: naming the file, and the keys that are missing, of another type or out of range.
    """
    file = folder / component / "config.json"
    return checked_config(file, read_json(file, plain_utf8=True), kind)


def checked_config(file: Path, values: dict[str, Any], kind: type[T]) -> T:
    """The same of a file that has been read."""
    for key in QUANTIZATIONS:
        if values.get(key) is not None:
            raise ModelError(
                f"{str(file)!r} has a {key}: quantized checkpoints are not supported",
                hint="take the model in bfloat16, float16 or float32",
            )
    try:
        return validated(kind, values)
    except OutsideDataError as error:
        raise ModelError(
            f"{str(file)!r} describes no such part of a model: {error}", hint="download the model again"
        ) from error


def arguments(config: Any) -> dict[str, Any]:
    """A configuration as its library wants it: lists, not tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def left_out(folder: Path, component: str, kind: type[Any]) -> str:
    """Of a configuration, which keys it leaves out and what was taken for them: an end for a hint, or nothing."""
    values = read_json(folder / component / "config.json")
    defaults = {entry.name: getattr(kind(), entry.name) for entry in fields(kind) if entry.name not in values}
    listed = ", ".join(f"{name} ({shown(value)})" for name, value in defaults.items())
    return f"; {component}/config.json leaves out, so that diffusers' defaults are taken: {listed}" if listed else ""


def class_name_of(values: dict[str, Any]) -> str:
    """What a configuration says it is of, for messages and comparison."""
    name = values.get("_class_name")
    return printable(name) if isinstance(name, str) else shown(name)


def check_scheduler(folder: Path, prediction: str) -> None:
    """Finds a model that was trained to predict something else, where the folder has a scheduler's configuration.

    Raises:
        ModelError: naming the key.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_symlink() and not file.exists():
        return
    config = checked_config(file, read_json(file), SchedulerConfig)
    if config.prediction_type not in (None, prediction):
        raise ModelError(
            f"{str(file)!r}: prediction_type is {shown(config.prediction_type)}, and this kind of model is sampled "
            f"by {prediction!r}",
            hint="it is another kind of model, or its scheduler's configuration is not its own",
        )
