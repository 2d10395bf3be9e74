"""Many judges to one verdict on each pair, with the probability and the entropy that go with it.

  lead         the lead judge decides, the others only count for agreement (with `break_ties` the mean of the others
               decides what it ties)
  mean         the mean of p_a over the judges
  majority     each judge one vote, a tie half a vote for either side
  any other    a method of factory/votes/aggregation.py that has a posterior (weighted, dawid_skene, one_coin,
               dependent): it reads the votes a | b | tie on all pairs of the round at once

Which of two answers is called a is chance, so nothing may hang on it: a method from aggregation reads every pair twice,
as it is and turned, which makes each judge's chance of being right the same on both sides. Exchanging a and b of any
pair exchanges them in its result and leaves the others alone. (A criterion such as BIC stays what it is: likelihood and
free parameters both count double.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from factory import verdicts
from factory.faults import FactoryError
from factory.registry import unknown_name
from factory.verdicts import Pair, Panel, Verdict
from factory.votes import aggregation

if TYPE_CHECKING:
    from factory.votes.aggregation import Array, Index, JudgesModel

OWN = ("lead", "mean", "majority")
CATEGORIES = ("a", "b", "tie")
NO_VOTE = 3
_TURNED = (1, 0, 2, NO_VOTE)  # where each goes when a and b are exchanged
ASTRAY = 0.01
"""A pair and its turned twin with probabilities further apart than this were not told apart by the votes."""


@dataclass(frozen=True)
class Rule:
    """How judges become one verdict. `weights`: of each judge, for combine `weighted` alone; `families`: which judges
    share a family, for `dependent` alone (none: they are found)."""

    combine: str = "lead"
    lead: str | None = None
    break_ties: bool = False
    tie_margin: float = verdicts.TIE_MARGIN
    weights: Mapping[str, float] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)


class Outcome(NamedTuple):
    """What the panel as a whole says of a pair. `a`, `b`, `tie`: the probability that a is the better, that b is, that
    neither is; lead, mean and majority have p_a and 1 - p_a and none for a tie."""

    verdict: Verdict
    a: float
    b: float
    tie: float = 0.0

    def probability(self, winner: str) -> float:
        """That of the winner, "a" or "b"."""
        return self.a if winner == "a" else self.b

    @property
    def entropy(self) -> float:
        """Of the three together, nats: 0 is certain, log 2 an even chance between the two."""
        return math.fsum(-p * math.log(p) for p in (self.a, self.b, self.tie) if p > 0) + 0.0


class Joint(NamedTuple):
    """All pairs of a round: what each judge says of them, what the panel says, and what the method found out about the
    judges (None: nothing); `notes` for the user about what the votes cannot tell."""

    said: Mapping[Pair, Mapping[str, Verdict]]
    outcomes: Mapping[Pair, Outcome]
    model: JudgesModel | None
    notes: Sequence[str] = ()


def ways() -> list[str]:
    """The names that `combine` takes."""
    return [*OWN, *(name for name in aggregation.methods.names() if name not in OWN)]


def rule_of(
    judges: Sequence[str],
    *,
    combine: str,
    lead: str | None,
    break_ties: bool,
    tie_margin: float,
    weights: Mapping[str, float] | None,
    families: Mapping[str, str] | None = None,
) -> Rule:
    """A rule for these judges. FactoryError: a name that is not known, no lead, or weights or families where none are
    wanted."""
    if combine not in ways():
        raise unknown_name("way to combine judges", combine, ways())
    if (combine == "weighted") != bool(weights):
        todo = "give one for each judge, or combine in another way" if not weights else "combine=weighted reads them"
        raise FactoryError(f"combine {combine} {'needs' if not weights else 'takes no'} weights of judges", todo=todo)
    if families and combine != "dependent":
        raise FactoryError(f"combine {combine} takes no families of judges", todo="combine=dependent reads them")
    for name in (*(weights or ()), *(families or ())):
        if name not in judges:
            raise unknown_name("judge", name, judges)
    return Rule(
        combine,
        _lead(judges, lead) if combine == "lead" else None,
        break_ties,
        tie_margin,
        weights or {},
        families or {},
    )


def _lead(judges: Sequence[str], lead: str | None) -> str | None:
    if not judges:
        return None
    if lead is None and len(judges) > 1:
        raise FactoryError(f"which judge leads: {', '.join(judges)}?", todo="name it, or combine by mean or majority")
    if lead is not None and lead not in judges:
        raise unknown_name("judge", lead, judges)
    return lead or judges[0]


def joint(panel: Panel, judges: Sequence[str], pairs: Iterable[Pair], rule: Rule) -> Joint:
    """The panel's verdict on each of the pairs (canonical order) that it has something to go by."""
    said = {pair: _said(panel, judges, pair) for pair in sorted(set(pairs))}
    if rule.combine not in OWN:
        return _modelled(said, judges, rule)
    found = ((pair, combine(of_pair, rule)) for pair, of_pair in said.items())
    outcomes = {pair: Outcome(verdict, verdict.p_a, 1 - verdict.p_a) for pair, verdict in found if verdict is not None}
    return Joint(said, outcomes, None)


def _said(panel: Panel, judges: Sequence[str], pair: Pair) -> dict[str, Verdict]:
    found = ((judge, panel.verdict(judge, pair)) for judge in judges)
    return {judge: verdict for judge, verdict in found if verdict is not None}


# ----------------------------------------------------------------------------------------------------- pair by pair


def combine(said: Mapping[str, Verdict], rule: Rule) -> Verdict | None:
    """Lead, mean or majority: one verdict on a pair out of those of the judges that have one; None when there is
    nothing to go by. Exchanging a and b in everything said exchanges them in the result."""
    if rule.combine == "lead":
        return _by_lead(said, rule)
    if not said:
        return None
    return _by_majority(said.values()) if rule.combine == "majority" else _by_mean(said.values(), rule.tie_margin)


def _by_lead(said: Mapping[str, Verdict], rule: Rule) -> Verdict | None:
    lead = said.get(rule.lead or "")
    others = [verdict for name, verdict in said.items() if name != rule.lead]
    if lead is not None and lead.verdict == "tie" and rule.break_ties and others:
        return _by_mean(others, rule.tie_margin)
    return lead


def _by_mean(said: Iterable[Verdict], tie_margin: float) -> Verdict:
    chances = [verdict.p_a for verdict in said]
    p_a = math.fsum(chances) / len(chances)
    return Verdict(p_a, verdicts.decide(p_a, tie_margin))


def _by_majority(said: Iterable[Verdict]) -> Verdict:
    """Ties are votes for neither side, half for each in p_a."""
    votes = Counter(verdict.verdict for verdict in said)
    p_a = 0.5 + (votes["a"] - votes["b"]) / (2 * votes.total())
    return Verdict(p_a, verdicts.decide(p_a, 0.0))


def sided(said: Mapping[str, Verdict], winner: str) -> float:
    """Share of the judges with a verdict that side with the winner, "a" or "b"; a tie does not."""
    return sum(verdict.verdict == winner for verdict in said.values()) / len(said)


# ------------------------------------------------------------------------------------------------ all pairs at once


def _modelled(said: Mapping[Pair, Mapping[str, Verdict]], judges: Sequence[str], rule: Rule) -> Joint:
    """The posterior of a | b | tie by a method of factory/votes/aggregation.py."""
    voted = [pair for pair, of_pair in said.items() if of_pair]
    if not voted:
        return Joint(said, {}, None)
    votes, places = _both_ways([said[pair] for pair in voted], judges)
    options: dict[str, Any] = {"weights": rule.weights} if rule.weights else {}
    if rule.combine == "dependent":
        options |= {"copies": 2, "families": rule.families or None}  # every pair is there turned, too
    decided = aggregation.methods.get(rule.combine)(votes, **options)
    if decided.posterior is None:
        raise FactoryError(f"{rule.combine} gives no probabilities", todo="combine by mean, majority or dawid_skene")
    posterior, apart = _turned_back(decided.posterior[places])
    notes = decided.model.notes if decided.model else ()
    if apart > ASTRAY:
        notes = (
            *notes,
            f"{rule.combine} has too few votes to go by: exchanging the answers of a pair changes its result",
        )
    return Joint(said, dict(zip(voted, (_outcome(*row) for row in posterior), strict=True)), decided.model, notes)


def _both_ways(said: Sequence[Mapping[str, Verdict]], judges: Sequence[str]) -> tuple[aggregation.Votes, Index]:
    """The votes on every pair, then the same votes on every pair turned; and the place of each among the items.

    Items stand in the order of their votes, so that the method reads the same numbers in the same order whichever
    answer of a pair is called a.
    """
    import numpy as np

    names = [judge for judge in judges if any(judge in of_pair for of_pair in said)]
    category = {name: i for i, name in enumerate(CATEGORIES)}
    rows = [[category[of_pair[n].verdict] if n in of_pair else NO_VOTE for n in names] for of_pair in said]
    plain = np.asarray(rows, dtype=np.int64)
    both = np.concatenate([plain, np.asarray(_TURNED, dtype=np.int64)[plain]])
    order = np.lexsort(both.T[::-1])
    item, judge = np.nonzero(both[order] != NO_VOTE)
    value = both[order][item, judge]
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return aggregation.Votes(item, judge, value, list(range(len(order))), names, list(CATEGORIES)), places


def _turned_back(posterior: Array) -> tuple[list[list[float]], float]:
    """The mean of each pair's posterior and its turned twin's, and how far the two are apart at most (nothing, but for
    rounding, unless the method went astray)."""
    import numpy as np

    plain, twin = np.split(posterior, 2)
    twin = twin[:, list(_TURNED[:3])]
    mean = (plain + twin) / 2
    rows: list[list[float]] = np.asarray(mean / mean.sum(axis=1, keepdims=True)).tolist()
    return rows, float(np.abs(plain - twin).max(initial=0.0))


def _outcome(a: float, b: float, tie: float) -> Outcome:
    p_a = a + tie / 2
    undecided = abs(a - b) < verdicts.SAME or tie > max(a, b) - verdicts.SAME
    return Outcome(Verdict(p_a, "tie" if undecided else "a" if a > b else "b"), a, b, tie)
