"""One job at an endpoint, from the first try to a completion for each of its samples.

A reply may hold all answers that were asked for, some of them, or none. What has no answer yet is asked for again as
far as its budgets go: `invalid_retries` for a 2xx that is no answer, BUSY_TRIES for an endpoint that has too much.
Where no connection can be opened, it waits for one until no endpoint is left. What such tries cost, in dollars and
tokens, is added to what they end with.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factory.engines.bodies import LimitName, seed_for
from factory.engines.pace import Pace, wait_asked
from factory.engines.replies import Answer, Choice, NoAnswerError, Usage, outcome_of, read, unsupported
from factory.engines.wire import Reply, Wire
from factory.faults import EndpointError
from factory.schema import Completion, Failure

if TYPE_CHECKING:
    from factory.engines.endpoints import Endpoint, Endpoints
    from factory.engines.flights import Job
    from factory.engines.openai import OpenAIEngine

BUSY_TRIES = 6  # of one call at an endpoint that has too much, before it is a failure
BUSY_PAUSE = 0.5  # seconds, twice as long each time, where the endpoint does not say how long
LONGEST_BUSY_PAUSE = 30.0
TOLD_PAUSE = 4.0  # seconds of waiting from which a person is told of it
BYTES_A_TOKEN = 3.0  # to foresee a prompt's tokens; what was really used corrects it
OTHER_NAME: dict[str, LimitName] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}

log = logging.getLogger("factory")
Land = Callable[[Completion], None]


@dataclass(frozen=True, slots=True)
class Ways:
    """What all calls of an engine go through."""

    endpoints: Endpoints
    wire: Wire
    pace: Pace | None


class Attempts:
    """The tries of one job. `left`: the samples that have no answer yet."""

    __slots__ = ("busy", "engine", "invalid", "job", "land", "left", "renamed", "unread", "wasted", "ways")

    def __init__(self, engine: OpenAIEngine, ways: Ways, job: Job, land: Land) -> None:
        self.engine, self.ways, self.job, self.land = engine, ways, job, land
        self.left = job.samples
        self.invalid = self.busy = 0
        self.renamed = False
        self.wasted, self.unread = 0.0, Usage()  # US dollars and tokens of replies that held no answer

    async def make(self) -> None:
        """Try until every sample has landed. EndpointError: no later call can do better."""
        engine, job, ways = self.engine, self.job, self.ways
        endpoints, pace = ways.endpoints, ways.pace
        while self.left:
            asked = self.left if engine.n_in_one_call else self.left[:1]
            body = engine.bodies.encode(job.request, job.messages, seed_for(job.seed, asked[0]), len(asked))
            endpoint = endpoints.next() or await endpoints.turn()
            try:
                if pace is None:
                    sent = time.monotonic()
                    self._took(endpoint, await ways.wire.post(endpoint.session, endpoint.url, body), asked, sent)
                else:
                    await self._paced(pace, endpoint, body, asked)
            finally:
                endpoints.leave(endpoint)

    async def _paced(self, pace: Pace, endpoint: Endpoint, body: bytes, asked: Sequence[int]) -> None:
        estimate = len(self.job.messages) / BYTES_A_TOKEN + len(asked) * self.job.request.sampling.max_tokens
        await pace.enter(estimate)
        sent = time.monotonic()
        reply = await self.ways.wire.post(endpoint.session, endpoint.url, body)
        used = self._took(endpoint, reply, asked, sent)
        pace.correct(estimate, estimate if used is None else used)

    def _took(self, endpoint: Endpoint, reply: Reply, asked: Sequence[int], sent: float) -> int | None:
        """A reply has come. The tokens that it used, None where that is not known."""
        latency = time.monotonic() - sent
        if reply.failure is None and 200 <= reply.status < 300:
            usage = self._read(endpoint, reply.body, asked, latency)
            return usage.prompt + usage.completion if usage.known else None
        self._refused(endpoint, reply, asked, sent, latency)
        return 0 if reply.status or not reply.sent else None

    # ------------------------------------------------------------------------------------------------- an answer

    def _read(self, endpoint: Endpoint, body: bytes, asked: Sequence[int], latency: float) -> Usage:
        request = self.job.request
        try:
            answer = read(body, request.answers)
        except NoAnswerError as error:
            self._not_valid(endpoint, error, asked, latency)
            return error.usage
        endpoint.served()
        choices, usage = answer
        if len(asked) == len(choices) == 1:
            self._take(asked[0], choices[0], whole(usage, choices[0]), latency)
        else:
            self._take_several(answer, asked, latency)
        return usage

    def _take_several(self, answer: Answer, asked: Sequence[int], latency: float) -> None:
        choices = answer.choices
        if len(choices) < len(asked):
            self.engine.single_calls()
        shares = shared(answer.usage, choices[: len(asked)])
        for sample, choice, share in zip(asked, choices, shares, strict=False):
            self._take(sample, choice, share, latency)

    def _take(self, sample: int, choice: Choice, share: Usage, latency: float) -> None:
        engine = self.engine
        if choice.fault:
            self._count_invalid(
                (sample,), Failure("invalid_response", engine.without_key(choice.fault)), share, latency
            )
            return
        if choice.replaced:
            engine.noted_replacement()
        cost = None
        if engine.prices is not None and share.known:
            cost, self.wasted = self.wasted + engine.prices.cost(*share), 0.0
        prompt, self.unread = share.prompt + self.unread.prompt + self.unread.completion, Usage()
        self.left = tuple(other for other in self.left if other != sample) if len(self.left) > 1 else ()
        self.invalid = 0
        failure = None if choice.filtered is None else Failure("filtered", engine.without_key(choice.filtered))
        self.land(
            Completion(
                self.job.request, sample, choice.text, choice.finish_reason, prompt, share.completion,
                choice.logprob, choice.answer_logprobs, cost, latency, failure,
            )
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- no answer

    def _not_valid(self, endpoint: Endpoint, error: NoAnswerError, asked: Sequence[int], latency: float) -> None:
        if error.foreign:
            endpoint.reached = True
            self.ways.endpoints.strike(endpoint)
        else:
            endpoint.served()
        failure = Failure("invalid_response", self.engine.without_key(str(error)), passing=error.foreign)
        self._count_invalid(asked, failure, error.usage, latency)

    def _count_invalid(self, samples: Sequence[int], failure: Failure, paid: Usage, latency: float) -> None:
        """A reply held no valid answer for some samples: they are asked for once more, or have failed."""
        prices = self.engine.prices
        if prices is not None and paid.known:
            self.wasted += prices.cost(*paid)
        prompt, completion, _ = self.unread
        self.unread = Usage(prompt + paid.prompt, completion + paid.completion)
        self.invalid += 1
        if self.invalid > self.engine.invalid_retries:
            self._failed(samples, failure, latency)

    def _failed(self, samples: Sequence[int], failure: Failure, latency: float) -> None:
        cost, unread = self.wasted or None, self.unread
        self.wasted, self.unread, self.invalid, self.busy = 0.0, Usage(), 0, 0
        self.left = tuple(sample for sample in self.left if sample not in samples)
        for sample in samples:
            self.land(
                Completion(
                    self.job.request, sample, prompt_tokens=unread.prompt, completion_tokens=unread.completion,
                    cost=cost, latency=latency, failure=failure,
                )
            )  # fmt: skip
            cost, unread = None, Usage()

    def _refused(self, endpoint: Endpoint, reply: Reply, asked: Sequence[int], sent: float, latency: float) -> None:
        """A reply that is no 2xx, or none at all. What could not even be sent is left to be asked: of another endpoint,
        or of this one until it is given up."""
        engine, endpoints = self.engine, self.ways.endpoints
        if reply.failure is not None:
            if reply.sent and reply.failure.kind == "timeout":
                endpoint.reached = True  # it took the call, and may be at work
            if reply.failure.passing:
                endpoints.strike(endpoint)
            if reply.sent:
                self._failed(asked, reply.failure, latency)
            return
        endpoint.reached = True
        if self._adapted(reply, asked):
            return
        outcome = outcome_of(reply.status, reply.body, answered=endpoint.answered, secret=engine.key())
        if outcome.fate == "ended":
            raise engine.ended(endpoint, outcome, reply.status)
        if outcome.struck:
            endpoints.strike(endpoint)
        elif outcome.fate == "failed":
            endpoint.strikes = 0
        if outcome.fate == "busy" and self._waits(endpoint, reply, sent):
            return
        self._failed(asked, outcome.failure, latency)

    def _adapted(self, reply: Reply, asked: Sequence[int]) -> bool:
        """Does the endpoint want what was asked put otherwise? Then so it is from here on."""
        if self.renamed:
            return False
        named = unsupported(reply.status, reply.body)
        if named in OTHER_NAME:
            self.renamed = True  # once a job, lest two names be changed for ever
            self.engine.bodies.limit_name = OTHER_NAME[named]
            return True
        if len(asked) > 1 and reply.status in {400, 422}:
            self.engine.single_calls()
            return True
        return False

    def _waits(self, endpoint: Endpoint, reply: Reply, sent: float) -> bool:
        """The endpoint has too much: let it rest. Is the call made again?"""
        longest = self.engine.longest_wait
        asked = wait_asked(reply.headers)
        if asked is not None and asked > longest:
            raise EndpointError(
                f"the endpoint asks to wait for {asked:.0f} s", where=endpoint.shown,
                todo=f"run again then, or set longest_wait (now {longest:g} s)",
            )  # fmt: skip
        if shrunk := endpoint.window.pushed_back(sent, time.monotonic()):
            endpoint.busy += 1
            log.info("%s has too much: %.0f calls at once from here on", endpoint.shown, endpoint.window.size)
        wait = min(BUSY_PAUSE * 2 ** max(0, endpoint.busy - 1), LONGEST_BUSY_PAUSE) if asked is None else asked
        if shrunk and wait >= TOLD_PAUSE:
            log.warning("%s has too much (HTTP %d): asked again in %.3g s", endpoint.shown, reply.status, wait)
        self.ways.endpoints.hold(endpoint, wait)
        self.busy += 1
        return self.busy < BUSY_TRIES


# -------------------------------------------------------------------------------------------- who was billed for what


def whole(usage: Usage, choice: Choice) -> Usage:
    """The bill of a call for one answer; its tokens are counted where the endpoint does not say."""
    if usage.completion or not choice.tokens:
        return usage
    return usage._replace(completion=choice.tokens)


def shared(usage: Usage, choices: Sequence[Choice]) -> list[Usage]:
    """What a call was billed, shared out over its answers so that the sums stay exact.

    Prompt and cached tokens go out evenly. Tokens of an answer are its own where they were counted (log-probs came with
    all); else they go by length of text.
    """
    counted = [choice.tokens for choice in choices]
    if not usage.completion or (all(counted) and sum(counted) == usage.completion):
        completions = counted
    else:
        completions = by_weight(usage.completion, [len(choice.text.encode()) + 1 for choice in choices])
    even = [1] * len(choices)
    columns = by_weight(usage.prompt, even), completions, by_weight(usage.cached, even)
    return [Usage(*parts) for parts in zip(*columns, strict=True)]


def by_weight(total: int, weights: Sequence[int]) -> list[int]:
    """A whole number in parts as near to the weights as whole numbers come, with the same sum."""
    ends = [0, *(total * seen // sum(weights) for seen in itertools.accumulate(weights))]
    return [end - start for start, end in itertools.pairwise(ends)]
