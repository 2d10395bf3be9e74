"""One value for each item from the votes of many judges; numpy and Arrow, no I/O.

  majority     the category with most votes; none (null) where the first two have as many
  mean         the mean of numbers; categories that are no numbers have none
  dawid_skene  each judge has a confusion matrix of its own, and truth is what makes the votes likeliest: EM of Dawid
               and Skene 1979, Applied Statistics 28:20, eq. 2.3-2.5, started from the shares of votes

`probability` is what the method gives the value (for majority: its share of the votes), `entropy` that of the whole
distribution, in nats. A method is one function with one registration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    items: list[Any]
    judges: list[Any]
    categories: list[Any]


class Decided(NamedTuple):
    """A method's answer: `value` per item (None: undecided), and its distribution over categories `(items,
    categories)`, None where the method has none of its own."""

    value: list[Any]
    posterior: Array | None


Method = Callable[[Votes], Decided]
methods: Registry[Method] = Registry("aggregation method")


def encode(ratings: pa.Table, categories: Sequence[Any] | None = None) -> Votes:
    """Votes from a table with columns item, judge, value. Missing votes (null, NaN) are left out.

    Items (those with a vote) and judges are in order of appearance, categories as declared, else sorted. FactoryError
    when a column is missing, a value is not among the categories, or a judge voted twice on an item.
    """
    import numpy as np

    lacking = [name for name in ("item", "judge", "value") if name not in ratings.column_names]
    if lacking:
        raise FactoryError(f"votes need the columns item, judge, value; there is no {', '.join(lacking)}")
    ratings = plain_columns(ratings)
    given = ratings.filter(_present(ratings.column("value")))
    item, items = _positions(given.column("item"), given.column("item"))
    judge, judges = _positions(ratings.column("judge"), given.column("judge"))
    seen, values = _positions(given.column("value"), given.column("value"))
    known = list(categories) if categories is not None else sorted(values)
    places = {value: place for place, value in enumerate(known)}
    strange = [value for value in values if value not in places]
    if strange:
        raise FactoryError(f"votes outside the categories: {strange[:5]}", todo=f"the categories are {known}")
    value = np.asarray([places[v] for v in values], dtype=np.int64)[seen] if len(seen) else seen
    twice = len(item) - len(np.unique(item * max(len(judges), 1) + judge))
    if twice:
        raise FactoryError(f"{twice} votes repeat an item and judge", todo="keep one vote of each judge for each item")
    return Votes(item, judge, value, items, judges, known)


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


def _positions(whole: pa.ChunkedArray, column: pa.ChunkedArray) -> tuple[Index, list[Any]]:
    """Position of each entry among the distinct entries of `whole`, in order of appearance; and those."""
    import numpy as np
    import pyarrow.compute as pc

    names = pc.unique(whole)
    index = pc.index_in(column, value_set=names)
    return np.asarray(index.to_numpy(), dtype=np.int64), names.to_pylist()


def aggregate(ratings: pa.Table, method: str = "majority") -> pa.Table:
    """One row for each item with a vote: item, value, probability, entropy (nats). Undecided: value and probability
    null."""
    import numpy as np
    import pyarrow as pa

    ratings = plain_columns(ratings)
    votes = encode(ratings)
    decided = methods.get(method)(votes)
    spread = decided.posterior if decided.posterior is not None else shares(votes)
    safe = np.where(spread > 0, spread, 1.0)
    entropy = -(safe * np.log(safe)).sum(axis=1) + 0.0
    top = spread.max(axis=1) if spread.shape[1] else np.zeros(len(spread))
    has_own = decided.posterior is not None
    probability = [
        float(p) if has_own and value is not None else None for p, value in zip(top, decided.value, strict=True)
    ]
    value_type = ratings.schema.field("value").type if method != "mean" else pa.float64()
    return pa.table(
        {
            "item": pa.array(votes.items, ratings.schema.field("item").type),
            "value": pa.array(decided.value, value_type),
            "probability": pa.array(probability, pa.float64()),
            "entropy": pa.array(entropy, pa.float64()),
        }
    )


def shares(votes: Votes) -> Array:
    """Share of each category in an item's votes, `(items, categories)`."""
    import numpy as np

    counts = count(votes)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def count(votes: Votes) -> Array:
    """How many judges gave each item each category, `(items, categories)`."""
    import numpy as np

    width = max(len(votes.categories), 1)
    flat = np.bincount(votes.item * width + votes.value, minlength=len(votes.items) * width)
    return np.asarray(flat.reshape(len(votes.items), width), dtype=np.float64)


@methods.register("majority")
def majority(votes: Votes) -> Decided:
    """Most votes; an item whose first two categories have as many is undecided."""
    counts = count(votes)
    best = counts.argmax(axis=1)
    alone = (counts == counts.max(axis=1, keepdims=True)).sum(axis=1) == 1
    value = [votes.categories[k] if sole else None for k, sole in zip(best, alone, strict=True)]
    return Decided(value, shares(votes))


@methods.register("mean")
def mean(votes: Votes) -> Decided:
    """The mean vote. FactoryError when votes are no numbers."""
    import numpy as np

    if not all(isinstance(c, int | float) for c in votes.categories):
        raise FactoryError("the mean needs votes that are numbers", todo="use majority or dawid_skene")
    number = np.asarray(votes.categories, dtype=np.float64)[votes.value] if len(votes.value) else votes.value
    size = len(votes.items)
    total, n = np.bincount(votes.item, number, size), np.bincount(votes.item, minlength=size)
    return Decided((total / n).tolist(), None)


@methods.register("dawid_skene")
def dawid_skene(votes: Votes) -> Decided:
    """The likeliest category given what each judge tends to say."""
    posterior = likeliest(votes)
    return Decided([votes.categories[k] for k in posterior.argmax(axis=1)], posterior)


def likeliest(votes: Votes, *, rounds: int = 200, tolerance: float = 1e-7, smoothing: float = 0.01) -> Array:
    """Posterior of each category by EM, `(items, categories)`. `smoothing` votes are added to every cell of a confusion
    matrix, so that none is 0; it ends when no probability moves by more than `tolerance`, or after `rounds`."""
    import numpy as np

    posterior = shares(votes)
    for _ in range(rounds):
        previous, posterior = posterior, _expect(votes, *_maximise(votes, posterior, smoothing))
        if np.abs(posterior - previous).max(initial=0.0) < tolerance:
            break
    return posterior


def _maximise(votes: Votes, posterior: Array, smoothing: float) -> tuple[Array, Array]:
    """Log share of each true category `(categories,)`, and log confusion `(true, judge, said)` (eq. 2.3 and 2.4)."""
    import numpy as np

    kinds, judges = posterior.shape[1], max(len(votes.judges), 1)
    place = votes.judge * kinds + votes.value
    said = np.stack([np.bincount(place, posterior[votes.item, true], judges * kinds) for true in range(kinds)])
    confusion = said.reshape(kinds, judges, kinds) + smoothing
    prior = posterior.sum(axis=0) + smoothing
    return np.log(prior / prior.sum()), np.log(confusion / confusion.sum(axis=2, keepdims=True))


def _expect(votes: Votes, prior: Array, confusion: Array) -> Array:
    """Probability of each true category given an item's votes, `(items, categories)` (eq. 2.5), in logs."""
    import numpy as np

    size = len(votes.items)
    votes_for = [np.bincount(votes.item, by_judge[votes.judge, votes.value], size) for by_judge in confusion]
    log = np.stack(votes_for, axis=1) + prior
    odds = np.exp(log - log.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))
