"""What a judge's answer says: a distribution over the answer tokens, or a text that is exactly one of them.

The distribution (expected value, not argmax) is what arXiv 2503.03064 and G-Eval (2303.16634, section 2) read. Where
the engine shows none, the text must be one valid answer and nothing else. Everything short of that is a failure with a
name; nothing here raises and nothing guesses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.schema import Completion

TOO_MUCH = 1.02
"""More probability than this on a few first tokens is a broken engine, not rounding."""

_NOUN = r"(?:answer|verdict|choice|response|option|rating|score)"
_LEAD = (
    rf"(?:(?:(?:my |the )?(?:final |better |best |preferred )?{_NOUN}(?: is)?\s*:?\s+|{_NOUN}:))?"
    r"(?:(?:answer|response|option) )?"
)
_WRAPPED = r"(?:\[\[{0}\]\]|\[{0}\]|\({0}\)|\*\*{0}\*\*|\"{0}\"|'{0}'|{0})"


@dataclass(frozen=True, slots=True)
class Said:
    """What was answered: the probability of each valid answer (they sum to 1), the mass they held before that (None for
    a text), or why nothing was said."""

    shares: Mapping[str, float]
    mass: float | None = None
    failure: str | None = None
    why: str = ""

    def detail(self) -> dict[str, Any]:
        """What is worth keeping beside the verdict."""
        kept: dict[str, Any] = {"by": "text" if self.mass is None else "logprobs"}
        if self.mass is not None:
            kept["mass"] = round(self.mass, 6)
        if self.why:
            kept["why"] = self.why
        return kept


def said(completion: Completion, valid: Iterable[str], min_mass: float, prefix: str = "", suffix: str = "") -> Said:
    """Read a completion whose valid answers are `valid`. Failures: that of the call; `low_mass` when less than
    `min_mass` of the probability is on valid answers; `bad_logprobs`; `cut`; `no_verdict`."""
    answers = tuple(valid)
    if completion.failure is not None:
        return Said({}, failure=completion.failure.kind, why=completion.failure.detail[:200])
    if completion.answer_logprobs is not None:
        return _weigh(completion.answer_logprobs, answers, min_mass)
    return _spoken(completion, answers, prefix, suffix)


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
    if not isinstance(logprob, int | float) or not logprob <= math.log(TOO_MUCH):
        return math.nan
    return math.exp(logprob) if logprob > -1e4 else 0.0


def _spoken(completion: Completion, answers: Sequence[str], prefix: str, suffix: str) -> Said:
    """A text to shares: all on the one answer that it is."""
    if completion.finish_reason == "length":
        return Said({}, failure="cut", why="the text was cut before its end: raise the judge's max_tokens")
    answer = exactly_one(completion.text, answers, prefix, suffix)
    if answer is None:
        return Said({}, failure="no_verdict", why=f"not exactly one valid verdict: {completion.text[:120]!r}")
    return Said({a: float(a == answer) for a in answers})


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
    bare = text.strip()
    if said_before and bare.startswith(said_before):
        bare = opened + bare[len(said_before) :].strip()
    found = [a for a in answers if any(re.fullmatch(_form(a, suffix), form) for form in (bare, opened + bare))]
    return found[0] if len(found) == 1 else None


def _form(answer: str, suffix: str) -> str:
    return rf"(?i:{_LEAD}){_WRAPPED.format(re.escape(answer))}(?:{re.escape(suffix)})?\.?"
