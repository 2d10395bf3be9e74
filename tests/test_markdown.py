"""Markdown: foreign text stays text, and a report tells in it what the page tells."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from markdown_it import MarkdownIt
from reported_run import HOSTILE, preference, run_report

from factory.report import PairToRead, markdown

PARSED = MarkdownIt("commonmark", {"html": True}).enable("table")


def kinds(source: str) -> set[str]:
    """The kinds of token that a Markdown reader sees, also inside of lines."""
    found = set()
    for token in PARSED.parse(source):
        found.add(token.type)
        found |= {inner.type for inner in token.children or []}
    return found


@given(st.text())
def test_a_line_of_foreign_text_has_no_markup(said: str) -> None:
    seen = kinds(f"x {markdown.text(said)}")
    assert seen <= {"paragraph_open", "inline", "text", "paragraph_close", "text_special"}


@given(st.text())
def test_a_fence_is_closed_by_nothing_within(said: str) -> None:
    (token,) = PARSED.parse(markdown.fenced(said))
    assert token.type == "fence"


def test_a_table_keeps_its_cells() -> None:
    source = markdown.table(["a", "b"], [["x | y", "<b>"], ["line\nbreak", "`code`"]])
    cells = [token.content for token in PARSED.parse(source) if token.type == "inline"]
    assert cells == ["a", "b", "x | y", "\\<b\\>", "line break", "\\`code\\`"]


def test_the_report_tells_story_tables_pairs_and_where_it_comes_from() -> None:
    told = markdown.render(run_report())
    for words in ("# r\n", "## Rounds", "## Judges", "## Drawn by chance", "## Decisions", "## Recipe"):
        assert words in told
    assert "39.0% (30.0 to 48.8)" in told
    assert "verifier: chosen (90%)" in told
    assert told == markdown.render(run_report())


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_and_names_make_no_html(said: str) -> None:
    pair = PairToRead("drawn", preference(1, chosen=said, rejected=said, asked=said))
    told = markdown.render(replace(run_report(pairs=[pair]), run=said))
    assert not {"html_block", "html_inline", "link_open", "image"} & kinds(told)
    assert "\x1b" not in told
