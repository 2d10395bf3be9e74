"""What a person sees: aligned tables, spans of time, progress lines."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys

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
        (Estimate(0.391, math.nan, math.nan), "0.391"),
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


def test_a_total_grows_with_what_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("judgments") as counter:
        console.expect(counter, 3)
        console.expect(counter, 2)
        counter.advance(4)
    assert capsys.readouterr().err.startswith("judgments: 4/5, ")


def test_a_total_that_was_passed_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("answers", 2) as counter:
        counter.advance(3)
    assert capsys.readouterr().err.startswith("answers: 3, ")


def test_cost_is_counted_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("answers", 2) as counter:
        console.pay(counter, 0.5)
        console.pay(counter, None)
        console.pay(counter, 0.75)
        counter.advance(2)
    assert "$1.25" in capsys.readouterr().err


def test_a_progress_that_counts_neither_is_left_alone() -> None:
    class Plain:
        def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
            raise AssertionError

    console.expect(Plain(), 3)
    console.pay(Plain(), 0.5)
    console.expect(None, 3)


def on_a_terminal(code: str) -> str:
    """What a process writes whose stdout and stderr are a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        seen += data
    os.close(ours)
    assert process.wait(60) == 0, seen
    return seen.decode()


BARS = """
from factory import console
console.LIVE_SECONDS = 0
with console.progress("first \x1b]0;x [bold]", 4) as one:
    for _ in range(2):
        one.advance(1, tokens=50)
        console.note("a note between")
    with console.progress("second") as other:
        console.expect(other, 8)
        other.advance(3, failed=1)
"""


def test_bars_on_a_terminal_stand_together_and_end_as_plain_lines() -> None:
    seen = on_a_terminal(BARS)
    assert "a note between" in seen
    assert "\x1b]0;x" not in seen  # what would set the terminal's title
    assert "first \\x1b]0;x [bold]: 2/4" in seen
    assert "second: 3/8, 1 failed" in seen
    assert "━" in seen or "╸" in seen


WATCH = """
from factory import console
said = iter([("one", False), ("two", False), ("three", True)])
console.watch(lambda: next(said), 0.01)
"""


def test_a_watch_draws_in_place_on_a_terminal() -> None:
    seen = on_a_terminal(WATCH)
    assert [word in seen for word in ("one", "two", "three")] == [True] * 3
    assert "\x1b[2K" in seen or "\x1b[1A" in seen


def test_a_watch_prints_changes_elsewhere_and_ends_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    said = iter([("one", False), ("one", False), ("two", False), ("three", True)])
    console.watch(lambda: next(said), 0)
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_an_interrupt_ends_a_watch_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    def look() -> tuple[str, bool]:
        raise KeyboardInterrupt

    console.watch(look, 0)
    assert capsys.readouterr() == ("", "")
