"""Conversations to token ids, and the rows that a training reads.

A prompt is rendered by the tokenizer's own chat template and tokenised with no further special tokens (the template has
them: adding them again is the double BOS of TRL #3853). A completion is tokenised by itself, as the model will
write it after the prompt's tokens, and ends with the token that ends a turn, which is part of what is learnt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from factory.schema import Messages

Ids = tuple[int, ...]


class RowError(ValueError):
    """A row that cannot be trained on; the text says why, in a few words that can be counted."""


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any
    eos_token_id: int | None
    bos_token_id: int | None

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def __call__(self, text: str, **options: Any) -> Any: ...


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


# ------------------------------------------------------------------------------------------------ text to tokens

_MARK = "\u241fanswer\u241f"  # stands for the answer while the template's end of turn is found


def prompt_ids(tokenizer: Tokenizer, prompt: Messages) -> Ids:
    """The prompt as the model reads it before it answers; one BOS where the template or the tokenizer has one."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer("\n\n".join(m["content"] for m in prompt))["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # some tokenizers close every text
    return tuple(ids)


def end_ids(tokenizer: Tokenizer) -> Ids:
    """The tokens that close an answer: what the template writes after one, up to the first end token."""
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    if not tokenizer.chat_template:
        return eos
    turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    after = tokenizer(text.partition(_MARK)[2].strip(), add_special_tokens=False)["input_ids"]
    return tuple(after[:1]) or eos  # `<|im_end|>`, `<|eot_id|>`, `</s>`: the token at which generation stops


class Answer(NamedTuple):
    """The text of an answer. `ended`: its writer ended it; else it was cut, and no end token is added."""

    text: str
    ended: bool = True


def completion_ids(tokenizer: Tokenizer, answer: Answer) -> Ids:
    """The answer's tokens, and the end of the turn if it ended. Text that spells a special token stays text.

    RowError: it is empty.
    """
    if not answer.text.strip():
        raise RowError("empty completion")
    text = tokenizer(answer.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return (*text, *end_ids(tokenizer)) if answer.ended else tuple(text)


def encode(tokenizer: Tokenizer, prompt: Messages, completion: str, *, ended: bool = True) -> Encoded:
    """A prompt and its answer as token ids. RowError: nothing to condition on, or an empty completion."""
    before = prompt_ids(tokenizer, prompt)
    if not before:
        raise RowError("empty prompt")
    return Encoded(before, completion_ids(tokenizer, Answer(completion, ended)))


# ------------------------------------------------------------------------------------------------------ lengths


class Limits(NamedTuple):
    """Most tokens of prompt and completion together, and of the completion. None: no limit."""

    total: int | None = None
    completion: int | None = None


NO_LIMITS = Limits()


class Fitted(NamedTuple):
    """Completions that share a prompt, within the limits. `cut`: something was."""

    prompt: Ids
    completions: tuple[Ids, ...]
    cut: bool


def fit(prompt: Ids, completions: Sequence[Ids], limits: Limits) -> Fitted:
    """Cut what is too long: completions at their end (the end token goes too), then the prompt at its start.

    The longest completion decides how much prompt stays, so that all keep the same one; a first BOS-like token is
    kept. At least one token of the prompt and one of each completion stay.
    """
    most = min((n for n in (limits.completion, limits.total and limits.total - 1) if n), default=None)
    short = tuple(c if most is None else c[:most] for c in completions)
    room = None if limits.total is None else max(1, limits.total - max(len(c) for c in short))
    kept = prompt
    if room is not None and len(prompt) > room:
        kept = (*prompt[:1], *prompt[len(prompt) - room + 1 :]) if room > 1 else prompt[-1:]
    return Fitted(kept, short, kept != prompt or short != tuple(completions))


class Pair(NamedTuple):
    """A preference as text."""

    prompt: Messages
    chosen: Answer
    rejected: Answer
    weight: float = 1.0
    margin: float = 0.0


class Labelled(NamedTuple):
    """A labelled answer as text."""

    prompt: Messages
    completion: Answer
    desirable: bool
    weight: float = 1.0


def pair_row(tokenizer: Tokenizer, pair: Pair, limits: Limits = NO_LIMITS) -> tuple[PairRow, bool]:
    """A preference as tokens, and whether it was cut. RowError when chosen and rejected are, or become, the same."""
    before, good = encode(tokenizer, pair.prompt, pair.chosen.text, ended=pair.chosen.ended)
    bad = completion_ids(tokenizer, pair.rejected)
    if pair.chosen.text == pair.rejected.text:
        raise RowError("chosen and rejected are the same")
    prompt, (chosen, rejected), cut = fit(before, (good, bad), limits)
    if chosen == rejected:
        raise RowError("chosen and rejected are the same up to max_length")
    return PairRow(prompt, chosen, rejected, weight=pair.weight, margin=pair.margin), cut


def label_row(tokenizer: Tokenizer, row: Labelled, limits: Limits = NO_LIMITS) -> tuple[LabelRow, bool]:
    """A labelled answer as tokens, and whether it was cut."""
    before, answer = encode(tokenizer, row.prompt, row.completion.text, ended=row.completion.ended)
    prompt, (completion,), cut = fit(before, (answer,), limits)
    return LabelRow(prompt, completion, row.desirable, weight=row.weight), cut


def completion_row(tokenizer: Tokenizer, row: Labelled, limits: Limits = NO_LIMITS) -> tuple[CompletionRow, bool]:
    """An answer to be learnt, as tokens, and whether it was cut. RowError: it is labelled undesirable."""
    if not row.desirable:
        raise RowError("undesirable")
    labelled, cut = label_row(tokenizer, row, limits)
    return CompletionRow(labelled.prompt, labelled.completion, row.weight), cut


def with_others(rows: Sequence[LabelRow], seed: int, total: int | None = None) -> list[LabelRow]:
    """Give every row the completion of a row with another prompt: KTO's mismatched pairs.

    The rows stand in a seeded order; each takes from the next one whose prompt and completion are not its own. With
    a single prompt in the data there is none, and `other` stays empty. It is cut where it would pass `total` tokens
    with the row's prompt.
    """
    if len({row.prompt for row in rows}) < 2:
        return [row._replace(other=()) for row in rows]
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)  # noqa: S311 - not a secret
    found = ((row, _other(rows, order, place)) for place, row in _in_place(rows, order))
    return [row._replace(other=other if total is None else other[: total - len(row.prompt)]) for row, other in found]


def _in_place(rows: Sequence[LabelRow], order: Sequence[int]) -> list[tuple[int, LabelRow]]:
    """Every row with its place in `order`."""
    places = {i: place for place, i in enumerate(order)}
    return [(places[i], row) for i, row in enumerate(rows)]


def _other(rows: Sequence[LabelRow], order: Sequence[int], place: int) -> Ids:
    own = rows[order[place]]
    for step in range(1, len(order)):
        mate = rows[order[(place + step) % len(order)]]
        if mate.prompt != own.prompt and mate.completion != own.completion:
            return mate.completion
    return ()
