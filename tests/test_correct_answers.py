"""Kinds that know the right answer: what counts as stated, as right, as wrong, and as ambiguous."""

from __future__ import annotations

import json
import threading
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from factory import constraints
from factory.constraints.correct import AMBIGUOUS
from factory.constraints.stated import numbers, one_number, plain, statements
from factory.faults import ConfigError

Spec = dict[str, Any]


def check(kind: str, text: str, **parameters: Any) -> constraints.Check:
    return constraints.check({"kind": kind, **parameters}, text)


# ------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", "42"), ("-5", "-5"), ("\u22125", "-5"), ("\u20135", "-5"), ("+7", "7"), (".5", "1/2"), ("007", "7"),
        ("1,234.5", "2469/2"), ("1,000,000", "1000000"), ("$1,000", "1000"), ("-$5", "-5"), ("\\$3{,}000", "3000"),
        ("3/4", "3/4"), ("1 3/4", "7/4"), ("\u00bd", "1/2"), ("1\u00bd", "3/2"), ("\\frac{3}{4}", "3/4"),
        ("\\dfrac{-3}{4}", "-3/4"), ("\\frac12", "1/2"), ("1e-5", "1/100000"), ("1.2E3", "1200"),
        ("1.2\u00d710\u2075", "120000"), ("1.2 \\times 10^{5}", "120000"), ("3 \u00b7 10^-2", "3/100"),
        ("$42$", "42"), ("\\text{42}", "42"), ("12.50", "25/2"),
    ],
)  # fmt: skip
def test_numbers_as_they_are_written(text: str, expected: str) -> None:
    found = one_number(text)
    assert found is not None
    assert found.values == (Fraction(expected),)


@pytest.mark.parametrize("text", ["1,5", "3.4.5", "1.234.567", "3/4/2020", "10^5", "2^{10}", "1/0", "12.03.2024"])
def test_what_may_mean_several_numbers_is_ambiguous(text: str) -> None:
    found = one_number(text)
    assert found is not None
    assert found.values == ()


@pytest.mark.parametrize("text", ["", "x2", "three", "v1a", "1 and 2", "5 kg", "5-3", "\uff11x"])
def test_what_is_not_one_number(text: str) -> None:
    assert one_number(text) is None


def test_ranges_and_differences_have_no_negative_numbers() -> None:
    for text in ("3\u20135", "5-3", "x-3 5"):
        assert all(v >= 0 for n in numbers(plain(text)) for v in n.values)


@pytest.mark.parametrize("text", ["either 41 or 42", "It is 41, or $42 perhaps.", "**41** or **42**", "41 or 42"])
def test_one_number_or_another_is_not_stated(text: str) -> None:
    found = check("numeric", text, answer=42)
    assert (found.met, found.failure) == (False, AMBIGUOUS), found.why
    for settled in ("42 or 42.0", "3 or 4 at first, but then 42", "41 for or against, 42"):
        assert check("numeric", settled, answer=42).met


NUMERIC = [
    ("The answer is 42.", 42, True), ("**Answer:** 42", 42, True), ("Answer: **42**", 42, True),
    ("answer = 42", 42, True), ("So we get \\boxed{42}.", 42, True), ("\\boxed{42\\text{ km}}", 42, True),
    ("\\boxed{x = \\frac{1}{2}}", "1/2", True), ("blah 7 blah\n#### 72", 72, True), ("#### 1,234", "1234", True),
    ("First 3, then 4, so 12", 12, True), ("First 3, then 4, so 12", 4, False), ("It costs $18.", 18, True),
    ("Answer: 3 + 4 = 7", 7, True), ("The answer is 12 (3 * 4).", 12, True), ("The answer is x = 5", 5, True),
    ("The answer is 12 apples. There were 30.", 12, True), ("Answer:\n\n42", 42, True),
    ("The answer is as follows: add them, which gives 7", 7, True), ("about 50%", "0.5", True),
    ("50%", 50, True), ("0.5", "50%", True), ("0.50", 0.5, True), ("0.1 + 0.2 gives 0.3", 0.3, True),
    ("1e3", 1000, True), ("Final answer: 6. The answer is 5.", 6, True), ("The answer is 5. Final answer: 6", 5, False),
    ("\\boxed{5} and again \\boxed{5.0}", 5, True), ("-3", 3, False), ("There is none", 3, False), ("", 3, False),
    ("\\boxed{B}", 3, False), ("12345678", 12345679, False), ("The answer is \u221217", -17, True),
    ("The final answer is:\n**$2,500**", 2500, True), ("answer: 5 and 5.0", 5, True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "answer", "met"), NUMERIC)
def test_the_number_that_is_stated(text: str, answer: Any, met: bool) -> None:
    found = check("numeric", text, answer=answer)
    assert (found.met, found.failure) == (met, None), found.why


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{5} or \\boxed{6}", "The answer is 5. No, the answer is 6.", "answer: 5 or 6", "\\boxed{(3, 4)}",
        "The answer is not 5", "The answer is as follows: add 3 and 4, which gives 7", "\\boxed{2\\sqrt{3}}",
        "\\boxed{5\\pi}", "\\boxed{\\sqrt{5}}", "\\boxed{5x}", "\\boxed{\\pm 5}", "The answer is 5 to 6",
        "answer: 5 + 6", "so it is 1,5", "#### 1\n#### 2",
        "The answer is 3 x 4, or 2 less",
    ],
)  # fmt: skip
def test_two_answers_are_a_failure_not_a_guess(text: str) -> None:
    found = check("numeric", text, answer=5)
    assert (found.met, found.failure) == (False, AMBIGUOUS), found.why


def test_tolerances_and_marks() -> None:
    assert not check("numeric", "3.14", answer=3.14159).met
    assert check("numeric", "3.14", answer=3.14159, absolute=0.01).met
    assert check("numeric", "3.14", answer=3.14159, relative=0.001).met
    assert not check("numeric", "3.14", answer=3.14159, relative=0.0001).met
    assert check("numeric", "1,5", answer=1.5, decimal=",").met
    assert check("numeric", "1.234,5", answer=1234.5, decimal=",").met
    assert not check("numeric", "I counted 3, so 12", answer=12, fallback="none").met
    assert check("numeric", "12", answer=12, fallback="none").met


@given(st.fractions(max_denominator=1000).filter(lambda f: abs(f) < 10**12))
@settings(deadline=None)
def test_every_fraction_is_read_as_it_is_written(value: Fraction) -> None:
    written = [str(value), f"The answer is {value}."]
    if value.denominator == 1:
        written += [f"{int(value):,}", f"= ${int(value):,}$", str(value).replace("-", "\u2212")]
    for text in written:
        found = check("numeric", text, answer=str(value))
        assert found.met, (text, found.why)


@given(st.text(alphabet="0123456789.,-+/^%e \\{}()x\u00d7\u00bd\u2212\u2075$answer:boxedfrac\n", max_size=80))
@settings(deadline=None, max_examples=300)
def test_hostile_texts_never_raise(text: str) -> None:
    for kind, parameters in (("numeric", {"answer": 1}), ("exact", {"answer": "x"}), ("choice", {"answer": "A"})):
        found = check(kind, text, **parameters)
        assert isinstance(found.met, bool)
        assert not (found.met and found.failure)


@pytest.mark.parametrize(
    "text",
    [
        "1," * 50_000, "\\boxed{" * 20_000, "answer:" * 20_000, "answer: " + "*" * 100_000, "9" * 200_000,
        "-" * 100_000 + "1", "\\frac{" * 20_000, "1/" * 50_000, "1^" * 50_000, "final " * 30_000, " " * 200_000 + "5",
        "{" * 100_000, "#" * 100_000, "1 1/1" * 30_000,
    ],
)  # fmt: skip
def test_long_texts_take_linear_time(text: str) -> None:
    """Twice the text takes about twice the time; quadratic would take minutes here, and the thread's end shows it."""
    done = threading.Event()

    def work() -> None:
        for kind, parameters in (("numeric", {"answer": 1}), ("exact", {"answer": "x"}), ("choice", {"answer": "A"})):
            check(kind, text, **parameters)
        done.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert done.wait(60)


# -------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("text", "answer", "met"),
    [
        ("Paris", "paris", True), (" Paris. ", "Paris", True), ("**Paris**", "Paris", True), ('"Paris"', "Paris", True),
        ("The answer is Paris.", "Paris", True), ("The answer is Paris. It is old.", "Paris", True),
        ("\\boxed{\\text{Paris}}", "Paris", True), ("The capital is Paris", "Paris", False),
        ("Paris, TX", "Paris", False),
        ("New  York\n", "new york", True), ("US", ["USA", "US"], True), ("UK", ["USA", "US"], False),
        ("caf\u00e9", "cafe\u0301", True), ("\uff30aris", "Paris", True), ("It\u2019s", "it's", True),
        ("", "Paris", False),
        ("A cat", "cat", True), ("the  Beatles", "Beatles", True), ("The", "the", True), ("5%", "5%", True),
        ("5", "5%", False), ("C++", "C", False), ("answer: yes\nanswer: yes", "yes", True), ("!", "!", True),
    ],
)  # fmt: skip
def test_the_text_that_is_stated(text: str, answer: Any, met: bool) -> None:
    found = check("exact", text, answer=answer, articles=False)
    assert (found.met, found.failure) == (met, None), found.why


def test_exact_options_and_ambiguity() -> None:
    assert not check("exact", "A cat", answer="cat").met
    assert not check("exact", "paris", answer="Paris", case=True).met
    found = check("exact", "The answer is Paris.\nNo, the answer is Rome.", answer="Paris")
    assert (found.met, found.failure) == (False, AMBIGUOUS)
    wrong = check("exact", "The answer is Oslo.\nNo, the answer is Rome.", answer="Paris")
    assert (wrong.met, wrong.failure) == (False, None)


# ------------------------------------------------------------------------------------------------------ choices

CITIES = ["Rome", "Paris", "Oslo", "Bonn"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("B) Paris", "B"), ("**B**", "B"), ("[B]", "B"), ("Option B", "B"),
        ("The answer is B.", "B"), ("The answer is (B) because it is so.", "B"), ("Answer: **B. Paris**", "B"),
        ("The correct answer is B because", "B"), ("\\boxed{B}", "B"), ("\\boxed{\\text{(B)}}", "B"), ("A", "A"),
        ("A) Rome", "A"), ("A. Rome", "A"), ("Paris", "B"), ("The answer is Paris.", "B"),
        ("I think it is hard.\nFinal answer: C", "C"), ("Answer: C is wrong. Final answer: D", "D"),
        ("The answer is Option (D)", "D"),
    ],
)  # fmt: skip
def test_the_letter_that_is_stated(text: str, letter: str) -> None:
    for right in "ABCD":
        found = check("choice", text, answer=right, choices=CITIES)
        assert (found.met, found.failure) == (right == letter, None), found.why


@pytest.mark.parametrize(
    "text",
    [
        "Neither A nor B is good", "A city in France", "The answer is A good one", "B or C", "(B) and (C)", "B, C",
        "Because of that", "I think so", "E", "b", "", "All of them", "The answer is neither A nor B", "Bonn or Oslo",
        "A/B", "The answer is either A or B", "Both", "B's",
    ],
)  # fmt: skip
def test_no_letter_is_made_up(text: str) -> None:
    for right in "ABCD":
        found = check("choice", text, answer=right, choices=CITIES)
        assert not found.met, found.why


def test_two_letters_are_ambiguous() -> None:
    found = check("choice", "The answer is A.\nThe answer is B.", answer="A", choices=4)
    assert (found.met, found.failure) == (False, AMBIGUOUS)


# ------------------------------------------------------------------------------------------------------- schema

SCHEMA: Spec = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer", "minimum": 0}},
}  # fmt: skip
GOOD = '{"name": "Ann", "age": 3}'


@pytest.mark.parametrize(
    ("text", "met"),
    [
        (GOOD, True), (f"```json\n{GOOD}\n```", True), (f"Here it is:\n```json\n{GOOD}\n```\nBye.", True),
        (f"```\n{GOOD}\n```", True), ('{"name": "ann", "age": 3}', False), ('{"name": "Ann"}', False),
        ('{"name": "Ann", "age": -1}', False), ('{"name": "Ann", "age": 3, "x": 1}', False), ("[]", False),
        ("not json", False), (f"Here: {GOOD}", False), ('{"name": "Ann", "age": NaN}', False), ("", False),
        ("[" * 100_000, False), (f"```json\n{GOOD}\n```\n```json\n{{}}\n```", False),
    ],
)  # fmt: skip
def test_json_by_a_schema(text: str, met: bool) -> None:
    found = check("json_schema", text, schema=SCHEMA)
    assert (found.met, found.failure) == (met, None), found.why


def test_the_reason_names_the_place() -> None:
    assert check("json_schema", '{"name": "Ann", "age": "x"}', schema=SCHEMA).why.startswith("$.age: ")


def test_nothing_is_fetched_for_a_schema() -> None:
    found = check("json_schema", "{}", schema={"$ref": "http://127.0.0.1:9/schema.json"})
    assert (found.met, found.failure) == (False, "bad_schema")
    local = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}
    assert check("json_schema", "5", schema=local).met


@pytest.mark.parametrize(
    "schema",
    [{"type": "string", "pattern": "^(a+)+$"}, {"type": "object", "patternProperties": {"^(a+)+$": {"type": "null"}}}],
)
def test_a_schemas_pattern_cannot_hang(schema: Spec) -> None:
    hostile = "a" * 5000 + "!"
    text = json.dumps(hostile if schema["type"] == "string" else {hostile: 1})
    found = check("json_schema", text, schema=schema)
    assert not found.met or schema["type"] == "object"
    assert found.failure in (None, "pattern_timeout")


def test_pattern_properties_are_checked() -> None:
    schema = {"patternProperties": {"^n_": {"type": "integer"}}}
    assert check("json_schema", '{"n_a": 1, "other": "x"}', schema=schema).met
    assert not check("json_schema", '{"n_a": "x"}', schema=schema).met


# ------------------------------------------------------------------------------------------------------ pattern


def test_regular_expressions() -> None:
    assert check("regex", "tel 555-1234", pattern=r"\d{3}-\d{4}").met
    assert not check("regex", "tel 555-1234", pattern=r"\d{3}-\d{4}", match="whole").met
    assert check("regex", "555-1234", pattern=r"\d{3}-\d{4}", match="whole").met
    assert not check("regex", "tel 555-1234", pattern=r"\d", match="none").met
    assert check("regex", "ABC", pattern="abc", case=False).met
    assert check("regex", "a\nb", pattern="a.b", dotall=True).met
    assert check("regex", "a\nb", pattern="^b$").met


def test_a_pattern_that_backtracks_is_a_failure_and_ends() -> None:
    found = check("regex", "a" * 300 + "d", pattern=r"^(a*)(a*)(a*)(a*)(a*)\1\2\3\4\5[bc]$")
    assert (found.met, found.failure) == (False, "pattern_timeout")


# ------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "constraint",
    [
        {"kind": "numeric"}, {"kind": "numeric", "answer": "many"}, {"kind": "numeric", "answer": True},
        {"kind": "numeric", "answer": "1,5"}, {"kind": "numeric", "answer": 1, "absolute": -1},
        {"kind": "numeric", "answer": float("inf")}, {"kind": "exact", "answer": ""}, {"kind": "exact", "answer": []},
        {"kind": "exact", "answer": ["a", 1]}, {"kind": "choice", "answer": "b"}, {"kind": "choice", "answer": "AB"},
        {"kind": "choice", "answer": "B", "choices": 1}, {"kind": "choice", "answer": "B", "choices": ["x"]},
        {"kind": "json_schema", "schema": "x"}, {"kind": "json_schema", "schema": {"type": "nonsense"}},
        {"kind": "regex", "pattern": "("}, {"kind": "regex", "pattern": ""},
        {"kind": "regex", "pattern": "a", "case": 1},
    ],
)  # fmt: skip
def test_wrong_constraints_are_refused(constraint: Spec) -> None:
    assert constraints.faults([constraint])
    with pytest.raises(ConfigError):
        constraints.check(constraint, "x")


def test_no_substance_is_asked_where_the_content_is_checked() -> None:
    verdict = constraints.verify([{"kind": "numeric", "answer": 42}], "42")
    assert verdict.all_met
    both = constraints.verify([{"kind": "numeric", "answer": 42}, {"kind": "max_words", "count": 1}], "42 is it")
    assert (both.share, both.all_met) == (0.5, False)
    assert not constraints.verify([{"kind": "no_commas"}], "42").substance.met


def test_statements_in_their_order() -> None:
    found = statements("answer: 1\nfinal answer: 2\n\\boxed{3}")
    assert [(s.by, s.texts[0]) for s in found[:2]] == [("boxed", "3"), ("final", "2")]
    assert found[-1].by == "whole"
