"""One value for each item from the votes of many judges; numpy and Arrow, no I/O.

  majority     the category with most votes; none (null) where the first two have as many
  mean         the mean of numbers; categories that are no numbers have none
  weighted     the category with most weight, by weights of the judges that you give
  one_coin     each judge is right with a probability of its own       (factory/votes/latent.py)
  dawid_skene  each judge has a confusion matrix of its own            (factory/votes/latent.py)
  dependent    judges of one family share blind spots                  (factory/votes/dependence.py)

`probability` is what the method gives the value (for majority and weighted: its share of the votes, which is no
probability of being true), `entropy` that of the whole distribution, in nats. A method is one function with one
registration; the fact `truth` says whether its posterior is a probability of being true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.faults import FactoryError
from factory.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Index = NDArray[np.int64]


class Votes(NamedTuple):
    """A table of votes as numbers: position of item, judge and category of each vote, all `(votes,)`, and their
    names."""

    item: Index
    judge: Index
    value: Index
    items: Sequence[Any]
    judges: list[Any]
    categories: list[Any]


@dataclass(frozen=True)
class JudgesModel:
    """What a method learnt about the judges.

    `accuracy`: probability of being right. `confusion` `(judges, true, said)` and `prior` `(categories,)`. `effective`:
    Kish's number of independent judges that the panel is worth, None where the method takes them for independent;
    `correlation` `(judges, judges)` of their errors; `families` of judges that share blind spots. `notes` are
    sentences for the user about what the votes cannot tell.
    """

    accuracy: Mapping[Any, float]
    confusion: Array
    prior: Array
    rounds: int
    converged: bool
    effective: float | None = None
    correlation: Array | None = None
    families: tuple[tuple[Any, ...], ...] = ()
    notes: tuple[str, ...] = ()


class Decided(NamedTuple):
    """A method's answer: `value` per item (None: undecided); its distribution over categories `(items, categories)`,
    None where the method has none of its own; what it learnt about the judges, if anything."""

    value: Sequence[Any] | NDArray[np.object_]
    posterior: Array | None
    model: JudgesModel | None = None


_BLOCK = 1 << 16  # places written at once

Method = Callable[..., Decided]
methods: Registry[Method] = Registry("aggregation method")
methods.add("one_coin", "factory.votes.latent:one_coin", truth=True)
methods.add("dawid_skene", "factory.votes.latent:dawid_skene", truth=True)
methods.add("dependent", "factory.votes.dependence:dependent", truth=True)


def encode(ratings: pa.Table, categories: Sequence[Any] | None = None) -> Votes:
    """Votes from a table with columns item, judge, value. Missing votes (null, NaN) are left out.

    Items (those with a vote) and judges are in order of appearance, categories as declared, else sorted. FactoryError
    when a column is missing, an item or judge is null, a value is not among the categories, or a judge voted twice on
    an item.
    """
    votes, items = _encoded(ratings, categories)
    return votes._replace(items=items.to_pylist())


def _encoded(ratings: pa.Table, categories: Sequence[Any] | None) -> tuple[Votes, pa.Array]:
    """Votes with numbers for items, and the items' names."""
    import numpy as np
    import pyarrow.compute as pc

    lacking = [name for name in ("item", "judge", "value") if name not in ratings.column_names]
    if lacking:
        raise FactoryError(f"votes need the columns item, judge, value; there is no {', '.join(lacking)}")
    ratings = plain_columns(ratings)
    nameless = ratings.column("item").null_count + ratings.column("judge").null_count
    if nameless:
        raise FactoryError(f"{nameless} votes lack an item or a judge", todo="name both in every row")
    present = _present(ratings.column("value"))
    judge, panel = _positions(ratings.column("judge"))
    if not pc.all(present).as_py():
        ratings, judge = ratings.filter(present), judge[np.asarray(present)]
    item, items = _positions(ratings.column("item"))
    seen, found = _positions(ratings.column("value"))
    judges, values = panel.to_pylist(), found.to_pylist()
    known = list(categories) if categories is not None else sorted(values)
    strange = [value for value in values if value not in set(known)]
    if strange:
        raise FactoryError(f"votes outside the categories: {strange[:5]}", todo=f"the categories are {known}")
    value = seen if values == known else _places(values, known)[seen]
    twice = len(item) - _distinct_pairs(item, judge, len(items), len(judges))
    if twice:
        raise FactoryError(f"{twice} votes repeat an item and judge", todo="keep one vote of each judge for each item")
    return Votes(item, judge, value, range(len(items)), judges, known), items


def _places(names: Sequence[Any], known: Sequence[Any]) -> Index:
    """Where each name stands among the known."""
    import numpy as np

    place = {name: i for i, name in enumerate(known)}
    return np.asarray([place[name] for name in names], dtype=np.int64)


def _distinct_pairs(item: Index, judge: Index, items: int, judges: int) -> int:
    import numpy as np

    key = item * max(judges, 1)
    key += judge
    if _grows(key[:1000]) and bool((key[1:] > key[:-1]).all()):
        return len(key)
    if items * judges > 16 * len(item) + 1_000_000:
        return len(np.unique(key))
    met = np.zeros(items * judges, dtype=np.bool_)
    met[key] = True
    return int(np.count_nonzero(met))


def plain_columns(ratings: pa.Table) -> pa.Table:
    """The table with dictionary-encoded and view columns as plain ones."""
    import pyarrow as pa

    def plain(kind: Any) -> Any:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pa.string() if kind == pa.string_view() else kind

    return ratings.cast(pa.schema([(field.name, plain(field.type)) for field in ratings.schema]))


def _present(column: pa.ChunkedArray) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    present = pc.is_valid(column)
    if pa.types.is_floating(column.type):
        present = pc.and_(present, pc.fill_null(pc.invert(pc.is_nan(column)), False))
    return present


def _positions(column: pa.ChunkedArray) -> tuple[Index, pa.Array]:
    """Position of each entry among the distinct entries, in order of appearance; and those."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_integer(column.type) and len(column):
        found = _positions_of_numbers(column.to_numpy())
        if found is not None:
            return found[0], pa.array(found[1], column.type)
    coded = column.dictionary_encode().unify_dictionaries()
    if not coded.num_chunks:
        return np.zeros(0, dtype=np.int64), pa.array([], column.type)
    parts = [np.asarray(chunk.indices, dtype=np.int64) for chunk in coded.chunks]
    index = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return index, coded.chunk(0).dictionary


def _positions_of_numbers(numbers: NDArray[np.integer[Any]]) -> tuple[Index, Index] | None:
    """The same for whole numbers that lie close together, by counting instead of hashing; None where they do not."""
    import numpy as np

    low, high = int(numbers.min()), int(numbers.max())
    if high - low >= 4 * len(numbers) + 1000 or high >= 2**63:
        return None
    offset = numbers.astype(np.int64, copy=False)
    offset = offset - low if low else offset
    rank = np.zeros(high - low + 1, dtype=np.int64)
    met = _in_order(offset, high - low + 1)
    rank[met] = np.arange(len(met))
    if len(met) == len(rank) and bool((met[1:] > met[:-1]).all()):
        return offset, met + low
    return rank[offset], met + low


def _in_order(offset: Index, size: int) -> Index:
    """The distinct numbers below `size`, in order of appearance."""
    import numpy as np

    if size < len(offset) // 16:  # a sixteenth of the entries is likely to hold them all
        met = _in_order(offset[: len(offset) // 16], size)
        if len(met) == np.count_nonzero(np.bincount(offset, minlength=size)):
            return met
    if _grows(offset[:1000]) and _grows(offset):
        return np.concatenate([offset[:1], offset[1:][offset[1:] != offset[:-1]]])
    first = np.full(size, -1, dtype=np.int64)
    for end in range(len(offset), 0, -_BLOCK):  # from the back, so that the first place is what stays
        start = max(end - _BLOCK, 0)
        first[offset[start:end][::-1]] = np.arange(end - 1, start - 1, -1)
    opens = np.zeros(len(offset), dtype=np.bool_)
    opens[first[first >= 0]] = True
    return offset[opens]


def _grows(numbers: Index) -> bool:
    return bool((numbers[1:] >= numbers[:-1]).all())


def aggregate(ratings: pa.Table, method: str = "majority", **options: Any) -> pa.Table:
    """One row for each item with a vote: item, value, probability, entropy (nats). Undecided: value and probability
    null. `options` are the method's own."""
    import numpy as np
    import pyarrow as pa

    ratings = plain_columns(ratings)
    votes, items = _encoded(ratings, None)
    decided = methods.get(method)(votes, **options)
    spread = decided.posterior if decided.posterior is not None else shares(votes)
    value_type = ratings.schema.field("value").type if decided.posterior is not None else pa.float64()
    value = pa.array(decided.value, value_type)
    top = np.zeros(len(spread))
    for share in spread.T:
        np.maximum(top, share, out=top)
    unknown = np.asarray(value.is_null()) if decided.posterior is not None else np.ones(len(spread), dtype=np.bool_)
    return pa.table(
        {
            "item": items,
            "value": value,
            "probability": pa.array(top, pa.float64(), mask=unknown),
            "entropy": pa.array(entropy(spread), pa.float64()),
        }
    )


def entropy(posterior: Array) -> Array:
    """Entropy of each item's distribution, in nats, `(items,)`."""
    import numpy as np

    found = np.zeros(len(posterior))
    for share in posterior.T:
        found -= share * np.log(np.where(share > 0, share, 1.0))
    return found + 0.0


def shares(votes: Votes) -> Array:
    """Share of each category in an item's votes, `(items, categories)`."""
    import numpy as np

    counts = count(votes)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def count(votes: Votes, weight: Array | None = None) -> Array:
    """How many judges (or how much weight of votes) gave each item each category, `(items, categories)`."""
    import numpy as np

    width = max(len(votes.categories), 1)
    place = votes.item * width
    place += votes.value
    flat = np.bincount(place, weight, minlength=len(votes.items) * width)
    return np.asarray(flat.reshape(len(votes.items), width), dtype=np.float64)


def named(votes: Votes, place: Index) -> NDArray[np.object_]:
    """Categories by their places, None for -1, `(items,)`."""
    import numpy as np

    names = np.empty(len(votes.categories) + 1, dtype=object)
    names[:-1] = votes.categories
    return np.asarray(names[place])


def _most(votes: Votes, counts: Array) -> Decided:
    """The category with the highest count; an item whose first two categories have as much is undecided."""
    import numpy as np

    total = counts.sum(axis=1, keepdims=True)
    even = np.full_like(counts, 1 / counts.shape[1])
    posterior = np.divide(counts, total, out=even, where=total > 0)
    return Decided(named(votes, leader(counts)), posterior)


def leader(counts: Array) -> Index:
    """The place of the largest in each row; -1 where the first two are equal. Columns are few, rows many."""
    import numpy as np

    top = counts[:, 0].copy()
    place = np.zeros(len(counts), dtype=np.int64)
    for k, column in enumerate(counts.T[1:], start=1):
        more = column > top + 1e-9
        even = np.abs(column - top) <= 1e-9
        place = np.where(more, k, np.where(even, -1, place))
        top = np.maximum(top, column)
    return place


@methods.register("majority", truth=False)
def majority(votes: Votes) -> Decided:
    """Most votes; an item whose first two categories have as many is undecided."""
    return _most(votes, count(votes))


@methods.register("weighted", truth=False)
def weighted(votes: Votes, weights: Mapping[Any, float]) -> Decided:
    """Most weight, by a weight of 0 or more for each judge. Log-odds of a judge's accuracy are the weights that
    independent judges deserve. Votes that have no weight at all leave an item undecided, every category as likely.

    FactoryError when a judge has no weight, or one that is negative or no number.
    """
    import numpy as np

    without = [judge for judge in votes.judges if judge not in weights]
    wrong = [judge for judge, w in weights.items() if not (math.isfinite(w) and w >= 0)]
    if without or wrong:
        raise FactoryError(
            f"no weight for {without}" if without else f"weights of {wrong} are not numbers of 0 or more",
            todo="give every judge of the panel a weight of 0 or more",
        )
    by_judge = np.asarray([weights[judge] for judge in votes.judges], dtype=np.float64)
    return _most(votes, count(votes, by_judge[votes.judge]))


@methods.register("mean", truth=False)
def mean(votes: Votes) -> Decided:
    """The mean vote. FactoryError when votes are no numbers."""
    import numpy as np

    if not all(isinstance(c, int | float) for c in votes.categories):
        raise FactoryError("the mean needs votes that are numbers", todo="use majority or dawid_skene")
    number = np.asarray(votes.categories, dtype=np.float64)[votes.value] if len(votes.value) else votes.value
    size = len(votes.items)
    total, n = np.bincount(votes.item, number, size), np.bincount(votes.item, minlength=size)
    return Decided((total / n).tolist(), None)
