"""Arguments that nobody means: each is refused with one message, exit status 2, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main

MODEL = "simulated:wan?call_s=0"
HUGE, ENDLESS, BAD = "9" * 20, "9" * 5000, "x\udcff"
GENERATE = ("generate", "p.txt", "OUT", "--model", MODEL, "--dry-run")
ABLATE = ("ablate", "p.txt", "OUT", "--model", MODEL, "--dry-run")
PATHS = ("", BAD, "\0", "x" * 5000, "/dev/null", "a::b", "hf://a/b", "foo://x", "s3://", "s3:///x", "~nouser/x")
RUNS = (
    ("status",), ("verify",), ("repair",), ("gc",), ("report",), ("serve",), ("export", "D"), ("retry-failed",),
    ("extend", "abcd", "--num-frames", "161"),
)  # fmt: skip


def numbers() -> list[tuple[str, ...]]:
    whole = ("--num-frames", "--seed", "--limit", "--num-actors", "--height", "--width")
    cases = [(*GENERATE, f"{option}={value}") for option in whole for value in (HUGE, ENDLESS, "-1", "1e3", "", "١x")]
    cases += [(*GENERATE, f"{option}=0") for option in whole if option != "--seed"]
    cases += [(*GENERATE, "--card-gb", value) for value in ("nan", "inf", "-1", "0", "1e400", "x")]
    cases += [(*GENERATE, "--num-frames", "2147483645"), (*GENERATE, "--num-frames", "1000000001")]
    cases += [(*ABLATE, option, value) for option in ("--seeds", "--limit") for value in (HUGE, "0")]
    return cases


def names() -> list[tuple[str, ...]]:
    loras = ("", ":", ":1", "x:nan", "a/b:1e999", BAD, "/", "\x1b[31m", "x" * 5000, "p.txt", ".", "a/b/c.safetensors")
    cases = [(*GENERATE, "--lora", value) for value in loras]
    cases += [(*GENERATE, option, BAD) for option in ("--profile", "--attention", "--revision", "--dtype")]
    models = ("simulated:", f"{MODEL}&x", f"{MODEL}&cells={HUGE}", "simulated:wan?call_s=nan", "a:b", ":", "json:loads")
    cases += [(*GENERATE, "--model", value) for value in (*PATHS, *models, "..", "/dev/zero", "p.txt", "a/b@c")]
    cases += [(*GENERATE, "--config", value) for value in (*PATHS, "..", "/dev/zero", "a:b") if value != "/dev/null"]
    cases += [(*ABLATE, "--grid", value) for value in (BAD, "/dev/zero", ".", "\0", "x" * 5000)]
    cases += [(*ABLATE, "--tables", value) for value in (",", BAD)]
    cases += [(*ABLATE, "--features", value) for value in (BAD, "a/b")]
    return [*cases, ("profiles", "--model", BAD), ("profiles", "--model", "")]


def settings() -> list[tuple[str, ...]]:
    texts = (
        "", "=", "seed", "=1", "seed=", f"seed={HUGE}", f"seed={ENDLESS}", "seed=[", "seed=nan", "seed=1979-05-27", BAD,
        f"profile={BAD}", f"{BAD}=1", "profile=\x1b[31m", "a..b=1", "[seed]=1", "sampler=1", "sampler.x.y=1",
        "workers.num_actors.x=1", "seed=1\nlimit=2", "\0=1", "model=\0", "x" * 5000, f"profile={'x' * 5000}",
    )  # fmt: skip
    cases = [(*command, "--set", text) for text in texts for command in (GENERATE, ABLATE, ("config", "show"))]
    cases += [("config", "show", "--config", value) for value in (*PATHS, "..", "a:b") if value != "/dev/null"]
    return cases + [("config", "show", option, BAD) for option in ("--profile", "--attention", "--model")]


def samples() -> list[tuple[str, ...]]:
    start = ("sample", "a cat")
    cases = [(*start, value, "--model", MODEL) for value in (*PATHS, ".", "..", ".mp4", "a/b\n.mp4", f"{BAD}.mp4")]
    cases += [("sample", text, "x.mp4", "--model", MODEL) for text in ("", " ", "\n", "p.txt")]
    cases += [(*start, "x.mp4", "--model", value) for value in (*PATHS, "simulated:", "a:b", ":", "..")]
    cases += [(*start, "x.mp4", "--device", value) for value in (BAD, "", "cuda:-1", "meta", "cpu:1", HUGE)]
    cases += [(*start, "x.mp4", "--seed", value) for value in (HUGE, ENDLESS, "-1", "x")]
    return [*cases, ("completion", BAD), ("completion", ""), ("doctor", "--limit-s", "nan"), ("config",)]


def paths() -> list[tuple[str, ...]]:
    prompts = (
        "hf://datasets/a/b.jsonl", "s3://bucket/in/a::b.jsonl", "::", "zip://x.jsonl::p.zip", "foo://x.jsonl", "\0.txt",
        ".", "simplecache::s3://b/x.txt", f"{'x' * 5000}.txt", f"{BAD}.txt", "~nouser/p.txt", "memory://x.jsonl",
    )  # fmt: skip
    cases = [("generate", value, *GENERATE[2:]) for value in (*PATHS, *prompts) if not value.startswith("s3:///")]
    outs = (*PATHS, "p.txt", "p.txt/x", "s3://b/../x", f"s3://b/{BAD}", "s3://b/a\n", "s3://b/a::b")
    cases += [("generate", "p.txt", value, *GENERATE[3:]) for value in outs if value != "a::b"]
    cases += [(name, value, *rest) for name, *rest in RUNS for value in (*PATHS, "p.txt", ".", "s3://b/a\n")]
    return cases + [("convert", value, "D2") for value in (*PATHS, "p.txt", ".")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is given; a request to S3 would fail at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    (tmp_path / "p.txt").write_text("a cat\n")
    return tmp_path


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "cases",
    [numbers(), names(), paths(), settings(), samples()],
    ids=["numbers", "names", "paths", "settings", "samples"],
)
def test_they_are_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, cases: list[tuple[str, ...]], every: int
) -> None:
    wrong: list[str] = []
    for case in cases[::every]:
        try:
            status = main(list(case))
        except SystemExit as error:  # argparse's own
            status = int(error.code or 0)
        out, message = capsys.readouterr()
        is_one_message = message.count("miga: ") == 1 or ("usage: " in message and " error: " in message)
        is_tame = all(character.isprintable() or character == "\n" for character in message)
        if status != 2 or out or not is_one_message or not is_tame or "unexpected " in message.partition(":")[2][:13]:
            wrong.append(f"{ascii(case)[:200]}: {status} {out[:100]} {message[:300]!a}")
        if [path.name for path in folder.iterdir()] != ["p.txt"]:
            wrong.append(f"{ascii(case)[:200]} wrote {list(folder.iterdir())}")
            break
    assert not wrong, "\n".join(wrong)
