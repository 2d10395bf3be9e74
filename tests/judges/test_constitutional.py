"""The constitutional judge: principles drawn for each pair, both orders by the same one, soft labels, clamped after
reasoning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from judged import completed, matchup_of
from store_rows import candidate, prompt

from factory import verdicts
from factory.engines.scripted import Rule, ScriptedEngine
from factory.faults import ConfigError, FactoryError
from factory.judges import judges
from factory.judges.constitutional import ConstitutionalJudge
from factory.judges.pairwise import PairwiseJudge
from factory.judges.rubric import load
from factory.labelling import PanelMember, label
from factory.schema import Judgment, Matchup, Reading
from factory.store import Store

MATCHUPS = [matchup_of(f"answer {k}", f"another answer {k}") for k in range(300)]


def logs(a: float, b: float) -> dict[str, float]:
    return {"A": math.log(a), "B": math.log(b)}


def read(judge: ConstitutionalJudge, matchup: Matchup, a: float, b: float) -> list[Reading]:
    return [reading for ask in judge.asks(matchup) for reading in judge.read(ask, completed(ask, logprobs=logs(a, b)))]


def test_one_principle_for_a_pair_in_both_orders() -> None:
    judge = ConstitutionalJudge()
    for matchup in MATCHUPS[:20]:
        one, two = judge.asks(matchup)
        assert one.aspect == two.aspect == judge.drawn(matchup)[0]
        assert (one.shown_first, two.shown_first) == ("a", "b")
        question = load("helpful-honest-harmless").choose([one.aspect], "comparison")[0].question("comparison")
        assert all(question in ask.request.messages[-1]["content"] for ask in (one, two))


def test_principles_are_drawn_by_weight_seed_and_what_is_shown() -> None:
    judge = ConstitutionalJudge()
    drawn = [judge.drawn(matchup)[0] for matchup in MATCHUPS]
    known = load("helpful-honest-harmless").principles
    assert set(drawn) == {p.name for p in known}
    heavy, light = drawn.count("helpfulness"), drawn.count("candour-about-itself")
    assert heavy > 2 * light, "weights 2 and 0.5"
    assert drawn == [ConstitutionalJudge().drawn(matchup)[0] for matchup in MATCHUPS]
    assert drawn != [ConstitutionalJudge(seed=1).drawn(matchup)[0] for matchup in MATCHUPS]
    a, b = candidate(1, text="x"), candidate(2, text="y")
    renamed = [
        Matchup(prompt(1), a, b),
        Matchup(prompt(1), candidate(7, text="x", run="other"), candidate(8, text="y")),
    ]
    assert judge.drawn(renamed[0]) == judge.drawn(renamed[1])


def test_it_asks_what_the_pairwise_judge_asks_by_that_principle() -> None:
    judge = ConstitutionalJudge(principles="privacy")
    plain = PairwiseJudge(constitution="helpful-honest-harmless", principles=["privacy"])
    assert [a.request for a in judge.asks(MATCHUPS[0])] == [a.request for a in plain.asks(MATCHUPS[0])]


def test_several_and_all_principles() -> None:
    some = ConstitutionalJudge(principles_each=3)
    assert len(some.drawn(MATCHUPS[0])) == len({*some.drawn(MATCHUPS[0])}) == 3
    assert len(some.asks(MATCHUPS[0])) == 6
    every = ConstitutionalJudge(principles_each="all", constitution="code-review")
    assert len(every.asks(MATCHUPS[0])) == 20
    assert len(ConstitutionalJudge(principles="care,privacy", principles_each=5).asks(MATCHUPS[0])) == 4


def test_weights_count_in_the_mean_only_where_they_did_not_count_in_the_draw() -> None:
    every = read(ConstitutionalJudge(principles_each="all"), MATCHUPS[0], 0.6, 0.2)
    weights = {r.aspect: (r.detail or {}).get("weight") for r in every}
    assert (weights["helpfulness"], weights["candour-about-itself"], weights["privacy"]) == (2.0, 0.5, None)
    drawn = read(ConstitutionalJudge(principles_each=11), MATCHUPS[0], 0.6, 0.2)
    assert all("weight" not in (r.detail or {}) for r in drawn)


def test_labels_are_soft_without_reasoning() -> None:
    first, second = read(ConstitutionalJudge(), MATCHUPS[0], 0.9, 0.05)
    assert first.p_a == pytest.approx(0.9 / 0.95)
    assert second.p_a == pytest.approx(0.05 / 0.95)


@pytest.mark.parametrize(("clamp", "low"), [(None, 0.4), (0.2, 0.2), (0, 0.05 / 0.95)])
def test_after_reasoning_probabilities_are_clamped(clamp: float | None, low: float) -> None:
    judge = ConstitutionalJudge(reasoning="first", clamp=clamp)
    steps = [r for ask in judge.asks(MATCHUPS[0]) for r in judge.read(ask, completed(ask, "A is better, since ..."))]
    assert [(r.verdict, r.p_a) for r in steps] == [(None, None)] * 2
    found = [
        reading
        for ask in judge.asks(MATCHUPS[0], steps)
        for reading in judge.read(ask, completed(ask, logprobs=logs(0.9, 0.05)))
    ]
    assert [r.p_a for r in found] == [pytest.approx(1 - low), pytest.approx(low)]
    assert [r.verdict for r in found] == ["a", "b"]
    if low > 0.1:
        assert [(r.detail or {})["unclamped"] for r in found] == [pytest.approx(0.947368), pytest.approx(0.052632)]
    assert judge.asks(MATCHUPS[0], [*steps, *found]) == []


def test_a_failure_stays_a_failure() -> None:
    for reading in read(ConstitutionalJudge(reasoning="none", clamp=0.4), MATCHUPS[0], 0.1, 0.1):
        assert (reading.failure, reading.p_a, reading.verdict) == ("low_mass", None, "none")


def test_every_wrong_option_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"principles_each": 0, "clamp": 0.5, "seed": "x"}
    with pytest.raises(ConfigError) as caught:
        ConstitutionalJudge(**wrong)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["principles_each", "seed", "clamp"]
    with pytest.raises(FactoryError, match="did you mean 'privacy'"):
        ConstitutionalJudge(principles=["privcy"])
    with pytest.raises(FactoryError, match="no constitution named"):
        ConstitutionalJudge(constitution="nothing")
    bare = tmp_path / "bare.yaml"
    bare.write_text("name: b\nsource: s\nprinciples: [{name: x, source: s, critique: 'Say.', revision: 'Write.'}]\n")
    with pytest.raises(FactoryError, match="no principle with a comparison question"):
        ConstitutionalJudge(constitution=str(bare))


def test_examples_go_with_their_principle() -> None:
    shown = [
        {"prompt": "p", "a": "good one", "b": "bad one", "verdict": "a", "principle": "privacy"},
        {"prompt": "q", "a": "any", "b": "other", "verdict": "b"},
    ]
    judge = ConstitutionalJudge(principles_each="all", examples=shown)
    turns = {ask.aspect: len(ask.request.messages) for ask in judge.asks(MATCHUPS[0])}
    assert (turns["privacy"], turns["care"]) == (9, 5)
    with pytest.raises(ConfigError, match=r"examples\.0: no principle 'privacy' here"):
        ConstitutionalJudge(principles=["care"], examples=shown)


def test_in_a_panel_it_labels_pairs_once(tmp_path: Path) -> None:
    """Registered, run by name, soft verdicts in the store; the longer answer wins as the engine says."""

    def longer_first(request: Any) -> bool:
        parts = request.messages[-1]["content"].split("<<answer B")
        return len(parts[0].split("<<answer A")[1]) > len(parts[1])

    rules = [Rule(match=longer_first, asks=True, answer_logprobs=logs(0.7, 0.2)),
             Rule(asks=True, answer_logprobs=logs(0.2, 0.7))]  # fmt: skip
    engine = ScriptedEngine(rules=rules)
    with Store.open(tmp_path / "store", create=True) as store:
        store.append("prompts", [prompt(0)])
        rows = [candidate(k, prompt_key=prompt(0).key, text="so " * 300 * (k + 1)) for k in range(3)]
        store.append("candidates", rows)
        member = PanelMember.of("constitutional", engine=engine, options={"principles_each": 2})
        report = label(store, [member], run="r", canary_share=0)
        assert (report.judges[0].verdicts, report.judges[0].failures, report.judges[0].flips) == (3, {}, 0)
        asked = engine.asked
        assert label(store, [member], run="r", canary_share=0).judges[0].calls == 0
        assert engine.asked == asked == 12
        judged = store.rows(Judgment)
        assert {row.aspect for row in judged} <= {p.name for p in load("helpful-honest-harmless").principles}
        pairs = verdicts.read(judged).pairs["constitutional"]
        length = {row.key: len(row.text) for row in rows}
        for (a, b), verdict in pairs.items():
            assert verdict is not None
            assert (verdict.p_a > 0.5) == (length[a] > length[b])
            assert verdict.p_a == pytest.approx(7 / 9 if length[a] > length[b] else 2 / 9)


def test_it_is_registered_as_one_that_asks() -> None:
    assert judges.facts("constitutional")["asks"] is True
    assert judges.get("constitutional") is ConstitutionalJudge
