"""Runs of one store beside each other: what each reached, how far it moved, and what making it took.

    factory compare RUN RUN ...          factory compare --group dpo=A,B --group kto=C,D --out compare.svg

Each round of each run is a line: quality by the measure that decisions read, distance as KL from the start, and the
seconds and tokens that went into making the policy until then. Making is all stages but the evaluation, which is not
the method's; what a run shares with an earlier one is charged to it as if it had done it by itself, so that methods
compare. Runs that differ in their seed alone can be one group: the mean with a t interval over the runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from markupsafe import Markup

from factory.faults import FactoryError
from factory.report import charts
from factory.rounds.branching import opened
from factory.rounds.sweep import alone, over
from factory.schema import Estimate, PolicyReport, Round

if TYPE_CHECKING:
    from factory.rounds.runbook import Run
    from factory.store import Store

Time = Literal["clock", "processor"]
MEASURING = ("heldout", "final")
"""Splits whose answers measure a policy and make none."""
NOT_SAMPLED = ("given", "judgment", "probe")
"""Kinds of candidates that no policy sampled to be learnt from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One round of a run, or the mean of several runs; [value, low, high]. None: not measured, or not kept.

    `win_rate` is by the judge beside the verifier. `seconds`: of the clock, and `processor_seconds`: of all processors,
    on making the policy until then, by the tries that ended; `sampled`: tokens of answers sampled for it until then.
    """

    round: int
    pass_rate: Estimate | None = None
    gain: Estimate | None = None
    win_rate: Estimate | None = None
    kl: Estimate | None = None
    tokens: Estimate | None = None
    seconds: Estimate | None = None
    processor_seconds: Estimate | None = None
    sampled: Estimate | None = None

    def time(self, time: Time) -> Estimate | None:
        """The seconds by that measure."""
        return self.seconds if time == "clock" else self.processor_seconds


MEASURES = tuple(field.name for field in fields(Line) if field.name != "round")


class Setting(NamedTuple):
    """What two runs must have in common for their measures to compare."""

    model: str
    prompts: str
    answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A run through its rounds, or the `runs` of a group. `judges`: who says the win rate. `independent`: does what
    measures it not label (None: nobody knows)?"""

    name: str
    runs: tuple[str, ...]
    lines: tuple[Line, ...]
    judges: tuple[str, ...] = ()
    independent: bool | None = None
    setting: Setting

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "runs": list(self.runs),
            "judges": list(self.judges),
            "independent": self.independent,
            "setting": self.setting._asdict(),
            "rounds": [
                {"round": line.round}
                | {name: value and value.plain() for name in MEASURES for value in [getattr(line, name)]}
                for line in self.lines
            ],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs and groups beside each other, and what the reader has to know of them."""

    courses: tuple[Course, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """A line for every round of every run, for a table."""
        grouped = any(len(course.runs) > 1 for course in self.courses)
        return [
            {"run": course.name}
            | ({"runs": len(course.runs)} if grouped else {})
            | {"round": line.round}
            | {name.replace("_", " "): _shown(name, getattr(line, name)) for name in MEASURES}
            for course in self.courses
            for line in course.lines
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an estimate is [value, low, high], with null for bounds that are not known."""
        return {"courses": [course.to_json() for course in self.courses], "notes": list(self.notes)}


def _shown(name: str, value: Estimate | None) -> Estimate | int | None:
    """A number without an interval as a whole one, where nobody reads its fractions."""
    if value is None or not math.isnan(value.low) or name not in ("seconds", "processor_seconds", "sampled"):
        return value
    return round(value.value)


def compare(store: Store, runs: Sequence[str], groups: Mapping[str, Sequence[str]] | None = None) -> Comparison:
    """Runs and groups of runs by name, in their order. FactoryError: there is no such run, or none of its rounds is
    done."""
    groups = groups or {}
    if not runs and not groups:
        raise FactoryError("no run to compare is named", todo="factory compare RUN RUN (factory status lists the runs)")
    if doubled := sorted(set(runs) & set(groups)):
        raise FactoryError(f"{doubled[0]!r} is a run and a group", todo="give the group another label")
    named = [*runs, *(name for names in groups.values() for name in names)]
    read = {name: course_of(store, name) for name in dict.fromkeys(named)}
    together = {label: [read[name] for name in names] for label, names in groups.items()}
    courses = [*(read[name] for name in dict.fromkeys(runs)), *(mean_of(*group) for group in together.items())]
    notes = [*_cut(together), *_unlike(list(read.values())), *_echoes(read.values())]
    return Comparison(tuple(courses), tuple(notes))


# ------------------------------------------------------------------------------------------------------- one run


def course_of(store: Store, run: str) -> Course:
    """A run as the store holds it, also one at work. FactoryError: there is none, or none of its rounds is done."""
    flow = opened(store, run, rules=False)
    rows = {row.round: row.report for row in store.rows(Round, {"run": run})}
    reports = {number: PolicyReport.from_json(row["report"]) for number, row in sorted(rows.items())}
    if not reports:
        raise FactoryError(f"no round of run {run!r} is done yet", where=str(store.folder), todo="let it go on first")
    efforts, last = {number: effort_of(flow, number) for number in reports if number}, reports[max(reports)]
    return Course(
        name=run,
        runs=(run,),
        lines=tuple(_line(number, report, efforts) for number, report in reports.items()),
        judges=tuple(judged.judge for judged in last.judged if judged.win_rate is not None)[:1],
        independent=last.independent,
        setting=Setting(flow.recipe.model, _heldout(flow), last.answers),
    )


def _line(number: int, report: PolicyReport, efforts: Mapping[int, Effort]) -> Line:
    """A round with all the effort until then. The start has moved nowhere."""
    until = [effort for each, effort in efforts.items() if each <= number]
    win_rates = [judged.win_rate for judged in report.judged if judged.win_rate is not None]
    return Line(
        round=number,
        pass_rate=report.pass_rate,
        gain=report.gain,
        win_rate=win_rates[0] if win_rates else None,
        kl=report.kl_sequence if number else Estimate.alone(0.0),
        tokens=report.tokens,
        seconds=alone(_sum(effort.seconds for effort in until)),
        processor_seconds=alone(_sum(effort.processor_seconds for effort in until)),
        sampled=alone(_sum(effort.sampled for effort in until)),
    )


def _heldout(flow: Run) -> str:
    """The hash of the run's held-out prompts; empty where an earlier version kept none."""
    return str(((flow.done(0, "prompts") or {}).get("data") or {}).get("heldout", ""))


def _sum(values: Iterable[float | None]) -> float | None:
    """Of all; None where one is not known."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return math.fsum(known) if len(known) == len(listed) else None


# -------------------------------------------------------------------------------------------------------- effort


class Effort(NamedTuple):
    """What making a round's policy took: seconds, and tokens sampled. None: not kept."""

    seconds: float | None
    processor_seconds: float | None
    sampled: float | None


def effort_of(flow: Run, number: int) -> Effort:
    """The effort of a round's own stages, those that it shares with an earlier run too."""
    steps = flow.recipe.steps_of(number)
    doers = {step.name: _doer(flow, number, step.name) for step in steps}
    said = [(run.done(number, name) or {}) if run else {} for name, run in doers.items()]
    trainers = {run.name if run else "": run for s in steps if s.stage == "train" for run in [doers[s.name]]}
    online = [_tokens(run, number, online=True) if run else None for run in trainers.values()]
    return Effort(
        seconds=_sum(detail.get("seconds") for detail in said),
        processor_seconds=_sum(detail.get("processor_seconds") for detail in said),
        sampled=_sum([_tokens(flow, number, online=False), *online]),
    )


def _doer(flow: Run, number: int, step: str) -> Run | None:
    """The run that did a step which this one shares, maybe over several runs; None where that run is gone."""
    origin = (flow.done(number, step) or {}).get("shared")
    if origin is None:
        return flow
    return _doer(opened(flow.store, origin, rules=False), number, step) if flow.store.get_run(origin) else None


def _tokens(flow: Run, number: int, *, online: bool) -> float:
    """Tokens of a round's answers that a policy sampled: while it was trained (`online`), or before."""
    columns = ["key", "call_key", "kind", "split", "tokens"]
    rows = flow.store.read("candidates", columns=columns, where={"run": flow.name, "round": number})
    made = [row for row in rows if row["split"] not in MEASURING and row["kind"] not in NOT_SAMPLED]
    read = {row["call_key"] or row["key"]: row["tokens"] for row in made if (row["kind"] == "online") == online}
    return float(sum(read.values()))


# -------------------------------------------------------------------------------------------------------- groups


def mean_of(label: str, courses: Sequence[Course]) -> Course:
    """The mean over runs, round by round, of the rounds that all of them have done."""
    rounds = set.intersection(*({line.round for line in course.lines} for course in courses))
    lines = {number: [_at(course, number) for course in courses] for number in sorted(rounds)}
    known = {course.independent for course in courses}
    return Course(
        name=label,
        runs=tuple(course.name for course in courses),
        lines=tuple(_mean(number, each) for number, each in lines.items()),
        judges=tuple(dict.fromkeys(judge for course in courses for judge in course.judges)),
        independent=False if False in known else None if None in known else True,
        setting=courses[0].setting,
    )


def _at(course: Course, number: int) -> Line:
    return next(line for line in course.lines if line.round == number)


def _mean(number: int, lines: Sequence[Line]) -> Line:
    measures: dict[str, Estimate | None] = {}
    for name in MEASURES:
        values = [getattr(line, name) for line in lines]
        measures[name] = None if None in values else over(values)
    return Line(round=number, **measures)


# --------------------------------------------------------------------------------------------------------- notes


def _cut(groups: Mapping[str, Sequence[Course]]) -> list[str]:
    found = []
    for label, courses in groups.items():
        lasts = {course.name: course.lines[-1].round for course in courses}
        if len(set(lasts.values())) > 1:
            told = ", ".join(f"{name} {last}" for name, last in lasts.items())
            found.append(f"group {label} is told to round {min(lasts.values())}, which all its runs have done ({told})")
    return found


def _unlike(courses: Sequence[Course]) -> list[str]:
    """What keeps these runs from being compared."""
    settings = [course.setting for course in courses]
    kinds = (
        ("begin with different models", {setting.model for setting in settings}),
        ("are measured on different held-out prompts", {s.prompts for s in settings if s.prompts}),
        ("are measured on different numbers of held-out answers", {setting.answers for setting in settings}),
    )
    return [
        f"these runs {what}: their differences are not the methods' alone" for what, found in kinds if len(found) > 1
    ]


def _echoes(courses: Iterable[Course]) -> list[str]:
    names = [course.name for course in courses if course.independent is False]
    return [f"{', '.join(names)}: what measures has labelled, too, so that its pass rate is an echo"] if names else []


# ------------------------------------------------------------------------------------------------------- picture


def picture(found: Comparison, time: Time = "clock") -> Markup:
    """Quality against KL, and beneath it against the seconds of making, a line for each run through its rounds: an SVG
    file. Quality is the pass rate, or the win rate where nothing can be passed; a group has its interval upright alone.
    FactoryError: seconds by that measure were not kept."""
    lines = [line for course in found.courses for line in course.lines]
    quality = next((name for name in ("pass_rate", "win_rate") if any(getattr(line, name) for line in lines)), "")
    name = f"held-out {quality.replace('_', ' ')}"
    unkept = [course.name for course in found.courses if any(line.time(time) is None for line in course.lines)]
    if unkept:
        other: Time = "clock" if time == "processor" else "processor"
        without = any(line.time(other) is None for line in lines)
        raise FactoryError(
            f"seconds of the {time} were not kept by {', '.join(unkept)}",
            todo="draw the others alone" if without else f"take the other's: --time {other}",
        )
    if not quality:
        raise FactoryError("none of these runs has a pass rate or a win rate to draw", todo="see the table")
    panels = [
        _panel(found, quality, f"{name} against KL from the start", "KL, nats an answer", None),
        _panel(found, quality, f"{name} against seconds of making ({time})", "seconds", time),
    ]
    return charts.sheet(panels, [_named(course) for course in found.courses], columns=1)


def _named(course: Course) -> str:
    return course.name if len(course.runs) == 1 else f"{course.name} (mean of {len(course.runs)} runs)"


def _as_share(estimate: Estimate) -> Estimate:
    """Cut where no share can be: a t interval over few runs knows nothing of 0 and 1. Unknown (NaN) bounds stay so."""
    low, high = estimate.low, estimate.high
    return Estimate(estimate.value, 0.0 if low < 0 else low, 1.0 if high > 1 else high)


def _panel(found: Comparison, quality: str, title: str, x_name: str, time: Time | None) -> tuple[str, Markup]:
    routes = []
    for place, course in enumerate(found.courses):
        places = [(line, line.time(time) if time else line.kl, getattr(line, quality)) for line in course.lines]
        spots = [
            charts.Spot(str(line.round), x if len(course.runs) == 1 else Estimate.alone(x.value), _as_share(y))
            for line, x, y in places
            if x is not None and y is not None
        ]
        routes.append(charts.Route(course.name, spots, *charts.dress(place)))
    chart = charts.paths(routes, title=title, x_name=x_name, y_name=quality.replace("_", " "), show="{:.0%}".format)
    return title, chart
