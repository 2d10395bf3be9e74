"""Pairing: the panel's verdicts to preferences (chosen over rejected) and to single labels (desirable or not).

    combining.py   what the judges said becomes one verdict, a probability and an entropy for each pair
    sifting.py     what may be chosen: ties, failures, filters; drafts and their revisions
    choosing.py    the strategies: which of the rest are trained on
    grading.py     single labels, and their weights
    finding.py     all of it for a round: preferences, labels, and an account of the rest
    writing.py     rows in the store

All but the last are pure; `pair` is the call. Ties never become preferences, an answer is never
paired with its own text, and a judgment that failed counts for nothing. Everything is the same whatever the order of
the rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from factory import verdicts
from factory.faults import FactoryError
from factory.labelling import matchups
from factory.pairing.choosing import Choice, Group, strategies
from factory.pairing.combining import Rule, rule_of
from factory.pairing.finding import LabelRule, PairReport, Wanted, Weights, find
from factory.pairing.grading import BALANCE, LabelBy, LabelWeights
from factory.pairing.sifting import Filters
from factory.pairing.writing import kept_in, write
from factory.registry import unknown_name
from factory.schema import Candidate, Judgment
from factory.verdicts import Panel

if TYPE_CHECKING:
    from factory.store import Store

__all__ = [
    "BALANCE", "Choice", "Filters", "Group", "LabelBy", "LabelRule", "LabelWeights", "PairReport", "Rule", "Weights",
    "pair", "strategies",
]  # fmt: skip

LINEAGE = ("sample", "draft", "given", "critique", "revision")
"""Kinds of candidates in a chain of revisions."""


def pair(
    store: Store,
    *,
    run: str,
    round: int = 0,
    strategy: str = "best_worst",
    combine: str = "lead",
    lead: str | None = None,
    break_ties: bool = False,
    judge_weights: Mapping[str, float] | None = None,
    judge_families: Mapping[str, str] | None = None,
    judges: Sequence[str] | None = None,
    min_margin: float = 0.0,
    tie_margin: float = verdicts.TIE_MARGIN,
    filters: Filters | None = None,
    weights: Weights = "none",
    consistency: Mapping[str, float] | None = None,
    labels: LabelRule | None = None,
    split: str = "train",
    kind: str | Sequence[str] = "sample",
    quarantine: bool = True,
    name: str | None = None,
    prompts: Collection[str] | None = None,
    flip: float = 0.0,
    seed: int = 0,
) -> PairReport:
    """Preferences and labels from the judgments of a run and round, written to the store; what is there already is not
    doubled.

    `combine`: see `combining`; `judges` narrows the panel (all that judged by default). `filters`: see `Filters`;
    `min_margin` is short for the filter of that name, and the larger of both holds. `weights` of preferences in
    training: none (1), margin, probability, or `consistency` by prompt key (as by `factory.trust.consistency`).
    `labels`: see `LabelRule`. `quarantine`: leave out what fooled judges said. `name`: what preferences and labels go
    by in the column `strategy`, by which training picks them; the strategy by default. A pair whose opposite the run
    and round hold already under that name is refused (`contradicts_kept`), and so is a label (`labels_refused`).
    `prompts`: keys of those whose answers are paired; all by default.
    `flip`: label noise on purpose: about this share of the preferences, and by a draw of their own of the labels, are
    turned about (see `choosing.is_flipped`) and marked `flipped`. FactoryError: there is nothing to pair, or a name or
    value is wrong.
    """
    filters = filters or Filters()
    filters = replace(filters, min_margin=max(filters.min_margin, min_margin))
    labels = labels or LabelRule()
    wanted = Wanted(run, round, strategy, filters, weights, consistency, labels, seed, name, flip)
    wanted.check()
    bench = _bench(store, wanted, judges, tie_margin, quarantine)
    panel = [] if wanted.unjudged and _undecided(bench.judges, combine, lead) else bench.judges
    rule = rule_of(
        panel,
        combine=combine,
        lead=lead,
        break_ties=break_ties,
        tie_margin=tie_margin,
        weights=judge_weights,
        families=judge_families,
    )
    kinds = list(LINEAGE) if wanted.lineage else kind
    groups = _groups(store, {"run": run, "round": round, "split": split, "kind": kinds}, prompts)
    found = find(groups, bench.panel, panel, rule, wanted, kept_in(store, wanted))
    if wanted.lineage and not found.report.pairs:
        raise FactoryError(f"run {run!r}, round {round} has no revisions", todo="factory revise makes them")
    found.report.quarantined = bench.quarantined
    return write(store, found, wanted)


class _Bench(NamedTuple):
    """The judges whose word counts, what they said, and how many of their batches do not count."""

    panel: Panel
    judges: list[str]
    quarantined: int


def _bench(store: Store, wanted: Wanted, judges: Sequence[str] | None, tie_margin: float, quarantine: bool) -> _Bench:
    """FactoryError when there are no judges, or one is not known."""
    rows = store.rows(Judgment, {"run": wanted.run, "round": wanted.round})
    panel = verdicts.read(rows, tie_margin, quarantine=quarantine)
    out = len(verdicts.quarantined(rows, tie_margin)) if quarantine else 0
    known = panel.judges()
    if not known and not wanted.unjudged:
        place = f"run {wanted.run!r}, round {wanted.round}"
        if out:
            raise FactoryError(
                f"{place}: all judgments are in quarantine ({out} batches whose canaries fooled the judge)",
                todo="take another judge, or see `factory agreement`",
            )
        raise FactoryError(f"{place} has no judgments", todo="factory label makes them")
    for name in judges or ():
        if name not in known:
            raise unknown_name("judge", name, known)
    return _Bench(panel, sorted(set(judges)) if judges else known, out)


def _undecided(judges: Sequence[str], combine: str, lead: str | None) -> bool:
    """Has the panel no lead that could decide?"""
    return combine == "lead" and (len(judges) != 1 if lead is None else lead not in judges)


def _groups(store: Store, where: Mapping[str, Any], prompts: Collection[str] | None) -> dict[str, list[Candidate]]:
    """Candidates by prompt, in order of key, of the prompts named."""
    groups: defaultdict[str, list[Candidate]] = defaultdict(list)
    picked = {} if prompts is None else {"prompt_key": list(prompts)}
    rows = store.rows(Candidate, {**where, **picked})
    for candidate in sorted(matchups.current(rows), key=lambda c: (c.prompt_key, c.key)):
        groups[candidate.prompt_key].append(candidate)
    if not groups:
        said = ", ".join(f"{name} {value}" for name, value in where.items())
        among = "" if prompts is None else f" to any of the {len(prompts):,} prompts asked for"
        raise FactoryError(
            f"there are no candidates with {said}{among}", where=str(store.folder), todo="factory generate makes them"
        )
    return dict(groups)
