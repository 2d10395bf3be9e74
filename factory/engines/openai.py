"""Any OpenAI-compatible chat endpoint, or several equal ones, over aiohttp: fast, paced, and trusting nothing.

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

import asyncio
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import aiohttp

from factory.engines import nothing_held
from factory.engines.bodies import OWN, Bodies, LimitName, canonical, first_seed, seed_for
from factory.engines.endpoints import Auth, Endpoint, Endpoints, addresses, closed
from factory.engines.flights import Flight, Job, Line, Slots
from factory.engines.pace import Pace, wait_asked
from factory.engines.prices import read_prices
from factory.engines.replies import Choice, NoAnswerError, Outcome, Usage, outcome_of, printable, read, unsupported
from factory.faults import ConfigError, EndpointError
from factory.schema import Completion, Failure, Have, Identity, Request, Sampling, digest

BUSY_TRIES = 8  # of one call at an endpoint that has too much, before it is a failure
BUSY_PAUSE = 0.5  # seconds, twice as long each time, where the endpoint does not say how long
LONGEST_BUSY_PAUSE = 30.0
HEALTH_SECONDS = 20.0  # deadline of a health check
MOST_AT_ONCE = 16  # samples in one call
BYTES_A_TOKEN = 3.0  # to estimate a prompt's tokens; a byte-level vocabulary has at least 1

log = logging.getLogger("factory")
Land = Callable[[Completion], None]
HELLO = Request([{"role": "user", "content": "Say yes."}], sampling=Sampling(temperature=1.0, max_tokens=1))


class Reply(NamedTuple):
    """What came over the wire: status, headers (names in any case) and body; or the failure to get any."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    failure: Failure | None = None


class _Traffic:
    """What is open while an engine is used: the loop's thread, connections, slots, pace."""

    def __init__(self, make: Callable[[], tuple[Endpoints, Pace | None]], concurrency: int) -> None:
        self.line = Line()
        self.slots = Slots(concurrency)

        async def there() -> tuple[Endpoints, Pace | None]:
            return make()

        self.endpoints, self.pace = self.line.wait_for(there())

    def close(self) -> None:
        """Close the connections, end the thread."""
        self.line.end(self.endpoints.close)
        self.line.join()


class OpenAIEngine:
    """Answers requests through POST {base_url}/chat/completions.

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
        return canonical(request.messages)

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
        """`generate`, with all that has come by now together. Slots are freed when the next burst is asked for. Several
        threads may iterate at once: concurrency and pace are the engine's."""
        todo = [(r, wanted) for r in requests if (wanted := [s for s in range(r.n) if not have(r, s)])]
        left = sum(len(wanted) for _, wanted in todo)
        if not left:
            return
        traffic = self._open()
        flight = Flight(traffic.line, traffic.slots, self._jobs(todo), self._answering(traffic))
        try:
            while left:
                burst = flight.landed()
                yield burst
                left -= len(burst)
                flight.release(len(burst))
        finally:
            flight.cancel()

    def check_health(self, seconds: float = HEALTH_SECONDS) -> Completion:
        """Have an endpoint complete one token within a deadline: the only proof that it lives."""
        traffic = self._open()

        async def ask() -> Completion:
            endpoint = traffic.endpoints.every[0]
            began = time.monotonic()
            reply = await self._post(endpoint, self._hello(), seconds)
            return self._read_hello(endpoint, reply, time.monotonic() - began)

        return traffic.line.wait_for(ask())

    def _open(self) -> _Traffic:
        with self._lock:
            if self._traffic is None or self._traffic.line.pid != os.getpid():
                self._traffic = _Traffic(self._connections, self.concurrency)
                weakref.finalize(self, self._traffic.line.end, partial(closed, self._traffic.endpoints.every))
            return self._traffic

    def _connections(self) -> tuple[Endpoints, Pace | None]:
        key = self._key()
        every = [Endpoint(address, self.concurrency, self.auth, key) for address in self.addresses]
        limits = self.requests_per_minute, self.tokens_per_minute
        return Endpoints(every, self._is_healthy), Pace(*limits) if any(limits) else None

    def _key(self) -> str | None:
        return os.environ.get(self.api_key_env, "").strip() or None

    def _jobs(self, todo: Sequence[tuple[Request, list[int]]]) -> Iterator[Job]:
        for request, samples in todo:
            messages = self.bodies.messages(request)
            seed = first_seed(request, messages)
            size = min(MOST_AT_ONCE, self.concurrency) if self.n_in_one_call else 1
            for start in range(0, len(samples), size):
                yield Job(request, tuple(samples[start : start + size]), messages, seed)

    # ------------------------------------------------------------------------------------------------ for one request

    def _answering(self, traffic: _Traffic) -> Callable[[Job, Land], Any]:
        endpoints, pace = traffic.endpoints, traffic.pace

        async def answer(job: Job, land: Land) -> None:
            request = job.request
            if fault := self._unsupported(request):
                for sample in job.samples:
                    land(Completion(request, sample, failure=fault))
                return
            call = _Call(self, job, land)
            while call.left:
                endpoint = await endpoints.turn()
                try:
                    await call.ask(endpoint, endpoints, pace)
                finally:
                    endpoints.leave(endpoint)

        return answer

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

    async def _post(self, endpoint: Endpoint, body: bytes, seconds: float) -> Reply:
        """The reply within deadline and byte cap; never raises for what the network or the server did."""
        try:
            async with asyncio.timeout(seconds):
                response = await endpoint.session.post(endpoint.url, data=body, allow_redirects=False)
                try:
                    return await self._received(response)
                finally:
                    response.close()
        except TimeoutError:
            return Reply(0, {}, b"", Failure("timeout", f"no whole answer in {seconds:g} s", passing=True))
        except (aiohttp.ClientError, OSError) as error:
            return Reply(0, {}, b"", Failure("connection", type(error).__name__, passing=True))

    async def _received(self, response: aiohttp.ClientResponse) -> Reply:
        headers = response.headers
        length = response.content_length
        if length is not None and length <= self.max_bytes and "Content-Encoding" not in headers:
            return Reply(response.status, headers, await response.read())
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self.max_bytes:
                return Reply(0, {}, b"", Failure("too_large", f"more than {self.max_bytes} bytes"))
        return Reply(response.status, headers, bytes(body))

    def without_key(self, text: str) -> str:
        """A text on one line, cut, and without the key, should the server have repeated it."""
        key = self._key()
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

    def _hello(self) -> bytes:
        return self.bodies.encode(HELLO, self.bodies.messages(HELLO), 0)

    async def _is_healthy(self, endpoint: Endpoint) -> bool:
        reply = await self._post(endpoint, self._hello(), min(HEALTH_SECONDS, self.timeout))
        endpoint.reached = endpoint.reached or reply.status > 0
        return reply.status == 429 or self._read_hello(endpoint, reply, 0.0).failure is None

    def _read_hello(self, endpoint: Endpoint, reply: Reply, latency: float) -> Completion:
        if reply.failure is None and not 200 <= reply.status < 300:
            outcome = outcome_of(reply.status, reply.body, answered=False, secret=self._key())
            if outcome.fate == "ended":
                raise self.ended(endpoint, outcome, reply.status)
            return Completion(HELLO, 0, latency=latency, failure=outcome.failure)
        if reply.failure is not None:
            return Completion(HELLO, 0, latency=latency, failure=reply.failure)
        try:
            choice = read(reply.body).choices[0]
        except NoAnswerError as error:
            fault = str(error)
        else:
            fault = choice.fault
            if not fault:
                return Completion(HELLO, 0, text=choice.text, finish_reason=choice.finish_reason, latency=latency)
        return Completion(HELLO, 0, latency=latency, failure=Failure("invalid_response", self.without_key(fault)))

    def ended(self, endpoint: Endpoint, outcome: Outcome, status: int) -> EndpointError:
        """The fault that ends the run."""
        what = outcome.what
        if status == 404:
            what = f"{what} {self.model!r}"
        todo = "check base_url, model and account"
        if status in {401, 403}:
            state = "is set" if self._key() else "is not set"
            todo = f"check the key in the environment variable {self.api_key_env}, which {state}"
        return EndpointError(f"{what} ({outcome.failure.detail})", where=endpoint.shown, todo=todo)


class _Call:
    """One job on its way: the samples that have no answer yet, what was tried, and what was paid for nothing."""

    __slots__ = ("busy", "engine", "invalid", "job", "land", "left", "wasted")

    def __init__(self, engine: OpenAIEngine, job: Job, land: Land) -> None:
        self.engine, self.job, self.land = engine, job, land
        self.left = job.samples
        self.invalid = self.busy = 0
        self.wasted = 0.0  # US dollars for replies that held no answer

    async def ask(self, endpoint: Endpoint, endpoints: Endpoints, pace: Pace | None) -> None:
        """Make one call for what is left, and read its reply."""
        engine, job = self.engine, self.job
        asked = self.left if engine.n_in_one_call else self.left[:1]
        estimate = 0.0
        if pace is not None:
            estimate = len(job.messages) / BYTES_A_TOKEN + len(asked) * job.request.sampling.max_tokens
            await pace.enter(estimate)
        body = engine.bodies.encode(job.request, job.messages, seed_for(job.seed, asked[0]), len(asked))
        sent = time.monotonic()
        reply = await engine._post(endpoint, body, engine.timeout)
        latency = time.monotonic() - sent
        if reply.failure is None and 200 <= reply.status < 300:
            self._read(endpoint, endpoints, reply.body, asked, latency)
        else:
            self._refused(endpoint, endpoints, reply, asked, sent, latency)
        if pace is not None:
            pace.correct(estimate, self._used(reply, estimate))

    def _used(self, reply: Reply, estimate: float) -> float:
        """Tokens that count against the pace: as the endpoint says, none where it refused, else what was estimated."""
        if not 200 <= reply.status < 300:
            return 0.0 if reply.status else estimate
        try:
            usage = read(reply.body).usage
        except NoAnswerError as error:
            usage = error.usage
        return float(usage.prompt + usage.completion) if usage.known else estimate

    def _read(
        self, endpoint: Endpoint, endpoints: Endpoints, body: bytes, asked: Sequence[int], latency: float
    ) -> None:
        request = self.job.request
        try:
            choices, usage = read(body, request.answers)
        except NoAnswerError as error:
            self._not_valid(endpoint, endpoints, error, asked, latency)
            return
        endpoint.served()
        if len(choices) < len(asked):
            self.engine.single_calls()
        shares = shared(usage, choices, len(asked), request.sampling.max_tokens)
        for sample, choice, share in zip(asked, choices, shares, strict=False):
            if choice.fault:
                self._again(sample, choice.fault, share, latency)
            else:
                self._landed(sample, choice, share, latency)

    def _landed(self, sample: int, choice: Choice, share: Usage, latency: float) -> None:
        engine = self.engine
        if choice.replaced:
            engine.noted_replacement()
        prices = engine.prices
        cost = None
        if prices is not None and share.known:
            cost = self.wasted + prices.cost(*share)
            self.wasted = 0.0
        self.left = tuple(other for other in self.left if other != sample) if len(self.left) > 1 else ()
        self.invalid = 0
        self.land(
            Completion(
                self.job.request,
                sample,
                choice.text,
                choice.finish_reason,
                share.prompt,
                share.completion,
                choice.logprob,
                choice.answer_logprobs,
                cost,
                latency,
                None if choice.filtered is None else Failure("filtered", engine.without_key(choice.filtered)),
            )
        )

    def _again(self, sample: int, fault: str, share: Usage, latency: float) -> None:
        """A reply held no valid answer for a sample: it is asked for once more, or has failed."""
        prices = self.engine.prices
        if prices is not None and share.known:
            self.wasted += prices.cost(*share)
        self.invalid += 1
        if self.invalid > self.engine.invalid_retries:
            self._failed([sample], Failure("invalid_response", self.engine.without_key(fault)), latency)

    def _not_valid(
        self, endpoint: Endpoint, endpoints: Endpoints, error: NoAnswerError, asked: Sequence[int], latency: float
    ) -> None:
        if error.foreign:
            endpoint.reached = True
            endpoints.strike(endpoint)
        else:
            endpoint.served()
        prices = self.engine.prices
        if prices is not None and error.usage.known:
            self.wasted += prices.cost(*error.usage)
        self.invalid += 1
        if self.invalid > self.engine.invalid_retries:
            detail = self.engine.without_key(str(error))
            self._failed(asked, Failure("invalid_response", detail, passing=error.foreign), latency)

    def _failed(self, samples: Sequence[int], failure: Failure, latency: float) -> None:
        cost = self.wasted or None
        self.wasted, self.invalid, self.busy = 0.0, 0, 0
        self.left = tuple(sample for sample in self.left if sample not in samples)
        for sample in samples:
            self.land(Completion(self.job.request, sample, cost=cost, latency=latency, failure=failure))
            cost = None

    def _refused(
        self, endpoint: Endpoint, endpoints: Endpoints, reply: Reply, asked: Sequence[int], sent: float, latency: float
    ) -> None:
        """A reply that is no 2xx, or none at all."""
        engine = self.engine
        if reply.failure is not None:
            if reply.failure.passing:
                endpoints.strike(endpoint)
            self._failed(asked, reply.failure, latency)
            return
        endpoint.reached = True
        if len(asked) > 1 and reply.status in {400, 422}:
            engine.single_calls()
            return
        if self._renamed(reply):
            return
        outcome = outcome_of(reply.status, reply.body, answered=endpoint.answered, secret=engine._key())
        if outcome.fate == "ended":
            raise engine.ended(endpoint, outcome, reply.status)
        if outcome.struck:
            endpoints.strike(endpoint)
        elif outcome.fate == "failed":
            endpoint.strikes = 0
        if outcome.fate == "busy" and self._waits(endpoint, endpoints, reply, sent):
            return
        self._failed(asked, outcome.failure, latency)

    def _waits(self, endpoint: Endpoint, endpoints: Endpoints, reply: Reply, sent: float) -> bool:
        """The endpoint has too much: let it rest. Is the call made again?"""
        engine = self.engine
        asked = wait_asked(reply.headers)
        if asked is not None and asked > engine.longest_wait:
            raise EndpointError(
                f"the endpoint asks to wait for {asked:.0f} s", where=endpoint.shown,
                todo=f"run again then, or set longest_wait (now {engine.longest_wait:g} s)",
            )  # fmt: skip
        if endpoint.window.pushed_back(sent, time.monotonic()):
            endpoint.busy += 1
            log.info("%s has too much: %.0f calls at once from here on", endpoint.shown, endpoint.window.size)
        wait = min(BUSY_PAUSE * 2 ** max(0, endpoint.busy - 1), LONGEST_BUSY_PAUSE) if asked is None else asked
        endpoints.hold(endpoint, wait)
        self.busy += 1
        return self.busy < BUSY_TRIES

    def _renamed(self, reply: Reply) -> bool:
        """Does the endpoint call the longest answer otherwise? Then so do we from here on."""
        other: dict[str, LimitName] = {
            "max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens",
        }  # fmt: skip
        bodies, named = self.engine.bodies, unsupported(reply.status, reply.body)
        if named not in other or self.invalid:
            return False
        self.invalid += 1  # once a call, lest two names be changed for ever
        bodies.limit_name = other[named]
        return True


def shared(usage: Usage, choices: Sequence[Choice], asked: int, limit: int) -> list[Usage]:
    """What a call was billed, shared out over its answers so that the sums stay exact.

    Prompt and cached tokens go out evenly. Tokens of an answer are its own where they were counted (log-probs came with
    it) or one answer has all; else they go by length of text, up to `limit`.
    """
    count = min(len(choices), asked)
    if count == 1:
        completion = usage.completion or choices[0].tokens
        return [usage if completion == usage.completion else usage._replace(completion=completion)]
    counted = [choice.tokens for choice in choices[:count]]
    if not usage.completion or (all(counted) and sum(counted) == usage.completion):
        completions = counted
    else:
        completions = by_weight(usage.completion, [len(c.text.encode()) + 1 for c in choices[:count]])
    even = [1] * count
    columns = by_weight(usage.prompt, even), completions, by_weight(usage.cached, even)
    return [Usage(*parts) for parts in zip(*columns, strict=True)]


def by_weight(total: int, weights: Sequence[int]) -> list[int]:
    """A whole number in parts as near to the weights as whole numbers come, with the same sum."""
    ends = [0]
    whole, seen = sum(weights), 0
    for weight in weights:
        seen += weight
        ends.append(total * seen // whole)
    return [end - start for start, end in itertools.pairwise(ends)]


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
