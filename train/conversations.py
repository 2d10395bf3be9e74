"""Conversations to token ids, by the tokenizer's own chat template.

A prompt is rendered and tokenised with no further special tokens (the template has them: adding them again is the
double BOS of TRL #3853). A completion is tokenised by itself, as the model will write it after the prompt's tokens, and
ends with the token that ends a turn, which is part of what is learnt.

A completion may be several turns: what the assistant says, with the answers of tools and users between. Those are read
and not learnt. In a completion's ids such a token stands as its complement, ~id, which is below 0: rows, their hashes,
their cuts and the keys of stored log-probs have one form for all completions, and whoever counts or scores looks at the
sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Ids = tuple[int, ...]
Turn = Mapping[str, Any]  # role and content; of an assistant perhaps tool_calls, of a tool perhaps its name


class RowError(ValueError):
    """A row that cannot be trained on; the text says why, in a few words that can be counted."""


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any
    eos_token_id: int | None
    bos_token_id: int | None
    all_special_tokens: Sequence[str]

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def __call__(self, text: str, text_pair: str | None = None, **options: Any) -> Any: ...

    def decode(self, token_ids: Any, **options: Any) -> Any: ...


# ------------------------------------------------------------------------------------------------ what is learnt


def unlearnt(ids: Sequence[int]) -> Ids:
    """Token ids as they stand in a completion that is not to learn them."""
    return tuple(~i for i in ids)


def plain(ids: Sequence[int]) -> list[int]:
    """A completion's token ids as the model reads them, learnt or not."""
    return [i if i >= 0 else ~i for i in ids]


def learnt(ids: Sequence[int]) -> int:
    """How many tokens of a completion are learnt."""
    return sum(i >= 0 for i in ids)


def head(ids: Ids, count: int) -> Ids:
    """A completion up to its `count`-th learnt token."""
    places = [place for place, i in enumerate(ids) if i >= 0]
    return ids[: places[count - 1] + 1] if count else ()


# ------------------------------------------------------------------------------------------------ text to tokens

_MARK = "\u241fanswer\u241f"  # stands for the answer while the template's end of turn is found


class Answer(NamedTuple):
    """The text of an answer. `ended`: its writer ended it; else it was cut, and no end token is added. `turns`: the
    whole answer instead, where it is more than one turn's text."""

    text: str
    ended: bool = True
    turns: tuple[Turn, ...] = ()


def answer_of(turns: Sequence[Turn], *, ended: bool = True) -> Answer:
    """An answer from the turns that it is given as."""
    if not turns:
        return Answer("", ended)
    if len(turns) == 1 and turns[0]["role"] == "assistant" and not turns[0].get("tool_calls"):
        return Answer(turns[0]["content"], ended)
    return Answer("", ended, tuple(turns))


def render(tokenizer: Tokenizer, turns: Sequence[Turn], tools: Sequence[Any] = (), *, opened: bool = False) -> str:
    """A conversation by the chat template, with the assistant's turn `opened` after it.

    Where the template has no system turn, its text goes before the first turn of the user. RowError: the template
    refuses the conversation, or leaves out tools or the calls of tools.
    """
    from jinja2 import TemplateError

    turns = [_with_objects(turn) for turn in turns]

    def by_template(turns: Sequence[Turn], tools: Sequence[Any]) -> str:
        text: str = tokenizer.apply_chat_template(
            turns, tools=list(tools) or None, tokenize=False, add_generation_prompt=opened
        )
        return text

    def whole(turns: Sequence[Turn], tools: Sequence[Any]) -> str:
        folded = _without_system(turns)
        try:
            text = by_template(turns, tools)
        except TemplateError:
            if folded is None:
                raise
            return by_template(folded, tools)
        said = turns[0]["content"].strip() in text
        return text if said or folded is None else by_template(folded, tools)

    try:
        text = whole(turns, tools)
        if tools and text == whole(turns, ()):
            raise RowError("the chat template has no place for tools")
        silent = [{k: v for k, v in turn.items() if k != "tool_calls"} for turn in turns]
        if silent != turns and text == whole(silent, tools):
            raise RowError("the chat template drops tool calls")
    except TemplateError as fault:
        raise RowError(f"the chat template refuses the conversation: {fault}") from fault
    return text


def _with_objects(turn: Turn) -> dict[str, Any]:
    """A turn as templates take it: content is a text, and a call's arguments are an object, not its JSON."""
    found = {**turn, "content": turn.get("content") or ""}
    if turn.get("tool_calls"):
        found["tool_calls"] = [_with_arguments(call) for call in turn["tool_calls"]]
    else:
        found.pop("tool_calls", None)
    return found


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    inner = call.get("function", call)
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            inner = {**inner, "arguments": json.loads(arguments)}
        except ValueError:
            raise RowError("a tool call's arguments are not JSON") from None
    return {**call, "function": inner} if "function" in call else dict(inner)


def _without_system(turns: Sequence[Turn]) -> list[Turn] | None:
    """The conversation with the system's text before the first user's; None: there is no such pair of turns."""
    if len(turns) < 2 or (turns[0]["role"], turns[1]["role"]) != ("system", "user"):
        return None
    return [{**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]


def prompt_ids(tokenizer: Tokenizer, prompt: Sequence[Turn], tools: Sequence[Any] = ()) -> Ids:
    """The prompt as the model reads it before it answers; one BOS where the template or the tokenizer has one.

    RowError: see `render`; or there are tools, and no template.
    """
    if tokenizer.chat_template:
        return _tokens(tokenizer, render(tokenizer, prompt, tools, opened=True))
    if tools:
        raise RowError("there are tools, and the tokenizer has no chat template")
    ids = list(tokenizer("\n\n".join(m["content"] for m in prompt))["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # some tokenizers close every text
    return tuple(ids)


def _tokens(tokenizer: Tokenizer, rendered: str) -> Ids:
    """Of text that a template wrote, special tokens included."""
    return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def end_ids(tokenizer: Tokenizer) -> Ids:
    """The tokens that close an answer: what the template writes after one, up to the first end token."""
    return _written_end(tokenizer) or (() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))


def _written_end(tokenizer: Tokenizer) -> Ids:
    """`<|im_end|>`, `<|eot_id|>`, `</s>`: the token at which generation stops; none where the template writes none."""
    if not tokenizer.chat_template:
        return ()
    turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    return _tokens(tokenizer, text.partition(_MARK)[2].strip())[:1]


def completion_ids(tokenizer: Tokenizer, answer: Answer) -> Ids:
    """The answer's tokens, and the end of the turn if it ended. Text that spells a special token stays text.

    RowError: it is empty.
    """
    if not answer.text.strip():
        raise RowError("empty completion")
    text = tokenizer(answer.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return (*text, *end_ids(tokenizer)) if answer.ended else tuple(text)


def whole_ids(tokenizer: Tokenizer, prompt: Sequence[Turn], answer: Answer, tools: Sequence[Any] = ()) -> Ids:
    """A conversation with its answer as a reward model is shown it: all that the template writes, to the last token,
    at which it is scored. Every answer is closed, also one that was cut: else its missing end would be what is learnt.

    RowError: it is empty, a text, a call or a tool spells a special token, or there are tools and no template.
    """
    turns = [*prompt, *(answer.turns or ({"role": "assistant", "content": answer.text},))]
    if not answer.turns and not answer.text.strip():
        raise RowError("empty completion")
    texts = [turn.get("content") or "" for turn in turns]
    shown = json.dumps([*(turn.get("tool_calls") for turn in turns), *tools], ensure_ascii=False)
    if any(token in text for text in (*texts, shown) for token in tokenizer.all_special_tokens):
        raise RowError("a text spells a special token")
    if tokenizer.chat_template:
        return _tokens(tokenizer, render(tokenizer, turns, tools))
    if tools:
        raise RowError("there are tools, and the tokenizer has no chat template")
    if answer.turns:
        raise RowError("an answer of several turns, and the tokenizer has no chat template")
    return tuple(tokenizer("\n\n".join(texts[:-1]), answer.text)["input_ids"])


def answer_ids(tokenizer: Tokenizer, prompt: Sequence[Turn], answer: Answer, tools: Sequence[Any] = ()) -> Ids:
    """The answer's tokens after `prompt`: learnt what the assistant says, with the end of each turn; unlearnt what the
    template, tools and users put between.

    RowError: it is empty, begins or ends with another's turn, or the template does not render it turn by turn.
    """
    if not answer.turns:
        return completion_ids(tokenizer, answer)
    if not tokenizer.chat_template:
        raise RowError("an answer of several turns, and the tokenizer has no chat template")
    if {answer.turns[0]["role"], answer.turns[-1]["role"]} != {"assistant"}:
        raise RowError("an answer of several turns begins and ends with the assistant's")
    found: list[int] = []
    end = str(tokenizer.decode(list(_written_end(tokenizer))))
    said = render(tokenizer, prompt, tools, opened=True)
    for i, turn in enumerate(answer.turns):
        if turn["role"] != "assistant":
            continue
        last = i == len(answer.turns) - 1
        opened = render(tokenizer, [*prompt, *answer.turns[:i]], tools, opened=True)
        found += unlearnt(_tokens(tokenizer, _added(said, opened)))
        own = _added(opened, render(tokenizer, [*prompt, *answer.turns[: i + 1]], tools))
        spoken, closing, _ = own.rpartition(end) if end and end in own else (own.rstrip(), "", "")
        said = opened + spoken + closing
        found += _turn_ids(tokenizer, turn, spoken, closed=answer.ended if last else bool(closing))
    return tuple(found)


def _turn_ids(tokenizer: Tokenizer, turn: Turn, spoken: str, *, closed: bool) -> Ids:
    """What is learnt of one turn: its text, or, with calls of tools, what the template makes of it."""
    if not turn.get("tool_calls"):
        return completion_ids(tokenizer, Answer(turn["content"], closed))
    given = json.dumps([turn.get("content"), turn["tool_calls"]], ensure_ascii=False)
    if any(token in given for token in tokenizer.all_special_tokens):
        raise RowError("a tool call spells a special token")
    return (*_tokens(tokenizer, spoken), *(end_ids(tokenizer) if closed else ()))


def _added(before: str, after: str) -> str:
    """What a longer conversation's text has more than a shorter one's."""
    if not after.startswith(before):
        raise RowError("the chat template changes earlier turns")
    return after[len(before) :]
