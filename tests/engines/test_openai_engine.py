"""The openai engine against a small server on this machine that answers as good and bad endpoints do."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, strategies as st

from factory.engines.endpoints import STRIKES
from factory.engines.openai import OpenAIEngine
from factory.engines.pace import wait_asked
from factory.engines.replies import NoAnswerError, answer_logprobs, read
from factory.faults import ConfigError, EndpointError
from factory.schema import Completion, Request, Sampling

Handler = Callable[[dict[str, Any], "Endpoint"], Awaitable[web.StreamResponse]]
KEY = "sk-very-secret"


class Endpoint:
    """A server in a thread of its own. `seen` holds the bodies it got, `headers` their headers."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._start())
        self.loop.run_forever()
        self.loop.run_until_complete(self._end())
        self.loop.close()

    async def _end(self) -> None:
        await self.runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port = self.runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self.ready.set()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.request = request
        try:
            return await self.handler(body, self)
        finally:
            self.at_once -= 1

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], Endpoint]]:
    started: list[Endpoint] = []

    def start(handler: Handler) -> Endpoint:
        started.append(Endpoint(handler))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.close()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("factory.engines.attempts.BUSY_PAUSE", 0.001)
    monkeypatch.setattr("factory.engines.endpoints.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("factory.engines.endpoints.LONGEST_PAUSE", 0.01)


def answered(text: str | None = "fine", **choice: Any) -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | choice],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3},
    }


async def good(body: dict[str, Any], endpoint: Endpoint) -> web.StreamResponse:
    return web.json_response(answered(f"{body['messages'][-1]['content']}/{body['seed']}"))


def always(
    status: int = 200, *, data: Any = None, text: str | None = None, headers: dict[str, str] | None = None
) -> Handler:
    async def handler(body: dict[str, Any], endpoint: Endpoint) -> web.StreamResponse:
        raw = json.dumps(data) if text is None else text
        return web.Response(status=status, body=raw.encode(), headers=headers)

    return handler


def in_turn(*handlers: Handler) -> Handler:
    """One handler a call; the last one for all further calls."""

    async def handler(body: dict[str, Any], endpoint: Endpoint) -> web.StreamResponse:
        return await handlers[min(len(endpoint.seen), len(handlers)) - 1](body, endpoint)

    return handler


def engine_for(endpoint: Endpoint, **options: Any) -> OpenAIEngine:
    return OpenAIEngine("m", **{"base_url": endpoint.url, "timeout": 5.0} | options)


def ask(text: str = "tea", **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], **more)


def failure_of(completion: Completion) -> tuple[str, bool]:
    assert completion.failure is not None
    return completion.failure.kind, completion.failure.passing


# ----------------------------------------------------------------------------------------------------- what is asked


def test_every_sample_is_a_call_with_its_own_seed(serve: Callable[[Handler], Endpoint]) -> None:
    endpoint = serve(good)
    requests = [ask("tea", n=3, seed=1), ask("salt", n=2, seed=1)]
    completions = list(engine_for(endpoint).generate(requests))
    assert sorted((c.request.messages[0]["content"], c.sample) for c in completions) == [
        ("salt", 0), ("salt", 1), ("tea", 0), ("tea", 1), ("tea", 2),
    ]  # fmt: skip
    assert len({c.text for c in completions}) == 5
    again = engine_for(endpoint).generate(requests)
    assert {c.text for c in again} == {c.text for c in completions}
    assert all((c.prompt_tokens, c.completion_tokens, c.finish_reason) == (11, 3, "stop") for c in completions)


def test_what_is_held_is_not_asked(serve: Callable[[Handler], Endpoint]) -> None:
    endpoint = serve(good)
    completions = list(engine_for(endpoint).generate([ask(n=4)], lambda request, sample: sample != 2))
    assert [completion.sample for completion in completions] == [2]
    assert len(endpoint.seen) == 1
    assert list(engine_for(endpoint).generate([ask()], lambda request, sample: True)) == []


def test_the_body_says_what_the_request_says(serve: Callable[[Handler], Endpoint]) -> None:
    endpoint = serve(good)
    schema = {"type": "object"}
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, max_tokens=9, stop=("END",))
    request = ask("tea", sampling=sampling, json_schema=schema, answers=("A", "B"), prefix="It is")
    list(engine_for(endpoint, prefix="continue").generate([request]))
    (body,) = endpoint.seen
    seed = body.pop("seed")
    assert 0 <= seed < 2**31
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "tea"}, {"role": "assistant", "content": "It is"}],
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
    }
    assert len(request.messages) == 1


def test_a_started_answer_is_refused_where_it_cannot_be_continued(serve: Callable[[Handler], Endpoint]) -> None:
    endpoint = serve(good)
    refused, ambiguous = engine_for(endpoint, concurrency=1).generate([ask(prefix="It is"), ask(answers=("1", "10"))])
    assert failure_of(refused) == ("unsupported", False)
    assert failure_of(ambiguous) == ("ambiguous_answers", False)
    assert endpoint.seen == []


def test_calls_in_flight_are_bounded_and_slots_wait_for_the_caller(serve: Callable[[Handler], Endpoint]) -> None:
    """A slot is free for the next call only when the caller has come back for more."""

    async def slow(body: dict[str, Any], endpoint: Endpoint) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return web.json_response(answered())

    endpoint = serve(slow)
    bursts = engine_for(endpoint, concurrency=3).bursts([ask(n=12)])
    first = next(bursts)
    time.sleep(0.3)
    assert len(endpoint.seen) == 3
    assert len(first) + sum(map(len, bursts)) == 12
    assert endpoint.most_at_once == 3


def test_the_key_is_sent_and_shown_nowhere(
    serve: Callable[[Handler], Endpoint], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    echo = always(400, data={"error": {"message": f"bad key {KEY}"}})
    endpoint = serve(in_turn(good, echo, always(401, data={"error": {"message": f"who is {KEY}?"}})))
    engine = engine_for(endpoint, api_key_env="MY_KEY", concurrency=1)
    (fine,), (refused,) = list(engine.generate([ask()])), list(engine.generate([ask()]))
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    assert fine.text
    assert failure_of(refused) == ("refused", False)
    with pytest.raises(EndpointError) as caught:
        list(engine.generate([ask()]))
    shown = [repr(engine), repr(vars(engine)), repr(refused), str(caught.value), repr(engine.identity), caplog.text]
    assert not [text for text in shown if KEY in text]
    assert "MY_KEY" in str(caught.value)


def test_without_a_key_none_is_sent(serve: Callable[[Handler], Endpoint]) -> None:
    endpoint = serve(good)
    list(engine_for(endpoint).generate([ask()]))
    assert "authorization" not in endpoint.headers[0]


# ------------------------------------------------------------------------------------------------- what ends the run


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "invalid_api_key", "credentials"),
        (403, "forbidden", "credentials"),
        (404, "model_not_found", "model 'm'"),
        (429, "insufficient_quota", "quota"),
        (402, "payment", "quota"),
        (307, "", "elsewhere"),
    ],
)
def test_some_answers_end_the_run(serve: Callable[[Handler], Endpoint], status: int, code: str, said: str) -> None:
    endpoint = serve(always(status, data={"error": {"code": code, "message": "no"}}, headers={"Location": "/x"}))
    with pytest.raises(EndpointError, match=said) as caught:
        list(engine_for(endpoint).generate([ask(n=50)]))
    assert caught.value.exit_code == 3
    assert endpoint.url in str(caught.value)


def test_an_endpoint_that_is_not_there_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenAIEngine("m", base_url="http://127.0.0.1:9/v1", concurrency=2)
    with pytest.raises(EndpointError, match="cannot be reached"):
        list(engine.generate([ask(n=50)]))


async def broken(body: dict[str, Any], endpoint: Endpoint) -> web.StreamResponse:
    assert endpoint.request.transport is not None
    endpoint.request.transport.abort()
    return web.Response()


def test_an_endpoint_that_stays_away_ends_the_run(
    serve: Callable[[Handler], Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that dies after its first answers does not cost a wait and a failed row for every call that is left."""
    monkeypatch.setattr("factory.engines.endpoints.GONE_AFTER", 0.2)
    endpoint = serve(in_turn(good, good, broken))
    engine = engine_for(endpoint, concurrency=1)
    assert [completion.failure for completion in engine.generate([ask(n=2)])] == [None, None]
    with pytest.raises(EndpointError, match="cannot be reached"):
        list(engine.generate([ask("salt", n=100_000)]))
    assert len(endpoint.seen) >= 2 + STRIKES


def test_an_endpoint_that_comes_back_goes_on(
    serve: Callable[[Handler], Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = serve(in_turn(good, *[broken] * 12, good))
    failures = [c.failure for c in engine_for(endpoint, concurrency=1).generate([ask(n=14)])]
    assert [failure is None for failure in failures] == [True, *[False] * STRIKES, *[True] * 5]


# ------------------------------------------------------------------------------------------------------- what passes


@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limited"), (500, "server_error"), (503, "server_error")])
def test_a_passing_status_is_a_passing_failure(serve: Callable[[Handler], Endpoint], status: int, kind: str) -> None:
    endpoint = serve(always(status, data={"error": {"message": "busy"}}))
    (completion,) = engine_for(endpoint).generate([ask()])
    assert failure_of(completion) == (kind, True)
    assert completion.failure is not None
    assert completion.failure.detail == f"HTTP {status}: busy"


def test_retry_after_is_waited_for(serve: Callable[[Handler], Endpoint]) -> None:
    endpoint = serve(in_turn(always(429, data={}, headers={"Retry-After": "0.4"}), good))
    began = time.monotonic()
    (fine,) = engine_for(endpoint).generate([ask()])
    assert fine.failure is None
    assert len(endpoint.seen) == 2
    assert time.monotonic() - began >= 0.4


def test_an_overall_deadline_stops_a_trickle(serve: Callable[[Handler], Endpoint]) -> None:
    async def trickle(body: dict[str, Any], endpoint: Endpoint) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(endpoint.request)
        for _ in range(100):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    (completion,) = engine_for(serve(trickle), timeout=0.3).generate([ask()])
    assert failure_of(completion) == ("timeout", True)


def test_a_connection_that_breaks_is_a_passing_failure(serve: Callable[[Handler], Endpoint]) -> None:
    (completion,) = engine_for(serve(broken)).generate([ask()])
    assert failure_of(completion) == ("connection", True)


def test_a_body_over_the_cap_is_not_read_on(serve: Callable[[Handler], Endpoint]) -> None:
    (completion,) = engine_for(serve(always(text="x" * 200_000)), max_bytes=1000).generate([ask()])
    assert failure_of(completion) == ("too_large", False)


# ------------------------------------------------------------------------------------------- 200 that is no answer


INVALID: list[Any] = [
    "<html>busy</html>",
    "[]",
    "{}",
    '{"choices": null}',
    '{"choices": []}',
    '{"choices": [1]}',
    json.dumps(answered(None)),
    json.dumps(answered(5)),  # type: ignore[arg-type]
    json.dumps(answered("x", finish_reason="tool_calls")),
    json.dumps(answered("x", message="text")),
    json.dumps(answered("x", logprobs={"content": [{"token": 1, "logprob": 0}]})),
    json.dumps(answered("x", logprobs={"content": [{"token": "x", "logprob": float("nan")}]})),
    "[" * 100_000,
]


@pytest.mark.parametrize("body", INVALID, ids=range(len(INVALID)))
def test_a_200_without_a_valid_answer_has_a_small_budget(serve: Callable[[Handler], Endpoint], body: str) -> None:
    endpoint = serve(always(text=body))
    (completion,) = engine_for(endpoint, invalid_retries=1).generate([ask()])
    assert failure_of(completion) == ("invalid_response", not body.startswith("{"))
    assert len(endpoint.seen) == 2


def test_a_valid_answer_after_an_invalid_one_counts(serve: Callable[[Handler], Endpoint]) -> None:
    (completion,) = engine_for(serve(in_turn(always(text="<html>"), good))).generate([ask()])
    assert completion.failure is None


def test_a_filtered_answer_is_a_failure(serve: Callable[[Handler], Endpoint]) -> None:
    endpoint = serve(always(data=answered("", finish_reason="content_filter")))
    (completion,) = engine_for(endpoint).generate([ask()])
    assert failure_of(completion) == ("filtered", False)


def test_lone_surrogates_are_replaced_and_counted(
    serve: Callable[[Handler], Endpoint], caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_for(serve(always(text=json.dumps(answered("a\ud800b\U0001f600")))))
    (completion,) = engine.generate([ask()])
    assert completion.text == "a\ufffdb\U0001f600"
    assert engine.replaced == 1
    assert "surrogates" in caplog.text


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "usage", "logprobs", "finish_reason", "token"]), x
            )
        ),
    )
)
def test_reading_an_answer_raises_nothing_but_value_errors(value: Any) -> None:
    for data in (value, {"choices": [value]}, answered("x", logprobs=value), answered("x") | {"usage": value}):
        try:
            answer = read(json.dumps(data).encode(), ("A",))
        except NoAnswerError:
            continue
        assert all(isinstance(choice.text, str) for choice in answer.choices)


# ------------------------------------------------------------------------------------------------ log-probs and cost


def token(text: str, logprob: float, **top: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]}


def test_log_probabilities_of_wanted_answers_sum_over_variants(serve: Callable[[Handler], Endpoint]) -> None:
    """P(A) = e^-1 + e^-3 for "A" and " A"; the sampled token is also among the top ones and counts once."""
    first = token(" A", -1.0) | {"top_logprobs": [token(" A", -1.0), token("A", -3.0), token("C", -2.0)]}
    endpoint = serve(always(data=answered(" A", logprobs={"content": [first, token("<end>", -0.25)]})))
    (completion,) = engine_for(endpoint).generate([ask(answers=("A", "B"))])
    assert completion.answer_logprobs == pytest.approx({"A": math.log(math.exp(-1) + math.exp(-3))})
    assert completion.logprob == pytest.approx(-1.25)


def test_tokens_that_read_the_same_count_together(serve: Callable[[Handler], Endpoint]) -> None:
    """vLLM shows "A" and a SentencePiece "_A" both as "A": P(A) = e^-1 + e^-4. One listed twice counts once; one that
    was sampled from below the list counts too."""
    top = [token("A", -1.0), token("B", -1.5), token("A", -4.0), token("B", -1.5)]
    endpoint = serve(always(data=answered("C", logprobs={"content": [token("C", -6.0) | {"top_logprobs": top}]})))
    (completion,) = engine_for(endpoint).generate([ask(answers=("A", "B", "C"))])
    wanted = {"A": math.log(math.exp(-1) + math.exp(-4)), "B": -1.5, "C": -6.0}
    assert completion.answer_logprobs == pytest.approx(wanted)


def test_a_token_may_begin_one_answer_only() -> None:
    shown = [("Yes", -1.0, [("Yes", -1.0), (" N", -2.0), ("", -3.0), ("\n", -3.5), ("Yesterday", -4.0)])]
    assert answer_logprobs(shown, ("Yes", "No")) == pytest.approx({"Yes": -1.0, "No": -2.0})
    assert answer_logprobs([("T", -1.0, [("T", -1.0)])], ("Two", "Ten")) == {}


def test_costs_come_from_given_prices(serve: Callable[[Handler], Endpoint]) -> None:
    endpoint = serve(good)
    (unknown,) = engine_for(endpoint).generate([ask()])
    (priced,) = engine_for(endpoint, prices={"prompt": 2.0, "completion": 10.0}).generate([ask()])
    assert unknown.cost is None
    assert priced.cost == pytest.approx((11 * 2 + 3 * 10) / 1e6)


# ------------------------------------------------------------------------------------------------------ life of a run


def test_closing_early_cancels_what_is_in_flight(serve: Callable[[Handler], Endpoint]) -> None:
    async def one_then_never(body: dict[str, Any], endpoint: Endpoint) -> web.StreamResponse:
        if len(endpoint.seen) > 1:
            await asyncio.sleep(60)
        return web.json_response(answered())

    endpoint = serve(one_then_never)
    before = set(threading.enumerate())
    engine = engine_for(endpoint, concurrency=4, timeout=60)
    with closing(engine.generate([ask(n=40)])) as completions:
        assert next(completions).text == "fine"  # type: ignore[call-overload]
    engine.close()
    assert not set(threading.enumerate()) - before
    assert len(endpoint.seen) <= 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "http://me:secret@host/v1"}, "user name or password"),
        ({"concurrency": 0}, "concurrency"),
        ({"prices": {"input": 1}}, "prices"),
        ({"prefix": "maybe", "timeout": 0}, "2 faults"),
    ],
)
def test_wrong_options_are_named_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        OpenAIEngine("m", **options)
    assert "secret" not in str(caught.value)


def test_answers_that_came_before_the_end_are_handed_over(serve: Callable[[Handler], Endpoint]) -> None:
    endpoint = serve(in_turn(good, good, always(401, data={})))
    got: list[Completion] = []

    def take() -> None:
        for completion in engine_for(endpoint, concurrency=1).generate([ask(n=5)]):
            got.append(completion)
            time.sleep(0.05)

    with pytest.raises(EndpointError):
        take()
    assert [completion.sample for completion in got] == [0, 1]


def test_retry_after_is_read_in_both_forms() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert wait_asked({"retry-after": "2.5"}) == 2.5
    assert wait_asked({"retry-after": later}) == pytest.approx(30, abs=2)
    assert wait_asked({"retry-after": format_datetime(datetime(2020, 1, 1, tzinfo=UTC))}) == 0
    assert wait_asked({}) is None
    assert wait_asked({"retry-after": "soon"}) is None
    assert wait_asked({"retry-after": "inf"}) is None
