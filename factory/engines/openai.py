"""Any OpenAI-compatible chat endpoint, or several equal ones: fast, paced, and trusting nothing that comes back.

What endpoints do (each seen with real servers and clients): answer 200 with HTML, with half a JSON document, without
choices or with wrong types; send a byte a second for ever; send 50 MB; write lone surrogates; say yes to n=4 and give
one. So every call has an overall deadline and a byte cap, an answer is checked before it is believed, and one that is
no answer costs a small retry budget of its own. A call's slot goes to the next call only when its answer is stored.

What comes back of a reply:

    2xx, a chat completion      the answer. Its text null while finish_reason is length: an empty text (all was spent on
                                reasoning); a filter's word: failure `filtered`
    2xx, anything else          asked again `invalid_retries` times, then failure `invalid_response`; passing when it is
                                not even JSON (some other program has answered)
    429 503 529                 asked again when the endpoint has room: it is waited for (Retry-After and its kin), and
                                fewer calls are under way; after BUSY_TRIES a passing failure `rate_limited`,
                                `server_error`. A wait over `longest_wait` ends the run
    no connection               asked again, of whichever endpoint there is; when there is none, the run ends
    other 5xx, broken, no end   passing failure `server_error`, `connection`, `timeout`
    408 409 425                 passing failure `timeout`, `refused`, `refused`
    400 413 422 ...             failure `refused`; `too_long`, `filtered` where the reply says so. 403 from an endpoint
                                that has answered before: passing failure `refused` of that one request
    401 402 403 404 407, 3xx    the run ends (EndpointError); also an exhausted quota, whatever its status

`prefix` needs a server that can go on with an unfinished assistant turn (vLLM: prefix="continue"); else such a request
fails with kind "unsupported". `top_k` is sent only when set; servers that do not know it refuse the request. vLLM fills
in what a request leaves open from the model's generation_config.json, unless it runs with --generation-config vllm.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

from factory.budget import TEMPLATE_TOKENS, Spend
from factory.engines import nothing_held
from factory.engines.attempts import Attempts, Land, Ways
from factory.engines.bodies import OWN, Bodies, LimitName, canonical, first_seed
from factory.engines.endpoints import Auth, Endpoint, Endpoints, addresses, closed
from factory.engines.flights import WHILE, Flight, Job, Line, Slots, quick_turns
from factory.engines.pace import Pace
from factory.engines.prices import read_prices
from factory.engines.replies import Choice, NoAnswerError, Outcome, outcome_of, printable, read
from factory.engines.wire import Reply, Wire
from factory.faults import ConfigError, EndpointError
from factory.schema import Completion, Failure, Have, Identity, Request, Sampling, digest

HEALTH_SECONDS = 20.0  # deadline of a health check
MOST_AT_ONCE = 16  # samples in one call
AT_ONCE = 64  # requests taken between two bursts

log = logging.getLogger("factory")
HELLO = Request([{"role": "user", "content": "Say yes."}], sampling=Sampling(temperature=1.0, max_tokens=1))


class _Traffic:
    """What is open while an engine is used: the loop's thread, connections, slots, pace."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Ways]], concurrency: int) -> None:
        self.line = Line()
        self.slots = Slots(concurrency)
        self.ways = self.line.wait_for(make())

    def close(self) -> None:
        """Close the connections, end the thread."""
        self.line.end(partial(closed, self.ways.endpoints.every))
        self.line.join()


class OpenAIEngine:
    """Answers requests through POST {base_url}/chat/completions. Several threads may use it at once.

    model: the name that the endpoint knows. base_url: OPENAI_BASE_URL by default, else OpenAI's own; a list, or text
    with commas: equal endpoints, asked in turn. A query (Azure's api-version) is kept. name: what the answers are kept
    under in place of the address; needed for several endpoints, so that a key depends neither on which one answered nor
    on which there are (an address as the name goes on with what that endpoint alone has answered). api_key_env: name of
    the environment variable that holds the key; unset, none is sent. auth: how it is sent (auto: in `api-key` to
    Azure, else as a bearer). OPENAI_ORG_ID and OPENAI_PROJECT_ID are sent where set. concurrency: answers under way at
    most; fewer while the endpoint has too much. requests_per_minute, tokens_per_minute: kept by all calls together.
    timeout: seconds for a call from first to last byte. longest_wait: seconds that an endpoint may ask to wait; more
    ends the run. max_bytes: of a body. invalid_retries: tries more when a 200 holds no valid answer. n_in_one_call: ask
    for several samples in one call, which bills the prompt once; where the server cannot, single calls follow. The
    samples' keys are those of single calls, but their texts come from the seed of the first. prices: US dollars for a
    million tokens, {"prompt": ..., "completion": ..., "cached_prompt": ...}, or a table of such by model, or a file
    with either; None, or a model that is not there: the cost is unknown. prefix: see above. top_logprobs: how many the
    endpoint is asked for where `answers` are wanted. logprobs: ask for them always. max_tokens_name: how the endpoint
    calls the limit (auto: max_completion_tokens at OpenAI and Azure, else max_tokens; either is changed where the
    endpoint asks for the other). extra_body: further fields of every request (reasoning_effort, ...).
    """

    thread_safe = True
    """Several threads may ask at once."""
    streams = True
    """Takes requests as it has room for them: the next may be prepared while the first are answered."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | Sequence[str] | None = None,
        name: str | None = None,
        api_key_env: str | None = None,
        auth: Auth = "auto",
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout: float = 120.0,
        longest_wait: float = 600.0,
        max_bytes: int = 8_000_000,
        invalid_retries: int = 2,
        n_in_one_call: bool = False,
        prices: Mapping[str, Any] | str | None = None,
        prefix: Literal["refuse", "continue"] = "refuse",
        top_logprobs: int = 20,
        logprobs: bool = False,
        max_tokens_name: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto",
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        if not isinstance(base_url, str | list | tuple | None):
            raise ConfigError(["base_url: must be an address or a list of them"], where="the openai engine's options")
        self.addresses = addresses(base_url)
        self.name, self.auth = name, auth
        self.api_key_env = api_key_env or _key_variable(any(one.is_azure for one in self.addresses))
        self.concurrency, self.timeout, self.longest_wait = concurrency, timeout, longest_wait
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self.max_bytes, self.invalid_retries, self.n_in_one_call = max_bytes, invalid_retries, n_in_one_call
        self.prices, price_faults = read_prices(prices, model)
        self.continues = prefix == "continue"
        extra = {} if extra_body is None else extra_body
        if faults := [*self._faults(), *_choice_faults(prefix, auth, max_tokens_name), *price_faults,
                      *_extra_faults(extra)]:  # fmt: skip
            raise ConfigError(faults, where="the openai engine's options")
        official = all(one.is_official for one in self.addresses)
        limit_name: LimitName = "max_completion_tokens" if official else "max_tokens"
        self.bodies = Bodies(
            model,
            limit_name=limit_name if max_tokens_name == "auto" else max_tokens_name,
            sparse=official,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            extra=extra,
        )
        known_as = name or self.addresses[0].name
        more = [dict(extra)] if extra else []
        self._identity = Identity("openai", model, digest("openai", known_as, model, *more))
        self.replaced = 0  # answers in which lone surrogates were replaced
        self._lock = threading.Lock()
        self._traffic: _Traffic | None = None

    def _faults(self) -> list[str]:
        limits = {"requests_per_minute": self.requests_per_minute, "tokens_per_minute": self.tokens_per_minute}
        checks = {
            "concurrency: must be a whole number of 1 or more": _whole(self.concurrency, 1),
            "invalid_retries: must be a whole number of 0 or more": _whole(self.invalid_retries, 0),
            "timeout: must be above 0": _positive(self.timeout),
            "longest_wait: must be above 0": _positive(self.longest_wait),
            "max_bytes: must be above 0": _positive(self.max_bytes),
            "n_in_one_call: must be true or false": isinstance(self.n_in_one_call, bool),
            "base_url: no address": bool(self.addresses),
            "base_url: several endpoints need a name, under which their answers are kept whichever gave them; the "
            "address of the first as the name goes on with its answers": len(self.addresses) < 2 or bool(self.name),
        }
        checks |= {f"{option}: must be above 0": value is None or _positive(value) for option, value in limits.items()}
        found = [fault for fault, met in checks.items() if not met]
        for address in self.addresses:
            found += address.faults()
        if _unsendable(os.environ.get(self.api_key_env, "")):
            found.append(f"{self.api_key_env}: the key holds characters that no HTTP header can carry")
        return found

    @property
    def base_url(self) -> str:
        """The endpoints' addresses as they may be shown."""
        return ", ".join(address.shown for address in self.addresses)

    @property
    def identity(self) -> Identity:
        """Kind, model, and a hash of name or address and model: an endpoint shows nothing more of itself."""
        return self._identity

    def render(self, request: Request) -> str:
        """The messages as canonical JSON: the endpoint applies the chat template."""
        return self.bodies.render(request)

    def worst_case(self, request: Request) -> Spend:
        """The most that one answer can use: the prompt at a token a byte, an answer to the limit, with every retry."""
        form = 0 if request.json_schema is None else len(canonical(request.json_schema).encode())
        prompt = len(self.bodies.messages(request)) + form + TEMPLATE_TOKENS
        completion, tries = request.sampling.max_tokens, self.invalid_retries + 1
        cost = None if self.prices is None else tries * self.prices.cost(prompt, completion)
        return Spend(tries * (prompt + completion), cost)

    def close(self) -> None:
        """Close the connections and end the thread that makes the calls. The engine may be used again."""
        with self._lock:
            if self._traffic is not None:
                self._traffic.close()
            self._traffic = None

    # ------------------------------------------------------------------------------------------------ for the caller

    def generate(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[Completion]:
        """See `Engine.generate`. EndpointError: bad credentials, an exhausted quota, a wrong address or model, or no
        connection any more; what was under way has landed by then. Closing the iterator cancels what is under way."""
        for burst in self.bursts(requests, have):
            yield from burst

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        """`generate`, with all that has come by now together; none after a while without any. Slots are freed when the
        next burst, or the next part of it, is asked for. Requests are taken as there is room for them, in this thread,
        AT_ONCE between two bursts. Several threads may iterate at once: concurrency and pace are the engine's."""
        waiting, traffic = iter(requests), self._open()
        traffic.line.loop.call_soon_threadsafe(traffic.ways.endpoints.anew)
        flight = Flight(traffic.line, traffic.slots, partial(self._answer, traffic.ways))
        more, fault = True, None
        try:
            with quick_turns():
                while more or flight.left:
                    if more and flight.wants:
                        more, fault = self._add(flight, waiting, have)
                    if not flight.left:
                        yield []
                        continue
                    burst = flight.landed(0.0 if more and flight.wants else WHILE)
                    yield burst
                    burst.release(len(burst))
            if fault is not None:
                raise fault
        finally:
            flight.cancel()

    def _add(self, flight: Flight, waiting: Iterator[Request], have: Have) -> tuple[bool, Exception | None]:
        """Add the jobs of the next requests. Are there more? And why not, where the next cannot be had or encoded: what
        was added before is answered first."""
        jobs: list[Job] = []
        try:
            some = list(islice(waiting, AT_ONCE))
            for request in some:
                jobs += self._jobs(request, have)
        except Exception as error:  # noqa: BLE001 - the caller raises it
            return False, error
        finally:
            flight.add(jobs)
        return len(some) == AT_ONCE, None

    def _open(self) -> _Traffic:
        with self._lock:
            if self._traffic is None or self._traffic.line.pid != os.getpid():
                self._traffic = _Traffic(self._ways, self.concurrency)
                weakref.finalize(self, self._traffic.line.end, partial(closed, self._traffic.ways.endpoints.every))
            return self._traffic

    async def _ways(self) -> Ways:
        key = self.key()
        every = [Endpoint(address, self.concurrency, self.auth, key) for address in self.addresses]
        limits = self.requests_per_minute, self.tokens_per_minute
        pace = Pace(*limits) if any(limits) else None
        return Ways(Endpoints(every, self._is_healthy), Wire(self.timeout, self.max_bytes), pace)

    def key(self) -> str | None:
        """The key as the environment holds it now."""
        return os.environ.get(self.api_key_env, "").strip() or None

    def _jobs(self, request: Request, have: Have) -> Iterator[Job]:
        samples = [sample for sample in range(request.n) if not have(request, sample)]
        if not samples:
            return
        messages = self.bodies.messages(request)
        seed = first_seed(request, messages)
        size = min(MOST_AT_ONCE, self.concurrency) if self.n_in_one_call else 1
        for start in range(0, len(samples), size):
            yield Job(request, tuple(samples[start : start + size]), messages, seed)

    # ------------------------------------------------------------------------------------------------ for one request

    def _answer(self, ways: Ways, job: Job, land: Land) -> Coroutine[Any, Any, None] | None:
        request = job.request
        if (request.prefix or request.answers) and (fault := self._unsupported(request)):
            for sample in job.samples:
                land(Completion(request, sample, failure=fault))
            return None
        return Attempts(self, ways, job, land).make()

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

    def without_key(self, text: str) -> str:
        """A text on one line, cut, and without the key, should the server have repeated it."""
        key = self.key()
        return printable(text.replace(key, "[key]") if key else text)

    def noted_replacement(self) -> None:
        """Lone surrogates in an answer were replaced."""
        self.replaced += 1
        log.warning("%s: lone surrogates in an answer were replaced (%d so far)", self.model, self.replaced)

    def single_calls(self) -> None:
        """The server does not give several answers in one call: say so, once."""
        if self.n_in_one_call:
            self.n_in_one_call = False
            log.warning("%s does not give several answers in one call: one call each from here on", self.base_url)

    # --------------------------------------------------------------------------------------------------------- health

    def check_health(self, seconds: float = HEALTH_SECONDS) -> Completion:
        """Have every endpoint complete one token within a deadline: the only proof that it lives. The answer of the
        last, or the first failure. EndpointError: credentials, quota, address or model are refused."""
        traffic = self._open()
        return traffic.line.wait_for(self._hello(traffic.ways.endpoints.every, seconds))

    async def _hello(self, every: Sequence[Endpoint], seconds: float) -> Completion:
        wire = Wire(seconds, self.max_bytes)
        body = self.bodies.encode(HELLO, self.bodies.messages(HELLO), 0)
        for endpoint in every:
            began = time.monotonic()
            reply = await wire.post(endpoint.session, endpoint.url, body)
            answer = self._read_hello(endpoint, reply, time.monotonic() - began)
            if answer.failure is not None:
                break
        return answer

    async def _is_healthy(self, endpoint: Endpoint) -> bool:
        failure = (await self._hello([endpoint], min(HEALTH_SECONDS, self.timeout))).failure
        endpoint.reached = endpoint.reached or failure is None or failure.kind not in {"connection", "timeout"}
        return failure is None or failure.kind == "rate_limited"

    def _read_hello(self, endpoint: Endpoint, reply: Reply, latency: float) -> Completion:
        failure = reply.failure
        if failure is None and not 200 <= reply.status < 300:
            outcome = outcome_of(reply.status, reply.body, answered=False, secret=self.key())
            if outcome.fate == "ended":
                raise self.ended(endpoint, outcome, reply.status)
            failure = outcome.failure
        if failure is not None:
            return Completion(HELLO, 0, latency=latency, failure=failure)
        try:
            choice = read(reply.body).choices[0]
        except NoAnswerError as error:
            choice = Choice(fault=str(error))
        if choice.fault:
            failure = Failure("invalid_response", self.without_key(choice.fault))
        return Completion(HELLO, 0, choice.text, choice.finish_reason, latency=latency, failure=failure)

    def ended(self, endpoint: Endpoint, outcome: Outcome, status: int) -> EndpointError:
        """The fault that ends the run."""
        what = outcome.what
        if status == 404:
            what = f"{what} {self.model!r}"
        todo = "check base_url, model and account"
        if status in {401, 403}:
            state = "is set" if self.key() else "is not set"
            todo = f"check the key in the environment variable {self.api_key_env}, which {state}"
        return EndpointError(f"{what} ({outcome.failure.detail})", where=endpoint.shown, todo=todo)


def _key_variable(azure: bool) -> str:
    name = "AZURE_OPENAI_API_KEY"
    return name if azure and os.environ.get(name) else "OPENAI_API_KEY"


def _unsendable(key: str) -> bool:
    return any(not 32 < ord(letter) < 127 for letter in key.strip())


def _whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _choice_faults(prefix: object, auth: object, max_tokens_name: object) -> list[str]:
    allowed = {
        "prefix": (prefix, ("refuse", "continue")),
        "auth": (auth, ("auto", "bearer", "api-key")),
        "max_tokens_name": (max_tokens_name, ("auto", "max_tokens", "max_completion_tokens")),
    }
    return [f"{option}: must be {' or '.join(names)}" for option, (value, names) in allowed.items()
            if value not in names]  # fmt: skip


def _extra_faults(extra: object) -> list[str]:
    if not isinstance(extra, Mapping):
        return ["extra_body: must be a mapping"]
    own = sorted(set(extra) & OWN)
    return [f"extra_body: {', '.join(own)} must not be set there"] if own else []
