"""Tables of votes as the tests of agreement and aggregation need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from numpy.typing import NDArray

from factory.votes.aggregation import Votes


def votes(by_judge: Mapping[str, Sequence[Any]]) -> pa.Table:
    """One row for each judge and item; the position in the list is the item."""
    rows = [(item, judge, value) for judge, said in by_judge.items() for item, value in enumerate(said)]
    item, judge, value = zip(*rows, strict=True)
    return pa.table({"item": item, "judge": judge, "value": pa.array(value)})


def from_counts(counts: Sequence[Sequence[int]]) -> pa.Table:
    """Votes of nameless judges from how often each item got each category."""
    rows = []
    for item, row in enumerate(counts):
        said = [category for category, n in enumerate(row) for _ in range(n)]
        rows += [(item, f"j{place}", value) for place, value in enumerate(said)]
    item_, judge, value = zip(*rows, strict=True)
    return pa.table({"item": item_, "judge": judge, "value": value})


def rows(table: pa.Table) -> dict[Any, dict[str, Any]]:
    """A result of `aggregate` by item."""
    return {row.pop("item"): row for row in table.to_pylist()}


def of_matrix(said: NDArray[np.int64]) -> Votes:
    """Votes from categories `(items, judges)`, -1 for none."""
    item, judge = np.nonzero(said >= 0)
    judges = [f"j{j}" for j in range(said.shape[1])]
    kinds = list(range(int(said.max(initial=0)) + 1))
    return Votes(item, judge, said[item, judge], list(range(len(said))), judges, kinds)


def matrices(fewest: int = 2, kinds: int = 4) -> st.SearchStrategy[list[list[int | None]]]:
    """Votes 1 to `kinds` by item and judge, some missing."""
    vote = st.one_of(st.none(), st.integers(1, kinds))
    return st.integers(fewest, 5).flatmap(
        lambda judges: st.lists(st.lists(vote, min_size=judges, max_size=judges), min_size=3, max_size=12)
    )


def table_of(items: Sequence[Sequence[int | None]]) -> pa.Table:
    """One row for each item and judge, nulls kept."""
    table = votes({f"j{j}": [row[j] for row in items] for j in range(len(items[0]))})
    return table.set_column(2, "value", table.column("value").cast(pa.int64()))


def noisy(
    rng: np.random.Generator, truth: NDArray[np.int64], accuracy: Sequence[float], kinds: int = 2
) -> NDArray[np.int64]:
    """Votes of judges that are right so often and else err evenly, `(items, judges)`."""
    n, judges = len(truth), len(accuracy)
    other = (truth[:, None] + rng.integers(1, kinds, (n, judges))) % kinds
    return np.where(rng.random((n, judges)) < np.asarray(accuracy), truth[:, None], other)


def with_blind_spots(
    rng: np.random.Generator, truth: NDArray[np.int64], accuracy: Sequence[float], families: Sequence[int], rate: float
) -> NDArray[np.int64]:
    """Two-category votes of judges whose family (-1: none) takes the opposite for true on a share `rate` of items."""
    seen = np.repeat(truth[:, None], len(accuracy), axis=1)
    for family in sorted(set(families) - {-1}):
        members = [j for j, f in enumerate(families) if f == family]
        blind = rng.random(len(truth)) < rate
        seen[:, members] = np.where(blind, 1 - truth, truth)[:, None]
    return np.where(rng.random(seen.shape) < np.asarray(accuracy), seen, 1 - seen)
