"""The simulation's cells as rows, as text, Markdown or CSV, and the worlds by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from factory import console
from factory.registry import unknown_name
from factory.schema import Estimate
from factory.simulation.playing import FALSE_ALARMS, GIVEN_BACK, IN_TIME, Cell
from factory.simulation.worlds import WORLDS, World

PARTS = ("report", "tune", "all")


def chosen(names: Iterable[str]) -> list[World]:
    """Worlds by part (report, tune, all), by kind or by name; in their own order. FactoryError: no such world."""
    found: set[str] = set()
    for name in names:
        worlds = [w.name for w in WORLDS if name in ("all", w.part, w.kind, w.name)]
        if not worlds:
            raise unknown_name("world", name, {*PARTS, *(w.kind for w in WORLDS), *(w.name for w in WORLDS)})
        found.update(worlds)
    return [world for world in WORLDS if world.name in found]


def rows(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Plain JSON values of every cell; a rate is [value, low, high]."""
    return [
        {
            "world": cell.world.name,
            "kind": cell.world.kind,
            "measure": cell.world.measure,
            "part": cell.world.part,
            "prompts": cell.prompts,
            "runs": len(cell.runs),
            "in_time": list(cell.in_time),
            "too_early": list(cell.too_early),
            "given_back": list(cell.given_back),
            "false_alarms": cell.false_alarms and list(cell.false_alarms),
            "kept": cell.kept,
            "stopped": cell.stopped,
            "by_rule": cell.by_rule,
            "misses": cell.misses,
        }
        for cell in cells
    ]


def text(cells: Sequence[Cell]) -> str:
    """For a terminal: a line a cell, what misses its aim marked, and how many do."""
    lines = [
        {
            "world": cell.world.name,
            "prompts": cell.prompts,
            "in time": told(cell.in_time, IN_TIME, wanted=cell.false_alarms is None),
            "given back": told(cell.given_back, GIVEN_BACK),
            "false alarms": None if cell.false_alarms is None else told(cell.false_alarms, FALSE_ALARMS, most=True),
            "kept": f"{cell.kept:.1%}",
            "stopped after": f"{cell.stopped:.1f}",
            "by": ", ".join(f"{rule} {n}" for rule, n in cell.by_rule.items()),
        }
        for cell in cells
    ]
    return f"{console.table(lines)}\n\n{summary(cells)}"


def summary(cells: Sequence[Cell]) -> str:
    """How many cells meet every aim, by number of prompts."""
    sizes = sorted({cell.prompts for cell in cells})
    said = []
    for size in sizes:
        here = [cell for cell in cells if cell.prompts == size]
        said.append(f"{sum(not cell.misses for cell in here)} of {len(here)} at {size:,} prompts")
    late = cells[0].patience + 1 if cells else 0
    aims = (
        f"in time: from the first policy within 2% of the best to {late} rounds after it, {IN_TIME:.0%} of runs; "
        f"given back: champion within 2% of the best, {GIVEN_BACK:.0%}; "
        f"false alarms: steady gains stopped, at most {FALSE_ALARMS:.0%}"
    )
    return f"{aims}\nworlds that meet their aims: {', '.join(said)} (* misses its aim)"


def told(rate: Estimate, aim: float, *, most: bool = False, wanted: bool = True) -> str:
    """A rate with a star where it misses its aim."""
    missed = wanted and (rate.value > aim if most else rate.value < aim)
    return f"{rate.value:.0%}{'*' if missed else ''}"


def markdown(cells: Sequence[Cell]) -> str:
    """One row a world; in each column the values at each number of prompts, bold where they miss their aim."""
    sizes = sorted({cell.prompts for cell in cells})
    held = {(cell.world.name, cell.prompts): cell for cell in cells}
    names = list(dict.fromkeys(cell.world.name for cell in cells))
    heads = ["stopped in time, %", "given back, %", "false alarms, %", "quality kept, %", "stopped after round"]
    lines = [f"| world | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        found = [held[name, size] for size in sizes]
        steady = found[0].false_alarms is not None
        columns = [
            [_bold(c.in_time, IN_TIME, aimed=not steady) for c in found],
            [_bold(c.given_back, GIVEN_BACK) for c in found],
            [_bold(c.false_alarms, FALSE_ALARMS, most=True) for c in found if c.false_alarms is not None],
            [f"{100 * c.kept:.1f}" for c in found],
            [f"{c.stopped:.1f}" for c in found],
        ]
        lines.append(f"| {name} | " + " | ".join(" / ".join(column) for column in columns) + " |")
    return "\n".join(lines)


def _bold(rate: Estimate, aim: float, *, most: bool = False, aimed: bool = True) -> str:
    missed = aimed and (rate.value > aim if most else rate.value < aim)
    return f"**{100 * rate.value:.0f}**" if missed else f"{100 * rate.value:.0f}"


def comma_separated(cells: Iterable[Cell]) -> str:
    """CSV, bounds in columns of their own."""
    out = io.StringIO()
    flat = [_flat(row) for row in rows(cells)]
    if flat:
        writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    return out.getvalue().rstrip("\n")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("in_time", "too_early", "given_back", "false_alarms"):
            low_high = value or (None, None, None)
            found |= {name: low_high[0], f"{name}_low": low_high[1], f"{name}_high": low_high[2]}
        elif name == "by_rule":
            found[name] = " ".join(f"{rule}={n}" for rule, n in value.items())
        else:
            found[name] = " and ".join(value) if name == "misses" else value
    return found
