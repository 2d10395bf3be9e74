"""Paid answers: asked once, durable before they are handed on, retried where that can help, reused where they fit."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from store_rows import call

from factory import calls
from factory.budget import Budget
from factory.calls import STREAMED, Claims, answer, reusable
from factory.engines import Burst, nothing_held
from factory.engines.scripted import Rule, ScriptedEngine
from factory.faults import EndpointError
from factory.schema import Call, Completion, Have, Identity, Request, Sampling, call_key, call_keys, digest
from factory.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


def ask(text: str, n: int = 1, **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], n=n, **more)


def run(store: Store, engine: Any, requests: list[Request], **more: Any) -> list[tuple[Request, Call]]:
    found = answer(store, engine, requests, **{"run": "r", "round": 1, "purpose": "test"} | more)
    return [(request, call) for request, call, _ in found]


class Counter:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.done = self.failed = self.reused = self.tokens = 0

    def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
        self.done += n
        self.failed += failed
        self.reused += reused
        self.tokens += tokens


def test_every_sample_is_answered_and_kept(store: Store) -> None:
    requests = [ask("tea", 3, seed=5, tag="p1"), ask("salt", 2, answers=("A", "B"), tag="p2")]
    got = run(store, ScriptedEngine(), requests)
    assert sorted((request.tag, kept.sample) for request, kept in got) == [
        ("p1", 0), ("p1", 1), ("p1", 2), ("p2", 0), ("p2", 1),
    ]  # fmt: skip
    kept = {row.key: row for row in store.rows(Call)}
    assert kept == {row.key: row for _, row in got}
    row = next(row for request, row in got if request.tag == "p1")
    assert (row.run, row.round, row.purpose, row.engine, row.seed, row.attempt) == ("r", 1, "test", "scripted", 5, 1)
    assert row.sampling == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 256, "stop": []}
    assert set(next(row for request, row in got if request.tag == "p2").answer_logprobs) == {"A", "B"}


def test_a_second_time_nothing_is_asked(store: Store) -> None:
    requests, counter = [ask("tea", 3), ask("salt", 2)], Counter()
    first = run(store, ScriptedEngine(), requests)
    engine = ScriptedEngine()
    second = run(store, engine, requests, run="other", progress=counter)
    assert engine.asked == 0
    assert sorted(row.key for _, row in first) == sorted(row.key for _, row in second)
    assert {row.run for _, row in second} == {"r"}
    assert (counter.done, counter.reused, counter.tokens) == (5, 5, 0)


def test_more_samples_ask_for_the_new_ones_only(store: Store) -> None:
    few = run(store, ScriptedEngine(), [ask("tea", 2)])
    engine = ScriptedEngine()
    more = run(store, engine, [ask("tea", 5)])
    assert engine.asked == 3
    assert len({row.key for _, row in more}) == 5
    assert {row.key for _, row in few} < {row.key for _, row in more}


def test_equal_requests_are_asked_once_and_answered_each(store: Store) -> None:
    engine, counter = ScriptedEngine(), Counter()
    got = run(store, engine, [ask("tea", 2, tag="a"), ask("tea", 3, tag="b"), ask("tea", 1, tag="c")], progress=counter)
    assert engine.asked == 3
    assert sorted(request.tag for request, _ in got) == ["a", "a", "b", "b", "b", "c"]
    assert len(store.rows(Call)) == 3
    assert (counter.done, counter.reused) == (6, 3)


def test_another_model_seed_or_temperature_is_another_answer(store: Store) -> None:
    run(store, ScriptedEngine(), [ask("tea")])
    for engine, request in (
        (ScriptedEngine("other"), ask("tea")),
        (ScriptedEngine(), ask("tea", seed=1)),
        (ScriptedEngine(), ask("tea", sampling=Sampling(temperature=0.5))),
        (ScriptedEngine(), ask("tea", prefix="It")),
    ):
        run(store, engine, [request])
        assert engine.asked == 1


class Watched(ScriptedEngine):
    """Looks into the store before each answer after the first."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.kept: list[int] = []

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        for completion in self.generate(requests, have):
            yield [completion]
            with Store.open(self.folder) as other:
                self.kept.append(len(other.read("calls")))


def test_an_answer_is_durable_before_the_next_is_made(store: Store) -> None:
    engine = Watched(store.folder)
    for _, row, _ in answer(store, engine, [ask("tea", 4)], run="r", round=0, purpose="test"):
        assert row.key in {kept.key for kept in store.rows(Call)}
    assert engine.kept == [1, 2, 3, 4]


def test_an_engine_without_bursts_serves_as_well(store: Store) -> None:
    class Plain:
        identity = Identity("plain", "m", "h")

        def render(self, request: Request) -> str:
            return request.messages[0]["content"]

        def generate(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[Completion]:
            for request in requests:
                yield Completion(request, 0, text="again", finish_reason="stop")
                yield Completion(request, 0, text="and again", finish_reason="stop")

        def close(self) -> None: ...

    got = run(store, Plain(), [ask("tea")])
    assert [row.text for _, row in got] == ["again"]
    assert len(store.rows(Call)) == 1


class Streaming(ScriptedEngine):
    """Takes requests a few at a time, as an endpoint does, and notes how many were taken before each burst."""

    streams = True

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.taken, self.noted = 0, [0]

    def render(self, request: Request) -> str:
        self.taken += 1
        return super().render(request)

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        waiting = iter(requests)
        while some := list(islice(waiting, 10)):
            self.noted.append(self.taken)
            yield from super().bursts(some, have)


def test_an_engine_that_streams_answers_the_first_before_the_last_has_a_key(store: Store) -> None:
    requests = [ask(f"tea {n}") for n in range(300)]
    engine, counter = Streaming(), Counter()
    got = run(store, engine, requests, progress=counter)
    assert {request.messages[0]["content"] for request, _ in got} == {f"tea {n}" for n in range(300)}
    assert (len(got), counter.done, engine.asked) == (300, 300, 300)
    assert engine.noted[1] == STREAMED
    assert engine.noted[1] < engine.noted[-1]


def test_what_is_held_is_found_on_the_way_and_not_asked(store: Store) -> None:
    requests = [ask(f"tea {n}") for n in range(200)]
    run(store, ScriptedEngine(), requests[::3])
    engine, counter = Streaming(), Counter()
    got = run(store, engine, requests, progress=counter)
    held = len(requests[::3])
    assert (engine.asked, counter.reused, len(got)) == (200 - held, held, 200)
    assert len(store.rows(Call)) == 200


def test_a_question_that_comes_again_after_its_answer_is_not_paid_again(store: Store) -> None:
    """Also one that has failed: its tries are used up."""
    rules = [Rule(match="poison", fail="refused"), Rule(match="broken", fail="timeout", passing=True)]
    often = [ask("tea"), ask("poison"), ask("broken")]
    filling = [ask(f"filling {n}") for n in range(3 * STREAMED)]
    for attempts in (1, 2):
        engine, counter = Streaming(rules=rules), Counter()
        with Store.open(store.folder / f"attempts {attempts}", create=True) as fresh:
            got = run(fresh, engine, [*often, *filling, *often, *often], progress=counter, attempts=attempts)
            texts = [request.messages[0]["content"] for request, _ in got]
            assert [texts.count(text) for text in ("tea", "poison", "broken")] == [3, 3, 3]
            assert [len(fresh.rows(Call, {"failure": kind})) for kind in ("refused", "timeout")] == [1, attempts]
            assert len(got) == len(filling) + 9
        assert (engine.asked, counter.reused) == (len(filling) + 2 + attempts, 6)


def test_repeats_of_what_is_held_are_answered_each_wherever_they_stand(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "LOOKUP", 20)
    first = [ask(f"tea {n}") for n in range(20)]
    run(store, ScriptedEngine(), first)
    for engine in (ScriptedEngine(), Streaming()):
        for more in (1, 20, 47):
            got = run(store, engine, [*first, *(ask("tea 3") for _ in range(more))])
            assert len(got) == 20 + more
        assert engine.asked == 0


@pytest.mark.parametrize("attempts", [1, 3])
def test_an_answer_past_its_limit_is_not_asked_for_again_by_a_repeat(store: Store, attempts: int) -> None:
    """An endpoint that counts more tokens than it was allowed: its answer would not stand for a longer limit."""

    class Long(Streaming):
        def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
            for burst in super().bursts(requests, have):
                yield [dataclasses.replace(c, completion_tokens=c.request.sampling.max_tokens + 1) for c in burst]

    engine = Long(rules=[Rule(reply="short")])
    requests = [ask("tea"), *(ask(f"filling {n}") for n in range(3 * STREAMED)), ask("tea")]
    assert len(run(store, engine, requests, attempts=attempts)) == len(requests)
    assert engine.asked == len(requests) - 1


def test_what_has_come_is_stored_before_anything_is_handed_on(store: Store) -> None:
    """A caller that stops at the first answer that was held loses nothing that was paid for."""
    held = [ask(f"held {n}") for n in range(10)]
    run(store, ScriptedEngine(), held)
    engine = Streaming()
    got = answer(store, engine, [ask("new"), *held], run="r", round=0, purpose="test")
    next(got)
    got.close()
    assert len(store.rows(Call)) == 11


def test_an_end_keeps_all_that_has_come_of_a_burst(store: Store) -> None:
    class Parted(ScriptedEngine):
        def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
            yield InParts([completion for burst in super().bursts(requests, have) for completion in burst])

    class InParts(Burst):
        def parts(self) -> Iterator[list[Completion]]:
            for completion in self:
                claims.end()
                yield [completion]

    claims = Claims()
    assert len(run(store, Parted(), [ask("tea", 5)], claims=claims)) == 5
    assert len(store.rows(Call)) == 5


def test_limits_that_differ_are_known_before_the_first_call(store: Store) -> None:
    """The longest is asked first, wherever it stands in the list."""
    requests = [ask(f"tea {n}", sampling=Sampling(max_tokens=limit)) for limit in (30, 200) for n in range(100)]
    engine = Streaming(rules=[Rule(reply="short")])
    got = run(store, engine, requests)
    assert len(got) == 200
    assert engine.asked == 100
    assert {kept.sampling["max_tokens"] for kept in store.rows(Call)} == {200}


# --------------------------------------------------------------------------------------------------------- failures


def test_a_passing_failure_is_asked_again_up_to_the_limit(store: Store) -> None:
    engine, counter = ScriptedEngine(rules=[Rule(match="tea", fail="timeout", passing=True, times=2)]), Counter()
    ((_, row),) = run(store, engine, [ask("tea")], progress=counter)
    assert (row.attempt, row.failure) == (3, None)
    assert [kept.attempt for kept in store.rows(Call)] == [1, 2, 3]
    assert (counter.done, counter.failed) == (1, 0)


def test_a_failure_that_stays_is_handed_on_and_asked_again_the_next_time(store: Store) -> None:
    ((_, row),) = run(store, ScriptedEngine(rules=[Rule(fail="timeout", passing=True)]), [ask("tea")], attempts=2)
    assert (row.attempt, row.failure, row.passing) == (2, "timeout", True)
    engine = ScriptedEngine(rules=[Rule(fail="timeout", passing=True)])
    ((_, row),) = run(store, engine, [ask("tea")], attempts=2)
    assert row.attempt == 4
    assert engine.asked == 2


def test_a_permanent_failure_is_asked_again_on_demand_only(store: Store) -> None:
    def engine() -> ScriptedEngine:
        return ScriptedEngine(rules=[Rule(match="poison", fail="refused")])

    requests = [ask("poison"), ask("tea")]
    run(store, engine(), requests)
    quiet, eager, counter = engine(), engine(), Counter()
    assert sorted(str(row.failure) for _, row in run(store, quiet, requests, progress=counter)) == ["None", "refused"]
    assert (quiet.asked, counter.failed, counter.reused) == (0, 1, 2)
    got = run(store, eager, requests, retry_failed=True)
    assert eager.asked == 1
    assert {row.attempt for request, row in got if row.failure} == {2}


@pytest.mark.parametrize("latency", [0.0, 0.001])
def test_what_was_answered_before_the_end_is_kept(store: Store, latency: float) -> None:
    engine = ScriptedEngine(rules=[Rule(match="last", abort=True), Rule(latency=latency)])
    with pytest.raises(EndpointError):
        run(store, engine, [ask("first"), ask("second"), ask("last")])
    assert {row.messages[0]["content"] for row in store.rows(Call)} == {"first", "second"}


def test_an_engine_that_leaves_a_request_out_is_a_bug(store: Store) -> None:
    class Lazy(ScriptedEngine):
        def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
            yield from super().bursts(list(requests)[1:], have)

    with pytest.raises(RuntimeError, match="left 1 requests without any answer"):
        run(store, Lazy(), [ask("tea"), ask("salt")])
    assert len(store.rows(Call)) == 1


# ------------------------------------------------------------------------------------------------- longer and shorter


@pytest.mark.parametrize(
    ("held", "wanted", "fits"),
    [
        ({"finish_reason": "stop", "completion_tokens": 8, "sampling": {"max_tokens": 8}}, 500, True),
        ({"finish_reason": "stop", "completion_tokens": 8, "sampling": {"max_tokens": 20}}, 8, True),
        ({"finish_reason": "stop", "completion_tokens": 9, "sampling": {"max_tokens": 20}}, 8, False),
        ({"finish_reason": "length", "completion_tokens": 8, "sampling": {"max_tokens": 8}}, 8, True),
        ({"finish_reason": "length", "completion_tokens": 8, "sampling": {"max_tokens": 8}}, 9, False),
        ({"finish_reason": "length", "completion_tokens": 8, "sampling": {"max_tokens": 8}}, 7, False),
        ({"finish_reason": "", "failure": "timeout", "sampling": {"max_tokens": 8}}, 8, False),
    ],
)
def test_a_held_answer_fits_a_limit(held: dict[str, Any], wanted: int, fits: bool) -> None:
    assert reusable(call(1, **held), ask("tea", sampling=Sampling(max_tokens=wanted))) is fits


def test_a_longer_limit_asks_again_only_for_what_was_cut(store: Store) -> None:
    rules = [Rule(match="short", reply="one two"), Rule(reply="one two three four five six")]
    requests = [[ask(text, sampling=Sampling(max_tokens=limit)) for text in ("short", "long")] for limit in (4, 50)]
    run(store, ScriptedEngine(rules=rules), requests[0])
    engine = ScriptedEngine(rules=rules)
    got = {request.messages[0]["content"]: row for request, row in run(store, engine, requests[1])}
    assert engine.asked == 1
    assert (got["long"].attempt, got["long"].finish_reason) == (2, "stop")
    assert (got["short"].attempt, got["short"].completion_tokens) == (1, 3)


def test_an_answer_to_another_limit_in_between_costs_nothing(store: Store) -> None:
    long, short = (ask("tea", sampling=Sampling(max_tokens=limit)) for limit in (3, 2))
    [(_, first)] = run(store, ScriptedEngine(), [long])
    assert first.finish_reason == "length"
    [(_, between)] = run(store, ScriptedEngine(), [short])
    assert (between.attempt, between.completion_tokens) == (2, 2)
    engine = ScriptedEngine()
    assert [call for _, call in run(store, engine, [long])] == [first]
    assert [call for _, call in run(store, engine, [short])] == [between]
    assert engine.asked == 0


def test_equal_questions_with_different_limits_are_each_answered_to_their_own(store: Store) -> None:
    """The longest is asked first; what ended by itself within a shorter limit answers that one too."""
    rules = [Rule(match="short", reply="one two"), Rule(reply="one two three four five six")]
    requests = [ask(text, sampling=Sampling(max_tokens=n)) for text in ("short", "long") for n in (4, 50, 3)]
    for _ in range(2):
        engine = ScriptedEngine(rules=rules)
        got = run(store, engine, requests)
        assert Counted.of(got) == {
            ("short", 50): ("one two", "stop", 3), ("short", 4): ("one two", "stop", 3),
            ("short", 3): ("one two", "stop", 3), ("long", 50): ("one two three four five six", "stop", 7),
            ("long", 4): ("one two three four", "length", 4), ("long", 3): ("one two three", "length", 3),
        }  # fmt: skip
        assert len(got) == len(requests)
    assert engine.asked == 0
    assert len(store.rows(Call)) == 4


class Counted:
    """What came back, by question and limit."""

    @staticmethod
    def of(got: Iterable[tuple[Request, Call]]) -> dict[tuple[str, int], tuple[str, str, int]]:
        return {
            (request.messages[0]["content"], request.sampling.max_tokens): (
                row.text,
                row.finish_reason,
                row.completion_tokens,
            )
            for request, row in got
        }


# ------------------------------------------------------------------------------------------------------------- keys

REQUESTS = st.builds(
    Request,
    messages=st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text()})),
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0, 2) | st.integers(0, 2),
        top_p=st.floats(0, 1),
        top_k=st.integers(0, 50),
        max_tokens=st.integers(1, 99),
        stop=st.lists(st.text(), max_size=2).map(tuple),
    ),
    n=st.integers(1, 3),
    seed=st.integers(0, 2**63),
    answers=st.lists(st.text(), max_size=3).map(tuple),
    json_schema=st.none() | st.dictionaries(st.text(), st.integers(), max_size=2),
    prefix=st.text(),
)


@settings(deadline=None)
@given(REQUESTS, st.text(st.characters(exclude_categories=())))
def test_a_key_is_the_hash_that_it_has_always_been(request_: Request, rendered: str) -> None:
    identity = Identity("openai", "shown", "content")
    sampling = dataclasses.asdict(request_.sampling)
    del sampling["max_tokens"]
    whole = [
        digest("openai", "content", rendered, sampling, request_.answers, request_.json_schema, request_.prefix,
               request_.seed, sample)
        for sample in range(request_.n)
    ]  # fmt: skip
    assert call_keys(identity, rendered, request_) == whole
    assert call_key(identity, rendered, request_, request_.n - 1) == whole[-1]


def test_a_key_from_an_older_store_is_found() -> None:
    identity = Identity("openai", "m", "h")
    request_ = ask("tea \u00e9", sampling=Sampling(0.5, 0.9, 5, 8, ("\n",)), answers=("A", "B"), prefix="(", seed=7)
    assert call_key(identity, "tea", request_, 1) == "52ff01aae3270e965161e483429b78b0"


# -------------------------------------------------------------------------------------------------- several at once


class Slow(ScriptedEngine):
    """Waits before its first answer until it is let go."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.begun, self.go = threading.Event(), threading.Event()

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        self.begun.set()
        assert self.go.wait(10)
        yield from super().bursts(requests, have)


def test_two_that_ask_the_same_at_once_pay_once(store: Store) -> None:
    claims, engine = Claims(), Slow()
    shared, own = [ask(f"shared {n}") for n in range(5)], ask("only the second")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run, store, engine, shared, claims=claims)
        assert engine.begun.wait(10)
        second = pool.submit(run, store, ScriptedEngine(), [own, *shared], claims=claims)
        while not {row.messages[0]["content"] for row in store.rows(Call)} >= {"only the second"}:
            assert not second.done()
        engine.go.set()
        assert len(first.result()) == 5
        assert {request.messages[0]["content"] for request, _ in second.result()} == {
            "only the second", *(f"shared {n}" for n in range(5))
        }  # fmt: skip
    assert len(store.rows(Call)) == 6


class Overtaken(ScriptedEngine):
    """Between the lookup and the first call, another process answers some of the questions for a run of its own."""

    def __init__(self, folder: Path, some: list[Request]) -> None:
        super().__init__()
        self.folder, self.some = folder, some

    def generate(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[Completion]:
        with Store.open(self.folder) as other:
            assert len(run(other, ScriptedEngine(), self.some, run="other")) == 2
        yield from super().generate(requests, have)


@pytest.mark.parametrize("budget", [None, Budget(max_tokens=100_000)])
def test_what_another_process_stored_since_the_lookup_is_not_paid_again(
    store: Store, budget: Budget | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.calls.AGAIN", 0.0)
    requests = [ask(text) for text in ("tea", "salt", "sea", "tea")]
    engine = Overtaken(store.folder, requests[1:3])
    found = list(answer(store, engine, requests, run="r", round=1, purpose="test", budget=budget))
    assert sorted((each.request.messages[0]["content"], each.call.run, each.reused) for each in found) == [
        ("salt", "other", True), ("sea", "other", True), ("tea", "r", False), ("tea", "r", True),
    ]  # fmt: skip
    assert engine.asked == 1
    assert len(store.rows(Call)) == 3


def test_a_second_look_takes_no_passing_failure_for_an_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.calls.AGAIN", 0.0)
    failing = ScriptedEngine(rules=[Rule(fail="busy", passing=True)])
    monkeypatch.setattr(failing, "_identity", ScriptedEngine().identity)
    run(store, failing, [ask("tea")], run="other", attempts=1)
    assert [call.failure for _, call in run(store, ScriptedEngine(), [ask("tea")])] == [None]


def test_what_another_gave_up_is_asked_by_the_one_that_waits(store: Store) -> None:
    claims, engine = Claims(), Slow(rules=[Rule(abort=True)])
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run, store, engine, [ask("tea")], claims=claims)
        assert engine.begun.wait(10)
        second = pool.submit(run, store, ScriptedEngine(), [ask("tea")], claims=claims)
        engine.go.set()
        assert isinstance(first.exception(10), EndpointError)
        assert [row.failure for _, row in second.result(10)] == [None]


def test_an_end_stops_all_and_keeps_what_came(store: Store) -> None:
    claims = Claims()
    asking = answer(store, Watched(store.folder), [ask("tea", 4)], run="r", round=0, purpose="test", claims=claims)
    next(asking)
    claims.end()
    assert list(asking) == []
    assert len(store.rows(Call)) == 1
    assert claims.take(row.key for row in store.rows(Call))
    assert run(store, ScriptedEngine(), [ask("salt")], claims=claims) == []
