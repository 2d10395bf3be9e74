"""A run while it works: at which stage, for how long, at what rate, what it has cost, and how long its round may take.

Read from the store alone, so that another process can watch. Time left is what the stages that remain took in the
newest round that had them: a guess, and no number where there was none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from factory import console
from factory.schema import now

if TYPE_CHECKING:
    from factory.store import Store

Mark = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Underway:
    """A stage at work. `answers`, `failures` and `tokens` since it began; `cost` of the run so far (None: a price is
    not known); `left`: seconds that the round may still take (None: nothing to go by)."""

    round: int
    stage: str
    seconds: float
    answers: int = 0
    failures: int = 0
    tokens: int = 0
    steps: int = 0
    cost: float | None = 0.0
    left: float | None = None

    def text(self) -> str:
        """One line: round 2 · generate: 12 s, 120 answers (10.0/s), 3 failed, 900 tokens/s, $0.12, 40 s left."""
        parts = [console.span(self.seconds)]
        seconds = max(self.seconds, 1e-9)
        if self.answers:
            parts.append(f"{self.answers:,} answers ({self.answers / seconds:.1f}/s)")
        if self.failures:
            parts.append(f"{self.failures:,} failed")
        if self.tokens:
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        if self.steps:
            parts.append(f"{self.steps:,} steps")
        parts += costs(self.cost)
        if self.left is not None:
            parts.append(f"about {console.span(self.left)} left in this round")
        return f"round {self.round} · {self.stage}: {', '.join(parts)}"


def costs(cost: float | None) -> list[str]:
    """$0.12 so far; nothing where nothing is paid for; a price that is not known is said."""
    if cost is None:
        return ["cost not known"]
    return [f"${cost:,.2f} so far" if cost >= 0.01 else f"${cost:.2g} so far"] if cost else []


def underway(store: Store, run: str, at: datetime | None = None) -> Underway | None:
    """The stage that a run is at; None when it is between stages, or nobody works at it."""
    if not store.is_locked(run):
        return None
    marks = store.marks(run)
    if not marks or marks[-1]["state"] != "started":
        return None
    last, at = marks[-1], at or now()
    number, stage, seconds = last["round"], last["stage"], max((at - last["at"]).total_seconds(), 0.0)
    columns = ["round", "at", "failure", "completion_tokens", "cost"]
    calls = store.read("calls", columns=columns, where={"run": run})
    since = [call for call in calls if call["round"] == number and call["at"] >= last["at"]]
    return Underway(
        round=number,
        stage=stage,
        seconds=seconds,
        answers=len(since),
        failures=sum(call["failure"] is not None for call in since),
        tokens=sum(call["completion_tokens"] for call in since),
        steps=_steps(store, run, number) if stage.startswith("train") else 0,
        cost=total_cost(calls),
        left=left(marks, number, stage, seconds),
    )


def total_cost(calls: Sequence[Mapping[str, Any]]) -> float | None:
    """US dollars of calls; None where an answer has no price. A failed call without one cost nothing."""
    known = [call["cost"] for call in calls if call["cost"] is not None or call["failure"] is None]
    return None if None in known else float(sum(known))


def _steps(store: Store, run: str, number: int) -> int:
    """Steps of training that metrics.jsonl tells of."""
    path = store.run_folder(run) / f"round-{number}" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def left(marks: Sequence[Mark], number: int, stage: str, seconds: float) -> float | None:
    """Seconds that a round may still take, by the newest earlier round that did this stage: what is over of it, and all
    that came after it there. Where it takes longer than it did then, nothing of it is over."""
    earlier: dict[int, dict[str, float]] = {}
    for mark in marks:
        if mark["state"] == "done" and 0 < mark["round"] < number:
            took = (mark["detail"] or {}).get("seconds")
            earlier.setdefault(mark["round"], {})[mark["stage"]] = float(took or 0.0)
    for _, took in sorted(earlier.items(), reverse=True):
        if stage in took:
            names = list(took)
            after = names[names.index(stage) + 1 :]
            return max(took[stage] - seconds, 0.0) + sum(took[name] for name in after)
    return None


def heading(store: Store, run: str, number: int, stage: str) -> str:
    """What a run says when it begins a stage: round 2 · train (about 3 min 20 s left in this round, $0.12 so far)."""
    said = []
    over = left(store.marks(run), number, stage, 0.0)
    if over is not None:
        said.append(f"about {console.span(over)} left in this round")
    said += costs(total_cost(store.read("calls", columns=["cost", "failure"], where={"run": run})))
    return f"round {number} · {stage}" + (f" ({', '.join(said)})" if said else "")
