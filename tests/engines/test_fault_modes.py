"""Every way in which endpoints fail, and what exactly becomes of the row: the promise of factory/engines/openai.py."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from fault_server import MODES, FaultServer, after, error, good, mixed
from judged import matchup_of

from factory.calls import answer
from factory.engines.attempts import BUSY_TRIES
from factory.engines.openai import OpenAIEngine
from factory.faults import EndpointError
from factory.judges.pairwise import PairwiseJudge
from factory.schema import Call, Completion, Request
from factory.store import Store

KEY = "sk-very-secret-0123456789"
TRIES = 3  # of what is no answer: invalid_retries + 1


class Expected(NamedTuple):
    """`row`: (kind of failure, passing) of the one row, None: it is answered, with `text`. `ends`: the run ends, saying
    so. `asks`: calls that the server saw."""

    row: tuple[str, bool] | None = None
    text: str = ""
    ends: str = ""
    asks: int = 1


def failed(kind: str, passing: bool = False, asks: int = 1) -> Expected:
    return Expected((kind, passing), asks=asks)


def ends(said: str, asks: int = 1) -> Expected:
    return Expected(ends=said, asks=asks)


def answers(text: str, asks: int = 1) -> Expected:
    return Expected(text=text, asks=asks)


INVALID = failed("invalid_response", asks=TRIES)
FOREIGN = failed("invalid_response", True, asks=TRIES)
BUSY = failed("rate_limited", True, asks=BUSY_TRIES)
BROKEN = failed("server_error", True)

EXPECTED: dict[str, Expected] = {
    "good": answers("tea/"),
    "one_only": answers("tea/"),
    "chunked": answers("in pieces"),
    "400": failed("refused"),
    "400_too_long": failed("too_long"),
    "400_too_long_vllm": failed("too_long"),
    "400_filtered": failed("filtered"),
    "401": ends("refuses the credentials"),
    "402": ends("quota is exhausted"),
    "403": ends("refuses the credentials"),
    "404": ends("does not know this address or the model 'm'"),
    "408": failed("timeout", True),
    "409": failed("refused", True),
    "413": failed("too_long"),
    "418": failed("refused"),
    "422": failed("refused"),
    "425": failed("refused", True),
    "429": BUSY,
    "429_once": answers("tea/", asks=2),
    "429_seconds": answers("tea/", asks=2),
    "429_milliseconds": answers("tea/", asks=2),
    "429_reset": answers("tea/", asks=2),
    "429_date": answers("tea/", asks=2),
    "429_an_hour": ends("asks to wait for 3600 s"),
    "429_quota": ends("quota is exhausted"),
    "500": BROKEN,
    "502": BROKEN,
    "503": failed("server_error", True, asks=BUSY_TRIES),
    "503_once": answers("tea/", asks=2),
    "504": BROKEN,
    "529": failed("server_error", True, asks=BUSY_TRIES),
    "redirect": ends("sends calls elsewhere"),
    "hang": failed("timeout", True),
    "trickle": failed("timeout", True),
    "reset": failed("connection", True),
    "reset_in_body": failed("connection", True),
    "truncated": FOREIGN,
    "truncated_once": answers("tea/", asks=2),
    "html": FOREIGN,
    "empty_body": FOREIGN,
    "no_utf8": FOREIGN,
    "deep": FOREIGN,
    "huge": failed("too_large"),
    "huge_announced": failed("too_large"),
    "bomb": failed("too_large"),
    "a_list": FOREIGN,
    "no_choices": INVALID,
    "null_choices": INVALID,
    "empty_choices": INVALID,
    "choice_of_wrong_type": INVALID,
    "message_of_wrong_type": INVALID,
    "content_of_wrong_type": INVALID,
    "null_content": INVALID,
    "null_content_cut": answers(""),
    "tool_call": INVALID,
    "no_finish": INVALID,
    "logprob_of_wrong_type": INVALID,
    "filtered": failed("filtered"),
    "refusal": failed("filtered"),
    "lone_surrogates": answers("a\ufffdb\U0001f600"),
    "surrogate_bytes": answers("a\ufffdb"),
    "byte_order_mark": answers("fine"),
    "bad_verdict": answers("Neither A nor B is good."),
    "empty_text": answers(""),
    "too_many_choices": answers("one"),
    "no_usage": answers("fine"),
    "usage_of_wrong_type": answers("fine"),
}
OTHERS = {"403_later", "reset_once", "dead_engine"}  # have tests of their own


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("factory.engines.attempts.BUSY_PAUSE", 0.001)
    monkeypatch.setattr("factory.engines.endpoints.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("factory.engines.endpoints.LONGEST_PAUSE", 0.01)
    monkeypatch.setattr("factory.engines.endpoints.GONE_AFTER", 0.1)


@pytest.fixture
def engines() -> Iterator[list[OpenAIEngine]]:
    made: list[OpenAIEngine] = []
    yield made
    for engine in made:
        engine.close()


def engine_for(server: FaultServer, engines: list[OpenAIEngine], **options: Any) -> OpenAIEngine:
    engine = OpenAIEngine("m", **{"base_url": server.url, "timeout": 0.4, "max_bytes": 1_000_000} | options)
    engines.append(engine)
    return engine


def ask(text: str = "tea", **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], **more)


def outcome(completion: Completion) -> tuple[str, bool] | None:
    failure = completion.failure
    return None if failure is None else (failure.kind, failure.passing)


def test_every_mode_has_its_outcome() -> None:
    assert set(MODES) == set(EXPECTED) | OTHERS
    assert len(MODES) >= 60


@pytest.mark.parametrize("mode", EXPECTED)
def test_the_row_ends_as_promised(mode: str, engines: list[OpenAIEngine], caplog: pytest.LogCaptureFixture) -> None:
    """One row, the calls that it cost, and the key nowhere in what is said of it, whatever the server repeats."""
    expected = EXPECTED[mode]
    shown = []
    with FaultServer(mode) as server:
        engine = engine_for(server, engines)
        if expected.ends:
            with pytest.raises(EndpointError, match=expected.ends) as caught:
                list(engine.generate([ask()]))
            assert caught.value.exit_code == 3
            assert server.url in str(caught.value)
            shown += traceback.format_exception(caught.value)
        else:
            (completion,) = engine.generate([ask()])
            assert outcome(completion) == expected.row
            assert completion.text.startswith(expected.text)
            assert bool(completion.text) == bool(expected.text)
            completion.text.encode()
            shown.append(repr(completion))
        assert len(server.seen) == expected.asks
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        assert set(server.paths) == {"/v1/chat/completions"}
    shown += [caplog.text, repr(engine), repr(vars(engine)), repr(engine.identity)]
    assert not [text for text in shown if KEY[:12] in text]


PROXIED = ("good", "chunked", "400", "401", "429_once", "500", "redirect", "hang", "trickle", "reset", "reset_in_body",
           "truncated", "html", "huge", "huge_announced", "bomb", "lone_surrogates")  # fmt: skip


@pytest.mark.parametrize("mode", PROXIED)
def test_the_same_holds_through_a_proxy(
    mode: str, engines: list[OpenAIEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stands in for a proxy: it answers for an address that is not there."""
    expected = EXPECTED[mode]
    with FaultServer(mode) as server:
        monkeypatch.setattr("factory.engines.endpoints.proxy", lambda address: f"http://127.0.0.1:{server.port}")
        engine = engine_for(server, engines, base_url="http://far.example/v1")
        if expected.ends:
            with pytest.raises(EndpointError, match=expected.ends):
                list(engine.generate([ask()]))
        else:
            (completion,) = engine.generate([ask()])
            assert outcome(completion) == expected.row
            assert completion.text.startswith(expected.text)
        assert len(server.seen) == expected.asks


@pytest.mark.parametrize("mode", ["400", "500", "html", "null_content", "huge", "hang", "403_later", "reset", "413"])
def test_a_poison_row_fails_alone(mode: str, engines: list[OpenAIEngine]) -> None:
    """One row of forty is poison, whatever comes of it; all others are answered."""

    async def poison(body: dict[str, Any], server: FaultServer) -> Any:
        if body["messages"][-1]["content"] == "poison":
            return await (error(403) if mode == "403_later" else MODES[mode])(body, server)
        return await good(body, server)

    rows = [ask(f"tea {number}") for number in range(39)]
    rows.insert(20, ask("poison"))
    with FaultServer(poison) as server:
        completions = list(engine_for(server, engines, concurrency=4).generate(rows))
    assert len(completions) == 40
    assert [c.request.messages[0]["content"] for c in completions if c.failure is not None] == ["poison"]


def test_a_403_of_an_endpoint_that_has_answered_is_about_one_row(engines: list[OpenAIEngine]) -> None:
    with FaultServer("403_later") as server:
        completions = list(engine_for(server, engines, concurrency=1).generate([ask(n=4)]))
    assert [outcome(completion) for completion in completions] == [None, ("refused", True), None, None]


def test_an_engine_that_is_dead_behind_a_page_that_says_200(engines: list[OpenAIEngine]) -> None:
    """/version says that all is well, and nobody asks it: the run ends when the endpoint completes no token."""
    with FaultServer("dead_engine") as server:
        engine = engine_for(server, engines, concurrency=2)
        with pytest.raises(EndpointError, match="cannot be reached or answers no more"):
            list(engine.generate([ask(n=100_000)]))
        assert set(server.paths) == {"/v1/chat/completions"}
        assert any(body["max_tokens"] == 1 for body in server.seen)


def test_a_bad_verdict_is_nobodys_win(engines: list[OpenAIEngine]) -> None:
    """The engine hands on what the model said; the judge reads a failure from it, never a winner."""
    judge = PairwiseJudge(prefix="")
    with FaultServer("bad_verdict") as server:
        engine = engine_for(server, engines)
        for question in judge.asks(matchup_of("tea", "salt")):
            (completion,) = engine.generate([question.request])
            readings = judge.read(question, completion)
            assert {reading.verdict for reading in readings} <= {None, "none"}
            assert all(reading.failure for reading in readings)


def test_a_bad_mixture_leaves_no_row_without_its_end(engines: list[OpenAIEngine], tmp_path: Any) -> None:
    """2% 429, 1% 500, 1% not an answer, 1% hung, at 64 under way: every row is answered with its own text, or failed
    with a reason, and none is missing."""
    faults = {"429": 0.02, "500": 0.01, "html": 0.005, "null_content": 0.005, "hang": 0.01}
    rows = [ask(f"tea {number}", seed=number) for number in range(600)]
    with FaultServer(mixed(faults, after(0.005, good))) as server, Store.open(tmp_path / "store", create=True) as store:
        engine = engine_for(server, engines, concurrency=64)
        got = list(answer(store, engine, rows, run="r", round=0, purpose="test"))
        assert server.most_at_once <= 64
    assert {request.seed for request, _, _ in got} == set(range(600))
    assert len(got) == 600
    for request, call, _ in got:
        assert (call.failure is None) == call.text.startswith(request.messages[0]["content"] + "/")
        assert call.failure is None or call.failure_detail
    assert sum(call.failure is None for _, call, _ in got) >= 590
    with Store.open(tmp_path / "store") as store:
        assert {call.key for call in store.rows(Call)} == {call.key for _, call, _ in got}
