"""What judges like, by rows made by hand and by judges made to have a habit."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from judged import both, candidate_of, pairwise, pointwise
from store_rows import call

from factory.judges.canaries import stand_in_key
from factory.schema import Candidate, Judgment, digest
from factory.store import Store
from factory.trust.evidence import evidence
from factory.trust.habits import JudgeStats, Style, spending, stats, style


@pytest.mark.parametrize(
    ("text", "lists", "bold", "headings"),
    [
        ("- one\n* two\n  + three\n1. four\n2) five", 5, 0, 0),
        ("-none\n1.5 liters\n--- \n- ", 0, 0, 0),
        ("**bold** and __bold__, not * * or 2**3 or a__b__c", 0, 2, 0),
        ("# One\n### Three\n#tag\n####### seven", 0, 0, 2),
        ("```\n- code\n# comment\n```\n- prose", 1, 0, 0),
        ("```python\n# never closed", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_marks(text: str, lists: int, bold: int, headings: int) -> None:
    assert style(text) == Style(len(text), lists, bold, headings)


@given(st.text(alphabet="*_#`-~ \n1.)a", max_size=400))
def test_any_text_has_a_style(text: str) -> None:
    assert all(0 <= n <= len(text) for n in style(text))


def judged(seed: int, prompts: int, *, length: float = 0.0, lists: float = 0.0, turn: bool = False) -> list[JudgeStats]:
    """A judge whose log-odds grow by `length` a doubling and by `lists` for a list, on two answers a prompt. `turn`:
    the two answers trade names, so that a is b."""
    rng = random.Random(seed)
    candidates: list[Candidate] = []
    rows: list[Judgment] = []
    for n in range(prompts):
        bodies = ["word " * rng.choice([4, 8, 16]) + rng.choice(["", "\n- x"]) for _ in range(2)]
        marks = [style(body) for body in bodies]
        odds = length * math.log2((marks[0].length + 1) / (marks[1].length + 1))
        odds += lists * (marks[0].lists - marks[1].lists)
        first = rng.random() < 1 / (1 + math.exp(-odds))
        names = ("b", "a") if turn else ("a", "b")
        texts = dict(zip(names, bodies, strict=True))
        candidates += [replace(candidate_of(f"{n}{name}", texts[name]), prompt_key=f"p{n}") for name in "ab"]
        p = 0.9 if first != turn else 0.1
        rows += both("j", f"{n}a", f"{n}b", p, p, prompt_key=f"p{n}")
    return stats(evidence(rows, candidates))


def test_style_is_told_apart_from_length() -> None:
    """It likes lists, which are longer; it does not care for length."""
    (found,) = judged(0, 600, lists=1.5)
    assert found.longer_wins.low > 0.5
    assert found.lists_win.low > 0.7
    assert found.lists_effect.low < 1.5 < found.lists_effect.high
    assert found.length_effect.low < 0 < found.length_effect.high
    assert math.isnan(found.bold_effect.value)  # no answer has any
    assert math.isnan(found.bold_wins.value)


def test_effects_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(80):
        (found,) = judged(seed, 100, length=0.6, lists=-0.5)
        held += found.length_effect.low <= 0.6 <= found.length_effect.high
        held += found.lists_effect.low <= -0.5 <= found.lists_effect.high
    assert 0.91 <= held / 160 <= 0.99


@given(st.integers(0, 10**6))
def test_exchanging_a_and_b_changes_nothing(seed: int) -> None:
    (one,), (other,) = judged(seed, 12, length=0.5), judged(seed, 12, length=0.5, turn=True)
    for name in ("longer_wins", "lists_win", "length_effect", "lists_effect", "flip_rate", "tie_rate"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), nan_ok=True, abs=1e-6)


def test_a_judge_of_length_alone_says_why_there_is_no_effect() -> None:
    texts = {"a": "long long long", "b": "short"}
    candidates = [
        replace(candidate_of(f"{n}{k}", text), prompt_key=f"p{n}") for n in range(9) for k, text in texts.items()
    ]
    rows = [row for n in range(9) for row in both("j", f"{n}a", f"{n}b", 0.9, 0.9, prompt_key=f"p{n}")]
    (found,) = stats(evidence(rows, candidates))
    assert found.longer_wins.value == 1.0
    assert math.isnan(found.length_effect.value)
    assert "without an exception" in found.effects_note


def test_a_liking_for_its_own_model() -> None:
    """Model m's judge gives it 4 of 4 pairs; the other judge gives it 1 of 4: 3/4 beyond what others see."""
    candidates, rows = [], []
    for n in range(4):
        own, other = candidate_of(f"{n}a"), replace(candidate_of(f"{n}b"), model="other")
        candidates += [replace(c, prompt_key=f"p{n}") for c in (own, other)]
        mine = both("self", f"{n}a", f"{n}b", 0.9, 0.9, prompt_key=f"p{n}")
        rows += [replace(row, judge_model="m") for row in mine]
        rows += both("peer", f"{n}a", f"{n}b", *([0.9, 0.9] if n == 0 else [0.1, 0.1]), prompt_key=f"p{n}")
    peer, own_judge = stats(evidence(rows, candidates))
    assert (own_judge.model, own_judge.own_pairs, own_judge.own_wins.value) == ("m", 4, 1.0)
    assert own_judge.own_excess.value == pytest.approx(0.75)
    assert (peer.own_pairs, peer.model) == (0, "")
    assert math.isnan(peer.own_excess.value)


def test_quarantine_takes_verdicts_out_but_hides_nobody() -> None:
    rows = [replace(row, batch="x") for row in both("j", "a", "b", 0.9, 0.9)]
    for n in range(4):
        key = stand_in_key("empty", f"b{n}")
        rows += [
            replace(pairwise("j", f"c{n}", key, 0.1, order, canary="empty"), batch="x") for order in ("a", "b")
        ]  # fmt: skip
    candidates = [candidate_of("a"), candidate_of("b")]
    (found,) = stats(evidence(rows, candidates))
    assert (found.judgments, found.verdicts, found.quarantined, found.quarantined_batches) == (2, 0, 2, 1)
    assert "4 of its batch's 4" in found.quarantine
    assert math.isnan(found.first_position.value)
    (kept,) = stats(evidence(rows, candidates, keep_quarantined=True))
    assert (kept.verdicts, kept.quarantined, kept.first_position.value) == (1, 2, 0.5)


def test_what_verdicts_cost(tmp_path: Path) -> None:
    """Two judges ask models: one's two calls of 5 tokens, one of them tried twice, cost $0.03 in all for one pair; of
    the other's one price is unknown. Reasoning that led to no judgment goes to the judge alone with its model."""
    rows = []
    calls = [
        call(1, purpose="judge", model="dear", cost=0.01),
        call(2, purpose="judge", model="dear", cost=0.005, failure="timeout"),
        call(2, attempt=2, purpose="judge", model="dear", cost=0.01),
        call(3, purpose="judge", model="dear", cost=0.005),
        call(4, purpose="judge", model="free", cost=None),
        call(5, purpose="generate", model="dear", cost=9.0),
        call(6, purpose="judge", model="dear", cost=9.0, run="another"),
    ]
    for number, order in ((1, "a"), (2, "b")):
        row = pairwise("dear", "a", "b", 0.9, order)
        rows.append(replace(row, call_key=digest("call", number), judge_model="dear"))
    rows.append(replace(pointwise("free", "a", 0.5), call_key=digest("call", 4), judge_model="free"))
    rows.append(pointwise("program", "a", 0.5))
    found = evidence(rows, [candidate_of("a"), candidate_of("b")])
    with Store.open(tmp_path / "store", create=True) as store:
        store.append("calls", calls)
        dear, free, program = stats(found, spending(store, found))
    assert (dear.calls, dear.tokens_per_verdict, dear.unpriced) == (4, 20.0, 0)
    assert dear.cost_per_verdict == pytest.approx(0.03)
    assert (free.calls, free.cost_per_verdict, free.unpriced) == (1, None, 1)
    assert (program.calls, program.cost_per_verdict) == (0, None)
    assert stats(found)[0].calls is None
