"""What `miga --help` and the help of every command say, and what they load to say it."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jobs.cli import COMMANDS, GROUPS, build_parser
from pipeline.config import RunConfig
from tests.cli import run

HEAVY = ("torch", "ray", "diffusers", "transformers", "pyarrow", "matplotlib", "aiobotocore", "imageio_ffmpeg")


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command, and the commands within it, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner_name, inner in action.choices.items():
                yield f"{name} {inner_name}".strip(), inner
                yield from parsers(inner, f"{name} {inner_name}".strip())


def test_help_loads_nothing_heavy() -> None:
    """Of no command either; nor does the script of a shell, which is made whenever one is opened."""
    program = (
        "import sys\nfrom jobs.cli import main\n"
        "for words in (['--help'], ['generate', '--help'], ['sample', '--help'], ['doctor', '--help']):\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "main(['completion', 'bash']); main(['config', 'list'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_without_a_command_it_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, message = run(capsys)
    assert (status, message) == (2, "")
    assert text == build_parser().format_help()


def test_every_command_stands_once_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        run(capsys, "--help")
    assert exited.value.code == 0
    text = capsys.readouterr().out
    groups: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.fullmatch(r"[a-z ]+:", line):
            groups[line[:-1]] = []
        elif groups and (found := re.match(r"  ([a-z-]+)  +\w", line)):
            groups[list(groups)[-1]].append(found[1])
    assert tuple(groups)[: len(GROUPS)] == GROUPS
    listed = [name for group in GROUPS for name in groups[group]]
    assert sorted(listed) == sorted(name for name, _ in parsers(build_parser()) if " " not in name)
    assert len(listed) == len(set(listed)) == len(COMMANDS)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__.rpartition(".")[2])
def test_its_examples_are_commands(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is shown by the command's help, and the parser takes it."""
    examples: tuple[str, ...] = command.EXAMPLES  # type: ignore[attr-defined]
    assert examples
    for example in examples:
        words = shlex.split(example.partition("    #")[0].partition(" > ")[0], comments=True)
        if words[0] == "eval":  # the command stands within it
            words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
        assert words[0] == "miga"
        options = build_parser().parse_args(words[1:])
        assert callable(options.command)
        with pytest.raises(SystemExit):
            build_parser().parse_args([words[1], "--help"])
        assert f"  {example}\n" in capsys.readouterr().out


def test_every_option_says_what_it_is_and_its_default() -> None:
    """Where it has one; switches are off."""
    silent = []
    for name, parser in parsers(build_parser()):
        formatter = parser._get_formatter()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, f"{name}: {action.option_strings or action.metavar}"
            has_default = action.default not in (None, False, [], (), argparse.SUPPRESS)
            if has_default and action.option_strings and "default: " not in formatter._expand_help(action):
                silent.append(f"{name} {action.option_strings[-1]}")
    assert not silent


@pytest.mark.parametrize("command", ["generate", "sample"])
def test_defaults_of_configs_are_those_of_the_type(command: str) -> None:
    (parser,) = [parser for name, parser in parsers(build_parser()) if name == command]
    formatter, texts = parser._get_formatter(), {}
    for action in parser._actions:
        if action.help and action.option_strings:
            texts[action.dest] = formatter._expand_help(action)
    for key in ("model", "dtype", "profile", "seed"):
        assert texts[key].endswith(f"(default: {getattr(RunConfig(), key)})")
    for key in ("height", "width", "num_frames"):
        assert getattr(RunConfig(), key) is None
        assert "(default: the model's)" in texts[key]


@pytest.mark.parametrize(
    ("command", "titles"),
    [("generate", ["config", "model", "videos", "workers", "cost beforehand", "what is printed"]),
     ("sample", ["config", "model", "video", "what is printed"])],
)  # fmt: skip
def test_long_helps_are_in_groups(command: str, titles: list[str]) -> None:
    (parser,) = [parser for name, parser in parsers(build_parser()) if name == command]
    text = parser.format_help()
    found = [title for title in re.findall(r"^([a-z ]+):$", text, re.MULTILINE) if "argument" not in title]
    assert found == ["options", *titles, *(["example"] if command == "generate" else ["examples"])]
    (plain,) = [group for group in parser._action_groups if group.title == "options"]
    assert [action.dest for action in plain._group_actions] == ["help"]
