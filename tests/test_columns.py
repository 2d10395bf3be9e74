from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from store_rows import any_row, call, judgment, prompt

from factory.faults import FactoryError
from factory.schema import TABLES, as_row
from factory.store import columns


@pytest.mark.parametrize("table", sorted(TABLES))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_row_comes_back_as_it_was(table: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(any_row(table), min_size=1, max_size=4))
    bodies = [columns.encode(table, row).body for row in rows]
    assert columns.decode(table, columns.from_bodies(table, bodies)) == rows


@pytest.mark.parametrize("table", sorted(TABLES))
def test_arrow_schema_has_every_field_and_its_type(table: str) -> None:
    schema = columns.arrow_schema(table)
    assert schema.names == [c.name for c in columns.columns_of(table).values()]
    expected = {"text": "string", "integer": "int64", "number": "double", "boolean": "bool", "json": "string",
                "time": "timestamp[us]"}  # fmt: skip
    for column in columns.columns_of(table).values():
        if column.kind == "messages":
            turn = ["role", "content", "name", "tool_call_id", "tool_calls"]
            assert schema.field(column.name).type.value_type.names == turn
        else:
            assert str(schema.field(column.name).type) == expected[column.kind]


def test_infinite_numbers_come_back_beside_ordinary_ones() -> None:
    rows = [call(1, logprob=-math.inf), call(2, logprob=math.nan), call(3, logprob=-1.5)]
    data = columns.from_bodies("calls", [columns.encode("calls", r).body for r in rows])
    low, none, plain = columns.decode("calls", data)
    assert low["logprob"] == -math.inf
    assert math.isnan(none["logprob"])
    assert plain == as_row(rows[2])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("\ud800", "�"),
        ("a\udfffb", "a�b"),
        ("\ud83d\ude00", "😀"),  # two halves that belong together
        ("plain", "plain"),
        ("é😀", "é😀"),
        ("\x00", "\x00"),
    ],
)
def test_lone_surrogates_are_replaced(text: str, kept: str) -> None:
    assert columns.clean(text) == kept
    row = prompt(1, topic=text, messages=[{"role": "user", "content": text}], constraints=[{"kind": text}])
    (read,) = columns.decode("prompts", columns.from_bodies("prompts", [columns.encode("prompts", row).body]))
    assert (read["topic"], read["messages"][0]["content"], read["constraints"]) == (kept, kept, [{"kind": kept}])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": "0.5"}, "judgments.score: expected a number or null, got '0.5' (str)"),
        ({"score": True}, "judgments.score: expected a number or null, got True (bool)"),
        ({"round": 1.0}, "judgments.round: expected a whole number of 64 bits, got 1.0 (float)"),
        ({"round": 2**63}, "judgments.round: expected a whole number of 64 bits, got 9223372036854775808 (int)"),
        ({"canary": None}, "judgments.canary: expected true or false, got None (NoneType)"),
        ({"canary": "empty"}, "judgments.canary: expected true or false, got 'empty' (str)"),
        ({"at": "2026-11-24"}, "judgments.at: expected a datetime, got '2026-11-24' (str)"),
        ({"judge": 3}, "judgments.judge: expected text, got 3 (int)"),
        ({"detail": object}, "judgments.detail: expected a value that has JSON or null"),
        ({"key": ""}, "a row of judgments has an empty key"),
        ({"jugde": "x"}, "no column of judgments named 'jugde'; did you mean 'judge'?"),
    ],
)
def test_a_value_that_does_not_fit_names_table_column_and_value(change: dict[str, Any], said: str) -> None:
    with pytest.raises(FactoryError) as caught:
        columns.encode("judgments", as_row(judgment(1)) | change)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "x", "tool_calls": []}],
        [{"role": "user", "content": "x", "tool_calls": "f()"}],
        [{"role": "user", "content": "x", "tool_calls": ["f()"]}],
        [{"role": "user", "content": "x", "name": None}],
        [{"role": "user", "content": "x", "images": "x"}],
        [["user", "x"]],
    ],
)
def test_messages_are_never_bent_to_fit(messages: Any) -> None:
    with pytest.raises(FactoryError, match=r"prompts\.messages: expected a list of"):
        columns.encode("prompts", as_row(prompt(1)) | {"messages": messages})


def test_a_left_out_column_takes_its_default_or_is_named() -> None:
    row = as_row(judgment(1))
    del row["round"]
    assert json.loads(columns.encode("judgments", row).body)["round"] == 0
    del row["judge"]
    with pytest.raises(FactoryError, match="a row of judgments has no judge"):
        columns.encode("judgments", row)


def test_a_row_of_another_table_is_refused() -> None:
    with pytest.raises(FactoryError, match="the table prompts is a Prompt, not a Call"):
        columns.encode("prompts", call(1))


def test_values_of_numpy_and_times_with_a_zone_are_taken() -> None:
    paris = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=1)))
    row = as_row(judgment(1)) | {
        "score": np.float32(0.5), "round": np.int64(3), "canary": np.bool_(True), "at": paris,
        "detail": {"shares": np.array([1.0, 0.5]), "when": datetime(2026, 1, 1, tzinfo=UTC)},
    }  # fmt: skip
    (read,) = columns.decode("judgments", columns.from_bodies("judgments", [columns.encode("judgments", row).body]))
    assert (read["score"], read["round"], read["canary"], read["at"]) == (0.5, 3, True, datetime(2026, 1, 1, 11))
    assert read["detail"] == {"shares": [1.0, 0.5], "when": "2026-01-01T00:00:00+00:00"}


def test_json_is_strict() -> None:
    assert columns.json_text({"a": math.nan, "b": [math.inf, 1.5], "c": "NaN"}) == '{"a":null,"b":[null,1.5],"c":"NaN"}'


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, columns.DONE),
        ({"failure": "timeout", "passing": True}, columns.PASSING),
        ({"failure": "x"}, columns.FAILED),
    ],
)
def test_the_state_of_a_call(change: dict[str, Any], state: int) -> None:
    assert columns.encode("calls", call(1, **change)).state == state


def test_lines_that_lack_a_column_are_filled() -> None:
    body = json.loads(columns.encode("judgments", judgment(1, canary=True)).body)
    del body["canary"], body["canary_name"]
    (read,) = columns.decode("judgments", columns.from_bodies("judgments", [json.dumps(body)]))
    assert (read["canary"], read["canary_name"]) == (False, None)
