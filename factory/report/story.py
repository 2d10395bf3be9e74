"""A run in sentences: what was gained and how surely, what it cost, why it stopped, and what to beware of.

A gain that could be noise is called so, and so is a measure made by the judge that labelled.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from factory import console
from factory.report.echoes import echo
from factory.schema import Estimate, Judged, PolicyReport

if TYPE_CHECKING:
    from factory.report import RoundView, Row, RunReport, Training

UNCHANGED = "No round made a policy that is better and fit to be kept: the champion is the start policy."


ROLES = {True: ", which did not label,", False: ", which also labelled,", None: ""}


def story(report: RunReport) -> list[str]:
    """The run in a few sentences: held-out gain, the headline from `final`, its cost, why it stopped, warnings."""
    return [*_gained(report), *_judged(report), *_headline(report), *_cost(report), *_why(report), *_beware(report)]


# ----------------------------------------------------------------------------------------------------------- gain


def _gained(report: RunReport) -> Iterator[str]:
    start, best = report.start, report.best
    if start is None:
        yield "The start policy has not been measured yet."
        return
    asked = f"{start.prompts:,} held-out prompts"
    if start.pass_rate is None:
        yield from _without_grades(report, asked)
    elif report.champion == 0 or best is None or best.pass_rate is None:
        yield f"The start policy meets every constraint on {percent(start.pass_rate.value)} of {asked}."
        if len(report.rounds) > 1:
            yield UNCHANGED
    else:
        yield (
            f"Round {report.champion} is the champion: it meets every constraint on {rate(best.pass_rate)} of {asked}, "
            f"the start policy on {rate(start.pass_rate)}."
        )
        if best.gain is not None:
            yield f"That is {gain_words(best.gain)}."


def _without_grades(report: RunReport, asked: str) -> Iterator[str]:
    """Prompts without constraints: win rates are all there is."""
    best = report.best
    if report.champion == 0 or best is None:
        yield f"The start policy has answered {asked}, which have no constraints to be graded by."
        if len(report.rounds) > 1:
            yield UNCHANGED
        return
    won = f" and wins {rate(best.win_rate)} of its answers against the start policy" if best.win_rate else ""
    yield f"Round {report.champion} is the champion: it has answered {asked}{won}."


def _judged(report: RunReport) -> Iterator[str]:
    """What judges beside the verifier say of the champion."""
    best = report.best
    if best is None or report.champion == 0:
        return
    for judge in best.judged:
        if judge.win_rate is not None:
            yield _judge_words(judge)


def _judge_words(judge: Judged) -> str:
    who = ROLES[judge.independent]
    text = f"By the judge {judge.judge}{who} it wins {rate(judge.win_rate)} against the start policy"  # type: ignore[arg-type]
    if judge.length_controlled is not None:
        text += f"; {rate(judge.length_controlled)} as it would be at equal lengths"
    return text + "."


def _headline(report: RunReport) -> Iterator[str]:
    final, start = report.final, report.final_start
    if report.state == "done" and report.champion and final is None:
        yield "There were no final prompts: nothing that no decision had read confirms it."
    if final is None or final.pass_rate is None:
        return
    text = f"On {final.prompts:,} final prompts, which no decision had read: {rate(final.pass_rate)}"
    if start is not None and start.pass_rate is not None:
        text += f" against {rate(start.pass_rate)}"
    yield text + (f", {gain_words(final.gain)}." if final.gain else ".")


# ---------------------------------------------------------------------------------------------------- cost and end


def _cost(report: RunReport) -> Iterator[str]:
    seconds = sum(view.seconds for view in report.rounds)
    written, read = (sum(getattr(view, name) for view in report.rounds) for name in ("tokens", "prompt_tokens"))
    if not seconds and not written:
        return
    parts = [console.span(seconds)]
    if written or read:
        parts.append(f"{written:,} tokens written and {read:,} read")
        parts.append(dollars(report.cost))
    yield f"It took {', '.join(parts)}."


def dollars(cost: float | None) -> str:
    """$1.20; no cost; a price that is unknown."""
    if cost is None:
        return "at a price that is not known for every answer"
    return "nothing of it paid for" if cost == 0 else f"for ${cost:,.2f}" if cost >= 0.01 else f"for ${cost:.2g}"


def _why(report: RunReport) -> Iterator[str]:
    decision = report.decision
    if report.state == "done" and decision is not None:
        yield f"It stopped by the rule {decision.rule}: {decision.reason}."
        last = report.rounds[-1].round
        if report.champion < last:
            name = f"round {report.champion}" if report.champion else "the start policy"
            yield f"It went on to round {last} and gives back {name}."
    elif report.state != "done":
        yield f"The run is {report.state}: this page tells what there is so far."


# -------------------------------------------------------------------------------------------------------- warnings


def _beware(report: RunReport) -> Iterator[str]:
    best = report.best
    if (said := echo(report.recipe, best)) is not None:
        yield said
    both = [view.round for view in report.rounds if _both_fell(view.training)]
    if both:
        yield (
            f"In {rounds_words(both)} the log-probabilities of chosen and of rejected answers both fell in training: "
            "whatever the margin says, good answers did not become likelier."
        )
    yield from _broken(report.start, best if report.champion else None)
    failed = sum(view.report.failures for view in report.rounds if view.report)
    if failed:
        yield f"{failed:,} held-out answers failed and count as not passing."
    left_out = max((view.report.near_trained or 0 for view in report.rounds if view.report), default=0)
    if left_out:
        yield f"{left_out:,} held-out prompts were left out, as they are near one that may be trained on."


def _broken(start: PolicyReport | None, best: PolicyReport | None) -> Iterator[str]:
    """Kinds of broken answers that the champion surely gives more often than the start policy."""
    for kind, share in (best.broken if best else {}).items():
        before = start.broken.get(kind) if start else None
        if before is not None and share.low > before.high:
            yield f"Answers of the kind {kind!r} became more frequent: {rate(share)}, at the start {rate(before)}."


def _both_fell(training: Training | None) -> bool:
    """Beyond a nat: batches differ by more than nothing."""
    return training is not None and (training.chosen or 0.0) < -1.0 and (training.rejected or 0.0) < -1.0


# ----------------------------------------------------------------------------------------------------------- words


def gain_words(gain: Estimate) -> str:
    """A gain as a person says it, and whether it can be told from nothing."""
    if math.isnan(gain.low):
        return f"{points(gain.value)} (no interval: too few data)"
    told = "" if gain.low > 0 or gain.high < 0 else ": too few prompts to tell it from no change"
    what = "a gain" if gain.value >= 0 else "a loss"
    return f"{what} of {points(gain.value)} (95% interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}){told}"


def rounds_words(numbers: Sequence[int]) -> str:
    """round 1; rounds 1 and 2; rounds 1, 2 and 3."""
    if len(numbers) == 1:
        return f"round {numbers[0]}"
    return f"rounds {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def percent(value: float) -> str:
    """39.3%"""
    return f"{100 * value:.1f}%"


def rate(estimate: Estimate) -> str:
    """39.3% (32.1% to 46.9%)"""
    if math.isnan(estimate.low):
        return percent(estimate.value)
    return f"{percent(estimate.value)} ({percent(estimate.low)} to {percent(estimate.high)})"


def points(value: float) -> str:
    """+25.0 points: of a hundred."""
    return f"{100 * value:+.1f} points"


# -------------------------------------------------------------------------------------------------- for a terminal


def rows(report: RunReport) -> list[Row]:
    """The table of rounds, one dict a round: what a terminal shows."""
    return [_row(view, report.champion) for view in report.rounds]


def _row(view: RoundView, champion: int) -> Row:
    measured, training = view.report, view.training
    return {
        "round": f"{view.round}{' *' if view.round == champion else ''}",
        "pass_rate": measured and measured.pass_rate,
        "gain": measured and measured.gain,
        "win_rate": measured and measured.win_rate,
        "prefs": view.preferences,
        "margin": training and training.margin,
        "accuracy": training and training.accuracy,
        "d_chosen": training and training.chosen,
        "d_rejected": training and training.rejected,
        "kl": measured and measured.kl_sequence and measured.kl_sequence.value,
        "tokens": measured and measured.tokens and measured.tokens.value,
        "relevance": measured and measured.relevance and measured.relevance.value,
        "distinct_2": measured and measured.distinct_2,
        "seconds": round(view.seconds),
    }


def summary(report: RunReport) -> str:
    """The story and the table of rounds as plain text; * marks the champion."""
    return "\n".join([*story(report), "", console.table(rows(report))])


QUERIES = [
    (
        "the rounds as a table",
        "SELECT round, pass_rate, pass_low, pass_high, kl, mean_tokens, reason FROM rounds "
        "WHERE run = $run ORDER BY round",
    ),
    (
        "what each judge said",
        "SELECT judge, count(*) AS judgments, avg(p_a) AS p_a, avg(score) AS score, count(failure) AS failures "
        "FROM judgments WHERE run = $run AND NOT canary GROUP BY judge",
    ),
    (
        "the surest preferences",
        "SELECT round, margin, agreement, prompt, chosen, rejected FROM preferences "
        "WHERE run = $run ORDER BY margin DESC LIMIT 5",
    ),
    (
        "held-out answers that miss a constraint",
        "SELECT c.round, c.text, j.score, j.detail FROM judgments j JOIN candidates c ON c.key = j.candidate_a "
        "WHERE j.run = $run AND j.judge = 'verifier' AND c.split = 'heldout' AND j.score < 1 LIMIT 5",
    ),
    (
        "what the calls took",
        "SELECT round, purpose, model, count(*) AS calls, sum(completion_tokens) AS tokens, sum(cost) AS cost "
        "FROM calls WHERE run = $run GROUP BY ALL ORDER BY 1, 2",
    ),
]


def queries(run: str) -> list[tuple[str, str]]:
    """What to ask of the store next: (what it tells, SQL with the run's name filled in)."""
    name = "'" + run.replace("'", "''") + "'"
    return [(what, sql.replace("$run", name)) for what, sql in QUERIES]


def command_line(sql: str) -> str:
    """The shell command that asks it."""
    return f"factory query {shlex.quote(sql)}"
