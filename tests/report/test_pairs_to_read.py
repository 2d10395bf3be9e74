"""Which pairs a report shows to be read, and what each judge said of them."""

from __future__ import annotations

from reported_run import AT, preference

from factory import report as reports
from factory.report import (
    PairToRead,
    pairs_to_read,
)
from factory.schema import (
    Judgment,
    digest,
)
from factory.store import Store


def test_pairs_to_read_are_certain_disputed_and_drawn_by_hash() -> None:
    """Of 50 pairs five are disputed by two of three judges, and four are the surest by margin."""
    pairs = [preference(i, margin=i / 100, agreement=1.0) for i in range(45)]
    pairs += [preference(100 + i, judges=3, agreement=1 / 3, margin=0.2) for i in range(5)]
    found = pairs_to_read(pairs, 14)
    by = {why: [shown.pair for shown in found if shown.why == why] for why in ("certain", "disputed", "drawn")}
    assert {pair.judges for pair in by["disputed"]} == {3}
    assert [pair.margin for pair in by["certain"]] == [0.44, 0.43, 0.42, 0.41]
    assert {why: len(group) for why, group in by.items()} == {"certain": 4, "disputed": 4, "drawn": 6}
    assert len({shown.pair.key for shown in found}) == 14
    assert pairs_to_read(pairs[::-1], 14) == found
    assert [pair.margin for pair in by["drawn"]] != sorted((pair.margin for pair in pairs), reverse=True)[4:10]


def test_few_pairs_are_all_shown_once() -> None:
    pairs = [preference(i, judges=1, agreement=1.0) for i in range(3)]
    assert sorted(shown.pair.key for shown in pairs_to_read(pairs)) == sorted(pair.key for pair in pairs)
    assert pairs_to_read([]) == []


def judged(judge: str, better: str, worse: str, p_better: float) -> Judgment:
    a, b = sorted((better, worse))
    return Judgment(
        key=digest(judge, better, worse), run="r", round=1, judge=judge, kind="pairwise", prompt_key=digest(0),
        candidate_a=a, candidate_b=b, shown_first=None, verdict="a" if better == a else "b",
        p_a=p_better if better == a else 1 - p_better, at=AT,
    )  # fmt: skip


def test_a_pair_is_shown_with_what_every_judge_said_of_it(store: Store) -> None:
    chosen, rejected = digest(0, "c"), digest(0, "r")
    store.append("judgments", [judged("strict", chosen, rejected, 0.9), judged("kind", rejected, chosen, 0.7)])
    (shown,) = reports.with_votes(store, "r", [PairToRead("disputed", preference(0))])
    assert {vote.judge: vote.says for vote in shown.votes} == {"strict": "chosen", "kind": "rejected"}
    assert {vote.judge: round(vote.p_chosen, 6) for vote in shown.votes} == {"strict": 0.9, "kind": 0.3}
