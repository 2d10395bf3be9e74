"""What is sent to a chat endpoint: the body of a request, its fields typed by the `openai` package, encoded once.

All requests with the same sampling share everything but messages and seed. So that part is encoded at its first use
and kept; a call's body is then put together from bytes. mypy checks the fields against `openai.types.chat`, which is
not imported when the program runs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from factory.schema import Message, Messages, Request

if TYPE_CHECKING:
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
    from openai.types.shared_params import ResponseFormatJSONSchema

    class Body(CompletionCreateParamsNonStreaming, total=False):
        """A chat completion's request, with what vLLM and SGLang know besides."""

        top_k: int
        continue_final_message: bool
        add_generation_prompt: bool


LimitName = Literal["max_tokens", "max_completion_tokens"]
OWN = frozenset(
    {"model", "messages", "n", "seed", "stream", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens",
     "stop", "logprobs", "top_logprobs", "response_format", "continue_final_message", "add_generation_prompt"}
)  # fmt: skip
"""The fields that a request sets; `extra_body` may hold any other."""
RENDERED = 256
"""Requests whose text is kept between its key and its call."""
SURROGATE = re.compile("[\ud800-\udfff]")

_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


def canonical(messages: object) -> str:
    """Messages as canonical JSON."""
    return _canonical(messages)


class Bodies:
    """Makes the bodies for one model. `limit_name`: how the endpoint calls the longest answer; may be changed while
    calls are made. `sparse`: leave temperature and top_p out where they are 1, the API's default (reasoning models
    refuse them otherwise; vLLM wants them, else it takes the model's own). `extra` is sent along with every request."""

    def __init__(
        self,
        model: str,
        *,
        limit_name: LimitName,
        sparse: bool,
        logprobs: bool,
        top_logprobs: int,
        extra: Mapping[str, Any],
    ) -> None:
        self.model, self.sparse, self.logprobs, self.top_logprobs = model, sparse, logprobs, top_logprobs
        self.extra = dict(extra)
        self.limit_name: LimitName = limit_name
        self._tails: dict[object, bytes] = {}
        self._rendered: dict[int, tuple[Request, str]] = {}  # by id: what will most likely be sent next

    def render(self, request: Request) -> str:
        """The messages as canonical JSON, and the tools where there are any."""
        text = canonical(_sent(request.messages))
        if len(self._rendered) >= RENDERED:
            self._rendered.clear()
        self._rendered[id(request)] = request, text
        return text + canonical(request.tools) if request.tools else text

    def messages(self, request: Request) -> bytes:
        """The conversation as it is sent, with the started answer as its last turn. What is no valid Unicode is
        replaced, as it is in the store."""
        rendered, text = self._rendered.pop(id(request), (None, ""))
        if request.prefix:
            text = canonical([*_sent(request.messages), {"role": "assistant", "content": request.prefix}])
        elif rendered is not request:
            text = canonical(_sent(request.messages))
        try:
            return text.encode()
        except UnicodeEncodeError:
            return SURROGATE.sub("\ufffd", text).encode()

    def encode(self, request: Request, messages: bytes, seed: int, n: int = 1) -> bytes:
        """The body of a call for `n` answers. `messages` is what `messages(request)` gave."""
        form = request.json_schema
        key = (
            request.sampling, bool(request.answers), bool(request.prefix), self.limit_name,
            None if form is None else _canonical(form), request.tools and _canonical(request.tools),
        )  # fmt: skip
        tail = self._tails.get(key)
        if tail is None:
            tail = self._tails[key] = self._tail(request)
        number = b"" if n == 1 else b', "n": %d' % n
        return b'{"messages": %b, "seed": %d%b%b' % (messages, seed, number, tail)

    def _tail(self, request: Request) -> bytes:
        """What follows messages and seed, down to the closing brace."""
        blank = json.dumps({"messages": [], "seed": 0})[:-1]
        return json.dumps(self.body(request)).removeprefix(blank).encode()

    def body(self, request: Request) -> Body:
        """The whole body as a mapping, without messages and with seed 0."""
        sampling = request.sampling
        body: Body = {"messages": [], "seed": 0, "model": self.model}
        if self.limit_name == "max_tokens":
            body["max_tokens"] = sampling.max_tokens
        else:
            body["max_completion_tokens"] = sampling.max_tokens
        if not self.sparse or sampling.temperature != 1.0:
            body["temperature"] = sampling.temperature
        if not self.sparse or sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.tools:
            body["tools"] = list(request.tools)
        self._add_answer_form(body, request)
        body.update(self.extra)  # type: ignore[typeddict-item]  # of the user's, checked against OWN
        return body

    def _add_answer_form(self, body: Body, request: Request) -> None:
        if request.answers or self.logprobs:
            body["logprobs"] = True
        if request.answers:
            body["top_logprobs"] = self.top_logprobs
        if request.json_schema is not None:
            body["response_format"] = schema_form(request.json_schema)
        if request.prefix:
            body["continue_final_message"] = True
            body["add_generation_prompt"] = False


def _sent(messages: Messages) -> Sequence[Any]:
    """The turns as an endpoint takes them: every call of a tool has a type and an id, and its arguments are JSON
    text."""
    if not any("tool_calls" in turn for turn in messages):
        return messages
    return [_calling(turn) if "tool_calls" in turn else turn for turn in messages]


def _calling(turn: Message) -> dict[str, Any]:
    calls = []
    for number, call in enumerate(turn["tool_calls"]):
        inner = call.get("function", call)
        said = inner.get("arguments", {})
        function = {**inner, "arguments": said if isinstance(said, str) else canonical(said)}
        outer = call if "function" in call else {}
        calls.append({"id": f"call_{number}", "type": "function", **outer, "function": function})
    return {**turn, "content": turn["content"] or None, "tool_calls": calls}


def schema_form(schema: Mapping[str, Any]) -> ResponseFormatJSONSchema:
    """A JSON schema as the answer's form."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}


def first_seed(request: Request, messages: bytes) -> int:
    """The seed of sample 0, from the request's seed and its messages."""
    whole = hashlib.sha256(b"%d " % request.seed + messages).digest()
    return int.from_bytes(whole[:4], "big") & 0x7FFFFFFF


def seed_for(first: int, sample: int) -> int:
    """The seed of a sample, 31 bits: another one for each of a request's samples."""
    return first ^ (sample * 0x9E3779B1 & 0x7FFFFFFF)
