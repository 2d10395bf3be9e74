"""The report on a policy: all that was found of its answers becomes one row of numbers. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factory.evaluation import length_control, measures, policy_health
from factory.evaluation.answers import VERIFIER, Baseline
from factory.evaluation.judged import Labellers, is_independent
from factory.evaluation.likelihoods import Likelihoods
from factory.evaluation.measures import Graded
from factory.evaluation.policy_health import Weighed
from factory.prompts import decontamination
from factory.schema import Judged, PolicyReport, Prompt
from factory.stats import confidence_sequences, quantiles

TEMPERED = "tempered"
"""KL is measured on answers of another temperature than 1, or of a cut distribution: it is a log-ratio there."""
UNTEMPERED = "policy"
"""KL is measured on answers of the policy as it is."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a report is made of."""

    policy: str
    split: str
    prompts: list[Prompt]
    graded: list[Graded]
    baseline: Baseline | None
    likelihoods: Likelihoods | None
    seed: int = 0
    tempered: bool = False
    pairs: Sequence[Weighed] = ()
    judged: Sequence[Judged] = ()
    labelled_by: Labellers | None = None
    near_trained: int | None = None
    look: int = 1
    unchanged: bool = False
    """The answers are the baseline's: the policy is the same, so that nothing between them is a matter of chance."""


def report_of(evidence: Evidence) -> PolicyReport:
    """The measures of one policy's answers. No I/O."""
    graded, baseline, seed = evidence.graded, evidence.baseline, evidence.seed
    texts = [answer.text for answer in graded if not answer.failure]
    return PolicyReport(
        policy=evidence.policy,
        split=evidence.split,
        prompts=len(evidence.prompts),
        answers=len(graded),
        failures=sum(1 for answer in graded if answer.failure),
        pass_rate=measures.pass_rate(graded),
        score=measures.mean_score(graded, seed=seed),
        tokens=measures.mean_tokens(graded, seed=seed),
        words=measures.mean_words(graded, seed=seed),
        distinct_1=measures.distinct(texts, 1),
        distinct_2=measures.distinct(texts, 2),
        distinct_3=measures.distinct(texts, 3),
        self_bleu=policy_health.self_bleu(texts),
        broken=policy_health.broken(graded, {prompt.key: prompt.messages for prompt in evidence.prompts}),
        implicit=policy_health.implicit(evidence.pairs, seed=seed),
        implicit_pairs=len(evidence.pairs),
        by_constraint=measures.by_kind(graded, seed=seed),
        slices=measures.slices(graded, baseline and baseline.graded, _cuts(evidence.prompts, graded), seed=seed),
        judged=tuple(evidence.judged),
        independent=_independent(evidence),
        near_trained=evidence.near_trained,
        look=evidence.look,
        **(_against(evidence, baseline) if baseline else {}),
        **(_distances(evidence.likelihoods, evidence) if evidence.likelihoods else {}),
    )


def _against(evidence: Evidence, baseline: Baseline) -> dict[str, Any]:
    """What is said of the answers against the baseline's."""
    graded, seed = evidence.graded, evidence.seed
    spent = (1 - quantiles.LEVEL) * 6 / (math.pi * evidence.look) ** 2  # of the allowance of all looks together
    wins, gains = measures.wins_by_prompt(graded, baseline.graded), measures.gains_by_prompt(graded, baseline.graded)
    if evidence.unchanged:
        even, none = (measures.EVEN if wins else None), (measures.NOTHING if gains else None)
        rates = dict.fromkeys(("win_rate", "length_controlled", "win_rate_anytime"), even)
        return {**rates, "gain": none, "gain_anytime": none, "baseline": baseline.policy}
    return {
        "win_rate": measures.win_rate(graded, baseline.graded, seed=seed),
        "length_controlled": length_control.win_rate(measures.compared(graded, baseline.graded), seed=seed),
        "gain": measures.gain(graded, baseline.graded),
        "baseline": baseline.policy,
        "win_rate_anytime": confidence_sequences.sequence([wins], alpha=spent, low=0.0, high=1.0) if wins else None,
        "gain_anytime": confidence_sequences.sequence([gains], alpha=spent) if gains else None,
    }


def _cuts(prompts: Sequence[Prompt], graded: Sequence[Graded]) -> dict[str, dict[str, str]]:
    """How the prompts are cut into slices: by source, by their length, and by the mean length of the answers to
    them."""
    lengths: dict[str, list[int]] = {}
    for answer in graded:
        if answer.failure is None:
            lengths.setdefault(answer.prompt_key, []).append(answer.tokens)
    return {
        "source": {prompt.key: prompt.source or "unknown" for prompt in prompts},
        "prompt words": {
            prompt.key: measures.bucket(len(decontamination.said(prompt.messages).split()), measures.PROMPT_WORDS)
            for prompt in prompts
        },
        "answer tokens": {
            key: measures.bucket(sum(each) / len(each), measures.ANSWER_TOKENS) for key, each in lengths.items()
        },
    }


def _independent(evidence: Evidence) -> bool | None:
    """Does anything that gives a rate here not label?"""
    if evidence.labelled_by is None:
        return None
    graded = any(answer.passed is not None for answer in evidence.graded)
    verifier = graded and bool(is_independent(VERIFIER, VERIFIER, "", evidence.labelled_by))
    return verifier or any(each.independent for each in evidence.judged)


def _distances(found: Likelihoods, evidence: Evidence) -> dict[str, Any]:
    """KL from the start (exactly zero for the start policy; none where its tokens are others), entropy and
    relevance."""
    seed, clusters = evidence.seed, found.clusters
    if not found.start:
        return {}
    none = measures.Divergence(measures.NOTHING, measures.NOTHING)
    moved = measures.divergence(found.policy, found.start, clusters, seed=seed) if found.policy else none
    third = measures.divergence_k3(found.policy, found.start, clusters, seed=seed) if found.policy else none
    return {
        "kl_sequence": moved and moved.sequence,
        "kl_token": moved and moved.token,
        "kl3_sequence": third and third.sequence,
        "kl3_token": third and third.token,
        "kl_on": "" if moved is None else TEMPERED if evidence.tempered else UNTEMPERED,
        "entropy": policy_health.entropy(found.policy or found.start, clusters, seed=seed),
        "relevance": measures.relevance(found.prompted, found.neutral, found.about, seed=seed),
        "scored": len(found.start),
    }
