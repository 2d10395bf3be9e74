"""A sweep: one run for each value of a setting (and each seed), sharing all that comes before the setting matters.

    factory sweep rlaif --beta 0.01,0.1,1          factory sweep verifiable --seeds 1,2,3

The first run does everything. Each other run begins at the first stage of round 1 that its setting changes, with the
rows of the first run before it, so that prompts, samples and judgments are paid for once and all values learn from the
same data. What came out is one table, quality against distance: held-out pass rate, KL from the start, margins,
degenerate answers; with several seeds the mean of a value with a t interval over them, else the interval of the run's
own prompts. The master dial of such a sweep is beta: it weighs the KL against the reward (arXiv 2305.18290, eq. 3).
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from markupsafe import Markup

from factory import console
from factory.faults import ConfigError, FactoryError
from factory.rounds.branching import Point
from factory.rounds.forecast import Shared
from factory.schema import Estimate, PolicyReport, digest
from factory.stats.quantiles import t_of
from factory.store import check_run_name

if TYPE_CHECKING:
    from factory.recipe import Recipe
    from factory.store import Store

Load = Callable[[Sequence[str]], "Recipe"]
"""Overrides (`a.b=c`) to the recipe with them."""

COMMON = ("model", "engine", "seed", "prompts", "isolate")
READS: Mapping[str, tuple[str, ...]] = {
    "generate": ("generate",),
    "revise": ("revise",),
    "label": ("label", "panel"),
    "collect": ("collect",),
    "pair": ("pair", "panel"),
    "train": ("train", "pair"),
}
"""The keys of a recipe that decide what a stage does, besides those common to all."""
MEASURES = ("pass_rate", "gain", "win_rate", "kl", "margin", "accuracy", "degenerate", "distinct_2", "tokens")


class Variant(NamedTuple):
    """One run of a sweep: the values by key, the seed, the run's name and its recipe."""

    values: Mapping[str, Any]
    seed: int
    run: str
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run of a sweep came to, by its last policy; [value, low, high]. None: not measured."""

    values: Mapping[str, Any]
    seed: int
    run: str
    shares: str
    round: int
    champion: int
    stopped_by: str
    measures: Mapping[str, Estimate | None]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"measures": _json(self.measures)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A whole sweep: each run, and each value over its seeds."""

    name: str
    keys: tuple[str, ...]
    runs: tuple[Outcome, ...]

    @property
    def by_value(self) -> list[tuple[Mapping[str, Any], int, dict[str, Estimate | None]]]:
        """Values, how many seeds, and the measures over them."""
        groups: dict[str, list[Outcome]] = {}
        for one in self.runs:
            groups.setdefault(digest(one.values), []).append(one)
        return [
            (group[0].values, len(group), {m: over([one.measures.get(m) for one in group]) for m in MEASURES})
            for group in groups.values()
        ]

    def rows(self) -> list[dict[str, Any]]:
        """A line for each value, for a table."""
        return [
            {**{key.rpartition(".")[2]: value for key, value in values.items()}, "seeds": seeds, **measures}
            for values, seeds, measures in self.by_value
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "sweep": self.name,
            "keys": list(self.keys),
            "runs": [one.to_json() for one in self.runs],
            "values": [
                {"values": dict(values), "seeds": seeds, "measures": _json(measures)}
                for values, seeds, measures in self.by_value
            ],
        }


def _json(measures: Mapping[str, Estimate | None]) -> dict[str, list[float | None] | None]:
    return {name: None if value is None else value.plain() for name, value in measures.items()}


# ------------------------------------------------------------------------------------------------------ what to run


def values_of(text: str) -> tuple[str, list[Any]]:
    """`key=a,b,c` as key and values. FactoryError: it is not of that form."""
    key, sign, listed = text.partition("=")
    try:
        values = yaml.safe_load(f"[{listed}]")
    except yaml.YAMLError as error:
        raise FactoryError(f"--vary {text!r}: {listed!r} is no list of values", todo="write key=0.1,0.5,1") from error
    if not key or not sign or not values:
        raise FactoryError(f"--vary {text!r} is not of the form key=value,value", todo="write key=0.1,0.5,1")
    if len({repr(value) for value in values}) < len(values):
        raise FactoryError(f"--vary {text!r} has a value twice")
    return key, values


def variants(load: Load, name: str, vary: Mapping[str, Sequence[Any]], seeds: Sequence[int] = ()) -> list[Variant]:
    """Every combination of values, and of each with every seed; seeds of the recipe's own where none are given.
    ConfigError: a recipe with such values has faults, or two runs would have one name."""
    if not vary and not seeds:
        raise FactoryError("a sweep varies something", todo="add --vary key=value,value, --beta 0.1,1 or --seeds 1,2,3")
    found = []
    for seed in seeds or (None,):
        for chosen in itertools.product(*vary.values()):
            values = dict(zip(vary, chosen, strict=True))
            told = [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip().removesuffix('...').strip()}"
                    for key, value in values.items()]  # fmt: skip
            recipe = load([*told, *([] if seed is None else [f"seed={seed}"])])
            run = "-".join([name, *(_slug(key, value) for key, value in values.items())])
            found.append(Variant(values, recipe.seed, run if seed is None else f"{run}-seed-{seed}", recipe))
    _check_names(found)
    return found


def _slug(key: str, value: Any) -> str:
    """A value as part of a run's name."""
    short = re.sub(r"[^A-Za-z0-9.]+", "_", str(value)).strip("_.") or "none"
    return f"{key.rpartition('.')[2]}-{short if len(short) <= 24 else digest(value)[:8]}"


def point_between(origin: Variant, other: Variant) -> Point | None:
    """Where the runs part: the first stage of round 1 that the difference changes; None when that is at the start, or
    when no stage of a round is changed."""
    if any(getattr(origin.recipe, key) != getattr(other.recipe, key) for key in COMMON):
        return None
    ours, theirs = (variant.recipe.steps_of(1) for variant in (other, origin))
    for place, (step, before) in enumerate(zip(ours, theirs, strict=False)):
        mine, its = other.recipe.at(step), origin.recipe.at(before)
        same = (step.name, step.stage) == (before.name, before.stage)
        if not same or any(getattr(mine, key) != getattr(its, key) for key in (*COMMON, *READS[step.stage])):
            return Point(origin.run, 0, step.name) if place else None
    return None


def points(found: Sequence[Variant]) -> list[Point | None]:
    """Where each run begins: at a point of the first run with its seed; None where it does everything itself."""
    first: dict[int, Variant] = {}
    origins = [first.setdefault(variant.seed, variant) for variant in found]
    return [None if one is origin else point_between(origin, one) for one, origin in zip(found, origins, strict=True)]


def shared(found: Sequence[Variant]) -> list[Shared]:
    """What each run takes over from those before it: stages of round 1, and the start's answers where the same model
    has answered the same held-out prompts in the same way."""
    seen: set[str] = set()
    told = []
    for variant, point in zip(found, points(found), strict=True):
        recipe = variant.recipe
        asked = recipe.evaluate.model_dump(exclude={"judge", "independent"})
        start = digest(recipe.model, recipe.engine.model_dump(), recipe.seed, recipe.prompts.model_dump(), asked)
        told.append(Shared(point.step if point else "", start in seen))
        seen.add(start)
    return told


# -------------------------------------------------------------------------------------------------------- running


def sweep(store: Store, name: str, found: Sequence[Variant], keys: Iterable[str]) -> Sweep:
    """Run every variant to its end, one after the other; the same call again goes on where it was cut off."""
    done: list[Outcome] = []
    for number, (variant, point) in enumerate(zip(found, points(found), strict=True), 1):
        console.note(f"{number} of {len(found)}: {variant.run}" + (f", from {point.step} on" if point else ""))
        done.append(_run(store, variant, point))
    return Sweep(name=name, keys=tuple(keys), runs=tuple(done))


def _check_names(found: Sequence[Variant]) -> None:
    names = [variant.run for variant in found]
    for name in names:
        check_run_name(name)
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError([f"two runs would be called {name}" for name in doubled], where="the sweep")


def _run(store: Store, variant: Variant, point: Point | None) -> Outcome:
    from factory.rounds import run
    from factory.rounds.runbook import Run

    run(store, variant.recipe, variant.run, point)
    flow = Run(store, variant.recipe, variant.run)
    report = flow.reports[-1]
    return Outcome(
        values=variant.values,
        seed=variant.seed,
        run=variant.run,
        shares="" if point is None else f"{point.run} before {point.step}",
        round=flow.last,
        champion=flow.champion,
        stopped_by=flow.decision.rule,
        measures=measures_of(report),
    )


def measures_of(report: Mapping[str, Any]) -> dict[str, Estimate | None]:
    """What a sweep tells of a round, from its report."""
    policy = PolicyReport.from_json(report["report"])
    last = (report.get("training") or {}).get("last") or {}
    return {
        "pass_rate": policy.pass_rate,
        "gain": policy.gain,
        "win_rate": policy.win_rate,
        "kl": policy.kl_sequence,
        "margin": alone(last.get("rewards/margins")),
        "accuracy": alone(last.get("rewards/accuracies")),
        "degenerate": dict(policy.broken).get("degenerate"),
        "distinct_2": alone(policy.distinct_2),
        "tokens": policy.tokens,
    }


def alone(value: float | None) -> Estimate | None:
    """A number without an interval; None: not measured."""
    return None if value is None else Estimate.alone(value)


def over(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The mean over seeds with a 95% t interval (n - 1 degrees of freedom); of one seed its own interval."""
    known = [e for e in estimates if e is not None and not math.isnan(e.value)]
    if not known:
        return None
    if len(known) == 1:
        return known[0]
    values = [e.value for e in known]
    mean = statistics.fmean(values)
    half = t_of(0.95, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


# -------------------------------------------------------------------------------------------------------- picture

PANELS = (
    ("held-out pass rate", "pass_rate"),
    ("KL from the start, nats an answer", "kl"),
    ("margin of rewards at the end of training", "margin"),
    ("share of degenerate answers", "degenerate"),
    ("distinct pairs of words", "distinct_2"),
    ("tokens of an answer", "tokens"),
)
Told = tuple[Mapping[str, Any], Mapping[str, Estimate | None]]
"""Values by key, and what was measured of them."""


def picture(found: Sweep) -> Markup:
    """Every measure as an SVG file: against the first key whose values are numbers (their logarithm where all are above
    0 and span a factor of ten), a line for each value of the other keys; where no key has numbers, or seeds alone
    differ, a point for each value or seed. Empty where nothing was measured or nothing differs."""
    from factory.report import charts

    told: list[Told] = [(values, measures) for values, _, measures in found.by_value]
    if not found.keys:
        told = [({"seed": one.seed}, one.measures) for one in found.runs]
    if len(told) < 2:
        return Markup()
    key = next((key for key in found.keys if _are_numbers([values[key] for values, _ in told])), None)
    if key is None:
        named = [(_named(values), measures) for values, measures in told]
        return charts.sheet(
            [(t, charts.column([(name, m[measure]) for name, m in named], title=t)) for t, measure in PANELS]
        )
    lines = _lines_of(told, key)
    names = list(lines) if len(lines) > 1 else []
    return charts.sheet([(title, _panel(lines, key, title, measure)) for title, measure in PANELS], names)


def _are_numbers(values: Sequence[Any]) -> bool:
    """Two different numbers or more, and nothing else?"""
    return len(set(map(str, values))) > 1 and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    )


def _lines_of(told: Sequence[Told], key: str) -> dict[str, list[Told]]:
    """What belongs to each value of the keys beside this one, by how it is called."""
    lines: dict[str, list[Told]] = {}
    for values, measures in told:
        others = {name: value for name, value in values.items() if name != key}
        lines.setdefault(_named(others), []).append((values, measures))
    return lines


def _named(values: Mapping[str, Any]) -> str:
    """Values as a reader calls them, names as they are and anything else with its key: dpo, beta 0.1."""
    said = (value if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}" for key, value in values.items())
    return ", ".join(said)


def _panel(lines: Mapping[str, Sequence[Told]], key: str, title: str, measure: str) -> Markup:
    from factory.report.charts import Series, dress, lines as drawn, points

    places = [float(values[key]) for told in lines.values() for values, _ in told]
    log = min(places) > 0 and max(places) / min(places) >= 10
    series = []
    for place, (name, told) in enumerate(lines.items()):
        spots = [(math.log10(v[key]) if log else float(v[key]), measures[measure]) for v, measures in told]
        tone, look = dress(place)
        series.append(Series(name or title, sorted(points(spots)), tone, look=look))
    x_name = f"log10 of {key.rpartition('.')[2]}" if log else key.rpartition(".")[2]
    return drawn(series, title=title, x_name=x_name, beside=len(series) > 1)
