"""Data from outside: what is taken, what is refused, and how it is said."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict

from miga.outside_data import OutsideDataError, decode, parse_json, parse_json_object, parse_toml, read_file, validated


@pytest.mark.parametrize(
    ("document", "value"),
    [
        (b'{"a": [1, 2.5, null, true, "x"]}', {"a": [1, 2.5, None, True, "x"]}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'["\\ud83d\\ude00"]', ["\U0001f600"]),
        (str(2**64 - 1).encode(), 2**64 - 1),
        (str(-(2**63)).encode(), -(2**63)),
        (b"[" * 64 + b"]" * 64, None),
    ],
)
def test_json_that_is_taken(document: bytes, value: Any) -> None:
    assert parse_json(document) == value or value is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "no JSON: .*line 1, column 2"),
        (b'{"a": 1, "b": 2, "a": 3}', 'key "a" stands there twice'),
        (b'[{"x": {"y": 1, "y": 1}}]', 'key "y" stands there twice'),
        (b"[NaN]", "it holds NaN"),
        (b'{"a": [0, -Infinity]}', "it holds -Infinity"),
        (b'{"a": [0, 1e999]}', r"a\[1\] is a number that is not finite"),
        (str(2**64).encode(), "more than 64 bits"),
        (b'{"a": -9223372036854775809}', "a is a whole number of more than 64 bits"),
        (b"1" * 5000, "thousands of digits"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b"[" * 100_000, "nested deeper than 64|no JSON"),
        (b'{"a":' * 100_000, "nested deeper than 64|no JSON"),
        (b'{"a": {"b": "\\ud800"}}', "a.b holds half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff in line 1"),
        (b"\n\n\xc3", "in line 3"),
        ("{}".encode("utf-16"), "UTF-16, not UTF-8"),
        ("{}".encode("utf-32"), "UTF-32, not UTF-8"),
    ],
)
def test_json_that_is_refused(document: bytes, message: str) -> None:
    with pytest.raises(OutsideDataError, match=message):
        parse_json(document)


def test_limits_are_the_callers() -> None:
    assert parse_json(b"[[1]]", max_depth=2) == [[1]]
    with pytest.raises(OutsideDataError, match="deeper than 1 "):
        parse_json(b"[[1]]", max_depth=1)
    assert parse_json(str(10**30), integers=None) == 10**30
    assert parse_json("[Infinity, 1e999]", finite=False) == [float("inf")] * 2
    with pytest.raises(OutsideDataError, match="at most 4 are read"):
        parse_json(b"[1,2]", max_bytes=4)


@pytest.mark.parametrize("document", [b"[1]", b"null", b'"text"', b"3"])
def test_an_object_is_an_object(document: bytes) -> None:
    with pytest.raises(OutsideDataError, match="not an object"):
        parse_json_object(document)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"a = ", "no TOML"),
        (b"a = 1\na = 2", "no TOML"),
        (b"a = " + b"9" * 5000, "cannot be read|no TOML"),
        (b"a = 18446744073709551616", "a is a whole number of more than 64 bits"),
        (b"a = " + b"[" * 5000, "nested deeper|no TOML"),
        (b"a = " + b"[" * 100 + b"]" * 100, "nested deeper than 64"),
        (b".".join([b"a"] * 100) + b" = 1", "nested deeper than 64"),
        (b'a = "\xff"', "not UTF-8"),
        (b"#" * (2**20 + 1), "at most 1,048,576"),
    ],
)
def test_toml_that_is_refused(document: bytes, message: str) -> None:
    with pytest.raises(OutsideDataError, match=message):
        parse_toml(document)


def test_toml_with_a_byte_order_mark() -> None:
    assert parse_toml(b"\xef\xbb\xbf[a]\nb = 1") == {"a": {"b": 1}}


def test_only_the_mark_at_the_start_is_left_out() -> None:
    assert decode(b"\xef\xbb\xbfa\xef\xbb\xbfb") == "a\ufeffb"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "absent")
    (tmp_path / "link").symlink_to("../blobs/deadbeef")
    with pytest.raises(OutsideDataError, match=r"a link to '../blobs/deadbeef', which is not there"):
        read_file(tmp_path / "link")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutsideDataError, match="cannot be read"):
        read_file(tmp_path / "loop")
    with pytest.raises(OutsideDataError, match="a folder"):
        read_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # which would wait for a writer for ever
    with pytest.raises(OutsideDataError, match="no regular file"):
        read_file(tmp_path / "pipe")
    with pytest.raises(OutsideDataError, match="cannot be read"):
        read_file("a\0b")
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(OutsideDataError, match="has 5 bytes, and at most 4"):
        read_file(tmp_path / "large", max_bytes=4)
    assert read_file(tmp_path / "large", max_bytes=5) == b"12345"


@dataclass(frozen=True, kw_only=True)
class _Record:
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    count: int
    share: float = 0.5
    marks: tuple[int, ...] = ()
    at: datetime | None = None


def test_records_are_read_without_coercion() -> None:
    read = validated(_Record, {"name": "a", "count": 3, "marks": [1, 2], "share": 1, "at": "2026-11-21T00:00:00Z"})
    assert read == _Record(name="a", count=3, marks=(1, 2), share=1.0, at=datetime(2026, 11, 21, tzinfo=UTC))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a"}, "count: field required"),
        ({"name": "a", "count": "3"}, r'count: .*integer.*\("3"\)'),
        ({"name": "a", "count": 3.0}, "count: "),
        ({"name": "a", "count": True}, "count: "),
        ({"name": 1, "count": 1}, "name: .*string"),
        ({"name": "a", "count": 1, "other": 0}, "other: "),
        ({"name": "a", "count": 1, "marks": [1, None]}, r"marks.1: .*\(null\)"),
        ({"name": "a", "count": 1, "share": float("nan")}, "share"),
        (["name"], "it: "),
        (None, "it: "),
        ({"name": "\x1b[31m", "count": "\x1b[31m"}, r"\\u001b\[31m"),
        ({"name": object(), "count": 1}, "object"),
    ],
)
def test_records_that_are_refused(values: Any, message: str) -> None:
    with pytest.raises(OutsideDataError, match=message):
        validated(_Record, values)
