"""Sums over a run, and the tiles at the top of its page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pipeline.report.gate import gate_of
from pipeline.report.values import items, number

STAGES: Final = ("encode_text", "denoise", "decode", "encode_video", "upload")
"""The stages of a row that take a worker's time, in order; the manifest holds `<stage>_s` of each."""

_TIMES: Final = tuple(f"{stage}_s" for stage in STAGES)


@dataclass(kw_only=True)
class Totals:
    """Sums over a run. Seconds are a worker's own, so two workers for an hour count two hours.

    Attributes:
        video_s: seconds of finished video.
        work_s: seconds of all stages over the finished videos.
        num_evaluations: latent groups judged (`n_all` of the paper).
        num_searches: those that were searched (`n_eval`).
        num_corrections: those that were replaced (`n_corr`).
        num_on_cpu: finished videos whose device is a CPU, or not named.
        num_gated: finished videos that were held to a quality gate.
        num_marked: those of them that lie beyond a limit.
        num_tries: tries at those that were held to it.
    """

    num_rows: int = 0
    num_ok: int = 0
    num_frames: int = 0
    video_s: float = 0.0
    network_calls: int = 0
    denoise_s: float = 0.0
    work_s: float = 0.0
    bytes: int = 0
    num_evaluations: int = 0
    num_searches: int = 0
    num_corrections: int = 0
    num_on_cpu: int = 0
    num_gated: int = 0
    num_marked: int = 0
    num_tries: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a manifest row; one that failed is counted only."""
        self.num_rows += 1
        if row.get("status") != "ok":
            return
        self.num_ok += 1
        self.num_frames += int(number(row, "num_frames"))
        self.video_s += video_s(row)
        self.network_calls += int(number(row, "network_calls"))
        self.denoise_s += number(row, "denoise_s")
        self.work_s += sum(number(row, time) for time in _TIMES)
        self.bytes += int(number(row, "bytes"))
        self.num_evaluations += _count(row, "num_evaluations", "consistency")
        self.num_searches += _count(row, "num_searches", "searched_at")
        self.num_corrections += _count(row, "num_corrections", "corrected_at")
        self.num_on_cpu += str(row.get("device") or "cpu").lower().startswith("cpu")
        if (gate := gate_of(row)) is not None:
            self.num_gated += 1
            self.num_marked += not gate["good"]
            self.num_tries += len(gate["tries"])

    @property
    def on_gpu(self) -> bool:
        """Whether every finished video names a device that is no CPU."""
        return self.num_ok > 0 and self.num_on_cpu == 0

    @property
    def num_failed(self) -> int:
        """Rows that were quarantined."""
        return self.num_rows - self.num_ok

    @property
    def correction_rate(self) -> float | None:
        """R_corr: corrections per evaluation. Source: MIGA section 4.3."""
        return self.num_corrections / self.num_evaluations if self.num_evaluations else None

    @property
    def success_rate(self) -> float | None:
        """R_succ: corrections per search. Source: MIGA section 4.3."""
        return self.num_corrections / self.num_searches if self.num_searches else None


def totals(rows: Iterable[Mapping[str, Any]]) -> Totals:
    """The manifest's figures summed over all rows."""
    sums = Totals()
    for row in rows:
        sums.add(row)
    return sums


def video_s(row: Mapping[str, Any]) -> float:
    """Seconds of the video: `duration_s`, or what frames and rate make where an older manifest lacks it."""
    given, fps = number(row, "duration_s"), number(row, "fps")
    return given or (number(row, "num_frames") / fps if fps else 0.0)


def _count(row: Mapping[str, Any], column: str, positions: str) -> int:
    value = row.get(column)
    return len(items(row, positions)) if value is None else int(value)


class Tile(NamedTuple):
    """One figure at the top of the page."""

    label: str
    explanation: str
    value: str
    unit: str = ""
    note: str = ""
    alarm: bool = False


def tiles(t: Totals) -> list[Tile]:
    """The figures of a run, in words; those of searches only where there were evaluations."""
    failed = f"{t.num_failed:,} failed of {t.num_rows:,}"
    return [
        Tile("Videos", "Rows that became a video", f"{t.num_ok:,}", "ok", failed, alarm=t.num_failed > 0),
        Tile("Video", "Playing time of all videos", *_hours(t.video_s), f"{t.num_frames:,} frames"),
        *_cost_tiles(t),
        *(_search_tiles(t) if t.num_evaluations else ()),
        *(_gate_tiles(t) if t.num_gated else ()),
    ]


def _gate_tiles(t: Totals) -> list[Tile]:
    return [
        Tile(
            "Good enough",
            "Videos within all limits of [quality]; the others are marked, and of their tries the best was kept",
            f"{t.num_gated - t.num_marked:,}",
            f"of {t.num_gated:,}",
            f"{t.num_marked:,} marked; {t.num_tries:,} tries in all",
            alarm=t.num_marked > 0,
        )
    ]


def _search_tiles(t: Totals) -> list[Tile]:
    return [
        Tile(
            "Corrections",
            "Self-reflection judges how well latents go on from those before. Where they fit badly it searches for "
            "better ones, and replaces them if it finds some",
            f"{t.num_corrections:,}",
            note=f"{t.num_searches:,} searches in {t.num_evaluations:,} evaluations",
        ),
        Tile(
            "Searches that helped",
            "Corrections per search (R_succ of the paper); of all that was judged: corrections per evaluation (R_corr)",
            _percent(t.success_rate),
            note=f"{_percent(t.correction_rate)} of all that was judged was replaced",
        ),
    ]


def _cost_tiles(t: Totals) -> list[Tile]:
    """What the videos took: dashes where there are none to share it out over."""
    num, unit = max(t.num_ok, 1), "GPU-hours" if t.on_gpu else "worker-hours"
    per_call = f"{t.denoise_s / t.network_calls:.3g} s a call" if t.network_calls else ""
    share = f"{t.denoise_s / t.work_s:.0%} of it denoising" if t.work_s else ""
    calls = f"{t.network_calls:,}"
    return [
        Tile("Network calls", "Windows; a guided call counts once", calls, "", f"{t.network_calls / num:,.0f} a video"),
        Tile("Denoising", "Summed over all workers", _significant(t.denoise_s / 3600), unit, per_call),
        Tile("A video takes", "Mean over all stages, without waiting", *_duration(t.work_s / num), share),
        Tile("Size", "MP4 files", *_bytes(t.bytes), " ".join(_bytes(t.bytes / num)) + " a video"),
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _significant(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float) -> tuple[str, str]:
    return (f"{seconds:.3g}", "s") if seconds < 1000 else (f"{seconds:,.0f}", "s")


def _hours(seconds: float) -> tuple[str, str]:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f}", "hours"
    return (f"{seconds / 60:.1f}", "minutes") if seconds >= 60 else (f"{seconds:.1f}", "s")


def _bytes(size: float) -> tuple[str, str]:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g}", unit
        size /= 1000
    return f"{size:,.3g}", "TB"
