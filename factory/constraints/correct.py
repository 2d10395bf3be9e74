"""Kinds that know the right answer: a number, a text, a letter of several choices, a JSON schema, a pattern.

What an answer states as its final answer is found by `factory/constraints/stated.py`. One that states nothing is wrong;
one that states two things is ambiguous, which is a failure of the judgment: nobody guesses.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

from factory.constraints.answer import Answer, fold
from factory.constraints.kinds import Check, kind, parse_json
from factory.constraints.parameters import checked, choice, flag, number
from factory.constraints.stated import Number, Stated, numbers, one_number, plain, statements

AMBIGUOUS: Final = "ambiguous_answer"
SECONDS: Final = 1.0  # for one pattern on one answer
LONGEST_JSON: Final = 1_000_000  # characters

# ------------------------------------------------------------------------------------------------------- numbers


def _numeric_fault(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return f"must be a number, or a text that is one, not {value!r}"
    found = one_number(str(value))
    return None if found and found.values else f"is not one number: {value!r}"


@kind(
    "numeric", settles=True, answer=checked(_numeric_fault), absolute=number(0, 0.0), relative=number(0, 1e-9),
    decimal=choice(".", ",", default="."), fallback=choice("last", "none", default="last"),
)  # fmt: skip
def numeric(said: Answer, answer: Any, absolute: float, relative: float, decimal: str, fallback: str) -> Check:
    """The number that the answer states is the right one, within `absolute` or `relative` of it.

    The number of the box, or of what follows "answer:"; without these the last number (`fallback` last). Thousands
    separators, signs, fractions, percent (5% is 5 and 0.05) and powers of ten are read; `decimal` is the decimal mark.
    """
    found = _stated_number(said.text, decimal, fallback == "last")
    if found is None:
        return Check(False, "no number is stated")
    if not found.values:
        return Check(False, f"ambiguous: {found.text[:80]!r}", failure=AMBIGUOUS)
    wanted = one_number(str(answer))
    right = any(_near(x, y, absolute, relative) for x in found.values for y in (wanted.values if wanted else ()))
    return Check(right, f"{found.text}, wanted {answer}")


def _near(found: Fraction, wanted: Fraction, absolute: float, relative: float) -> bool:
    return abs(found - wanted) <= max(Fraction(absolute), Fraction(relative) * abs(wanted))


def _stated_number(text: str, decimal: str, last: bool) -> Number | None:
    """The number that a text states: None where there is none, without values where it is ambiguous."""
    for statement in statements(text):
        if statement.by == "whole":
            return _last_number(plain(text), decimal) if last or one_number(text, decimal) else None
        read = [n for part in statement.texts if (n := _of_line(part, decimal)) is not None]
        if read:
            same = all(set(n.values) & set(read[0].values) for n in read)
            return read[-1] if same else Number(" and ".join(n.text for n in read), 0, 0, ())
        if statement.by == "boxed":
            return None
    return None


_EITHER: Final = re.compile(r"[$)*_`\s]*,?\s*or\s[(*_`\s]*[$€£¥]?")


def _last_number(text: str, decimal: str) -> Number | None:
    """The last number of a text; ambiguous where it is the second of "41 or 42"."""
    found = numbers(text, decimal)
    if len(found) > 1 and not set(found[-2].values) & set(found[-1].values):
        first, second = found[-2:]
        if _EITHER.fullmatch(text[first.end : second.start]):
            return Number(text[first.start : second.end], first.start, second.end, ())
    return found[-1] if found else None


_MORE: Final = re.compile(
    r"[√π±∞]|\\(?:sqrt|pi|pm|infty|ln|log|sin|cos|tan|frac|binom|sum|int)(?![a-z])|\d\s?[xyzn](?![\w'])"
)
"""What makes a number a part of something else: a root, a multiple of pi, a term with a variable."""
_GOES_ON: Final = re.compile(r"[$)\s]*(?:[-+*/×·,;&x]|or\b|and\b|to\b)\s*[$(]?[-+]?\d")


def _of_line(line: str, decimal: str) -> Number | None:
    """The number that a line states: what it begins with, or the only one in its first sentence, or what an equation
    ends with."""
    said = re.split(r"[.!?](?=\s|$)", plain(line), maxsplit=1)[0].rpartition("=")[2]
    found = numbers(said, decimal)
    if not found:
        return None
    first, before, after = found[0], said[: found[0].start], said[found[0].end :]
    if _MORE.search(said) or re.search(r"(?i)\bnot\b|n't\b", before):
        return first._replace(text=said.strip(), values=())
    begins = not before.strip("$*_ (~:") and not _GOES_ON.match(after)
    if begins or all(set(n.values) & set(first.values) for n in found):
        return first
    return first._replace(text=said.strip(), values=())


# --------------------------------------------------------------------------------------------------------- texts

_EDGES: Final = string.punctuation.replace("%", "").replace("+", "").replace("-", "") + "“”‘’«»…。、！？ "
_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b ?")


def _accepted_fault(value: Any) -> str | None:
    texts = [value] if isinstance(value, str) else value
    right = isinstance(texts, Sequence) and texts and all(isinstance(t, str) and _bare(t) for t in texts)
    return None if right else f"must be a text or a list of texts, not {value!r}"


@kind("exact", settles=True, answer=checked(_accepted_fault), articles=flag(default=True), case=flag(default=False))
def exact(said: Answer, answer: str | Sequence[str], articles: bool, case: bool) -> Check:
    """What the answer states is one of the accepted texts: blanks and punctuation around it do not count, nor does
    case (unless `case`), and a, an and the only do where `articles` is true."""
    accepted = {_bare(t, articles, case) for t in ([answer] if isinstance(answer, str) else answer)}
    statement = statements(said.text)[0]
    right = [bool(accepted & _forms(part, statement, articles, case)) for part in statement.texts]
    shown = " and ".join(part[:80] for part in statement.texts[:3])
    if any(right) and not all(right):
        return Check(False, f"ambiguous: {shown!r}", failure=AMBIGUOUS)
    return Check(all(right), f"states {shown!r}")


def _forms(part: str, statement: Stated, articles: bool, case: bool) -> set[str]:
    """What may be meant by a stated text: all of it, and of a line its first sentence."""
    forms = [part]
    if statement.by in ("final", "answer"):
        forms.append(re.split(r"[.!?](?=\s)", part, maxsplit=1)[0])
    return {_bare(form, articles, case) for form in forms}


def _bare(text: str, articles: bool = True, case: bool = False) -> str:
    """A text as exact answers are compared; never empty where it holds anything but punctuation."""
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]{0,400})\}", r"\1", text)
    folded = unicodedata.normalize("NFKC", text[:4000])
    folded = " ".join(folded.split()) if case else fold(folded)
    bare = folded.strip(_EDGES)
    if not articles:
        bare = _ARTICLES.sub("", bare).strip(_EDGES) or bare
    return bare or folded.strip()


# ------------------------------------------------------------------------------------------------------- choices


def _letter_fault(value: Any) -> str | None:
    right = isinstance(value, str) and len(value) == 1 and value in string.ascii_uppercase
    return None if right else f"must be a capital letter, not {value!r}"


def _choices_fault(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 26:
        return None
    right = isinstance(value, list | tuple) and 2 <= len(value) <= 26 and all(isinstance(v, str) and v for v in value)
    return None if right else f"must be the number of choices, or the list of their texts, not {value!r}"


@kind("choice", settles=True, answer=checked(_letter_fault), choices=checked(_choices_fault, default=26))
def multiple_choice(said: Answer, answer: str, choices: int | Sequence[str]) -> Check:
    """The letter that the answer states is the right one.

    `choices` is their number, or their texts: an answer that states a choice's whole text states its letter.
    """
    known = string.ascii_uppercase[: choices if isinstance(choices, int) else len(choices)]
    texts = {} if isinstance(choices, int) else dict(zip(map(_bare, choices), known, strict=True))
    for statement in statements(said.text):
        letters = [letter for part in statement.texts if (letter := _letter(part, known, texts))]
        if len(set(letters)) > 1:
            return Check(False, f"ambiguous: {' and '.join(letters)}", failure=AMBIGUOUS)
        if letters:
            return Check(letters[0] == answer, f"states {letters[0]}, wanted {answer}")
    return Check(False, "no choice is stated")


def _letter(part: str, known: str, texts: Mapping[str, str]) -> str | None:
    """The letter that a text states: alone, in brackets, or before a mark, a blank or the choice's text.

    A and I are words: before a blank they are none. "A or B" and "A and B" state nothing.
    """
    part = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]{0,400})\}", r"\1", part)
    whole = texts.get(_bare(part))
    if whole:
        return whole
    found = re.match(r"[\s*_`$\"'(\[]*(?:(?i:option|choice|answer)\s{1,2})?[(\[*]{0,3}([A-Z])(?![\w'’])", part)
    if not found or found[1] not in known:
        return None
    rest = part[found.end() :]
    if re.match(rf"[\s*_)\]]*(?:,|/|&|\bor\b|\band\b)\s*[(\[*]{{0,3}}[{known}](?![\w'’])", rest):
        return None
    return None if found[1] in "AI" and re.match(r"\s+\w", rest) else found[1]


# ---------------------------------------------------------------------------------------------- schema and pattern


def _schema_fault(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return f"must be a JSON schema, not {value!r}"
    try:
        return _fault_of_schema(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        return f"is not a JSON schema: {error}"


@lru_cache(maxsize=256)
def _fault_of_schema(dumped: str) -> str | None:
    import jsonschema

    schema = json.loads(dumped)
    try:
        jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        return f"is not a JSON schema: {error.message[:200]}"
    return None


@kind("json_schema", settles=True, schema=checked(_schema_fault))
def json_schema(answer: Answer, schema: Mapping[str, Any]) -> Check:
    """The answer is JSON (or has one ```json block) that the schema accepts. Nothing outside the schema is fetched."""
    import jsonschema
    import referencing.exceptions

    if len(answer.text) > LONGEST_JSON:
        return Check(False, f"longer than {LONGEST_JSON} characters")
    try:
        value = parse_json(_json_block(answer.text))
    except ValueError:
        return Check(False, "not JSON")
    try:
        error = jsonschema.exceptions.best_match(_validator(schema).iter_errors(value))
    except referencing.exceptions.Unresolvable as fault:
        return Check(False, f"the schema refers to {fault.ref!r}, which it does not hold", failure="bad_schema")
    except TimeoutError:
        return Check(False, "a pattern of the schema takes too long", failure="pattern_timeout")
    except RecursionError:
        return Check(False, "nested too deep")
    if error is None:
        return Check(True, "JSON by the schema")
    return Check(False, f"{error.json_path}: {error.message}"[:300])


def _json_block(text: str) -> str:
    """The inside of the text's one fenced block of JSON; the text itself where there is none, or several."""
    blocks = re.findall(r"^[ \t]{0,3}```(?:json|JSON)[ \t]*\n(.*?)^[ \t]{0,3}```", text, re.MULTILINE | re.DOTALL)
    return blocks[0] if len(blocks) == 1 else text


def _validator(schema: Mapping[str, Any]) -> Any:
    """A validator that fetches nothing, and whose patterns have a time-out."""
    import jsonschema
    import referencing

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    timed = jsonschema.validators.extend(kind, {"pattern": _pattern, "patternProperties": _pattern_properties})
    return timed(schema, registry=referencing.Registry())


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Any:
    import jsonschema

    if isinstance(instance, str) and not _search(pattern, instance):
        yield jsonschema.ValidationError(f"{instance[:80]!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any) -> Any:
    if not isinstance(instance, dict):
        return
    for pattern, inner in patterns.items():
        for name, value in instance.items():
            if _search(pattern, name):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _search(pattern: str, text: str) -> bool:
    return _compiled(pattern, 0).search(text, timeout=SECONDS) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str, flags: int) -> Any:
    import regex

    return regex.compile(pattern, flags)


def _regex_fault(value: Any) -> str | None:
    import regex

    if not isinstance(value, str) or not value or len(value) > 10_000:
        return f"must be a regular expression, not {value!r}"
    try:
        _compiled(value, 0)
    except (regex.error, OverflowError, RecursionError, MemoryError) as error:
        return f"is not a regular expression: {error}"
    return None


@kind(
    "regex", settles=True, pattern=checked(_regex_fault), match=choice("search", "whole", "none", default="search"),
    case=flag(default=True), dotall=flag(default=False),
)  # fmt: skip
def regular_expression(answer: Answer, pattern: str, match: str, case: bool, dotall: bool) -> Check:
    """The pattern is found in the answer (`search`), is all of it (`whole`), or is not found (`none`). ^ and $ are the
    ends of lines. A pattern that takes more than a second on an answer is a failure."""
    import regex

    flags = regex.MULTILINE | (0 if case else regex.IGNORECASE) | (regex.DOTALL if dotall else 0)
    compiled = _compiled(pattern, int(flags))
    try:
        if match == "whole":
            found = compiled.fullmatch(answer.text, timeout=SECONDS)
        else:
            found = compiled.search(answer.text, timeout=SECONDS)
    except TimeoutError:
        return Check(False, f"the pattern takes more than {SECONDS:g} s", failure="pattern_timeout")
    if match == "none":
        return Check(found is None, "the pattern is not found" if found is None else f"found {found[0][:80]!r}")
    return Check(found is not None, f"found {found[0][:80]!r}" if found else "the pattern is not found")
