"""The rows that a training reads: prompts and completions as token ids, within the limits on their lengths."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from train.conversations import (
    Answer,
    Ids as Ids,
    RowError,
    Tokenizer,
    Turn,
    answer_ids,
    completion_ids,
    learnt,
    prompt_ids,
    whole_ids,
)


class Encoded(NamedTuple):
    """A prompt and one completion as token ids. The completion ends with the end token unless it was cut."""

    prompt_ids: Ids
    completion_ids: Ids


class PairRow(NamedTuple):
    """One preference. `ref_*`: summed log-probs under the reference, nats; 0 where the objective needs none. `*_head`:
    over the first tokens alone, as many as the shorter answer has. `margin`: by how much chosen is the better, 0 to 1.
    """

    prompt: Ids
    chosen: Ids
    rejected: Ids
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0
    weight: float = 1.0
    ref_chosen_head: float = 0.0
    ref_rejected_head: float = 0.0
    margin: float = 0.0


class LabelRow(NamedTuple):
    """One labelled completion. `other`: the completion of another prompt, for KTO's baseline; empty: there is none."""

    prompt: Ids
    completion: Ids
    desirable: bool
    other: Ids = ()
    ref: float = 0.0
    ref_other: float = 0.0
    weight: float = 1.0


class CompletionRow(NamedTuple):
    """One answer to be learnt as it is."""

    prompt: Ids
    completion: Ids
    weight: float = 1.0


class SampleRow(NamedTuple):
    """One answer that the policy in training sampled. `advantage`: one for the answer, or one for each token. `old`,
    `ref`: log-probs of its tokens under the weights that sampled it and under the reference, nats. `value`, `returns`:
    what a critic said of its tokens then, and what came; empty without one."""

    prompt: Ids
    completion: Ids
    reward: float
    advantage: tuple[float, ...]
    old: tuple[float, ...]
    ref: tuple[float, ...]
    value: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()
    weight: float = 1.0


# ------------------------------------------------------------------------------------------------------ lengths


class Limits(NamedTuple):
    """Most tokens of prompt and completion together, and of the completion. None: no limit."""

    total: int | None = None
    completion: int | None = None


NO_LIMITS = Limits()


class Fitted(NamedTuple):
    """Completions that share a prompt, within the limits. `cut`: tokens that were left out, those of the prompt
    once."""

    prompt: Ids
    completions: tuple[Ids, ...]
    cut: int


def fit(prompt: Ids, completions: Sequence[Ids], limits: Limits) -> Fitted:
    """Cut what is too long: completions at their end (the end token goes too), then the prompt at its start.
    RowError: nothing is left of a completion that is learnt.

    The longest completion decides how much prompt stays, so that all keep the same one; a first BOS-like token is
    kept. At least one token of the prompt and one of each completion stay.
    """
    most = min((n for n in (limits.completion, limits.total and limits.total - 1) if n), default=None)
    short = tuple(c if most is None else c[:most] for c in completions)
    if not all(map(learnt, short)):
        raise RowError("nothing that is learnt is left up to max_length")
    room = None if limits.total is None else max(1, limits.total - max(len(c) for c in short))
    kept = prompt
    if room is not None and len(prompt) > room:
        kept = (*prompt[:1], *prompt[len(prompt) - room + 1 :]) if room > 1 else prompt[-1:]
    cut = len(prompt) - len(kept) + sum(map(len, completions)) - sum(map(len, short))
    return Fitted(kept, short, cut)


class Pair(NamedTuple):
    """A preference as text. `tools`: JSON schemas of the functions that the assistant may call."""

    prompt: Sequence[Turn]
    chosen: Answer
    rejected: Answer
    weight: float = 1.0
    margin: float = 0.0
    tools: tuple[Any, ...] = ()


class Labelled(NamedTuple):
    """A labelled answer as text. `tools`: as in Pair."""

    prompt: Sequence[Turn]
    completion: Answer
    desirable: bool
    weight: float = 1.0
    tools: tuple[Any, ...] = ()


def encode(
    tokenizer: Tokenizer, prompt: Sequence[Turn], completion: str, tools: Sequence[Any] = (), *, ended: bool = True
) -> Encoded:
    """A prompt and its answer as token ids. RowError: nothing to condition on, or an empty completion."""
    return Encoded(_conditions(tokenizer, prompt, tools), completion_ids(tokenizer, Answer(completion, ended)))


def _conditions(tokenizer: Tokenizer, prompt: Sequence[Turn], tools: Sequence[Any] = ()) -> Ids:
    before = prompt_ids(tokenizer, prompt, tools)
    if not before:
        raise RowError("empty prompt")
    return before


def pair_row(tokenizer: Tokenizer, pair: Pair, limits: Limits = NO_LIMITS) -> tuple[PairRow, int]:
    """A preference as tokens, and how many were cut. RowError when chosen and rejected are, or become, the same."""
    before = _conditions(tokenizer, pair.prompt, pair.tools)
    if pair.chosen._replace(ended=True) == pair.rejected._replace(ended=True):
        raise RowError("chosen and rejected are the same")
    good, bad = (answer_ids(tokenizer, pair.prompt, each, pair.tools) for each in (pair.chosen, pair.rejected))
    prompt, (chosen, rejected), cut = fit(before, (good, bad), limits)
    if chosen == rejected:
        raise RowError("chosen and rejected are the same up to max_length")
    return PairRow(prompt, chosen, rejected, weight=pair.weight, margin=pair.margin), cut


def scored_row(tokenizer: Tokenizer, pair: Pair, limits: Limits = NO_LIMITS) -> tuple[PairRow, int]:
    """A preference as a reward model reads it (`whole_ids`), and how many tokens were cut: what both answers begin with
    stands as the prompt. RowError when chosen and rejected are the same, or when the end of one, at which it is scored,
    would be cut."""
    good, bad = (whole_ids(tokenizer, pair.prompt, each, pair.tools) for each in (pair.chosen, pair.rejected))
    if good == bad:
        raise RowError("chosen and rejected are the same")
    most = min(len(good), len(bad)) - 1
    shared = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), most)
    shared = min(shared, most)
    if not shared:
        raise RowError("empty prompt")
    answers = good[shared:], bad[shared:]
    prompt, kept, cut = fit(good[:shared], answers, limits)
    if kept != answers:
        raise RowError("an answer is longer than max_length")
    return PairRow(prompt, *answers, weight=pair.weight, margin=pair.margin), cut


def label_row(tokenizer: Tokenizer, row: Labelled, limits: Limits = NO_LIMITS) -> tuple[LabelRow, int]:
    """A labelled answer as tokens, and how many were cut."""
    before = _conditions(tokenizer, row.prompt, row.tools)
    answer = answer_ids(tokenizer, row.prompt, row.completion, row.tools)
    prompt, (completion,), cut = fit(before, (answer,), limits)
    return LabelRow(prompt, completion, row.desirable, weight=row.weight), cut


def completion_row(
    tokenizer: Tokenizer, row: Labelled, limits: Limits = NO_LIMITS, *, every_turn: bool = False
) -> tuple[CompletionRow, int]:
    """An answer to be learnt, as tokens, and how many were cut; `every_turn`: with the assistant's turns before it.
    RowError: it is labelled undesirable."""
    if not row.desirable:
        raise RowError("undesirable")
    labelled, cut = label_row(tokenizer, _from_first_turn(row) if every_turn else row, limits)
    return CompletionRow(labelled.prompt, labelled.completion, row.weight), cut


def _from_first_turn(row: Labelled) -> Labelled:
    """The same conversation, with what comes before the assistant's first turn as its prompt."""
    roles = [turn["role"] for turn in row.prompt]
    if "assistant" not in roles[1:]:
        return row
    start, answer = roles.index("assistant", 1), row.completion
    last = answer.turns or ({"role": "assistant", "content": answer.text},)
    turns = (*row.prompt[start:], *last)
    return row._replace(prompt=row.prompt[:start], completion=Answer("", answer.ended, turns))


def with_others(rows: Sequence[LabelRow], seed: int, total: int | None = None) -> list[LabelRow]:
    """Give every row the completion of a row with another prompt: KTO's mismatched pairs.

    The rows stand in a seeded order; each takes from the next one whose completion is no row's answer to its own
    prompt, also where it is given to another prompt too ("No" and the like). Where there is none, as with a single
    prompt in the data, `other` stays empty. It is cut where it would pass `total` tokens with the row's prompt.
    """
    answers: dict[Ids, set[Ids]] = {}
    for row in rows:
        answers.setdefault(row.prompt, set()).add(row.completion)
    if len(answers) < 2:
        return [row._replace(other=()) for row in rows]
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)  # noqa: S311 - not a secret
    found = ((row, _other(rows, order, place, answers[row.prompt])) for place, row in _in_place(rows, order))
    return [row._replace(other=_within(other, len(row.prompt), total)) for row, other in found]


def _within(other: Ids, prompt: int, total: int | None) -> Ids:
    """As much of an answer as goes after a prompt of so many tokens; nothing where none of it is learnt."""
    short = other if total is None else other[: total - prompt]
    return short if learnt(short) else ()


def _in_place(rows: Sequence[LabelRow], order: Sequence[int]) -> list[tuple[int, LabelRow]]:
    """Every row with its place in `order`."""
    places = {i: place for place, i in enumerate(order)}
    return [(places[i], row) for i, row in enumerate(rows)]


def _other(rows: Sequence[LabelRow], order: Sequence[int], place: int, matched: Collection[Ids]) -> Ids:
    """The next completion that is none of the `matched` ones; empty where all are."""
    turns = (rows[order[(place + step) % len(order)]].completion for step in range(1, len(order)))
    return next((completion for completion in turns if completion not in matched), ())
