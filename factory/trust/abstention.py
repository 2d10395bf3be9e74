"""Trust or escalate: from which confidence on a judge may be believed, with a guarantee. Pure.

Jung, Brahman and Choi, arXiv 2407.18370: among the verdicts whose confidence is at least t, at most a share `risk`
contradicts people, with probability 1 - delta over the drawing of the gold verdicts. Below t the judge abstains.

That the risk at t is above `risk` is tested with the exact binomial tail P(Bin(n, risk) <= wrong) over the n gold
verdicts with such a confidence. Thresholds are tested in a fixed sequence, from the most confident verdicts down, each
at level delta, up to the first that fails (Bauer 1991, Stat. Med. 10:871; Angelopoulos et al., "Learn then test",
2110.01052): then the chance of any wrong claim is at most delta. So that the sequence depends on no gold verdict, its
thresholds are quantiles of the confidences on pairs without gold, and it begins where three times the verdicts that a
test needs at least are to be expected. Where pairs without gold are few, ten thresholds set beforehand are tested, each
at delta / 10.

The guarantee is for verdicts drawn like those with gold, one a prompt, on pairs where people prefer one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from factory.faults import FactoryError
from factory.schema import Estimate
from factory.stats.intervals import wilson

STEPS = 20
"""Thresholds of the sequence at most."""
FEWEST_OTHERS = 50
"""Pairs without gold from which quantiles are taken."""
FIXED = tuple(0.5 + step / 20 for step in range(10))
"""Thresholds where there are too few of them."""


@dataclass(frozen=True)
class Threshold:
    """From which confidence, max(p_a, 1 - p_a), on a judge is believed. `threshold` None: it always abstains, and
    `note` says why. `kept` is the share of its decided verdicts (without gold, if there are such) at or above it."""

    judge: str
    risk: float
    delta: float
    gold: int  # verdicts that it was calibrated on, one a prompt
    threshold: float | None
    kept: Estimate
    wrong: int = 0  # of `above` gold verdicts at or above the threshold
    above: int = 0
    note: str = ""


def needed(risk: float, delta: float) -> int:
    """Fewest verdicts, none of them wrong, that show the risk: (1 - risk)^n <= delta."""
    return math.ceil(math.log(delta) / math.log1p(-risk))


def at_most(wrong: int, n: int, risk: float) -> float:
    """P(Bin(n, risk) <= wrong)."""
    if wrong >= n:
        return 1.0
    log_odds, top = math.log(risk) - math.log1p(-risk), n * math.log1p(-risk)
    terms = [
        top + math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_odds for k in range(wrong + 1)
    ]
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def calibrate(
    judge: str,
    gold: Sequence[tuple[float, bool]],
    others: Sequence[float],
    *,
    risk: float = 0.2,
    delta: float = 0.1,
) -> Threshold:
    """The lowest threshold with the guarantee. `gold` are (confidence, wrong) of decided verdicts, one a prompt;
    `others` the confidences of decided verdicts without gold. FactoryError: risk or delta not between 0 and 1."""
    for name, value in (("risk", risk), ("confidence (1 - delta)", 1 - delta)):
        if not 0 < value < 1:
            raise FactoryError(f"{name} must lie between 0 and 1, not {value}")
    fewest = needed(risk, delta)
    if len(others) >= FEWEST_OTHERS:
        found = _in_sequence(gold, _quantiles(others, len(gold), fewest), risk, delta)
    else:
        found = [t for t in FIXED if _holds(gold, t, risk, delta / len(FIXED))]
    if not found:
        few = f": at least {fewest} gold verdicts are needed" if len(gold) < fewest else ""
        note = f"no threshold can be shown to hold{few}"
        return Threshold(judge, risk, delta, len(gold), None, wilson(0, len(others)), note=note)
    threshold = min(found)
    above = [wrong for confidence, wrong in gold if confidence >= threshold]
    seen = others if others else [confidence for confidence, _ in gold]
    kept = wilson(sum(confidence >= threshold for confidence in seen), len(seen))
    return Threshold(judge, risk, delta, len(gold), threshold, kept, sum(above), len(above))


def _quantiles(others: Sequence[float], gold: int, fewest: int) -> list[float]:
    """Thresholds from the most confident verdicts down to all."""
    ordered = sorted(others, reverse=True)
    start = min(1.0, 3 * fewest / gold) if gold else 1.0
    shares = [start + (1 - start) * step / STEPS for step in range(STEPS + 1)]
    last = len(ordered) - 1
    return sorted({ordered[min(math.ceil(share * len(ordered)) - 1, last)] for share in shares}, reverse=True)


def _in_sequence(
    gold: Sequence[tuple[float, bool]], thresholds: Sequence[float], risk: float, delta: float
) -> list[float]:
    """Those that hold before the first that does not."""
    found = []
    for threshold in thresholds:
        if not _holds(gold, threshold, risk, delta):
            break
        found.append(threshold)
    return found


def _holds(gold: Sequence[tuple[float, bool]], threshold: float, risk: float, level: float) -> bool:
    above = [wrong for confidence, wrong in gold if confidence >= threshold]
    return at_most(sum(above), len(above), risk) <= level
