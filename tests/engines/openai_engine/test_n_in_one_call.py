"""Several samples in one call: the same keys and bills as one by one, also where the server cannot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from asked import Serve, ask, engine_for
from fault_server import FaultServer, answered, choice, error, good, one_only

from factory.calls import answer
from factory.store import Store


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
