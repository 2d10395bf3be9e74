"""Runs played to their end by the real rules, and how well those did.

Aims (`Cell`): a run stops in time when it stops no earlier than the first policy within 2% of the best, and at most
patience + 1 rounds after it; it gives back a good policy when its champion is within 2% of the best that the world has
in all its rounds; a steady gain that is stopped before the world's last round is a false alarm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from factory.schema import Estimate, seed_of
from factory.simulation.measuring import measured, with_champion_gain
from factory.simulation.worlds import ROUNDS, World, course
from factory.stats import intervals
from factory.stopping import NoGain, RoundEvidence, StopConfig, champion, decide_marked, mark

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZES = (200, 500, 2000)
RUNS = 200
IN_TIME, GIVEN_BACK, FALSE_ALARMS = 0.90, 0.95, 0.05
"""The aims, at the largest number of prompts."""


class Played(NamedTuple):
    """One run: when it stopped and by which rule, its champion, and the truth of both."""

    stopped: int
    rule: str
    champion: int
    best_round: int
    kept: float
    """Quality of the champion as a share of the best that the world has."""


def play(world: World, config: StopConfig, prompts: int, seed: int, rounds: int = ROUNDS) -> Played:
    """One run of a world under a stop section, to at most `rounds` rounds."""
    import numpy as np

    rng = np.random.default_rng(seed)
    truth = course(world, rng, rounds)
    seen: list[RoundEvidence] = []
    outcomes: list[NDArray[np.bool_] | None] = []
    config = config.model_copy(update={"max_rounds": rounds})
    for evidence, passed in measured(world, truth, prompts, rng):
        before = outcomes[champion(seen)] if seen else None
        seen.append(mark(seen, with_champion_gain(evidence, passed, before), config))
        outcomes.append(passed)
        decision = decide_marked(seen, config)
        if decision.stop:
            break
    given = champion(seen)
    kept = float(truth.quality[given] / truth.quality.max())
    return Played(len(seen) - 1, decision.rule, given, truth.best_round, kept)


@dataclass(frozen=True, slots=True)
class Cell:
    """One world at one number of prompts."""

    world: World
    prompts: int
    runs: tuple[Played, ...]
    patience: int
    rounds: int = ROUNDS

    @property
    def in_time(self) -> Estimate:
        """Share that stopped between the first policy as good as the best and patience + 1 rounds later."""
        late = self.patience + 1
        return self._share(run.best_round <= run.stopped <= run.best_round + late for run in self.runs)

    @property
    def too_early(self) -> Estimate:
        """Share that stopped before a policy as good as the best."""
        return self._share(run.stopped < run.best_round for run in self.runs)

    @property
    def given_back(self) -> Estimate:
        """Share whose champion is within 2% of the best."""
        return self._share(run.kept >= 0.98 for run in self.runs)

    @property
    def false_alarms(self) -> Estimate | None:
        """Share of steady gains that were stopped before the end; None for other worlds."""
        if self.world.kind != "steady_gain":
            return None
        return self._share(run.stopped < self.rounds for run in self.runs)

    @property
    def kept(self) -> float:
        """Mean quality of the champion as a share of the best."""
        return math.fsum(run.kept for run in self.runs) / len(self.runs)

    @property
    def stopped(self) -> float:
        """Mean round that a run stopped after."""
        return sum(run.stopped for run in self.runs) / len(self.runs)

    @property
    def by_rule(self) -> dict[str, int]:
        """Runs that each rule ended, the most frequent first."""
        return dict(Counter(run.rule for run in self.runs).most_common())

    @property
    def misses(self) -> list[str]:
        """The aims that this cell misses, by its value."""
        alarms = self.false_alarms
        if alarms is not None:
            found = {"false alarms": alarms.value > FALSE_ALARMS}
        else:
            found = {"in time": self.in_time.value < IN_TIME}
        found["given back"] = self.given_back.value < GIVEN_BACK
        return [name for name, missed in found.items() if missed]

    def _share(self, said: Iterator[bool]) -> Estimate:
        return intervals.wilson(sum(said), len(self.runs))


def patience_of(config: StopConfig) -> int:
    """The patience of the stop section's no_gain; 1 without one."""
    return max((rule.patience for rule in config.leaves() if isinstance(rule, NoGain)), default=1)


def cells(
    worlds: Sequence[World],
    config: StopConfig,
    *,
    runs: int = RUNS,
    prompts: Sequence[int] = SIZES,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> Iterator[Cell]:
    """Every world at every number of prompts, as they are done. A world's runs have the same truth at each size."""
    patience = patience_of(config)
    for world in worlds:
        for size in prompts:
            seeds = [seed_of("simulation", world.part, world.name, seed, i) for i in range(runs)]
            yield Cell(world, size, tuple(play(world, config, size, s, rounds) for s in seeds), patience, rounds)
