"""Ends of the openai engine and of its iterations: closed early, closed while asked, forgotten, stopped by a fault."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import closing
from typing import Any

import pytest
from aiohttp import web
from asked import Serve, ask, engine_for
from fault_server import FaultServer, after, answered, error, good, in_turn

from factory.faults import EndpointError
from factory.schema import Completion


def test_closing_early_cancels_what_is_in_flight(serve: Serve) -> None:
    async def one_then_never(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        if len(server.seen) > 1:
            await asyncio.sleep(60)
        return web.json_response(answered())

    server = serve(one_then_never)
    before = set(threading.enumerate())
    engine = engine_for(server, concurrency=4, timeout=60)
    with closing(engine.generate([ask(n=40)])) as completions:
        assert next(completions).text == "fine"  # type: ignore[call-overload]
    engine.close()
    assert not set(threading.enumerate()) - before
    assert len(server.seen) <= 4


def test_closing_early_gives_its_slots_back(serve: Serve) -> None:
    engine = engine_for(serve(after(0.01, good)), concurrency=2)
    for _ in range(3):
        with closing(engine.generate([ask(n=10)])) as completions:
            next(completions)  # type: ignore[call-overload]
    assert len(list(engine.generate([ask(n=10)]))) == 10


def test_an_engine_that_is_closed_while_it_is_asked_says_so(serve: Serve) -> None:
    engine = engine_for(serve("hang"))
    with closing(engine.bursts([ask()])) as bursts:
        assert next(bursts) == []
        engine.close()
        with pytest.raises(RuntimeError, match="closed while it was asked"):
            list(bursts)


def test_an_iteration_that_the_collector_ends_in_the_loops_thread_ends_there(serve: Serve) -> None:
    """Nobody waits in the loop's thread for the loop."""
    engine = engine_for(serve("hang"))
    bursts = engine.bursts([ask()])
    assert next(bursts) == []
    assert engine._traffic is not None

    async def drop() -> None:
        bursts.close()

    asyncio.run_coroutine_threadsafe(drop(), engine._traffic.line.loop).result(5)
    engine.close()


def test_a_closed_engine_may_be_used_again_and_a_forgotten_one_ends_its_thread(serve: Serve) -> None:
    before = set(threading.enumerate())
    server = serve(good)
    known = set(threading.enumerate())
    engine = engine_for(server)
    for _ in range(2):
        assert [completion.failure for completion in engine.generate([ask()])] == [None]
        engine.close()
    assert [completion.failure for completion in engine.generate([ask()])] == [None]
    (thread,) = set(threading.enumerate()) - known - before
    del engine
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_what_was_under_way_lands_before_the_end(serve: Serve) -> None:
    """The third call is refused the credentials while the first two are still being answered: these are paid for, and
    come first."""

    async def late(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        if len(server.seen) <= 2:
            return await after(0.2, good)(body, server)
        return await error(401)(body, server)

    got: list[Completion] = []
    with pytest.raises(EndpointError, match="credentials"):
        got.extend(engine_for(serve(late), concurrency=3).generate([ask(n=50)]))
    assert [completion.failure for completion in got] == [None, None]


def test_answers_that_came_before_the_end_are_handed_over(serve: Serve) -> None:
    server = serve(in_turn(good, good, error(401)))
    got: list[Completion] = []

    def take() -> None:
        for completion in engine_for(server, concurrency=1).generate([ask(n=5)]):
            got.append(completion)
            time.sleep(0.05)

    with pytest.raises(EndpointError):
        take()
    assert [completion.sample for completion in got] == [0, 1]
