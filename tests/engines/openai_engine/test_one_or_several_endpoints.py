"""Whose turn it is of several endpoints, and what becomes of a run when one is dead, gone or back again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from asked import Serve, ask, engine_for, failure_of
from fault_server import FaultServer, after, good, in_turn, reset

from factory.calls import answer
from factory.engines.endpoints import STRIKES
from factory.engines.openai import OpenAIEngine
from factory.faults import ConfigError, EndpointError
from factory.store import Store


def test_equal_endpoints_are_asked_in_turn(serve: Serve) -> None:
    """No answer comes before all six calls of a wave have: who is quick on a busy machine decides nothing."""
    arrived: list[FaultServer] = []

    async def all_together(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        arrived.append(server)
        whole = -(-len(arrived) // 6) * 6
        while len(arrived) < whole:
            await asyncio.sleep(0.001)
        return await good(body, server)

    servers = [serve(all_together) for _ in range(3)]
    completions = list(engine_for(*servers, concurrency=6).generate([ask(n=60)]))
    assert [completion.failure for completion in completions] == [None] * 60
    assert [len(server.seen) for server in servers] == [20, 20, 20]


def test_a_key_depends_on_no_endpoint_of_a_set() -> None:
    one, other = "http://a/v1", "http://b/v1"
    sets = [[one, other], [other, one], f"{one}, {other}", [one, other, "http://c/v1"], one]
    assert len({OpenAIEngine("m", base_url=base_url, name="pool").identity for base_url in sets}) == 1
    assert OpenAIEngine("m", base_url=[one, other], name=one).identity == OpenAIEngine("m", base_url=one).identity
    assert OpenAIEngine("m", base_url=one).identity != OpenAIEngine("m", base_url=other).identity
    assert OpenAIEngine("m", base_url=one).identity != OpenAIEngine("n", base_url=one).identity
    assert OpenAIEngine("m", base_url=one).identity == OpenAIEngine("m", base_url=one + "/?api-version=1").identity
    assert OpenAIEngine("m", base_url=one, extra_body={"a": 1}).identity != OpenAIEngine("m", base_url=one).identity
    with pytest.raises(ConfigError, match="several endpoints need a name"):
        OpenAIEngine("m", base_url=[one, other])


def test_a_dead_endpoint_is_left_out_until_it_answers_again(serve: Serve) -> None:
    """Of two, one breaks every connection for a while: the other does the work, and the first is asked again only
    after a health check has passed there."""
    down = threading.Event()
    down.set()

    async def flaky(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        return await (reset if down.is_set() else good)(body, server)

    broken, whole = serve(flaky), serve(after(0.002, good))
    engine = engine_for(broken, whole, concurrency=4)
    first = list(engine.generate([ask(n=100)]))
    lost = [completion for completion in first if completion.failure]
    assert {failure_of(completion) for completion in lost} == {("connection", True)}
    assert STRIKES <= len(lost) <= STRIKES + 4
    asked = [body for body in broken.seen if body["max_tokens"] == 256]
    assert len(asked) == len(lost)
    assert len(broken.seen) > len(asked), "no health check was made"
    down.clear()
    until = time.monotonic() + 10
    while not all(one.alive for one in engine._traffic.ways.endpoints.every):  # type: ignore[union-attr]
        assert time.monotonic() < until
        time.sleep(0.01)
    second = list(engine.generate([ask(n=100, seed=2)]))
    assert [completion.failure for completion in second] == [None] * 100
    assert len([body for body in broken.seen if body["max_tokens"] == 256]) > len(asked) + 20


def test_an_endpoint_that_was_never_there_ends_the_run() -> None:
    engine = OpenAIEngine("m", base_url="http://127.0.0.1:9/v1", concurrency=2)
    with pytest.raises(EndpointError, match="cannot be reached") as caught:
        list(engine.generate([ask(n=50)]))
    assert caught.value.exit_code == 3
    assert "127.0.0.1:9" in str(caught.value)
    with pytest.raises(EndpointError, match="cannot be reached"):
        list(engine.generate([ask(n=50)]))


def test_one_question_alone_finds_out_that_nobody_listens(tmp_path: Path) -> None:
    """Nothing was sent, so that no answer has failed: the store holds no call."""
    engine = OpenAIEngine("m", base_url="http://127.0.0.1:9/v1")
    with Store.open(tmp_path / "store", create=True) as store:
        with pytest.raises(EndpointError, match="cannot be reached"):
            list(answer(store, engine, [ask()], run="r", round=0, purpose="generate"))
        assert store.read("calls", columns=["key"]) == []


def test_what_one_endpoint_could_not_be_sent_another_answers(serve: Serve) -> None:
    whole = serve(good)
    engine = OpenAIEngine("m", base_url=["http://127.0.0.1:9/v1", whole.url], name="set", concurrency=2)
    assert [completion.failure for completion in engine.generate([ask(n=20)])] == [None] * 20
    assert len([body for body in whole.seen if body["max_tokens"] == 256]) == 20


def test_a_question_waits_for_an_endpoint_that_begins_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.engines.endpoints.STRIKES", 10_000)
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    engine = OpenAIEngine("m", base_url=f"http://127.0.0.1:{port}/v1")
    tries = engine._open().ways.endpoints
    with ThreadPoolExecutor(1) as beside:
        found = beside.submit(lambda: [completion.failure for completion in engine.generate([ask()])])
        while not tries.every[0].strikes:
            time.sleep(0.001)
        with closing(FaultServer(good, port=port)):
            assert found.result(timeout=20) == [None]


def test_an_engine_that_lost_its_endpoint_may_ask_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.engines.endpoints.GONE_AFTER", 0.05)
    down = threading.Event()
    down.set()

    async def flaky(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        return await (reset if down.is_set() else good)(body, server)

    engine = engine_for(serve(flaky), concurrency=2)
    with pytest.raises(EndpointError, match="cannot be reached"):
        list(engine.generate([ask(n=50)]))
    down.clear()
    assert [completion.failure for completion in engine.generate([ask(n=5)])] == [None] * 5


def test_endpoints_that_stay_away_end_the_run(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies after its first answers does not cost a wait and a failed row for every call that is left."""
    monkeypatch.setattr("factory.engines.endpoints.GONE_AFTER", 0.2)
    server = serve(in_turn(good, good, reset))
    engine = engine_for(server, concurrency=1)
    assert [completion.failure for completion in engine.generate([ask(n=2)])] == [None, None]
    with pytest.raises(EndpointError, match="cannot be reached"):
        list(engine.generate([ask("salt", n=100_000)]))
    assert len(server.seen) >= 2 + STRIKES


def test_an_endpoint_that_is_slow_from_the_start_is_waited_for(serve: Serve) -> None:
    """A server that still loads takes calls and answers none in time: it is no wrong address."""
    loaded = threading.Event()

    async def loading(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        while not loaded.is_set():
            await asyncio.sleep(0.01)
        return await good(body, server)

    engine = engine_for(serve(loading), concurrency=1, timeout=0.05)
    tries = engine._open().ways.endpoints
    with ThreadPoolExecutor(1) as beside:
        found = beside.submit(lambda: [completion.failure for completion in engine.generate([ask(n=STRIKES + 2)])])
        while tries.every[0].alive:
            time.sleep(0.001)
        time.sleep(0.2)  # some health checks, none of which is answered in time
        loaded.set()
        failures = found.result(timeout=20)
    assert [failure is None for failure in failures] == [*[False] * STRIKES, True, True]
    assert {failure.kind for failure in failures if failure} == {"timeout"}


def test_an_endpoint_that_comes_back_goes_on(serve: Serve) -> None:
    server = serve(in_turn(good, *[reset] * 12, good))
    failures = [c.failure for c in engine_for(server, concurrency=1).generate([ask(n=14)])]
    assert [failure is None for failure in failures] == [True, *[False] * STRIKES, *[True] * 5]


def test_a_health_check_is_one_token_from_every_endpoint(serve: Serve) -> None:
    servers = [serve(good), serve("null_content_cut"), serve("500")]
    assert engine_for(*servers[:2]).check_health().failure is None
    assert failure_of(engine_for(*servers).check_health()) == ("server_error", True)
    assert [body["max_tokens"] for server in servers for body in server.seen] == [1, 1, 1, 1, 1]
    with pytest.raises(EndpointError, match="credentials"):
        engine_for(serve("401")).check_health()
    assert failure_of(engine_for(serve("hang")).check_health(0.1)) == ("timeout", True)
