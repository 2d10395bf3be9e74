"""Paid answers: asked once, kept at once, and taken from the store ever after.

`answer` is the one way from a request to a stored call. It works out each answer's key, takes what the store holds,
asks the engine for the rest and commits each answer before handing it on, so that a kill loses at most what is in the
making. Several threads may answer at once: with `Claims` in common, no question is paid for by two of them. Processes
have no claims in common: each looks again before it sends what it looked up a while ago, so that it takes what another
has stored meanwhile; only what two of them have under way at the same moment is paid for twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from factory import console, crash
from factory.budget import Budget, Spend, used, worst_case
from factory.engines import Burst, BurstEngine
from factory.schema import Call, Completion, Have, Request, call_keys, now

if TYPE_CHECKING:
    from datetime import datetime

    from factory.console import Progress
    from factory.engines import Engine
    from factory.store import Store

LOOKUP = 2000  # requests looked up at once
STREAMED = 64  # the same, while an engine answers those before
AGAIN = 1.0  # seconds after which the store is looked at again before something is sent

T = TypeVar("T")
Item = tuple[Request, int]  # a request and the index of one of its samples


class Answered(NamedTuple):
    """A request and the call that answers one of its samples. `reused`: nothing was paid for it now; it was held, or
    another request that is the same has paid."""

    request: Request
    call: Call
    reused: bool


class Claims:
    """Keys that are being asked for, shared by all that answer at the same time in this process.

    `ended` tells all of them to stop: each keeps what has come and gives no more.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._free = threading.Condition()
        self._taken: set[str] = set()

    def take(self, keys: Iterable[str]) -> set[str]:
        """Claim the keys that nobody has claimed; these."""
        with self._free:
            new = {key for key in keys if key not in self._taken}
            self._taken |= new
        return new

    def drop(self, keys: Iterable[str]) -> None:
        """Give up claims: what was asked for is in the store, or will not come."""
        with self._free:
            self._taken.difference_update(keys)
            self._free.notify_all()

    def wait(self, keys: Sequence[str]) -> None:
        """Until none of the keys is claimed, or the end."""
        with self._free:
            while not self.ended.is_set() and not self._taken.isdisjoint(keys):
                self._free.wait(0.2)

    def end(self) -> None:
        """Let all that answer stop."""
        self.ended.set()


def answer(
    store: Store,
    engine: Engine,
    requests: Sequence[Request],
    *,
    run: str,
    round: int,
    purpose: str,
    retry_failed: bool = False,
    attempts: int = 3,
    progress: Progress | None = None,
    claims: Claims | None = None,
    budget: Budget | None = None,
) -> Iterator[Answered]:
    """Yield the latest call of every (request, sample): those held in order, before the engine is asked (or, where it
    takes requests as it has room for them, as they are come upon), the new ones as they finish.

    A passing failure is asked again, `attempts` times in all; a permanent one that is held only with `retry_failed`.
    Equal requests are asked once and answered each; of those that differ in max_tokens alone the longest is asked
    first, and the others take its answer where it ended within their limit. Raises what the engine raises when it
    cannot go on (EndpointError), and BudgetError when `budget`, which counts what the run has paid for before, has room
    for no further answer; all that was answered until then is stored.
    """
    asking = _Asking(store, engine, requests, run, round, purpose, claims or Claims(), budget, retry_failed)
    for found in asking.all(attempts):
        if progress is not None:
            _report(progress, found)
        yield found


def unheld(
    store: Store, engine: Engine, requests: Sequence[Request], *, retry_failed: bool = False
) -> tuple[int, list[Request]]:
    """How many different answers the requests want, and the request of each one that `answer` would ask for now. A
    shorter limit of a question that is also asked with a longer one is not counted: the longer answer may do."""
    asking = _Asking(store, engine, requests, "", 0, "", Claims(), None, retry_failed)
    for _ in asking._coming(LOOKUP):
        asking.found.clear()
    return len(asking.items), [asking.items[key][0][0] for key in asking.items if key in asking.open]


def reusable(call: Call, request: Request) -> bool:
    """Does a held answer also answer this request? It ended by itself within the limit, or at the very same limit."""
    if call.failure is not None:
        return False
    limit = request.sampling.max_tokens
    if call.finish_reason == "stop":
        return call.completion_tokens <= limit
    return bool(call.sampling["max_tokens"] == limit)


class _Asking:
    """The answers wanted in one `answer`, by key: what is still open, and how often each was tried before."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        requests: Sequence[Request],
        run: str,
        round: int,
        purpose: str,
        claims: Claims,
        budget: Budget | None,
        retry_failed: bool = False,
    ) -> None:
        self.store, self.engine, self.claims, self.budget = store, engine, claims, budget
        self.run, self.round, self.purpose, self.retry_failed = run, round, purpose, retry_failed
        self.identity = engine.identity
        self.items: dict[str, list[Item]] = {}  # by key, who has no answer yet
        self.owned: dict[tuple[int, int], str] = {}  # the request object that is asked for a key: the first that has it
        self.requests: list[Request] = []
        self.shorter: list[Request] = []  # another request asks the same with a longer limit: that one comes first
        self.keyed = self._keyed(requests)
        self.open: set[str] = set()
        self.others: dict[str, None] = {}  # keys that somebody else is asking for
        self.found: list[Answered] = []  # held, to be handed on
        self.final: dict[str, Call] = {}  # the last word here on a key that its row would let be asked again
        self.given: set[int] = set()  # request objects that the engine has been given
        self.wanted: Collection[str] = self.open  # what is being asked for
        self.reserved: dict[str, Spend] = {}  # the same, where there is a budget, with what it has for each
        self.tried: dict[str, int] = {}
        self.looked = 0.0  # monotonic time of the last lookup of many

    def _keyed(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[str]]]:
        """The requests to begin with, and their keys. They are made as they are wanted; at once, where limits differ:
        the longest to the same question has to be known."""
        keyed = ((request, call_keys(self.identity, self.engine.render(request), request)) for request in requests)
        if len({request.sampling.max_tokens for request in requests}) < 2:
            return keyed
        longest: dict[str, int] = {}
        for request, keys in (all_keyed := list(keyed)):
            longest |= {key: max(request.sampling.max_tokens, longest.get(key, 0)) for key in keys}
        first = []
        for request, keys in all_keyed:
            if all(longest[key] == request.sampling.max_tokens for key in keys):
                first.append((request, keys))
            else:
                self.shorter.append(request)
        return iter(first)

    def all(self, attempts: int) -> Iterator[Answered]:
        """Every answer, then those to the shorter limits."""
        streams = self.budget is None and attempts > 0 and getattr(self.engine, "streams", False)
        try:
            if streams:
                yield from self._ask(self.open, self._coming(STREAMED), last=attempts == 1)
            else:
                for _ in self._coming(LOOKUP):
                    yield from self._handed_on()
                yield from self._handed_on()
            yield from self._ask_open(range(int(streams), attempts))
            while self.others and not self.claims.ended.is_set():
                self.claims.wait(list(self.others))
                keys, self.others = list(self.others), {}
                for some in _chunks(keys, LOOKUP):
                    self._look(some)
                    yield from self._handed_on()
                yield from self._ask_open(range(attempts))
        finally:
            self.claims.drop(self.open)
        if self.shorter:
            again = (self.store, self.engine, self.shorter, self.run, self.round, self.purpose, self.claims,
                     self.budget, self.retry_failed)  # fmt: skip
            yield from _Asking(*again).all(attempts)

    def _ask_open(self, tries: range) -> Iterator[Answered]:
        for number in tries:
            if self.open and not self.claims.ended.is_set():
                yield from self._ask_in_budget(last=number == tries[-1])

    def _coming(self, at_once: int) -> Iterator[Request]:
        """Enter the requests, so many at once, and look up what is held; then give each object once, also those for
        which there is nothing to ask, so that what was found is handed on meanwhile."""
        for some in _chunks(self.keyed, at_once):
            if self.claims.ended.is_set():
                return
            self._look(self._enter(some))
            for request, _ in some:
                if id(request) not in self.given:
                    self.given.add(id(request))
                    yield request

    def _enter(self, keyed: Iterable[tuple[Request, list[str]]]) -> list[str]:
        """Enter requests; the keys to look up: those that are neither open nor somebody else's."""
        unknown: dict[str, None] = {}
        for request, keys in keyed:
            first = len(self.owned)
            for sample, key in enumerate(keys):
                if key not in self.items:
                    self.items[key] = []
                    self.owned[id(request), sample] = key
                self.items[key].append((request, sample))
                if key not in self.open and key not in self.others:
                    unknown[key] = None
            if len(self.owned) > first:
                self.requests.append(request)
        return list(unknown)

    def _look(self, keys: Sequence[str]) -> None:
        """The calls that need not be asked for are `found`. What somebody else is asking for goes to `others`; every
        other key is open from here on."""
        mine = self.claims.take(keys)
        self.open |= mine  # until the lookup says better, so that an end gives them up
        self.others |= {key: None for key in keys if key not in mine}
        latest = self.store.latest_calls(mine) if mine else {}
        self.looked = time.monotonic()
        held = {k: call for k, call in latest.items() if _stands(call, self.items[k][0][0], self.retry_failed)}
        held |= self._fitting(latest)
        held |= {key: self.final[key] for key in mine & self.final.keys()}
        self.tried |= {key: call.attempt for key, call in latest.items()}
        self._settle(held)
        for key in keys:
            if key in held:
                self.found += [Answered(request, held[key], True) for request, _ in self._answered(key)]

    def _handed_on(self) -> Iterator[Answered]:
        found, self.found = self.found, []
        yield from found

    def _answered(self, key: str) -> list[Item]:
        """Who asked for it; from here on nobody waits for it."""
        items, self.items[key] = self.items[key], []
        return items

    def _settle(self, keys: Iterable[str]) -> None:
        self.open.difference_update(keys)
        self.claims.drop(keys)

    def _fitting(self, latest: Mapping[str, Call]) -> dict[str, Call]:
        """Earlier answers that fit where the latest is one to another limit: what was paid for is not paid again."""
        again = [key for key, call in latest.items() if call.attempt > 1 and not reusable(call, self.items[key][0][0])]
        found: dict[str, Call] = {}
        for call in self.store.rows(Call, {"key": again}) if again else ():
            best = found.get(call.key)
            if reusable(call, self.items[call.key][0][0]) and (best is None or best.attempt < call.attempt):
                found[call.key] = call
        return found

    def _ask_in_budget(self, *, last: bool) -> Iterator[Answered]:
        """`_ask`, for as much at a time as the budget has room for."""
        budget = self.budget
        if budget is None:
            yield from self._ask(self.open, self.requests, last=last)
            return
        budget.open(self.store, self.engine, self.run)
        todo = [key for key in self.items if key in self.open]
        while todo and not self.claims.ended.is_set():
            worst = [worst_case(self.engine, self.items[key][0][0]) for key in todo]
            count = budget.reserve(worst, self.claims.ended.is_set)
            self.reserved = dict(zip(todo[:count], worst, strict=False))
            try:
                yield from self._ask(self.reserved, self.requests, last=last)
            finally:
                budget.release(list(self.reserved.values()))
                self.reserved = {}
            todo = todo[count:]

    def _ask(self, wanted: Collection[str], requests: Iterable[Request], *, last: bool) -> Iterator[Answered]:
        """Ask for all that is wanted; yield what is settled. A passing failure stays open unless this is the last try.
        `wanted` shrinks as it is settled, and grows where `requests` are entered as they are taken."""
        self.wanted = wanted
        asked: set[str] = set()
        with closing(_bursts(self.engine, requests, self._have)) as bursts:
            for burst in bursts:
                settled: list[tuple[str, Call]] = []
                for part in burst.parts() if isinstance(burst, Burst) else [burst]:
                    settled += self._keep(part, asked, last=last)
                yield from self._handed_on()
                for key, call in settled:
                    for copy, (request, _) in enumerate(self._answered(key)):
                        yield Answered(request, call, copy > 0)
                if self.claims.ended.is_set():
                    return
        yield from self._handed_on()
        if unanswered := len(set(wanted) - asked):
            raise RuntimeError(f"the {self.identity.kind} engine left {unanswered} requests without any answer")

    def _keep(self, burst: Iterable[Completion], asked: set[str], *, last: bool) -> list[tuple[str, Call]]:
        """Store what has come, each key once; what is settled by it."""
        new = [(key, completion) for key, completion in self._wanted(burst) if key not in asked]
        asked.update(key for key, _ in new)
        settled = [(key, call) for key, call in self._store(new) if last or not call.passing]
        self._settle([key for key, _ in settled])
        self.final |= {key: call for key, call in settled if not reusable(call, self.items[key][0][0])}
        return settled

    def _have(self, request: Request, sample: int) -> bool:
        key = self.owned.get((id(request), sample))
        if key is None or key not in self.wanted:
            return True
        return time.monotonic() - self.looked >= AGAIN and self._came_meanwhile(key)

    def _came_meanwhile(self, key: str) -> bool:
        """Has another process stored the answer since the lookup? Then it is `found`, and not asked for any more."""
        call = self.store.latest_calls([key]).get(key)
        if call is None or not _stands(call, self.items[key][0][0], self.retry_failed):
            return False
        self._settle([key])
        if key in self.reserved and self.budget is not None:
            self.budget.release([self.reserved.pop(key)])
        self.found += [Answered(request, call, True) for request, _ in self._answered(key)]
        return True

    def _wanted(self, burst: Iterable[Completion]) -> Iterator[tuple[str, Completion]]:
        for completion in burst:
            key = self.owned.get((id(completion.request), completion.sample))
            if key is not None and key in self.wanted:
                yield key, completion

    def _bill(self, new: Iterable[tuple[str, Completion]]) -> None:
        if self.budget is None:
            return
        for key, completion in new:
            self.budget.settle(self.reserved.pop(key), used(self.engine, completion))

    def _store(self, new: Sequence[tuple[str, Completion]]) -> list[tuple[str, Call]]:
        """Commit the answers together; where another process was faster, its answer counts."""
        if not new:
            return []
        at = now()
        calls = {key: self._call(key, completion, at) for key, completion in new}
        if self.store.append(Call.TABLE, calls.values()) < len(calls):
            calls |= self.store.latest_calls(calls)
        self._bill(new)
        crash.point("calls.after_append")
        self.tried |= {key: call.attempt for key, call in calls.items()}
        return list(calls.items())

    def _call(self, key: str, completion: Completion, at: datetime) -> Call:
        request, failure, identity = completion.request, completion.failure, self.identity
        sampling = request.sampling
        return Call(
            key=key,
            attempt=self.tried.get(key, 0) + 1,
            run=self.run,
            round=self.round,
            purpose=self.purpose,
            engine=identity.kind,
            model=identity.model,
            model_hash=identity.content,
            tag=request.tag,
            messages=request.messages,
            sampling={
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "max_tokens": sampling.max_tokens,
                "stop": list(sampling.stop),
            },
            sample=completion.sample,
            seed=request.seed,
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            logprob=completion.logprob,
            answer_logprobs=None if completion.answer_logprobs is None else dict(completion.answer_logprobs),
            cost=completion.cost,
            latency=completion.latency,
            failure=None if failure is None else failure.kind,
            failure_detail=None if failure is None else failure.detail,
            passing=failure is not None and failure.passing,
            at=at,
        )


def _stands(call: Call, request: Request, retry_failed: bool) -> bool:
    """Is a held call the last word on its key?"""
    if call.failure is not None:
        return not call.passing and not retry_failed
    return reusable(call, request)


def _chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    waiting = iter(values)
    while some := list(islice(waiting, size)):
        yield some


def _bursts(engine: Engine, requests: Iterable[Request], have: Have) -> Generator[list[Completion]]:
    if isinstance(engine, BurstEngine):
        yield from engine.bursts(requests, have)
    else:
        yield from ([completion] for completion in engine.generate(requests, have))


def _report(progress: Progress, found: Answered) -> None:
    failed, tokens = int(found.call.failure is not None), 0 if found.reused else found.call.completion_tokens
    if not found.reused:
        console.pay(progress, found.call.cost)
    progress.advance(1, failed=failed, reused=int(found.reused), tokens=tokens)
