"""What a training gave: where the policy lies, what it learnt from, and how its metrics moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.schema import unique

if TYPE_CHECKING:
    from factory.training.rows import Data
    from train.trainer import Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training gave. `first`, `last`: means of the metrics over the first and the last quarter of the steps."""

    policy: str
    method: str
    start: str
    reference: str
    rows: int
    steps: int
    truncated: int
    truncated_tokens: int = 0  # of those rows, in all
    skipped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    best: Mapping[str, Any] = field(default_factory=dict)  # of methods that learn a prompt's best: `best_of.Best`
    first: Mapping[str, float] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    changed: Mapping[str, float] = field(default_factory=dict)  # logps/* and logratios/*: last - first, nats
    warnings: Sequence[str] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"warnings": list(self.warnings)}


def result_of(
    trained: Trained, data: Data, policy: Path, *, method: str, start: str, reference: str, seconds: float
) -> TrainResult:
    """What the loop gave, with what it was given."""
    lines = trained.lines
    quarter = max(1, len(lines) // 4)
    first, last = _means(lines[:quarter]), _means(lines[-quarter:])
    changed = {
        name: last[name] - first[name] for name in first if name.startswith(("logps/", "logratios/")) and name in last
    }
    return TrainResult(
        policy=str(policy),
        method=method,
        start=start,
        reference=reference,
        rows=len(data.rows),
        steps=len(lines),
        truncated=data.truncated,
        truncated_tokens=data.truncated_tokens,
        skipped=data.skipped,
        best={} if data.best is None else data.best.to_json(),
        first=first,
        last=last,
        changed=changed,
        warnings=trained.warnings,
        seconds=round(seconds, 2),
    )


def _means(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every metric's mean over the lines that have it."""
    from train.metrics import TIMES

    names = unique(name for line in lines for name in line if name not in (*TIMES, "step", "epoch", "tokens"))
    values = {name: [line[name] for line in lines if name in line] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
