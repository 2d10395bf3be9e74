"""Is a policy still well? Measures of its answers that no label rewards: how varied they are, how many are broken.

Pure functions of texts and scores. Diversity: distinct-n (`measures.distinct`) and self-BLEU (Zhu et al. 2018, Texygen,
arXiv 1802.01886). Broken answers: loops, copies of the prompt, nothing at all, refusals. Confidence: entropy by the
answers' own log-probabilities. What a policy thinks of better and worse answers beyond what the start thinks: the
margin of its implicit reward (Rafailov et al. 2023, arXiv 2305.18290, eq. 5).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from factory.constraints.answer import clean, find_words
from factory.evaluation.measures import Graded, Scored
from factory.schema import Estimate, Messages
from factory.stats import intervals

ORDERS: Final = 4  # BLEU-4
TEXTS: Final = 500  # answers that self-BLEU reads, so that its cost is bounded
UNSEEN: Final = 0.1  # matches counted where there is none: Chen and Cherry 2014, smoothing method 1
PERIOD: Final = 20  # words of the longest phrase that is looked for in a loop
REPEATS: Final = 4  # times in a row that make a loop
LOOPED: Final = 10  # words at least that a loop takes
COPIED: Final = 0.8  # share of an answer's word trigrams that stand in its prompt
SHINGLE: Final = 3
BEGINNING: Final = 200  # characters in which a refusal is looked for
_REFUSAL: Final = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|afraid|unable|not able)"
    r"|i (?:can't|cannot|can not|won't|will not|must decline|am unable)"
    r"|i(?:'m| am) (?:just )?an ai|as an ai\b|as a language model"
    r"|i do(?:n't| not) (?:have the ability|feel comfortable))"
)


# ------------------------------------------------------------------------------------------------------- diversity


def self_bleu(texts: Iterable[str], *, most: int = TEXTS) -> float | None:
    """Mean BLEU-4 of each text against all others as its references (the first `most`): 1 when all say the same, near 0
    when nothing is shared; None with fewer than two texts that have words.

    It rises with the number of texts, as there is more to match: compare equal numbers. A text of fewer than four words
    is compared up to its own length.
    """
    words = [found for text in texts if (found := find_words(clean(text).casefold()))][:most]
    if len(words) < 2:
        return None
    logs = [[0.0] * min(ORDERS, len(found)) for found in words]
    for order in range(1, ORDERS + 1):
        counts = [_grams(found, order) for found in words]
        highest = _two_highest(counts)
        for i, grams in enumerate(counts):
            if grams:
                matched = sum(min(times, _elsewhere(highest[gram], i)) for gram, times in grams.items())
                logs[i][order - 1] = math.log((matched or UNSEEN) / grams.total())
    lengths = Counter(len(found) for found in words)
    return math.fsum(
        math.exp(math.fsum(each) / len(each)) * _brevity(len(found), lengths)
        for each, found in zip(logs, words, strict=True)
    ) / len(words)


def _grams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


Highest = tuple[int, int, int]
"""Of one n-gram: its highest count in any text, that text, and the highest count in the others."""


def _two_highest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], Highest]:
    found: dict[tuple[str, ...], Highest] = {}
    for i, grams in enumerate(counts):
        for gram, times in grams.items():
            first, owner, second = found.get(gram, (0, -1, 0))
            found[gram] = (times, i, first) if times > first else (first, owner, max(second, times))
    return found


def _elsewhere(highest: Highest, text: int) -> int:
    first, owner, second = highest
    return second if owner == text else first


def _brevity(length: int, lengths: Mapping[int, int]) -> float:
    """BLEU's penalty for being shorter than the reference whose length is nearest (the shorter of two as near)."""
    others = (other for other, count in lengths.items() if other != length or count > 1)
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length >= nearest else math.exp(1 - nearest / length)


# --------------------------------------------------------------------------------------------------- broken answers


def is_empty(text: str) -> bool:
    """Is there no word in it?"""
    return not find_words(clean(text))


def loops(text: str) -> bool:
    """Does one phrase (up to PERIOD words) come REPEATS times in a row or more, over LOOPED words at least? Where a
    text is one long word, characters stand for words."""
    words = find_words(clean(text).casefold())
    longest = max(words, key=lambda word: len(word), default="")
    if len(longest) > 4 * LOOPED:
        words = list(longest)
    return any(_longest_run(words, period) >= max(REPEATS * period, LOOPED) for period in range(1, PERIOD + 1))


def _longest_run(words: Sequence[str], period: int) -> int:
    """Words of the longest stretch in which each word equals the one `period` before it, the first period included."""
    longest = run = 0
    for i in range(period, len(words)):
        run = run + 1 if words[i] == words[i - period] else 0
        longest = max(longest, run)
    return longest + period if longest else 0


def copies(text: str, messages: Messages) -> bool:
    """Does the answer hardly say more than its prompt: are COPIED of its word trigrams (all its words, if fewer) also
    somewhere in the conversation?"""
    said = _shingles(text)
    asked = frozenset[tuple[str, ...]]().union(*(_shingles(m["content"], len(next(iter(said), ()))) for m in messages))
    return bool(said) and len(said & asked) / len(said) >= COPIED


def _shingles(text: str, size: int = 0) -> frozenset[tuple[str, ...]]:
    words = find_words(clean(text).casefold())
    size = size or min(SHINGLE, len(words))
    return frozenset(_grams(words, size)) if size else frozenset()


def refuses(text: str) -> bool:
    """Does it open by declining, in English? A phrase list: it misses other languages and polite detours."""
    return bool(_REFUSAL.search(clean(text[:BEGINNING]).replace("’", "'").casefold()))


def broken(answers: Sequence[Graded], prompts: Mapping[str, Messages]) -> dict[str, Estimate]:
    """Shares of the answers there are that are `empty`, `loop`, `copy` their prompt or `refuse`; `degenerate`: any of
    the first three. Empty without answers."""
    given = [a for a in answers if a.failure is None]
    if not given:
        return {}
    found = {
        "empty": [is_empty(a.text) for a in given],
        "loop": [loops(a.text) for a in given],
        "copy": [copies(a.text, prompts[a.prompt_key]) for a in given],
    }
    found["degenerate"] = [any(kinds) for kinds in zip(*found.values(), strict=True)]
    found["refuse"] = [refuses(a.text) for a in given]
    clusters = [a.prompt_key for a in given]
    return {name: intervals.rate(said, clusters) for name, said in found.items()}


# ------------------------------------------------------------------------------------- confidence and implicit reward


def entropy(scored: Sequence[Scored], clusters: Sequence[str], *, seed: int = 0) -> Estimate | None:
    """Nats a token: minus the log-probability of the policy's own answers over their tokens. An unbiased reading of the
    entropy a sequence where answers are sampled from the policy as it is (temperature 1, nothing cut); of tempered
    samples it is a cross-entropy, and lower."""
    if not any(s.tokens for s in scored):
        return None
    return intervals.ratio([-s.logprob for s in scored], [float(s.tokens) for s in scored], clusters, seed=seed)


class Weighed(NamedTuple):
    """A better and a worse answer to one prompt under the policy and under the start, sums in nats."""

    prompt_key: str
    chosen: Scored
    rejected: Scored
    start_chosen: Scored
    start_rejected: Scored


def implicit(pairs: Sequence[Weighed], *, seed: int = 0) -> dict[str, Estimate]:
    """What the policy has learnt of better and worse, over pairs of answers that neither side's training saw.

    `margin`: (log pi/pi_start of the chosen) - (the same of the rejected), nats; times beta it is the margin of the
    implicit reward. `accuracy`: share of pairs with a margin above zero, ties half. `chosen`, `rejected`:
    log-probability under the policy, nats a sequence; `chosen_shift`, `rejected_shift`: by how much it differs from the
    start's. Empty without pairs.
    """
    if not pairs:
        return {}
    clusters = [pair.prompt_key for pair in pairs]
    up = [pair.chosen.logprob - pair.start_chosen.logprob for pair in pairs]
    down = [pair.rejected.logprob - pair.start_rejected.logprob for pair in pairs]
    margins = [a - b for a, b in zip(up, down, strict=True)]
    values = {
        "margin": margins,
        "chosen": [pair.chosen.logprob for pair in pairs],
        "rejected": [pair.rejected.logprob for pair in pairs],
        "chosen_shift": up,
        "rejected_shift": down,
    }
    found = {name: intervals.mean(each, clusters, seed=seed) for name, each in values.items()}
    right = [1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins]
    return found | {"accuracy": intervals.share(right, clusters, seed=seed)}
