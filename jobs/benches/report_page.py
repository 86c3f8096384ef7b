"""The page of a run of many rows: how long it takes to write, how large it is, how soon a browser shows a card.

The rows are made up, as long as those of real runs; there are no videos. A browser is asked where playwright and a
Chromium are installed, which the package itself does not need.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.run.report import make_report
from pipeline.config import RunConfig
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import PromptsFingerprint, RunRecord, shard_of, video_path
from pipeline.rows import ManifestRow, content_hash
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage

PROMPT_WORDS = 60
"""As long as what people write for Wan."""
NUM_SCORES, NUM_CHUNKS = 20, 8
FAILED_SHARE = 0.01
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WORDS = ("a", "red", "blue", "circle", "moving", "slowly", "over", "grey", "ground", "while", "light", "falls")


def bench_report(row_counts: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Figures of the page of so many rows each."""
    return {"The page of a run of many rows": [_figures(number) for number in row_counts]}


def _figures(num_rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="miga-bench-") as folder:
        storage = LocalStorage(Path(folder) / "out")
        make_rows(storage, num_rows)
        started_s, cpu_s = time.perf_counter(), time.process_time()
        page = make_report(storage)
        written_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        beside = [file.stat().st_size for file in page.parent.glob("report-files-*/*")]
        return {
            "rows": num_rows,
            "written, s": written_s,
            "of it CPU, s": cpu_s,
            "page, MB": page.stat().st_size / 1e6,
            "beside it, MB": sum(beside) / 1e6,
            "files beside it": len(beside),
            **_in_browser(page),
        }


def make_rows(storage: Storage, num_rows: int) -> None:
    """Writes the run.json and the manifest of a run of so many rows, a hundredth of which failed."""
    record = RunRecord(
        config=RunConfig().to_dict(),
        model="bench",
        model_revision="0" * 40,
        profile="swift",
        sampler={},
        prompts=PromptsFingerprint(path="prompts.jsonl", bytes=0, sha256="0" * 64),
        version="0",
        created_at=datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
    )
    storage.write_bytes("run.json", record.to_json().encode())
    per_shard = record.settings.run.prompts_per_shard
    manifest = Manifest(storage, per_shard)
    for shard in range(-(-num_rows // per_shard)):
        rows = range(shard * per_shard, min(num_rows, (shard + 1) * per_shard))
        manifest.write_shard(shard, _rows(storage, record, rows))


def _rows(storage: Storage, record: RunRecord, numbers: range) -> Iterator[ManifestRow]:
    rng = random.Random(numbers.start)
    for number in numbers:
        key = content_hash(number)
        shard = shard_of(number, record.settings.run.prompts_per_shard)
        asked: dict[str, Any] = {
            "key": key,
            "id": str(number),
            "row": number,
            "shard": shard,
            "prompts": (" ".join(rng.choices(_WORDS, k=PROMPT_WORDS)),),
            "seed": number,
            "profile": record.profile,
            "model": record.model,
            "model_revision": record.model_revision,
            "config": "{}",
            "config_hash": record.config_hash,
            "num_frames": 161,
            "attempt": 1,
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
            "version": "0",
        }
        if rng.random() < FAILED_SHARE:
            yield ManifestRow(status="failed", error_type="NonFiniteError", error="the network returned NaN", **asked)
            continue
        yield ManifestRow(
            status="ok",
            num_latents=41,
            fps=16.0,
            height=480,
            width=832,
            uri=storage.uri(video_path(shard, number, key, 1, 1)),
            bytes=rng.randrange(10**6, 10**7),
            sha256=key,
            duration_s=161 / 16,
            network_calls=255,
            encode_text_s=rng.random(),
            denoise_s=300 + 100 * rng.random(),
            decode_s=10 * rng.random(),
            encode_video_s=rng.random(),
            upload_s=rng.random(),
            queue_wait_s=1000 * rng.random(),
            peak_memory_bytes=20 * 10**9,
            device="GPU",
            node="node",
            consistency=tuple(rng.random() for _ in range(NUM_SCORES)),
            consistency_latents=tuple(range(0, 2 * NUM_SCORES, 2)),
            searched_at=(3, 9),
            corrected_at=(9,),
            final_consistency=tuple(rng.random() for _ in range(NUM_CHUNKS)),
            num_evaluations=NUM_SCORES,
            num_searches=2,
            num_corrections=1,
            **asked,
        )


def _in_browser(page: Path) -> dict[str, float]:
    """Seconds from opening the page to its first card, and from asking for the rows by consistency to theirs."""
    executable = next(filter(None, map(shutil.which, _BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        return {"first card, s": float("nan"), "all rows sorted, s": float("nan"), "all rows searched, s": float("nan")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        started_s = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_selector(".card")
        first_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        tab.select_option("select[name=sort]", "consistency")
        tab.wait_for_function("() => document.querySelector('#first').hidden && document.querySelector('.card')")
        sorted_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        tab.fill("input[type=search]", "no such words")
        tab.wait_for_selector("#none:not([hidden])", timeout=300_000)
        searched_s = time.perf_counter() - started_s
        browser.close()
    return {"first card, s": first_s, "all rows sorted, s": sorted_s, "all rows searched, s": searched_s}
