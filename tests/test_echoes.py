"""Whether a report says that what measures also labelled, and says it of the right judge."""

from __future__ import annotations

from typing import Any

import pytest

from factory.recipe import load
from factory.report.echoes import echo
from factory.schema import Estimate, Judged, PolicyReport

DECIDED = "The verifier that measures is also the judge that decided the labels"
HEARD = "The verifier that measures also sat in the panel that labelled"
REWARDED = "The verifier that measures also rewarded the answers that were learnt"
RATE = Estimate(0.5, 0.4, 0.6)


def measured(**values: Any) -> PolicyReport:
    return PolicyReport("policy", "heldout", 100, 100, 0, **({"pass_rate": RATE, "independent": False} | values))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("panel: [{judge: verifier}, {judge: pairwise}]", DECIDED),
        ("panel: [{judge: pairwise}, {judge: verifier, name: rules}]\npair: {lead: rules}", DECIDED),
        ("panel: [{judge: pairwise}, {judge: verifier}]", HEARD),
        ("panel: [{judge: verifier}, {judge: pairwise}]\npair: {combine: mean}", HEARD),
        (
            "panel: [{judge: pairwise}, {judge: verifier}]\n"
            "stages: [generate, label, {stage: pair, set: {pair.lead: verifier}}, train]",
            DECIDED,
        ),
        ("stages: [train]\ntrain: {config: {method: grpo, online: {steps: 2}}}", REWARDED),
        (
            "panel: [{judge: pairwise}]\n"
            "stages: [generate, {stage: label, set: {panel: [{judge: verifier}]}}, pair, train]\n"
            "pair: {lead: verifier}",
            DECIDED,
        ),
    ],
)
def test_the_verifier_is_said_to_have_done_what_it_did(recipe: str, expected: str) -> None:
    said = echo(f"name: x\n{recipe}", measured())
    assert said == f"{expected}: relevance, length and distinct-2 were never rewarded and stand beside it."


@pytest.mark.parametrize("online", ["rating", "implicit"])
def test_a_verifier_that_had_no_say_is_not_accused(online: str) -> None:
    free = measured(independent=True)
    assert echo("name: x\npanel: [{judge: pairwise}]", free) is None
    assert echo("name: x\npanel: [{judge: pairwise}]\nevaluate: {independent: false}", free) is None
    train = f"{{reward: {{judge: {online}}}, config: {{method: grpo, online: {{steps: 2}}}}}}"
    assert echo(f"name: x\nstages: [train]\ntrain: {train}", free) is None


def test_a_pairwise_judge_that_leads_and_measures_is_named_and_not_the_verifier() -> None:
    """Prompts without constraints: the verifier measures nothing."""
    best = measured(pass_rate=None, judged=(Judged("pairwise", independent=False, win_rate=RATE),))
    for panel in ("[{judge: pairwise}]", "[{judge: pairwise}, {judge: verifier}]"):
        said = echo(f"name: x\npanel: {panel}\nevaluate: {{independent: false}}", best)
        assert said is not None
        assert said.startswith("All that measures here also labelled (pairwise): ")
        assert "verifier" not in said


def test_a_judge_without_a_say_is_named_beside_an_echo() -> None:
    best = measured(independent=True, judged=(Judged("rating", independent=True), Judged("other", independent=True)))
    said = echo("name: x\npanel: [{judge: verifier}]", best)
    assert said is not None
    assert said.endswith("stand beside it, and rating and other had no say in training.")


def test_length_does_not_stand_beside_where_the_number_of_words_was_rewarded() -> None:
    said = echo("name: x\npanel: [{judge: verifier}, {judge: words}]", measured())
    assert said == f"{DECIDED}: relevance and distinct-2 were never rewarded and stand beside it."
    online = "{reward: [{judge: verifier}, {judge: words}], config: {method: grpo, online: {steps: 2}}}"
    said = echo(f"name: x\nstages: [train]\ntrain: {online}", measured())
    assert said == f"{REWARDED}: relevance and distinct-2 were never rewarded and stand beside it."


def test_what_nobody_knows_is_not_told() -> None:
    assert echo("", None) is None
    assert echo("", measured(independent=None)) is None
    assert echo("- a list", measured(independent=True)) is None
    assert str(echo("- a list", measured())).startswith("All that measures here also labelled: relevance")
    assert str(echo("name: x\npanel: [{judge: verifier}]", None)).startswith(DECIDED)


@pytest.mark.parametrize(("name", "expected"), [("quickstart", DECIDED), ("grpo", REWARDED), ("rlaif", None)])
def test_bundled_recipes(name: str, expected: str | None) -> None:
    from factory.recipe import dump

    said = echo(dump(load(name)), measured(independent=expected is None))
    assert said is None if expected is None else str(said).startswith(expected)
