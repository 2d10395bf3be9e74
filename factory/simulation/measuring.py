"""What a run's held-out evaluation shows of the truth: `RoundEvidence` as the real stages would write it.

Prompts are the unit. A prompt's outcome in a round is a draw whose chance is the policy's quality and which hangs
together with the same prompt's outcomes in other rounds (a Gaussian copula). A judge names the better answer with its
accuracy and ties some pairs. All intervals come from the functions that real evaluations use.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from factory.schema import Estimate, Judged, PolicyReport
from factory.simulation.worlds import Course, World
from factory.stats import intervals, quantiles
from factory.stopping import RoundEvidence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Random = np.random.Generator

TOKENS = 60.0
SPREAD = 0.6  # of answers' lengths, as a share of their mean
PAIRS = 120  # comparisons that a round labels
LENGTH_BIAS = (0.6, 1.2)  # log-odds of a judge's verdict for an answer e times as long
AFTER_CONTROL = 0.1  # share of that bias which length control leaves


def history(world: World, run: Course, prompts: int, rng: Random) -> list[RoundEvidence]:
    """The evidence of every round, the start first; gains on the champion are left to the caller (`Outcomes`)."""
    return [evidence for evidence, _ in measured(world, run, prompts, rng)]


def measured(
    world: World, run: Course, prompts: int, rng: Random
) -> list[tuple[RoundEvidence, NDArray[np.bool_] | None]]:
    """The evidence of every round, and where a verifier measures who passed: `(prompts,)`."""
    rates = _verified(run, prompts, rng) if world.measure == "verifier" else None
    views = _Views.of(world, run, prompts, rng)
    return [
        (_evidence(run, i, prompts, _report(run, i, prompts, rates, views, rng)), rates.passed[i] if rates else None)
        for i in range(len(run.quality))
    ]


class Verified(NamedTuple):
    """Outcomes by round and prompt, `(rounds + 1, prompts)`, with the rate of each round and its gain on the start."""

    passed: NDArray[np.bool_]
    rates: list[Estimate]
    gains: list[Estimate]


def _verified(run: Course, prompts: int, rng: Random) -> Verified:
    import numpy as np

    passed = _outcomes(run.quality, run.alike, prompts, rng)
    counts = passed.sum(axis=1)
    both = passed.astype(np.float64) @ passed[0]
    rates = [intervals.wilson(int(n), prompts) for n in counts]
    gains = [paired(int(b), int(n), int(counts[0]), prompts) for b, n in zip(both, counts, strict=True)]
    return Verified(passed, rates, gains)


def paired(both: int, ours: int, theirs: int, prompts: int) -> Estimate:
    """The difference of two rates over the same prompts, from how many passed with both, with ours, with theirs."""
    return intervals.paired_rates(both, ours - both, theirs - both, prompts - ours - theirs + both)


def _outcomes(chances: Array, alike: float, prompts: int, rng: Random) -> NDArray[np.bool_]:
    """Yes with each round's chance, correlated `alike` between rounds: `(rounds + 1, prompts)`."""
    import numpy as np

    limits = np.asarray([NormalDist().inv_cdf(min(max(float(c), 1e-6), 1 - 1e-6)) for c in chances])
    easy = rng.standard_normal(prompts)
    luck = rng.standard_normal((len(limits), prompts))
    passed: NDArray[np.bool_] = math.sqrt(alike) * easy + math.sqrt(1 - alike) * luck < limits[:, None]
    return passed


class _Views(NamedTuple):
    """Win rates against the start, round by round: the labelling judge's, and the independent judge's with and without
    length control (None where there is none)."""

    labelling: list[Estimate]
    independent: list[Estimate] | None
    controlled: list[Estimate] | None

    @classmethod
    def of(cls, world: World, run: Course, prompts: int, rng: Random) -> _Views:
        """As judged on these prompts."""
        import numpy as np

        labelling = _judged(run.proxy, 1.0, run.judge_ties, run.alike, prompts, rng)
        if world.measure == "verifier":
            return cls(labelling, None, None)
        odds, bias = np.log(run.quality / (1 - run.quality)), rng.uniform(*LENGTH_BIAS) * np.log(run.length)
        plain = _judged(1 / (1 + np.exp(-odds - bias)), run.accuracy, run.judge_ties, run.alike, prompts, rng)
        left = AFTER_CONTROL * bias
        fair = _judged(1 / (1 + np.exp(-odds - left)), run.accuracy, run.judge_ties, run.alike, prompts, rng)
        return cls(labelling, plain, fair)


def _judged(chances: Array, accuracy: float, ties: float, alike: float, prompts: int, rng: Random) -> list[Estimate]:
    """A judge's win rate in each round: right with its accuracy, a share of ties."""
    import numpy as np

    better = _outcomes(chances, alike, prompts, rng)
    said = np.where(rng.random(better.shape) < accuracy, better, ~better)
    tied = rng.random(better.shape) < ties
    wins, even = (said & ~tied).sum(axis=1), tied.sum(axis=1)
    return [
        intervals.wins_and_losses(int(w), int(e), prompts - int(w) - int(e)) for w, e in zip(wins, even, strict=True)
    ]


def _report(run: Course, i: int, prompts: int, rates: Verified | None, views: _Views, rng: Random) -> PolicyReport:
    broken = intervals.wilson(int(rng.binomial(prompts, float(run.degenerate[i]))), prompts)
    length = TOKENS * float(run.length[i])
    return PolicyReport(
        policy=f"round {i}",
        split="heldout",
        prompts=prompts,
        answers=prompts,
        failures=0,
        pass_rate=rates.rates[i] if rates else None,
        gain=rates.gains[i] if rates and i else None,
        tokens=_about(length, SPREAD * length / math.sqrt(prompts), rng),
        distinct_2=float(run.distinct_2[i]) * float(rng.normal(1, 0.15 / math.sqrt(prompts))),
        entropy=_about(float(run.entropy[i]), 0.5 * float(run.entropy[i]) / math.sqrt(prompts), rng),
        kl_sequence=_about(float(run.kl[i]), float(run.kl[i]) / math.sqrt(prompts), rng),
        broken={"degenerate": broken},
        judged=_judges(views, i) if i else (),
    )


def _judges(views: _Views, i: int) -> tuple[Judged, ...]:
    found = [Judged("panel", False, views.labelling[i])]
    if views.independent and views.controlled:
        found.append(Judged("other", True, views.independent[i], views.controlled[i]))
    return tuple(found)


def _about(value: float, error: float, rng: Random) -> Estimate:
    """A mean as it is measured with that standard error."""
    seen = float(rng.normal(value, error)) if error > 0 else value
    half = quantiles.z_of() * error
    return Estimate(seen, seen - half, seen + half)


def _evidence(run: Course, i: int, prompts: int, report: PolicyReport) -> RoundEvidence:
    found = int(PAIRS * (1 - float(run.ties[i]))) if i else 0
    flips = {"panel": intervals.wilson(run.flips * PAIRS, PAIRS)} if i else {}
    margin = None if i == 0 else float(run.margin[i])
    return RoundEvidence(
        round=i, report=report, preferences=found, trained_on="preferences", flips=flips, margin=margin, tokens=prompts
    )


def with_champion_gain(
    evidence: RoundEvidence, ours: NDArray[np.bool_] | None, champion: NDArray[np.bool_] | None
) -> RoundEvidence:
    """The evidence with its gain on the champion before it, paired by prompt, where a verifier measures."""
    import dataclasses

    if ours is None or champion is None or evidence.round == 0:
        return evidence
    both, mine, theirs = int((ours & champion).sum()), int(ours.sum()), int(champion.sum())
    return dataclasses.replace(evidence, gain=paired(both, mine, theirs, len(ours)))
