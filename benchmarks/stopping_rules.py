"""How the defaults of the stopping rules were chosen, and how good they are in worlds that they were not chosen in.

python benchmarks/stopping_rules.py --tune [--runs 100]        settings tried in the worlds for tuning, 2,000 prompts
python benchmarks/stopping_rules.py [--runs 200] [--write]     the shipped defaults in the other worlds (two minutes)

Tuning goes one setting at a time, from the top; a setting is taken when it has the highest score among those whose
false alarms stay within 5% in every world of steady gains; where several have it, what was before stays. Score: the
mean of the shares stopped in time (worlds that end) and of those given back a policy within 2% of the best (all).
`--write` puts table and picture of the report into docs/stopping.md, between its marks, and
docs/stopping-simulation.svg.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from factory.report import charts
from factory.simulation.playing import FALSE_ALARMS, SIZES, Cell, cells
from factory.simulation.table import chosen, markdown, summary
from factory.stopping import StopConfig

DOCS = Path(__file__).parent.parent / "docs"
START, END = "<!-- simulation: written by benchmarks/stopping_rules.py -->", "<!-- end of simulation -->"
BEFORE: dict[str, dict[str, Any]] = {  # what tuning began with
    "no_gain": {"worthwhile_gain": 0.02, "patience": 4, "step": 0.004},
    "length_drift": {"since_champion": 1.5},
    "diversity_collapse": {"since_champion": 0.25},
    "degeneration": {"broken": 0.05},
}
TRIED: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("no_gain", "worthwhile_gain", (0.0, 0.005, 0.01, 0.02)),
    ("no_gain", "patience", (2, 3, 4)),  # more would never come to speak: published loops go on for 3 to 5 rounds
    ("no_gain", "step", (0.0, 0.002, 0.003, 0.004, 0.005)),
    ("length_drift", "since_champion", (1.5, 1.75, 2.0, 2.5)),
    ("diversity_collapse", "since_champion", (0.2, 0.25, 0.3, 0.35)),
    ("degeneration", "broken", (0.02, 0.05, 0.1)),
)


def config_of(settings: dict[str, dict[str, Any]]) -> StopConfig:
    """The default rules with some settings of theirs changed."""
    rules = [rule.model_dump() | settings.get(rule.rule, {}) for rule in StopConfig().leaves()]
    return StopConfig.model_validate({"any": rules})


def scored(found: Sequence[Cell]) -> tuple[float, float]:
    """The score, and the highest share of false alarms."""
    in_time = statistics.fmean(c.in_time.value for c in found if c.false_alarms is None)
    given_back = statistics.fmean(c.given_back.value for c in found)
    alarms = max(c.false_alarms.value for c in found if c.false_alarms is not None)
    return (in_time + given_back) / 2, alarms


def tune(runs: int, seed: int) -> None:
    """Settings one after the other, each with its numbers."""
    settings = BEFORE
    print("| rule | setting | value | stopped in time, % | given back, % | most false alarms, % | taken |")
    print("|---|---|---|---|---|---|---|")
    for rule, name, values in TRIED:
        lines, best, before = [], (-1.0, values[0]), BEFORE[rule][name]
        for value in values:
            tried = settings | {rule: settings.get(rule, {}) | {name: value}}
            found = list(cells(chosen(["tune"]), config_of(tried), runs=runs, prompts=[2000], seed=seed))
            score, alarms = scored(found)
            in_time = statistics.fmean(c.in_time.value for c in found if c.false_alarms is None)
            given_back = statistics.fmean(c.given_back.value for c in found)
            lines.append((value, in_time, given_back, alarms))
            if alarms <= FALSE_ALARMS and (score > best[0] or (score == best[0] and value == before)):
                best = (score, value)
        settings = settings | {rule: settings.get(rule, {}) | {name: best[1]}}
        for value, in_time, given_back, alarms in lines:
            taken = "yes" if value == best[1] and best[0] >= 0 else ""
            numbers = " | ".join(f"{100 * share:.1f}" for share in (in_time, given_back, alarms))
            print(f"| {rule} | {name} | {value:g} | {numbers} | {taken} |", flush=True)


# ------------------------------------------------------------------------------------------------------------- report


STYLE = """<style>
text { font: 11px system-ui, sans-serif; fill: #555 } .grid { stroke: #ddd }
.t1 { --tone: #1f5fd0 } .t2 { --tone: #c2570c } .t3 { --tone: #7a818a }
.dot { fill: var(--tone) } .bar { stroke: var(--tone); stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #bbb } .grid { stroke: #444 } }
</style>"""


def chart(found: Sequence[Cell]) -> str:
    """Share of runs given back a policy within 2% of the best, by world and number of prompts."""
    sizes = sorted({cell.prompts for cell in found})
    worlds = list(dict.fromkeys(cell.world.name for cell in found))
    held = {(cell.world.name, cell.prompts): cell for cell in found}
    groups = [
        (_short(held[name, sizes[0]]), [charts.point(0, held[name, size].given_back) for size in sizes])
        for name in worlds
    ]
    tones = [(f"{size:,} prompts", tone) for size, tone in zip(sizes, (3, 2, 1), strict=False)]
    title = "Share of runs that give back a policy within 2% of the best"
    drawing = str(charts.rows(groups, tones, title=title, show="{:.0%}".format))
    head, rest = drawing.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{STYLE}{rest}\n'


def _short(cell: Cell) -> str:
    shorter = {"over_optimisation": "over-optim.", "length_hacking": "length hack"}
    return f"{shorter.get(cell.world.kind, cell.world.kind.replace('_', ' '))}, {cell.world.measure}"


def write(found: Sequence[Cell]) -> None:
    """Table and picture into docs/."""
    page = DOCS / "stopping.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{START}\n{markdown(found)}\n\n{_told(found)}\n{END}{after}", encoding="utf-8")
    (DOCS / "stopping-simulation.svg").write_text(chart(found), encoding="utf-8")


def _told(found: Sequence[Cell]) -> str:
    return summary(found).replace("\n", "\n\n").replace(" (* misses its aim)", " (bold misses its aim)")


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--runs", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    threadpool_limits(1)
    if asked.tune:
        tune(asked.runs or 100, asked.seed)
        return
    found = list(cells(chosen(["report"]), StopConfig(), runs=asked.runs or 200, prompts=SIZES, seed=asked.seed))
    print(markdown(found), summary(found), sep="\n\n")
    if asked.write:
        write(found)


if __name__ == "__main__":
    main()
