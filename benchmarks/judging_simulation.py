"""How close each way of aggregating comes to a truth that is known, with judges whose faults are known.

python benchmarks/judging_simulation.py [--pairs 300] [--seeds 16] [--write]      (under a minute; one thread)

Nine judges say of each pair of answers which is better. A judge says a with probability

  logistic(skill x s + position x f + length x l)   s, f, l: 1 where a is seen as better, is first, is longer; else -1

and what it sees as better is the truth, but for the blind spots that its family shares. Told for every case: the share
of pairs decided rightly (undecided: half), the Brier score of the posterior, the effective number of judges that the
model of dependent judges reports and the one that the errors against the truth show. Intervals are 95% over seeds.
`--write` puts tables and chart into docs/ (between the marks in judging.md).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from factory.report import charts
from factory.schema import Estimate
from factory.votes.aggregation import Votes, methods
from factory.votes.dependence import effective_judges, error_correlation

JUDGES = 9
METHODS = ("majority", "one_coin", "dawid_skene", "dependent")
DOCS = Path(__file__).parent.parent / "docs"
START, END = "<!-- simulation: written by benchmarks/judging_simulation.py -->", "<!-- end of simulation -->"


@dataclass(frozen=True)
class Case:
    """A panel. `accuracy` is each judge's without biases; `families` -1 for a lone judge; `orders` 1: every judge sees
    the same answer first; 2: both orders, where they differ there is no vote."""

    name: str
    accuracy: tuple[float, ...] = (0.75,) * JUDGES
    families: tuple[int, ...] = (-1,) * JUDGES
    blind: float = 0.0
    copies: int = 0  # so many judges say what the first says
    position: float = 0.0
    length: tuple[float, ...] = (0.0,) * JUDGES
    orders: int = 1
    declared: bool = False  # the model is told the families


UNEQUAL = (0.95, 0.85, 0.75, 0.65, 0.6, 0.6, 0.55, 0.55, 0.55)
THREE = (0, 0, 0, 1, 1, 1, 2, 2, 2)
FIVE = (0, 0, 0, 0, 0, -1, -1, -1, -1)
CASES = (
    Case("equal, independent"),
    Case("unequal, independent", UNEQUAL),
    Case("position bias, one order", position=1.0),
    Case("position bias, both orders", position=1.0, orders=2),
    Case("length bias of three", length=(1.0,) * 3 + (0.0,) * 6),
    Case("length bias of all", length=(0.6,) * JUDGES),
    Case("three families", (0.85,) * JUDGES, THREE, 0.2),
    Case("four of nine a family", (0.85,) * JUDGES, (0, 0, 0, 0, -1, -1, -1, -1, -1), 0.25),
    Case("five of nine a family", (0.85,) * JUDGES, FIVE, 0.25),
    Case("the same, declared", (0.85,) * JUDGES, FIVE, 0.25, declared=True),
    Case("six copies of one", copies=6),
    Case("blind spot of all", (0.85,) * JUDGES, (0,) * JUDGES, 0.2),
)


class Score(NamedTuple):
    """One method on one draw."""

    right: float
    brier: float


class Draw(NamedTuple):
    """All methods on one draw, and the effective number of judges, reported and true."""

    scores: dict[str, Score]
    reported: float
    true: float


# ------------------------------------------------------------------------------------------------------------ judges


def judged(case: Case, pairs: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Truth `(pairs,)`, 1 where a is better, and votes `(pairs, judges)`, -1 for none."""
    truth = rng.integers(0, 2, pairs)
    longer = np.where(rng.random(pairs) < 0.5, 1.0, -1.0)
    seen = np.repeat(np.where(truth == 1, 1.0, -1.0)[:, None], JUDGES, axis=1)
    for family in sorted(set(case.families) - {-1}):
        blind = np.where(rng.random(pairs) < case.blind, -1.0, 1.0)
        seen[:, [f == family for f in case.families]] *= blind[:, None]
    skill = np.asarray([math.log(p / (1 - p)) for p in case.accuracy])
    lean = skill * seen + np.asarray(case.length) * longer[:, None]
    first = np.where(rng.random(pairs) < 0.5, 1.0, -1.0)[:, None]
    said = _says(lean + case.position * first, rng)
    if case.orders == 2:
        again = _says(lean - case.position * first, rng)
        said = np.where(said == again, said, -1)
    said[:, 1 : case.copies] = said[:, :1]
    return truth, said


def _says(lean: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    return (rng.random(lean.shape) < 1 / (1 + np.exp(-lean))).astype(np.int64)


def votes_of(said: NDArray[np.int64]) -> Votes:
    """As votes; a pair that nobody voted on stays an item."""
    item, judge = np.nonzero(said >= 0)
    judges = [f"judge {j + 1}" for j in range(JUDGES)]
    return Votes(item, judge, said[item, judge], list(range(len(said))), judges, [0, 1])


def drawn(case: Case, pairs: int, seed: int) -> Draw:
    """One draw of the case."""
    truth, said = judged(case, pairs, np.random.default_rng(seed))
    voted = (said >= 0).any(axis=1)
    votes = votes_of(said[voted])
    scores, reported = {}, math.nan
    for method in METHODS:
        options = {}
        if case.declared and method == "dependent":
            options["families"] = {name: f for name, f in zip(votes.judges, case.families, strict=True) if f >= 0}
        found = methods.get(method)(votes, **options)
        chance = np.full(pairs, 0.5)
        if found.posterior is not None:
            chance[voted] = found.posterior[:, 1]
        scores[method] = scored(chance, truth)
        if found.model is not None and found.model.effective is not None:
            reported = found.model.effective
    gold = np.eye(2)[truth[voted]]
    return Draw(scores, reported, effective_judges(error_correlation(votes, gold)))


def scored(chance: NDArray[np.float64], truth: NDArray[np.int64]) -> Score:
    """Share decided rightly, half for what is undecided, and the Brier score."""
    right = np.where(np.abs(chance - 0.5) < 1e-9, 0.5, (chance > 0.5) == (truth == 1))
    return Score(float(right.mean()), float(((chance - truth) ** 2).mean()))


# ------------------------------------------------------------------------------------------------------------- tables


def spread(values: Sequence[float]) -> Estimate:
    """Mean and its 95% interval over seeds."""
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(mean, mean - half, mean + half)


def told(value: Estimate, scale: float = 1.0, digits: int = 1) -> str:
    """A value and its half-width."""
    return f"{value.value * scale:.{digits}f} ± {(value.high - value.value) * scale:.{digits}f}"


def gained(draws: Sequence[Draw], method: str) -> str:
    """Points of rightly decided pairs gained on the majority, seed by seed; bold where the interval leaves out 0."""
    gain = spread([100 * (d.scores[method].right - d.scores["majority"].right) for d in draws])
    text = f"{gain.value:+.1f} ± {gain.high - gain.value:.1f}"
    return f"**{text}**" if gain.low > 0 or gain.high < 0 else text


def tables(results: dict[str, list[Draw]]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| judges | majority right, % | one_coin gains | dawid_skene gains | dependent gains |",
        "|---|---|---|---|---|",
    ]
    for name, draws in results.items():
        base = spread([d.scores["majority"].right for d in draws])
        gains = " | ".join(gained(draws, method) for method in METHODS[1:])
        lines.append(f"| {name} | {told(base, 100)} | {gains} |")
    lines += [
        "",
        "| judges | Brier: majority | one_coin | dawid_skene | dependent | effective, reported | effective, true |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, draws in results.items():
        briers = [told(spread([d.scores[m].brier for d in draws]), 1, 3) for m in METHODS]
        numbers = [told(spread([d.reported for d in draws])), told(spread([d.true for d in draws]))]
        lines.append(f"| {name} | {' | '.join([*briers, *numbers])} |")
    return "\n".join(lines)


STYLE = """<style>
text { font: 11px system-ui, sans-serif; fill: #555 } .grid { stroke: #ddd }
.t1 { --tone: #1f5fd0 } .t2 { --tone: #c2570c } .t3 { --tone: #7a818a } .t4 { --tone: #7a3fb5 }
.dot { fill: var(--tone) } .bar { stroke: var(--tone); stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #bbb } .grid { stroke: #444 } }
</style>"""


def chart(results: dict[str, list[Draw]]) -> str:
    """Share decided rightly by each method, as a picture that stands alone."""
    groups = [
        (name, [charts.point(0, spread([d.scores[m].right for d in draws])) for m in METHODS])
        for name, draws in results.items()
    ]
    tones = list(zip(METHODS, (3, 2, 4, 1), strict=True))
    drawing = str(charts.rows(groups, tones, title="Share of pairs decided rightly", show="{:.0%}".format))
    head, rest = drawing.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{STYLE}{rest}\n'


def write(results: dict[str, list[Draw]]) -> None:
    """Tables and chart into docs/."""
    page = DOCS / "judging.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{START}\n{tables(results)}\n{END}{after}", encoding="utf-8")
    (DOCS / "judging-simulation.svg").write_text(chart(results), encoding="utf-8")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    threadpool_limits(1)
    results = {case.name: [drawn(case, asked.pairs, seed) for seed in range(asked.seeds)] for case in CASES}
    print(tables(results))
    if asked.write:
        write(results)


if __name__ == "__main__":
    main()
