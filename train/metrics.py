"""metrics.jsonl: a line a step, under TRL's names; and what its numbers warn of.

What depends on the machine (seconds, tokens a second) has its own names, listed in TIMES, so that two runs compare by
the rest.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMES = ("seconds", "tokens_per_second")
Line = dict[str, Any]


class Metrics:
    """The file of a training's metrics. Opened at a step, it forgets the lines that are of that step or later. Only one
    of several processes has it `written`; the others keep the lines in memory."""

    def __init__(self, path: Path, step: int, *, written: bool = True) -> None:
        self.path, self.written = path, written
        self.lines: list[Line] = []
        if not written:
            return
        self.lines = [line for line in read(path) if line["step"] <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".new")
        draft.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        draft.replace(path)

    def add(self, line: Line) -> None:
        """One more step; on the disk when this returns."""
        self.lines.append(line)
        if not self.written:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl up to the first that is not whole; none where there is no file."""
    lines: list[Line] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def timeless(line: Mapping[str, Any]) -> Line:
    """What of a line two runs on the same machine must share."""
    return {name: value for name, value in line.items() if name not in TIMES}


class FallWatch:
    """Notices when good and bad answers both become less likely: the margin grows, and the policy drifts off both
    (TRL #800). Looks at the mean over the last `window` steps, and speaks once."""

    def __init__(self, window: int = 5, nats: float = 1.0, *, sft: float = 0.0) -> None:
        self.nats = nats
        self.remedy = (
            f"give their negative log-likelihood more weight than {sft:g} (add: {{sft: {2 * sft:g}}})"
            if sft
            else "add their negative log-likelihood (add: {sft: 0.2}, or more)"
        )
        self._recent: deque[tuple[float, float]] = deque(maxlen=window)
        self._told = False

    def see(self, line: Mapping[str, Any]) -> str:
        """Told the metrics of a step; the warning with its remedy, or empty."""
        if "logratios/chosen" not in line or "logratios/rejected" not in line:
            return ""
        self._recent.append((line["logratios/chosen"], line["logratios/rejected"]))
        good, bad = (sum(part) / len(self._recent) for part in zip(*self._recent, strict=True))
        full = len(self._recent) == self._recent.maxlen
        if self._told or not full or good > -self.nats or bad > -self.nats:
            return ""
        self._told = True
        return (
            "chosen and rejected answers both became less likely than under the reference "
            f"(by {-good:.1f} and {-bad:.1f} nats an answer{self._when(line)}). To hold the chosen ones, "
            f"{self.remedy}, or take a larger beta or a smaller learning rate."
        )

    def _when(self, line: Mapping[str, Any]) -> str:
        return f", the mean over {len(self._recent)} of the steps up to step {line['step']:g}" if "step" in line else ""
