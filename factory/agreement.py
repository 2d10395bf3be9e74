"""Agreement: how far judges agree with each other, and how far each can be trusted at all.

`measure` (factory/reliability.py) gives the coefficients of agreement for any table of votes; `aggregate`
(factory/aggregation.py) makes one value of many.
`report` reads a round's judgments: for every judge its failures, ties, flips under a swap of the order, preference for
what it saw first and for what is longer, and the canaries that fooled it; for every two judges how far they agree on
the pairs that both judged. Intervals are 95%; they take items as independent, which makes them a little narrow where
pairs share a prompt.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from factory import coefficients, verdicts
from factory.aggregation import aggregate
from factory.faults import FactoryError
from factory.intervals import mean, wilson
from factory.matchups import current
from factory.reliability import AgreementReport, known, measure, plain
from factory.schema import Candidate, Estimate, Judgment

if TYPE_CHECKING:
    from factory.store import Store

__all__ = ["AgreementReport", "JudgesReport", "aggregate", "between", "measure", "report"]

# --------------------------------------------------------------------------------------------- the judges of a round


@dataclass(frozen=True)
class JudgeStats:
    """What one judge is worth. Shares carry Wilson intervals; NaN where there is nothing to count."""

    judge: str
    kind: str
    judgments: int  # rows, canaries left out
    failures: int
    failure_rate: Estimate
    verdicts: int  # pairs decided or tied: both orders together, or from two scores
    tie_rate: Estimate
    flip_rate: Estimate  # pairs whose verdict changed with the order of showing
    first_position: Estimate  # decided single answers that went to what was shown first; sound is 1/2
    longer_wins: Estimate  # decided pairs of unequal length that went to the longer answer
    mean_score: Estimate  # of pointwise judges, on the judge's scale
    mean_mass: Estimate  # probability that was on valid answers
    canaries: int  # with a verdict
    fooled_rate: Estimate  # canaries preferred to a real answer

    def row(self) -> dict[str, Any]:
        """One line of a table; None for what is unknown."""
        return {f.name: known(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class PairStats:
    """How far two judges agree on the pairs that both judged: verdicts a, b, tie."""

    judge: str
    other: str
    pairs: int
    percent: Estimate
    cohen_kappa: Estimate
    krippendorff_alpha: Estimate
    decided: int  # pairs that neither ties
    same_winner: Estimate  # share of them on which both name the same winner

    def row(self) -> dict[str, Any]:
        """One line of a table; None for what is unknown."""
        return {f.name: known(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class JudgesReport:
    """Judges alone, and two by two."""

    judges: list[JudgeStats] = field(default_factory=list)
    pairs: list[PairStats] = field(default_factory=list)

    def judge_rows(self) -> list[dict[str, Any]]:
        """One line for each judge, for a table."""
        return [stats.row() for stats in self.judges]

    def pair_rows(self) -> list[dict[str, Any]]:
        """One line for every two judges, for a table."""
        return [stats.row() for stats in self.pairs]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an estimate is [value, low, high] with null for NaN."""
        return {
            "judges": [{f.name: plain(getattr(stats, f.name)) for f in fields(stats)} for stats in self.judges],
            "pairs": [{f.name: plain(getattr(stats, f.name)) for f in fields(stats)} for stats in self.pairs],
        }


def report(
    store: Store,
    *,
    run: str,
    round: int | None = None,
    split: str | None = None,
    tie_margin: float = verdicts.TIE_MARGIN,
    seed: int = 0,
) -> JudgesReport:
    """The judges of a run (of one round, of one split), from the judgments kept. FactoryError when there are none."""
    where: dict[str, Any] = {"run": run} | ({} if round is None else {"round": round})
    candidates = store.rows(Candidate, where | ({} if split is None else {"split": split}))
    prompts = {c.prompt_key for c in candidates}
    replaced = {c.key for c in candidates} - {c.key for c in current(candidates)}
    held = (row for row in store.rows(Judgment, where) if row.candidate_a not in replaced)
    judgments = [row for row in held if split is None or row.prompt_key in prompts]
    if not judgments:
        raise FactoryError(
            f"run {run!r} has no judgments" + ("" if round is None else f" in round {round}"),
            where=str(store.folder),
            todo="factory label makes them",
        )
    return between(judgments, candidates, tie_margin, seed)


def between(
    judgments: Iterable[Judgment],
    candidates: Iterable[Candidate],
    tie_margin: float = verdicts.TIE_MARGIN,
    seed: int = 0,
) -> JudgesReport:
    """The same from rows. Pointwise judges are compared on pairs of answers to one prompt, by the sign of the
    difference of their scores, equal scores being a tie."""
    rows = verdicts.latest(judgments)
    panel = verdicts.read(rows, tie_margin)
    pairs = _pairs(candidates)
    said = {judge: _said(panel, judge, pairs) for judge in panel.judges()}
    lengths = {key: length for pair in pairs for key, length in pair.items()}
    seen = verdicts.canaries(rows, tie_margin)
    judges = [_stats(judge, rows, said[judge], lengths, seen.get(judge, [])) for judge in panel.judges()]
    return JudgesReport(judges, [_agree(a, b, said[a], said[b], seed) for a, b in itertools.combinations(said, 2)])


Said = Mapping[verdicts.Pair, verdicts.Verdict]


def _pairs(candidates: Iterable[Candidate]) -> list[dict[str, int]]:
    """Every pair of answers to one prompt, in canonical order, with their lengths in characters."""
    groups: defaultdict[tuple[str, str, int, str], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if candidate.failure is None:
            groups[candidate.prompt_key, candidate.run, candidate.round, candidate.kind].append(candidate)
    ordered = (sorted(group, key=lambda c: c.key) for _, group in sorted(groups.items()))
    return [{a.key: len(a.text), b.key: len(b.text)} for group in ordered for a, b in itertools.combinations(group, 2)]


def _said(panel: verdicts.Panel, judge: str, pairs: Sequence[Mapping[str, int]]) -> Said:
    """A judge's verdicts on pairs: those it was asked about, or all that its scores order."""
    if judge in panel.pairs:
        return {pair: verdict for pair, verdict in panel.pairs[judge].items() if verdict is not None}
    keys = [(a, b) for a, b in map(tuple, pairs)]
    found = ((pair, panel.verdict(judge, pair)) for pair in keys)
    return {pair: verdict for pair, verdict in found if verdict is not None}


def _stats(
    judge: str,
    rows: Sequence[Judgment],
    said: Said,
    lengths: Mapping[str, int],
    seen: Sequence[verdicts.Seen],
) -> JudgeStats:
    real = [row for row in rows if row.judge == judge and not row.canary]
    failures = sum(row.failure is not None for row in real)
    decided = {pair: verdict for pair, verdict in said.items() if verdict.verdict != "tie"}
    swapped = [verdict.flipped for verdict in said.values() if verdict.flipped is not None]
    first = [row.verdict == row.shown_first for row in real if row.shown_first and row.verdict in ("a", "b")]
    longer = [won for pair, verdict in decided.items() if (won := _longer_won(pair, verdict, lengths)) is not None]
    fooled = [canary.fooled for canary in seen if canary.fooled is not None]
    mass = [float(row.detail["mass"]) for row in real if row.detail and "mass" in row.detail]
    return JudgeStats(
        judge=judge,
        kind=real[0].kind if real else "",
        judgments=len(real),
        failures=failures,
        failure_rate=wilson(failures, len(real)),
        verdicts=len(said),
        tie_rate=wilson(len(said) - len(decided), len(said)),
        flip_rate=wilson(sum(swapped), len(swapped)),
        first_position=wilson(sum(first), len(first)),
        longer_wins=wilson(sum(longer), len(longer)),
        mean_score=_mean([row.score for row in real if row.score is not None]),
        mean_mass=_mean(mass),
        canaries=len(fooled),
        fooled_rate=wilson(sum(fooled), len(fooled)),
    )


def _mean(values: Sequence[float]) -> Estimate:
    """The mean, with fewer resamples where values are many."""
    return mean(values, resamples=coefficients.draws_for(len(values)))


def _longer_won(pair: verdicts.Pair, verdict: verdicts.Verdict, lengths: Mapping[str, int]) -> bool | None:
    """Did the longer answer win? None where both are as long, or unknown."""
    a, b = lengths.get(pair[0]), lengths.get(pair[1])
    if a is None or b is None or a == b:
        return None
    return (a > b) == (verdict.verdict == "a")


def _agree(judge: str, other: str, said: Said, also: Said, seed: int) -> PairStats:
    """Agreement of two judges on the pairs that both gave a verdict on."""
    import pyarrow as pa

    shared = sorted(said.keys() & also.keys())
    votes = [said[pair].verdict for pair in shared] + [also[pair].verdict for pair in shared]
    table = pa.table(
        {
            "item": pa.array(["/".join(pair) for pair in shared] * 2, pa.string()),
            "judge": pa.array([judge] * len(shared) + [other] * len(shared), pa.string()),
            "value": pa.array(votes, pa.string()),
        }
    )
    measured = measure(table, seed=seed)
    unknown = Estimate(math.nan, math.nan, math.nan)
    kappa = next(iter(measured.cohen_kappa.values()), unknown)
    decided = [pair for pair in shared if "tie" not in (said[pair].verdict, also[pair].verdict)]
    same = sum(said[pair].verdict == also[pair].verdict for pair in decided)
    alike = sum(said[pair].verdict == also[pair].verdict for pair in shared)
    return PairStats(
        judge=judge,
        other=other,
        pairs=len(shared),
        percent=wilson(alike, len(shared)),
        cohen_kappa=kappa,
        krippendorff_alpha=measured.krippendorff_alpha,
        decided=len(decided),
        same_winner=wilson(same, len(decided)),
    )
