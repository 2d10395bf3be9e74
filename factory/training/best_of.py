"""Rejection sampling: of all labelled answers to a prompt, the best one is what is learnt (RAFT, arXiv 2304.06767,
algorithm 1; in Llama 2, arXiv 2307.09288, section 3.2.3).

An answer's rank is the panel's score on its label. Where no answer to a prompt has a score, as in labels from outside,
desirable answers rank above the others. Every prompt that gives nothing is counted with its reason. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from factory.schema import Label, digest
from factory.verdicts import SAME
from train.config import BestSpec


@dataclass(frozen=True, slots=True)
class Best:
    """What was taken. `answers`: to choose from, over all `prompts`; `tied`: prompts with several best answers;
    `single`: prompts with one answer, where nothing could be chosen; `without`: reason -> prompts that give nothing."""

    rows: Sequence[Label]
    prompts: int
    answers: int
    tied: int
    single: int
    without: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """The counts as plain JSON values; `taken` in place of the rows."""
        counts = asdict(self)
        counts["taken"] = len(counts.pop("rows"))
        return counts | {"without": dict(self.without)}


def best(rows: Iterable[Label], wanted: BestSpec, seed: int = 0) -> Best:
    """The best answer to each prompt, prompts in the order of their first row. With `wanted.ties` "one" a tie is
    decided by chance (by seed), not by what an answer says, how long it is or where it stands."""
    groups: defaultdict[str, list[Label]] = defaultdict(list)
    for row in rows:
        groups[row.prompt_key].append(row)
    taken: list[Label] = []
    without: Counter[str] = Counter()
    tied = 0
    for group in groups.values():
        top = _top(group, wanted)
        tied += len(top) > 1
        if not top:
            without[_why(group, wanted)] += 1
        elif len(top) > 1 and wanted.ties == "skip":
            without["several answers are the best"] += 1
        else:
            order = sorted(top, key=lambda row: digest(seed, row.candidate_key))
            taken += order if wanted.ties == "all" else order[:1]
    single = sum(len(group) == 1 for group in groups.values())
    return Best(taken, len(groups), sum(map(len, groups.values())), tied, single, without)


def _top(group: Sequence[Label], wanted: BestSpec) -> list[Label]:
    """The best answers that are good enough; several where they are as good."""
    scored = any(row.score is not None for row in group)
    ranks = [(_rank(row, scored), row) for row in group]
    good = [(rank, row) for rank, row in ranks if rank is not None and _passes(rank, row, wanted)]
    most = max((rank for rank, _ in good), default=0.0)
    return [row for rank, row in good if rank > most - SAME]


def _rank(row: Label, scored: bool) -> float | None:
    """None: others of its prompt have a score, and it cannot be compared with them."""
    return row.score if scored else float(row.label)


def _passes(rank: float, row: Label, wanted: BestSpec) -> bool:
    return (row.label or not wanted.passing) and (wanted.min_score is None or rank >= wanted.min_score - SAME)


def _why(group: Sequence[Label], wanted: BestSpec) -> str:
    if wanted.passing and not any(row.label for row in group):
        return "no answer passed"
    return "no answer reaches min_score" if wanted.min_score is not None else "no answer that passed has a score"
