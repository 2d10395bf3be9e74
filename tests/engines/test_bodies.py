"""Bodies put together from bytes are the JSON of the typed mapping, and hold fields of the `openai` package's type."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from factory.engines.bodies import OWN, RENDERED, Bodies, first_seed, seed_for
from factory.schema import Request, Sampling

BESIDES = {"top_k", "continue_final_message", "add_generation_prompt"}  # vLLM's and SGLang's


def bodies(**options: Any) -> Bodies:
    given = {"limit_name": "max_tokens", "sparse": False, "logprobs": False, "top_logprobs": 20, "extra": {}}
    return Bodies("m", **given | options)


requests = st.builds(
    Request,
    messages=st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()})),
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0, 2),
        top_p=st.sampled_from([0.5, 1.0]),
        top_k=st.integers(0, 5),
        max_tokens=st.integers(1, 10),
        stop=st.lists(st.text(), max_size=2).map(tuple),
    ),
    answers=st.sampled_from([(), ("A", "B")]),
    json_schema=st.sampled_from([None, {"type": "object"}, {"type": "string"}]),
    prefix=st.sampled_from(["", "It is"]),
)


@given(st.lists(requests, max_size=4), st.integers(1, 3), st.booleans())
def test_the_bytes_are_the_mapping(asked: list[Request], n: int, sparse: bool) -> None:
    made = bodies(sparse=sparse, extra={"min_p": 0.1})
    for request in asked:
        messages = made.messages(request)
        body = json.loads(made.encode(request, messages, 7, n))
        turns = list(request.messages) + ([{"role": "assistant", "content": "It is"}] if request.prefix else [])
        wanted = json.loads(json.dumps(made.body(request) | {"messages": turns, "seed": 7}))
        assert body == wanted | ({"n": n} if n > 1 else {})


@given(requests)
def test_every_field_is_one_that_the_openai_package_knows(request: Request) -> None:
    package = CompletionCreateParamsNonStreaming
    known = package.__required_keys__ | package.__optional_keys__ | BESIDES
    fields = set(bodies().body(request)) | set(bodies(limit_name="max_completion_tokens").body(request))
    assert fields <= known
    assert fields <= OWN


def test_defaults_are_left_out_for_openai_itself() -> None:
    """Reasoning models refuse a temperature; 1 is the API's own default, so that leaving it out changes nothing."""
    plain = bodies(sparse=True, limit_name="max_completion_tokens").body(Request([]))
    assert set(plain) == {"messages", "seed", "model", "max_completion_tokens"}
    other = bodies(sparse=True).body(Request([], Sampling(temperature=0.5, top_p=0.9)))
    assert (other["temperature"], other["top_p"]) == (0.5, 0.9)


@given(st.integers(), st.binary())
def test_seeds_have_31_bits_and_differ_between_samples(seed: int, messages: bytes) -> None:
    first = first_seed(Request([], seed=seed), messages)
    seeds = [seed_for(first, sample) for sample in range(64)]
    assert len(set(seeds)) == 64
    assert all(0 <= one < 2**31 for one in seeds)


@given(asked=st.lists(requests, max_size=6), order=st.permutations(range(6)))
def test_a_request_is_sent_as_it_was_rendered_whichever_is_sent_first(asked: list[Request], order: list[int]) -> None:
    made = bodies()
    for request in asked:
        made.render(request)
    for place in (place for place in order if place < len(asked)):
        assert made.messages(asked[place]) == bodies().messages(asked[place])
    assert [made.messages(request) for request in asked] == [bodies().messages(request) for request in asked]


def test_what_is_never_sent_is_not_kept_for_ever() -> None:
    made = bodies()
    for number in range(3 * RENDERED):
        made.render(Request([{"role": "user", "content": str(number)}]))
    assert len(made._rendered) <= RENDERED
