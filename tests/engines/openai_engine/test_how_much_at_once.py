"""How many calls the openai engine has in flight, what it takes of the requests meanwhile, and at what pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from aiohttp import web
from asked import Serve, ask, engine_for
from fault_server import FaultServer, after, error, good

from factory.engines import Burst, attempts
from factory.engines.flights import TOGETHER
from factory.engines.openai import AT_ONCE
from factory.schema import Request, Sampling


def test_calls_in_flight_are_bounded_and_slots_wait_for_the_caller(serve: Serve) -> None:
    """A slot is free for the next call only when the caller has come back for more."""
    server = serve(after(0.02, good))
    bursts = engine_for(server, concurrency=3).bursts([ask(n=12)])
    first = next(bursts)
    time.sleep(0.3)
    assert len(server.seen) == 3
    assert len(first) + sum(map(len, bursts)) == 12
    assert server.most_at_once == 3


def test_requests_are_taken_as_there_is_room_for_them(serve: Serve) -> None:
    """The first call goes out when the first requests are there; no more are taken than fill the slots once over, and
    the chunk that was begun."""
    server, taken = serve(after(0.02, good)), []

    def coming() -> Iterator[Request]:
        for number in range(1000):
            taken.append(number)
            yield ask(f"tea {number}")

    with closing(engine_for(server, concurrency=4).bursts(coming())) as bursts:
        assert sum(len(next(bursts)) for _ in range(3)) <= 12
        time.sleep(0.2)
        assert len(taken) <= 2 * AT_ONCE


def test_requests_that_fail_to_come_are_a_fault_when_the_others_have_landed(serve: Serve) -> None:
    def coming(count: int) -> Iterator[Request]:
        for number in range(count):
            yield ask(f"tea {number}")
        raise LookupError("no more")

    engine, got = engine_for(serve(after(0.01, good)), concurrency=8), []

    def take(count: int) -> None:
        for burst in engine.bursts(coming(count)):
            got.extend(burst)

    with pytest.raises(LookupError, match="no more"):
        take(0)
    assert got == []
    with pytest.raises(LookupError, match="no more"):
        take(2 * AT_ONCE)
    assert len(got) == 2 * AT_ONCE


def test_slots_are_filled_again_part_by_part(serve: Serve) -> None:
    """Those of the first part while the second is stored; what nobody has stored keeps its slots."""
    slots = 3 * TOGETHER
    server = serve(after(0.1, good))
    bursts = engine_for(server, concurrency=slots).bursts([ask(n=3 * slots)])
    few, burst = 0, next(bursts)
    while len(burst) <= TOGETHER:
        few, burst = few + len(burst), next(bursts)
    assert isinstance(burst, Burst)
    parts = burst.parts()
    first, _ = next(parts), next(parts)
    time.sleep(0.3)
    assert len(first) == TOGETHER
    assert len(server.seen) == slots + few + TOGETHER
    assert few + len(burst) + sum(map(len, bursts)) == 3 * slots


def test_a_caller_has_its_turn_when_nothing_comes(serve: Serve) -> None:
    with closing(engine_for(serve("hang")).bursts([ask()])) as bursts:
        assert next(bursts) == []


def test_threads_share_the_limit_and_get_their_own(serve: Serve) -> None:
    server = serve(after(0.01, good))
    engine = engine_for(server, concurrency=4)
    got: dict[str, list[str]] = {}

    def run(name: str) -> None:
        got[name] = [completion.text for completion in engine.generate([ask(name, n=20)])]

    threads = [threading.Thread(target=run, args=(name,)) for name in ("tea", "salt", "bread")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most_at_once == 4
    assert {name: (len(texts), {text.split("/")[0] for text in texts}) for name, texts in got.items()} == {
        name: (20, {name}) for name in ("tea", "salt", "bread")
    }


def test_fewer_calls_are_made_at_once_where_there_is_too_much(serve: Serve) -> None:
    """The endpoint takes four at once. All rows are answered in the end, and the window has shrunk towards that."""

    async def four(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        if server.at_once > 4:
            return await error(429)(body, server)
        return await after(0.01, good)(body, server)

    server = serve(four)
    engine = engine_for(server, concurrency=32)
    bursts = engine.bursts([ask(n=200)])
    completions = [completion for burst in bursts for completion in burst]
    assert [completion.failure for completion in completions] == [None] * 200
    assert engine._traffic is not None
    (endpoint,) = engine._traffic.ways.endpoints.every
    assert 1 <= endpoint.window.size < 16
    assert len(server.seen) < 600


def test_more_calls_are_made_at_once_again_when_they_are_served(serve: Serve) -> None:
    """The window grows back by one for each window served, while all other calls wait for it."""
    first = [error(429)] * 8

    async def better_later(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        if first:
            return await first.pop()(body, server)
        server.most_at_once = max(server.at_once, server.most_at_once if len(server.seen) > 20 else 0)
        return await after(0.005, good)(body, server)

    server = serve(better_later)
    completions = list(engine_for(server, concurrency=16).generate([ask(n=300)]))
    assert [completion.failure for completion in completions] == [None] * 300
    assert server.most_at_once >= 12


def test_a_person_is_told_of_long_waits_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An endpoint that has too much for ever: pauses of 0.02, 0.04, 0.08 ... s; those of 0.08 s and more are told."""
    monkeypatch.setattr(attempts, "BUSY_PAUSE", 0.02)
    monkeypatch.setattr(attempts, "TOLD_PAUSE", 0.08)
    server = serve(error(429))
    [completion] = engine_for(server, concurrency=1).generate([ask()])
    assert completion.failure is not None
    assert completion.failure.kind == "rate_limited"
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    waits = ("0.08", "0.16", "0.32", "0.64")
    assert told == [f"{server.url} has too much (HTTP 429): asked again in {wait} s" for wait in waits]


def test_a_pace_is_kept(serve: Serve) -> None:
    """600 a minute: 4 more than fit at once take at least 0.35 s; 60,000 tokens a minute: calls foreseen with 500."""
    for options in ({"requests_per_minute": 600}, {"tokens_per_minute": 60_000}):
        server = serve(good)
        sampling = Sampling(max_tokens=480)
        count = 14 if "requests_per_minute" in options else 6
        began = time.monotonic()
        completions = list(engine_for(server, **options).generate([ask("tea", n=count, sampling=sampling)]))
        assert [completion.failure for completion in completions] == [None] * count
        assert time.monotonic() - began >= 0.35 or "tokens_per_minute" in options
