"""What a person sees: aligned tables, spans of time, progress lines."""

from __future__ import annotations

import json

import pytest

from factory import console
from factory.schema import Estimate


def test_table_aligns_numbers_right_and_text_left() -> None:
    text = console.table([{"judge": "verifier", "n": 120}, {"judge": "pairwise", "n": 7}])
    assert text.splitlines() == ["judge       n", "--------  ---", "verifier  120", "pairwise    7"]


def test_a_column_without_values_is_left_out_unless_asked_for() -> None:
    rows = [{"judge": "verifier", "fault": None}, {"judge": "rating", "fault": None}]
    assert console.table(rows).splitlines()[0] == "judge"
    assert console.table(rows, ["judge", "fault"]).splitlines()[2].split() == ["verifier", "-"]


def test_no_rows_are_said_to_be_none() -> None:
    assert console.table([]) == "(no rows)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (0.123456, "0.1235"),
        (Estimate(0.391, 0.312, 0.474), "0.391 [0.312, 0.474]"),
        ({"loss": 0.123456, "rule": "tie"}, "loss 0.1235, rule tie"),
        ({}, "{}"),
        ([1, "b"], '[1, "b"]'),
        ("x", "x"),
    ],
)
def test_show(value: object, text: str) -> None:
    assert console.show(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(41.2, "41 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_span(seconds: float, text: str) -> None:
    assert console.span(seconds) == text


def test_progress_ends_with_a_plain_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("candidates", 3) as counter:
        counter.advance(2, failed=1, tokens=10)
        counter.advance(1, reused=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("candidates: 3/3, 1 failed, 1 reused, ")
    assert captured.err.count("\n") == 1


def test_facts_leave_out_what_is_not_known() -> None:
    assert console.facts({"run": "x", "cost": None, "tokens": 12}) == "run     x\ntokens  12"
    assert console.facts({"tokens": 0, "dropped": {}, "warnings": [], "held": ()}) == "tokens  0"


def test_nothing_that_acts_on_a_terminal_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("reason: \x1b[2Jgone\nnext \u202eline")
    console.emit({}, as_json=False, text="name \x1b]0;title\x07\udcff\nnext")
    shown = capsys.readouterr()
    assert shown.err == "reason: \\x1b[2Jgone\nnext \\u202eline\n"
    assert shown.out == "name \\x1b]0;title\\x07\\udcff\nnext\n"


def test_json_of_any_text_can_be_written_and_read(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit({"name": "\udcff é \x1b"}, as_json=True)
    assert json.loads(capsys.readouterr().out.encode()) == {"name": "\udcff é \x1b"}
