"""A package in a folder, as an installer leaves it: a module, and beside it what it registers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def install(folder: Path, group: str, module: str, code: str, entry: str) -> None:
    """Installs a module whose name begins with "page_", with one entry point of that group."""
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{module} = {module}:{entry}\n")
    importlib.invalidate_caches()


@contextmanager
def searched_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], object]) -> Iterator[Path]:
    """A folder that Python searches; what is put there is found, and gone again afterwards.

    Args:
        tmp_path: where it is made.
        monkeypatch: puts it into the search.
        forget: drops what was found before, such as a table that is made once.
    """
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    forget()
    yield site
    forget()
    for name in [name for name in sys.modules if name.startswith("page_")]:
        del sys.modules[name]


def code_on(page: Path) -> str:
    """The first Python code on a page."""
    _, _, rest = page.read_text().partition("```python\n")
    return rest.partition("```\n")[0]
