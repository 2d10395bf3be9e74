"""What a judge's answer says: a distribution over the answer tokens, or a text that is exactly one of them.

The distribution (expected value, not argmax) is what arXiv 2503.03064 and G-Eval (2303.16634, section 2) read. Where
the engine shows none, the text must be one valid answer and nothing else: alone, on its first line or its last, in a
JSON object, or on the line of its own aspect, whichever was asked for. Everything short of that is a failure with a
name; nothing here raises and nothing guesses.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from factory.schema import Completion

TOO_MUCH = 1.02
"""More probability than this on a few first tokens is a broken engine, not rounding."""

MOST_LETTERS = 50_000
"""A longer text is not looked through."""

BLANKS = " \t\r\n"
THINKING = ("<think>", "</think>")

_NOUN = r"(?:answer|verdict|choice|response|option|rating|score)"
_LEAD = (
    rf"(?:(?:(?:my |the )?(?:final |better |best |preferred )?{_NOUN}(?: is)?\s*:?\s+|{_NOUN}:))?"
    r"(?:(?:answer|response|option) )?"
)
_WRAPPED = r"(?:\[\[{0}\]\]|\[{0}\]|\({0}\)|\*\*{0}\*\*|\"{0}\"|'{0}'|{0})"


@dataclass(frozen=True, slots=True)
class Said:
    """What was answered: the probability of each valid answer (they sum to 1), the mass they held before that (None for
    a text), or why nothing was said. `rest` is the text beside the answer, where one was asked for."""

    shares: Mapping[str, float]
    mass: float | None = None
    failure: str | None = None
    why: str = ""
    rest: str = ""

    def detail(self) -> dict[str, Any]:
        """What is worth keeping beside the verdict."""
        kept: dict[str, Any] = {"by": "text" if self.mass is None else "logprobs"}
        if self.mass is not None:
            kept["mass"] = round(self.mass, 6)
        if self.why:
            kept["why"] = self.why
        return kept


# ------------------------------------------------------------------------------------------------------- one answer


def said(completion: Completion, valid: Iterable[str], min_mass: float, prefix: str = "", suffix: str = "") -> Said:
    """Read a completion whose valid answers are `valid`. Failures: that of the call; `low_mass` when less than
    `min_mass` of the probability is on valid answers; `bad_logprobs`; `cut`; `no_verdict`."""
    answers = tuple(valid)
    if completion.failure is not None:
        return _failed(completion)
    if completion.answer_logprobs is not None:
        return _weigh(completion.answer_logprobs, answers, min_mass)
    if completion.finish_reason == "length":
        return _cut()
    return _chosen(exactly_one(_text(completion), answers, prefix, suffix), answers, completion.text)


def said_first(completion: Completion, valid: Iterable[str], min_mass: float, prefix: str = "") -> Said:
    """The same where the reasons follow the answer: its first line, or the distribution at its start. `rest` holds the
    reasons; a later line that is another answer makes it none."""
    answers = tuple(valid)
    if completion.failure is not None:
        return _failed(completion)
    first, _, rest = _text(completion).lstrip(BLANKS).partition("\n")
    reasons = rest.strip(BLANKS)
    if completion.answer_logprobs is not None:
        weighed = _weigh(completion.answer_logprobs, answers, min_mass)
        return replace(weighed, rest=reasons or first.strip(BLANKS))
    if completion.finish_reason == "length" and not rest:
        return _cut()
    found = exactly_one(first, answers, prefix)
    others = {exactly_one(line, answers) for line in rest.splitlines()} - {None, found}
    return replace(_chosen(None if others else found, answers, completion.text), rest=reasons)


def said_last(completion: Completion, valid: Iterable[str], names: Sequence[str], suffix: str = "") -> Said:
    """The same for a text that ends in a line "name: answer", as `Score: 4`. `rest` holds what stands before it. Two
    such lines with different answers are none."""
    answers = tuple(valid)
    if completion.failure is not None:
        return _failed(completion)
    if completion.finish_reason == "length":
        return _cut()
    lines = _text(completion).strip(BLANKS).splitlines()[-1_000:]
    named = [_named(line, names, answers, suffix) for line in lines]
    given = {found.answer for found in named if found is not None}
    ends = bool(named) and named[-1] is not None
    last = given.pop() if ends and len(given) == 1 else None
    return replace(_chosen(last, answers, completion.text), rest="\n".join(lines[:-1]).strip(BLANKS))


def in_json(completion: Completion, field: str, valid: Iterable[str], reasons: str | None = None) -> Said:
    """The same for a text that is a JSON object with the answer in `field` and, where asked for, text in `reasons`;
    another field, or one that is there twice, makes it none."""
    answers = tuple(valid)
    if completion.failure is not None:
        return _failed(completion)
    if completion.finish_reason == "length":
        return _cut()
    found = json_object(_text(completion))
    if found is None or not set(found) <= {field, reasons}:
        return _chosen(None, answers, completion.text)
    rest = found.get(reasons) if reasons else ""
    return replace(_chosen(_value(found.get(field), answers), answers, completion.text), rest=str(rest or ""))


def _failed(completion: Completion) -> Said:
    failure = completion.failure
    return Said({}, failure=failure.kind, why=failure.detail[:200]) if failure else Said({}, failure="no_answer")


def _cut() -> Said:
    return Said({}, failure="cut", why="the text was cut before its end: raise the judge's max_tokens")


def _chosen(answer: str | None, answers: Sequence[str], text: object) -> Said:
    """All of the probability on the one answer; a failure where there is none."""
    if answer is None:
        return Said({}, failure="no_verdict", why=f"not exactly one valid verdict: {str(text)[:120]!r}")
    return Said({a: float(a == answer) for a in answers})


def _text(completion: Completion) -> str:
    return without_thoughts(completion.text)[:MOST_LETTERS] if isinstance(completion.text, str) else ""


def without_thoughts(text: str) -> str:
    """The text after the block of thoughts that it begins with, as models write it whose server does not take it out,
    or after the end of one that the prompt had begun; nothing where the block has no end. All of the text where there
    is no block, or more than one."""
    bare = text.lstrip(BLANKS)
    thoughts, end, rest = bare.removeprefix(THINKING[0]).partition(THINKING[1])
    if not end:
        return "" if bare.startswith(THINKING[0]) else text
    return text if THINKING[0] in thoughts or THINKING[1] in rest else rest


# ---------------------------------------------------------------------------------------------------- distributions


def _weigh(logprobs: object, answers: Sequence[str], min_mass: float) -> Said:
    """Log-probabilities (nats) of the first token to shares. An answer not shown is below what the engine shows: 0."""
    if not isinstance(logprobs, Mapping):
        return Said({}, failure="bad_logprobs", why="no table of answers")
    found = {answer: _probability(logprobs[answer]) for answer in answers if answer in logprobs}
    mass = math.fsum(found.values())
    if not mass <= TOO_MUCH:
        return Said({}, None, "bad_logprobs", "a log-probability is no number, or they hold more than the whole")
    if mass < min_mass or mass <= 0:
        return Said({}, mass, "low_mass", f"{mass:.3f} of the probability is on valid answers, {min_mass} is needed")
    return Said({answer: found.get(answer, 0.0) / mass for answer in answers}, mass)


def _probability(logprob: object) -> float:
    """exp of a log-probability; NaN for what is none."""
    if not isinstance(logprob, int | float) or isinstance(logprob, bool) or not logprob <= math.log(TOO_MUCH):
        return math.nan
    return math.exp(logprob) if logprob > -1e4 else 0.0


# ------------------------------------------------------------------------------------------------------------- texts


def exactly_one(text: str, answers: Iterable[str], prefix: str = "", suffix: str = "") -> str | None:
    """The answer that the whole text is, or None.

    Taken: A  A.  [[A]]  [A]  (A)  **A**  "A"  Answer: A  The better answer is A, with blanks around; the judge's own
    prefix repeated before it, or a bracket closed that the prefix opened; `suffix` ("/5") behind it. Case counts: "a"
    is an article. A text that says anything more is no verdict.
    """
    if not isinstance(text, str) or len(text) > 200:
        return None
    said_before = prefix.strip()
    opened = said_before[len(said_before.rstrip("[(*\"'")) :]
    bare = text.strip(BLANKS)
    if said_before and bare.startswith(said_before):
        bare = opened + bare[len(said_before) :].strip(BLANKS)
    found = [a for a in answers if any(_form(a, suffix).fullmatch(form) for form in (bare, opened + bare))]
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=256)
def _form(answer: str, suffix: str) -> re.Pattern[str]:
    return re.compile(rf"(?ai:{_LEAD}){_WRAPPED.format(re.escape(answer))}(?:{re.escape(suffix)})?\.?")


# -------------------------------------------------------------------------------------------------- several in one


def several(completion: Completion, valid: Mapping[str, Sequence[str]], suffix: Mapping[str, str]) -> dict[str, Said]:
    """Read one text that answers several named questions: a JSON object, or a line "name: answer" for each.

    Each answer is found by its name, never by its place, so that a line left out, a blank one or one that cannot be
    read fails alone (`no_verdict`) and shifts no other. A name that is answered twice, differently, is not answered.
    """
    if completion.failure is not None:
        return dict.fromkeys(valid, _failed(completion))
    cut = completion.finish_reason == "length"
    text = _text(completion)
    found = None if cut else json_object(text)
    if found is not None:
        read = {name: _value(found.get(name), answers) for name, answers in valid.items()}
    else:
        read = _by_line(text, valid, suffix, cut)
    missing = _cut() if cut else None
    return {
        name: missing if answer is None and missing is not None else _chosen(answer, valid[name], text)
        for name, answer in read.items()
    }


def _by_line(
    text: str, valid: Mapping[str, Sequence[str]], suffix: Mapping[str, str], cut: bool
) -> dict[str, str | None]:
    lines = text.splitlines()[:1_000]
    if cut:
        lines = lines[:-1]  # its last line may go on
    read: dict[str, str | None] = {}
    for name, answers in valid.items():
        named = [found for line in lines if (found := _named(line, [name], answers, suffix.get(name, "")))]
        given = {found.answer for found in named}
        read[name] = given.pop() if len(given) == 1 else None
    return read


_MARKS = r"[ \t]*(?:[-*+#>]+[ \t]+|\d{1,2}[.)][ \t]*)?[*_`\"]{0,3}"


@dataclass(frozen=True, slots=True)
class _Line:
    """A line that answers to a name; None where what it says is no valid answer."""

    answer: str | None


def _named(line: str, names: Sequence[str], answers: Sequence[str], suffix: str) -> _Line | None:
    """The line if it is "name: ..."; list marks, numbers and emphasis before the name are nothing."""
    if len(line) > 400:
        return None
    for name in names:
        words = r"[ _-]".join(map(re.escape, re.split(r"[ _-]+", name)))
        match = re.fullmatch(rf"{_MARKS}(?ai:{words})[*_`\"]{{0,3}}[ \t]*[:=][*_`]{{0,3}}(.*)", line)
        if match:
            return _Line(exactly_one(match[1].strip(" \t\r,;*_`"), answers, suffix=suffix))
    return None


# -------------------------------------------------------------------------------------------------------------- JSON

_BLOCK = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
_TWICE = object()


def json_object(text: object) -> dict[str, Any] | None:
    """The object that the whole text is (in a code block, too), or None. A key that is there twice has no usable
    value."""
    if not isinstance(text, str) or len(text) > MOST_LETTERS:
        return None
    bare = text.strip(BLANKS)
    if block := _BLOCK.fullmatch(bare):
        bare = block[1]
    try:
        found = json.loads(bare, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = _TWICE if key in found else value
    return found


def _no_number(constant: str) -> None:
    raise ValueError(constant)


def _value(value: object, answers: Sequence[str]) -> str | None:
    """The answer that a JSON value is: the very text, or a whole number."""
    said_so = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    return said_so if said_so in answers else None


def schema_of(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of an object with exactly these fields, in this order."""
    return {
        "type": "object",
        "properties": {name: dict(field) for name, field in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }
