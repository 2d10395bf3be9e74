"""What judges of a single answer share: how it is put before them, and how a score is read.

The score is the expected value over the scale, E[s] = sum over s of s * p(s), with p the distribution over the score
tokens (G-Eval, Liu et al. 2023, 2303.16634, eq. 1): finer than the most likely score, and with far fewer ties. Where
the engine shows no log-probs, the text must be exactly one score of the scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from factory.judges import answers, fence
from factory.schema import Matchup, Message, Messages, Reading

_WITH_REFERENCE = "A reference answer is given. Go by it to tell what is right; it is not what you judge."


def messages(matchup: Matchup, opening: str, question: Sequence[str], *, reference: bool = False) -> Messages:
    """One turn: the opening, the conversation and the answer cleaned and fenced (with the prompt's reference answer,
    where it is wanted and there is one), then the lines of the question."""
    shown = [("conversation", fence.clean(fence.transcript(matchup.prompt.messages)).text)]
    known = reference_of(matchup, reference)
    if known:
        shown.append(("reference answer", known))
    shown.append(("answer", fence.clean(matchup.a.text).text))
    code = fence.nonce_of(matchup, [text for _, text in shown])
    lines = [_WITH_REFERENCE, *question] if known else question
    return [Message(role="user", content=fence.sheet(opening, shown, "\n".join(lines), code))]


def reference_of(matchup: Matchup, wanted: bool) -> str:
    """The prompt's reference answer, cleaned, where it is wanted and there is one."""
    return fence.clean(matchup.prompt.reference or "").text.strip() if wanted else ""


def score(said: answers.Said, labels: Mapping[str, float], aspect: str, beside: Mapping[str, Any]) -> Reading:
    """What was said as a reading: the expected score with its scale, or the failure. `beside` is kept in its detail."""
    detail = said.detail() | dict(beside)
    if said.failure is not None:
        return Reading(aspect=aspect, failure=said.failure, detail=detail)
    low, high = min(labels.values()), max(labels.values())
    expected = sum(share * labels[text] for text, share in said.shares.items())
    return Reading(aspect=aspect, score=min(max(expected, low), high), score_low=low, score_high=high, detail=detail)


def beside(matchup: Matchup, weight: float, reference: bool) -> dict[str, Any]:
    """What is kept with a score: a weight other than 1, that there was a reference, and what the fence took out."""
    kept: dict[str, Any] = {} if weight == 1 else {"weight": weight}
    if reference_of(matchup, reference):
        kept["reference"] = True
    return kept | fence.stripped(matchup)
