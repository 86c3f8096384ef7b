"""An export put on the Hugging Face hub, as a data set of its own; `huggingface_hub` does it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

from miga.errors import OutputError, UsageError
from pipeline.storage.addresses import without_secrets
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.export import EXPORT_FILE, ExportOptions

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)


def check_push(repo: str, dest: Storage, options: ExportOptions) -> None:
    """Returns if an export can be put on the hub; asks nobody.

    Raises:
        UsageError: if it cannot.
    """
    if not _NAME.fullmatch(repo) or ".." in repo or "--" in repo:
        raise UsageError(f"--push-to-hub {repo!r} is no name of a data set", "write user/name, as on the hub")
    if not isinstance(dest, LocalStorage):
        raise UsageError("what goes to the hub is exported to a folder of this machine first", "name a folder as DEST")
    if options.videos == "reference":
        raise UsageError(
            "an export that refers to videos elsewhere is of no use on the hub", "use --videos copy or link"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise UsageError("HF_HUB_OFFLINE is set, so nothing can be put on the hub", "unset it")


def push_to_hub(dest: Storage, repo: str, *, is_public: bool = False, say: Callable[[str], None]) -> str:
    """Makes the data set if it is not there, and puts all files of the export there; what is there already stays.

    Args:
        dest: of a finished export.
        repo: `user/name`.
        is_public: whether a data set that is made now can be seen by everybody; one that is there stays as it is.
        say: is told what is going on.

    Returns:
        The address of the data set.

    Raises:
        OutputError: if the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="miga-on-ray")
    try:
        place = api.create_repo(repo, repo_type="dataset", private=not is_public, exist_ok=True)
        say(f"putting {dest.root} into {place}")
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=dest.root,
            commit_message="Videos made by MIGA on Ray",
            ignore_patterns=[EXPORT_FILE, "**/.*", ".*", "*.partial"],
        )
    except Exception as error:  # of several libraries
        raise OutputError(f"the hub did not take {repo}: {_reason(error)}", _remedy(error)) from error
    return str(place)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in without_secrets(str(error)).splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(error).__name__


def _remedy(error: Exception) -> str:
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None)
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        return "log in with `hf auth login`, or set HF_TOKEN to a token that may write to it; then run the same again"
    return (
        "run the same command again: the export goes on from where it is, and files that are there are not sent twice"
    )
