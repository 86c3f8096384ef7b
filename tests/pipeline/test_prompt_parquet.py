"""Parquet prompts: columns of every type travel along, and small files that unpack to gigabytes take no memory."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miga.errors import InputError
from pipeline.prompts.read import count_rows, read_prompts
from pipeline.rows import BadRow, PromptRow


def read(table: Any, path: Path, **options: Any) -> list[PromptRow | BadRow]:
    pq.write_table(table, path, **options)
    rows = list(read_prompts(str(path), seed=0, num_frames=9))
    assert count_rows(str(path)) == len(rows)
    return rows


CARRIED: dict[str, tuple[Any, Any]] = {
    "nanoseconds": (pa.array([1704067200123456789], pa.timestamp("ns")), "2024-01-01T00:00:00.123456789"),
    "whole microseconds": (pa.array([1704067200123456000], pa.timestamp("ns")), "2024-01-01T00:00:00.123456"),
    "before 1970": (pa.array([-1], pa.timestamp("ns")), "1969-12-31T23:59:59.999999999"),
    "microseconds": (pa.array([dt.datetime(2024, 2, 29, 1)], pa.timestamp("us")), "2024-02-29T01:00:00"),
    "unknown zone": (pa.array([0], pa.timestamp("us", "GMT+2")), "1970-01-01T00:00:00+00:00"),
    "hostile zone": (pa.array([0], pa.timestamp("ns", "../../etc/passwd")), "1970-01-01T00:00:00+00:00"),
    "offset": (pa.array([1], pa.timestamp("ns", "+05:30")), "1970-01-01T05:30:00.000000001+05:30"),
    "UTC": (pa.array([0], pa.timestamp("ms", "UTC")), "1970-01-01T00:00:00+00:00"),
    "a far time": (pa.array([2**62], pa.timestamp("us")), "4611686018427387904 us since 1970"),
    "a far date": (pa.array([2932897 * 2], pa.date32()), "18029-12-31"),
    "date": (pa.array([dt.date(2024, 2, 29)]), "2024-02-29"),
    "time": (pa.array([1234567891], pa.time64("ns")), "00:00:01.234567891"),
    "duration": (pa.array([1_500_000_000], pa.duration("ns")), 1.5),
    "an odd duration": (pa.array([2**62 + 1], pa.duration("ns")), f"{2**62 + 1} ns"),
    "struct": (
        pa.array([{"a": 1, "t": 1}], pa.struct([("a", pa.int8()), ("t", pa.timestamp("ns"))])),
        {"a": 1, "t": "1970-01-01T00:00:00.000000001"},
    ),
    "map": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), [["k", 1]]),
    "map in a list": (pa.array([[[("k", 1)]]], pa.list_(pa.map_(pa.string(), pa.int64()))), [[["k", 1]]]),
    "list of times": (pa.array([[1]], pa.list_(pa.timestamp("ns"))), ["1970-01-01T00:00:00.000000001"]),
    "fixed list": (pa.array([[1, 2]], pa.list_(pa.int32(), 2)), [1, 2]),
    "decimal": (pa.array([decimal.Decimal("1.50")]), "1.50"),
    "bytes": (pa.array([b"\xff\x00"]), "/wA="),
    "no UTF-8": (pa.array([b"\xff\xfeab"]).view(pa.string()), "\\xff\\xfeab"),
    "no UTF-8 in a struct": (
        pa.StructArray.from_arrays([pa.array([b"\xff"]).view(pa.string())], ["s"]), {"s": "\\xff"}
    ),
    "half": (pa.array([1.5], pa.float16()), 1.5),
    "not finite": (pa.array([float("inf")]), "inf"),
    "nan": (pa.array([float("nan")]), None),
    "null": (pa.nulls(1), None),
    "large strings": (pa.array([["a"]], pa.large_list(pa.large_string())), ["a"]),
    "view": (pa.array(["x"], pa.string_view()), "x"),
    "dictionary": (pa.array(["q"]).dictionary_encode(), "q"),
    "uuid": (pa.array([bytes(range(16))], pa.uuid()), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
    "json": (pa.array(['{"a": 1}'], pa.json_()), '{"a": 1}'),
    "unsigned": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", CARRIED)
def test_a_column_of_any_type_travels_along(tmp_path: Path, kind: str) -> None:
    column, value = CARRIED[kind]
    (row,) = read(pa.table({"prompt": ["a"], "carried": column}), tmp_path / "p.parquet")
    assert isinstance(row, PromptRow), row
    assert row.metadata == {"carried": value}
    json.dumps(row.metadata, allow_nan=False, ensure_ascii=False).encode()


def test_missing_values_of_any_type(tmp_path: Path) -> None:
    columns = {kind: pa.nulls(2, column.type) for kind, (column, _) in CARRIED.items()}
    rows = read(pa.table({"prompt": ["a", "b"], **columns}), tmp_path / "p.parquet")
    assert [row.metadata for row in rows] == [dict.fromkeys(CARRIED)] * 2


def test_rows_and_groups_in_order(tmp_path: Path) -> None:
    count = 1000
    table = pa.table(
        {"prompt": [f"p{i}" for i in range(count)], "n": list(range(count)), "l": [[i] for i in range(count)]}
    )
    rows = read(table, tmp_path / "p.parquet", row_group_size=300)
    assert [(row.prompts[0], row.metadata) for row in rows] == [(f"p{i}", {"n": i, "l": [i]}) for i in range(count)]


# ---- sizes -----------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pipeline.prompts.read import count_rows, read_prompts
from miga.errors import InputError

def peak_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024

before = peak_mb()
try:
    count_rows(sys.argv[1])
    rows = [type(row).__name__ + str(row.metadata) for row in read_prompts(sys.argv[1], seed=0, num_frames=9)]
    print(peak_mb() - before, *rows, sep="|")
except InputError as error:
    print(peak_mb() - before, error.message, sep="|")
"""


def large_table(kind: str) -> Any:
    """A table of up to a gigabyte that is a file of kilobytes."""
    mib = pa.array(["x" * (1 << 20)])
    texts = mib.take(pa.array([0] * 500))
    in_a_list = pa.ListArray.from_arrays(pa.array([0, 500], pa.int32()), texts)
    match kind:
        case "one text again and again":
            return pa.table({"prompt": texts})
        case "one large text":
            return pa.table({"prompt": ["x" * (100 << 20)]})
        case "texts of a list":
            return pa.table({"prompt": in_a_list})
        case "texts of a list beside":
            return pa.table({"prompt": ["a"], "c": in_a_list})
        case "a large text beside":
            return pa.table({"prompt": ["a"], "c": ["x" * (100 << 20)]})
        case "a list of numbers beside":
            return pa.table({"prompt": ["a"], "c": pa.array([bytes(20 << 20)]).cast(pa.binary()).view(pa.binary())})
        case _:
            nothing = pa.ListArray.from_arrays(pa.array([0, 20_000_000], pa.int32()), pa.nulls(20_000_000))
            return pa.table({"prompt": ["a"], "c": nothing})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("one text again and again", "PromptRow{}|PromptRow{}"),
        ("one large text", "column 'prompt' cannot be read: pages of"),
        ("texts of a list", "BadRow"),
        ("texts of a list beside", "PromptRow{'c': 'left out: 500 values of 524288000 bytes together'}"),
        ("a large text beside", "PromptRow{'c': 'left out: pages of"),
        ("a list of numbers beside", "PromptRow{'c': 'left out: 20971520 bytes, SHA-256"),
        ("a list of nothing beside", "PromptRow{'c': 'left out: its lists may hold 20000000 values in a row'}"),
    ],
)
def test_a_small_file_takes_little_memory(tmp_path: Path, kind: str, outcome: str) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(large_table(kind), path, compression="zstd")
    assert path.stat().st_size < 100_000
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, check=True, text=True)
    taken_mb, _, said = done.stdout.partition("|")
    assert outcome in said
    assert int(taken_mb) < 300


def test_repeating_texts_of_a_usual_size_are_read(tmp_path: Path) -> None:
    rows = read(pa.table({"prompt": ["a cat " * 1000] * 20_000}), tmp_path / "p.parquet")
    assert len(rows) == 20_000
    table = pa.table({"prompt": ["a cat " * 10_000] * 100})
    options = {"use_dictionary": False, "column_encoding": {"prompt": "DELTA_BYTE_ARRAY"}}
    assert len(read(table, tmp_path / "q.parquet", **options)) == 100


@pytest.mark.slow
def test_sizes_that_lie(tmp_path: Path) -> None:
    """Every number of the file's own summary, changed: whatever is said, no row too many, and no long wait."""
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [f"prompt {i}" for i in range(100)]}), path, compression="none")
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    refused = 0
    for at in range(len(data) - 8 - length, len(data) - 8):
        for value in (0x7F, data[at] ^ 0x02):
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                count = count_rows(str(path))
                assert count == sum(1 for _ in read_prompts(str(path), seed=0, num_frames=9))
            except InputError:
                refused += 1
    assert refused > length / 2


def test_a_number_of_rows_beyond_all_measure(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": pa.nulls(101_000_000, pa.string())}), path)
    with pytest.raises(InputError, match="says it has 101000000 rows"):
        count_rows(str(path))
