"""The page that tells a run: what was gained, on how many prompts, how surely, what it cost, and why it stopped.

`collect` reads a run from the store, also one that is still at work; `page.render` makes one HTML file of it that needs
no network and no script; `summary` is the same story for a terminal.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factory import console
from factory.faults import FactoryError
from factory.schema import Decision, Estimate, PolicyReport, Preference, Round, digest

if TYPE_CHECKING:
    from factory.store import Store

PAIRS = 20
CUT = 1600  # characters of a text that the page shows
Row = dict[str, Any]

# ----------------------------------------------------------------------------------------------- what a page is of


class Training(NamedTuple):
    """A round's training in five numbers: margin and accuracy as means over the last quarter of its steps, and the
    changes of the log-probabilities of chosen and rejected answers, nats an answer. None: not logged."""

    steps: int
    margin: float | None
    accuracy: float | None
    chosen: float | None
    rejected: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """One round. `decision` is None while it is at work."""

    round: int
    policy: str = ""
    report: PolicyReport | None = None
    preferences: int | None = None
    agreement: Mapping[str, Any] = field(default_factory=dict)
    decision: Decision | None = None
    seconds: float = 0.0
    tokens: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    """What the training says of itself: that it was left out, or warnings."""

    @property
    def training(self) -> Training | None:
        """The end of training, from its metrics."""
        return training_of(self.metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything the page and the summary tell."""

    run: str
    state: str
    recipe: str
    rounds: Sequence[RoundView]
    champion: int = 0
    final: PolicyReport | None = None
    final_start: PolicyReport | None = None
    pairs: Sequence[Preference] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> PolicyReport | None:
        """The start policy on held-out prompts."""
        return self.rounds[0].report if self.rounds else None

    @property
    def best(self) -> PolicyReport | None:
        """The champion on held-out prompts."""
        return next((view.report for view in self.rounds if view.round == self.champion), None)

    @property
    def decision(self) -> Decision | None:
        """The last decision made."""
        return next((view.decision for view in reversed(self.rounds) if view.decision), None)


# -------------------------------------------------------------------------------------------------------- collecting


def collect(store: Store, run: str) -> RunReport:
    """What the store holds of a run, done or at work. FactoryError: there is no such run."""
    held = store.get_run(run)
    closed = {row.round: row for row in store.rows(Round, {"run": run})}
    if held is None and not closed:
        raise FactoryError(f"no run named {run!r}", where=str(store.folder), todo="factory status lists the runs")
    marks = store.marks(run)
    said: dict[int, dict[str, Row]] = {}
    for mark in marks:
        if mark["state"] == "done":
            said.setdefault(mark["round"], {})[mark["stage"]] = dict(mark["detail"] or {})
    numbers = sorted({*closed, *said})
    folder = store.run_folder(run)
    views = [_view(n, closed.get(n), said.get(n, {}), folder / f"round-{n}" / "metrics.jsonl") for n in numbers]
    final = next((details["final"] for details in said.values() if "final" in details), None)
    return RunReport(
        run=run,
        state=_state(store, run, marks, final),
        recipe=held["recipe"] if held else "",
        rounds=views,
        champion=max((n for n, row in closed.items() if row.champion), default=0),
        final=_report((final or {}).get("report")),
        final_start=_report((final or {}).get("start")),
        pairs=sample_pairs(store.rows(Preference, {"run": run})),
        provenance=_provenance(store, run, held),
    )


def _view(number: int, row: Round | None, said: Mapping[str, Row], metrics: Path) -> RoundView:
    kept = dict(row.report or {}) if row else {}
    decision = kept.get("decision")
    pairs = kept.get("pairs") or said.get("pair", {}).get("pairs") or {}
    labels = said.get("label", {})
    return RoundView(
        round=number,
        policy=row.policy if row else "",
        report=_report(kept.get("report") or said.get("evaluate", {}).get("report")),
        preferences=pairs.get("preferences"),
        agreement=kept.get("agreement") or labels.get("agreement") or {},
        decision=Decision(**decision) if decision else None,
        seconds=float(kept.get("seconds") or sum(detail.get("seconds") or 0.0 for detail in said.values())),
        tokens=int(kept.get("tokens") or 0),
        stages=kept.get("stages") or {stage: detail.get("seconds") or 0.0 for stage, detail in said.items()},
        metrics=read_metrics(metrics),
        notes=_notes(kept.get("training") or said.get("train", {}).get("training"), said.get("train", {})),
    )


def _notes(training: Mapping[str, Any] | None, stage: Mapping[str, Any]) -> list[str]:
    left_out = [f"no training: {stage['skipped']}"] if stage.get("skipped") else []
    return left_out + [str(warning) for warning in (training or {}).get("warnings") or ()]


def _report(data: Mapping[str, Any] | None) -> PolicyReport | None:
    return PolicyReport.from_json(data) if data else None


def _state(store: Store, run: str, marks: Sequence[Row], final: Row | None) -> str:
    if final is not None:
        return "done"
    if store.is_locked(run):
        return "at work"
    return "failed" if marks and marks[-1]["state"] == "failed" else "cut off"


def read_metrics(path: Path) -> list[Row]:
    """The lines of a metrics.jsonl; a last line that is still being written is left out, and no file is no lines."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def sample_pairs(preferences: Sequence[Preference], count: int = PAIRS) -> list[Preference]:
    """Pairs to read: drawn by the hash of their keys, so that nobody picked them; then by round and margin."""
    drawn = sorted(preferences, key=lambda pair: digest("page", pair.key))[:count]
    return sorted(drawn, key=lambda pair: (pair.round, -pair.margin, pair.key))


def _provenance(store: Store, run: str, held: Row | None) -> Row:
    columns = ["round", "split", "model", "model_hash", "failure", "tokens"]
    candidates = store.read("candidates", columns=columns, where={"run": run})
    splits = [row["split"] for row in store.read("prompts", columns=["split"])]
    return {
        "begun": held["at"] if held else None,
        "versions": dict((held or {}).get("info", {}).get("versions", {})),
        "prompts": {split: splits.count(split) for split in ("train", "heldout", "final") if split in splits},
        "answers": len(candidates),
        "failed answers": sum(1 for row in candidates if row["failure"]),
        "answer tokens": sum(row["tokens"] for row in candidates),
        "models": sorted({(row["round"], row["split"], row["model"], row["model_hash"]) for row in candidates}),
    }


def training_of(metrics: Sequence[Mapping[str, Any]]) -> Training | None:
    """A training's numbers from its metrics; None where none were logged."""
    steps = [row for row in metrics if any(name in row for name in ("loss", "rewards/margins", "logps/chosen"))]
    if not steps:
        return None
    quarter = max(1, len(steps) // 4)

    def end(name: str) -> float | None:
        return _mean_of(steps[-quarter:], name)

    def change(side: str) -> float | None:
        ratio = f"logratios/{side}"  # to the reference, of the same answers: batches that differ do not blur it
        before = _mean_of(steps[:1], ratio) if ratio in steps[0] else _mean_of(steps[:quarter], f"logps/{side}")
        after = end(ratio if ratio in steps[0] else f"logps/{side}")
        return None if before is None or after is None or len(steps) < 2 else after - before

    return Training(len(steps), end("rewards/margins"), end("rewards/accuracies"), change("chosen"), change("rejected"))


def _mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


# --------------------------------------------------------------------------------------------------------- the story


def story(report: RunReport) -> list[str]:
    """The run in a few sentences: the held-out gain, the headline from `final`, why it stopped, what to beware of."""
    return [*_gained(report), *_headline(report), *_why(report), *_beware(report)]


def _gained(report: RunReport) -> Iterator[str]:
    start, best = report.start, report.best
    if start is None or start.pass_rate is None:
        yield "The start policy has not been measured yet."
        return
    asked = f"{start.prompts:,} held-out prompts"
    if report.champion == 0 or best is None or best.pass_rate is None:
        yield f"The start policy meets every constraint on {percent(start.pass_rate.value)} of {asked}."
        if len(report.rounds) > 1:
            yield "No round made a policy that is better and fit to be kept: the champion is the start policy."
        return
    yield (
        f"Round {report.champion} is the champion: it meets every constraint on {rate(best.pass_rate)} of {asked}, "
        f"the start policy on {rate(start.pass_rate)}."
    )
    if best.gain is not None:
        yield f"That is {gain_words(best.gain)}."


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


def _why(report: RunReport) -> Iterator[str]:
    decision = report.decision
    if report.state == "done" and decision is not None:
        yield f"It stopped by the rule {decision.rule}: {decision.reason}."
    elif report.state != "done":
        yield f"The run is {report.state}: this page tells what there is so far."


def _beware(report: RunReport) -> Iterator[str]:
    if labels_and_measures(report.recipe):
        yield (
            "The verifier that measures is also the judge that decided the labels: relevance, length and distinct-2 "
            "were never rewarded and stand beside it."
        )
    both = [view.round for view in report.rounds if _both_fell(view.training)]
    if both:
        yield (
            f"In {rounds_words(both)} the log-probabilities of chosen and of rejected answers both fell in training: "
            "whatever the margin says, good answers did not become likelier."
        )
    failed = sum(view.report.failures for view in report.rounds if view.report)
    if failed:
        yield f"{failed:,} held-out answers failed and count as not passing."


def _both_fell(training: Training | None) -> bool:
    """Beyond a nat: batches differ by more than nothing."""
    return training is not None and (training.chosen or 0.0) < -1.0 and (training.rejected or 0.0) < -1.0


def labels_and_measures(recipe: str) -> bool:
    """Does the judge that decides the labels also measure held-out answers, or does the recipe say as much?"""
    import yaml

    data = yaml.safe_load(recipe) if recipe else None
    if not isinstance(data, dict):
        return False
    members = {str(part.get("name") or part.get("judge")): part.get("judge") for part in data.get("panel") or []}
    lead = (data.get("pair") or {}).get("lead") or next(iter(members), "")
    return members.get(str(lead)) == "verifier" or (data.get("evaluate") or {}).get("independent") is False


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


def rows(report: RunReport) -> list[Row]:
    """The table of rounds, one dict a round: what a terminal shows."""
    return [_row(view, report.champion) for view in report.rounds]


def _row(view: RoundView, champion: int) -> Row:
    measured, training = view.report, view.training
    return {
        "round": f"{view.round}{' *' if view.round == champion else ''}",
        "pass_rate": measured and measured.pass_rate,
        "gain": measured and measured.gain,
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


# ---------------------------------------------------------------------------------------------------------- the page


def write(store: Store, run: str) -> Path:
    """Write the run's report.html, whole or not at all; the file."""
    from factory.filesystem import write_whole
    from factory.page import render

    path = store.run_folder(run) / "report.html"
    write_whole(path, render(collect(store, run)))
    return path


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
