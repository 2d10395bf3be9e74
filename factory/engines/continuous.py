"""Continuous batching: a row that is finished makes room for the next at once (Yu et al., Orca, OSDI 2022).

Prompts are read in groups; the rows that begin from a group wait until a slot is free. All rows in decoding end at the
same column of the cache, whatever their length, so that a step writes one column and no row is moved when another
comes: a new prompt is copied to where its last token lies left of that column, and what is before its first token is
masked. When the columns are used up, the rows are moved left together.

Groups must come in order of falling width, so that a prompt always fits left of the column.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from factory.engines.decoding import Decoder, Prefilled, Row, closing_moves, joined, uniforms
from factory.schema import Sampling

LEAST_SPARE = 32  # columns to go on in before the rows are moved left; a move costs about as much as one step

Stopped = Callable[[Row], bool]


class Group(NamedTuple):
    """Prompts that were read together, and the rows that begin from them: `Row.prompt` is a place in `start`."""

    start: Prefilled
    rows: Sequence[Row]


class Room(NamedTuple):
    """Sizes of a window: rows at a time, columns, and tokens of the longest answer."""

    slots: int
    columns: int
    answer: int


def room_for(widest: int, answer: int, batch_size: int, batch_tokens: int) -> Room:
    """The room for prompts of up to `widest` tokens with answers of up to `answer`, at most `batch_size` rows and about
    `batch_tokens` places in the cache."""
    columns = widest + answer + max(LEAST_SPARE, (widest + answer) // 8)
    return Room(max(1, min(batch_size, batch_tokens // columns)), columns, answer)


class Span:
    """What counts in a window: the first `rows` slots, and the columns from `first` up to `end`."""

    __slots__ = ("end", "first", "rows")

    def __init__(self) -> None:
        self.rows = self.first = self.end = 0


class WindowLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values (slots, heads, columns, dim) of a layer. What was never written is zero, for masked places must
    be finite."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, room: Room, span: Span) -> None:
        """`keys`, `values` (any, heads, any, dim): like those to come."""
        super().__init__()
        self.span = span
        self.keys, self.values = (
            filled.new_zeros((room.slots, filled.shape[1], room.columns, filled.shape[3])) for filled in (keys, values)
        )
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the column at the end of all rows; hand back views of all that counts, it included."""
        rows, first, end = self.span.rows, self.span.first, self.span.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        return self.keys[:rows, :, first : end + 1], self.values[:rows, :, first : end + 1]

    def place(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put prompts (slots, heads, length, dim) into slots, up to the end."""
        end = self.span.end
        self.keys[slots, :, end - keys.shape[2] : end] = keys
        self.values[slots, :, end - values.shape[2] : end] = values

    def copy(self, source: int, target: int) -> None:
        """Copy what counts from slot to slot."""
        part = slice(self.span.first, self.span.end)
        for kept in (self.keys, self.values):
            kept[target, :, part] = kept[source, :, part]

    def shift(self, by: int) -> None:
        """Move all rows left."""
        rows, first, end = self.span.rows, self.span.first, self.span.end
        for kept in (self.keys, self.values):
            kept[:rows, :, first - by : end - by] = kept[:rows, :, first:end].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.span.end - self.span.first

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])


class Waiting:
    """The rows of a group that have no slot yet."""

    def __init__(self, group: Group) -> None:
        self.start, self.rows = group.start, list(group.rows)
        self.layers = joined(group.start)

    def take(self, count: int) -> tuple[list[Row], Tensor]:
        """The next rows, `count` or fewer, and the logits (rows, vocabulary) of their first token."""
        rows, self.rows = self.rows[:count], self.rows[count:]
        return rows, self.start.logits.index_select(0, self.places(rows))

    def places(self, rows: Sequence[Row]) -> Tensor:
        """The places (rows,) of their prompts."""
        return torch.tensor([row.prompt for row in rows], device=self.start.logits.device)


class Window:
    """The rows in decoding: slot by slot the row, its first column, its last token, its position and its numbers."""

    def __init__(self, room: Room, device: torch.device) -> None:
        self.room, self.span = room, Span()
        self.rows: list[Row] = []
        self.first: list[int] = []
        self.widest = 0  # columns of the last prompts that were placed
        self.mask = torch.zeros((room.slots, room.columns), dtype=torch.long, device=device)
        self.tokens = torch.zeros(room.slots, dtype=torch.long, device=device)
        self.positions = torch.zeros(room.slots, dtype=torch.long, device=device)
        self.steps = torch.zeros(room.slots, dtype=torch.long, device=device)
        self.points = torch.zeros((room.slots, room.answer), dtype=torch.float64, device=device)
        self.layers: list[WindowLayer] = []
        self.cache = Cache(layers=[])

    def place(self, gaps: list[int], waiting: Waiting, rows: Sequence[Row], tokens: Tensor, points: Tensor) -> None:
        """Give rows, whose first tokens (rows,) are known, the slots in `gaps` and then those after the last; take from
        `gaps` what is used. points (rows, answer)."""
        width = waiting.start.mask.shape[1]
        if not self.layers:
            self.layers = [WindowLayer(keys, values, self.room, self.span) for keys, values in waiting.layers]
            self.cache = Cache(layers=self.layers)
        if len(gaps) == len(self.rows):
            self.span.end = width
        self.widest = width
        slots = self._slots(gaps, rows, self.span.end - width)
        index, prompts = torch.tensor(slots, device=self.mask.device), waiting.places(rows)
        self.mask[index] = self._masks(waiting.start.mask.index_select(0, prompts))
        self.positions[index] = waiting.start.lengths.index_select(0, prompts)
        self.tokens[index], self.steps[index], self.points[index] = tokens, 1, points
        for layer, (keys, values) in zip(self.layers, waiting.layers, strict=True):
            layer.place(index, keys.index_select(0, prompts), values.index_select(0, prompts))

    def _slots(self, gaps: list[int], rows: Sequence[Row], first: int) -> list[int]:
        slots = []
        for row in rows:
            if gaps:
                slots.append(gaps.pop(0))
                self.rows[slots[-1]], self.first[slots[-1]] = row, first
            else:
                slots.append(len(self.rows))
                self.rows.append(row)
                self.first.append(first)
        self.span.rows = len(self.rows)
        self.span.first = min(self.first)
        return slots

    def _masks(self, prompts: Tensor) -> Tensor:
        """prompts (rows, width), laid left of the end; before them zeros, after them ones."""
        end, masks = self.span.end, self.mask.new_ones((len(prompts), self.room.columns))
        masks[:, : end - prompts.shape[1]] = 0
        masks[:, end - prompts.shape[1] : end] = prompts
        return masks

    def close(self, gaps: Sequence[int]) -> None:
        """Close the gaps that no row has come to fill."""
        for source, target in closing_moves(gaps, len(self.rows)):
            self.rows[target], self.first[target] = self.rows[source], self.first[source]
            for kept in (self.mask, self.tokens, self.positions, self.steps, self.points):
                kept[target] = kept[source]
            for layer in self.layers:
                layer.copy(source, target)
        left = len(self.rows) - len(gaps)
        del self.rows[left:], self.first[left:]
        self.span.rows, self.span.first = left, min(self.first, default=self.span.end)

    def make_room(self) -> None:
        """Move all rows left if no column is left for their next token; as far as the longest row and the next prompts
        allow."""
        if self.span.end < self.room.columns:
            return
        by = self.span.end - max(self.span.end - self.span.first, self.widest)
        for layer in self.layers:
            layer.shift(by)
        self.mask[:, :-by] = self.mask[:, by:].clone()
        self.mask[:, -by:] = 1
        self.first = [first - by for first in self.first]
        self.span.first, self.span.end = self.span.first - by, self.span.end - by

    def numbers(self) -> Tensor:
        """The uniform number (rows,) for the next token of each row."""
        live = slice(0, self.span.rows)
        return self.points[live].gather(1, self.steps[live, None])[:, 0]

    def advance(self, tokens: Tensor) -> None:
        """Each row has got its token (rows,)."""
        live = slice(0, self.span.rows)
        self.tokens[live] = tokens
        self.positions[live] += 1
        self.steps[live] += 1


class Continuous:
    """Decoding with one decoder in one window. `stopped` is asked after each token of a row whether a stop string has
    come."""

    def __init__(self, decoder: Decoder, room: Room, sampling: Sampling, stopped: Stopped | None = None) -> None:
        self.decoder, self.sampling, self.stopped = decoder, sampling, stopped
        self.window = Window(room, decoder.device)

    def decode(self, groups: Iterator[Group]) -> Generator[list[Row]]:
        """Answer the rows of all groups, each group being asked for when a slot is free for it; yield those that finish
        at the same step together."""
        waiting: Waiting | None = None
        gaps: list[int] = []
        while True:
            while free := self.window.room.slots - len(self.window.rows) + len(gaps):
                if waiting is None or not waiting.rows:
                    waiting = next((Waiting(group) for group in groups if group.rows), None)
                if waiting is None:
                    break
                if finished := self._begin(waiting, free, gaps):
                    yield finished
            self._close(gaps)
            if not self.window.rows:
                return
            gaps, finished = self._step()
            if finished:
                yield finished

    @torch.inference_mode()
    def _begin(self, waiting: Waiting, free: int, gaps: list[int]) -> list[Row]:
        """Draw the first token of as many rows as there are slots free, and give them their slots; the rows that are
        finished by it."""
        rows, logits = waiting.take(free)
        numbers = np.zeros((len(rows), self.window.room.answer))
        for place, row in enumerate(rows):
            numbers[place, : row.limit] = uniforms(row.seed, row.limit)
        points = torch.from_numpy(numbers).to(self.decoder.device)
        choice = self.decoder.choose(logits, points[:, 0], self.sampling)
        finished = self.decoder.take(rows, choice, self.stopped)
        left = sorted(set(range(len(rows))) - set(finished))
        if left:
            index = torch.tensor(left, device=self.decoder.device)
            self.window.place(gaps, waiting, [rows[at] for at in left], choice.tokens[index], points[index])
        return [rows[at] for at in finished]

    @torch.inference_mode()
    def _close(self, gaps: Sequence[int]) -> None:
        if gaps:
            self.window.close(gaps)

    @torch.inference_mode()
    def _step(self) -> tuple[list[int], list[Row]]:
        """One token more for every row; the slots and the rows that are finished by it."""
        window, span = self.window, self.window.span
        window.make_room()
        live = slice(0, span.rows)
        logits = self.decoder.forward(
            window.tokens[live, None],
            window.mask[live, span.first : span.end + 1],
            window.positions[live, None],
            window.cache,
        )
        span.end += 1
        choice = self.decoder.choose(logits, window.numbers(), self.sampling)
        window.advance(choice.tokens)
        finished = self.decoder.take(window.rows, choice, self.stopped)
        return finished, [window.rows[slot] for slot in finished]
