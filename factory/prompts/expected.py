"""What a data set says is right, as constraints: a final answer, choices, unit tests, a JSON schema.

Read as common sets have it: GSM8K's "... #### 72", MATH's \\boxed{...}, MMLU's and ARC's choices, TriviaQA's aliases,
MBPP's and HumanEval's tests, the inputs and outputs of APPS and LiveCodeBench. What is too long to be compared makes no
constraint: it is a reference.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from factory.constraints import faults
from factory.constraints.stated import one_number, statements
from factory.prompts.sources import RowError

Values = Mapping[str, Any]
COLUMNS: Final = ("answer", "choices", "tests", "entry_point", "test_setup", "json_schema")
SHORT: Final = 80  # characters that an answer may have to be compared as a text


class Expected(NamedTuple):
    """What a row's columns ask of an answer, and the answer's text where it is a reference rather than a constraint."""

    constraints: list[dict[str, Any]]
    reference: str | None = None


def expected(row: Values) -> Expected:
    """The constraints of a row's columns `COLUMNS`. RowError: one of them cannot be read."""
    answer, reference = _answer(row)
    made = [("answer", answer), ("tests", _tests(row)), ("json_schema", _schema(row.get("json_schema")))]
    for column, constraint in made:
        if constraint is not None and (found := faults([constraint])):
            raise RowError(column, "; ".join(fault.partition(": ")[2] for fault in found))
    return Expected([constraint for _, constraint in made if constraint is not None], reference)


def _json(value: Any, column: str) -> Any:
    """A list or object that is given as JSON text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if column == "tests":
            return value  # Python, then
        raise RowError(column, "not JSON") from error


def _text(row: Values, column: str) -> str | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise RowError(column, f"must be a text, not {type(value).__name__}")
    return value


# ------------------------------------------------------------------------------------------------------ the answer


def _answer(row: Values) -> tuple[dict[str, Any] | None, str | None]:
    """(constraint, reference) of the answer."""
    value, choices = row.get("answer"), _json(row.get("choices"), "choices")
    if value is None or value == "" or value == []:
        return None, None
    if choices is not None and choices != []:
        return _of_choices(value, choices), None
    if isinstance(value, bool):
        return {"kind": "exact", "answer": ["yes", "true"] if value else ["no", "false"]}, None
    if isinstance(value, int | float):
        return {"kind": "numeric", "answer": value}, None
    value = _json(value, "answer") if isinstance(value, str) and value.lstrip().startswith(('["', "[{")) else value
    if isinstance(value, str):
        return _of_text(value)
    texts = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(texts, Sequence) or not all(isinstance(t, str) and t.strip() for t in texts):
        return None, None  # an object of some other meaning
    return {"kind": "exact", "answer": list(dict.fromkeys(texts))}, None


def _of_text(text: str) -> tuple[dict[str, Any] | None, str | None]:
    found = statements(text)[0]
    stated = found.by in ("boxed", "final")
    final = found.texts[-1].strip() if stated else text.strip()
    number = one_number(final)
    reference = text if stated else None
    if number is not None and number.values:
        return {"kind": "numeric", "answer": final}, reference
    if len(final) == 1 and final in string.ascii_uppercase:
        return {"kind": "choice", "answer": final}, reference
    if len(final) <= SHORT and "\n" not in final:
        return {"kind": "exact", "answer": final}, reference
    return None, text


def _of_choices(value: Any, choices: Any) -> dict[str, Any]:
    """The right letter: by label, by number from 0, or by the text of the choice."""
    labels, texts = _labels(choices)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RowError("answer", f"must be a letter, a number from 0, or the text of a choice, not {value!r:.100}")
    known = [label for label in (str(value), str(value).strip()) if label in labels]
    if known:
        at = labels.index(known[0])
    elif str(value).strip().isdigit() and int(value) < len(texts):
        at = int(value)
    elif isinstance(value, str) and texts.count(value.strip()) == 1:
        at = texts.index(value.strip())
    else:
        raise RowError("answer", f"{value!r:.100} is none of the choices {', '.join(labels)}")
    return {"kind": "choice", "answer": string.ascii_uppercase[at], "choices": texts}


def _labels(choices: Any) -> tuple[list[str], list[str]]:
    """Labels and texts of choices: a list, {label: [...], text: [...]}, or {label: text}."""
    if isinstance(choices, Mapping):
        if {"label", "text"} <= set(choices):
            labels, texts = choices["label"], choices["text"]
        else:
            labels, texts = list(choices), list(choices.values())
    else:
        labels, texts = list(string.ascii_uppercase), choices
    right = isinstance(texts, list) and isinstance(labels, list) and 2 <= len(texts) <= 26
    if not right or not all(isinstance(t, str) and t.strip() for t in texts):
        raise RowError("choices", "must be a list of 2 to 26 texts, or {label: [...], text: [...]}")
    return [str(label) for label in labels[: len(texts)]], [t.strip() for t in texts]


# ------------------------------------------------------------------------------------------------- tests and schema


def _tests(row: Values) -> dict[str, Any] | None:
    value = _json(row.get("tests"), "tests")
    if value is None or value == "" or value == []:
        return None
    entry_point = _text(row, "entry_point")
    if isinstance(value, Mapping):
        entry_point = value.get("fn_name") or entry_point
        value = _cases(value)
    if isinstance(value, list) and all(isinstance(case, Mapping) for case in value):
        value = [_case(case, entry_point) for case in value]
    made = {"kind": "unit_tests", "tests": value}
    if entry_point:
        made["entry_point"] = entry_point
    if setup := _text(row, "test_setup"):
        made["setup"] = setup
    return made


def _cases(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    inputs, outputs = (value.get(f"{side}s", value.get(side)) for side in ("input", "output"))
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise RowError("tests", "must have as many inputs as outputs")
    return [{"input": a, "output": b} for a, b in zip(inputs, outputs, strict=True)]


def _case(case: Mapping[str, Any], entry_point: str | None) -> dict[str, Any]:
    """A case with its sides as they are compared: texts for a program, values for a function."""
    if not {"input", "output"} <= set(case):
        raise RowError("tests", "has a case without input or output")
    if entry_point is None:
        return {side: _lines(case[side]) for side in ("input", "output")}
    given, due = case["input"], case["output"]
    if isinstance(given, str) and case.get("testtype") == "functional":
        try:
            given, due = [json.loads(line) for line in given.split("\n") if line.strip()], json.loads(due)
        except (ValueError, TypeError):
            raise RowError("tests", "has a functional case that is not JSON") from None
    return {"input": given, "output": due}


def _lines(side: Any) -> str:
    if isinstance(side, list) and all(isinstance(line, str) for line in side):
        return "\n".join(side)
    if not isinstance(side, str):
        raise RowError("tests", "has cases of values, which need entry_point, the function to call")
    return side


def _schema(value: Any) -> dict[str, Any] | None:
    if value is None or value == "":
        return None
    return {"kind": "json_schema", "schema": _json(value, "json_schema")}
