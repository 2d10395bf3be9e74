"""Judges that vote without a model: kept under their name in the panel, asked again where they failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from labelled import Program, fill, panel_of

from factory import verdicts
from factory.labelling import PanelMember, judging, label
from factory.schema import Judgment, Matchup
from factory.store import Store


def test_votes_are_kept_under_the_panels_name_and_not_asked_again(store: Store) -> None:
    fill(store, failed=True)
    report, rows = panel_of(store, PanelMember("words", Program()))
    assert (report.judgments, report.verdicts, report.failures) == (10, 9, {"candidate_failed": 1})
    assert {(row.run, row.round, row.judge) for row in rows} == {("r", 0, "words")}
    again, after = panel_of(store, PanelMember("words", Program(breaks_on="answer")))
    assert (again.judgments, again.verdicts) == (0, 9)
    assert after == rows


def test_votes_from_before_are_read_once_whatever_the_number_of_parts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a judge of many answers reads all that it has said so far again for each part."""
    monkeypatch.setattr(judging, "AT_ONCE", 2)
    fill(store, prompts=4)
    panel_of(store, PanelMember("words", Program(breaks_on="answer 1 x")))
    reads: list[str] = []
    real = Store.table

    def table(self: Store, name: str, *more: Any, **others: Any) -> pa.Table:
        reads.append(name)
        return real(self, name, *more, **others)

    monkeypatch.setattr(Store, "table", table)
    report = label(store, [PanelMember("words", Program())], run="r")
    assert (report.judges[0].verdicts, report.judges[0].judgments) == (12, 2)
    assert reads.count("judgments") == 2


def test_a_vote_that_raises_fails_its_row_alone_and_is_asked_again(store: Store) -> None:
    fill(store)
    report, rows = panel_of(store, PanelMember("words", Program(breaks_on="answer 1 x")))
    assert report.failures == {"judge_error": 2}
    assert report.verdicts == 7
    again, rows = panel_of(store, PanelMember("words", Program()))
    assert (again.failures, again.verdicts, again.judgments) == ({}, 9, 2)
    assert {row.failure for row in verdicts.latest(rows)} == {None}


def test_a_silent_judge_has_failed(store: Store) -> None:
    fill(store, prompts=1, answers=1)

    class Silent(Program):
        def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
            return iter(())

    report, _ = panel_of(store, PanelMember("silent", Silent()))
    assert report.failures == {"no_vote": 1}
