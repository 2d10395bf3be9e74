"""The openai engine against a server on this machine: what is asked, of whom, how fast, at what price, until when.

What becomes of each way of failing is in test_fault_modes.py.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fault_server import FaultServer, Handler, after, always, answered, choice, error, good, in_turn, one_only, reset

from factory.calls import answer
from factory.engines import Burst
from factory.engines.endpoints import STRIKES
from factory.engines.flights import TOGETHER
from factory.engines.openai import AT_ONCE, OpenAIEngine
from factory.faults import ConfigError, EndpointError
from factory.schema import Completion, Request, Sampling
from factory.store import Store

Serve = Callable[[str | Handler], FaultServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[FaultServer] = []

    def start(behaviour: str | Handler) -> FaultServer:
        started.append(FaultServer(behaviour))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("factory.engines.attempts.BUSY_PAUSE", 0.001)
    monkeypatch.setattr("factory.engines.endpoints.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("factory.engines.endpoints.LONGEST_PAUSE", 0.01)


def engine_for(*servers: FaultServer, **options: Any) -> OpenAIEngine:
    several = {"name": "set"} if len(servers) > 1 else {}
    return OpenAIEngine("m", **{"base_url": [server.url for server in servers], "timeout": 5.0} | several | options)


def ask(text: str = "tea", **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], **more)


def failure_of(completion: Completion) -> tuple[str, bool]:
    assert completion.failure is not None
    return completion.failure.kind, completion.failure.passing


# ----------------------------------------------------------------------------------------------------- what is asked


def test_every_sample_is_a_call_with_its_own_seed(serve: Serve) -> None:
    server = serve(good)
    requests = [ask("tea", n=3, seed=1), ask("salt", n=2, seed=1)]
    completions = list(engine_for(server).generate(requests))
    assert sorted((c.request.messages[0]["content"], c.sample) for c in completions) == [
        ("salt", 0), ("salt", 1), ("tea", 0), ("tea", 1), ("tea", 2),
    ]  # fmt: skip
    assert len({c.text for c in completions}) == 5
    again = engine_for(server).generate(requests)
    assert {c.text for c in again} == {c.text for c in completions}
    assert all((c.prompt_tokens, c.completion_tokens, c.finish_reason) == (11, 3, "stop") for c in completions)


def test_what_is_held_is_not_asked(serve: Serve) -> None:
    server = serve(good)
    completions = list(engine_for(server).generate([ask(n=4)], lambda request, sample: sample != 2))
    assert [completion.sample for completion in completions] == [2]
    assert len(server.seen) == 1
    assert list(engine_for(server).generate([ask()], lambda request, sample: True)) == []


def test_the_body_says_what_the_request_says(serve: Serve) -> None:
    server = serve(good)
    schema = {"type": "object"}
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, max_tokens=9, stop=("END",))
    request = ask("tea \ud800\u00e9", sampling=sampling, json_schema=schema, answers=("A", "B"), prefix="It is")
    list(engine_for(server, prefix="continue", extra_body={"min_p": 0.1}).generate([request]))
    (body,) = server.seen
    seed = body.pop("seed")
    assert 0 <= seed < 2**31
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "tea \ufffd\u00e9"}, {"role": "assistant", "content": "It is"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "max_tokens": 9,
        "stop": ["END"],
        "logprobs": True,
        "top_logprobs": 20,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
        "continue_final_message": True,
        "add_generation_prompt": False,
        "min_p": 0.1,
    }
    assert len(request.messages) == 1


def test_a_started_answer_is_refused_where_it_cannot_be_continued(serve: Serve) -> None:
    server = serve(good)
    refused, ambiguous = engine_for(server, concurrency=1).generate([ask(prefix="It is"), ask(answers=("1", "10"))])
    assert failure_of(refused) == ("unsupported", False)
    assert failure_of(ambiguous) == ("ambiguous_answers", False)
    assert server.seen == []


def test_the_limit_is_called_as_the_endpoint_wants_it(serve: Serve) -> None:
    """A reasoning model refuses max_tokens: the call goes again with the other name, and so do all that follow."""

    async def reasoning(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        if "max_tokens" not in body:
            return await good(body, server)
        fault = {"message": "use 'max_completion_tokens'", "code": "unsupported_parameter", "param": "max_tokens"}
        return web.json_response({"error": fault}, status=400)

    server = serve(reasoning)
    completions = list(engine_for(server, concurrency=1).generate([ask(n=3)]))
    assert [completion.failure for completion in completions] == [None] * 3
    assert [("max_tokens" in body, body.get("max_completion_tokens")) for body in server.seen] == [
        (True, None), (False, 256), (False, 256), (False, 256),
    ]  # fmt: skip


def test_a_limit_that_is_refused_by_either_name_fails(serve: Serve) -> None:
    async def neither(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        named = "max_tokens" if "max_tokens" in body else "max_completion_tokens"
        return web.json_response({"error": {"code": "unsupported_parameter", "param": named}}, status=400)

    server = serve(neither)
    (completion,) = engine_for(server).generate([ask()])
    assert failure_of(completion) == ("refused", False)
    assert len(server.seen) == 2


def test_key_organisation_and_project_go_along(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(good)
    list(engine_for(server).generate([ask()]))
    monkeypatch.setenv("MY_KEY", "sk-1\n")
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project")
    list(engine_for(server, api_key_env="MY_KEY").generate([ask()]))
    list(engine_for(server, api_key_env="MY_KEY", auth="api-key").generate([ask()]))
    names = ("authorization", "api-key", "openai-organization", "openai-project")
    assert [[headers.get(name) for name in names] for headers in server.headers] == [
        [None, None, None, None],
        ["Bearer sk-1", None, "org", "project"],
        [None, "sk-1", "org", "project"],
    ]


def test_the_environment_names_the_endpoint(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(good)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/?api-version=2024-10-21")
    (completion,) = OpenAIEngine("m").generate([ask()])
    assert completion.failure is None
    assert server.paths == ["/v1/chat/completions?api-version=2024-10-21"]


# -------------------------------------------------------------------------------------------------- how much at once


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


# ------------------------------------------------------------------------------------------------- several endpoints


def test_equal_endpoints_are_asked_in_turn(serve: Serve) -> None:
    servers = [serve(after(0.01, good)) for _ in range(3)]
    completions = list(engine_for(*servers, concurrency=6).generate([ask(n=60)]))
    assert [completion.failure for completion in completions] == [None] * 60
    assert all(15 <= len(server.seen) <= 25 for server in servers)


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


def test_an_endpoint_that_comes_back_goes_on(serve: Serve) -> None:
    server = serve(in_turn(good, *[reset] * 12, good))
    failures = [c.failure for c in engine_for(server, concurrency=1).generate([ask(n=14)])]
    assert [failure is None for failure in failures] == [True, *[False] * STRIKES, *[True] * 5]


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


# ------------------------------------------------------------------------------------------------------ n in one call


def texts_by_seed(body: dict[str, Any]) -> list[str]:
    return [f"{body['seed']}+{number}" for number in range(body.get("n", 1))]


def test_samples_come_in_one_call_where_the_server_can(serve: Serve, tmp_path: Path) -> None:
    """The prompt is read once, and the sums of tokens and dollars are what the endpoint billed: 2 calls of 11 + 3n."""
    server = serve(good)
    prices = {"prompt": 2.0, "completion": 10.0}
    engine = engine_for(server, n_in_one_call=True, concurrency=5, prices=prices)
    completions = sorted(engine.generate([ask(n=7)]), key=lambda completion: completion.sample)
    assert [completion.sample for completion in completions] == list(range(7))
    assert [body.get("n") for body in server.seen] == [5, 2]
    assert len({completion.text for completion in completions}) == 7
    assert sum(completion.prompt_tokens for completion in completions) == 22
    assert sum(completion.completion_tokens for completion in completions) == 21
    assert sum(completion.cost or 0 for completion in completions) == pytest.approx((22 * 2 + 21 * 10) / 1e6)


def test_keys_are_the_same_whether_samples_come_together_or_alone(serve: Serve, tmp_path: Path) -> None:
    server = serve(good)
    keys = []
    for together in (True, False):
        with Store.open(tmp_path / str(together), create=True) as store:
            engine = engine_for(server, n_in_one_call=together)
            calls = [call for _, call, _ in answer(store, engine, [ask(n=4)], run="r", round=0, purpose="test")]
            keys.append(sorted((call.sample, call.key) for call in calls))
            more = engine_for(server, n_in_one_call=not together)
            again = list(answer(store, more, [ask(n=4)], run="r", round=0, purpose="test"))
            assert sorted(call.text for _, call, _ in again) == sorted(call.text for call in calls)
    assert keys[0] == keys[1]
    assert len(server.seen) == 1 + 4


@pytest.mark.parametrize("refuse", [False, True])
def test_a_server_that_cannot_gives_single_answers_from_then_on(
    serve: Serve, caplog: pytest.LogCaptureFixture, refuse: bool
) -> None:
    """One ignores n, another refuses it. That is said once, and no sample is lost or asked for twice."""

    async def cannot(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        if refuse and body.get("n", 1) > 1:
            return await error(400, None, "only one completion choice is allowed")(body, server)
        return await one_only(body, server)

    server = serve(cannot)
    engine = engine_for(server, n_in_one_call=True, concurrency=4)
    completions = list(engine.generate([ask(n=4), ask("salt", n=4)]))
    assert Counter((c.request.messages[0]["content"], c.sample) for c in completions) == {
        (text, sample): 1 for text in ("tea", "salt") for sample in range(4)
    }
    assert [completion.failure for completion in completions] == [None] * 8
    assert len({completion.text for completion in completions}) == 8
    assert [body.get("n") for body in server.seen] == [4, *[None] * (8 if refuse else 7)]
    assert caplog.text.count("does not give several answers in one call") == 1


def test_one_bad_choice_of_several_is_asked_for_again_alone(serve: Serve) -> None:
    async def one_bad(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        if body.get("n", 1) == 1:
            return await good(body, server)
        return web.json_response(answered(choice("one"), choice(None), choice("three"), completion=9))

    server = serve(one_bad)
    engine = engine_for(server, n_in_one_call=True, prices={"prompt": 3.0, "completion": 3.0})
    completions = sorted(engine.generate([ask(n=3)]), key=lambda completion: completion.sample)
    assert [completion.failure for completion in completions] == [None] * 3
    assert (completions[0].text, completions[2].text) == ("one", "three")
    assert [body.get("n") for body in server.seen] == [3, None]
    assert sum(c.cost or 0 for c in completions) == pytest.approx((11 + 9 + 11 + 3) * 3 / 1e6)


# ------------------------------------------------------------------------------------------------ log-probs and cost


def token(text: str, logprob: float, **top: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]}


def test_log_probabilities_of_wanted_answers_sum_over_variants(serve: Serve) -> None:
    """P(A) = e^-1 + e^-3 for "A" and " A"; the sampled token is also among the top ones and counts once."""
    first = token(" A", -1.0) | {"top_logprobs": [token(" A", -1.0), token("A", -3.0), token("C", -2.0)]}
    logprobs = {"content": [first, token("<end>", -0.25)]}
    server = serve(always(data=answered(choice(" A", logprobs=logprobs))))
    (completion,) = engine_for(server).generate([ask(answers=("A", "B"))])
    assert completion.answer_logprobs == pytest.approx({"A": math.log(math.exp(-1) + math.exp(-3))})
    assert completion.logprob == pytest.approx(-1.25)


def test_tokens_that_read_the_same_count_together(serve: Serve) -> None:
    """vLLM shows "A" and a SentencePiece "_A" both as "A": P(A) = e^-1 + e^-4. One listed twice counts once; one that
    was sampled from below the list counts too."""
    top = [token("A", -1.0), token("B", -1.5), token("A", -4.0), token("B", -1.5)]
    logprobs = {"content": [token("C", -6.0) | {"top_logprobs": top}]}
    server = serve(always(data=answered(choice("C", logprobs=logprobs))))
    (completion,) = engine_for(server).generate([ask(answers=("A", "B", "C"))])
    wanted = {"A": math.log(math.exp(-1) + math.exp(-4)), "B": -1.5, "C": -6.0}
    assert completion.answer_logprobs == pytest.approx(wanted)


def test_costs_come_from_given_prices(serve: Serve) -> None:
    """Of 11 prompt tokens 6 came from the cache."""
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 6}}
    server = serve(always(data=answered(usage=usage)))
    prices = {"prompt": 2.0, "completion": 10.0}
    costs = []
    for given in (None, prices, prices | {"cached_prompt": 0.5}, {"other": prices}, {"m": prices}):
        (completion,) = engine_for(server, prices=given).generate([ask()])
        costs.append(completion.cost)
    assert costs[0] is None
    assert costs[3] is None
    assert costs[1] == costs[4] == pytest.approx((11 * 2 + 3 * 10) / 1e6)
    assert costs[2] == pytest.approx((5 * 2 + 6 * 0.5 + 3 * 10) / 1e6)


def test_tries_that_held_no_answer_are_paid_for_too(serve: Serve) -> None:
    """Two answers without a text were billed: their cost is that of the answer that came, or of the failure, and so are
    their tokens, as read by it: those that it wrote are its own."""
    bad, prices = always(data=answered(choice(None))), {"prompt": 1.0, "completion": 1.0}
    (fine,) = engine_for(serve(in_turn(bad, bad, good)), prices=prices).generate([ask()])
    (failed,) = engine_for(serve(bad), prices=prices).generate([ask()])
    assert fine.cost == failed.cost == pytest.approx(3 * 14 / 1e6)
    assert (fine.prompt_tokens, fine.completion_tokens) == (11 + 2 * 14, 3)
    assert (failed.prompt_tokens, failed.completion_tokens) == (3 * 11, 3 * 3)
    assert failure_of(failed) == ("invalid_response", False)


# ------------------------------------------------------------------------------------------------------ life of a run


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


def test_closing_early_gives_its_slots_back(serve: Serve) -> None:
    engine = engine_for(serve(after(0.01, good)), concurrency=2)
    for _ in range(3):
        with closing(engine.generate([ask(n=10)])) as completions:
            next(completions)  # type: ignore[call-overload]
    assert len(list(engine.generate([ask(n=10)]))) == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "http://me:secret@host/v1"}, "user name or password"),
        ({"base_url": []}, None),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 2.5}, "concurrency"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": -1}, "tokens_per_minute"),
        ({"invalid_retries": -1}, "invalid_retries"),
        ({"prices": {"input": 1}}, "prices"),
        ({"prices": "no/such/file.yaml"}, "cannot be read"),
        ({"prefix": "maybe", "timeout": 0, "auth": "x", "max_tokens_name": "limit"}, "4 faults"),
        ({"extra_body": {"model": "x"}}, "extra_body: model must not"),
        ({"extra_body": [1]}, "extra_body: must be a mapping"),
        ({"base_url": 5}, "base_url: must be an address"),
        ({"base_url": [5], "n_in_one_call": "no", "concurrency": "many", "timeout": "long"}, "4 faults"),
    ],
)
def test_wrong_options_are_named_together(options: dict[str, Any], said: str | None) -> None:
    if said is None:
        assert OpenAIEngine("m", **options).base_url == "https://api.openai.com/v1"
        return
    with pytest.raises(ConfigError, match=said) as caught:
        OpenAIEngine("m", **options)
    assert "secret" not in str(caught.value)


def test_a_key_that_no_header_carries_is_a_fault_that_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ab\u00e9cd")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY: the key holds characters") as caught:
        OpenAIEngine("m")
    assert "sk-ab" not in str(caught.value)


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


def test_a_health_check_is_one_token_from_every_endpoint(serve: Serve) -> None:
    servers = [serve(good), serve("null_content_cut"), serve("500")]
    assert engine_for(*servers[:2]).check_health().failure is None
    assert failure_of(engine_for(*servers).check_health()) == ("server_error", True)
    assert [body["max_tokens"] for server in servers for body in server.seen] == [1, 1, 1, 1, 1]
    with pytest.raises(EndpointError, match="credentials"):
        engine_for(serve("401")).check_health()
    assert failure_of(engine_for(serve("hang")).check_health(0.1)) == ("timeout", True)


def test_a_request_that_has_no_json_is_raised_where_it_was_asked(serve: Serve) -> None:
    with pytest.raises(TypeError):
        list(engine_for(serve(good)).generate([ask(), Request([{"role": "user", "content": {1}}])]))  # type: ignore[typeddict-item]


def test_bodies_hold_valid_json_for_any_text(serve: Serve) -> None:
    server = serve(good)
    text = 'quote " backslash \\ newline \n null \0 and \u2028'
    (completion,) = engine_for(server).generate([ask(text)])
    assert completion.text.startswith(text)
    assert json.dumps(server.seen[0]["messages"][0]["content"]) == json.dumps(text)
