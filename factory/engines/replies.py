"""What comes back from a chat endpoint: is it an answer, and if it is none, what then?

`read` takes nothing on trust: a 200 may hold HTML, half a JSON document, no choices, wrong types, or another number of
answers than was asked for. `outcome_of` says for every other reply whether the call fails, goes again, or ends the run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from factory.engines.bodies import SURROGATE
from factory.schema import Failure

_decode = json.JSONDecoder().decode

# ------------------------------------------------------------------------------------------------ reading an answer


class Usage(NamedTuple):
    """What one call was billed for, in tokens; `cached` of the prompt's were read from a cache. All 0: not said."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    @property
    def known(self) -> bool:
        """Did the endpoint say what it bills?"""
        return self.prompt > 0


class Choice(NamedTuple):
    """One answer of a reply. `tokens` is counted where log-probs came with it, else 0. `fault`: why it is no answer;
    `replaced`: it held lone surrogates."""

    text: str = ""
    finish_reason: str = ""
    tokens: int = 0
    logprob: float | None = None
    answer_logprobs: dict[str, float] | None = None
    filtered: str | None = None
    fault: str = ""
    replaced: bool = False


class Answer(NamedTuple):
    """A reply that is a chat completion."""

    choices: list[Choice]
    usage: Usage


class NoAnswerError(ValueError):
    """A 200 that holds no chat completion. `foreign`: not even a JSON object, so some other program has answered."""

    def __init__(self, what: str, usage: Usage = Usage(), *, foreign: bool = False) -> None:  # noqa: B008 - immutable
        super().__init__(what)
        self.usage, self.foreign = usage, foreign


def read(body: bytes, answers: Sequence[str] = ()) -> Answer:
    """A chat completion's body. `answers`: texts whose log-probability as the first token is wanted. NoAnswerError says
    what is wrong with a body that is none."""
    data = _loaded(body)
    usage = _usage(data)
    choices = data.get("choices")
    if type(choices) is not list or not choices:
        raise NoAnswerError("no choices", usage)
    return Answer([_choice(choice, answers) for choice in choices], usage)


def _choice(choice: Any, answers: Sequence[str]) -> Choice:
    message = choice.get("message") if type(choice) is dict else None
    if type(message) is not dict:
        return Choice(fault="a choice without a message")
    content, finish = message.get("content"), choice.get("finish_reason")
    if type(content) is not str:
        if finish == "content_filter" or type(message.get("refusal")) is str:
            return Choice(filtered=printable(str(message.get("refusal") or "content_filter")))
        if finish != "length" or content is not None:
            return Choice(fault=f"the message's content is no text (finish_reason {printable(repr(finish))})")
        content = ""  # all tokens went into reasoning
    if finish != "stop" and finish != "length":
        if finish == "content_filter":
            return Choice(filtered="content_filter")
        return Choice(fault=f"finish_reason is {printable(repr(finish))}")
    text = content if content.isascii() else _valid(content)
    replaced = text is not content
    if choice.get("logprobs") is None:
        return Choice(text, finish, replaced=replaced)
    try:
        tokens = _logprobs(choice)
    except ValueError as error:
        return Choice(fault=str(error))
    return Choice(
        text,
        finish,
        len(tokens),
        math.fsum(logprob for _, logprob, _ in tokens) if tokens else None,
        answer_logprobs(tokens, answers) if answers and tokens else None,
        replaced=replaced,
    )


def _valid(text: str) -> str:
    """The very same text where it is valid Unicode, else with every lone surrogate replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return SURROGATE.sub("\ufffd", text)
    return text


def _loaded(body: bytes) -> dict[str, Any]:
    try:
        data = _decode(body.decode())
    except (ValueError, RecursionError):
        data = _loaded_otherwise(body)
    if type(data) is not dict:
        raise NoAnswerError("the JSON is no object", foreign=True)
    return data


def _loaded_otherwise(body: bytes) -> Any:
    """The JSON of a body with a byte order mark, in UTF-16, or with surrogates as bytes."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoAnswerError(f"no JSON: {_shown(body)}", foreign=True) from error


def _usage(data: Mapping[str, Any]) -> Usage:
    usage = data.get("usage")
    if type(usage) is not dict:
        return Usage()
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if type(details) is dict else 0
    return Usage(prompt, completion, min(cached, prompt))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**40 else 0


Shown = tuple[str, float]  # a token's text and its log-prob
Token = tuple[str, float, Sequence[Shown]]  # the token, its log-prob, and the most likely ones at its place


def _logprobs(choice: Mapping[str, Any]) -> list[Token]:
    """The answer's tokens, empty where the endpoint gives none."""
    given = choice.get("logprobs")
    content = given.get("content") if isinstance(given, dict) else None
    return [_token(entry) for entry in content] if isinstance(content, list) else []


def _token(entry: Any) -> Token:
    token, logprob = _pair(entry)
    top = entry.get("top_logprobs") or []
    if not isinstance(top, list):
        raise ValueError("top_logprobs is no list")
    shown = list(dict.fromkeys(map(_pair, top)))  # tokens may differ and read the same: "A" and, in Llama 2, "\u2581A"
    if token not in {text for text, _ in shown}:
        shown.append((token, logprob))
    return token, logprob, shown


def _pair(entry: Any) -> Shown:
    token = entry.get("token") if isinstance(entry, dict) else None
    logprob = entry.get("logprob") if isinstance(entry, dict) else None
    if not isinstance(token, str) or not isinstance(logprob, int | float) or not logprob <= 1e-3:
        raise ValueError(f"a log-prob of the wrong form: {printable(str(entry))}")
    return token, min(0.0, float(logprob))


def answer_logprobs(tokens: Sequence[Token], answers: Sequence[str]) -> dict[str, float]:
    """Log-probability that the first token begins each answer, over the tokens shown. Variants with white space around
    and tokens that read the same count together; a token that begins two answers counts for none. No entry: below what
    the endpoint shows."""
    shown: dict[str, list[float]] = {}
    for token, logprob in tokens[0][2]:
        bare = token.strip()
        begun = [answer for answer in answers if bare and answer.startswith(bare)]
        if len(begun) == 1:
            shown.setdefault(begun[0], []).append(math.exp(logprob))
    return {answer: math.log(min(1.0, math.fsum(shares))) for answer, shares in shown.items() if math.fsum(shares) > 0}


# ------------------------------------------------------------------------------------------------ reading an error

Fate = Literal["failed", "busy", "ended"]
ENDS = {
    401: "the endpoint refuses the credentials",
    402: "the quota is exhausted",
    403: "the endpoint refuses the credentials",
    404: "the endpoint does not know this address or the model",
    407: "the proxy refuses the credentials",
}
QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
FILTERED = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}
TOO_LONG = {"context_length_exceeded", "string_above_max_length", "exceed_context_size_error"}
TOO_LONG_TEXT = re.compile(
    r"context (length|window|size)|maximum model length|max_model_len|max_seq_len|(prompt|input)s? (is|are) too long"
    r"|too many (input )?tokens|longer than the (model|maximum)",
    re.IGNORECASE,
)
BUSY = {429, 503, 529}


class Outcome(NamedTuple):
    """What a reply without an answer means. `failed`: the call fails; `busy`: it goes again when the endpoint has
    room, and fails when that never comes; `ended`: no later call can do better, for the reason `what`. `struck`: it
    speaks against the endpoint's health."""

    fate: Fate
    failure: Failure
    struck: bool = False
    what: str = ""


def outcome_of(status: int, body: bytes, *, answered: bool, secret: str | None = None) -> Outcome:
    """What a reply of another status than 2xx means. `answered`: the endpoint has answered before, so that a 403 is
    about this one request (a firewall's or a filter's); `secret` is blotted out of what the endpoint says."""
    code, message = error_of(body)
    said = message.replace(secret, "[key]") if secret else message
    detail = f"HTTP {status}: {printable(said)}"
    if 300 <= status < 400:
        what = "the endpoint sends calls elsewhere, which are not followed"
        return Outcome("ended", Failure("refused", detail), what=what)
    if code in QUOTA:
        return Outcome("ended", Failure("refused", detail), what=ENDS[402])
    if status in ENDS and not (status == 403 and answered):
        return Outcome("ended", Failure("refused", detail), what=ENDS[status])
    if status in BUSY:
        kind = "rate_limited" if status == 429 else "server_error"
        return Outcome("busy", Failure(kind, detail, passing=True), struck=status != 429)
    if status >= 500 or status < 200:
        return Outcome("failed", Failure("server_error", detail, passing=True), struck=True)
    return Outcome("failed", _refusal(status, code, message, detail), struck=status in {403, 408})


def _refusal(status: int, code: str, message: str, detail: str) -> Failure:
    """The failure of a request that the endpoint does not take."""
    if code in FILTERED:
        return Failure("filtered", detail)
    if code in TOO_LONG or status == 413 or (status in {400, 422} and TOO_LONG_TEXT.search(message)):
        return Failure("too_long", detail)
    if status == 408:
        return Failure("timeout", detail, passing=True)
    return Failure("refused", detail, passing=status in {403, 409, 425})


def error_of(body: bytes) -> tuple[str, str]:
    """Code and message of an error body, in OpenAI's form or any other: FastAPI has `detail`; llama.cpp repeats the
    status as the code and has the name in `type`."""
    try:
        data = _loaded(body)
    except NoAnswerError:
        return "", _shown(body)
    error = data.get("error", data)
    if not isinstance(error, dict):
        return "", str(error)
    code = error.get("code")
    name = code if isinstance(code, str) and code else error.get("type") or code
    return str(name or ""), str(error.get("message") or error.get("detail") or "")


def unsupported(status: int, body: bytes) -> str:
    """The parameter that a 400 says the model does not take; empty for any other reply."""
    if status not in {400, 422}:
        return ""
    try:
        error = _loaded(body).get("error")
    except NoAnswerError:
        return ""
    named = error.get("param") if isinstance(error, dict) and error.get("code") == "unsupported_parameter" else None
    return named if isinstance(named, str) else ""


def _shown(body: bytes) -> str:
    """The beginning of a body that cannot be read, long enough that no cut goes through a key before it is blotted."""
    return body[:4000].decode("utf-8", "replace")


def printable(text: str) -> str:
    """One line of at most 300 characters."""
    return " ".join(SURROGATE.sub("\ufffd", text).split())[:300]
