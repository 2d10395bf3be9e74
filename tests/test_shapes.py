"""Every shape of data, as it is written in the wild, and every way in which a row can be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from factory.prompts.shapes import FIELDS, Example, Said, mapped, read_row, shape_of
from factory.prompts.sources import RowError

U, A = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
S = {"role": "system", "content": "Be brief."}
NO = {"role": "assistant", "content": "No."}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
CALLS: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
GAVE = {"role": "tool", "content": "wet", "name": "look", "tool_call_id": "c1"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}}}
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
HH_TURNS = [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Why?"},
]  # fmt: skip


def read(row: dict[str, Any]) -> Example:
    shape = shape_of(row)
    assert shape is not None
    return read_row(1, row, shape)


@pytest.mark.parametrize(
    ("row", "shape", "messages", "answer"),
    [
        ({"prompt": "Why?"}, "prompt", [U], None),
        ({"prompt": [S, U]}, "prompt", [S, U], None),
        ({"prompt": [U, A]}, "prompt", [U], "Because."),
        ({"prompt": HH}, "prompt", HH_TURNS, None),
        ({"prompt": "Why?", "system": "Be brief."}, "prompt", [S, U], None),
        ({"prompt": "Why?", "completion": "Because."}, "completion", [U], "Because."),
        ({"prompt": [U], "completion": [A]}, "completion", [U], "Because."),
        ({"messages": [S, U, A, U]}, "messages", [S, U, A, U], None),
        ({"messages": [S, U, A]}, "messages", [S, U], "Because."),
        ({"messages": [{"role": "developer", "content": "Be brief."}, U]}, "messages", [S, U], None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]}, "messages", [U], None),
        ({"messages": {"role": ["user", "assistant"], "content": ["Why?", "Because."]}}, "messages", [U], "Because."),
        ({"messages": [{**U, "tool_calls": None}, {**A, "tool_calls": []}]}, "messages", [U], "Because."),
        (
            {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
            "sharegpt", [U], "Because.",
        ),
        (
            {"conversations": [{"from": "human", "value": "Why?"}], "system": "Be brief."},
            "sharegpt", [S, U], None,
        ),
        ({"instruction": "Why?", "input": "", "output": "Because."}, "alpaca", [U], "Because."),
        (
            {"instruction": "Add up.", "input": "1 2", "output": "3"},
            "alpaca", [{"role": "user", "content": "Add up.\n\n1 2"}], "3",
        ),
    ],
)  # fmt: skip
def test_prompts_and_answers(row: dict[str, Any], shape: str, messages: list[Any], answer: str | None) -> None:
    example = read(row)
    assert (example.shape, example.given.messages, example.given.answer) == (shape, messages, answer)
    assert example.reference == answer


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, [U]),
        ({"prompt": [S, U], "chosen": [A], "rejected": [NO]}, [S, U]),
        ({"prompt": "Why?", "chosen": [U, A], "rejected": [U, NO]}, [U]),
        ({"prompt": [S, U], "chosen": [U, A], "rejected": [U, NO]}, [S, U]),
        ({"prompt": None, "chosen": [S, U, A], "rejected": [S, U, NO]}, [S, U]),
        ({"chosen": HH + " Because.", "rejected": HH + " No."}, HH_TURNS),
        ({"prompt": HH, "chosen": " Because.".strip(), "rejected": "No."}, HH_TURNS),
        ({"chosen": [U, A], "rejected": [U, NO], "system": "Be brief."}, [S, U]),
    ],
)
def test_preferences(row: dict[str, Any], messages: list[Any]) -> None:
    example = read(row)
    assert example.shape == "preference"
    assert example.given.messages == messages
    assert (example.given.chosen, example.given.rejected) == ("Because.", "No.")
    assert example.given.answer is None


def test_calls_of_tools_are_kept() -> None:
    asked = [U, {**CALLS, "content": None}, GAVE]
    assert read({"messages": asked}).given.messages == [U, CALLS, GAVE]
    whole = read({"messages": [*asked, A], "tools": json.dumps([TOOL])})
    assert (whole.given.messages, whole.given.answer, whole.tools) == ([U, CALLS, GAVE], "Because.", [TOOL])
    pair = read({"prompt": asked, "chosen": [A], "rejected": [NO], "tools": [TOOL["function"]]})
    assert (pair.given.messages, pair.given.chosen, pair.tools) == ([U, CALLS, GAVE], "Because.", [TOOL])


def test_calls_of_tools_in_older_forms() -> None:
    plain = {"type": "function", "function": {"name": "look", "arguments": {"at": "sea"}}}
    wanted = [U, {**CALLS, "tool_calls": [plain]}, {"role": "tool", "content": "wet"}]
    said = json.dumps({"name": "look", "arguments": {"at": "sea"}})
    sharegpt = [("human", "Why?"), ("function_call", said), ("observation", "wet")]
    found = read({"conversations": [{"from": who, "value": text} for who, text in sharegpt]})
    assert found.given.messages == wanted
    old = {"role": "assistant", "content": None, "function_call": json.loads(said)}
    found = read({"messages": [U, old, {"role": "function", "name": "look", "content": "wet"}]})
    assert found.given.messages == [*wanted[:2], {**wanted[2], "name": "look"}]
    table = {**CALLS, "tool_calls": [{**CALL, "index": None}], "name": None}  # as a Parquet file has them
    assert read({"messages": [{**U, "tool_calls": None, "tool_call_id": None}, table, GAVE]}).given.messages[1] == CALLS


@pytest.mark.parametrize(("value", "label"), [(True, True), (0, False), ("false", False), ("1", True), (1.0, True)])
def test_labels(value: Any, label: bool) -> None:
    example = read({"prompt": "Why?", "completion": "Because.", "label": value})
    assert (example.given.answer, example.given.label) == ("Because.", label)
    assert example.reference is None


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": 3}, "prompt", "list of messages, not int"),
        ({"prompt": []}, "prompt", "no messages"),
        ({"prompt": [S]}, "prompt", "must end with the user's turn; its last is by system"),
        ({"prompt": [U, A, A]}, "prompt", "must end with the user's turn; its last is by assistant"),
        ({"prompt": [U, A], "chosen": "x", "rejected": "y"}, "prompt", "must end with the user's turn"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages", "a message has no role"),
        ({"messages": ["Why?"]}, "messages", "a message must be an object, not str"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages", "a message by 'narrator'"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "an empty turn of the user"),
        ({"messages": [U, {"role": "assistant", "tool_calls": [{"id": "1"}]}, U]}, "messages", "tool has no name"),
        ({"messages": [U, {**A, "tool_calls": [{"name": "f", "arguments": "[1]"}]}, U]}, "messages", "arguments of f"),
        ({"messages": [U, {**A, "tool_calls": [{"name": "f", "arguments": 3}]}, U]}, "messages", "arguments of f"),
        ({"messages": [{**U, "tool_calls": [{"name": "f"}]}]}, "messages", "only the assistant can"),
        ({"messages": [U, {**A, "tool_calls": "f()"}, U]}, "messages", "not JSON"),
        ({"messages": [U, CALLS]}, "messages", "the answer calls tools"),
        ({"prompt": [U], "chosen": [CALLS], "rejected": [A]}, "chosen", "the answer calls tools"),
        ({"messages": [U, CALLS, {**GAVE, "tool_call_id": 7}]}, "messages", "tool_call_id of a tool's turn"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "conversations", "call of a tool is not JSON"),
        ({"prompt": "Why?", "tools": "{"}, "tools", "not JSON"),
        ({"prompt": "Why?", "tools": {"name": "f"}}, "tools", "must be a list of tools, not dict"),
        ({"prompt": "Why?", "tools": [{"function": {}}]}, "tools", "an object with a name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages", "content of type image_url is not text",
        ),
        ({"instruction": " "}, "instruction", "empty"),
        ({"instruction": "x", "output": 3}, "output", "must be a text, not int"),
        ({"prompt": "Why?", "chosen": "a", "rejected": "a"}, "rejected", "the same"),
        ({"prompt": "Why?", "chosen": "a", "rejected": " "}, "rejected", "empty"),
        ({"chosen": [U, A], "rejected": [U, A]}, "rejected", "the same"),
        ({"chosen": "a", "rejected": "b"}, "chosen", "a text without a prompt"),
        ({"chosen": [U, A, U, A], "rejected": [U, NO]}, "chosen", "one turn of the assistant; found: assistant, user"),
        ({"chosen": [A], "rejected": [NO]}, "chosen", "its last is by nobody"),
        ({"prompt": "Why?", "completion": "x", "label": "maybe"}, "label", "true or false, not 'maybe'"),
        ({"prompt": "Why?", "constraints": [{"kind": "haiku"}]}, "constraints", "no constraint kind named 'haiku'"),
        ({"prompt": "Why?", "constraints": "{"}, "constraints", "not JSON"),
        ({"prompt": "Why?", "topic": ["a"]}, "topic", "must be a text or a number"),
    ],
)  # fmt: skip
def test_wrong_rows_say_why(row: dict[str, Any], column: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read(row)
    assert caught.value.column == column
    assert reason in caught.value.reason


def test_extras() -> None:
    row = {"prompt": "Why?", "topic": "bread", "task": 7, "group": "g", "reference": "Because.",
           "constraints": '[{"kind": "title", "count": null}]'}  # fmt: skip
    example = read(row)
    assert (example.topic, example.task, example.group, example.reference) == ("bread", "7", "g", "Because.")
    assert example.constraints == [{"kind": "title"}]
    assert read({"prompt": "Why?", "topic": " ", "constraints": []}).constraints is None


def test_mapping_renames_and_reaches_inside() -> None:
    row = {"question": {"text": "Why?"}, "subject": "bread", "prompt": "not this one"}
    assert mapped(row, {"prompt": "question.text", "topic": "subject"}) == {"prompt": "Why?", "topic": "bread"}
    assert mapped(row, {"prompt": "nothing"})["prompt"] is None


def test_no_shape() -> None:
    assert shape_of({"question": "Why?", "prompt": None}) is None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from([U, A, S, CALLS, GAVE, CALL, TOOL, HH, "Human:", "user", "text"]),
    lambda v: (
        st.lists(v, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type"]), v)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), values, min_size=1))
def test_any_row_is_read_or_refused(row: dict[str, Any]) -> None:
    shape = shape_of(row)
    if shape is None:
        return
    try:
        example = read_row(1, row, shape)
    except RowError:
        return
    assert example.given.messages[-1]["role"] in {"user", "tool"}
    roles = {"system", "user", "assistant", "tool"}
    assert all(isinstance(m["content"], str) and m["role"] in roles for m in example.given.messages)
    assert example.given.chosen is None or example.given.chosen != example.given.rejected


TURN, OTHER = {"from": "gpt", "value": "Because."}, {"from": "gpt", "value": "No."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [U], "chosen": A, "rejected": NO},
        {"conversations": [{"from": "human", "value": "Why?"}], "chosen": TURN, "rejected": OTHER},
        {"question": "Why?", "chosen": "Because.", "rejected": "No."},
        {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "No."},
        {"question": "Why?", "chosen": [A], "rejected": [NO]},
        {"question": "unread", "chosen": [U, A], "rejected": [U, NO]},
        {"messages": [U, A], "chosen": [U, A], "rejected": [U, NO]},
        {"prompt": "Why?", "chosen": {**A, "content": [{"type": "text", "text": "Because."}]}, "rejected": NO},
    ],
)
def test_preferences_as_other_trainers_have_them(row: dict[str, Any]) -> None:
    given = read(row).given
    assert (given.messages, given.chosen, given.rejected) == ([U], "Because.", "No.")


def test_an_instruction_and_its_input_are_one_prompt() -> None:
    given = read({"instruction": "Add up.", "input": "1 2", "chosen": "3", "rejected": "4"}).given
    assert given.messages == [{"role": "user", "content": "Add up.\n\n1 2"}]


@pytest.mark.parametrize(
    "row",
    [
        {
            "instruction": "Why?",
            "completions": [{"response": "Because.", "model": "m", "overall_score": 8.5}, {"response": "No."}],
        },
        {"question": "Why?", "generations": ["Because.", "No."], "ratings": [8.5, None], "models": ["m", None]},
        {"prompt": [U], "answers": [[A], None, [NO]], "scores": ["8.5", 3, ""], "models": '["m", "n", "o"]'},
    ],
)
def test_several_answers_with_scores(row: dict[str, Any]) -> None:
    first, second = read(row).given.said
    assert (first.text, first.score, first.scale, first.model) == ("Because.", 8.5, None, "m")
    assert (second.text, second.score) == ("No.", None)
    assert read(row).reference is None


def test_ranks_are_scores_from_1_to_0() -> None:
    answers = [{"answer": text, "rank": rank} for text, rank in (("x", 3), ("y", 1), ("z", 2))]
    assert [said[1:3] for said in read({"prompt": "Why?", "answers": answers}).given.said] == [
        (0.0, (0.0, 1.0)), (1.0, (0.0, 1.0)), (0.5, (0.0, 1.0)),
    ]  # fmt: skip


@pytest.mark.parametrize("right", [["Ada", "Lovelace"], [{"text": "Ada", "answer_start": 3}]])
def test_right_answers_are_no_answers_of_models(right: list[Any]) -> None:
    assert shape_of({"question": "Who?", "answers": right}) is None
    prompt = shape_of({"prompt": "Who?", "answers": right})
    assert prompt is not None
    assert prompt.name == "prompt"


def test_a_score_makes_an_answer_judged_and_no_reference() -> None:
    example = read({"prompt": "Why?", "completion": "Because.", "score": 4, "model": "m"})
    assert [said[:] for said in example.given.said] == [("Because.", 4.0, None, "m")]
    assert (example.given.answer, example.reference) == (None, None)


@pytest.mark.parametrize(
    ("word", "winner"),
    [("model_a", "a"), ("B", "b"), ("response_b", "b"), ("tie (bothbad)", "tie"), (1, "a"), ("2", "b")],
)
def test_two_answers_with_a_winner(word: Any, winner: str) -> None:
    texts = {"prompt": "Why?", "response_a": "Because.", "response_b": "No."}
    whole = {"conversation_a": [U, A], "conversation_b": [U, NO], "model_a": "m"}
    for row in (texts, whole):
        given = read({**row, "winner": word}).given
        assert (given.messages, [said.text for said in given.said], given.winner) == ([U], ["Because.", "No."], winner)


@pytest.mark.parametrize(("strength", "winner"), [(-3, "a"), ("-1", "a"), (0, "tie"), (0.5, "b"), (2, "b")])
def test_two_answers_with_the_strength_of_a_preference(strength: Any, winner: str) -> None:
    """HelpSteer2's columns, and HelpSteer3's."""
    row = {"prompt": "Why?", "response_1": "Because.", "response_2": "No.", "preference_strength": strength}
    third = {"context": [U], "response1": "Because.", "response2": "No.", "overall_preference": strength}
    for one in (row, third):
        given = read(one).given
        assert (given.messages, [said.text for said in given.said], given.winner) == ([U], ["Because.", "No."], winner)


def test_a_response_is_a_completion() -> None:
    row = {"prompt": "Why?", "response": "Because.", "helpfulness": 3}
    assert read(row).given.answer == "Because."
    assert read(mapped(row, {"score": "helpfulness"})).given.said == (Said("Because.", 3.0),)
    assert read({**row, "label": "no"}).given.label is False


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "Why?", "response_a": "x", "response_b": "y", "winner": "first"}, "winner"),
        ({"prompt": "Why?", "response_a": "x", "response_b": "x", "winner": "a"}, "response_b"),
        ({"prompt": "Why?", "response_1": "x", "response_2": "y", "preference_strength": "much"}, "strength"),
        ({"prompt": "Why?", "response_1": "x", "response_2": "y", "preference_strength": ""}, "strength"),
        ({"prompt": "Why?", "answers": ["x", "y"], "scores": [1]}, "scores"),
        ({"prompt": "Why?", "answers": ["x"], "scores": [True]}, "scores"),
        ({"prompt": "Why?", "generations": [{"said": "x"}]}, "answers"),
        ({"prompt": "Why?", "chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": 2}, "score_rejected"),
        ({"prompt": "Why?", "completion": "x", "score": "good"}, "score"),
        ({"chosen": "x", "rejected": "y"}, "chosen"),
    ],
)
def test_wrong_scores_and_winners_say_why(row: dict[str, Any], column: str) -> None:
    with pytest.raises(RowError) as fault:
        read(row)
    assert fault.value.column == column
