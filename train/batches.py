"""Which rows each step reads: a function of the seed and the step alone, so that a resumed training reads the same.

`Source` is what the loop asks; `FixedRows` serves a list of rows, shuffled anew for every epoch. A method that samples
its own data is another source.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

from factory.schema import digest
from train.data import CompletionRow, LabelRow, PairRow, SampleRow

Row = PairRow | LabelRow | CompletionRow | SampleRow
R = TypeVar("R", bound=Row)


class Batch(NamedTuple):
    """The rows of one step, how many epochs will be done after it (a fraction), and what a source says of them for the
    metrics."""

    rows: Sequence[Row]
    epoch: float
    said: Mapping[str, float] = {}


class Source(Protocol):
    """Where batches come from."""

    @property
    def steps(self) -> int:
        """Steps in all."""

    @property
    def hash(self) -> str:
        """Of the data and its order: a checkpoint of other data is refused."""

    def batch(self, step: int) -> Batch:
        """The rows of a step, counted from 0."""

    def whole(self, step: int) -> bool:
        """May a training be cut after this step, and go on from there?"""

    def state(self) -> dict[str, Any]:
        """What the batches to come depend on besides the step and the weights."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""


@dataclass(frozen=True)
class FixedRows:
    """Rows that are there before training begins. The last batch of an epoch may be smaller; none is left out."""

    rows: Sequence[Row]
    batch_size: int
    epochs: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Steps of one epoch."""
        return math.ceil(len(self.rows) / self.batch_size)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.per_epoch * self.epochs

    @property
    def hash(self) -> str:
        """Of rows, batch size, epochs and seed."""
        return digest([list(row) for row in self.rows], self.batch_size, self.epochs, self.seed)

    def whole(self, step: int) -> bool:
        """After any step."""
        return True

    def state(self) -> dict[str, Any]:
        """Nothing: rows are a function of the step."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""

    def batch(self, step: int) -> Batch:
        """The rows of a step."""
        epoch, place = divmod(step, self.per_epoch)
        picked = _order(self.seed, epoch, len(self.rows))[place * self.batch_size : (place + 1) * self.batch_size]
        return Batch([self.rows[i] for i in picked], (step + 1) / self.per_epoch)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order of an epoch: drawn once for all its steps."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - not a secret
    return tuple(order)


def tokens_of(row: Row) -> int:
    """Tokens of a row that go through the model, about."""
    if isinstance(row, PairRow):
        return len(row.prompt) + len(row.chosen) + len(row.rejected)
    return len(row.prompt) + len(row.completion)


def micro_batches(rows: Sequence[R], limit: int) -> Iterator[list[R]]:
    """The rows of a step by length, those of a prompt together, in parts of at most `limit` tokens (a longer row is a
    part by itself)."""
    longest: dict[tuple[int, ...], int] = {}
    for row in rows:
        longest[row.prompt] = max(longest.get(row.prompt, 0), tokens_of(row))
    part: list[R] = []
    size = 0
    for row in sorted(rows, key=lambda row: (longest[row.prompt], row.prompt, tokens_of(row)), reverse=True):
        if part and size + tokens_of(row) > limit:
            yield part
            part, size = [], 0
        part.append(row)
        size += tokens_of(row)
    if part:
        yield part


def shares(rows: Sequence[R], count: int) -> list[list[R]]:
    """The rows shared out to `count` processes so that each has about as many tokens: the longest first, each to whom
    has the fewest. Where there are fewer rows than processes, some get none."""
    if count == 1:
        return [list(rows)]
    found: list[list[R]] = [[] for _ in range(count)]
    tokens = [0] * count
    for row in sorted(rows, key=tokens_of, reverse=True):
        least = tokens.index(min(tokens))
        found[least].append(row)
        tokens[least] += tokens_of(row)
    return found
