"""Measures against sums worked by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, strategies as st

from factory.evaluation import measures
from factory.evaluation.measures import Graded, Scored
from factory.stats import intervals


def answer(prompt: str, sample: int = 0, *, score: float | None = 0.0, text: str = "", tokens: int = 0) -> Graded:
    """A graded answer that passes when its score is 1."""
    return Graded(prompt, sample, text, tokens, None, score, None if score is None else score == 1.0)


def failed(prompt: str, sample: int = 0) -> Graded:
    """An answer that never came, to a prompt with a title constraint."""
    return Graded(prompt, sample, failure="timeout", score=0.0, passed=False, kinds={"title": 0.0})


def test_pass_rate_counts_failures_as_not_passing() -> None:
    answers = [answer("p", score=1.0), answer("q", score=0.5), failed("r"), answer("s", score=1.0)]
    assert measures.pass_rate(answers) == intervals.wilson(2, 4)
    score = measures.mean_score(answers)
    assert score is not None
    assert score.value == pytest.approx(2.5 / 4)


def test_pass_rate_leaves_out_what_has_no_grade() -> None:
    assert measures.pass_rate([answer("p", score=1.0), answer("q", score=None)]) == intervals.wilson(1, 1)
    assert measures.pass_rate([answer("q", score=None)]) is None
    assert measures.mean_score([answer("q", score=None)]) is None
    assert measures.pass_rate([]) is None


def test_several_samples_of_a_prompt_are_one_cluster() -> None:
    """Ten prompts, each all or nothing: forty answers tell what ten do."""
    answers = [answer(f"p{i}", j, score=float(i < 4)) for i in range(10) for j in range(4)]
    estimate = measures.pass_rate(answers)
    assert estimate is not None
    assert estimate.value == 0.4
    assert estimate.high - estimate.low > 1.5 * (intervals.wilson(16, 40).high - intervals.wilson(16, 40).low)


def test_by_kind() -> None:
    answers = [
        Graded("p", 0, score=1.0, passed=True, kinds={"title": 1.0, "words": 1.0}),
        Graded("q", 0, score=0.5, passed=False, kinds={"title": 0.0, "words": 1.0}),
        failed("r"),
        Graded("s", 0, score=0.5, passed=False, kinds={"bullets": 0.5}),
    ]
    found = measures.by_kind(answers)
    assert list(found) == ["bullets", "title", "words"]
    assert found["title"] == intervals.wilson(1, 3)
    assert found["words"] == intervals.wilson(2, 2)
    assert found["bullets"].value == 0.5


def test_gain_pairs_by_prompt() -> None:
    """Common prompts p, q, r: passed 1, 1, 0 against 0, 1, 0. One prompt only of each side is left out."""
    ours = [answer("p", score=1.0), answer("q", score=1.0), failed("r"), answer("only ours", score=1.0)]
    theirs = [answer("r"), answer("q", score=1.0), answer("p"), answer("only theirs", score=1.0)]
    assert measures.gain(ours, theirs) == intervals.paired_rates(1, 1, 0, 1)
    assert measures.gain(ours, [answer("elsewhere")]) is None


def test_win_rate_ties_half_and_failures_lose() -> None:
    """p: .5 beats 0; q: tie; r: a failure loses to a 0; s: both failed, a tie: (1 + .5 + 0 + .5) / 4."""
    ours = [answer("p", score=0.5), answer("q", score=0.5), failed("r"), failed("s")]
    theirs = [answer("p"), answer("q", score=0.5), answer("r"), failed("s")]
    assert measures.win_rate(ours, theirs) == intervals.wins_and_losses(1, 2, 1)


def test_win_rate_compares_every_pair_of_samples() -> None:
    """p: {1, 0} against {.5, 0}: wins 1>.5, 1>0; 0<.5 lost; 0=0 tie: 2.5/4."""
    ours = [answer("p", 0, score=1.0), answer("p", 1), answer("q", 0, score=1.0), answer("q", 1, score=1.0)]
    theirs = [answer("p", 0, score=0.5), answer("p", 1), answer("q", 0), answer("q", 1)]
    estimate = measures.win_rate(ours, theirs)
    assert estimate is not None
    assert estimate.value == pytest.approx((2.5 / 4 + 1.0) / 2)


def test_lengths_leave_failures_out() -> None:
    answers = [answer("p", text="one two  three", tokens=5), answer("q", text="one", tokens=2), failed("r")]
    tokens, words = measures.mean_tokens(answers), measures.mean_words(answers)
    assert tokens is not None
    assert words is not None
    assert (tokens.value, words.value) == (3.5, 2.0)
    assert measures.mean_tokens([failed("r")]) is None


def test_distinct_2_of_everything_is_the_plain_share() -> None:
    """a b, b a, a b | a b: 2 distinct of 4, whatever the case; fewer pairs than a sample."""
    assert measures.distinct_2(["A b a B", "a  b"]) == pytest.approx(2 / 4)
    assert measures.distinct_2(["word", ""]) is None


def test_distinct_2_by_hand() -> None:
    """x x x y: pairs (x x) twice, (x y) once. Samples of 2 of 3: {xx, xx} has 1 distinct, {xx, xy} twice has 2:
    mean 5/3 of 2 = 5/6."""
    assert measures.distinct_2(["x x x y"], sample=2) == pytest.approx(5 / 6)
    assert measures.distinct_2(["x x x y"], sample=1) == pytest.approx(1.0)


def test_distinct_2_is_the_mean_over_drawn_samples() -> None:
    random = Random(0)
    texts = [" ".join(random.choice("abcdefgh") for _ in range(30)) for _ in range(10)]
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    drawn = [len(set(random.sample(pairs, 40))) / 40 for _ in range(3000)]
    assert measures.distinct_2(texts, sample=40) == pytest.approx(sum(drawn) / len(drawn), abs=0.005)


def test_distinct_2_does_not_fall_with_length_alone() -> None:
    """The same source of words at two lengths: the plain share falls by half, the equal-size one does not move."""
    random = Random(1)
    words = [f"w{i}" for i in range(60)]

    def corpus(length: int) -> list[str]:
        return [" ".join(random.choice(words) for _ in range(length)) for _ in range(100)]

    short, long = corpus(12), corpus(120)
    fair_short, fair_long = measures.distinct_2(short), measures.distinct_2(long)
    plain_short, plain_long = measures.distinct_2(short, sample=10**9), measures.distinct_2(long, sample=10**9)
    assert fair_short is not None
    assert plain_short is not None
    assert fair_long == pytest.approx(fair_short, abs=0.01)
    assert plain_long is not None
    assert plain_long < 0.5 * plain_short


@given(st.lists(st.text(alphabet="ab ", max_size=12), max_size=6), st.integers(1, 30))
def test_distinct_2_is_a_share(texts: list[str], sample: int) -> None:
    value = measures.distinct_2(texts, sample)
    assert value is None or 0.0 < value <= 1.0 + 1e-9


def test_divergence_by_hand() -> None:
    """Log-ratios 2 and 4 nats over 4 and 2 tokens: 3 nats a sequence, 6 over 6 tokens = 1 nat a token."""
    policy, start = [Scored(-10.0, 4), Scored(-6.0, 2)], [Scored(-12.0, 4), Scored(-10.0, 2)]
    found = measures.divergence(policy, start, ["p", "q"])
    assert found is not None
    assert (found.sequence.value, found.token.value) == (3.0, 1.0)
    assert 2.0 <= found.sequence.low <= 3.0 <= found.sequence.high <= 4.0
    assert measures.divergence([], [], []) is None
    one = measures.divergence(policy[:1], start[:1], ["p"])
    assert one is not None
    assert math.isnan(one.sequence.low)
    with pytest.raises(ValueError, match="zip"):
        measures.divergence(policy, start[:1], ["p", "q"])


def test_divergence_is_the_kl_of_a_known_pair() -> None:
    """Samples from Bernoulli(.8) scored under it and under Bernoulli(.5): KL = .8 ln 1.6 + .2 ln .4 = .1927 nats."""
    random = Random(0)
    draws = [random.random() < 0.8 for _ in range(4000)]
    policy = [Scored(math.log(0.8 if d else 0.2), 1) for d in draws]
    start = [Scored(math.log(0.5), 1) for _ in draws]
    found = measures.divergence(policy, start, [str(i) for i in range(len(draws))])
    assert found is not None
    truth = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert found.sequence.low < truth < found.sequence.high
    assert found.sequence.high - found.sequence.low < 0.05


def test_relevance_by_hand() -> None:
    """(-4 + 12) / 4 = 2 and (-9 + 8) / 1 = -1: mean .5 nats a token; answers weigh the same whatever their length."""
    prompted, neutral = [Scored(-4.0, 4), Scored(-9.0, 1)], [Scored(-12.0, 4), Scored(-8.0, 1)]
    estimate = measures.relevance(prompted, neutral, ["p", "q"])
    assert estimate is not None
    assert estimate.value == pytest.approx(0.5)
    assert measures.relevance([], [], []) is None


# ------------------------------------------------------------------------------------------------ k3, n-grams, slices


def by_token(*values: float) -> Scored:
    return Scored(sum(values), len(values), values)


def test_k3_by_hand() -> None:
    """Token ratios log 2 and -log 2: 1/2 - 1 + log 2 and 2 - 1 - log 2, together 1/2; an answer of one token at 0:
    0."""
    up, down = math.log(0.5), math.log(0.25)
    policy = [by_token(up, down), by_token(-1.0)]
    start = [by_token(down, up), by_token(-1.0)]
    found = measures.divergence_k3(policy, start, ["p", "q"])
    assert found is not None
    assert found.sequence.value == pytest.approx(0.5 / 2)
    assert found.token.value == pytest.approx(0.5 / 3)
    plain = measures.divergence(policy, start, ["p", "q"])
    assert plain is not None
    assert plain.sequence.value == pytest.approx(0.0)


def test_over_other_tokens_there_is_no_kl() -> None:
    """The start has another tokenizer, which makes two tokens of an answer that are three to the policy."""
    ours = [Scored(-1.0, 1, (-1.0,)), Scored(-3.0, 3, (-1.0, -1.0, -1.0))]
    theirs = [Scored(-2.0, 1, (-2.0,)), Scored(-4.0, 2, (-2.0, -2.0))]
    assert measures.divergence(ours, theirs, ["a", "b"]) is None
    assert measures.divergence_k3(ours, theirs, ["a", "b"]) is None
    assert measures.divergence(ours[:1], theirs[:1], ["a"]) is not None


def test_k3_needs_tokens() -> None:
    assert measures.divergence_k3([Scored(-1.0, 1)], [by_token(-1.0)], ["p"]) is None
    kept = measures.divergence_k3([Scored(-1.0, 1), by_token(-1.0)], [Scored(-2.0, 1), by_token(-2.0)], ["p", "q"])
    assert kept is not None
    assert kept.sequence.value == pytest.approx(math.exp(-1))  # exp(-d) - 1 + d at d = 1


def test_k1_and_k3_agree_with_the_exact_kl_and_k3_varies_less() -> None:
    """20,000 answers of 5 tokens, each drawn from the same 4: five times the KL of the two distributions."""
    ours, theirs = [0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.2, 0.2]
    truth = 5 * sum(p * math.log(p / q) for p, q in zip(ours, theirs, strict=True))
    rng = Random(5)
    drawn = [rng.choices(range(4), ours, k=5) for _ in range(20_000)]
    policy = [by_token(*(math.log(ours[i]) for i in each)) for each in drawn]
    start = [by_token(*(math.log(theirs[i]) for i in each)) for each in drawn]
    keys = [str(i) for i in range(len(drawn))]
    k1, k3 = measures.divergence(policy, start, keys), measures.divergence_k3(policy, start, keys)
    assert k1 is not None
    assert k3 is not None
    for found in (k1, k3):
        assert found.sequence.low < truth < found.sequence.high
        assert found.token.value == pytest.approx(found.sequence.value / 5)
    assert k3.sequence.high - k3.sequence.low < (k1.sequence.high - k1.sequence.low) / 2


def test_distinct_of_other_orders() -> None:
    """ "a b a b": words 2 of 4, pairs 2 of 3, triples 2 of 2, fours 1 of 1, fives none."""
    found = [measures.distinct(["a b a b"], order) for order in range(1, 6)]
    assert found == [pytest.approx(x) if x is not None else None for x in (2 / 4, 2 / 3, 1.0, 1.0, None)]
    assert measures.distinct(["a b a b"]) == measures.distinct_2(["a b a b"])


@pytest.mark.parametrize(
    ("size", "name"), [(0, "to 10"), (10, "to 10"), (11, "11 to 20"), (20, "11 to 20"), (99, "over 20")]
)
def test_buckets(size: int, name: str) -> None:
    assert measures.bucket(size, (10, 20)) == name


def test_slices_are_measured_for_themselves() -> None:
    """Source x: 1 of 2 pass, one better and one equal to the baseline; source y: 0 of 1, worse."""
    ours = [answer("p", score=1.0), answer("q", score=0.0), answer("r", score=0.0)]
    theirs = [answer("p", score=0.0), answer("q", score=0.0), answer("r", score=0.5)]
    cuts = {"source": {"p": "x", "q": "x", "r": "y"}, "words": {"p": "over 80", "q": "to 10", "r": "11 to 20"}}
    found = measures.slices(ours, theirs, cuts)
    assert [(s.by, s.name, s.prompts) for s in found] == [
        ("source", "x", 2), ("source", "y", 1), ("words", "to 10", 1), ("words", "11 to 20", 1), ("words", "over 80", 1)
    ]  # fmt: skip
    assert found[0].pass_rate == intervals.wilson(1, 2)
    assert found[0].win_rate == intervals.wins_and_losses(1, 1, 0)
    assert found[1].win_rate == intervals.wins_and_losses(0, 0, 1)
    assert measures.slices(ours, None, cuts)[0].win_rate is None
