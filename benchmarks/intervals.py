"""How often intervals miss the truth where prompts are few: those of reports, and the plain percentile bootstrap.

    python benchmarks/intervals.py [--draws 2000] [--seed 0]

Policies whose pass rates differ from prompt to prompt (a beta distribution, correlation .5 between answers to one
prompt), two answers a prompt. A row is a number of prompts and the start's pass rate; the policy's, whose interval
"pass rate" is, is 10 points higher. A cell is the share of draws in which a 95% interval does not hold the truth, in
percent: 5 is right, more is too narrow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from factory.schema import Estimate
from factory.stats import intervals

PROMPTS = (12, 24, 48, 96)
RATES = (0.05, 0.2, 0.5)
UP = 0.1
RESAMPLES = 400

Passed = NDArray[np.bool_]


class Interval(NamedTuple):
    """Bounds from answers (prompts, 2) of a policy and of its start, and what they should hold."""

    of: Callable[[Passed, Passed, np.random.Generator], tuple[float, float]]
    truth: Callable[[float], float]


def plain(values: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    """The percentile bootstrap over prompts."""
    drawn = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def ends(estimate: Estimate) -> tuple[float, float]:
    """Its bounds."""
    return estimate.low, estimate.high


INTERVALS = {
    "pass rate": Interval(
        lambda now, _, rng: ends(intervals.rate(now.ravel().tolist(), np.repeat(np.arange(len(now)), 2).tolist())),
        lambda rate: rate + UP,
    ),
    "pass rate, percentiles": Interval(lambda now, _, rng: plain(now.mean(axis=1), rng), lambda rate: rate + UP),
    "gain": Interval(
        lambda now, before, rng: ends(intervals.paired_shares(now.tolist(), before.tolist())), lambda rate: UP
    ),
    "gain, percentiles": Interval(
        lambda now, before, rng: plain(now.mean(axis=1) - before.mean(axis=1), rng), lambda rate: UP
    ),
}


def answers(prompts: int, rate: float, rng: np.random.Generator) -> tuple[Passed, Passed]:
    """What passes of a policy that gains `UP` on average, and of its start at `rate`; (prompts, 2) each."""
    before = rng.beta(rate, 1 - rate, prompts)
    now = before + UP * (1 - before) / (1 - rate)
    return tuple(rng.random((prompts, 2)) < chance[:, None] for chance in (now, before))  # type: ignore[return-value]


def rows(draws: int, seed: int) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Prompts, the start's rate, and percent missed by interval."""
    for prompts in PROMPTS:
        for rate in RATES:
            rng, missed = np.random.default_rng(seed), dict.fromkeys(INTERVALS, 0)
            for _ in range(draws):
                found = answers(prompts, rate, rng)
                for name, interval in INTERVALS.items():
                    low, high = interval.of(*found, rng)
                    missed[name] += not low <= interval.truth(rate) <= high
            yield prompts, rate, {name: 100 * count / draws for name, count in missed.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print("| prompts | start passes | " + " | ".join(INTERVALS) + " |")
    print("|" + "---:|" * (len(INTERVALS) + 2))
    for prompts, p, missed in rows(asked.draws, asked.seed):
        print(f"| {prompts} | {p:.0%} | " + " | ".join(f"{value:.1f}" for value in missed.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
