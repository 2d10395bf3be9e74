"""What the openai engine asks: bodies, headers, addresses, and what it doesn't ask.

What becomes of each way of failing is in test_fault_modes.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from asked import Serve, ask, engine_for, failure_of
from fault_server import FaultServer, good

from factory.engines.openai import OpenAIEngine
from factory.schema import Request, Sampling


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


def test_bodies_hold_valid_json_for_any_text(serve: Serve) -> None:
    server = serve(good)
    text = 'quote " backslash \\ newline \n null \0 and \u2028'
    (completion,) = engine_for(server).generate([ask(text)])
    assert completion.text.startswith(text)
    assert json.dumps(server.seen[0]["messages"][0]["content"]) == json.dumps(text)


def test_a_request_that_has_no_json_is_raised_where_it_was_asked(serve: Serve) -> None:
    with pytest.raises(TypeError):
        list(engine_for(serve(good)).generate([ask(), Request([{"role": "user", "content": {1}}])]))  # type: ignore[typeddict-item]


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
