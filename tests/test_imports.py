"""No module of the project imports itself by way of others; imports inside functions and for types count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("miga", "pipeline", "actors", "jobs")


def modules_under(root: Path) -> dict[str, Path]:
    """Module → its file."""
    files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported_names(file: Path) -> Iterator[str]:
    """All that a file imports anywhere; of `from a import b` it is `a.b`, since b may be a module."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module → the project's modules that it imports."""
    modules = modules_under(root)
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        found = (next((part for part in (name, name.rpartition(".")[0]) if part in modules), None)
                 for name in imported_names(file))  # fmt: skip
        graph[module] = {name for name in found if name is not None and name != module}
    return graph


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of a circle, the first one at the end again; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.slow
def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = import_graph(ROOT)
    assert {module.partition(".")[0] for module in graph} == set(PACKAGES)
    assert " <- ".join(circle_in(graph)) == ""


@pytest.mark.parametrize(
    "back",
    ["import jobs.one", "from jobs import one", "from jobs.one import a", "def f():\n    from jobs.one import a",
     "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jobs.one import a"],
)  # fmt: skip
def test_a_circle_is_found(tmp_path: Path, back: str) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("")
    (tmp_path / "jobs" / "one.py").write_text("from jobs.two import b\na = 1\n")
    (tmp_path / "jobs" / "two.py").write_text(f"{back}\nb = 1\n")
    assert set(circle_in(import_graph(tmp_path))) == {"jobs.one", "jobs.two"}
