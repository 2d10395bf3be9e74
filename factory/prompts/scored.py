"""Answers that came with what somebody said of them: scores, ranks, and which of two is better.

Read as common sets have it: UltraFeedback's completions with an overall score, distilabel's generations with ratings,
Nectar's answers with ranks, an arena's two responses with a winner, HelpSteer's with a strength, score_chosen and
score_rejected. A score's scale is the user's to name; one without a scale is a reward without ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from factory.faults import FactoryError
from factory.prompts.sources import RowError

Scale = tuple[float, float]
Winner = Literal["a", "b", "tie"]

TEXTS: Final = ("response", "answer", "text", "content", "completion", "generation", "output")
SCORES: Final = ("score", "overall_score", "rating", "reward")
SHARE: Final[Scale] = (0.0, 1.0)
"""The scale of what a rank becomes."""
_SIDES: Final[Mapping[str, Winner]] = {"a": "a", "1": "a", "b": "b", "2": "b"}
_TIES: Final = frozenset(("tie", "tie (bothbad)", "both", "neither", "draw"))
_BEFORE_SIDES: Final = ("model_", "response_", "answer_", "completion_", "conversation_", "assistant_")


class Scored(NamedTuple):
    """An answer (as given: not yet a text), its score and that score's own scale, and the model that wrote it."""

    answer: Any
    score: float | None = None
    scale: Scale | None = None
    model: str = ""


def scale_of(text: str) -> Scale:
    """A scale as a user names it: 1:10. FactoryError: it is none."""
    low, sign, high = text.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (0.0, 0.0)
    if not sign or not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise FactoryError(f"{text!r} is no scale", where="--scale", todo="write LOW:HIGH, such as --scale 1:10")
    return ends


def number(value: Any, column: str) -> float | None:
    """A score; None where there is none. RowError: it is no number."""
    if value is None or value == "":
        return None
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise RowError(column, f"must be a number, not {value!r:.40}")
    return score


def are_answers(value: Any, scores: Any, column: str) -> bool:
    """Is the list one of answers of models? One named `answers` and without scores or ranks is of right answers."""
    if not isinstance(value, list) or not value:
        return False
    return column != "answers" or scores is not None or any(map(_is_graded, value))


def _is_graded(answer: Any) -> bool:
    return isinstance(answer, Mapping) and any(answer.get(name) is not None for name in (*SCORES, "rank"))


def several(answers: Sequence[Any], scores: Any, models: Any) -> list[Scored]:
    """The answers of one prompt; scores and models stand with them or in lists of their own. An answer that is null was
    never given. RowError: the lists differ in length, or an answer has no text or no number for a score."""
    beside = {"scores": _beside(scores, "scores", len(answers)), "models": _beside(models, "models", len(answers))}
    found = [
        _one(answer, score, model) for answer, score, model in zip(answers, *beside.values(), strict=True)
        if answer is not None
    ]  # fmt: skip
    ranks = [rank for answer in answers if (rank := _rank(answer)) is not None]
    if ranks and len(ranks) == len(found) and all(each.score is None for each in found):
        return [each._replace(score=share, scale=SHARE) for each, share in zip(found, _shares(ranks), strict=True)]
    return found


def _beside(value: Any, column: str, length: int) -> Sequence[Any]:
    if value is None:
        return [None] * length
    if not isinstance(value, list) or len(value) != length:
        count = len(value) if isinstance(value, list) else "no list"
        raise RowError(column, f"must be a list as long as the answers ({length}), not {count}")
    return value


def _one(answer: Any, score: Any, model: Any) -> Scored:
    if isinstance(answer, Mapping) and "role" not in answer and "from" not in answer:
        said = next((answer[name] for name in TEXTS if answer.get(name) is not None), None)
        if said is None:
            raise RowError("answers", f"an answer has none of {', '.join(TEXTS)}")
        score = score if score is not None else next((answer[n] for n in SCORES if answer.get(n) is not None), None)
        model = model if model is not None else answer.get("model")
        answer = said
    return Scored(answer, number(score, "scores"), None, model if isinstance(model, str) else "")


def _rank(answer: Any) -> float | None:
    return number(answer.get("rank"), "answers") if isinstance(answer, Mapping) else None


def _shares(ranks: Sequence[float]) -> list[float]:
    """1 for the first, 0 for the last, evenly between; 1 for all where all are first."""
    low, high = min(ranks), max(ranks)
    return [1.0 if high == low else (high - rank) / (high - low) for rank in ranks]


def winner(value: Any) -> Winner:
    """Which of two answers is better. RowError: it says neither."""
    said = str(value).strip().lower()
    bare = next((said.removeprefix(before) for before in _BEFORE_SIDES if said.startswith(before)), said)
    if bare in _TIES:
        return "tie"
    if bare not in _SIDES:
        raise RowError("winner", f"must be a, b or tie, not {value!r:.40}")
    return _SIDES[bare]


def leaning(value: Any) -> Winner:
    """Which of two answers is better, by how much the second is: below 0 the first. RowError: it is no number."""
    strength = number(value, "strength")
    if strength is None:
        raise RowError("strength", "empty")
    return "tie" if strength == 0 else "a" if strength < 0 else "b"
