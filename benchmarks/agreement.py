"""Aggregation and agreement of many votes: against pandas and crowd-kit in paired runs, and the bootstrap of alpha.

python benchmarks/agreement.py [--votes 10000000] [--pairs 3]      (about 3 GB of memory at 10 million)

Each pair runs ours, then theirs, on the same votes; told are medians of seconds and of the ratios within pairs, with
the bar that holds. Ratios are worth more than seconds where other work runs on the machine.

  aggregate      majority from an Arrow table, with probability and entropy, against pandas from a DataFrame: value
                 counts by item and value, the largest taken (the faster of two ways of writing it); words as
                 names are hashed by the same library on both sides, which leaves less to gain
  dawid_skene    as many rounds of EM as crowd-kit makes, from votes as numbers; `sparse`: 200 judges, five of them on
                 each item, so that hardly two items have the same votes
  alpha          1,000 bootstrap resamples, from counts of votes by category to the interval; `scattered`: 20 judges and
                 missing votes, so that patterns are too many and groups of items are drawn
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from crowdkit.aggregation import DawidSkene
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from factory.stats import coefficients
from factory.votes.aggregation import Votes, aggregate, count, encode
from factory.votes.latent import dawid_skene
from factory.votes.reliability import measure

ROUNDS = 10


class Row(NamedTuple):
    """A line of the table: seconds of ours and theirs (None: nothing to compare with), and the bar."""

    name: str
    ours: float
    theirs: float | None
    ratio: float | None
    bar: str
    met: bool


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def paired(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], bar: float | None, pairs: int) -> Row:
    """Medians over pairs of runs."""
    found = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    ratio = statistics.median(b / a for a, b in found)
    return Row(
        name,
        statistics.median(a for a, _ in found),
        statistics.median(b for _, b in found),
        ratio,
        "" if bar is None else f">= {bar:g} x",
        bar is None or ratio >= bar,
    )


def alone(name: str, work: Callable[[], Any], bar: float | None, runs: int) -> Row:
    """The median of runs against a bar in seconds, if there is one."""
    spent = statistics.median(seconds(work) for _ in range(runs))
    return Row(name, spent, None, None, "" if bar is None else f"<= {bar:g} s", bar is None or spent <= bar)


# ------------------------------------------------------------------------------------------------------------- votes


def dense(items: int, judges: int, kinds: int, missing: float = 0.0, seed: int = 0) -> NDArray[np.int64]:
    """Votes `(items, judges)` of judges of accuracy .5 to .9; -1 where one is missing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, kinds, items)
    accuracy = np.linspace(0.5, 0.9, judges)
    said = np.where(
        rng.random((items, judges)) < accuracy, truth[:, None], rng.integers(0, kinds, (items, judges), dtype=np.int64)
    )
    if missing:
        said[rng.random(said.shape) < missing] = -1
    return said


def table_of(said: NDArray[np.int64], words: bool = False) -> pa.Table:
    """The same as an Arrow table of item, judge, value."""
    item, judge = np.nonzero(said >= 0)
    value = said[item, judge]
    if not words:
        return pa.table({"item": item, "judge": judge, "value": value})
    named = (
        pa.array([f"{kind} {i}" for i in range(int(x.max()) + 1)]).take(pa.array(x))
        for kind, x in (("item", item), ("judge", judge), ("value", value))
    )
    return pa.table(dict(zip(("item", "judge", "value"), named, strict=True)))


def sparse(votes: int, judges: int, each: int, kinds: int, seed: int = 0) -> Votes:
    """Votes of `each` of many judges on every item."""
    rng = np.random.default_rng(seed)
    items = votes // each
    judge = (rng.integers(0, judges, (items, 1)) + np.arange(each) * (judges // each)) % judges
    truth = np.repeat(rng.integers(0, kinds, items), each)
    accuracy = np.linspace(0.5, 0.9, judges)[judge.ravel()]
    value = np.where(rng.random(len(truth)) < accuracy, truth, rng.integers(0, kinds, len(truth)))
    item = np.repeat(np.arange(items), each)
    return Votes(item, judge.ravel(), value, list(range(items)), list(range(judges)), list(range(kinds)))


# -------------------------------------------------------------------------------------------------------------- rows


def by_unstack(frame: pd.DataFrame) -> pd.Series[Any]:
    """Majority by a table of counts."""
    return frame.groupby(["item", "value"]).size().unstack(fill_value=0).idxmax(axis=1)


def by_sorting(frame: pd.DataFrame) -> pd.Series[Any]:
    """Majority by sorted counts."""
    counts = frame.groupby(["item", "value"], sort=False).size().rename("n").reset_index()
    return counts.sort_values("n").drop_duplicates("item", keep="last").set_index("item")["value"]


def aggregation(votes: int, pairs: int) -> list[Row]:
    """Majority: numbers as names, by item and shuffled, and words."""
    rows = []
    for kind, size in (("numbers", votes), ("numbers, shuffled", votes), ("words", votes // 5)):
        table = table_of(dense(size // 10, 10, 3), kind == "words")
        if kind == "numbers, shuffled":
            table = table.take(pa.array(np.random.default_rng(0).permutation(size)))
        frame = table.to_pandas()
        took = {way: seconds(partial(way, frame)) for way in (by_unstack, by_sorting)}
        theirs = min(took, key=lambda way: took[way])
        name = f"aggregate, {size:,} votes, {kind} (pandas {theirs.__name__})"
        rows.append(
            paired(name, partial(aggregate, table), partial(theirs, frame), None if kind == "words" else 2, pairs)
        )
    return rows


def dawid_skene_rows(votes: int, pairs: int) -> list[Row]:
    """EM against crowd-kit at a tenth of the votes, and ours alone at all of them."""
    rows = []
    tenth = votes // 10
    cases = (
        ("10 judges", encode(table_of(dense(tenth // 10, 10, 3)))),
        ("sparse", sparse(tenth, 200, 5, 3)),
    )
    for name, given in cases:
        frame = pd.DataFrame({"task": given.item, "worker": given.judge, "label": given.value})
        rows.append(
            paired(
                f"dawid_skene, {tenth:,} votes, {name}, {ROUNDS} rounds (crowd-kit)",
                partial(dawid_skene, given, rounds=ROUNDS, tolerance=-1),
                partial(DawidSkene(n_iter=ROUNDS, tol=-1).fit, frame),
                10,
                pairs,
            )
        )
    table = table_of(dense(votes // 10, 10, 3))
    rows.append(
        alone(f"dawid_skene, {votes:,} votes, from table to table", lambda: aggregate(table, "dawid_skene"), None, 1)
    )
    wide = sparse(votes, 200, 5, 3)
    rows.append(alone(f"dawid_skene, {votes:,} votes, sparse", lambda: dawid_skene(wide, tolerance=1e-5), None, 1))
    return rows


def bootstrap(counts: NDArray[np.float64], wanted: coefficients.Coefficient) -> None:
    """From counts of votes to the interval."""
    coefficients.estimate(coefficients.patterns(counts), wanted)


def alpha_rows(runs: int) -> list[Row]:
    """The bootstrap of alpha at a million votes, and everything that `measure` tells."""
    rows = []
    plain, scattered = dense(100_000, 10, 5), dense(62_500, 20, 5, missing=0.2)
    for name, said in (("", plain), (", scattered", scattered)):
        counts = count(encode(table_of(said)))
        found = coefficients.patterns(counts)
        about = f"{int(counts.sum()):,} votes{name} ({len(found.times):,} patterns, {coefficients.resampled(found)})"
        for level, wanted in (
            ("nominal", coefficients.distance_alpha(1 - np.eye(5))),
            ("ordinal", coefficients.ordinal_alpha(5)),
        ):
            rows.append(
                alone(
                    f"alpha {level}, 1,000 draws, {about}",
                    partial(bootstrap, counts, wanted),
                    1,
                    runs,
                )
            )
        table = table_of(said)
        rows.append(alone(f"measure, all of it, ordinal{name}", partial(measure, table, "ordinal"), None, 1))
    return rows


def main() -> None:
    """Print the table; exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=10_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    threadpool_limits(1)
    pa.set_cpu_count(1)
    rows = [
        *alpha_rows(asked.pairs),
        *aggregation(asked.votes, asked.pairs),
        *dawid_skene_rows(asked.votes, asked.pairs),
    ]
    print(f"{'':<100} {'ours':>8} {'theirs':>8} {'ratio':>7}  bar")
    for row in rows:
        theirs = "" if row.theirs is None else f"{row.theirs:.2f} s"
        ratio = "" if row.ratio is None else f"{row.ratio:.1f} x"
        print(f"{row.name:<100} {row.ours:>6.2f} s {theirs:>8} {ratio:>7}  {row.bar} {'' if row.met else 'MISSED'}")
    print(f"medians of {asked.pairs} paired runs, one thread")
    if not all(row.met for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
