"""Any OpenAI-compatible chat endpoint, over aiohttp: bounded concurrency, deadlines, and no trust in what comes back.

What endpoints do (each seen with real servers and clients): answer 200 with HTML, with half a JSON document, without
choices or with wrong types; send a byte a second for ever; send 50 MB; write lone surrogates. So every call has an
overall deadline and a byte cap, an answer is checked before it is believed, and one that is no answer costs a small
retry budget of its own. A call's slot goes to the next call only when its answer is stored.

`prefix` needs a server that can go on with an unfinished assistant turn (vLLM: prefix="continue"); else such a request
fails with kind "unsupported". `top_k` is sent only when set; servers that do not know it refuse the request. vLLM fills
in what a request leaves open from the model's generation_config.json, unless it runs with --generation-config vllm.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

from factory.engines import nothing_held
from factory.faults import ConfigError, EndpointError
from factory.schema import Completion, Failure, Have, Identity, Request, digest, seed_of

PUBLIC = "https://api.openai.com/v1"
LONGEST_WAIT = 60.0  # seconds between tries, whatever Retry-After says
UNREACHABLE_AFTER = 8  # connection failures in a row that end the run: at once where there was no answer ever, else
GONE_AFTER = 120.0  # when they have gone on for so many seconds, in which a server may be started again
PASSING_STATUS = {408, 409, 425, 429}
SURROGATE = re.compile("[\ud800-\udfff]")

log = logging.getLogger("factory")


@dataclass(frozen=True, slots=True)
class _Reply:
    """What came over the wire: status, headers (lower case), body; or the failure to get any."""

    status: int = 0
    headers: Mapping[str, str] | None = None
    body: bytes = b""
    failure: Failure | None = None


class OpenAIEngine:
    """Answers requests through POST {base_url}/chat/completions.

    model: the name that the endpoint knows. base_url: OPENAI_BASE_URL by default, else OpenAI's own. api_key_env: name
    of the environment variable that holds the key; unset, none is sent. concurrency: calls in flight. timeout: seconds
    for a call from first to last byte. max_bytes: of a body. invalid_retries: tries more when a 200 holds no valid
    answer. prices: US dollars for a million tokens, {"prompt": ..., "completion": ...}; None: the cost is unknown.
    prefix: see above. top_logprobs: how many the endpoint is asked for where `answers` are wanted. logprobs: ask for
    them always. max_tokens_name: "max_completion_tokens" for endpoints that want that.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout: float = 120.0,
        max_bytes: int = 8_000_000,
        invalid_retries: int = 2,
        prices: Mapping[str, float] | None = None,
        prefix: Literal["refuse", "continue"] = "refuse",
        top_logprobs: int = 20,
        logprobs: bool = False,
        max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ) -> None:
        self.model = model
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or PUBLIC).rstrip("/")
        self.api_key_env = api_key_env
        self.concurrency, self.timeout, self.max_bytes = concurrency, timeout, max_bytes
        self.invalid_retries, self.prices = invalid_retries, dict(prices) if prices is not None else None
        self.continues, self.top_logprobs, self.logprobs = prefix == "continue", top_logprobs, logprobs
        self.max_tokens_name = max_tokens_name
        if faults := self._faults(prefix):
            raise ConfigError(faults, where="the openai engine's options")
        self._identity = Identity("openai", model, digest("openai", self.base_url, model))
        self._not_before = 0.0  # monotonic time at which calls may go on
        self._refused = 0  # connection failures in a row
        self._lost_at = 0.0  # monotonic time of the first of them
        self._answered = False
        self.replaced = 0  # answers in which lone surrogates were replaced

    def _faults(self, prefix: str) -> list[str]:
        parts = urlsplit(self.base_url)
        checks = {
            "base_url: not an http(s) address": parts.scheme in {"http", "https"} and bool(parts.hostname),
            "base_url: holds a user name or password; put the key into the environment": parts.username is None,
            "concurrency: must be at least 1": self.concurrency >= 1,
            "timeout: must be above 0": self.timeout > 0,
            "max_bytes: must be above 0": self.max_bytes > 0,
            "prefix: must be refuse or continue": prefix in {"refuse", "continue"},
            "prices: must hold prompt and completion, US dollars for a million tokens": self.prices is None
            or set(self.prices) == {"prompt", "completion"},
        }
        return [fault for fault, met in checks.items() if not met]

    @property
    def identity(self) -> Identity:
        """Kind, model, and a hash of address and model: an endpoint shows nothing more of itself."""
        return self._identity

    def render(self, request: Request) -> str:
        """The messages as canonical JSON: the endpoint applies the chat template."""
        return json.dumps(request.messages, ensure_ascii=False, sort_keys=True)

    def close(self) -> None:
        """Nothing is open between calls of `generate`."""

    # -------------------------------------------------------------------------------- from the event loop to the caller

    def generate(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[Completion]:
        """See `Engine.generate`. EndpointError: bad credentials, an exhausted quota, a wrong address or model, or no
        connection any more. Closing the iterator cancels what is in flight."""
        for burst in self.bursts(requests, have):
            yield from burst

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        """`generate`, with all that has come by now together. Slots are freed when the next burst is asked for."""
        todo = [(r, sample) for r in requests for sample in range(r.n) if not have(r, sample)]
        if not todo:
            return
        flight = _Flight(self, todo)
        try:
            left = len(todo)
            while left:
                burst = flight.landed()
                yield burst
                left -= len(burst)
                flight.release(len(burst))
        finally:
            flight.cancel()

    async def answer(self, session: aiohttp.ClientSession, request: Request, sample: int) -> Completion:
        """One answer, with the retries for what is no valid answer."""
        if fault := self._unsupported(request):
            return Completion(request, sample, failure=fault)
        payload = self._payload(request, sample)
        failure = Failure("invalid_response")
        began = time.monotonic()
        for _ in range(self.invalid_retries + 1):
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            began = time.monotonic()
            reply = await self._post(session, payload)
            if found := self._fault_of(reply):
                return Completion(request, sample, latency=time.monotonic() - began, failure=found)
            try:
                completion = read_answer(reply.body, request, sample)
            except ValueError as error:
                failure = Failure("invalid_response", _printable(str(error)))
                continue
            return self._finished(completion, time.monotonic() - began)
        return Completion(request, sample, latency=time.monotonic() - began, failure=failure)

    def _finished(self, completion: Completion, latency: float) -> Completion:
        text = SURROGATE.sub("\ufffd", completion.text)
        if text != completion.text:
            self.replaced += 1
            log.warning("%s: lone surrogates in an answer were replaced (%d so far)", self.model, self.replaced)
        return replace(completion, text=text, latency=latency, cost=self._cost(completion))

    def _cost(self, completion: Completion) -> float | None:
        """US dollars; None when a price or a count of tokens is unknown."""
        if self.prices is None or not completion.prompt_tokens:
            return None
        paid = completion.prompt_tokens * self.prices["prompt"]
        return (paid + completion.completion_tokens * self.prices["completion"]) / 1e6

    # ------------------------------------------------------------------------------------------------ over the wire

    def _unsupported(self, request: Request) -> Failure | None:
        if request.prefix and not self.continues:
            return Failure(
                "unsupported",
                "a started answer (prefix) needs a server such as vLLM and the engine's option prefix: continue; for "
                'others set the judge\'s prefix: "". Then ask again with --retry-failed',
            )
        if shadowed := [a for a in request.answers for b in request.answers if a != b and b.startswith(a)]:
            return Failure("ambiguous_answers", f"{shadowed[0]!r} begins another answer")
        return None

    def _payload(self, request: Request, sample: int) -> dict[str, Any]:
        sampling = request.sampling
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.max_tokens_name: sampling.max_tokens,
            "seed": seed_of(request.seed, sample, self.render(request)) % 2**31,
        }
        if sampling.top_k:
            payload["top_k"] = sampling.top_k
        if sampling.stop:
            payload["stop"] = list(sampling.stop)
        if request.answers or self.logprobs:
            payload["logprobs"] = True
        if request.answers:
            payload["top_logprobs"] = self.top_logprobs
        if request.json_schema is not None:
            form = {"name": "answer", "schema": request.json_schema, "strict": True}
            payload["response_format"] = {"type": "json_schema", "json_schema": form}
        if request.prefix:
            payload["messages"].append({"role": "assistant", "content": request.prefix})
            payload |= {"continue_final_message": True, "add_generation_prompt": False}
        return payload

    async def _post(self, session: aiohttp.ClientSession, payload: Mapping[str, Any]) -> _Reply:
        """The reply within deadline and byte cap; never raises for what the network or the server did."""
        key = os.environ.get(self.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{self.base_url}/chat/completions"
        try:
            async with asyncio.timeout(self.timeout):
                async with session.post(url, json=payload, headers=headers, allow_redirects=False) as response:
                    body = bytearray()
                    async for chunk in response.content.iter_any():
                        body += chunk
                        if len(body) > self.max_bytes:
                            return _Reply(failure=Failure("too_large", f"more than {self.max_bytes} bytes"))
                    lower = {name.lower(): value for name, value in response.headers.items()}
                    return _Reply(response.status, lower, bytes(body))
        except TimeoutError:
            return _Reply(failure=Failure("timeout", f"no whole answer in {self.timeout:g} s", passing=True))
        except (aiohttp.ClientError, OSError) as error:
            return _Reply(failure=Failure("connection", type(error).__name__, passing=True))

    def _fault_of(self, reply: _Reply) -> Failure | None:
        """The failure that a reply stands for, if any; sets the time until which all calls wait. EndpointError where no
        later call can do better."""
        if reply.failure is not None:
            if reply.failure.passing:
                self._hold_off(reply)
            return reply.failure
        self._refused, self._answered = 0, True
        if reply.status == 200:
            return None
        code, message = _error_of(reply.body)
        detail = f"HTTP {reply.status}: {self._without_key(message)}"
        if ends := self._end_of(reply, code):
            raise EndpointError(f"{ends} ({detail})", where=self.base_url, todo=self._cure(reply.status))
        if reply.status in PASSING_STATUS or reply.status >= 500:
            self._hold_off(reply)
            kind = "rate_limited" if reply.status == 429 else "server_error"
            return Failure(kind, detail, passing=True)
        return Failure("refused", detail)

    def _end_of(self, reply: _Reply, code: str) -> str | None:
        """Why this reply ends the run, if it does."""
        if reply.status in {401, 403}:
            return "the endpoint refuses the credentials"
        if code == "insufficient_quota" or reply.status == 402:
            return "the quota is exhausted"
        if reply.status == 404:
            return f"the endpoint does not know this address or the model {self.model!r}"
        if 300 <= reply.status < 400:
            return "the endpoint sends calls elsewhere, which are not followed"
        return None

    def _cure(self, status: int) -> str:
        if status in {401, 403}:
            state = "is set" if os.environ.get(self.api_key_env) else "is not set"
            return f"check the key in the environment variable {self.api_key_env}, which {state}"
        return "check base_url, model and account"

    def _hold_off(self, reply: _Reply) -> None:
        """Let all calls wait: as long as Retry-After says, else longer with each failure to connect."""
        if reply.failure is not None and reply.failure.kind == "connection":
            self._lost_at = self._lost_at if self._refused else time.monotonic()
            self._refused += 1
            if self._refused >= UNREACHABLE_AFTER and self._given_up():
                raise EndpointError(
                    f"the endpoint cannot be reached ({reply.failure.detail})", where=self.base_url,
                    todo="check that it runs, and base_url",
                )  # fmt: skip
        asked = retry_after(reply.headers or {})
        wait = min(0.25 * 2**self._refused, 10.0) if asked is None else asked
        self._not_before = max(self._not_before, time.monotonic() + min(wait, LONGEST_WAIT))

    def _given_up(self) -> bool:
        return not self._answered or time.monotonic() - self._lost_at >= GONE_AFTER

    def _without_key(self, text: str) -> str:
        """A server's message on one line, cut, and without the key, should the server have repeated it."""
        key = os.environ.get(self.api_key_env)
        return _printable(text.replace(key, "[key]") if key else text)


class _Flight:
    """The calls of one `generate`: an event loop in a thread of its own, `concurrency` slots, and the way back."""

    def __init__(self, engine: OpenAIEngine, todo: Sequence[tuple[Request, int]]) -> None:
        self.engine = engine
        self.todo = iter(todo)
        self.done: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()
        self.loop = asyncio.new_event_loop()
        self.slots = asyncio.Semaphore(engine.concurrency)
        self.main: asyncio.Task[None] | None = None
        self.thread = threading.Thread(target=self._work, name="openai-engine", daemon=True)
        self.thread.start()

    def landed(self) -> list[Completion]:
        """Wait for one completion; hand over all that have come. Raises what ended the flight, once nothing is left."""
        came = [self.done.get()]
        while not self.done.empty():
            came.append(self.done.get())
        burst = [item for item in came if isinstance(item, Completion)]
        for item in came:
            if isinstance(item, BaseException):
                if not burst:
                    raise item
                self.done.put(item)
        return burst

    def release(self, count: int) -> None:
        """Free the slots of completions that are stored by now."""
        for _ in range(count):
            self.loop.call_soon_threadsafe(self.slots.release)

    def cancel(self) -> None:
        """Stop all calls and wait for the thread."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self._cancel_main)
        self.thread.join()
        self.loop.close()

    def _cancel_main(self) -> None:
        if self.main is not None:
            self.main.cancel()

    def _work(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.main = self.loop.create_task(self._fly())
        try:
            self.loop.run_until_complete(self.main)
        except asyncio.CancelledError:
            return
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller's thread raises it
            self.done.put(error)

    async def _fly(self) -> None:
        limit = aiohttp.TCPConnector(limit=self.engine.concurrency)
        async with aiohttp.ClientSession(connector=limit, timeout=aiohttp.ClientTimeout(total=None)) as session:
            try:
                async with asyncio.TaskGroup() as group:
                    for request, sample in self.todo:
                        await self.slots.acquire()
                        group.create_task(self._one(session, request, sample))
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None

    async def _one(self, session: aiohttp.ClientSession, request: Request, sample: int) -> None:
        self.done.put(await self.engine.answer(session, request, sample))


# ------------------------------------------------------------------------------------------------ reading an answer


def read_answer(body: bytes, request: Request, sample: int) -> Completion:
    """A chat completion's body as a Completion. ValueError says what is wrong with a body that is no valid answer."""
    data = _loaded(body)
    choice = _first_choice(data)
    content = choice.get("message", {}).get("content") if isinstance(choice.get("message"), dict) else None
    finish = choice.get("finish_reason")
    prompt_tokens, completion_tokens = _usage(data)
    if finish == "content_filter" or (isinstance(content, type(None)) and _refusal(choice)):
        failure = Failure("filtered", _printable(_refusal(choice) or "content_filter"))
        return Completion(request, sample, prompt_tokens=prompt_tokens, failure=failure)
    if not isinstance(content, str):
        raise ValueError("the message's content is no text")
    if finish not in {"stop", "length"}:
        raise ValueError(f"finish_reason is {finish!r}")
    tokens = _logprobs(choice)
    return Completion(
        request,
        sample,
        text=content,
        finish_reason=finish,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens or len(tokens),
        logprob=math.fsum(logprob for _, logprob, _ in tokens) if tokens else None,
        answer_logprobs=answer_logprobs(tokens, request.answers) if request.answers and tokens else None,
    )


def _loaded(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {body[:60]!r}") from error
    if not isinstance(data, dict):
        raise ValueError("the JSON is no object")
    return data


def _first_choice(data: Mapping[str, Any]) -> dict[str, Any]:
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("no choices")
    return choices[0]


def _refusal(choice: Mapping[str, Any]) -> str:
    refusal = choice["message"].get("refusal") if isinstance(choice.get("message"), dict) else None
    return refusal if isinstance(refusal, str) else ""


def _usage(data: Mapping[str, Any]) -> tuple[int, int]:
    """Prompt and completion tokens; 0 where the endpoint does not say."""
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
    counts = [(usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (n if type(n) is int and n >= 0 else 0 for n in counts)
    return prompt, completion


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
        raise ValueError(f"a log-prob of the wrong form: {str(entry)[:60]}")
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


# -------------------------------------------------------------------------------------------------- reading an error


def _error_of(body: bytes) -> tuple[str, str]:
    """Code and message of an error body, in OpenAI's form or any other."""
    try:
        data = _loaded(body)
    except ValueError:
        return "", body[:200].decode("utf-8", "replace")
    error = data.get("error", data)
    if not isinstance(error, dict):
        return "", str(error)
    return str(error.get("code") or error.get("type") or ""), str(error.get("message", ""))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After (seconds or a date; header names in lower case) asks for; None without a valid one."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _printable(text: str) -> str:
    """One line of at most 300 characters."""
    return " ".join(SURROGATE.sub("\ufffd", text).split())[:300]
