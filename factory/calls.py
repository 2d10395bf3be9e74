"""Paid answers: asked once, kept at once, and taken from the store ever after.

`answer` is the one way from a request to a stored call. It works out each answer's key, takes what the store holds,
asks the engine for the rest and commits each answer before handing it on, so that a kill loses at most what is in the
making. Several threads may answer at once: with `Claims` in common, no question is paid for by two of them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from factory import crash
from factory.budget import Budget, Spend, used, worst_case
from factory.engines import BurstEngine
from factory.schema import Call, Completion, Have, Request, call_keys, now

if TYPE_CHECKING:
    from factory.console import Progress
    from factory.engines import Engine
    from factory.store import Store

LOOKUP = 2000  # keys looked up at once

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
) -> Iterator[tuple[Request, Call]]:
    """Yield the latest call of every (request, sample): first those held, in order, then the new ones as they finish.

    A passing failure is asked again, `attempts` times in all; a permanent one that is held only with `retry_failed`.
    Equal requests are asked once and answered each; of those that differ in max_tokens alone the longest is asked
    first, and the others take its answer where it ended within their limit. Raises what the engine raises when it
    cannot go on (EndpointError), and BudgetError when `budget`, which counts what the run has paid for before, has room
    for no further answer; all that was answered until then is stored.
    """
    for request, call, _ in answered(
        store,
        engine,
        requests,
        run=run,
        round=round,
        purpose=purpose,
        retry_failed=retry_failed,
        attempts=attempts,
        progress=progress,
        claims=claims,
        budget=budget,
    ):
        yield request, call


def answered(
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
    """`answer`, with word of what each answer cost now."""
    asking = _Asking(store, engine, requests, run, round, purpose, claims or Claims(), budget)
    for found in asking.all(retry_failed, attempts):
        if progress is not None:
            _report(progress, found)
        yield found


def unheld(
    store: Store, engine: Engine, requests: Sequence[Request], *, retry_failed: bool = False
) -> tuple[int, list[Request]]:
    """How many different answers the requests want, and the request of each one that `answer` would ask for now. A
    shorter limit of a question that is also asked with a longer one is not counted: the longer answer may do."""
    asking = _Asking(store, engine, requests, "", 0, "", Claims(), None)
    for _ in asking._held(list(asking.items), retry_failed, []):
        pass
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
    ) -> None:
        self.store, self.engine, self.claims, self.budget = store, engine, claims, budget
        self.run, self.round, self.purpose = run, round, purpose
        self.identity = engine.identity
        self.items: dict[str, list[Item]] = {}
        self.owned: dict[tuple[int, int], str] = {}  # the request object that is asked for a key: the first that has it
        self.requests: list[Request] = []
        self.shorter: list[Request] = []  # another request asks the same with a longer limit: that one comes first
        keyed = [(request, call_keys(self.identity, engine.render(request), request)) for request in requests]
        longest: dict[str, int] = {}
        for request, keys in keyed:
            longest |= {key: max(request.sampling.max_tokens, longest.get(key, 0)) for key in keys}
        for request, keys in keyed:
            if all(longest[key] == request.sampling.max_tokens for key in keys):
                self._enter(request, keys)
            else:
                self.shorter.append(request)
        self.open: set[str] = set()
        self.wanted: Collection[str] = self.open  # what is being asked for
        self.reserved: dict[str, Spend] = {}  # the same, where there is a budget, with what it has for each
        self.tried: dict[str, int] = {}

    def _enter(self, request: Request, keys: Iterable[str]) -> None:
        first = len(self.owned)
        for sample, key in enumerate(keys):
            if key not in self.items:
                self.owned[id(request), sample] = key
            self.items.setdefault(key, []).append((request, sample))
        if len(self.owned) > first:
            self.requests.append(request)

    def all(self, retry_failed: bool, attempts: int) -> Iterator[Answered]:
        """Every answer, then those to the shorter limits."""
        keys = list(self.items)
        try:
            while keys and not self.claims.ended.is_set():
                others: list[str] = []
                yield from self._held(keys, retry_failed, others)
                for number in range(attempts):
                    if self.open and not self.claims.ended.is_set():
                        yield from self._ask_in_budget(last=number == attempts - 1)
                self.claims.wait(others)
                keys = others
        finally:
            self.claims.drop(self.open)
        if self.shorter:
            again = (
                self.store,
                self.engine,
                self.shorter,
                self.run,
                self.round,
                self.purpose,
                self.claims,
                self.budget,
            )
            yield from _Asking(*again).all(retry_failed, attempts)

    def _held(self, keys: Iterable[str], retry_failed: bool, others: list[str]) -> Iterator[Answered]:
        """The calls that need not be asked for. What somebody else is asking for goes to `others`; every other key is
        open from here on."""
        waiting = iter(keys)
        while some := list(islice(waiting, LOOKUP)):
            mine = self.claims.take(some)
            self.open |= mine  # until the lookup says better, so that an end gives them up
            others.extend(key for key in some if key not in mine)
            latest = self.store.latest_calls(mine) if mine else {}
            held = {k: call for k, call in latest.items() if _stands(call, self.items[k][0][0], retry_failed)}
            held |= self._fitting(latest)
            self.tried |= {key: call.attempt for key, call in latest.items()}
            self._settle(held)
            for key in some:
                if key in held:
                    yield from (Answered(request, held[key], True) for request, _ in self.items[key])

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
            yield from self._ask(self.open, last=last)
            return
        budget.open(self.store, self.engine, self.run)
        todo = [key for key in self.items if key in self.open]
        while todo and not self.claims.ended.is_set():
            worst = [worst_case(self.engine, self.items[key][0][0]) for key in todo]
            count = budget.reserve(worst, self.claims.ended.is_set)
            self.reserved = dict(zip(todo[:count], worst, strict=False))
            try:
                yield from self._ask(self.reserved, last=last)
            finally:
                budget.release(list(self.reserved.values()))
                self.reserved = {}
            todo = todo[count:]

    def _ask(self, wanted: Collection[str], *, last: bool) -> Iterator[Answered]:
        """Ask for all that is wanted; yield what is settled. A passing failure stays open unless this is the last try.
        `wanted` shrinks as it is settled."""
        self.wanted = wanted
        answered: set[str] = set()
        with closing(_bursts(self.engine, self.requests, self._have)) as bursts:
            for burst in bursts:
                new = [(key, completion) for key, completion in self._wanted(burst) if key not in answered]
                answered.update(key for key, _ in new)
                settled = [(key, call) for key, call in self._store(new) if last or not call.passing]
                self._settle([key for key, _ in settled])
                for key, call in settled:
                    for copy, (request, _) in enumerate(self.items[key]):
                        yield Answered(request, call, copy > 0)
                if self.claims.ended.is_set():
                    return
        if unanswered := len(set(wanted) - answered):
            raise RuntimeError(f"the {self.identity.kind} engine left {unanswered} requests without any answer")

    def _have(self, request: Request, sample: int) -> bool:
        return self.owned.get((id(request), sample)) not in self.wanted

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
        calls = {key: self._call(key, completion) for key, completion in new}
        if self.store.append(Call.TABLE, calls.values()) < len(calls):
            calls |= self.store.latest_calls(calls)
        self._bill(new)
        crash.point("calls.after_append")
        self.tried |= {key: call.attempt for key, call in calls.items()}
        return list(calls.items())

    def _call(self, key: str, completion: Completion) -> Call:
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
            at=now(),
        )


def _stands(call: Call, request: Request, retry_failed: bool) -> bool:
    """Is a held call the last word on its key?"""
    if call.failure is not None:
        return not call.passing and not retry_failed
    return reusable(call, request)


def _bursts(engine: Engine, requests: Sequence[Request], have: Have) -> Generator[list[Completion]]:
    if isinstance(engine, BurstEngine):
        yield from engine.bursts(requests, have)
    else:
        yield from ([completion] for completion in engine.generate(requests, have))


def _report(progress: Progress, found: Answered) -> None:
    failed, tokens = int(found.call.failure is not None), 0 if found.reused else found.call.completion_tokens
    progress.advance(1, failed=failed, reused=int(found.reused), tokens=tokens)
