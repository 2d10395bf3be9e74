"""Markdown that holds foreign text as text, and a run's report in it: the same story as the page, for a terminal, an
issue or a pull request.

Names go into tables with their markup escaped; texts go into fences that no text of theirs can close.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from factory.console import span, visible
from factory.report.page import (
    GROUPS,
    Table,
    agreement_table,
    facts,
    judge_table,
    made_table,
    measured_table,
    pair_view,
)
from factory.report.story import story

if TYPE_CHECKING:
    from factory.report import RunReport
    from factory.report.page import PairView

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|!~&$])")


def text(value: str) -> str:
    """A line of foreign text: no markup, no HTML, no line break."""
    line = visible(" ".join(value.split()))
    return _MARKUP.sub(r"\\\1", line)


def fenced(value: str, kind: str = "text") -> str:
    """A foreign text in a fence that is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", value)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{visible(value, keep=chr(10) + chr(9))}\n{fence}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; cells are foreign text."""
    lines = [heads, ["---"] * len(heads)]
    body = [[text(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [*lines, *body])


def render(report: RunReport) -> str:
    """The report. The same report gives the same text."""
    blocks = [f"# {text(report.run)}", *(text(sentence) for sentence in story(report))]
    for title, shown in (
        ("Rounds", measured_table(report)),
        ("What each round made", made_table(report)),
        ("Judges", judge_table(report)),
        ("Every two judges", agreement_table(report)),
    ):
        if shown.rows:
            blocks += [f"## {title}", of_table(shown)]
    blocks += list(_pairs([pair_view(pair) for pair in report.pairs]))
    blocks += ["## Decisions", *_decisions(report)]
    blocks += ["## Where the numbers come from", table(["what", "value"], facts(report))]
    if report.recipe:
        blocks += ["## Recipe", fenced(report.recipe, "yaml")]
    return "\n\n".join(blocks) + "\n"


def of_table(shown: Table) -> str:
    """A table of the page, intervals behind their values."""
    cells = ([f"{cell.main} ({cell.sub})" if cell.sub else cell.main for cell in row] for row in shown.rows)
    return table([text(name) for name, _ in shown.heads], cells)


def _pairs(views: Sequence[PairView]) -> Iterable[str]:
    for why, title, says in GROUPS:
        some = [view for view in views if view.why == why]
        if some:
            yield f"## {title}"
            yield says
        for view in some:
            yield f"**Round {view.round}, margin {view.margin}** {text('; '.join(view.votes))}"
            yield from (f"{text(role)}:\n\n{fenced(said)}" for role, said in view.turns)
            yield f"chosen:\n\n{fenced(view.chosen)}"
            yield f"rejected:\n\n{fenced(view.rejected)}"


def _decisions(report: RunReport) -> Iterable[str]:
    for view in report.rounds:
        notes = "".join(f" {note}." for note in view.notes)
        decision = view.decision
        if decision is None:
            said = "not decided yet"
        else:
            said = f"{f'stop by {decision.rule}' if decision.stop else 'go on'}: {decision.reason}"
        yield text(f"Round {view.round} ({span(view.seconds)}): {said}.{notes}")
