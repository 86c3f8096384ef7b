"""Prompt files, mostly nasty ones: what is refused whole, what is refused row by row, and what comes through."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miga.errors import InputError
from pipeline.prompts import files as prompt_files
from pipeline.prompts import seen_ids
from pipeline.prompts.read import count_rows, read_prompts
from pipeline.rows import SEED_LIMIT, BadRow, PromptRow

Write = Callable[[str, Any], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file from bytes, text, or (for JSON lines) a list of values, and gives its path."""

    def write(name: str, content: Any) -> str:
        if isinstance(content, list):
            content = "".join(json.dumps(value) + "\n" for value in content)
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def read(path: str, **options: Any) -> list[PromptRow | BadRow]:
    rows = list(read_prompts(path, **({"seed": 0, "num_frames": 9} | options)))
    assert [row.index for row in rows] == list(range(len(rows)))
    assert count_rows(path) == len(rows) or "limit" in options
    return rows


def only_bad(rows: list[PromptRow | BadRow]) -> BadRow:
    """The one bad row; it must be between or beside good ones only."""
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert len(bad) == 1, rows
    return bad[0]


# ---- what comes through ----------------------------------------------------------------------------------------------


def test_txt_is_a_prompt_a_line(write: Write) -> None:
    rows = read(write("p.txt", "\ufeffa cat\r\n  two spaces kept \nlast without end"))
    assert [row.prompts for row in rows] == [("a cat",), ("  two spaces kept ",), ("last without end",)]
    assert [row.id for row in rows] == ["0", "1", "2"]
    assert rows[2].source == "p.txt:3"


def test_txt_blank_lines_are_rows_between_prompts_and_none_at_the_end(write: Write) -> None:
    rows = read(write("p.txt", "a\n\nb\n\n \n"))
    assert [type(row) for row in rows] == [PromptRow, BadRow, PromptRow]
    assert "p.txt:2: prompt is blank" in only_bad(rows).error


def test_jsonl_columns(write: Write) -> None:
    value = {"prompt": ["a", "b"], "id": "x", "seed": SEED_LIMIT - 1, "num_frames": 17, "negative_prompt": "", "tag": 1}
    (row,) = read(write("p.jsonl", [value]))
    assert row == PromptRow(
        index=0,
        id="x",
        prompts=("a", "b"),
        negative_prompt="",
        seed=SEED_LIMIT - 1,
        num_frames=17,
        metadata={"tag": 1},
        source="p.jsonl:1",
    )


def test_csv_with_quotes_line_ends_and_empty_cells(write: Write) -> None:
    text = '\ufeffprompt,seed,id,num_frames,mood\r\n"a, b ""c""\nd",7,k,17,gay\r\n\r\nplain,,,,\r\n'
    first, second = read(write("p.csv", text), seed=5)
    assert (first.prompts, first.seed, first.id, first.num_frames) == (('a, b "c"\nd',), 7, "k", 17)
    assert (second.seed, second.id, second.num_frames, second.metadata) == (6, "1", 9, {"mood": ""})
    assert first.source == "p.csv:2-3"


def test_parquet_with_lists_and_every_kind_of_metadata(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": pa.array([["a", "b"], ["c"]]),
            "seed": pa.array([SEED_LIMIT - 1, None], pa.uint64()),
            "score": [math.nan, math.inf],
            "blob": [b"\xff", None],
            "day": [dt.date(2024, 2, 29), None],
            "nested": [{"k": [1.5, math.nan]}, None],
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    first, second = read(str(tmp_path / "p.parquet"))
    assert first.prompts == ("a", "b")
    assert (first.seed, second.seed) == (SEED_LIMIT - 1, 1)
    expected = {"score": None, "blob": "/w==", "day": "2024-02-29", "nested": {"k": [1.5, None]}}
    assert first.metadata == expected
    assert second.metadata["score"] == "inf"
    json.dumps(first.metadata, allow_nan=False)


def test_parquet_strings_and_dictionaries(tmp_path: Path) -> None:
    table = pa.table({"prompt": pa.array(["a", "b", "a"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "p.parquet")
    assert [row.prompts for row in read(str(tmp_path / "p.parquet"))] == [("a",), ("b",), ("a",)]


@pytest.mark.parametrize(
    "prompt",
    ["\U0001f408\u200d\u2b1b on \x1b[31m red", "nul \x00 inside", "\u202eright to left", "x" * 10_000],
    ids=["emoji", "nul", "direction", "long"],
)
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv", "p.parquet"])
def test_odd_characters_survive(tmp_path: Path, write: Write, name: str, prompt: str) -> None:
    if name == "p.parquet":
        pq.write_table(pa.table({"prompt": [prompt]}), tmp_path / name)
        path = str(tmp_path / name)
    else:
        content = {"p.txt": prompt, "p.jsonl": [{"prompt": prompt}], "p.csv": f"prompt\n{prompt}\n"}[name]
        path = write(name, content)
    assert [row.prompts for row in read(path)] == [(prompt,)]


def test_seeds_follow_the_position_and_wrap(write: Write) -> None:
    rows = read(write("p.jsonl", [{"prompt": "a"}, {"prompt": "a", "seed": 3}, {"prompt": "a"}]), seed=SEED_LIMIT - 1)
    assert [row.seed for row in rows] == [SEED_LIMIT - 1, 3, 1]


def test_limit_counts_rows(write: Write) -> None:
    path = write("p.txt", "a\nb\nc\n")
    assert len(read(path, limit=2)) == 2
    assert count_rows(path, limit=2) == 2
    assert count_rows(path, limit=9) == 3


def test_rows_are_read_as_they_are_asked_for(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    read_lines, num_read = prompt_files._read_lines, itertools.count()

    def counted(path: str, file: Any) -> Any:
        for line in read_lines(path, file):
            next(num_read)
            yield line

    monkeypatch.setattr(prompt_files, "_read_lines", counted)
    rows = read_prompts(write("p.txt", "a\n" * 10_000), seed=0, num_frames=9)
    assert [next(rows).index for _ in range(3)] == [0, 1, 2]
    assert next(num_read) == 3


# ---- files refused whole ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "holds no rows"),
        ("p.txt", b"\n \n\n", "holds no rows"),
        ("p.jsonl", b"", "holds no rows"),
        ("p.csv", b"", "holds no rows"),
        ("p.csv", b"prompt,seed\n", "holds no rows"),
        ("p.csv", b"text,seed\na,1\n", "no column 'prompt'; its columns: 'text', 'seed'"),
        ("p.csv", b"Prompt\na\n", "rename 'Prompt' to 'prompt'"),
        ("p.csv", b"prompt;seed\na;1\n", "something else than commas"),
        ("p.csv", b"prompt,,seed\na,b,1\n", "ragged: column 2 of 3"),
        ("p.csv", b"prompt,prompt\na,b\n", "two columns are called 'prompt'"),
        ("p.csv", b"pr\xffompt\na\n", "header is not UTF-8"),
        ("p.jsonl", b'{"text": "a"}\n{"caption": "b"}\n', "its columns: 'text', 'caption'"),
        ("p.txt", "a cat\n".encode("utf-16"), "UTF-16"),
        ("p.csv", "prompt\na cat\n".encode("utf-16-le"), "UTF-16"),
        ("p.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), "UTF-16"),
        ("p.parquet", b"", "no Parquet file"),
        ("p.parquet", b"PAR1 and then nothing PAR1", "no Parquet file"),
        ("p.json", b"[]", "call it .jsonl"),
        ("p.tsv", b"prompt\n", "unknown kind of prompt file '.tsv'"),
        ("prompts", b"a", "unknown kind"),
    ],
)
def test_unusable_files(write: Write, name: str, content: bytes, message: str) -> None:
    path = write(name, content)
    with pytest.raises(InputError) as caught:
        read_prompts(path, seed=0, num_frames=9)
    assert message in str(caught.value)
    assert path in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["none.txt", "none.parquet", "none"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(str(tmp_path / name), seed=0, num_frames=9)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(str(tmp_path), seed=0, num_frames=9)
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(str(tmp_path / "x.parquet"), seed=0, num_frames=9)


def test_unknown_protocol() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts("bogus://bucket/p.txt", seed=0, num_frames=9)


def test_parquet_without_the_column_or_with_numbers_in_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="'caption'"):
        read_prompts(str(tmp_path / "a.parquet"), seed=0, num_frames=9)
    pq.write_table(pa.table({"prompt": [1]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="int64, not text"):
        read_prompts(str(tmp_path / "b.parquet"), seed=0, num_frames=9)
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="no rows"):
        read_prompts(str(tmp_path / "c.parquet"), seed=0, num_frames=9)


def test_parquet_broken_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [f"prompt {i}" for i in range(5000)]}), path, compression="snappy")
    data = bytearray(path.read_bytes())
    data[40:20_000] = b"\xff" * (20_000 - 40)
    path.write_bytes(data)
    with pytest.raises(InputError, match="broken"):
        list(read_prompts(str(path), seed=0, num_frames=9))


# ---- rows refused ----------------------------------------------------------------------------------------------------

NO_VAE = "num_frames 10 cannot be made: the VAE makes 1 + 4k frames; the nearest is 9 or 13"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "prompt is blank"),
        ({"prompt": " \t\n\x00\x1b\u200b\u2060\ufeff\u3164"}, "shows nothing"),
        ({"prompt": None}, "missing (null), not text"),
        ({"prompt": 3}, "the number 3, not text"),
        ({"prompt": {"a": 1}}, "an object, not text"),
        ({"prompt": []}, "an empty list"),
        ({"prompt": ["a", " "]}, "prompt 2 of 2 is blank"),
        ({"prompt": ["a", 1]}, "prompt 2 of 2 is the number 1"),
        ({"text": "a"}, "no 'prompt', only 'text'"),
        ({}, "no 'prompt', only nothing"),
        ({"prompt": "a", "num_frames": 0}, "num_frames is 0; ask for at least one"),
        ({"prompt": "a", "num_frames": -4}, "num_frames is -4"),
        ({"prompt": "a", "num_frames": 8.5}, "the number 8.5, not a whole number"),
        ({"prompt": "a", "num_frames": "9"}, "num_frames is '9', not a whole number"),
        ({"prompt": "a", "num_frames": True}, "true/false, not a whole number"),
        ({"prompt": "a", "num_frames": 10}, NO_VAE),
        ({"prompt": "a", "num_frames": 10**30}, "is more than"),
        ({"prompt": "a", "seed": -1}, "seed -1 is not in 64 bits; use 0 to 18446744073709551615"),
        ({"prompt": "a", "seed": SEED_LIMIT}, "is not in 64 bits"),
        ({"prompt": "a", "seed": 10**4000}, "(4001 digits) is not in 64 bits"),
        ({"prompt": "a", "seed": 1.5}, "seed is the number 1.5, not a whole number"),
        ({"prompt": "a", "seed": False}, "true/false"),
        ({"prompt": "a", "negative_prompt": 1}, "negative_prompt is the number 1"),
        ({"prompt": "a", "id": 1.5}, "id is the number 1.5"),
        ({"prompt": "a", "id": " "}, "id is blank"),
        ({"prompt": "a \ud83d"}, "lone surrogate \\ud83d) at position 3"),
        ({"prompt": "a", **{f"{i:0100}": 1 for i in range(12_000)}}, "the 12000 columns to carry along are"),
        ({"prompt": "forbidden"}, "'forbidden': not that one"),
        ("text", "a JSON str, not an object"),
        (["a"], "a JSON list, not an object"),
    ],
)
def test_bad_rows_are_refused_with_reason_and_the_others_made(write: Write, row: Any, message: str) -> None:
    path = write("p.jsonl", [{"prompt": "before"}, row, {"prompt": "after"}])
    rows = read(
        path,
        check_num_frames=lambda n: None if n % 4 == 1 else NO_VAE,
        check_prompt=lambda text: "not that one" if text == "forbidden" else None,
    )
    assert len(rows) == 3
    bad = only_bad(rows)
    assert bad.index == 1
    assert bad.source == "p.jsonl:2"
    assert bad.error.startswith("p.jsonl:2: ")
    assert message in bad.error
    assert bad.error_type == "BadRowError"
    json.dumps([bad.error, bad.id, bad.prompts, bad.metadata], allow_nan=False).encode()
    "".join((bad.error, bad.id, *bad.prompts)).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', "invalid JSON"),
        (b"not json", "invalid JSON"),
        (b'{"prompt": "caf\xe9"}', "invalid UTF-8: byte 0xe9 at byte 16"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "seed is a number of 5000 digits, not a whole number"),
        (b"x" * (prompt_files.MAX_LINE_BYTES + 5), "longer than 4 MiB"),
    ],
)
def test_bad_lines_of_jsonl(write: Write, line: bytes, message: str) -> None:
    rows = read(write("p.jsonl", b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}'))
    assert message in only_bad(rows).error
    assert rows[2].prompts == ("b",)


def test_bad_first_lines_of_jsonl_do_not_condemn_the_file(write: Write) -> None:
    rows = read(write("p.jsonl", b'broken\n{"text": "a"}\n[]\n{"prompt": "b"}\n{"x": 1}\n'))
    assert [type(row) for row in rows] == [BadRow, BadRow, BadRow, PromptRow, BadRow]


def test_invalid_utf8_in_txt_and_csv(write: Write) -> None:
    assert "0xff at byte 3" in only_bad(read(write("p.txt", b"a\nb \xff\nc\n"))).error
    bad = only_bad(read(write("p.csv", b"prompt,x\na,1\nb,\xff\nc,3\n")))
    assert "p.csv:3: invalid UTF-8: byte 0xff" in bad.error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a,1,2", "the row has 3 cells where the header has 2 (prompt, seed)"),
        (b"a", "the row has 1 cells"),
        (b'"a"b,1', "cannot be split"),
        (b"a,1.5", "seed is '1.5', not a whole number"),
        (b"a,-1", "not in 64 bits"),
        (b"a," + b"9" * 50, "not in 64 bits"),
        (b" ,1", "prompt is blank"),
        (b"y" * (prompt_files.MAX_LINE_BYTES + 5), "longer than 4 MiB"),
        (b'"' + b"y" * 140_000 + b'",1', "never ends"),
    ],
)
def test_bad_rows_of_csv(write: Write, line: bytes, message: str) -> None:
    rows = read(write("p.csv", b"prompt,seed\nbefore,1\n" + line + b"\nafter,2\n"))
    bad = only_bad(rows)
    assert message in bad.error
    assert bad.error.startswith("p.csv:3: ")
    assert rows[2].prompts == ("after",)


def test_csv_quote_that_never_ends_costs_no_more_memory_than_a_cell(write: Write) -> None:
    rows = read(write("p.csv", 'prompt\nfirst\n"open' + "\na longer line" * 12_000 + "\n"))
    assert rows[0].prompts == ("first",)
    assert "never ends" in rows[1].error
    assert len(rows) > 2, "reading goes on after it"


def test_parquet_with_invalid_utf8_in_one_row(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    pq.write_table(pa.table({"prompt": column}), tmp_path / "p.parquet")
    rows = read(str(tmp_path / "p.parquet"))
    bad = only_bad(rows)
    assert bad.error.startswith("p.parquet:2: invalid UTF-8")
    assert rows[2].prompts == ("c",)


# ---- whole numbers written as floats ---------------------------------------------------------------------------------


def test_whole_numbers_that_pandas_wrote_as_floats(write: Write, tmp_path: Path) -> None:
    """A column of whole numbers with a gap is one of floats in pandas, and every format gets it so."""
    jsonl = '{"prompt": "a", "seed": 42.0, "num_frames": 45.0, "id": 7.0}\n{"prompt": "b", "seed": NaN, "id": null}\n'
    csv = "prompt,seed,num_frames,id\na,42.0,45.0,7.0\nb,,nan,\n"
    said = {"seed": 42, "num_frames": 45, "id": 7}
    floats = {name: pa.array([float(value), None]) for name, value in said.items()}
    gaps = {name: pa.array([float(value), math.nan]) for name, value in said.items()}
    tenths = {name: pa.array([value, None], pa.decimal128(10, 1)) for name, value in said.items()}
    for number, columns in enumerate((floats, gaps, tenths)):
        pq.write_table(pa.table({"prompt": ["a", "b"], **columns}), tmp_path / f"{number}.parquet")
    paths = [write("p.jsonl", jsonl), write("p.csv", csv), *(str(tmp_path / f"{i}.parquet") for i in range(3))]
    for path in paths:
        first, second = read(path)
        assert isinstance(first, PromptRow), first
        assert isinstance(second, PromptRow), second
        assert (first.seed, first.num_frames, first.id) == (42, 45, "7")
        assert (second.seed, second.num_frames, second.id) == (1, 9, "1")


@pytest.mark.parametrize(
    ("cell", "seed"),
    [("42", 42), ("42.", 42), ("42.000", 42), ("+42.0", 42), ("1e3", 1000), ("4.2E1", 42), (" 7.0 ", 7),
     ("9007199254740991.0", 2**53 - 1), ("18446744073709551615", 2**64 - 1)],
)  # fmt: skip
def test_whole_numbers_of_a_csv(write: Write, cell: str, seed: int) -> None:
    (row,) = read(write("p.csv", f"prompt,seed\na,{cell}\n"))
    assert isinstance(row, PromptRow), row
    assert row.seed == seed


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1.5", "not a whole number"),
        ("1.00000000000000000000000000001", "not a whole number"),
        ("1e-1", "not a whole number"),
        ("1e999", "not a whole number"),
        ("inf", "not a whole number"),
        ("0x10", "not a whole number"),
        ("1_000", "not a whole number"),
        ("1.8446744073709552e+19", "a float that stands for many whole numbers"),
        ("9007199254740992.0", "a float that stands for many whole numbers"),
        ("1.0e16", "a float that stands for many whole numbers"),
    ],
)
def test_what_is_no_whole_number_or_cannot_be_told(write: Write, value: str, message: str) -> None:
    bad = only_bad(read(write("p.csv", f"prompt,seed\na,1\nb,{value}\n")))
    assert "p.csv:3: seed is " in bad.error
    assert message in bad.error


@pytest.mark.parametrize("value", [1.5, 2.0**53, 1e300, math.inf, True, "42"])
def test_what_is_no_whole_number_in_json(write: Write, value: Any) -> None:
    bad = only_bad(read(write("p.jsonl", [{"prompt": "a"}, {"prompt": "b", "seed": value}])))
    assert "seed is " in bad.error


# ---- text from other systems -----------------------------------------------------------------------------------------

ENDS = ["\n", "\r\n", "\r", "\r\r\n"]


@pytest.mark.parametrize("end", ENDS, ids=["LF", "CRLF", "CR", "CRCRLF"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "open"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_lines_of_every_system(write: Write, end: str, last: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_files, "_CHUNK_BYTES", chunk)
    for name, lines in {
        "p.txt": ["a cat", "a dog", "an owl"],
        "p.csv": ["prompt,tag", "a cat,1", "a dog,2", "an owl,3"],
        "p.jsonl": [json.dumps({"prompt": text}) for text in ("a cat", "a dog", "an owl")],
    }.items():
        path = write(name, (end.join(lines) + (end if last else "")).encode())
        assert [row.prompts for row in read(path)] == [("a cat",), ("a dog",), ("an owl",)]


def test_line_ends_by_turns(write: Write) -> None:
    assert [row.prompts[0] for row in read(write("p.txt", b"a\rb\r\nc\nd"))] == ["a", "b", "c", "d"]
    (row,) = read(write("p.csv", b'prompt\r"old\rlines\nkept"\r'))
    assert row.prompts == ("old\rlines\nkept",)


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1e"])
def test_nothing_else_ends_a_line(write: Write, sign: str) -> None:
    text = f"before{sign}after"
    for name, content in {
        "p.txt": text,
        "p.csv": f"prompt\n{text}\n",
        "p.jsonl": json.dumps({"prompt": text}, ensure_ascii=sign < " ") + "\n",
    }.items():
        assert [row.prompts for row in read(write(name, content))] == [(text,)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_where_files_were_joined(write: Write, end: str) -> None:
    jsonl = f'\ufeff{{"prompt": "a"}}{end}\ufeff{{"prompt": "b"}}{end}'
    assert [row.prompts for row in read(write("p.jsonl", jsonl))] == [("a",), ("b",)]
    assert [row.prompts for row in read(write("p.txt", f"\ufeffa{end}\ufeffb{end}"))] == [("a",), ("b",)]
    rows = read(write("p.csv", f"\ufeffprompt{end}a{end}\ufeffprompt{end}b{end}"))
    assert "the header stands here again" in only_bad(rows).error
    assert [row.prompts for row in rows if isinstance(row, PromptRow)] == [("a",), ("b",)]


def test_files_joined_without_a_line_end_make_no_video_of_two_prompts(write: Write) -> None:
    for name, content in {
        "p.txt": "a\nb\ufeffc\nd\n",
        "p.jsonl": '{"prompt": "a"}\n{"prompt": "b"}\ufeff{"prompt": "c"}\n{"prompt": "d"}\n',
        "p.csv": "prompt\na\nb\ufeffprompt\nd\n",
    }.items():
        rows = read(write(name, content))
        assert "a byte order mark stands within the line" in only_bad(rows).error
        assert [row.prompts for row in rows if isinstance(row, PromptRow)] == [("a",), ("d",)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_other_encodings_are_named(write: Write, encoding: str, name: str) -> None:
    lines = {"p.txt": "a cat and a 犬\n", "p.csv": "prompt\na cat and a 犬\n", "p.jsonl": '{"prompt": "a 犬"}\n'}
    with pytest.raises(InputError, match="UTF-16 or UTF-32"):
        read_prompts(write(name, lines[name].encode(encoding)), seed=0, num_frames=9)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def test_a_key_said_twice(write: Write) -> None:
    bad = only_bad(read(write("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "seed": 1, "prompt": "c"}\n')))
    assert bad.error == "p.jsonl:2: the object says a key twice; write every key once"
    (row,) = read(write("p.jsonl", '{"prompt": "a", "tags": {"k": 1, "k": [2, {"k": 3}]}}\n'))
    assert row.metadata == {"tags": '{"k": 1, "k": [2, {"k": 3}]}'}


def test_columns_that_travel_along_never_keep_a_row_from_being_made(write: Write) -> None:
    deep = "[" * 40 + "]" * 40
    line = (
        '{"prompt": "a", "huge": 1e999, "digits": ' + "9" * 5000 + ', "ten": ' + "9" * 30 + ', "half": "x\\ud800", '
        '"\\udc00": 1, "nan": NaN, "inf": -Infinity, "deep": ' + deep + ', "in": [1e999, "\\ud83d"], '
        '"big": "' + "x" * (2 << 20) + '"}\n'
    )
    (row,) = read(write("p.jsonl", line))
    assert isinstance(row, PromptRow), row
    big = hashlib.sha256(json.dumps("x" * (2 << 20)).encode()).hexdigest()
    inner, depth = row.metadata.pop("deep"), 0
    while isinstance(inner, list):
        (inner,), depth = inner, depth + 1
    assert 30 < depth < 40
    assert inner == deep[depth:-depth]
    assert row.metadata == {
        "huge": "1e999",
        "digits": "9" * 5000,
        "ten": 10**30 - 1,
        "half": "x\\ud800",
        "\\udc00": 1,
        "nan": None,
        "inf": "-inf",
        "in": ["1e999", "\\ud83d"],
        "big": f"left out: {(2 << 20) + 2} bytes of JSON, SHA-256 {big}",
    }
    json.dumps(row.metadata, allow_nan=False, ensure_ascii=False).encode()


def test_two_names_that_become_one_are_both_kept(write: Write) -> None:
    (row,) = read(write("p.jsonl", '{"prompt": "a", "\\\\udc00": 1, "\\udc00": 2}\n'))
    assert row.metadata == {"\\udc00": 1, "\\udc00_": 2}


def test_a_header_of_two_million_columns_is_refused_soon(write: Write) -> None:
    with pytest.raises(InputError, match="ragged"):
        read_prompts(write("p.csv", b"," * 2_000_000 + b"\n"), seed=0, num_frames=9)


# ---- ids -------------------------------------------------------------------------------------------------------------


def test_second_use_of_an_id_is_bad_and_names_the_first(write: Write) -> None:
    rows = read(write("p.jsonl", [{"prompt": "a", "id": "x"}, {"prompt": "b"}, {"prompt": "c", "id": "x"}]))
    bad = only_bad(rows)
    assert bad.index == 2
    assert "id 'x' is the id of row 0 already" in bad.error
    assert bad.prompts == ("c",)


@pytest.mark.parametrize("ids", [[None, 0], ["1", None], [7, "7"]])
def test_given_and_default_ids_do_not_clash(write: Write, ids: list[Any]) -> None:
    rows = read(write("p.jsonl", [{"prompt": "a", "id": id_} for id_ in ids]))
    assert "is the id of row 0 already" in only_bad(rows).error


def test_many_ids_are_remembered_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_ids, "_RECENT", 64)
    seen = seen_ids.SeenIds()
    for row in range(5000):
        assert seen.first_row(f"id-{row}") is None
        seen.add(f"id-{row}", row)
    assert [seen.first_row(f"id-{row}") for row in range(5000)] == list(range(5000))
    assert len(seen._sorted) < 12
