"""The sentences of a report: what was gained and how surely, what it cost, what to beware of."""

from __future__ import annotations

from dataclasses import replace

from reported_run import measured, metrics, run_report

from factory.report import (
    page,
)
from factory.report.story import story, summary
from factory.schema import (
    Estimate,
    Judged,
)


def test_the_story_says_what_was_gained_and_how_surely() -> None:
    told = " ".join(story(run_report()))
    assert "meets every constraint on 39.0% (30.0% to 48.8%) of 100 held-out prompts" in told
    assert "the start policy on 14.0%" in told
    assert "a gain of +25.0 points (95% interval" in told
    assert "On 100 final prompts, which no decision had read: 35.0%" in told
    assert "a gain of +21.0 points (95% interval +11.0 to +30.0)" in told
    assert "It stopped by the rule max_rounds: 1 of at most 1 round done." in told
    assert "is also the judge that decided the labels" in told
    assert "both fell" not in told


def test_a_gain_that_could_be_noise_is_called_so() -> None:
    told = " ".join(story(run_report(final=measured(16, gain=Estimate(0.02, -0.05, 0.09)))))
    assert "+2.0 points (95% interval -5.0 to +9.0): too few prompts to tell it from no change" in told
    loss = " ".join(story(run_report(final=measured(10, gain=Estimate(-0.2, -0.3, -0.1)))))
    assert "a loss of -20.0 points (95% interval -30.0 to -10.0)." in loss


def test_the_trap_of_falling_log_probabilities_is_told() -> None:
    base = run_report()
    fallen = replace(base.rounds[1], metrics=metrics(-5.0, -20.0))
    told = " ".join(story(replace(base, rounds=[base.rounds[0], fallen])))
    assert "In round 1 the log-probabilities of chosen and of rejected answers both fell in training" in told


def test_no_champion_no_final_and_failures_are_told() -> None:
    base = run_report(champion=0, final=None, final_start=None, recipe="")
    failing = replace(base.rounds[1], report=replace(measured(10), failures=3))
    told = " ".join(story(replace(base, rounds=[base.rounds[0], failing])))
    assert "the champion is the start policy" in told
    assert "final prompts" not in told
    assert "3 held-out answers failed and count as not passing." in told
    assert "also the judge" not in told
    unconfirmed = " ".join(story(run_report(final=None, final_start=None)))
    assert "There were no final prompts: nothing that no decision had read confirms it." in unconfirmed


def test_a_run_at_work_and_a_run_not_begun() -> None:
    base = run_report(state="at work", final=None)
    assert "The run is at work: this page tells what there is so far." in story(base)
    nothing = run_report(state="at work", rounds=[], final=None, pairs=[], provenance={})
    assert story(nothing)[0] == "The start policy has not been measured yet."
    assert "<h2>Rounds</h2>" not in page.render(nothing)


def test_summary_is_the_story_and_a_table() -> None:
    text = summary(run_report())
    assert text.startswith("Round 1 is the champion")
    last = text.splitlines()[-1]
    assert last.startswith("1 *")
    assert "0.39 [0.3, 0.488]" in last


def test_what_it_cost_is_told() -> None:
    base = run_report()
    paid = replace(base.rounds[1], tokens=41000, prompt_tokens=9000, cost=1.25)
    told = story(replace(base, rounds=[base.rounds[0], paid]))
    assert "It took 5 min 0 s, 41,000 tokens written and 9,000 read, for $1.25." in told
    unknown = story(replace(base, rounds=[base.rounds[0], replace(paid, cost=None)]))
    assert any("at a price that is not known for every answer" in sentence for sentence in unknown)
    assert any(
        "nothing of it paid for" in sentence for sentence in story(replace(base, rounds=[replace(paid, cost=0)]))
    )


def test_judges_beside_the_verifier_are_told_with_their_part() -> None:
    base = run_report()
    other = Judged(
        "other", independent=True, win_rate=Estimate(0.6, 0.5, 0.7), length_controlled=Estimate(0.5, 0.4, 0.6)
    )
    best = replace(
        base.rounds[1].report, judged=(other, Judged("own", independent=False, win_rate=Estimate(0.9, 0.8, 1)))
    )  # type: ignore[type-var]
    report = replace(base, rounds=[base.rounds[0], replace(base.rounds[1], report=best)])
    told = " ".join(story(report))
    assert "By the judge other, which did not label, it wins 60.0% (50.0% to 70.0%)" in told
    assert "50.0% (40.0% to 60.0%) as it would be at equal lengths." in told
    assert "By the judge own, which also labelled, it wins 90.0%" in told
    html = page.render(report)
    for words in ("win rate by other", "other (independent)", "own (labelled)", "Win rate at equal lengths"):
        assert words in html


def test_broken_answers_that_surely_became_more_are_told() -> None:
    base = run_report()
    before = replace(
        base.rounds[0].report, broken={"loop": Estimate(0.01, 0.0, 0.05), "empty": Estimate(0.0, 0.0, 0.04)}
    )  # type: ignore[type-var]
    after = replace(base.rounds[1].report, broken={"loop": Estimate(0.3, 0.2, 0.4), "empty": Estimate(0.02, 0.0, 0.07)})  # type: ignore[type-var]
    told = " ".join(
        story(replace(base, rounds=[replace(base.rounds[0], report=before), replace(base.rounds[1], report=after)]))
    )
    assert "Answers of the kind 'loop' became more frequent: 30.0% (20.0% to 40.0%), at the start 1.0%" in told
    assert "'empty'" not in told


def test_a_run_without_constraints_is_told_by_win_rates() -> None:
    base = run_report(final=None, final_start=None)
    start = replace(base.rounds[0].report, pass_rate=None)  # type: ignore[type-var]
    best = replace(base.rounds[1].report, pass_rate=None, gain=None, win_rate=Estimate(0.62, 0.55, 0.7))  # type: ignore[type-var]
    told = " ".join(
        story(replace(base, rounds=[replace(base.rounds[0], report=start), replace(base.rounds[1], report=best)]))
    )
    assert "wins 62.0% (55.0% to 70.0%) of its answers against the start policy" in told
    assert "has not been measured" not in told


def test_the_run_that_went_on_past_its_champion_says_so() -> None:
    base = run_report()
    later = replace(base.rounds[1], round=2, report=measured(30))
    told = story(replace(base, rounds=[*base.rounds, later]))
    assert "It went on to round 2 and gives back round 1." in told
