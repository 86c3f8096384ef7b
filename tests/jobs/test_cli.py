"""The command line: what it refuses, and what it says without doing any work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import main, unexpected
from jobs.commands.common import show_summary
from jobs.run import make, retry
from jobs.run.plan import make_plan
from jobs.shared.exit_status import status_of_run
from miga.backbones.registry import load_spec
from miga.cost import count_calls
from miga.profiles import resolve_config
from pipeline.config import RunConfig, load_config, override
from pipeline.prompts.read import read_prompts
from pipeline.rows import BadRow
from tests.cli import refused, run

LARGE, SMALL = "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\na blue ring\n")
    return file


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["generate", "bench"])
def test_two_commands_are_modules_too(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """As `ray job submit` starts them; what is wrong with options is said in the same words."""
    program = [sys.executable, "-m", f"jobs.{name}", "--no-such-option"]
    as_module = subprocess.run(program, capture_output=True, text=True, check=False)
    with pytest.raises(SystemExit) as exited:
        run(capsys, name, "--no-such-option")
    assert (as_module.returncode, as_module.stdout) == (exited.value.code, "") == (2, "")
    assert as_module.stderr.split() == capsys.readouterr().err.split()


def test_dry_run_counts_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, prompts: Path
) -> None:
    out = tmp_path / "out"
    status, stdout, _ = run(
        capsys, "generate", prompts, out, "--model", tiny_model, "--num-frames", 61, "--dry-run", "--json"
    )
    assert status == 0
    assert not out.exists()
    figures = json.loads(stdout)
    config = resolve_config("swift", load_spec(str(tiny_model)))
    assert figures["videos"] == 2
    assert figures["network_calls"] == 2 * count_calls(config, 16).total
    assert figures["estimated_hours"] > 0
    assert figures["estimated_bytes"] > 0


def test_dry_run_says_what_tries_of_the_quality_gate_may_cost_at_most(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, prompts: Path
) -> None:
    arguments = ("generate", prompts, tmp_path / "out", "--model", tiny_model, "--num-frames", 61, "--dry-run")
    gate = ("--set", "quality.least={ final_consistency = 0.9 }", "--set", "quality.retries=2")
    status, out, message = run(capsys, *arguments, *gate, "--json")
    assert status == 0, message
    found = json.loads(out)
    assert found["retries"]["tries"] == 3
    for name in ("network_calls_max", "network_forwards_max", "estimated_hours_max"):
        assert found["retries"][name] == 3 * found[name] > 0
    assert found["retries"]["estimated_bytes_max"] == 3 * found["estimated_bytes"]
    status, out, _ = run(capsys, *arguments, *gate)
    assert "at most, if every row needs all 3 tries of [quality]" in out
    status, out, _ = run(capsys, *arguments)
    assert "retries" not in out


@pytest.mark.parametrize("name", [SMALL, LARGE])
@pytest.mark.parametrize(("profile", "calls"), [("paper", 946), ("swift", 255)])
def test_dry_run_knows_the_published_models_without_network(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path, name: str, profile: str, calls: int
) -> None:
    status, stdout, message = run(
        capsys, "generate", prompts, tmp_path / "out", "--model", name, "--num-frames", 161, "--dry-run", "--json",
        "--profile", profile,
    )  # fmt: skip
    assert status == 0, message
    assert json.loads(stdout)["network_calls"] == 2 * calls


def test_a_dry_run_says_what_goes_where(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    arguments = (prompts, tmp_path / "out", "--model", LARGE, "--dry-run", "--json", "--card-gb")
    status, out, message = run(capsys, "generate", *arguments, 24)
    assert status == 0, message
    memory = json.loads(out)["memory"]
    assert memory["transformer"].endswith("in fp8")
    assert "fp8" in memory["reason"]
    assert memory["decoding"] == "takes turns with the network"
    _, out, _ = run(capsys, "generate", *arguments, 48)
    assert json.loads(out)["memory"]["decoding"] == "beside the network"
    status, _, message = run(capsys, "generate", *arguments, 16)
    assert status == 2
    assert "what would fit: a card of 24 GB" in message
    assert not (tmp_path / "out").exists()


def test_where_the_text_encoder_goes(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    config = tmp_path / "text.toml"
    arguments = (prompts, tmp_path / "out", "--model", LARGE, "--dry-run", "--json", "--config", config, "--card-gb")
    config.write_text('text_dtype = "bfloat16"\n')
    _, out, _ = run(capsys, "generate", *arguments, 80)
    assert json.loads(out)["memory"]["text encoder"] == "11.4 GB in bfloat16, of the machine's memory"
    config.write_text('text_dtype = "bfloat16"\n[workers]\ntext_gpus = 0.2\ngpus_per_actor = 0.8\n')
    _, out, _ = run(capsys, "generate", *arguments, 80)
    assert json.loads(out)["memory"]["text encoder"] == "11.4 GB in bfloat16, of the card"
    status, _, message = run(capsys, "generate", *arguments, 24)
    assert status == 2
    assert "text_gpus = 0 in [workers]" in message


@pytest.mark.slow
def test_videocrafter2_on_a_card(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    arguments = ("--model", "VideoCrafter/VideoCrafter2", "--width", 1024, "--height", 576, "--dry-run", "--json")
    status, out, message = run(capsys, "generate", prompts, tmp_path / "out", *arguments, "--card-gb", 24)
    assert status == 0, message
    costs = json.loads(out)
    assert costs["size"] == "576x1024"
    assert costs["memory"]["transformer"] == "2.8 GB in bfloat16"


def test_another_size_costs_more(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    hours = {}
    for height, width in ((480, 832), (720, 1280)):
        size = ("--height", height, "--width", width)
        status, out, _ = run(
            capsys, "generate", prompts, tmp_path / "out", "--model", LARGE, *size, "--dry-run", "--json"
        )
        assert status == 0
        assert json.loads(out)["size"] == f"{height}x{width}"
        hours[height] = json.loads(out)["estimated_hours"]
    assert 2.3 < hours[720] / hours[480] < 2.3**2


def test_hours_follow_forwards_and_the_length_of_a_call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path
) -> None:
    """`swift` guides no call of Stage 2: those take one forward. A window of 14 latents takes 2/3 of one of 21."""
    config = tmp_path / "short.toml"
    config.write_text("[sampler]\nwindow = 14\nguidance_scale = 1.0\n")
    costs = {}
    for name, options in {"swift": (), "short": ("--config", config)}.items():
        run_options = ("--model", LARGE, "--num-frames", 161, "--dry-run", "--json", *options)
        status, out, message = run(capsys, "generate", prompts, tmp_path / "out", *run_options)
        assert status == 0, message
        costs[name] = json.loads(out)
    swift, short = costs["swift"], costs["short"]
    assert (swift["network_calls"], swift["network_forwards"]) == (2 * 255, 2 * (2 * 255 - 27 - 9))
    flops = load_spec(LARGE).forward_flops
    assert swift["estimated_hours"] * 3600 == pytest.approx(swift["network_forwards"] * flops / 400e12)
    assert short["network_forwards"] == short["network_calls"]
    assert short["estimated_hours"] * 3600 == pytest.approx(short["network_calls"] * flops * 14 / 21 / 400e12)


@pytest.mark.parametrize(
    ("content", "name", "named"),
    [
        (b"", "empty.txt", "empty.txt"),
        (b"", "empty.jsonl", "empty.jsonl"),
        (b'{"text": "a red circle"}\n', "missing.jsonl", "prompt"),
        (b"text,id\na red circle,1\n", "missing.csv", "prompt"),
        (b"not parquet", "broken.parquet", "broken.parquet"),
        (b"a red circle\n", "prompts.docx", "prompts.docx"),
    ],
)
def test_prompt_files_that_cannot_be_read_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, content: bytes, name: str, named: str
) -> None:
    file, out = tmp_path / name, tmp_path / "out"
    file.write_bytes(content)
    assert named in refused(capsys, out, file, out, "--model", tiny_model)


def test_a_prompt_file_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path
) -> None:
    out = tmp_path / "out"
    assert "nowhere.txt" in refused(capsys, out, tmp_path / "nowhere.txt", out, "--model", tiny_model)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--profile", "papper"], "did you mean 'paper'"),
        (["--num-frames", "0"], "num_frames"),
        (["--num-frames", "-5"], "num_frames"),
        (["--num-frames", "60"], "57 or 61"),
        (["--seed", "-1"], "seed"),
        (["--seed", str(2**64)], "seed"),
        (["--limit", "0"], "limit"),
        (["--num-actors", "0"], "num_actors"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--config", "no-such.toml"], "no-such.toml"),
        (["--height", "33"], "height 33 is no multiple of 16"),
        (["--width", "0"], "width must be at least 1"),
        (["--lora", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--lora", "nowhere.safetensors:0.5"], "'nowhere.safetensors' does not exist"),
        (["--attention", "flsh"], "did you mean 'flash'"),
    ],
)
def test_options_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model: Path,
    prompts: Path,
    options: list[str],
    named: str,
) -> None:
    out = tmp_path / "out"
    model = [] if "--model" in options else ["--model", str(tiny_model)]
    assert named in refused(capsys, out, prompts, out, *model, *options)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("profil = 'paper'", "profil"),
        ("num_frames = 54.7", "num_frames"),
        ("num_frames = '61'", "num_frames"),
        ("seed = true", "seed"),
        ("[sampler]\nnum_candidate = 3", "num_candidates"),
        ("[sampler]\nnum_candidates = 2.5", "num_candidates"),
        ("[sampler]\nzigzag_width = 3", "zigzag_width"),
        ("[sampler]\nhandoff_level = 0", "handoff_level"),
        ("[workers]\nnum_actor = 3", "num_actors"),
        ("[video]\ncodec = 'h999'", "h999"),
        ("model = ", "TOML"),
    ],
)
def test_configs_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, prompts: Path, toml: str, named: str
) -> None:
    config, out = tmp_path / "run.toml", tmp_path / "out"
    config.write_text(toml)
    assert named in refused(capsys, out, prompts, out, "--model", tiny_model, "--config", config)


def test_an_out_that_holds_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, prompts: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    assert "thesis.tex" in refused(capsys, out, prompts, out, "--model", tiny_model)
    file = tmp_path / "file"
    file.write_text("mine")
    assert str(file) in refused(capsys, file, prompts, file, "--model", tiny_model)


def test_status_and_report_of_a_folder_without_a_run_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for command in ("status", "report"):
        status, _, message = run(capsys, command, tmp_path)
        assert status == 2
        assert "run.json" in message


@pytest.mark.slow
def test_profiles_stand_side_by_side_with_the_published_values(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    status, table, _ = run(capsys, "profiles", "--model", tiny_model)
    assert status == 0
    header = next(line for line in table.splitlines() if line.startswith("setting"))
    shown = ["swift", "paper", "fifo", "fifo-literal", "scalingnoise", "stage-2-only"]
    shown += ["direct", "freenoise", "freelong", "riflex"]
    assert header.split() == ["setting", *shown, "paper", "(wan)"]
    steps, of_causal = [line.split() for line in table.splitlines() if line.startswith("num_steps")]
    assert steps == ["num_steps", *["8"] * len(shown), "54"]
    causal = table[table.index("method causal") :]
    assert "self-forcing" in causal
    assert of_causal[:2] == ["num_steps", "4"]
    assert "zigzag_width" not in causal.partition("\n\nswift:")[0]  # of their own, what they read alone
    assert "released" in (left_out := table[table.index("not for this model:") :])  # 8 steps are too few for its start
    assert "freepca" in left_out
    status, text, _ = run(capsys, "profiles", "--model", tiny_model, "--json")
    assert json.loads(text)["fifo"]["method"] == "fifo"


# ---- what a dry run says of rows, and to people ----

WORDS = "a red circle moving side to side on a grey ground & a yellow ring"


def test_a_dry_run_finds_every_bad_row_and_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path
) -> None:
    """Over the edges of what is read at once, in the words that the run would quarantine them with."""
    rows: list[dict[str, object]] = [{"prompt": f"{WORDS}, take {number}"} for number in range(2105)]
    rows[0] = {"prompt": " "}
    rows[999] = {"prompt": ["fine", "word " * 600]}
    rows[1000] = {"prompt": "word " * 600, "id": "long"}
    rows[1001] = {"prompt": "x", "num_frames": 30}
    rows[2104] = {"prompt": "half \ud800 a character"}
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_options = ("generate", file, tmp_path / "out", "--model", tiny_model, "--dry-run")
    status, out, _ = run(capsys, *run_options, "--json")
    assert status == 0
    found = json.loads(out)
    assert [row["row"] for row in found["bad"]] == [0, 999, 1000, 1001, 2104]
    assert (found["bad_rows"], found["videos"]) == (5, 2100)
    assert found["bad"][2]["id"] == "long"
    plan = make_plan(str(file), str(tmp_path / "out"), override(load_config(None), model=str(tiny_model)))
    one_by_one = [(row.index, row.error) for row in plan.rows() if isinstance(row, BadRow)]
    assert [(row["row"], row["error"]) for row in found["bad"]] == one_by_one
    shown = run(capsys, *run_options)[1]
    assert "5 rows cannot be made, and will be quarantined:" in shown
    named = [line for line in shown.splitlines() if line.startswith("  row ")]
    assert [int(line.split()[1].rstrip(":")) for line in named] == [0, 999, 1000, 1001, 2104]
    assert "tokens, the model reads 512; shorten it by about" in named[2]


def test_a_dry_run_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    options = ("generate", prompts, tmp_path / "out", "--model", LARGE, "--num-frames", 161, "--dry-run")
    shown = run(capsys, *options)[1]
    figures = json.loads(run(capsys, *options, "--json")[1])
    lines = {line[:8].strip(): line[8:] for line in shown.splitlines() if line[:1].strip()}
    assert lines["videos"] == "2 of 161 frames, 480x832: 20 s of video"
    assert lines["calls"].startswith("510 of the network, ")
    assert figures["estimated_hours"] * 3600 == pytest.approx(4 * 948 * 8.391 / 8, rel=0.01)
    assert lines["time"] == "1 h 6 min"
    assert lines["files"].startswith("1.6 MB of MP4")
    assert lines["GPU"].startswith("a card of 24 GB or more; as it is from 48 GB on")
    assert (figures["smallest_card_gb"], figures["plain_card_gb"]) == (24, 48)
    assert "of 1 workers" not in shown


def test_a_card_is_explained_in_sentences(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    options = ("generate", prompts, tmp_path / "out", "--model", LARGE, "--dry-run", "--card-gb", 24)
    shown = run(capsys, *options)[1]
    memory = json.loads(run(capsys, *options, "--json")[1])["memory"]
    of = memory["bytes"]
    assert of["total"] <= of["card"] == round(24 * 0.98 * 2**30)
    assert f"The network's weights take {of['transformer'] / 1e9:.1f} GB in fp8: half of what they are" in shown
    assert f"The VAE takes {of['vae'] / 1e9:.1f} GB in bfloat16" in shown
    assert "in turn with the network's calls, which changes no frame" in shown
    assert f"The text encoder ({of['text encoder'] / 1e9:.1f} GB) is in the machine's memory, not on the card" in shown
    assert f"{of['total'] / 1e9:.1f} GB of the card's {of['card'] / 1e9:.1f} GB" in shown


def test_each_statement_about_cards_holds(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    """The card named as the smallest holds it, and that before it in the list does not."""
    options = ("generate", prompts, tmp_path / "out", "--model", LARGE, "--dry-run", "--json")
    assert run(capsys, *options, "--card-gb", 24)[0] == 0
    assert run(capsys, *options, "--card-gb", 16)[0] == 2
    plain = json.loads(run(capsys, *options, "--card-gb", 48)[1])["memory"]
    assert plain["reason"].startswith("everything fits as it is")
    almost = json.loads(run(capsys, *options, "--card-gb", 40)[1])["memory"]
    assert not almost["reason"].startswith("everything fits as it is")


# ---- exit statuses ----


@pytest.mark.parametrize(
    ("num_failed", "failed_rows_ok", "expected"), [(0, False, 0), (0, True, 0), (2, False, 3), (2, True, 0)]
)
def test_the_exit_status_of_a_run(num_failed: int, failed_rows_ok: bool, expected: int) -> None:
    assert status_of_run(num_failed, failed_rows_ok) == expected


@pytest.mark.parametrize("command", ["generate", "retry-failed"])
def test_the_option_reaches_the_run(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[bool] = []

    def made(*_: object, failed_rows_ok: bool, **__: object) -> dict[str, object]:
        seen.append(failed_rows_ok)
        return {"exit_status": status_of_run(1, failed_rows_ok), "ok": 1, "videos": 2, "failed": 1, "already_done": 0,
                "seconds": 1.0, "out": "out", "manifest": [], "report": None, "failures": []}  # fmt: skip

    monkeypatch.setattr(make, "generate", made)
    monkeypatch.setattr(retry, "retry_failed", made)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    arguments = [command, *([str(prompts)] if command == "generate" else []), str(tmp_path / "out")]
    assert main(arguments) == 3
    assert main([*arguments, "--failed-rows-ok"]) == 0
    assert seen == [False, True]


def test_the_end_of_a_run_names_the_first_failures(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [{"row": 3, "id": "3", "reason": "blank"}, {"row": 9, "id": "cat", "reason": "NaN\x1b[2J"}]
    summary = {"ok": 10, "videos": 17, "failed": 7, "already_done": 2, "seconds": 65.0, "out": "out/", "manifest": [],
               "report": None, "failures": failures}  # fmt: skip
    show_summary(summary)
    assert capsys.readouterr().out.splitlines()[:5] == [
        "10 of 17 videos made, 7 quarantined, 2 of them before, in 65 s",
        "  row 3: blank",
        "  row 9 (cat): NaN\\x1b[2J",
        "  and 5 more",
        "  what to do about them: miga failures out/",
    ]


def test_code_that_was_removed_under_a_run_is_no_fault_of_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As by a second node of the same machine, which shares Ray's folder with the first."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ours = unexpected(ModuleNotFoundError("No module named 'actors.driver.x'", name="actors.driver.x"))
    assert "actors.driver.x cannot be found" in ours.message
    assert "one `ray start` a machine" in ours.hint
    assert list(tmp_path.iterdir()) == []
    other = unexpected(ModuleNotFoundError("No module named 'numpy'", name="numpy"))
    assert "report it" in other.hint


def test_rows_are_read_once_for_the_longest_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory grows with it; it is asked for at the check, in the dry run and by the workers."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "num_frames": 45}\n{"prompt": "b", "num_frames": 93}\n')
    plan = make_plan(str(tmp_path / "prompts.jsonl"), str(tmp_path / "out"), RunConfig(profile="direct"))
    reads = []
    monkeypatch.setattr(
        "jobs.run.plan.read_prompts", lambda *args, **how: reads.append(1) or read_prompts(*args, **how)
    )
    assert [plan.longest, plan.longest] == [24, 24]
    assert plan.lengths == ({45: 1, 93: 1}, (45, 93))
    assert len(reads) == 1
