"""What is measured of a policy's answers: pure functions from graded and scored answers to estimates.

A failed answer counts as not passing and as losing to any answer; it has no length, words or scores. Answers to prompts
without constraints that can be checked have no grade and are left out of rates. Intervals treat a prompt as the unit
that is drawn (see `factory/stats/intervals.py`): several answers to one prompt are one cluster.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from factory.evaluation.length_control import Compared
from factory.schema import Estimate, Slice
from factory.stats import intervals

NOTHING: Final = Estimate(0.0, 0.0, 0.0)
EVEN: Final = Estimate(0.5, 0.5, 0.5)
DISTINCT_SAMPLE = 500  # word pairs in each of the equal-size samples that distinct-2 is about


@dataclass(frozen=True, slots=True)
class Graded:
    """One answer with what the verifier says of it. `score`: share of constraints met, 0 to 1; None: there is no grade.
    `kinds`: for each kind of constraint that the prompt has, the share of its constraints met."""

    prompt_key: str
    sample: int
    text: str = ""
    tokens: int = 0
    failure: str | None = None
    score: float | None = None
    passed: bool | None = None
    kinds: Mapping[str, float] = field(default_factory=dict)


class Scored(NamedTuple):
    """Log-probability of one answer: the sum over its tokens in nats, how many they are, and each token's own where it
    was kept."""

    logprob: float
    tokens: int
    by_token: tuple[float, ...] | None = None


# ------------------------------------------------------------------------------------------ grades, alone and paired


def pass_rate(answers: Sequence[Graded]) -> Estimate | None:
    """Share of graded answers that meet every constraint."""
    graded = [(bool(a.passed), a.prompt_key) for a in answers if a.passed is not None]
    return intervals.rate([passed for passed, _ in graded], [key for _, key in graded]) if graded else None


def mean_score(answers: Sequence[Graded], *, seed: int = 0) -> Estimate | None:
    """Mean share of constraints met."""
    graded = [(a.score, a.prompt_key) for a in answers if a.score is not None]
    if not graded:
        return None
    return intervals.share([score for score, _ in graded], [key for _, key in graded], seed=seed)


def by_kind(answers: Sequence[Graded], *, seed: int = 0) -> dict[str, Estimate]:
    """Share of the constraints of each kind that are met, kinds in alphabetical order."""
    kinds = sorted({kind for a in answers for kind in a.kinds})
    rows = {kind: [(a.kinds[kind], a.prompt_key) for a in answers if kind in a.kinds] for kind in kinds}
    return {
        kind: intervals.share([met for met, _ in held], [key for _, key in held], seed=seed)
        for kind, held in rows.items()
    }


def gain(answers: Sequence[Graded], baseline: Sequence[Graded]) -> Estimate | None:
    """Pass rate minus the baseline's over the prompts that both answered, each prompt with the same weight."""
    ours, theirs = _passed_by_prompt(answers), _passed_by_prompt(baseline)
    common = [key for key in ours if key in theirs]
    return intervals.paired_shares([ours[key] for key in common], [theirs[key] for key in common]) if common else None


def gains_by_prompt(answers: Sequence[Graded], baseline: Sequence[Graded]) -> list[float]:
    """The gain of each prompt that both answered, -1 to 1, in the order of their keys."""
    ours, theirs = _passed_by_prompt(answers), _passed_by_prompt(baseline)
    rates = {key: [sum(said) / len(said) for said in (ours[key], theirs[key])] for key in sorted(ours) if key in theirs}
    return [of_ours - of_theirs for of_ours, of_theirs in rates.values()]


def _passed_by_prompt(answers: Sequence[Graded]) -> dict[str, list[bool]]:
    passed: dict[str, list[bool]] = {}
    for answer in answers:
        if answer.passed is not None:
            passed.setdefault(answer.prompt_key, []).append(answer.passed)
    return passed


def win_rate(answers: Sequence[Graded], baseline: Sequence[Graded], *, seed: int = 0) -> Estimate | None:
    """How often the verifier scores an answer above the baseline's answer to the same prompt, ties half; with several
    samples every pair of a prompt is compared and each prompt has the same weight."""
    ours, theirs = _scores_by_prompt(answers), _scores_by_prompt(baseline)
    common = [key for key in ours if key in theirs]
    if not common:
        return None
    return intervals.win_rate([_beats(ours[key], theirs[key]) for key in common], seed=seed)


def wins_by_prompt(answers: Sequence[Graded], baseline: Sequence[Graded]) -> list[float]:
    """The win rate on each prompt that both answered, in the order of their keys."""
    ours, theirs = _scores_by_prompt(answers), _scores_by_prompt(baseline)
    return [_beats(ours[key], theirs[key]) for key in sorted(ours) if key in theirs]


def compared(answers: Sequence[Graded], baseline: Sequence[Graded]) -> list[Compared]:
    """The policy's answers against the baseline's of the same number, with their lengths in tokens, which a failed
    answer does not have; how hard a prompt is is told by the baseline's mean score there."""
    theirs = {(b.prompt_key, b.sample): b for b in baseline if b.score is not None}
    level = {key: -sum(scores) / len(scores) for key, scores in _scores_by_prompt(baseline).items()}
    found = []
    for a in answers:
        b = theirs.get((a.prompt_key, a.sample))
        if b is not None and a.score is not None:
            longer = None if a.failure or b.failure else float(a.tokens - b.tokens)
            found.append(Compared(_beats([_worth(a)], [_worth(b)]), longer, level[a.prompt_key], a.prompt_key))
    return found


def _scores_by_prompt(answers: Sequence[Graded]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {}
    for answer in answers:
        if answer.score is not None:
            scores.setdefault(answer.prompt_key, []).append(_worth(answer))
    return scores


def _worth(graded: Graded) -> float:
    """Its score; of a failed answer one below the worst answer there is."""
    return -1.0 if graded.failure or graded.score is None else graded.score


def _beats(ours: Sequence[float], theirs: Sequence[float]) -> float:
    won = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs)
    return won / (len(ours) * len(theirs))


# ----------------------------------------------------------------------------------------------------------- slices

PROMPT_WORDS: Final = (10, 20, 40, 80)
ANSWER_TOKENS: Final = (32, 64, 128, 256)


def bucket(size: float, edges: Sequence[int]) -> str:
    """The part of a scale that a size falls in: "to 10", "11 to 20", ..., "over 80"."""
    below = 0
    for edge in edges:
        if size <= edge:
            return f"{below + 1} to {edge}" if below else f"to {edge}"
        below = edge
    return f"over {below}"


def slices(
    answers: Sequence[Graded],
    baseline: Sequence[Graded] | None,
    cuts: Mapping[str, Mapping[str, str]],
    *,
    seed: int = 0,
) -> tuple[Slice, ...]:
    """Pass rate and win rate in each part of the prompts. `cuts`: by what (source, prompt words ...) -> prompt key ->
    the part it is in. Many parts are many looks: one of twenty intervals misses by chance."""
    found = []
    for by, parts in cuts.items():
        for name in sorted(set(parts.values()), key=_natural):
            ours = [a for a in answers if parts.get(a.prompt_key) == name]
            theirs = [a for a in baseline or () if parts.get(a.prompt_key) == name]
            won = win_rate(ours, theirs, seed=seed) if baseline is not None else None
            count = len({a.prompt_key for a in ours})
            found.append(Slice(by, name, count, pass_rate(ours), won))
    return tuple(found)


def _natural(name: str) -> tuple[int, int, str]:
    """Buckets in the order of their sizes, other names by the alphabet."""
    numbers = [int(part) for part in name.split() if part.isdigit()]
    return (1 if name.startswith("over") else 0, numbers[-1] if numbers else 0, name)


# --------------------------------------------------------------------------------------------- length and diversity


def mean_tokens(answers: Sequence[Graded], *, seed: int = 0) -> Estimate | None:
    """Mean length in tokens of the answers there are, end token included."""
    given = [a for a in answers if a.failure is None]
    return _mean([float(a.tokens) for a in given], [a.prompt_key for a in given], seed)


def mean_words(answers: Sequence[Graded], *, seed: int = 0) -> Estimate | None:
    """Mean length in words (runs of non-blank characters)."""
    given = [a for a in answers if a.failure is None]
    return _mean([float(len(a.text.split())) for a in given], [a.prompt_key for a in given], seed)


def _mean(values: Sequence[float], clusters: Sequence[str], seed: int) -> Estimate | None:
    return intervals.mean(values, clusters, seed=seed) if values else None


def distinct(texts: Iterable[str], order: int = 2, sample: int = DISTINCT_SAMPLE) -> float | None:
    """Expected share of distinct word n-grams (n = `order`) among `sample` drawn from all of them; None where there is
    none.

    Distinct-n (Li et al. 2016, arXiv 1510.03055) over a whole corpus falls as the corpus grows, so that shorter answers
    look more diverse. Equal-size samples do not; their mean needs no drawing: n-gram i, seen n_i times among N, is
    missed by a sample of m with probability C(N - n_i, m) / C(N, m) (rarefaction: Hurlbert 1971, Ecology 52:577). With
    fewer than `sample` n-grams in all, the plain share of all: then it is no fair comparison with a larger corpus.
    """
    counts = Counter(gram for text in texts for gram in _grams(text, order))
    total = sum(counts.values())
    if not total:
        return None
    m = min(sample, total)
    seen = sum(many * -math.expm1(_log_missed(times, total, m)) for times, many in Counter(counts.values()).items())
    return seen / m


def distinct_2(texts: Iterable[str], sample: int = DISTINCT_SAMPLE) -> float | None:
    """`distinct` of word pairs."""
    return distinct(texts, 2, sample)


def _grams(text: str, order: int) -> Iterable[tuple[str, ...]]:
    words = text.casefold().split()
    return zip(*(words[i:] for i in range(order)), strict=False)


def _log_missed(times: int, total: int, m: int) -> float:
    """log of C(total - times, m) / C(total, m)."""
    if total - times < m:
        return -math.inf
    return (
        math.lgamma(total - times + 1)
        - math.lgamma(total - times - m + 1)
        - math.lgamma(total + 1)
        + math.lgamma(total - m + 1)
    )


# --------------------------------------------------------------------------------------- distance from the start


class Divergence(NamedTuple):
    """KL from the start policy: nats a sequence, and nats a token."""

    sequence: Estimate
    token: Estimate


def divergence(
    policy: Sequence[Scored], start: Sequence[Scored], clusters: Sequence[str], *, seed: int = 0
) -> Divergence | None:
    """KL(policy || start) from the policy's own samples: the mean log-ratio ("k1": Schulman 2020), unbiased, at times
    below zero by chance. It is the KL where the answers were sampled from the policy as it is; with a temperature
    other than 1 or a cut at top_p it is a log-ratio on the tempered samples. An answer cut at its limit counts up to
    there. None where the two split an answer into different numbers of tokens: over other tokens there is no KL."""
    if not policy or _split_differently(policy, start):
        return None
    ratios = [p.logprob - s.logprob for p, s in zip(policy, start, strict=True)]
    tokens = [float(p.tokens) for p in policy]
    return Divergence(intervals.mean(ratios, clusters, seed=seed), intervals.ratio(ratios, tokens, clusters, seed=seed))


def _split_differently(policy: Sequence[Scored], start: Sequence[Scored]) -> bool:
    return any(p.tokens != s.tokens for p, s in zip(policy, start, strict=True))


def divergence_k3(
    policy: Sequence[Scored], start: Sequence[Scored], clusters: Sequence[str], *, seed: int = 0
) -> Divergence | None:
    """The same KL, token by token and from below by zero: the mean of r - 1 - log r, with r = p_start / p_policy of
    each sampled token ("k3": Schulman 2020, joschu.net/blog/kl-approx.html).

    Given what came before, each token's term has the KL of the two next-token distributions as its mean, so that their
    sum over an answer is unbiased for the sequence's KL, like k1, and varies less while the policies are near each
    other; far apart its rare large ratios make it vary more. Over whole answers r would be useless: exp of tens of
    nats. None where no token's log-probability was kept (answers without are left out), and as in `divergence`.
    """
    if _split_differently(policy, start):
        return None
    terms, tokens, kept = [], [], []
    for p, s, cluster in zip(policy, start, clusters, strict=True):
        if p.by_token is not None and s.by_token is not None:
            terms.append(math.fsum(_k3(a - b) for a, b in zip(p.by_token, s.by_token, strict=True)))
            tokens.append(float(p.tokens))
            kept.append(cluster)
    if not terms:
        return None
    return Divergence(intervals.mean(terms, kept, seed=seed), intervals.ratio(terms, tokens, kept, seed=seed))


def _k3(log_ratio: float) -> float:
    """exp(-d) - 1 + d for d = log p_policy - log p_start, without loss of digits near 0."""
    return math.expm1(-log_ratio) + log_ratio


def relevance(
    prompted: Sequence[Scored], neutral: Sequence[Scored], clusters: Sequence[str], *, seed: int = 0
) -> Estimate | None:
    """How much the prompt explains the answer, in nats a token: the mean over answers of
    [log p(answer | prompt) - log p(answer | neutral prompt)] / tokens, by the start model: pointwise mutual information
    (as in Li et al. 2016, arXiv 1510.03055).

    About zero for an answer that would suit any prompt. A repetition of the prompt scores high: it measures being about
    the prompt, not being good.
    """
    if not prompted:
        return None
    values = [(p.logprob - n.logprob) / max(p.tokens, 1) for p, n in zip(prompted, neutral, strict=True)]
    return intervals.mean(values, clusters, seed=seed)
