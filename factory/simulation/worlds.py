"""Worlds to try stopping rules in: how good each round's policy really is, and what else changes with it.

A world is written in log-odds of quality. Quality is the chance that a held-out answer passes (`measure` verifier), or
the chance that it is truly better than the start's (`measure` judge; the start has one half). Every run of a world
draws its numbers anew, uniformly from the spans. `part` keeps apart the worlds that rules are tuned in and those that
they are reported on; the spans were fixed before any rule was.

Where the spans come from (what is not listed is an assumption, wide on purpose):

- steps of a loop that works: Self-Rewarding (arXiv 2401.10020) 9.9, 15.4, 20.4% against one opponent in three rounds
  (0.5 and 0.33 in log-odds), 62.5% of wins against its start after them; Meta-Rewarding (2407.19594) 22.9 to 39.4% in
  four rounds (0.2 a round); the spans go down to half of that.
- a loop that saturates: iterative reasoning preference optimisation (2404.19733) 55.6 to 81.6% on GSM8K, 1.3 in
  log-odds, most of it in the first round.
- over-optimisation: Gao, Schulman and Hilton (2210.10760): with d the root of the KL, true reward d (a - b log d) for
  reinforcement learning and d (a - b d) for best-of-n, while the proxy goes on rising. Written by the place and the
  height of the peak. KL grows by a like amount each round (Bai et al. 2204.05862: reward is near linear in d).
- length: Self-Rewarding's answers grow by half a round; a judge's verdict moves by 0.6 in log-odds when a model is
  asked to be verbose, and by a tenth of that after length control (2404.04475: 64.3 and 51.6% against itself).
- judges: agreement with people 66 to 85%, verdicts that do not change with the order 65% for the best judge and 46% for
  the next (2306.05685).
- what changes without harm: answers become less diverse in any such training (2310.06452).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from factory.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Random = np.random.Generator

ROUNDS = 10
"""Rounds that a world goes on for."""
Measure = Literal["verifier", "judge"]
Part = Literal["tune", "report"]


@dataclass(frozen=True, slots=True)
class Span:
    """A number that each run draws uniformly between two ends."""

    low: float
    high: float

    def draw(self, rng: Random) -> float:
        """One value."""
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One world. `rise`: log-odds gained, in all or in a step, as its kind has it; `turn`: the round, or the number of
    rounds, that its kind turns at; `fall`: log-odds lost in a round after that."""

    name: str
    kind: str
    measure: Measure
    part: Part
    rise: Span
    turn: Span = Span(1.0, 1.0)
    fall: Span = Span(0.0, 0.0)
    start: Span = Span(0.2, 0.4)
    """Share that passes at the start; a half where a judge measures."""
    longer: Span = Span(0.97, 1.10)
    """Length of answers as a multiple of the round before."""
    diversity: Span = Span(0.97, 1.0)
    """Distinct word pairs as a multiple of the round before; entropy falls twice as fast."""
    kl: Span = Span(1.5, 5.0)
    """Nats a sequence that a round adds."""
    accuracy: Span = Span(0.66, 0.85)
    """Chance that a judge names the better answer."""
    ties: Span = Span(0.1, 0.35)
    """Share of comparisons that a judge ties, since its verdict changes with the order."""
    alike: Span = Span(0.4, 0.8)
    """Correlation of a prompt's outcomes between rounds."""


@dataclass(frozen=True, slots=True)
class Course:
    """What is true of a run, round by round; every array `(rounds + 1,)`, the start first."""

    quality: Array
    proxy: Array
    """Chance that the labelling judge prefers the answer to the start's."""
    length: Array
    """Mean tokens as a multiple of the start's."""
    distinct_2: Array
    entropy: Array
    """Nats a token."""
    degenerate: Array
    """Share of answers that are loops, copies or empty."""
    kl: Array
    """Nats a sequence from the start."""
    ties: Array
    """Share of labelling comparisons that are tied or fail."""
    margin: Array
    """Implicit-reward margin of training pairs at the end of training; NaN at the start."""
    accuracy: float
    judge_ties: float
    alike: float
    flips: float
    """Share of the labelling judge's verdicts that change with the order."""

    @property
    def best_round(self) -> int:
        """The first round whose policy is within 2% of the best there is."""
        return next(i for i, q in enumerate(self.quality) if q >= self.worth_keeping)

    @property
    def worth_keeping(self) -> float:
        """Quality within 2% of the best there is."""
        return 0.98 * float(self.quality.max())


class Turns(NamedTuple):
    """What a kind of world makes of its spans: arrays `(rounds + 1,)`. Gains are log-odds since the start."""

    gain: Array
    proxy: Array
    collapsed: Array
    """Rounds since the answers began to fall apart; 0 before."""


Kind = Callable[["World", "Array", "Random"], Turns]
kinds: Registry[Kind] = Registry("kind of world")


@kinds.register("steady_gain")
def _steady(world: World, t: Array, rng: Random) -> Turns:
    """The same step every round, give or take a quarter; the labelling judge sees it half as large again."""
    import numpy as np

    steps = world.rise.draw(rng) * rng.uniform(0.75, 1.25, len(t) - 1)
    gain = np.concatenate([[0.0], np.cumsum(steps)])
    return Turns(gain, 1.5 * gain, np.zeros_like(t))


@kinds.register("plateau")
def _plateau(world: World, t: Array, rng: Random) -> Turns:
    """Gains that shrink by the same share every round: `turn` rounds bring 63% of them."""
    import numpy as np

    gain = world.rise.draw(rng) * (1 - np.exp(-t / world.turn.draw(rng)))
    return Turns(gain, 1.5 * gain, np.zeros_like(t))


@kinds.register("over_optimisation")
def _over_optimised(world: World, t: Array, rng: Random) -> Turns:
    """Up to a peak at round `turn` and down again: x (1 - log x), x the root of the KL as a share of the peak's. With a
    `fall` it is the form of best-of-n, x (2 - x). The proxy rises on, in proportion to x."""
    import numpy as np

    x = np.sqrt(t / world.turn.draw(rng))
    height = world.rise.draw(rng)
    shape = x * (2 - x) if world.fall.high > 0 else x * (1 - np.log(np.maximum(x, 1e-9)))
    return Turns(height * shape, height * rng.uniform(1.5, 2.0) * x, np.zeros_like(t))


@kinds.register("length_hacking")
def _longer_and_longer(world: World, t: Array, rng: Random) -> Turns:
    """A small gain in the first rounds, then a loss every round, while answers grow and the labelling judge is glad."""
    import numpy as np

    turn = round(world.turn.draw(rng))
    gain = world.rise.draw(rng) * np.minimum(t / turn, 1) - world.fall.draw(rng) * np.maximum(t - turn, 0)
    return Turns(gain, rng.uniform(0.2, 0.5) * t, np.zeros_like(t))


@kinds.register("collapse")
def _collapse(world: World, t: Array, rng: Random) -> Turns:
    """Gains until round `turn`; after it answers lose variety, more and more of them are broken, quality falls."""
    import numpy as np

    turn = round(world.turn.draw(rng))
    since = np.maximum(t - turn, 0)
    gain = world.rise.draw(rng) * np.minimum(t / turn, 1) - world.fall.draw(rng) * since
    return Turns(gain, 1.5 * np.maximum.accumulate(gain), since)


@kinds.register("noise_only")
def _noise(world: World, t: Array, rng: Random) -> Turns:
    """Policies that differ a little and are no better: no trend at all."""
    import numpy as np

    gain = np.concatenate([[0.0], rng.normal(0.0, world.rise.draw(rng), len(t) - 1)])
    return Turns(gain, 0.05 * t, np.zeros_like(t))


def course(world: World, rng: Random, rounds: int = ROUNDS) -> Course:
    """One run's truth."""
    import numpy as np

    t = np.arange(rounds + 1, dtype=np.float64)
    turns = kinds.get(world.kind)(world, t, rng)
    origin = 0.0 if world.measure == "judge" else _log_odds(world.start.draw(rng))
    fade, spoilt = world.diversity.draw(rng), turns.collapsed
    thinner, broken, tied = rng.uniform(0.60, 0.85), rng.uniform(0.04, 0.20), rng.uniform(0.05, 0.12)
    ties = world.ties.draw(rng)
    return Course(
        quality=_chance(origin + turns.gain),
        proxy=_chance(turns.proxy),
        length=np.minimum(world.longer.draw(rng) ** t, 6.0),
        distinct_2=rng.uniform(0.6, 0.85) * fade**t * thinner**spoilt,
        entropy=rng.uniform(0.6, 1.4) * fade ** (2 * t) * thinner ** (2 * spoilt),
        degenerate=np.minimum(rng.uniform(0.0, 0.03) + broken * spoilt, 0.9),
        kl=world.kl.draw(rng) * t * (1 + 0.5 * spoilt),
        ties=np.minimum(ties + tied * spoilt, 0.98),
        margin=np.concatenate([[math.nan], rng.uniform(0.3, 1.2) * (1 + 0.1 * t[1:])]),
        accuracy=world.accuracy.draw(rng),
        judge_ties=ties,
        alike=world.alike.draw(rng),
        flips=rng.uniform(0.25, 0.5),
    )


def _log_odds(chance: float) -> float:
    return math.log(chance / (1 - chance))


def _chance(log_odds: Array) -> Array:
    import numpy as np

    chance: Array = 1 / (1 + np.exp(-log_odds))
    return chance


def _both(kind: str, small: dict[str, Span], large: dict[str, Span]) -> tuple[World, ...]:
    """Four worlds of a kind: two sizes, each with either measure; one of each size is for tuning, the other for the
    report."""
    return (
        World(name=f"{kind} small verifier", kind=kind, measure="verifier", part="tune", **small),
        World(name=f"{kind} small judge", kind=kind, measure="judge", part="report", **small),
        World(name=f"{kind} large verifier", kind=kind, measure="verifier", part="report", **large),
        World(name=f"{kind} large judge", kind=kind, measure="judge", part="tune", **large),
    )


WORLDS: tuple[World, ...] = (
    *_both("steady_gain", {"rise": Span(0.10, 0.14)}, {"rise": Span(0.14, 0.20)}),
    *_both(
        "plateau",
        {"rise": Span(0.3, 0.7), "turn": Span(0.6, 1.5)},
        {"rise": Span(0.7, 1.3), "turn": Span(0.8, 1.8)},
    ),
    *_both(
        "over_optimisation",
        {"rise": Span(0.3, 0.6), "turn": Span(1.5, 4.0)},
        {"rise": Span(0.6, 1.1), "turn": Span(2.0, 5.0), "fall": Span(1.0, 1.0)},
    ),
    *_both(
        "length_hacking",
        {"rise": Span(0.0, 0.2), "turn": Span(1.0, 2.0), "fall": Span(0.02, 0.10), "longer": Span(1.25, 1.45)},
        {"rise": Span(0.1, 0.4), "turn": Span(1.0, 3.0), "fall": Span(0.05, 0.15), "longer": Span(1.4, 1.65)},
    ),
    *_both(
        "collapse",
        {"rise": Span(0.2, 0.5), "turn": Span(2.0, 4.0), "fall": Span(0.10, 0.30)},
        {"rise": Span(0.4, 0.9), "turn": Span(3.0, 5.0), "fall": Span(0.20, 0.60)},
    ),
    *_both("noise_only", {"rise": Span(0.0, 0.02)}, {"rise": Span(0.02, 0.05)}),
)
