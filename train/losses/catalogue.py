"""What there is to say of every objective, from its registration, its signature and its docstring: for the command line
and for docs/methods.md, whose table `python -m train.losses docs/methods.md` writes anew."""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple

from train.losses.facts import Objective, OneOf, get, objectives

BEGIN, END = "<!-- objectives: written by python -m train.losses -->", "<!-- objectives: end -->"
ROWS = {
    "pairs": "prompt, chosen, rejected",
    "labels": "prompt, completion, label",
    "completions": "prompt, completion",
    "groups": "prompts; answers are sampled",
    "scores": "prompt, chosen, rejected",
}


class Parameter(NamedTuple):
    """One that a user may set: its default, and the values that are allowed, in words."""

    name: str
    default: Any
    allowed: str

    def __str__(self) -> str:
        return f"{self.name}={_shown(self.default)}" + (f" {self.allowed}" if self.allowed else "")


class About(NamedTuple):
    """An objective: the shape of its rows, whether it reads a reference, its parameters, and what it is."""

    name: str
    data: str
    reference: bool
    parameters: tuple[Parameter, ...]
    line: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self._asdict() | {"parameters": [p._asdict() for p in self.parameters]}


def about() -> list[About]:
    """Of all objectives, by the shape of their data and by name."""
    found = [_about(get(name)) for name in objectives.names()]
    order = list(ROWS)
    return sorted(found, key=lambda each: (order.index(each.data), each.name))


def _about(objective: Objective) -> About:
    parameters = tuple(Parameter(n, d, _allowed(objective, n, d)) for n, d in objective.defaults.items())
    return About(objective.name, objective.data, objective.reference, parameters, _line(objective))


def _line(objective: Objective) -> str:
    """The first paragraph of its docstring, on one line."""
    paragraph = (inspect.getdoc(objective.function) or "").split("\n\n")[0]
    return re.sub(r"\s+", " ", paragraph).strip()


def _allowed(objective: Objective, name: str, default: Any) -> str:
    allowed = objective.allowed.get(name)
    if isinstance(default, bool) or allowed is None:
        return ""
    return " | ".join(allowed.names) if isinstance(allowed, OneOf) else f"in {allowed}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def table() -> str:
    """A Markdown table of all objectives for each shape of data."""
    parts = []
    for data, columns in ROWS.items():
        lines = [
            f"### On {data} ({columns})",
            "",
            "| method | reference | parameters | what it is |",
            "|---|---|---|---|",
        ]
        for each in about():
            if each.data == data:
                cells = (f"`{each.name}`", "yes" if each.reference else "no", _cell(each), _escaped(each.line))
                lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(each: About) -> str:
    return ", ".join(
        f"`{p.name}` {_shown(p.default)}" + (f" ({_escaped(p.allowed)})" if p.allowed else "") for p in each.parameters
    )


def _escaped(text: str) -> str:
    """As text of a table's cell: no formula, no tag, no end of the cell."""
    return re.sub(r"([|*<>_\[\]~^`\\])", r"\\\1", text)


def written(text: str) -> str:
    """A document with the table in its place anew. ValueError: it has no place for one."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the document has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"
