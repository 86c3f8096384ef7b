"""Figures as people read them: times, sizes, counts, shares."""

from __future__ import annotations

import math

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def duration(seconds: float | None) -> str:
    """The two largest units of a time: 4.2 s, 35 s, 5 min 35 s, 2 h 10 min, 388 d 2 h; a question mark for None."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two(whole, 60, "min", "s")
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return _two(minutes, 60, "h", "min")
    return _two(round(seconds / 3600), 24, "d", "h")


def _two(number: int, per_unit: int, unit: str, small_unit: str) -> str:
    large, small = divmod(number, per_unit)
    return f"{large:,} {unit}" + (f" {small} {small_unit}" if small else "")


def size(num_bytes: float) -> str:
    """Bytes in the unit that fits: 812 B, 2.6 GB. Units are powers of 1000."""
    value, place = float(num_bytes), 0
    while place + 1 < len(_UNITS) and abs(value) >= 999.5:
        value, place = value / 1000, place + 1
    return f"{value:.0f} {_UNITS[place]}" if place == 0 or abs(value) >= 99.95 else f"{value:.1f} {_UNITS[place]}"


def count(number: float) -> str:
    """A whole number with its thousands apart: 12,345."""
    return f"{round(number):,}"


def share(part: float, whole: float) -> str:
    """Per cent, rounded down so that 100 % is all of it: 41 %, 0.3 %."""
    if whole <= 0:
        return "100 %" if part >= whole else "0 %"
    percent = 100 * part / whole
    if 0 < percent < 1 or 99 < percent < 100:
        return f"{math.floor(percent * 10) / 10:.1f} %"
    return f"{math.floor(percent + 1e-9)} %"


def rate(per_second: float, what: str) -> str:
    """So many an hour: 12.3 videos/h, 4,200 videos/h."""
    per_hour = per_second * 3600
    return f"{per_hour:,.0f} {what}/h" if per_hour >= 100 else f"{per_hour:.3g} {what}/h"
