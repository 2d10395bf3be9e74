"""Panels that cannot work are refused before anything is asked."""

from __future__ import annotations

import pytest
from labelled import Program, fill, first_wins

from factory.faults import FactoryError
from factory.judges.pairwise import PairwiseJudge
from factory.labelling import PanelMember, label
from factory.schema import Judgment
from factory.store import Store


@pytest.mark.parametrize(
    ("panel", "told"),
    [
        ([], "a panel needs judges"),
        ([PanelMember("x", Program()), PanelMember("x", Program())], "different names"),
        ([PanelMember("x", PairwiseJudge(), None)], "no engine was given"),
        ([PanelMember("x", PairwiseJudge(), first_wins(), "verifier_ties")], "needs the scores of a pointwise judge"),
        ([PanelMember("x", PairwiseJudge(), first_wins(), "sum")], "no choice of matchups named 'sum'"),
    ],
)
def test_a_panel_that_cannot_work_is_told_before_anything_is_asked(
    store: Store, panel: list[PanelMember], told: str
) -> None:
    fill(store)
    with pytest.raises(FactoryError, match=told):
        label(store, panel, run="r")
    assert store.rows(Judgment) == []


def test_members_by_name() -> None:
    member = PanelMember.of("pairwise", name="judge", options={"ties": True}, engine=first_wins())
    assert isinstance(member.judge, PairwiseJudge)
    assert (member.name, member.judge.name, member.judge.ties) == ("judge", "judge", True)
    with pytest.raises(FactoryError, match=r"(?s)unexpected keyword argument 'tie'.*options are constitution"):
        PanelMember.of("pairwise", options={"tie": True})
    with pytest.raises(FactoryError, match="did you mean 'pairwise'"):
        PanelMember.of("pairwsie")


def test_no_candidates_is_told(store: Store) -> None:
    with pytest.raises(FactoryError, match="there are no candidates with run r"):
        label(store, [PanelMember("x", Program())], run="r")
