"""A budget is never passed, whatever runs side by side and whatever fails; what is paid for is kept and counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fault_server import FaultServer, after, always, answered, choice, error, good, hang, in_turn, mixed
from hypothesis import given, settings, strategies as st

from factory.budget import Budget, BudgetError, Spend, used, worst_case
from factory.calls import Answered, answer
from factory.engines.openai import OpenAIEngine
from factory.engines.scripted import ScriptedEngine
from factory.faults import ConfigError
from factory.schema import Call, Completion, Failure, Request, Sampling
from factory.store import Store

PRICES = {"prompt": 1000.0, "completion": 1000.0}  # a dollar for a thousand tokens
ONE = 14 / 1000  # dollars of one answer of the server: 11 + 3 tokens


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("factory.engines.attempts.BUSY_PAUSE", 0.001)


def engine_for(server: FaultServer, **options: Any) -> OpenAIEngine:
    given = {"base_url": server.url, "timeout": 5.0, "prices": PRICES, "concurrency": 8, "invalid_retries": 0}
    return OpenAIEngine("m", **given | options)


def ask(number: int, **more: Any) -> Request:
    return Request([{"role": "user", "content": f"tea {number}"}], Sampling(max_tokens=5), **more)


def run(store: Store, engine: Any, requests: list[Request], budget: Budget, **more: Any) -> list[Call]:
    """The answers up to the end of the budget."""
    calls = answer(store, engine, requests, run="r", round=0, purpose="test", budget=budget, **more)
    got: list[Answered] = []
    with pytest.raises(BudgetError):
        got.extend(calls)
    return [call for _, call, _ in got]


def paid(store: Store) -> float:
    return sum(call.cost or 0.0 for call in store.rows(Call))


# ------------------------------------------------------------------------------------------------- one after the other


def test_dollars_stop_a_run_which_keeps_what_it_paid_for(store: Store) -> None:
    """Every call may cost up to worst; it stops when less than that is left, far below what 1,000 answers cost."""
    with FaultServer(after(0.002, good)) as server:
        engine = engine_for(server)
        worst = engine.worst_case(ask(0)).cost
        assert worst is not None
        budget = Budget(max_cost=1.0)
        got = run(store, engine, [ask(number) for number in range(1000)], budget)
        assert len(server.seen) == len(got) == len(store.rows(Call))
    assert 1.0 - worst < paid(store) <= 1.0
    assert paid(store) == pytest.approx(len(got) * ONE) == pytest.approx(budget.cost)


def test_tokens_stop_a_run_too_also_without_prices(store: Store) -> None:
    with FaultServer(good) as server:
        engine = engine_for(server, prices=None)
        got = run(store, engine, [ask(number) for number in range(1000)], Budget(max_tokens=1000))
        spent = sum(call.prompt_tokens + call.completion_tokens for call in store.rows(Call))
        assert 1000 - engine.worst_case(ask(0)).tokens < spent == 14 * len(got) <= 1000


def test_a_run_that_goes_on_counts_what_it_has_spent(store: Store) -> None:
    requests = [ask(number) for number in range(200)]
    with FaultServer(good) as server:
        first = run(store, engine_for(server), requests, Budget(max_cost=0.5))
        again = run(store, engine_for(server), requests, Budget(max_cost=0.5))
        assert sorted(call.key for call in again) == sorted(call.key for call in first)
        assert len(server.seen) == len(first)
        more = run(store, engine_for(server), requests, Budget(max_cost=1.0))
        assert len(more) > len(first)
        assert paid(store) <= 1.0
        other = answer(store, engine_for(server), requests, run="other", round=0, purpose="test", budget=Budget(50.0))
        assert len(list(other)) == 200


def test_what_is_held_is_given_whatever_the_budget(store: Store) -> None:
    requests = [ask(number) for number in range(20)]
    with FaultServer(good) as server:
        whole = list(answer(store, engine_for(server), requests, run="r", round=0, purpose="test"))
        tight = Budget(max_cost=0.0001)
        again = list(answer(store, engine_for(server), requests, run="r", round=0, purpose="test", budget=tight))
    assert len(whole) == len(again) == 20


def test_the_end_says_numbers_and_what_to_do(store: Store) -> None:
    with FaultServer(good) as server:
        budget = Budget(0.01, 100_000)
        calls = answer(store, engine_for(server), [ask(0)], run="r", round=0, purpose="test", budget=budget)
        with pytest.raises(BudgetError) as caught:
            list(calls)
    assert caught.value.exit_code == 1
    assert "$0.0000 of $0.0100 and 0 of 100,000 tokens" in str(caught.value)
    assert "1 answers are left" in str(caught.value)
    assert server.seen == []


# ----------------------------------------------------------------------------------------------------- side by side


def test_small_amounts_are_told_apart(store: Store) -> None:
    with FaultServer(good) as server:
        engine = engine_for(server, prices={"prompt": 0.1, "completion": 0.1})
        calls = answer(store, engine, [ask(0)], run="r", round=0, purpose="test", budget=Budget(0.00000123))
        with pytest.raises(BudgetError) as caught:
            list(calls)
    assert "$0.0000 of $0.00000123; the next answer may take up to $0.0000107" in str(caught.value)


def test_threads_that_share_a_budget_stay_within_it(store: Store) -> None:
    budget, faults = Budget(max_cost=1.5), []

    with FaultServer(after(0.002, good)) as server:
        engine = engine_for(server)

        def judge(name: int) -> None:
            try:
                requests = [ask(number, seed=name) for number in range(300)]
                list(answer(store, engine, requests, run="r", round=0, purpose="test", budget=budget))
            except BudgetError as fault:
                faults.append(fault)

        threads = [threading.Thread(target=judge, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        worst = engine.worst_case(ask(0)).cost or 0.0
    assert len(faults) == 4
    assert 1.5 - worst < paid(store) <= 1.5
    assert budget.cost == pytest.approx(paid(store))


def test_429s_and_failures_cost_nothing_and_hold_nothing(store: Store) -> None:
    """A third of the calls is refused, broken or no answer at all; the budget is used to the end all the same."""
    behaviour = mixed({"429": 0.15, "500": 0.1, "reset": 0.05, "html": 0.05}, good)
    with FaultServer(behaviour) as server:
        engine = engine_for(server, concurrency=4)
        got = run(store, engine, [ask(number) for number in range(300)], Budget(max_cost=1.0))
        worst = engine.worst_case(ask(0)).cost or 0.0
    assert any(call.failure for call in store.rows(Call))
    assert 1.0 - worst < paid(store) <= 1.0
    assert got


def test_every_try_is_reserved_for(store: Store) -> None:
    """The server bills two answers without a text before each good one: three times 14 tokens an answer."""
    bad = always(data=answered(choice(None)))

    async def third(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        return await (good if len(server.seen) % 3 == 0 else bad)(body, server)

    with FaultServer(third) as server:
        engine = engine_for(server, invalid_retries=2, concurrency=1)
        run(store, engine, [ask(number) for number in range(100)], Budget(max_cost=1.0))
        assert len(server.seen) * ONE == pytest.approx(paid(store))
    assert paid(store) <= 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=60),
    st.integers(20, 500),
    st.integers(1, 4),
)
def test_no_order_of_events_passes_the_cap(calls: list[tuple[int, float]], cap: int, threads: int) -> None:
    """Threads reserve, settle for a part of it, or give back; what is spent never passes the cap."""
    budget, most = Budget(max_tokens=cap), []

    def work(mine: list[tuple[int, float]]) -> None:
        left = [Spend(worst, 0.0) for worst, _ in mine]
        shares = [share for _, share in mine]
        try:
            while left:
                count = budget.reserve(left, lambda: False)
                for worst, share in zip(left[:count], shares[:count], strict=True):
                    if share < 0.1:
                        budget.release([worst])
                    else:
                        budget.settle(worst, Spend(int(worst.tokens * share), 0.0))
                    most.append(budget.tokens)
                left, shares = left[count:], shares[count:]
        except BudgetError:
            return

    running = [threading.Thread(target=work, args=(calls[start::threads],)) for start in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(20)
    assert not any(thread.is_alive() for thread in running)
    assert max(most, default=0) <= cap


# -------------------------------------------------------------------------------------------------- what is not known


def test_a_cap_on_dollars_needs_prices(store: Store) -> None:
    with FaultServer(good) as server:
        engine = engine_for(server, prices=None)
        with pytest.raises(ConfigError, match="the price of 'm' is unknown") as caught:
            list(answer(store, engine, [ask(0)], run="r", round=0, purpose="test", budget=Budget(max_cost=1.0)))
        assert caught.value.exit_code == 2
        assert server.seen == []


@pytest.mark.parametrize("options", [{"max_cost": 0}, {"max_tokens": -1}, {"max_cost": float("nan")}])
def test_a_cap_is_above_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        Budget(**options)


def test_answers_without_a_bill_count_with_the_most_they_can_cost(store: Store) -> None:
    """No usage comes with any answer: the cap holds by the worst case, at first and when the run goes on."""
    requests = [ask(number) for number in range(100)]
    with FaultServer(always(data=answered(usage=None))) as server:
        engine = engine_for(server)
        worst = engine.worst_case(ask(0)).cost
        assert worst is not None
        got = run(store, engine, requests, Budget(max_cost=1.0))
        assert len(got) == int(1.0 // worst)
        again = run(store, engine_for(server), requests, Budget(max_cost=1.0))
        assert len(again) == len(got) == len(server.seen)


def test_tokens_that_come_with_log_probs_alone_are_no_bill(store: Store) -> None:
    """Without usage the answer's one token is counted, but not the prompt's."""
    logprobs = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": []}]}
    with FaultServer(always(data=answered(choice("A", logprobs=logprobs), usage=None))) as server:
        engine = engine_for(server)
        (completion,) = engine.generate([ask(0)])
        assert completion.completion_tokens == 1
        assert used(engine, completion) == engine.worst_case(ask(0))


def test_tokens_of_tries_without_an_answer_count(store: Store) -> None:
    """14 tokens for each of two tries that were no answer, and for the answer."""
    bad = always(data=answered(choice(None)))
    with FaultServer(in_turn(bad, bad, good)) as server:
        engine, budget = engine_for(server, invalid_retries=2), Budget(max_tokens=10_000)
        list(answer(store, engine, [ask(0)], run="r", round=0, purpose="test", budget=budget))
    assert budget.tokens == 3 * 14


def test_calls_that_hung_may_have_been_billed(store: Store) -> None:
    with FaultServer(in_turn(hang, good)) as server:
        engine = engine_for(server, timeout=0.2, concurrency=1)
        budget = Budget(max_cost=50.0)
        calls = answer(store, engine, [ask(0), ask(1)], run="r", round=0, purpose="test", budget=budget)
        assert [call.failure for _, call, _ in calls] == [None, None]
        worst = engine.worst_case(ask(0)).cost or 0.0
    assert budget.cost == pytest.approx(worst + 2 * ONE)
    after_all = Budget(max_cost=50.0)
    after_all.open(store, engine, "r")
    assert after_all.cost == pytest.approx(budget.cost)


def test_engines_of_this_machine_cost_nothing_and_have_tokens(store: Store) -> None:
    engine, request = ScriptedEngine(), Request([{"role": "user", "content": "tea"}], Sampling(max_tokens=7))
    assert worst_case(engine, request).cost == 0.0
    assert worst_case(engine, request).tokens > 7
    assert used(engine, Completion(request, 0, prompt_tokens=3, completion_tokens=4)) == Spend(7, 0.0)
    got = list(answer(store, engine, [ask(0)], run="r", round=0, purpose="test", budget=Budget(max_cost=0.01)))
    assert len(got) == 1
    run(store, ScriptedEngine(), [ask(number) for number in range(1, 200)], Budget(max_tokens=500))
    assert sum(call.prompt_tokens + call.completion_tokens for call in store.rows(Call)) <= 500


def test_a_refusal_costs_nothing() -> None:
    engine = OpenAIEngine("m", base_url="http://localhost/v1", prices=PRICES)
    refused = Completion(ask(0), 0, failure=Failure("refused", "HTTP 400"))
    assert used(engine, refused) == Spend(0, 0.0)


def test_a_run_that_ends_for_another_reason_gives_its_reservation_back(store: Store) -> None:
    budget = Budget(max_cost=10.0)
    with FaultServer(error(401)) as server, pytest.raises(Exception, match="credentials"):
        list(answer(store, engine_for(server), [ask(0)], run="r", round=0, purpose="test", budget=budget))
    assert budget.reserve([Spend(0, 9.9)], lambda: True) == 1
