"""Paid answers: asked once, kept at once, and taken from the store ever after.

`answer` is the one way from a request to a stored call. It works out each answer's key, takes what the store holds,
asks the engine for the rest and commits each answer before handing it on, so that a kill loses at most what is in the
making.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

from factory import crash
from factory.engines import BurstEngine
from factory.schema import Call, Completion, Have, Request, call_key, now

if TYPE_CHECKING:
    from factory.console import Progress
    from factory.engines import Engine
    from factory.store import Store

LOOKUP = 2000  # keys looked up at once

Item = tuple[Request, int]  # a request and the index of one of its samples


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
) -> Iterator[tuple[Request, Call]]:
    """Yield the latest call of every (request, sample): first those held, in order, then the new ones as they finish.

    A passing failure is asked again, `attempts` times in all; a permanent one that is held only with `retry_failed`.
    Equal requests are asked once and answered each. Raises what the engine raises when it cannot go on (EndpointError);
    all that was answered until then is stored.
    """
    asking = _Asking(store, engine, requests, run, round, purpose)
    for request, call in asking.held(retry_failed):
        _report(progress, call, reused=True)
        yield request, call
    for number in range(attempts):
        if not asking.open:
            return
        for key, call in asking.ask(last=number == attempts - 1):
            for copy, (request, _) in enumerate(asking.items[key]):
                _report(progress, call, reused=copy > 0)
                yield request, call


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
        self, store: Store, engine: Engine, requests: Sequence[Request], run: str, round: int, purpose: str
    ) -> None:
        self.store, self.engine = store, engine
        self.run, self.round, self.purpose = run, round, purpose
        self.items: dict[str, list[Item]] = {}
        self.owned: dict[tuple[int, int], str] = {}  # the request object that is asked for a key: the first that has it
        self.requests: list[Request] = []
        for request in requests:
            self._enter(request)
        self.open: set[str] = set()
        self.tried: dict[str, int] = {}

    def _enter(self, request: Request) -> None:
        rendered = self.engine.render(request)
        first = len(self.owned)
        for sample in range(request.n):
            key = call_key(self.engine.identity, rendered, request, sample)
            if key not in self.items:
                self.owned[id(request), sample] = key
            self.items.setdefault(key, []).append((request, sample))
        if len(self.owned) > first:
            self.requests.append(request)

    def held(self, retry_failed: bool) -> Iterator[tuple[Request, Call]]:
        """The calls that need not be asked for; every other key is open from here on."""
        waiting = iter(self.items)
        while keys := list(islice(waiting, LOOKUP)):
            latest = self.store.latest_calls(keys)
            fitting = self._fitting(latest)
            for key in keys:
                call = latest.get(key)
                if key in fitting:
                    yield from ((request, fitting[key]) for request, _ in self.items[key])
                elif call is None or not _stands(call, self.items[key][0][0], retry_failed):
                    self.open.add(key)
                    self.tried[key] = 0 if call is None else call.attempt
                else:
                    yield from ((request, call) for request, _ in self.items[key])

    def _fitting(self, latest: Mapping[str, Call]) -> dict[str, Call]:
        """Earlier answers that fit where the latest is one to another limit: what was paid for is not paid again."""
        again = [key for key, call in latest.items() if call.attempt > 1 and not reusable(call, self.items[key][0][0])]
        found: dict[str, Call] = {}
        for call in self.store.rows(Call, {"key": again}) if again else ():
            best = found.get(call.key)
            if reusable(call, self.items[call.key][0][0]) and (best is None or best.attempt < call.attempt):
                found[call.key] = call
        return found

    def ask(self, *, last: bool) -> Iterator[tuple[str, Call]]:
        """Ask for all that is open; yield what is settled. A passing failure stays open unless this is the last try."""
        answered: set[str] = set()
        with closing(_bursts(self.engine, self.requests, self._have)) as bursts:
            for burst in bursts:
                new = [(key, completion) for key, completion in self._wanted(burst) if key not in answered]
                answered.update(key for key, _ in new)
                for key, call in self._store(new):
                    if call.passing and not last:
                        continue
                    self.open.discard(key)
                    yield key, call
        if unanswered := len(self.open - answered):
            raise RuntimeError(f"the {self.engine.identity.kind} engine left {unanswered} requests without any answer")

    def _have(self, request: Request, sample: int) -> bool:
        return self.owned.get((id(request), sample)) not in self.open

    def _wanted(self, burst: Iterable[Completion]) -> Iterator[tuple[str, Completion]]:
        for completion in burst:
            key = self.owned.get((id(completion.request), completion.sample))
            if key in self.open:
                yield key, completion

    def _store(self, new: Sequence[tuple[str, Completion]]) -> list[tuple[str, Call]]:
        """Commit the answers together; where another process was faster, its answer counts."""
        if not new:
            return []
        calls = {key: self._call(key, completion) for key, completion in new}
        if self.store.append(Call.TABLE, calls.values()) < len(calls):
            calls |= self.store.latest_calls(calls)
        crash.point("calls.after_append")
        self.tried |= {key: call.attempt for key, call in calls.items()}
        return list(calls.items())

    def _call(self, key: str, completion: Completion) -> Call:
        request, failure, identity = completion.request, completion.failure, self.engine.identity
        return Call(
            key=key,
            attempt=self.tried[key] + 1,
            run=self.run,
            round=self.round,
            purpose=self.purpose,
            engine=identity.kind,
            model=identity.model,
            model_hash=identity.content,
            tag=request.tag,
            messages=request.messages,
            sampling=asdict(request.sampling) | {"stop": list(request.sampling.stop)},
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


def _report(progress: Progress | None, call: Call, *, reused: bool) -> None:
    if progress is not None:
        progress.advance(
            1, failed=int(call.failure is not None), reused=int(reused), tokens=0 if reused else call.completion_tokens
        )
