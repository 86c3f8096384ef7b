"""What the page says, read from its text: escaping, links, totals, odd rows."""

import json
import math
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from miga.errors import OutputError
from pipeline.report.cards import prompt_spans
from pipeline.report.links import link_to
from pipeline.report.page import render_report, write_report
from pipeline.report.totals import totals
from pipeline.report.values import embedded_json, visible

RUN = {
    "model": "sprites",
    "model_revision": "abc123",
    "profile": "paper",
    "prompts": "/data/prompts.jsonl",
    "created_at": "2026-01-02T03:04:05Z",
    "version": "0.1.0",
    "config": {"num_steps": 54, "stride": 10},
}
NASTY = "</script><script>alert(1)</script><!-- & \u2028\u2029 \x00\x1b 🦊 \ud800 </noscript>"


def row(**changes: Any) -> dict[str, Any]:
    return {
        "row": 0,
        "id": "0",
        "key": "k0",
        "status": "ok",
        "prompts": ["a red circle"],
        "seed": 2**64 - 1,
        "num_frames": 161,
        "num_latents": 41,
        "fps": 16,
        "uri": "/runs/one/video/k0.mp4",
        "bytes": 1_500_000,
        "duration_s": 10.0625,
        "network_calls": 298,
        "denoise_s": 90.0,
        "decode_s": 10.0,
        "device": "cpu",
        "consistency": [0.9, 0.8, 0.7],
        "consistency_latents": [7, 14, 21],
        "searched_at": [1, 2],
        "corrected_at": [2],
        "final_consistency": [0.95, 0.9],
    } | changes


def failed(**changes: Any) -> dict[str, Any]:
    return {"row": 1, "id": "1", "status": "failed", "prompts": [], "error_type": "BadRowError"} | changes


def page_data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def cards(*rows: dict[str, Any], out_uri: str = "/runs/one") -> list[dict[str, Any]]:
    return page_data(render_report(rows, RUN, out_uri=out_uri))["cards"]


def test_page_is_complete_in_itself() -> None:
    page = render_report([row()], RUN, out_uri="/runs/one")
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<link|<img|\ssrc=|@import|url\(", page)
    assert "default-src 'none'" in page


def test_prompts_cannot_leave_their_place() -> None:
    page = render_report(
        [row(prompts=[NASTY], id=NASTY, negative_prompt=NASTY, metadata=json.dumps({"note": NASTY}))],
        RUN | {"note": NASTY, "prompts": f"/x/{NASTY}"},
        out_uri="/runs/one",
    )
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 2
    assert page.count("</noscript>") == 1
    assert page_data(page)["cards"][0]["prompts"] == [NASTY]
    page.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\u2028\u2029]", page_data_text(page))


@pytest.mark.parametrize(
    "uri",
    [
        "javascript:alert(1)", "javascript://x/%0aalert(1)", "JaVaScRiPt://x", "data:text/html,<script>x</script>",
        "data://text/html,x", "vbscript://x", "//evil.example/x.mp4", "file://evil.example/x.mp4", "s3://b/\"onload=x",
        "https://x/'><script>", "\x00javascript://x", " javascript:alert(1)",
    ],
)  # fmt: skip
def test_addresses_lead_to_files_and_servers_only(uri: str) -> None:
    href = link_to(uri, "/runs/one").href
    assert re.match(r"(\./|\.\./|file:///|s3://|https?://|$)", href), href
    assert not set(href) & set("\"'<> \n\x00")


@pytest.mark.parametrize("column", ["id", "error", "error_type", "device", "node", "metadata", "key", "uri"])
def test_nothing_of_a_row_cannot_leave_its_place(column: str) -> None:
    text = NASTY.replace("\ud800", "") if column == "uri" else NASTY
    page = render_report([row(**{column: text}), failed(**{column: text})], {NASTY: NASTY}, out_uri=f"/x/{NASTY}")
    assert (page.count("<script"), page.count("</noscript>"), "alert(1)</script>" in page) == (2, 1, False)


def test_metadata_that_nests_without_end_is_shown_as_it_is() -> None:
    nested = "[" * 100_000
    assert cards(row(metadata=nested))[0]["metadata"] == nested


def page_data_text(page: str) -> str:
    return page[page.index('id="data"') :].split("</script>")[0]


def test_embedded_json_is_ascii_without_markup() -> None:
    text = embedded_json({"a": NASTY, "b": math.nan, "c": -math.inf, "d": 2**63, "e": datetime(2026, 1, 2, tzinfo=UTC)})
    assert text.isascii()
    assert not set(text) & set("<>&")
    assert json.loads(text) == {"a": NASTY, "b": None, "c": None, "d": str(2**63), "e": "2026-01-02 00:00:00+00:00"}


def test_visible_hides_nothing() -> None:
    assert visible("a\x00\x1b\x7f\ud800\n🦊") == "a␀␛␡\ufffd\n🦊"
    assert visible(None) == "–"


@pytest.mark.parametrize(
    ("uri", "out_uri", "href"),
    [
        ("/runs/one/video/a.mp4", "/runs/one", "./video/a.mp4"),
        ("/runs/one/video/a.mp4", "/runs/one/", "./video/a.mp4"),
        ("/runs/one/video/a.mp4", "file:///runs/one", "./video/a.mp4"),
        ("file:///runs/one/video/a%20b.mp4", "/runs/one", "./video/a%20b.mp4"),
        ("video/a.mp4", "s3://bucket/run", "./video/a.mp4"),
        ("video/a.mp4", "/runs/one", "./video/a.mp4"),
        ("/runs/one/video/50% #1? 🦊.mp4", "/runs/one", "./video/50%25%20%231%3F%20%F0%9F%A6%8A.mp4"),
        ("/elsewhere/a b.mp4", "/runs/one", "../../elsewhere/a%20b.mp4"),
        ("/runs/one-more/a.mp4", "/runs/one", "../one-more/a.mp4"),
        ("/elsewhere/a.mp4", "s3://bucket/run", "file:///elsewhere/a.mp4"),
    ],
)
def test_local_videos_play(uri: str, out_uri: str, href: str) -> None:
    link = link_to(uri, out_uri)
    assert (link.href, link.playable, link.why) == (href, True, "")


@pytest.mark.parametrize(
    ("uri", "href", "why"),
    [
        ("s3://bucket/run/video/a b.mp4", "s3://bucket/run/video/a%20b.mp4", "object storage"),
        ("https://host/a.mp4", "https://host/a.mp4", "network"),
        ("javascript://host/%0aalert(1)", "", "object storage"),
        ("", "", "names no file"),
    ],
)
def test_videos_elsewhere_are_named_but_not_played(uri: str, href: str, why: str) -> None:
    link = link_to(uri, "s3://bucket/run")
    assert (link.href, link.playable) == (href, False)
    assert why in link.why


def test_empty_run() -> None:
    page = render_report([], {}, out_uri="/runs/one")
    assert page_data(page)["cards"] == []
    assert "0 failed of 0" in page
    assert "Videos of this run" in page


def test_a_row_of_nulls_and_a_row_of_nothing() -> None:
    [nulls, nothing] = cards(dict.fromkeys(row()), {})
    assert nulls["status"] == nothing["status"] == "failed"
    assert nothing["row"] == 1
    assert nulls["prompts"] == nothing["consistency"] == []


def test_only_failures_show_reason_and_remedy() -> None:
    own, named, other = cards(
        failed(error="prompts.jsonl:3: the prompt is blank.\n  hint: Give it some words."),
        failed(error="prompts.jsonl:4: seed 2**70"),
        failed(error_type="WorkerError", error="the worker was lost"),
    )
    assert (own["error"], own["remedy"]) == ("prompts.jsonl:3: the prompt is blank.", "Give it some words.")
    assert "a new OUT" in named["remedy"]
    assert "--retry-failed" in other["remedy"]
    assert not any(card["playable"] for card in (own, named, other))


def test_scores_that_are_not_finite_are_null() -> None:
    [card] = cards(row(consistency=[math.nan, 0.5, math.inf], final_consistency=[math.nan], fps=math.nan))
    assert card["consistency"] == [None, 0.5, None]
    assert card["final_consistency"] == [None]
    assert card["mean_consistency"] is None
    assert card["fps"] is None


def test_seed_of_64_bits_keeps_every_digit() -> None:
    assert cards(row())[0]["seed"] == str(2**64 - 1)


def test_totals() -> None:
    t = totals([row(), row(num_evaluations=7, num_searches=4, num_corrections=1), failed(network_calls=999)])
    assert (t.num_rows, t.num_ok, t.num_failed, t.num_frames, t.network_calls) == (3, 2, 1, 322, 596)
    assert (t.num_evaluations, t.num_searches, t.num_corrections) == (10, 6, 2)
    assert t.correction_rate == pytest.approx(0.2)
    assert t.success_rate == pytest.approx(1 / 3)
    assert (t.denoise_s, t.work_s, t.video_s) == (180, 200, 20.125)
    assert not t.on_gpu
    assert totals([row(device="NVIDIA H200")]).on_gpu


def test_page_names_totals_and_settings() -> None:
    page = render_report([row(), failed()], RUN, out_uri="/runs/one")
    for text in (
        "298",
        "0.025",
        "worker-hours",
        "1.5",
        "33.3%",
        "50.0%",
        "config.num_steps",
        "prompts.jsonl",
        "abc123",
    ):
        assert text in page, text


def test_prompts_in_turn_cover_the_whole_video() -> None:
    spans = prompt_spans(row(prompts=["a", "b", "c"]))
    assert spans == [(0, 14, 0, 53), (14, 28, 53, 109), (28, 41, 109, 161)]
    assert prompt_spans(row(prompts=["a", "b"], num_latents=16, num_frames=16)) == [(0, 8, 0, 8), (8, 16, 8, 16)]
    assert prompt_spans(row(prompts=["a", "b"], latents_per_prompt=7))[1] == (7, 41, 25, 161)
    assert prompt_spans(row(prompts=["a", "b"], latents_per_prompt=70))[1] == (41, 41, 161, 161)
    assert prompt_spans(row()) == []


@pytest.mark.parametrize(("num_prompts", "num_latents"), [(3, 41), (10, 17), (22, 41), (4, 6), (5, 3), (2, 1)])
def test_prompts_in_turn_are_the_sampler_s(num_prompts: int, num_latents: int) -> None:
    from miga.prompts import PromptTrack

    prompts = [str(number) for number in range(num_prompts)]
    track = PromptTrack.spread(prompts, num_latents)
    spans = prompt_spans(row(prompts=prompts, num_latents=num_latents, num_frames=4 * num_latents - 3))
    for latent in range(num_latents):
        holding = [number for number, (first, end, *_) in enumerate(spans) if first <= latent < end]
        assert holding == [track.index(latent)]


def test_page_is_put_in_place_whole(tmp_path: Any) -> None:
    path = write_report([row(uri=str(tmp_path / "video" / "a.mp4"))], RUN, tmp_path)
    assert path == tmp_path / "report.html"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert page_data(path.read_text(encoding="utf-8"))["cards"][0]["href"] == "./video/a.mp4"


def test_a_page_that_cannot_be_written_is_named(tmp_path: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"report\.html: a part of the path is a file"):
        write_report([row()], RUN, tmp_path / "file")


def test_noscript_lists_every_row() -> None:
    page = render_report([row(), row(row=1, id="second", uri="s3://b/a.mp4"), failed(row=2)], RUN, out_uri="/runs/one")
    plain = page[page.index("<noscript>") : page.index("</noscript>")]
    assert plain.count("<tr>") == 4
    assert 'href="./video/k0.mp4"' in plain
    assert "second" in plain


def test_the_title_names_the_prompt_file_of_a_run_record() -> None:
    page = render_report(
        [], RUN | {"prompts": {"path": "s3://bucket/many.jsonl", "bytes": 3, "sha256": "00"}}, out_uri="/out"
    )
    assert "<title>Videos of many.jsonl</title>" in page
