"""A chat model's texts and tokens: the conversation under its template, the tokens that begin an answer, the text of an
answer's tokens.

It holds a tokenizer and no model, so that whatever engine answers with the same model sees the same text and tokens.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateError

from factory.schema import Failure, Request
from train.conversations import RowError, render

AnswerTokens = Mapping[str, Sequence[int]]


class Prepared(NamedTuple):
    """A request as the model sees it: `rendered` text and its token `ids`; `answers` are the tokens that begin each
    wanted answer."""

    rendered: str
    ids: tuple[int, ...]
    answers: AnswerTokens


class ChatText:
    """Between requests and tokens.

    tokenizer: transformers' own, with a chat template. ends: ids of the tokens that end an answer. context: positions
    that the model has for prompt and answer together.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int], context: int) -> None:
        self.tokenizer, self.ends, self.context = tokenizer, frozenset(ends), context
        self._answer_tokens = lru_cache(maxsize=256)(self._find_answer_tokens)

    def render(self, request: Request) -> str:
        """The conversation under the chat template, the assistant's turn opened and `prefix` said. A request that the
        template refuses renders as its canonical JSON; `prepare` gives its failure."""
        try:
            return self._render(request)
        except (TemplateError, RowError):
            return json.dumps(request.messages, ensure_ascii=False, sort_keys=True)

    def prepare(self, request: Request) -> Prepared | Failure:
        """Text and tokens, or why there is no answer to be had."""
        if fault := request_fault(request):
            return fault
        try:
            rendered = self._render(request)
        except (TemplateError, RowError) as error:
            return Failure("template", str(error))
        ids = self._encode(rendered)
        if not ids:
            return Failure("empty_prompt", "the rendered request has no tokens")
        if len(ids) >= self.context:
            return Failure("too_long", f"the prompt has {len(ids)} tokens, the model's context {self.context}")
        answers = self._answer_tokens(request.answers)
        if answers is None:
            return Failure("ambiguous_answers", f"two of {list(request.answers)} begin with the same token")
        return Prepared(rendered, tuple(ids), answers)

    def text(self, ids: Sequence[int], stops: Sequence[str]) -> str:
        """The text of an answer's tokens without its end token, cut before the first stop string."""
        ended = bool(ids) and ids[-1] in self.ends
        text: str = self.tokenizer.decode(list(ids[:-1] if ended else ids), skip_special_tokens=True)
        cuts = [at for stop in stops if (at := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def _render(self, request: Request) -> str:
        if request.tools or any(len(turn) > 2 for turn in request.messages):
            return render(self.tokenizer, request.messages, request.tools, opened=True) + request.prefix
        text: str = self.tokenizer.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
        return text + request.prefix

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _find_answer_tokens(self, answers: tuple[str, ...]) -> AnswerTokens | None:
        """The tokens that begin each answer: as it stands, after a space, and at the start of a line. A token that is
        only white space begins none. None when two answers share a token, or one has none."""
        found: dict[str, list[int]] = {}
        line = self._encode("\n")
        for answer in answers:
            after_line = self._encode("\n" + answer)
            ways = [self._encode(answer), self._encode(" " + answer)]
            ways += [after_line[len(line) :]] if after_line[: len(line)] == line else []
            firsts = {way[0] for way in ways if way}
            found[answer] = sorted(token for token in firsts if self.tokenizer.decode([token]).strip())
        tokens = [token for firsts in found.values() for token in firsts]
        return found if len(tokens) == len(set(tokens)) and all(found.values()) else None


def request_fault(request: Request) -> Failure | None:
    """What makes a request one that no engine can ever answer."""
    sampling = request.sampling
    if sampling.max_tokens < 1 or sampling.temperature < 0 or sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
        return Failure("bad_request", f"sampling out of range: {sampling}")
    if not request.messages:
        return Failure("bad_request", "no messages")
    return None
