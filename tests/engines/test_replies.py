"""Reading never raises anything but NoAnswerError, log-probs are read as they stand, and sums of shares stay exact."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fault_server import answered, choice
from hypothesis import given, strategies as st

from factory.engines.attempts import by_weight, shared
from factory.engines.replies import Choice, NoAnswerError, Usage, answer_logprobs, outcome_of, read

NAMES = ["choices", "message", "content", "usage", "logprobs", "finish_reason", "token", "logprob", "top_logprobs",
         "prompt_tokens", "prompt_tokens_details", "cached_tokens", "refusal"]  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES), inner),
)


@given(anything)
def test_reading_an_answer_raises_nothing_else(value: Any) -> None:
    for data in (
        value,
        {"choices": [value]},
        answered(value),
        answered(choice("x", logprobs=value)),
        answered(choice("x", finish_reason=value)),
        answered(choice(message=value)),
        answered(usage=value),
    ):
        try:
            found = read(json.dumps(data).encode(), ("A",))
        except NoAnswerError:
            continue
        for one in found.choices:
            assert one.fault or one.filtered is not None or one.finish_reason in {"stop", "length"}
        assert min(found.usage) >= 0
        assert found.usage.cached <= found.usage.prompt


@given(st.binary())
def test_reading_any_bytes_raises_nothing_else(body: bytes) -> None:
    with pytest.raises(NoAnswerError):
        read(body + b"]")


@given(st.integers(100, 599), st.binary() | anything.map(lambda value: json.dumps({"error": value}).encode()))
def test_every_other_status_has_a_fate(status: int, body: bytes) -> None:
    outcome = outcome_of(status, body, answered=True, secret="sk-secret")
    assert outcome.fate in {"failed", "busy", "ended"}
    assert outcome.failure.kind
    assert outcome.failure.detail.startswith(f"HTTP {status}")
    assert len(outcome.failure.detail) < 400


def test_a_key_is_blotted_out_also_where_a_cut_would_go_through_it() -> None:
    body = ("x" * 290 + "sk-secret").encode()
    assert "sk-" not in outcome_of(400, body, answered=True, secret="sk-secret").failure.detail


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (422, {"detail": [{"loc": ["body", "stop"], "msg": "Input should be a list"}]}, "refused", "should be a list"),
        (400, {"error": {"code": 400, "message": "no", "type": "exceed_context_size_error"}}, "too_long", "no"),
        (400, {"error": {"code": "content_filter", "message": "no", "type": "BadRequest"}}, "filtered", "no"),
        (400, {"object": "error", "code": 400, "message": "no", "type": "BadRequestError"}, "refused", "no"),
    ],
)
def test_errors_are_read_in_every_servers_form(status: int, body: dict[str, Any], kind: str, said: str) -> None:
    """FastAPI's own, llama.cpp's, Azure's, and vLLM's of old."""
    failure = outcome_of(status, json.dumps(body).encode(), answered=True).failure
    assert failure.kind == kind
    assert said in failure.detail


def test_a_token_may_begin_one_answer_only() -> None:
    shown = [("Yes", -1.0, [("Yes", -1.0), (" N", -2.0), ("", -3.0), ("\n", -3.5), ("Yesterday", -4.0)])]
    assert answer_logprobs(shown, ("Yes", "No")) == pytest.approx({"Yes": -1.0, "No": -2.0})
    assert answer_logprobs([("T", -1.0, [("T", -1.0)])], ("Two", "Ten")) == {}


@given(st.integers(0, 10**6), st.lists(st.integers(1, 10**4), min_size=1, max_size=20))
def test_parts_by_weight_add_up(total: int, weights: list[int]) -> None:
    parts = by_weight(total, weights)
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) <= 1 for part, weight in zip(parts, weights, strict=True))


@given(
    st.lists(st.builds(Choice, st.text(), st.just("stop"), st.integers(0, 50)), min_size=1, max_size=8),
    st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000),
)  # fmt: skip
def test_what_a_call_was_billed_is_shared_out_exactly(
    choices: list[Choice], prompt: int, completion: int, cached: int
) -> None:
    usage = Usage(prompt, completion, min(cached, prompt))
    shares = shared(usage, choices)
    assert sum(share.prompt for share in shares) == usage.prompt
    assert sum(share.cached for share in shares) == usage.cached
    assert sum(share.completion for share in shares) == (completion or sum(choice.tokens for choice in choices))
