"""What a command takes from a run's own record, and what only at the user's word.

`verify`, `retry-failed` and `extend` go by what run.json says, and OUT may be somebody else's: downloaded, shared, or a
bucket that others write into. Files of this machine, the embedded model, names that this program knows, what a hub has
delivered before, and the bucket that OUT itself is in are taken as they stand there. Code, and addresses that would be
asked, are the user's to name: on the command line, or all at once by `--trust`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from miga.backbones.loading import HUB_NAME
from miga.backbones.registry import family_named
from miga.errors import UsageError
from pipeline.config import RunConfig
from pipeline.storage.open import canonical, is_in_bucket


def check_model(config: RunConfig, root: str, *, named: str | None = None, is_trusted: bool = False) -> None:
    """Whether a run's model may be loaded as its record says.

    Args:
        config: the run's, as recorded.
        root: of OUT, for messages.
        named: the model that the user has named; what the record says of it does not count then.
        is_trusted: the user's word for all of it.

    Raises:
        UsageError: naming what would be run or fetched, and how to say that it is meant.
    """
    if is_trusted:
        return
    if named is None and (what := _concern_of_model(config.model, config.revision)):
        raise UsageError(
            f"run.json of {root} names the model {config.model!r}: {what}",
            "if you know it, name it yourself: --model NAME; --trust takes all that run.json names",
        )
    for what in (*_concerns_of_loras(config.lora), *_concerns_of_attention(config.attention)):
        raise UsageError(f"run.json of {root} names {what}", "if you know it, --trust takes all that run.json names")


def prompts_of(recorded: str, root: str, *, named: str | None = None, is_trusted: bool = False) -> str:
    """Where to read the prompt file of a run.

    Args:
        recorded: where it lay when the run was started, as run.json says.
        root: of OUT.
        named: where the user says that it lies.
        is_trusted: the user's word for the recorded one.

    Raises:
        UsageError: if reading it would ask another place than OUT's own, or it is no file.
    """
    if named is not None:
        return named
    hint = "name it yourself: --prompts PATH; --trust takes the one that run.json names"
    if "://" in recorded or "::" in recorded:
        if not is_trusted and not _is_of_bucket(recorded, root):
            raise UsageError(
                f"run.json of {root} names {recorded!r} as the prompt file, an address outside of OUT, which would be "
                "asked with your credentials",
                hint,
            )
        return recorded
    if os.path.exists(recorded) and not os.path.isfile(recorded):
        raise UsageError(f"run.json of {root} names {recorded!r} as the prompt file, which is no file", hint)
    return recorded


def _is_of_bucket(address: str, root: str) -> bool:
    """Whether it is a plain address in the bucket that OUT is in."""
    if not is_in_bucket(root) or "::" in address:
        return False
    scheme, _, place = canonical(root).partition("://")
    return canonical(address).startswith(f"{scheme}://{place.partition('/')[0]}/")


def _concern_of_model(name: str, revision: str | None) -> str:
    """What loading it would do that needs the user's word; empty if nothing."""
    if (family := family_named(name)) is not None:
        return family.concern(name)
    return "" if _is_there(name) or _is_cached(name, "model_index.json", revision) else _of_hub(name)


def _concerns_of_loras(loras: tuple[str, ...]) -> Iterator[str]:
    if not loras:
        return
    from miga.backbones.lora_files import HUB_FILE, parse_lora

    for text in loras:
        name = parse_lora(text)[0]
        file = HUB_FILE.fullmatch(name)
        if _is_there(name) or (file and _is_cached(file[1], file[2])):
            continue
        if file or HUB_NAME.fullmatch(name):
            yield f"the LoRA {name!r}, which would be downloaded"


def _concerns_of_attention(backend: str) -> Iterator[str]:
    if backend.endswith("_hub"):
        yield f"the attention backend {backend!r}, whose code would be downloaded and run"


def _is_there(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name))


def _of_hub(name: str) -> str:
    return "it would be downloaded" if HUB_NAME.fullmatch(name) else ""


def _is_cached(name: str, file: str, revision: str | None = None) -> bool:
    """Whether the hub has delivered that file before."""
    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(name, file, revision=revision), str)
    except HFValidationError:  # no name of the hub
        return False
