"""Many judges to one verdict: probabilities, entropies, and what a model of the judges makes of them."""

from __future__ import annotations

import math
import random

import pytest

from factory.faults import FactoryError
from factory.pairing.combining import Outcome, Rule, joint, rule_of, ways
from factory.verdicts import Pair, Panel, Verdict

A, B, TIE = Verdict(0.9, "a"), Verdict(0.1, "b"), Verdict(0.5, "tie")


def panel_of(said: list[dict[str, Verdict]]) -> tuple[Panel, list[Pair], list[str]]:
    pairs = [(f"a{i:04d}", f"b{i:04d}") for i in range(len(said))]
    judges = sorted({judge for of_pair in said for judge in of_pair})
    by_judge: dict[str, dict[Pair, Verdict | None]] = {
        judge: {pair: of_pair.get(judge) for pair, of_pair in zip(pairs, said, strict=True)} for judge in judges
    }
    return Panel({}, by_judge), pairs, judges


def outcomes(said: list[dict[str, Verdict]], rule: Rule) -> list[Outcome | None]:
    panel, pairs, judges = panel_of(said)
    found = joint(panel, judges, pairs, rule).outcomes
    return [found.get(pair) for pair in pairs]


def test_probability_and_entropy() -> None:
    (one,) = outcomes([{"x": A, "y": TIE}], Rule("lead", "x"))
    assert one is not None
    assert (one.probability("a"), one.probability("b")) == pytest.approx((0.9, 0.1))
    assert one.entropy == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    (even,) = outcomes([{"x": TIE}], Rule("mean"))
    assert even is not None
    assert even.entropy == pytest.approx(math.log(2))
    assert Outcome(A, 1.0, 0.0).entropy == 0.0


def test_weights_decide_and_a_judge_without_one_is_a_fault() -> None:
    said = [{"x": A, "y": B, "z": B}, {"x": TIE, "y": A, "z": B}, {"y": A, "z": B}]
    found = outcomes(said, Rule("weighted", weights={"x": 3.0, "y": 1.0, "z": 1.0}))
    assert [o and o.verdict.verdict for o in found] == ["a", "tie", "tie"]
    assert found[0] is not None
    assert (found[0].a, found[0].b, found[0].tie) == pytest.approx((0.6, 0.4, 0.0))
    with pytest.raises(FactoryError, match="no weight for"):
        outcomes(said, Rule("weighted", weights={"x": 1.0}))


def simulated(accuracies: dict[str, float], count: int, seed: int) -> tuple[list[dict[str, Verdict]], list[str]]:
    """Votes of judges that are right so often, independent of each other; a quarter of the pairs are ties."""
    rng = random.Random(seed)
    truth = rng.choices("abt", [3, 3, 2], k=count)
    means = {"a": A, "b": B, "t": TIE}
    said = [
        {
            judge: means[true if rng.random() < right else rng.choice([c for c in "abt" if c != true])]
            for judge, right in accuracies.items()
        }
        for true in truth
    ]
    return said, truth


@pytest.mark.parametrize("way", ["one_coin", "dawid_skene", "dependent"])
def test_a_model_hears_the_judge_that_is_right(way: str) -> None:
    """One judge at 90%, three near chance: majority goes with the crowd, a model learns whom to believe."""
    accuracies = {"good": 0.9, "p": 0.45, "q": 0.45, "r": 0.45}
    said, truth = simulated(accuracies, 600, 3)
    panel, pairs, judges = panel_of(said)

    def right(rule: Rule) -> float:
        found = joint(panel, judges, pairs, rule)
        verdicts = [found.outcomes[pair].verdict.verdict[0] for pair in pairs]
        return sum(v == true for v, true in zip(verdicts, truth, strict=True)) / len(truth)

    assert right(Rule(way)) > right(Rule("majority")) + 0.1
    model = joint(panel, judges, pairs, Rule(way)).model
    assert model is not None
    assert model.accuracy == pytest.approx(accuracies, abs=0.07)


def test_a_probability_means_what_it_says() -> None:
    """Of the verdicts that Dawid and Skene's model gives a probability of p, about p are right."""
    said, truth = simulated({"x": 0.8, "y": 0.7, "z": 0.6}, 2000, 5)
    found = outcomes(said, Rule("dawid_skene"))
    decided = [
        (o.probability(o.verdict.verdict), o.verdict.verdict == true)
        for o, true in zip(found, truth, strict=True)
        if o is not None and o.verdict.verdict != "tie"
    ]
    mean = math.fsum(p for p, _ in decided) / len(decided)
    assert mean == pytest.approx(sum(r for _, r in decided) / len(decided), abs=0.04)
    sure = [r for p, r in decided if p > 0.9]
    unsure = [r for p, r in decided if p < 0.7]
    assert sum(sure) / len(sure) > sum(unsure) / len(unsure) + 0.2


def test_copies_of_a_judge_are_one_judge() -> None:
    """Six judges, three of them the same one: a majority counts it three times. The model finds which hang together,
    says that six are worth fewer, and is right more often."""
    said, truth = simulated(dict.fromkeys(("x", "p", "q", "r"), 0.7), 1000, 9)
    said = [of_pair | {"x2": of_pair["x"], "x3": of_pair["x"]} for of_pair in said]
    panel, pairs, judges = panel_of(said)
    found = joint(panel, judges, pairs, Rule("dependent"))
    assert found.model is not None
    assert found.model.families == (("x", "x2", "x3"),)
    assert found.model.effective is not None
    assert found.model.effective < 5

    def right(way: str) -> int:
        by = joint(panel, judges, pairs, Rule(way)).outcomes
        return sum(by[pair].verdict.verdict[0] == true for pair, true in zip(pairs, truth, strict=True))

    assert right("dependent") > right("majority")
    assert right("dependent") > right("dawid_skene")


def test_that_few_votes_say_little_is_noted() -> None:
    """One judge that nearly always likes the first by key, two that hardly voted: the model takes sides by name."""
    said = [{"v": A}] * 5 + [{"v": TIE}, {"v": A, "x": A, "y": B}, {"x": TIE, "v": A, "y": A}]
    panel, pairs, judges = panel_of(said)
    found = joint(panel, judges, pairs, Rule("dawid_skene"))
    assert any("too few votes" in note for note in found.notes)
    assert found.outcomes[pairs[5]].verdict.verdict == "tie"  # a tie by its only judge favours neither side


def test_nothing_said_is_nothing_found() -> None:
    for way in ways():
        rule = Rule(way, "x", weights={"x": 1.0} if way == "weighted" else {})
        assert joint(Panel({}, {}), [], [("a", "b")], rule).outcomes == {}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"combine": "david_skene"}, "did you mean 'dawid_skene'"),
        ({"combine": "weighted"}, "needs weights"),
        ({"combine": "mean", "weights": {"x": 1.0}}, "takes no weights"),
        ({"combine": "weighted", "weights": {"x": 1.0, "z": 1.0}}, "no judge named 'z'"),
        ({"combine": "lead"}, "which judge leads"),
    ],
)
def test_faults_of_a_rule(options: dict[str, object], told: str) -> None:
    given = {"combine": "lead", "lead": None, "break_ties": False, "tie_margin": 0.05, "weights": None} | options
    with pytest.raises(FactoryError, match=told):
        rule_of(["x", "y"], **given)  # type: ignore[arg-type]
