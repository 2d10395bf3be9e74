"""Which pairs may be chosen at all: every pair of a prompt's answers is a choice, or has the reason why it is none.

What the panel leaves open (ties, missing and failed verdicts) is never a choice. Beyond that the filters take out what
is decided by too little, too alike, or lopsided in length. Each pair that is left out is counted by its reason.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from factory.faults import ConfigError
from factory.labelling import matchups
from factory.pairing.choosing import Choice, Group, drawn
from factory.pairing.combining import Joint, Outcome, Rule, joint, sided
from factory.pairing.grading import Scored, scores_of
from factory.schema import Candidate, digest
from factory.verdicts import SAME, Pair, Panel

Near = Callable[[Candidate, Candidate], bool]
LENGTH_TOLERANCE = 0.02
"""`length_balanced` drops pairs until the mean log ratio of the lengths of chosen and rejected is this close to 0."""


@dataclass(frozen=True)
class Filters:
    """What a pair must have to be chosen. The defaults let all pass that the panel decides."""

    min_margin: float = 0.0
    max_margin: float = 1.0
    min_agreement: float = 0.0
    """Share of the judges with a verdict that side with the panel's."""
    min_probability: float = 0.0
    """Probability that the chosen is the better, see `combining.Outcome`."""
    max_entropy: float | None = None
    """Of the panel's verdict, nats; log 2 = 0.69 is an even chance between two."""
    min_score: float | None = None
    """The panel's score of the chosen, 0 to 1."""
    near_duplicates: float | None = None
    """Of answers to a prompt that share this much of their word trigrams (Jaccard) one is kept, and a revision that
    shares it with its draft makes no pair."""
    max_length_ratio: float | None = None
    """The longer answer is at most so many times as long as the other."""
    length_balanced: bool = False
    """Over all preferences, chosen is as long as rejected: see `balance`."""
    per_prompt: int | None = None
    """At most so many preferences for a prompt, drawn by seed."""
    confirm: bool = False
    """Of draft and revision: only where the panel finds the revision better."""

    @classmethod
    def of(cls, settings: object) -> Filters:
        """From anything that has the fields, such as a recipe's part."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls)})

    def check(self) -> None:
        """ConfigError with every value that is out of its range."""
        shares = ("min_margin", "max_margin", "min_agreement", "min_probability", "min_score", "near_duplicates")
        faults = [
            f"{name}: {value} is not between 0 and 1" for name in shares if not _is_share(value := getattr(self, name))
        ]
        if self.min_margin > self.max_margin:
            faults.append(f"min_margin {self.min_margin} is above max_margin {self.max_margin}")
        if self.near_duplicates == 0:
            faults.append("near_duplicates: at 0 all answers are alike")
        if self.max_entropy is not None and not self.max_entropy >= 0:
            faults.append(f"max_entropy: {self.max_entropy} is not a number of nats from 0 on")
        if self.max_length_ratio is not None and not self.max_length_ratio >= 1:
            faults.append(f"max_length_ratio: {self.max_length_ratio} is below 1")
        if self.per_prompt is not None and self.per_prompt < 1:
            faults.append(f"per_prompt: {self.per_prompt} is below 1")
        if faults:
            raise ConfigError(faults, where="filters of the pairing")

    def asks_judges(self) -> bool:
        """Does a filter go by what the panel says?"""
        return self._verdicts() != Filters()._verdicts()

    def _verdicts(self) -> tuple[float | None, ...]:
        return (
            self.min_margin, self.max_margin, self.min_agreement, self.min_probability, self.max_entropy,
            self.min_score,
        )  # fmt: skip


def _is_share(value: float | None) -> bool:
    return value is None or 0 <= value <= 1


class Sifted(NamedTuple):
    """One prompt's pairs: what may be chosen, why the others may not, how many there are, and its answers' scores."""

    group: Group
    dropped: Counter[str]
    pairs: int
    scores: Mapping[str, Scored]


class Matched(NamedTuple):
    """The pairs of one prompt before the panel is asked: those that may be, why others may not."""

    pairs: Sequence[matchups.CandidatePair]
    dropped: Counter[str]
    revisions: frozenset[str] = frozenset()  # keys of the answers that revise the other one of their pair


# ----------------------------------------------------------------------------------------------- before the verdict


def matched(candidates: Sequence[Candidate], alike: frozenset[str] = frozenset()) -> Matched:
    """All pairs of a prompt's answers; dropped: near_duplicate (one of them is in `alike`), same_text."""
    dropped: Counter[str] = Counter()
    kept = []
    for a, b in matchups.every_pair(candidates):
        if a.key in alike or b.key in alike:
            dropped["near_duplicate"] += 1
        elif matchups.same_text(a, b):
            dropped["same_text"] += 1
        else:
            kept.append((a, b))
    return Matched(kept, dropped)


def lineages(candidates: Sequence[Candidate], near: Near | None = None) -> Matched:
    """Each draft with what became of it: draft <- critique <- revision <- ..., by `parent`; the last revision of a
    chain that did not fail stands for it. Dropped: failed_revision (a draft of which there is none), no_draft,
    unchanged (the revision says what the draft says), near_duplicate (almost)."""
    known = {c.key: c for c in candidates}
    lines = {c.key: _line(c, known) for c in candidates if c.kind == "revision"}
    good = [key for key in lines if known[key].failure is None]
    passed = {step for key in good for step in lines[key][1:]}
    kept: list[matchups.CandidatePair] = []
    dropped: Counter[str] = Counter()
    for key in sorted(set(good) - passed):
        draft, revision = known[lines[key][-1]], known[key]
        reason = _no_lineage(draft, revision, near)
        if reason:
            dropped[reason] += 1
        else:
            kept.append((draft, revision) if draft.key < revision.key else (revision, draft))
    reached = {lines[key][-1] for key in good}
    dropped["failed_revision"] += len({line[-1] for line in lines.values()} - reached)
    return Matched(kept, dropped, frozenset(good))


def _line(candidate: Candidate, known: Mapping[str, Candidate]) -> list[str]:
    """Keys from a candidate back to where its chain begins, or breaks off."""
    line = [candidate.key]
    while (parent := known[line[-1]].parent) is not None and parent in known and parent not in line:
        line.append(parent)
    return line


def _no_lineage(draft: Candidate, revision: Candidate, near: Near | None) -> str:
    if draft.kind in ("critique", "revision") or draft.failure is not None:
        return "no_draft"
    if matchups.same_text(draft, revision):
        return "unchanged"
    return "near_duplicate" if near and near(draft, revision) else ""


def nearness(candidates: Iterable[Candidate], threshold: float) -> Near:
    """Do two of these answers share at least so much of their word trigrams (estimated Jaccard similarity)?"""
    from factory.prompts.near_duplicates import signatures

    answers = [c for c in candidates if c.failure is None]
    rows = dict(zip((c.key for c in answers), signatures([c.text for c in answers]), strict=True)) if answers else {}
    return lambda a, b: bool((rows[a.key] == rows[b.key]).mean() >= threshold)


def near_duplicates(groups: Iterable[Sequence[Candidate]], near: Near, panel: Panel) -> frozenset[str]:
    """Keys of the answers that are left out for being near another answer to the same prompt. The one with most
    judgments stays, of equals the first by key."""
    known = Counter(key for scores in panel.scores.values() for key, score in scores.items() if score is not None)
    known.update(key for pairs in panel.pairs.values() for pair, said in pairs.items() if said for key in pair)
    alike: set[str] = set()
    for group in groups:
        kept: list[Candidate] = []
        for answer in sorted((c for c in group if c.failure is None), key=lambda c: (-known[c.key], c.key)):
            if any(near(answer, other) for other in kept):
                alike.add(answer.key)
            else:
                kept.append(answer)
    return frozenset(alike)


# ------------------------------------------------------------------------------------------------------ the verdict


def sift(
    candidates: Sequence[Candidate],
    panel: Panel,
    judges: Sequence[str],
    rule: Rule,
    filters: Filters | None = None,
    *,
    among: Matched | None = None,
    together: Joint | None = None,
) -> Sifted:
    """Every pair of one prompt's answers: a choice, or the reason why it is none.

    `among`: the pairs (all of them by default); `together`: the panel's verdicts on all pairs of the round (by default
    on these alone). Reasons: those of `matched` or `lineages`; no_verdict, tie, unconfirmed; and the filters'.
    """
    filters = filters or Filters()
    among = among or matched(candidates)
    together = together or joint(panel, judges, [(a.key, b.key) for a, b in among.pairs], rule)
    standing = _standing(among.pairs, together)
    scores = scores_of(candidates, panel, judges, rule, standing)
    decided: list[Choice] = []
    tied: list[Pair] = []
    dropped = Counter(among.dropped)
    for a, b in among.pairs:
        choice = _read(a, b, together, among.revisions, filters)
        found = choice if isinstance(choice, str) else _short(choice, filters, scores)
        if found == "tie":
            tied.append((a.key, b.key))
        if found or isinstance(choice, str):
            dropped[found] += 1
        else:
            decided.append(choice)
    by_share = {key: scored.share for key, scored in scores.items()}
    rewards = {key: scored.reward for key, scored in scores.items()}
    group = Group(decided, standing, by_share, rewards, tied)
    return Sifted(group, dropped, len(among.pairs) + among.dropped.total(), scores)


def _standing(pairs: Iterable[matchups.CandidatePair], together: Joint) -> dict[str, float]:
    """Each answer's mean probability of being the better one."""
    chances: defaultdict[str, list[float]] = defaultdict(list)
    for a, b in pairs:
        if (outcome := together.outcomes.get((a.key, b.key))) is not None:
            chances[a.key].append(outcome.verdict.p_a)
            chances[b.key].append(1 - outcome.verdict.p_a)
    return {key: math.fsum(sorted(found)) / len(found) for key, found in chances.items()}


def _read(a: Candidate, b: Candidate, together: Joint, revisions: frozenset[str], filters: Filters) -> Choice | str:
    """The choice that a pair is, or why it is none. Draft and revision without `confirm`: the revision is chosen,
    whatever the panel says of it."""
    outcome = together.outcomes.get((a.key, b.key))
    revised = "a" if a.key in revisions else "b" if b.key in revisions else ""
    if revised and not filters.confirm:
        return _chosen(a, b, revised, outcome, together, margin=1.0)
    if outcome is None:
        return "no_verdict"
    if outcome.verdict.verdict == "tie":
        return "tie"
    if revised and outcome.verdict.verdict != revised:
        return "unconfirmed"
    margin = min(abs(2 * outcome.verdict.p_a - 1), 1.0)
    return _chosen(a, b, outcome.verdict.verdict, outcome, together, margin=margin)


def _chosen(
    a: Candidate, b: Candidate, winner: str, outcome: Outcome | None, together: Joint, *, margin: float
) -> Choice:
    said = together.said.get((a.key, b.key), {})
    return Choice(
        chosen=a if winner == "a" else b,
        rejected=b if winner == "a" else a,
        margin=margin,
        agreement=sided(said, winner) if said else None,
        judges=len(said),
        probability=outcome and outcome.probability(winner),
        entropy=outcome and outcome.entropy,
    )


def _short(choice: Choice, filters: Filters, scores: Mapping[str, Scored]) -> str:
    """What a choice falls short of; empty when it passes."""
    score = scores.get(choice.chosen.key)
    ratio = abs(length_ratio(choice))
    bounds: tuple[tuple[str, float | None, float | None, float | None], ...] = (
        ("below_margin", choice.margin, filters.min_margin, None),
        ("above_margin", choice.margin, None, filters.max_margin),
        ("below_agreement", choice.agreement, filters.min_agreement or None, None),
        ("below_probability", choice.probability, filters.min_probability or None, None),
        ("above_entropy", choice.entropy, None, filters.max_entropy),
        ("below_score", score and score.share, filters.min_score, None),
        ("length_ratio", ratio, None, filters.max_length_ratio and math.log(filters.max_length_ratio)),
    )
    return next((reason for reason, value, low, high in bounds if not _within(value, low, high)), "")


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    """A value that is not there is within no bounds."""
    if low is None and high is None:
        return True
    return value is not None and (low is None or value >= low - SAME) and (high is None or value <= high + SAME)


# ------------------------------------------------------------------------------------------------ after the strategy


def most(choices: Sequence[Choice], limit: int | None, seed: int) -> list[Choice]:
    """At most `limit` of them, drawn by seed, in their order."""
    if limit is None or len(choices) <= limit:
        return list(choices)
    kept = {id(choice) for choice in sorted(choices, key=lambda c: digest("most", drawn(c, seed)))[:limit]}
    return [choice for choice in choices if id(choice) in kept]


def length_ratio(choice: Choice) -> float:
    """Log of (length of chosen / length of rejected), in tokens where both are known, else in characters."""
    sides = choice.chosen, choice.rejected
    tokens = [c.tokens for c in sides]
    good, bad = tokens if min(tokens) > 0 else [max(len(c.text.strip()), 1) for c in sides]
    return math.log(good / bad)


def balance(choices: Sequence[Choice], seed: int) -> frozenset[Pair]:
    """(chosen, rejected) keys of the pairs to drop, so that length does not tell chosen from rejected.

    While the mean of `length_ratio` is further from 0 than `LENGTH_TOLERANCE`, the pair goes whose loss brings it
    nearest to 0; with many pairs these are the most lopsided ones, and as few as can be. Where no loss helps, as when
    all chosen are longer and one is left, it ends there.
    """
    left = sorted((length_ratio(c), drawn(c, seed), (c.chosen.key, c.rejected.key)) for c in choices)
    out: set[Pair] = set()
    total = math.fsum(ratio for ratio, _, _ in left)
    while len(left) > 1:
        mean = abs(total) / len(left)
        place = min(bisect.bisect_left(left, (total, "", ("", ""))), len(left) - 1)
        place = min((p for p in (place - 1, place) if p >= 0), key=lambda p: abs(total - left[p][0]))
        if mean <= LENGTH_TOLERANCE or abs(total - left[place][0]) / (len(left) - 1) >= mean:
            break
        ratio, _, pair = left.pop(place)
        total -= ratio
        out.add(pair)
    return frozenset(out)
