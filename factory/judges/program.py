"""A function that scores an answer, as a judge.

    @score("polite")
    def polite(prompt, answer, *, words: int = 2) -> float: ...

enters a judge `polite` with the option `words`. It is called with the `Prompt` and the `Candidate` and gives a number
within the scale; None says that it has nothing to say of this answer. What it raises is a failure of that answer alone.
Its own text and its options are in the version of its readings, so that a function that was changed judges anew.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, get_type_hints

from factory.faults import FactoryError
from factory.judges import judges, votes
from factory.schema import Candidate, Judgment, Matchup, Prompt, Reading, digest

Function = Callable[..., float | None]
F = TypeVar("F", bound=Function)


def score(
    name: str, *, low: float | None = 0.0, high: float | None = 1.0, version: str | None = None
) -> Callable[[F], F]:
    """Enter a function (prompt, answer, *, options) -> score as a judge. `low` and `high` are its scale, both None for
    a reward without ends (log-odds). `version` stands for the function's text where that says too much or too
    little."""
    if (low is None) != (high is None) or (low is not None and high is not None and not low < high):
        raise FactoryError(f"judge {name!r}: low and high are a scale, low below high, or both None")

    def enter(function: F) -> F:
        judges.add(name, _maker(function, low, high, version or _text_of(function)), asks=False)
        return function

    return enter


class ProgramJudge:
    """Pointwise: the function's score of each answer, or why there is none."""

    kind: Literal["pointwise", "pairwise"] = "pointwise"

    def __init__(
        self,
        name: str,
        function: Function,
        options: Mapping[str, Any],
        scale: tuple[float | None, float | None],
        version: str,
    ) -> None:
        self.name = name
        self.function = function
        self.options = dict(options)
        self.scale = scale
        self.reader = version if not options else f"{version}, {digest(dict(options))[:12]}"

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        """One judgment for each candidate of each matchup (of a pair: a, then b)."""
        for prompt, candidate, canary in votes.answers(matchups):
            yield votes.judgment(self, candidate, self.read(prompt, candidate), canary=canary)

    def read(self, prompt: Prompt, candidate: Candidate) -> Reading:
        """The score of an answer, or its failure: candidate_failed, judge_failed (the function raised), no_score,
        no_number (not a number, or not within the scale)."""
        if candidate.failure:
            return Reading(failure="candidate_failed")
        try:
            said = self.function(prompt, candidate, **self.options)
        except Exception as error:  # noqa: BLE001 - another's code; what it raises is a failure of this answer
            return Reading(failure="judge_failed", detail={"why": f"{type(error).__name__}: {error}"[:500]})
        if said is None:
            return Reading(failure="no_score")
        try:
            value = float(said)
        except (TypeError, ValueError):
            return Reading(failure="no_number", detail={"why": f"{said!r} is no number"[:500]})
        low, high = self.scale
        ends = (-math.inf if low is None else low, math.inf if high is None else high)
        if not math.isfinite(value) or not ends[0] <= value <= ends[1]:
            return Reading(failure="no_number", detail={"why": f"{value} is not within {low} to {high}"})
        return Reading(score=value, score_low=low, score_high=high)


def _text_of(function: Function) -> str:
    """A short name of what a function does: a hash of its source, where that can be had."""
    try:
        return digest(inspect.getsource(function))[:12]
    except (OSError, TypeError):
        return "1"


def _maker(function: Function, low: float | None, high: float | None, version: str) -> Callable[..., ProgramJudge]:
    """What makes the judge from its name and options: it has the signature of the function's own keyword arguments."""
    given = inspect.signature(function).parameters.values()
    own = [p for p in given if p.kind is p.KEYWORD_ONLY]
    places = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if (
        len(places) != 2
        or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given)
        or any(p.default is p.empty for p in own)
    ):
        raise FactoryError(
            f"a function that judges takes a prompt and an answer, and options by keyword with defaults, not "
            f"{inspect.signature(function)}",
            where=f"{function.__module__}.{function.__qualname__}",
            todo="write def judge(prompt, answer, *, option=default)",
        )

    def make(name: str, **options: Any) -> ProgramJudge:
        return ProgramJudge(name, function, options, (low, high), version)

    first = inspect.Parameter("name", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str)
    make.__signature__ = inspect.Signature([first, *own])  # type: ignore[attr-defined]
    hints = get_type_hints(function)
    make.__annotations__ = {"name": str} | {p.name: hints[p.name] for p in own if p.name in hints}
    return make
