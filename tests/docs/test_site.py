"""The documentation: it builds without a warning, says what the program says, and quotes messages that there are."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from docs import reference_pages
from jobs.cli import COMMANDS, build_parser
from miga.methods import methods
from pipeline.config import RunConfig, load_config
from pipeline.records.manifest import SCHEMA

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links and anchors between pages are checked by it."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for page in ("index", "reference/commands", "reference/config", "reference/manifest", "troubleshooting"):
        assert (tmp_path / "site" / f"{page}.html").exists()


def test_every_page_can_be_reached() -> None:
    index = (DOCS / "index.md").read_text()
    listed = set(re.findall(r"^([\w/-]+)$", index, re.M))
    assert {page.stem for page in PAGES} - {"index"} <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_pages_link_to_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target and not target.startswith("reference/"):
            assert (page.parent / target).exists(), target


def test_every_command_and_option_is_listed() -> None:
    page = reference_pages.commands_page()
    assert page.count("\n## `miga ") >= len(COMMANDS)
    for action in build_parser()._actions:
        for name, command in (action.choices or {}).items() if isinstance(action, argparse._SubParsersAction) else ():
            assert f"`miga {name}" in page
            for option in (option for action in command._actions for option in action.option_strings):
                assert option in ("-h", "--help") or f"`{option}`" in page, (name, option)


def test_every_key_is_listed_with_its_meaning() -> None:
    page = reference_pages.config_page()
    hints = get_type_hints(RunConfig)
    for kind in (RunConfig, *(kind for kind in hints.values() if is_dataclass(kind))):
        for entry in fields(kind):
            if not is_dataclass(hints.get(entry.name)):
                assert re.search(rf"^\| `{entry.name}` \| .+ \| .+ \| .{{10,}} \|$", page, re.M), entry.name
    for method in methods().values():
        for entry in fields(method.settings):
            assert entry.name == "profile" or re.search(rf"^\| `{entry.name}` \| .{{10,}} \|$", page, re.M), entry.name


def test_every_column_is_listed() -> None:
    page = reference_pages.manifest_page()
    assert [name for name in SCHEMA.names if f"| `{name}` | " not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configs_on_pages_are_configs(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(), re.S)):
        if "entry-points" in block:
            continue
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        assert load_config(file) != RunConfig(), block


def texts_of_the_program() -> Iterator[str]:
    """Every text in the program's files; what f-strings fill in is a gap."""
    for package in ("miga", "pipeline", "actors", "jobs"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_messages_on_the_page_of_errors_are_the_programs() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = [line for line in page.split("\n") if line.startswith('**"')]
    messages = [message for line in quoted for message in re.findall(r'\*\*"(.+?)"\*\*', line)]
    assert len(messages) >= 15
    texts = list(texts_of_the_program())
    for message in messages:
        parts = [part.strip() for part in message.split("…")]
        assert any(all(part in text for part in parts) for text in texts), message
