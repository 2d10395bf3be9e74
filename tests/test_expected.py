"""What common data sets say is right becomes constraints, and what cannot be compared a reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory import constraints
from factory.prompts import add_prompts
from factory.prompts.expected import expected
from factory.prompts.shapes import FIELDS, read_row, shape_of
from factory.prompts.sources import RowError
from factory.schema import Prompt
from factory.store import Store


def of(**row: Any) -> list[dict[str, Any]]:
    return expected(row).constraints


GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips.\nAltogether 72 clips.\n#### 72"
MATH = "We get $x = 3$ or so, thus \\boxed{\\frac{1}{2}} holds."


@pytest.mark.parametrize(
    ("answer", "constraint"),
    [
        (72, {"kind": "numeric", "answer": 72}), ("1,234.50", {"kind": "numeric", "answer": "1,234.50"}),
        (GSM8K, {"kind": "numeric", "answer": "72"}), (MATH, {"kind": "numeric", "answer": "\\frac{1}{2}"}),
        ("\\boxed{x^2}", {"kind": "exact", "answer": "x^2"}), ("Paris", {"kind": "exact", "answer": "Paris"}),
        ("C", {"kind": "choice", "answer": "C"}), (True, {"kind": "exact", "answer": ["yes", "true"]}),
        (["USA", "US", "USA"], {"kind": "exact", "answer": ["USA", "US"]}),
        ('["USA", "US"]', {"kind": "exact", "answer": ["USA", "US"]}),
        ({"text": ["Rhine"], "answer_start": [3]}, {"kind": "exact", "answer": ["Rhine"]}),
    ],
)  # fmt: skip
def test_answers(answer: Any, constraint: dict[str, Any]) -> None:
    assert of(answer=answer) == [constraint]


def test_a_solution_is_a_reference_too_and_a_long_answer_is_nothing_else() -> None:
    assert expected({"answer": GSM8K}).reference == GSM8K
    long = "Because the water of the sea is salty. " * 5
    assert expected({"answer": long}) == ([], long)
    assert expected({"answer": "Paris"}).reference is None
    for nothing in ({}, {"answer": None}, {"answer": ""}, {"answer": []}, {"answer": {"x": 1}}, {"answer": [1, {}]}):
        assert expected(nothing) == ([], None)


TEXTS = ["Rome", "Paris", "Oslo"]


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        (1, TEXTS, "B"), ("B", TEXTS, "B"), ("1", TEXTS, "B"), ("Paris", TEXTS, "B"), (0, json.dumps(TEXTS), "A"),
        ("C", {"label": ["A", "B", "C"], "text": TEXTS}, "C"), ("2", {"label": ["1", "2", "3"], "text": TEXTS}, "B"),
        ("b", {"a": "Rome", "b": "Paris"}, "B"),
    ],
)  # fmt: skip
def test_choices(answer: Any, choices: Any, letter: str) -> None:
    [constraint] = of(answer=answer, choices=choices)
    assert (constraint["kind"], constraint["answer"]) == ("choice", letter)
    assert constraint["choices"] == TEXTS[: len(constraint["choices"])]


TESTS = ["assert add(1, 2) == 3"]


@pytest.mark.parametrize(
    ("row", "constraint"),
    [
        ({"tests": TESTS}, {"tests": TESTS}),
        ({"tests": json.dumps(TESTS), "test_setup": "import math"}, {"tests": TESTS, "setup": "import math"}),
        ({"tests": "def check(candidate): ...", "entry_point": "add"},
         {"tests": "def check(candidate): ...", "entry_point": "add"}),
        ({"tests": json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]})},
         {"tests": [{"input": "1\n", "output": "2\n"}, {"input": "2\n", "output": "4\n"}]}),
        ({"tests": {"inputs": [["1", "2"]], "outputs": [["3"]]}}, {"tests": [{"input": "1\n2", "output": "3"}]}),
        ({"tests": {"fn_name": "f", "inputs": [[1, 2]], "outputs": [3]}},
         {"tests": [{"input": [1, 2], "output": 3}], "entry_point": "f"}),
        ({"tests": [{"input": "[1, 2]\n3", "output": "[4]", "testtype": "functional"}], "entry_point": "f"},
         {"tests": [{"input": [[1, 2], 3], "output": [4]}], "entry_point": "f"}),
        ({"tests": [{"input": "3", "output": "6", "testtype": "stdin"}]}, {"tests": [{"input": "3", "output": "6"}]}),
    ],
)  # fmt: skip
def test_unit_tests(row: dict[str, Any], constraint: dict[str, Any]) -> None:
    assert of(**row) == [{"kind": "unit_tests", **constraint}]


def test_schemas() -> None:
    schema = {"type": "object", "required": ["name"]}
    for given in (schema, json.dumps(schema)):
        assert of(json_schema=given) == [{"kind": "json_schema", "schema": schema}]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"answer": "Berlin", "choices": TEXTS}, "answer"), ({"answer": 3, "choices": TEXTS}, "answer"),
        ({"answer": 1.5, "choices": TEXTS}, "answer"), ({"answer": "A", "choices": ["x"]}, "choices"),
        ({"answer": "A", "choices": "Rome or Paris"}, "choices"), ({"answer": "A", "choices": "[broken"}, "choices"),
        ({"tests": "function check() {"}, "tests"), ({"tests": [1]}, "tests"), ({"tests": {"inputs": [1]}}, "tests"),
        ({"tests": {"inputs": [[1]], "outputs": [2]}}, "tests"), ({"tests": TESTS, "entry_point": "a b"}, "tests"),
        ({"tests": TESTS, "entry_point": 3}, "entry_point"), ({"tests": TESTS, "test_setup": "("}, "tests"),
        ({"tests": [{"input": "1"}]}, "tests"), ({"json_schema": "{broken"}, "json_schema"),
        ({"json_schema": {"type": "nonsense"}}, "json_schema"), ({"json_schema": "text"}, "json_schema"),
        ({"tests": [{"input": "x y", "output": "1", "testtype": "functional"}], "entry_point": "f"}, "tests"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_names_its_column(row: dict[str, Any], column: str) -> None:
    with pytest.raises(RowError) as told:
        expected(row)
    assert told.value.column == column


def test_rows_with_them(tmp_path: Path) -> None:
    rows = [
        {"question": "How many clips?", "answer": GSM8K, "constraints": [{"kind": "max_words", "count": 50}]},
        {"question": "Which city?", "answer": "B", "choices": TEXTS},
        {"question": "Write add.", "tests": TESTS},
        {"question": "Which?", "answer": "Bonn", "choices": TEXTS},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store.open(tmp_path / "store", create=True) as store:
        report = add_prompts(store, str(path), mapping={"prompt": "question"})
        kept = {p.messages[0]["content"]: p for p in store.rows(Prompt)}
    assert (report.prompts, report.unused) == (3, ())
    assert [(f.line, f.column) for f in report.failures] == [(4, "answer")]
    clips = kept["How many clips?"]
    assert [c["kind"] for c in clips.constraints] == ["max_words", "numeric"]
    assert clips.reference == GSM8K
    assert constraints.check(clips.constraints[1], "So there are 72 clips.", clips).met
    assert constraints.check(kept["Which city?"].constraints[0], "The answer is Paris.").met


def test_they_can_be_mapped() -> None:
    assert {"answer", "choices", "tests", "entry_point", "test_setup", "json_schema"} <= set(FIELDS)
    row = {"prompt": "Why?", "answer": "Because."}
    shape = shape_of(row)
    assert shape is not None
    assert read_row(1, row, shape).constraints == [{"kind": "exact", "answer": "Because."}]
