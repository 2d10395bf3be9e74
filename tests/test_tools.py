"""Calls of tools, what tools gave and the tools themselves, from a file to the model's prompt and to what is learnt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from factory.engines.bodies import Bodies
from factory.engines.chat import ChatText
from factory.engines.scripted import ScriptedEngine
from factory.export import export
from factory.generation import chosen_prompts, generate
from factory.judges.fence import transcript
from factory.prompts import add_prompts
from factory.schema import Call, Failure, Preference, Prompt, Request, Sampling, text_of
from factory.store import Store
from factory.training.rows import stored
from train import losses
from train.config import TrainConfig
from train.conversations import plain

TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name else '' }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "sea", "parameters": {"type": "object", "properties": {"depth": {}}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "sea", "arguments": '{"depth": 3}'}}
ASKED: list[Any] = [
    {"role": "user", "content": "How deep is the sea?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "three", "name": "sea", "tool_call_id": "c1"},
]
ROW = {
    "prompt": ASKED, "tools": [TOOL], "group": "g",
    "chosen": [{"role": "assistant", "content": "It is three."}],
    "rejected": [{"role": "assistant", "content": "Who knows."}],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template that has a place for tools."""
    folder = tmp_path_factory.mktemp("tools") / "model"
    shutil.copytree(tiny_model, folder)
    for old in folder.glob("chat_template*"):
        old.unlink()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """One preference from a file, and the same conversation without the tools."""
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (ROW, {**ROW, "tools": None})))
    with Store.open(tmp_path / "store", create=True) as opened:
        report = add_prompts(opened, str(tmp_path / "data.jsonl"), heldout=0, final=0)
        assert (report.prompts, report.preferences, report.failures) == (2, 2, ())
        opened.seal(force=True)
        yield opened


def with_tools(store: Store) -> Prompt:
    return next(prompt for prompt in store.rows(Prompt) if prompt.tools)


def test_the_store_keeps_every_word(store: Store) -> None:
    prompts = store.rows(Prompt)
    assert [prompt.messages for prompt in prompts] == [ASKED, ASKED]
    assert {json.dumps(prompt.tools) for prompt in prompts} == {"null", json.dumps([TOOL])}
    row = next(row for row in store.rows(Preference) if row.tools)
    assert (row.prompt, row.tools, row.prompt_key) == (ASKED, [TOOL], with_tools(store).key)
    assert text_of(ASKED) == (
        'user: How deep is the sea?\nassistant: I look. sea({"depth": 3})\ntool: three'
    )  # fmt: skip


def test_a_judge_sees_what_was_called() -> None:
    assert transcript(ASKED) == (
        'User:\nHow deep is the sea?\n\nAssistant:\nI look.\ncalls sea({"depth": 3})\n\nTool:\nthree'
    )


def test_sql_and_exports_have_them(store: Store, tmp_path: Path) -> None:
    query = "SELECT messages[2].tool_calls AS calls, messages[3].name AS name FROM prompts WHERE tools IS NOT NULL"
    assert store.sql(query).rows() == [{"calls": json.dumps([CALL], separators=(",", ":")), "name": "sea"}]
    export(store, tmp_path / "out", form="jsonl")
    lines = (tmp_path / "out" / "preferences.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prompt"] == ASKED for line in lines)
    assert [TOOL] in [json.loads(line)["tools"] for line in lines]


def test_a_local_model_reads_them_by_its_template(store: Store, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = with_tools(store)
    found = ChatText(tokenizer, {2}, 4096).prepare(Request(prompt.messages, tools=tuple(prompt.tools)))
    assert not isinstance(found, Failure)
    assert found.rendered == (
        f"<|im_start|>tools\n{json.dumps(TOOL)}\n<|im_end|>\n<|im_start|>user\nHow deep is the sea?<|im_end|>\n"
        '<|im_start|>assistant\nI look.<tool_call>{"name": "sea", "arguments": {"depth": 3}}</tool_call><|im_end|>\n'
        "<|im_start|>tool sea\nthree<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_without_a_place_for_tools_is_a_failure_and_no_silence(tiny_model: Path) -> None:
    chat = ChatText(AutoTokenizer.from_pretrained(tiny_model), {2}, 4096)
    for request, why in (
        (Request(ASKED[:1], tools=(TOOL,)), "no place for tools"),
        (Request(ASKED), "drops tool calls"),
    ):
        found = chat.prepare(request)
        assert isinstance(found, Failure)
        assert (found.kind, why in found.detail) == ("template", True)
        assert "sea" in chat.render(request)


def test_an_endpoint_gets_them_in_the_form_of_the_api() -> None:
    bodies = Bodies("m", limit_name="max_tokens", sparse=False, logprobs=False, top_logprobs=0, extra={})
    bare = {"name": "sea", "arguments": {"depth": 3}}
    request = Request([ASKED[0], {"role": "assistant", "content": "", "tool_calls": [bare]}, ASKED[2]], tools=(TOOL,))
    sent = json.loads(bodies.encode(request, bodies.messages(request), 0))
    assert sent["tools"] == [TOOL]
    call = {"id": "call_0", "type": "function", "function": {"name": "sea", "arguments": '{"depth": 3}'}}
    assert sent["messages"][1] == {"role": "assistant", "content": None, "tool_calls": [call]}
    assert "tools" not in json.loads(bodies.encode(Request(ASKED), bodies.messages(Request(ASKED)), 0))
    assert bodies.render(request) != bodies.render(Request(request.messages))


def test_answers_are_asked_for_with_the_tools(store: Store) -> None:
    """The same conversation with tools and without is two prompts, and two calls."""
    engine = ScriptedEngine()
    generate(
        store, engine, run="r", round=1, n=2, sampling=Sampling(), seed=0, keys=[p.key for p in chosen_prompts(store)]
    )
    assert len({call.key for call in store.rows(Call)}) == 4
    assert all(call.messages == ASKED for call in store.rows(Call))


def test_what_is_learnt_stands_after_the_tools(store: Store, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    data = stored(store, losses.get("dpo"), {"run": "given", "round": [0]}, None, str(model), TrainConfig())
    as_object = {"function": {"name": "sea", "arguments": {"depth": 3}}}
    wanted = {
        tokenizer.apply_chat_template(
            [ASKED[0], {**ASKED[1], "tool_calls": [as_object]}, ASKED[2]],
            tools=tools, tokenize=False, add_generation_prompt=True,
        )
        for tools in ([TOOL], None)
    }  # fmt: skip
    assert {tokenizer.decode(list(row.prompt)) for row in data.rows} == wanted
    assert {tokenizer.decode(plain(row.chosen)) for row in data.rows} == {"It is three.<|im_end|>"}
