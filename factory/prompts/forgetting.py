"""Prompts that must not be kept, and all that was made of them: out of the store's tables, off the disk.

What lies beside the tables stays: a run's reports and policies, exports. `Forgotten.runs` says which runs to look at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from factory.faults import LockedError
from factory.schema import unique

if TYPE_CHECKING:
    from factory.store import Store

OF_PROMPTS = ("judgments", "preferences", "labels", "candidates")
"""Tables whose rows name their prompt, each before those that it was made of."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Rows of each table that go, or went, and the runs that had any."""

    rows: dict[str, int]
    runs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def forget(store: Store, prompts: Iterable[str], *, erase: bool = True) -> Forgotten:
    """Erase prompts by key with their calls, answers, judgments, preferences and labels (not `erase`: count them).

    Calls go first and prompts last, so that what was cut off is found again by the same prompts. LockedError: a run
    that has any of them is at work.
    """
    keys, runs = _traces(store, unique(prompts))
    if busy := [run for run in runs if store.is_locked(run)]:
        raise LockedError(f"run {busy[0]} is at work with them", where=str(store.folder), todo="wait until it is done")
    if not erase:
        return Forgotten({table: len(found) for table, found in keys.items()}, tuple(runs))
    rows = {table: store.erase(table, found) if found else 0 for table, found in keys.items()}
    store.scrub()
    return Forgotten(rows, tuple(runs))


def _traces(store: Store, prompts: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Keys of the rows of each table that were made of the prompts, in the order in which they go, and their runs."""
    asked = store.read("prompts", columns=["key"], where={"group": [f"judging={key}" for key in prompts]})
    everyone = [*prompts, *(row["key"] for row in asked)]  # a judge's questions about them are prompts of a meta-judge
    found: dict[str, list[str]] = {}
    calls: list[str] = []
    runs: set[str] = set()
    for table in OF_PROMPTS:
        columns = ["key", "run"] + (["call_key"] if table in ("judgments", "candidates") else [])
        rows = store.read(table, columns=columns, where={"prompt_key": everyone})
        found[table] = [row["key"] for row in rows]
        runs |= {row["run"] for row in rows}
        calls += [row["call_key"] for row in rows if row.get("call_key")]
    tagged = store.read("calls", columns=["key", "run"], where={"tag": [*everyone, *found["candidates"]]})
    runs |= {row["run"] for row in tagged}
    held = store.read("prompts", columns=["key"], where={"key": everyone})
    calls = unique([*calls, *(row["key"] for row in tagged)])
    return {"calls": calls, **found, "prompts": [row["key"] for row in held]}, sorted(runs)
