"""Measures of a policy's health against values worked by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings, strategies as st

from factory.evaluation.measures import Graded, Scored
from factory.evaluation.policy_health import (
    Weighed,
    broken,
    copies,
    entropy,
    implicit,
    is_empty,
    loops,
    refuses,
    self_bleu,
)
from factory.schema import Messages
from factory.stats import intervals

ASKED: Messages = [{"role": "user", "content": "Name three rivers of Europe and say where each of them ends."}]


def test_self_bleu_by_hand() -> None:
    """ "a b c d e" against "a b c d f": 4/5, 3/4, 2/3, 1/2 of its 1- to 4-grams are there, lengths are equal; the third
    text shares nothing, so that each of its orders counts 0.1 matches: 0.1/5, 0.1/4, 0.1/3, 0.1/2."""
    both = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    alone = (0.1**4 / (5 * 4 * 3 * 2)) ** 0.25
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx(both)
    assert self_bleu(["a b c d e", "a b c d f", "v w x y z"]) == pytest.approx((2 * both + alone) / 3)


def test_self_bleu_counts_a_match_no_oftener_than_one_other_text_has_it() -> None:
    """Of "go go go" the other text has "go" once: 1/3; its pair and triple are nowhere: 0.1/2, 0.1/1. The other way,
    1/1 and the penalty for one word against three, exp(1 - 3)."""
    first = (1 / 3 * 0.1 / 2 * 0.1) ** (1 / 3)
    assert self_bleu(["go go go", "Go!"]) == pytest.approx((first + math.exp(-2)) / 2)


def test_self_bleu_ends() -> None:
    assert self_bleu(["one and the same answer"] * 3) == pytest.approx(1.0)
    assert self_bleu(["a b c", ""]) is None
    assert self_bleu([]) is None
    assert self_bleu(["a b c d"] * 2 + ["p q r s"], most=2) == pytest.approx(1.0)


def by_definition(texts: list[str]) -> float:
    """Self-BLEU with every other text looked at in turn."""
    words = [text.split() for text in texts]

    def grams(found: list[str], order: int) -> list[tuple[str, ...]]:
        return [tuple(found[i : i + order]) for i in range(len(found) - order + 1)]

    total = 0.0
    for i, mine in enumerate(words):
        others = [other for j, other in enumerate(words) if j != i]
        logs = []
        for order in range(1, min(4, len(mine)) + 1):
            own = grams(mine, order)
            hits = sum(min(own.count(g), max(grams(o, order).count(g) for o in others)) for g in set(own))
            logs.append(math.log((hits or 0.1) / len(own)))
        nearest = min((abs(len(o) - len(mine)), len(o)) for o in others)[1]
        total += math.exp(sum(logs) / len(logs)) * (1 if len(mine) >= nearest else math.exp(1 - nearest / len(mine)))
    return total / len(texts)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=8).map(" ".join), min_size=2, max_size=6))
def test_self_bleu_is_what_its_definition_gives(texts: list[str]) -> None:
    assert self_bleu(texts) == pytest.approx(by_definition(texts))


@pytest.mark.parametrize(
    ("text", "looped"),
    [
        ("The river is long. " * 4, True),  # 4 words, 4 times
        ("The river is long. " * 3, False),
        ("Well, then: " + "no " * 10, True),
        ("no " * 9, False),  # 9 words in all
        ("ha" * 30, True),  # one long word: its characters
        ("It ends in the sea, it is cold, it is deep, it is blue, it is wide and old.", False),
        ("", False),
    ],
)
def test_loops(text: str, looped: bool) -> None:
    assert loops(text) is looped


def test_copies_of_the_prompt() -> None:
    assert copies("name three rivers of Europe, and say where each of them ends", ASKED)
    assert copies("Three rivers of Europe", ASKED)
    assert copies("of Europe", ASKED)
    assert not copies("The Rhine ends in the North Sea, and where each of them ends is known.", ASKED)
    assert not copies("", ASKED)
    # 8 of the answer's 10 trigrams are the prompt's: just enough
    assert copies("Name three rivers of Europe and say where each of us went", ASKED)
    assert not copies("Name three rivers of Europe and say where each one of us went", ASKED)


def test_empty_and_refusing() -> None:
    assert is_empty(" \u200b\n ... !")
    assert not is_empty("No.")
    assert refuses("I’m sorry, but I can’t help with that.")
    assert refuses("As an AI language model, I have no rivers.")
    assert not refuses("You cannot step into the same river twice.")
    assert not refuses("x " * 200 + "I cannot say.")


def test_shares_of_broken_answers() -> None:
    """Of 5 answers to 5 prompts: one empty, one in a loop, one a copy and one a refusal; a failed one is not there."""
    texts = ["", "no " * 12, ASKED[0]["content"], "I cannot help with that.", "The Rhine, the Loire and the Po."]
    answers = [Graded(f"p{i}", 0, text) for i, text in enumerate(texts)] + [Graded("p9", 0, failure="timeout")]
    found = broken(answers, {f"p{i}": ASKED for i in range(5)})
    one = intervals.wilson(1, 5)
    assert found == {"empty": one, "loop": one, "copy": one, "degenerate": intervals.wilson(3, 5), "refuse": one}
    assert broken(answers[-1:], {}) == {}


def test_entropy_is_minus_log_probability_a_token() -> None:
    found = entropy([Scored(-6.0, 3), Scored(-2.0, 1), Scored(0.0, 0)], ["p", "q", "r"])
    assert found is not None
    assert found.value == pytest.approx(8 / 4)
    assert entropy([Scored(0.0, 0)], ["p"]) is None


def test_entropy_of_known_samples() -> None:
    """Answers of 20 tokens from a distribution over 4 tokens, 10,000 of them: its entropy, within four standard
    errors."""
    chances = [0.5, 0.25, 0.15, 0.1]
    truth = -sum(p * math.log(p) for p in chances)
    rng = random.Random(3)
    scored = [Scored(sum(math.log(p) for p in rng.choices(chances, chances, k=20)), 20) for _ in range(10_000)]
    found = entropy(scored, [str(i) for i in range(len(scored))])
    assert found is not None
    spread = sum(p * math.log(p) ** 2 for p in chances) - truth**2
    assert abs(found.value - truth) < 4 * math.sqrt(spread / 200_000)
    assert found.low < truth < found.high


def test_implicit_reward_by_hand() -> None:
    """p: chosen +3, rejected -1 against the start: margin 4. q: chosen -2, rejected +1: margin -3. r: none."""
    pairs = [
        Weighed("p", Scored(-7.0, 4), Scored(-9.0, 4), Scored(-10.0, 4), Scored(-8.0, 4)),
        Weighed("q", Scored(-12.0, 4), Scored(-5.0, 4), Scored(-10.0, 4), Scored(-6.0, 4)),
        Weighed("r", Scored(-5.0, 4), Scored(-5.0, 4), Scored(-5.0, 4), Scored(-5.0, 4)),
    ]
    found = {name: estimate.value for name, estimate in implicit(pairs).items()}
    assert found == pytest.approx(
        {
            "margin": 1 / 3,
            "accuracy": 0.5,
            "chosen": -8.0,
            "rejected": -19 / 3,
            "chosen_shift": 1 / 3,
            "rejected_shift": 0.0,
        }
    )
    assert implicit([]) == {}
