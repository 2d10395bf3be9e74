"""Which split a prompt belongs to: by the hash of its group, so that it stays when other prompts come.

A group is a named column's value, else topic and task as given, else a cluster of near-duplicates
(`factory/prompts/near_duplicates.py`). All prompts of a group share a split, so that a paraphrase of a training prompt
is never held out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from factory.faults import ConfigError
from factory.schema import seed_of

SPLITS: Final = ("train", "heldout", "final")


class Shares(NamedTuple):
    """The shares of groups that go to `heldout` and `final`; `train` has the rest."""

    heldout: float
    final: float

    def checked(self) -> Shares:
        """Itself, if it leaves something to train on. ConfigError otherwise."""
        faults = [f"{n} must be from 0 to 1, not {v}" for n, v in self._asdict().items() if not 0 <= v <= 1]
        if not faults and sum(self) >= 1:
            faults = [f"heldout and final together must be below 1, not {sum(self):g}"]
        if faults:
            raise ConfigError(faults, where="heldout, final")
        return self


def split_of(group: str, shares: Shares) -> str:
    """The split of a group. A larger share only moves groups over a boundary; it reshuffles none."""
    place = seed_of("split", group) / 2**63
    if place < shares.final:
        return "final"
    return "heldout" if place < shares.final + shares.heldout else "train"


def group_of(group: str | None, topic: str | None, task: str | None) -> str | None:
    """The name of the group as the data gives it; None where it gives none."""
    if group is not None:
        return f"group={group}"
    named = [f"{name}={value}" for name, value in (("topic", topic), ("task", task)) if value is not None]
    return " ".join(named) or None


def most_guarded(splits: Iterable[str]) -> str:
    """Of several splits, the one that training reads least: where a prompt goes that stands near prompts of each."""
    return max(splits, key=SPLITS.index)
