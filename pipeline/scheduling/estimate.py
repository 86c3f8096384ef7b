"""What a run will cost, before any of it is done: the figures of `--dry-run`. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What one unit of work costs, and how that is known.

    Attributes:
        seconds_per_call: of one network call (a window) in which the network runs `forwards_per_call` times.
        forwards_per_call: 2 with classifier-free guidance; calls without it are so much cheaper.
        seconds_per_frame: of everything else, mostly decoding and encoding.
        bytes_per_second: of finished video.
        fps: frames a second of the videos.
        num_workers: videos made at the same time.
        time_basis: how the seconds are known, for people ("measured on 3 calls", "published for H100", …).
        size_basis: how the bytes are known.
    """

    seconds_per_call: float
    bytes_per_second: float
    fps: float
    num_workers: int = 1
    forwards_per_call: int = 1
    seconds_per_frame: float = 0.0
    time_basis: str = "unknown"
    size_basis: str = "unknown"

    def __post_init__(self) -> None:
        if min(self.num_workers, self.forwards_per_call) < 1 or self.fps <= 0:
            raise ValueError("num_workers and forwards_per_call must be at least 1 and fps above 0")
        if min(self.seconds_per_call, self.seconds_per_frame, self.bytes_per_second) < 0:
            raise ValueError("costs cannot be negative")


def estimate_run(
    videos_by_num_frames: Mapping[int, int],
    calls_of: Callable[[int], int | tuple[int, int]],
    cost: CostModel,
    *,
    forwards_of: Callable[[int], tuple[int, int]] | None = None,
    work_of: Callable[[int], float] | None = None,
    bad_rows: int = 0,
) -> dict[str, Any]:
    """The cost of a run as plain values for `--json`.

    Args:
        videos_by_num_frames: how many videos there are of each length; rows are counted, not held.
        calls_of: network calls of a video of so many frames: a number, or the least and the most where it depends on
            what the sampler finds (self-reflection searches only where it has to). Called once per length.
        cost: what one unit costs.
        forwards_of: forwards of the network in those calls, the least and the most; None: as many as there are calls.
        work_of: where calls are no whole windows, how many forwards over one take as long as all of a video's; None: as
            many as it has.
        bad_rows: rows that will be quarantined, for the record.

    Returns:
        At least `videos`, `network_calls` (the least), `network_calls_max`, the same of `network_forwards`,
        `estimated_hours` (wall clock, all workers at work until the last video), `estimated_hours_max`,
        `estimated_bytes`, `basis`.
    """
    videos = frames = least = most = forwards = forwards_max = 0
    work = work_max = longest_s = longest_max_s = 0.0
    for num_frames, count in sorted(videos_by_num_frames.items()):
        calls = calls_of(num_frames)
        low, high = calls if isinstance(calls, tuple) else (calls, calls)
        low_forwards, high_forwards = (low, high) if forwards_of is None else forwards_of(num_frames)
        videos += count
        frames += count * num_frames
        least += count * low
        most += count * high
        forwards += count * low_forwards
        forwards_max += count * high_forwards
        low_work, high_work = (low_forwards, high_forwards) if work_of is None else (work_of(num_frames),) * 2
        work += count * low_work
        work_max += count * high_work
        if count:
            longest_s = max(longest_s, _seconds(low_work, num_frames, cost))
            longest_max_s = max(longest_max_s, _seconds(high_work, num_frames, cost))
    workers = max(1, min(cost.num_workers, videos))
    crew = "1 worker" if workers == 1 else f"{workers} workers"
    video_s = frames / cost.fps
    return {
        "videos": videos,
        "bad_rows": bad_rows,
        "frames": frames,
        "video_seconds": video_s,
        "network_calls": least,
        "network_calls_max": most,
        "network_forwards": forwards,
        "network_forwards_max": forwards_max,
        "estimated_hours": max(_seconds(work, frames, cost) / workers, longest_s) / 3600,
        "estimated_hours_max": max(_seconds(work_max, frames, cost) / workers, longest_max_s) / 3600,
        "estimated_bytes": round(video_s * cost.bytes_per_second),
        "num_workers": workers,
        "basis": {
            "network_calls": "counted by the sampler's plan; the most, if every evaluation starts a search",
            "estimated_hours": f"{cost.seconds_per_call:.4g} s a call{'' if work_of is None else ' of a whole window'}"
            f"{' of two forwards' if cost.forwards_per_call == 2 else ''} on {crew} ({cost.time_basis})",
            "estimated_bytes": f"{cost.bytes_per_second:.4g} bytes a second of video ({cost.size_basis})",
        },
    }


def _seconds(forwards: float, frames: int, cost: CostModel) -> float:
    return forwards * cost.seconds_per_call / cost.forwards_per_call + frames * cost.seconds_per_frame
