from __future__ import annotations

import csv
import io
import json
from datetime import date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from factory.faults import FactoryError
from factory.query.render import FORMS, as_text, render

DATA = pa.table({
    "name": ["short", "a, \"quoted\"\nline", None],
    "n": pa.array([1, None, 300], pa.int64()),
    "x": [0.123456789, float("nan"), 1e20],
    "m": [[{"role": "user", "content": "é"}], [], None],
    "at": [datetime(2026, 1, 2, 3, 4, 5), None, None],
    "ok": [True, False, None],
})  # fmt: skip


def test_json_has_one_object_a_line() -> None:
    text = render(DATA, "json").decode()
    assert len(text.splitlines()) == 3
    assert json.loads(text)[1] == {
        "name": 'a, "quoted"\nline', "n": None, "x": None, "m": [], "at": None, "ok": False,
    }  # fmt: skip
    assert json.loads(text)[0]["m"] == [{"role": "user", "content": "é"}]
    assert json.loads(text)[0]["at"] == "2026-01-02T03:04:05"
    assert json.loads(render(DATA.slice(0, 0), "json")) == []


def test_jsonl_is_the_json_a_line_each() -> None:
    lines = render(DATA, "jsonl").decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == json.loads(render(DATA, "json"))
    assert (lines[-1], render(DATA.slice(0, 0), "jsonl")) == ("", b"")


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(render(DATA, "csv").decode(), newline="")))
    assert rows[1]["name"] == 'a, "quoted"\nline'
    assert rows[0] == {"name": "short", "n": "1", "x": "0.123456789", "at": "2026-01-02T03:04:05", "ok": "true",
                       "m": '[{"role": "user", "content": "é"}]'}  # fmt: skip
    assert rows[2]["name"] == ""


def test_parquet_reads_back() -> None:
    data = DATA.drop_columns(["x"])  # NaN equals nothing
    assert pq.read_table(pa.BufferReader(render(data, "parquet")), page_checksum_verification=True).equals(data)


def test_table_lines_up() -> None:
    data = pa.table({"judge": ["verifier", "llm"], "count": [1200, 7], "rate": [0.123456789, 2.0]})
    assert as_text(data) == (
        "judge     count      rate\n"
        "--------  -----  --------\n"
        "verifier   1200  0.123457\n"
        "llm           7         2\n"
    )  # fmt: skip
    assert as_text(data.slice(0, 0)) == "judge  count  rate\n-----  -----  ----\n"


def test_a_table_is_narrowed_to_the_terminal() -> None:
    data = pa.table({"key": ["abcdef"], "text": ["word " * 50], "more": ["other " * 10]})
    lines = as_text(data, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert "…" in lines[2]
    assert lines[2].startswith("abcdef  word word")
    assert len(as_text(data, 5).splitlines()[2]) == 6 + 2 + 8 + 2 + 8  # never narrower than can be read


def test_broad_characters_take_two_columns() -> None:
    lines = as_text(pa.table({"a": ["日本語", "e\u0301x", "x"], "b": ["1", "2", "3"]})).splitlines()
    assert lines[2:] == ["日本語  1", "e\u0301x      2", "x       3"]


@given(st.text(max_size=20))
def test_no_text_of_a_model_reaches_the_terminal_as_a_command(text: str) -> None:
    shown = as_text(pa.table({"t": pa.array([text.encode("utf-8", "replace").decode()])}))
    assert len(shown.splitlines()) == 3
    assert all(c.isprintable() for c in shown.replace("\n", ""))


def test_escapes_are_shown() -> None:
    assert "\\x1b[2Jgone\\u202e\\n" in as_text(pa.table({"t": ["\x1b[2Jgone\u202e\n"]}))


def test_columns_of_the_same_name_are_told_apart() -> None:
    data = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "a_2"])
    assert json.loads(render(data, "json")) == [{"a": 1, "a_2": 2, "a_2_2": 3}]
    assert pq.read_table(pa.BufferReader(render(data, "parquet"))).column_names == ["a", "a_2", "a_2_2"]


def test_odd_types_have_json() -> None:
    data = pa.table({
        "d": pa.array([Decimal("3"), Decimal("2.50")], pa.decimal128(5, 2)),
        "day": [date(2026, 1, 2), None],
        "span": [timedelta(hours=1), None],
        "raw": [b"\x00\xff", None],
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    })  # fmt: skip
    assert json.loads(render(data, "json"))[0] == {
        "d": 3, "day": "2026-01-02", "span": "1:00:00", "raw": "00ff", "map": [["k", 1]],
    }  # fmt: skip
    assert json.loads(render(data, "json"))[1]["d"] == 2.5


def test_a_wrong_form_is_named() -> None:
    assert FORMS == ("table", "json", "jsonl", "csv", "parquet")
    with pytest.raises(FactoryError, match="did you mean 'json'"):
        render(DATA, "jsno")
