"""The quality gate of a real run: the embedded model on a local Ray, scores read off its frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.records.quality import try_seed
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.verify import verify
from tests.actors.test_generate_run import manifest, run
from tests.pipeline.test_report import page_data

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROMPT = "a red circle moving side to side on a grey ground"
SEED, TRIES = 3, 3


def _made(folder: Path, seeds: list[int], gate: str) -> tuple[Path, list[dict[str, Any]]]:
    """A run of that prompt under these seeds, and its manifest."""
    folder.mkdir()
    prompts, config = folder / "prompts.jsonl", folder / "run.toml"
    prompts.write_text("".join(json.dumps({"prompt": PROMPT, "seed": seed}) + "\n" for seed in seeds))
    config.write_text(f"num_frames = 45\n[quality]\n{gate}\n[workers]\nnum_actors = 1\n")
    status, summary = run(prompts, folder / "out", "sprites", "--config", str(config))  # type: ignore[arg-type]
    assert status == 0, summary
    return folder / "out", manifest(folder / "out")


def test_a_row_is_made_again_until_its_video_is_good_and_the_video_is_that_of_its_seed(tmp_path: Path) -> None:
    """What each seed's residual is, an ungated run says; the limit then lies between the first and another one."""
    seeds = [try_seed(SEED, number) for number in range(TRIES)]
    _, plain = _made(tmp_path / "plain", seeds, "most = { residual = 10.0 }")
    residuals = [json.loads(row["quality"])["tries"][0]["scores"]["residual"] for row in plain]
    assert all(json.loads(row["quality"])["good"] for row in plain)
    first, *others = residuals
    is_less = min(others) < first
    limit = (first + (min(others) if is_less else max(others))) / 2
    good = [value <= limit if is_less else value >= limit for value in residuals].index(True)
    assert good > 0

    word = "most" if is_less else "least"
    out, (row,) = _made(tmp_path / "gated", [SEED], f"{word} = {{ residual = {limit!r} }}\nretries = {TRIES - 1}")
    values = json.loads(row["quality"])
    assert (values["good"], values["kept"]) == (True, good)
    assert [each["scores"]["residual"] for each in values["tries"]] == residuals[: good + 1]
    assert [each["seed"] for each in values["tries"]] == seeds[: good + 1]
    assert (row["seed"], row["sha256"]) == (seeds[good], plain[good]["sha256"])
    assert [each["sha256"] for each in values["tries"]] == [each["sha256"] for each in plain[: good + 1]]
    assert not verify(LocalStorage(out)).faults
    (card,) = page_data((out / "report.html").read_text())["cards"]
    assert (card["gate"]["good"], card["gate"]["kept"]) == (True, good)


def test_a_row_that_is_never_good_keeps_the_best_and_is_marked(tmp_path: Path) -> None:
    out, (row,) = _made(tmp_path / "gated", [SEED], "most = { residual = 0.0 }\nretries = 1")
    values = json.loads(row["quality"])
    residuals = [each["scores"]["residual"] for each in values["tries"]]
    assert len(residuals) == 2
    assert values["good"] is False
    assert values["kept"] == residuals.index(min(residuals))
    assert values["why"].startswith("the best of 2 tries, none of them within all limits: residual ")
    assert all((out / each["video"]).is_file() for each in values["tries"])
    assert "not good enough first" in (out / "report.html").read_text()
