"""The meta-judge: which of two judgments of the same answer is better, asked in both orders.

Meta-Rewarding Language Models (Wu et al. 2024, arXiv 2407.19594, section 2.2). It is the pairwise judge with a
constitution and words of its own: its "prompt" is the question that a judge was asked, its "answers" are two texts that
the judge wrote. `factory/meta_judging.py` makes these out of kept calls, and preferences for the judge's training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from factory.judges.pairwise import PairwiseJudge, Reasoning, Words

JUDGMENTS = Words(
    "Compare two judgments. The task of the judge, with the answer that was judged, comes first.", "task", "judgment"
)


def meta_judge(
    name: str = "meta_judge",
    constitution: str = "meta-judging",
    principles: Sequence[str] | str = (),
    prefix: str = "The better judgment is (",
    min_mass: float = 0.5,
    max_tokens: int | None = None,
    reasoning: Reasoning = "none",
    reasoning_tokens: int = 256,
    examples: str | Sequence[Mapping[str, Any]] = (),
) -> PairwiseJudge:
    """The pairwise judge of judgments; options as there."""
    judge = PairwiseJudge(
        name=name,
        constitution=constitution,
        principles=principles,
        prefix=prefix,
        min_mass=min_mass,
        max_tokens=max_tokens,
        reasoning=reasoning,
        reasoning_tokens=reasoning_tokens,
        examples=examples,
    )
    judge.words = JUDGMENTS
    return judge
