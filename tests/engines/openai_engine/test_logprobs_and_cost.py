"""What the openai engine reads of a reply beside its text: log-probabilities of answers, tokens and dollars."""

from __future__ import annotations

import math
from typing import Any

import pytest
from asked import Serve, ask, engine_for, failure_of
from fault_server import always, answered, choice, good, in_turn


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
