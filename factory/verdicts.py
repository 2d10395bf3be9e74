"""From judgments to verdicts: what each judge says of a candidate, and of a pair with both orders taken together.

Pure. The one place that knows how readings combine; labelling, agreement, pairing and evaluation all ask it. Canaries
are left out, a failed reading is never averaged in, and half of a question (one order, some of the aspects) is no
answer.

Nor do the judgments of a batch count whose canaries fooled the judge: they are in quarantine (`quarantined`). Nothing
is deleted; `read(..., quarantine=False)` takes them all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from factory.judges.canaries import CANARIES, stand_in_key
from factory.schema import Judgment
from factory.stats.intervals import wilson

TIE_MARGIN = 0.05
"""A pairwise verdict is a tie when |p_a - 1/2| is below this."""
SAME = 1e-9
"""Scores closer than this are equal: the rest is rounding."""
TOLERATED = 0.2
"""A judge that one of the five kinds of canary fools every time is at this share, and is still believed about answers
that are no canaries. Above it, it is not."""
FEWEST_CANARIES = 3
"""Fewer decided canaries say nothing."""


class Verdict(NamedTuple):
    """What one judge says of a pair: probability that a is better (canonical order), and whether the two orders of
    showing gave different verdicts (None when the judge has no orders)."""

    p_a: float
    verdict: Literal["a", "b", "tie"]
    flipped: bool | None = None

    def turned(self) -> Verdict:
        """The same verdict with a and b exchanged."""
        other: Mapping[str, Literal["a", "b", "tie"]] = {"a": "b", "b": "a", "tie": "tie"}
        return Verdict(1 - self.p_a, other[self.verdict], self.flipped)


class Score(NamedTuple):
    """What one pointwise judge says of a candidate: `value` on its own scale, `share` of the scale (0 to 1), whether
    all that was asked for is met (None when the judge does not say), and whether the scale is one of log-odds without
    ends: `share` then only keeps the order, and a difference of values is what counts."""

    value: float
    share: float
    all_met: bool | None = None
    log_odds: bool = False


Pair = tuple[str, str]  # candidate keys, canonical (a < b)


def latest(judgments: Iterable[Judgment]) -> list[Judgment]:
    """One judgment for each question put to a judge: the last read (a changed parser, a retry), canaries included (one
    for each batch that it vouches for).

    The order of what comes in does not matter; what goes out is ordered by judge, candidates, aspect, order of showing
    and batch of a canary.
    """
    newest: dict[tuple[str, ...], Judgment] = {}
    for row in judgments:
        batch = row.batch if row.canary else ""
        question = (row.judge, row.candidate_a, row.candidate_b or "", row.aspect, row.shown_first or "", batch)
        held = newest.get(question)
        if held is None or (held.at, held.key) < (row.at, row.key):
            newest[question] = row
    return [newest[question] for question in sorted(newest)]


def decide(p_a: float, tie_margin: float) -> Literal["a", "b", "tie"]:
    """The verdict that a probability stands for."""
    if abs(p_a - 0.5) < max(tie_margin, SAME):
        return "tie"
    return "a" if p_a > 0.5 else "b"


def combine_orders(rows: Sequence[Judgment], tie_margin: float = TIE_MARGIN) -> Verdict | None:
    """Both orders of every aspect of one judge on one pair: the mean of p_a, aspects by their weight; None when one is
    missing or failed.

    `flipped`: the two orders of an aspect gave different verdicts (aspects may well differ from each other). Text
    verdicts carry p_a of 0, 1/2 or 1: where the two orders of an aspect disagree, that aspect is a tie.
    """
    if any(row.failure is not None or row.p_a is None for row in rows):
        return None
    aspects: defaultdict[str, list[Judgment]] = defaultdict(list)
    for row in rows:
        aspects[row.aspect].append(row)
    if not aspects or not all({row.shown_first for row in found} in ({"a", "b"}, {None}) for found in aspects.values()):
        return None
    chances = [_of_aspect(found) for found in aspects.values()]
    flips = [_flips(found) for found in aspects.values() if found[0].shown_first is not None]
    p_a = _mean(chances, [_weight(found[0]) for found in aspects.values()])
    return Verdict(p_a, decide(p_a, tie_margin), any(flips) if flips else None)


def _of_aspect(rows: Sequence[Judgment]) -> float:
    """p_a of one aspect: the mean of its orders, 1/2 where they are texts that disagree."""
    chances = [row.p_a for row in rows if row.p_a is not None]
    if _flips(rows) and set(chances) <= {0.0, 0.5, 1.0}:
        return 0.5
    return math.fsum(chances) / len(chances)


def _flips(rows: Sequence[Judgment]) -> bool:
    return len({row.verdict for row in rows}) > 1


def combine_aspects(rows: Sequence[Judgment]) -> Score | None:
    """All aspects of one pointwise judge on one candidate: the mean by their weight; None when one failed."""
    if not rows or any(row.failure is not None or row.score is None for row in rows):
        return None
    values = [row.score for row in rows if row.score is not None]
    shares = [_share(row) for row in rows]
    met = [row.detail["all_met"] for row in rows if row.detail and isinstance(row.detail.get("all_met"), bool)]
    weights = [_weight(row) for row in rows]
    return Score(
        _mean(values, weights),
        _mean(shares, weights),
        all(met) if len(met) == len(rows) else None,
        all(_is_log_odds(row) for row in rows),
    )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The mean by weight; the plain one where nothing has any."""
    total = math.fsum(weights)
    if total <= 0:
        return math.fsum(values) / len(values)
    return math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / total


def _weight(row: Judgment) -> float:
    """Weight of the row's aspect among the judge's aspects: `detail["weight"]`, 1 where there is none."""
    weight = row.detail.get("weight") if isinstance(row.detail, Mapping) else None
    usable = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight) and weight >= 0
    return float(weight) if usable and weight is not None else 1.0


def _is_log_odds(row: Judgment) -> bool:
    """A score without ends: a reward model's, whose differences are log-odds."""
    return row.score_low is None and row.score_high is None


def _share(row: Judgment) -> float:
    """The score as a share of its scale. One without ends has none: r / (1 + |r|), moved to 0..1, keeps the order also
    where a sigmoid would round to 1."""
    score = row.score or 0.0
    if _is_log_odds(row):
        return 0.5 + 0.5 * score / (1.0 + abs(score))
    low = 0.0 if row.score_low is None else row.score_low
    high = 1.0 if row.score_high is None else row.score_high
    return min(max((score - low) / (high - low), 0.0), 1.0) if high > low else 0.0


def from_scores(a: Score, b: Score) -> Verdict:
    """A pair by two scores of one judge; equal scores are a tie.

    p_a = 1/2 + half the difference as a share of the scale. On a scale of log-odds: sigmoid(a - b), as Bradley and
    Terry's model, which reward models are trained by, has it (Ouyang et al., 2203.02155, eq. 1).
    """
    if not (a.log_odds and b.log_odds):
        p_a = 0.5 + (a.share - b.share) / 2
        return Verdict(p_a, decide(p_a, 0.0))
    p_a = sigmoid(a.value - b.value)
    return Verdict(p_a, decide(p_a, 0.0))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


class Panel(NamedTuple):
    """All that the judges said, by judge: `scores` of candidates and `pairs` judged as pairs; None marks a failure."""

    scores: dict[str, dict[str, Score | None]]
    pairs: dict[str, dict[Pair, Verdict | None]]

    def judges(self) -> list[str]:
        """Names, sorted."""
        return sorted({*self.scores, *self.pairs})

    def verdict(self, judge: str, pair: Pair) -> Verdict | None:
        """What a judge says of a pair, from its pairwise judgment, else from its two scores; None: nothing usable."""
        if judge in self.pairs:
            return self.pairs[judge].get(pair)
        scores = self.scores.get(judge, {})
        a, b = scores.get(pair[0]), scores.get(pair[1])
        return None if a is None or b is None else from_scores(a, b)


def read(judgments: Iterable[Judgment], tie_margin: float = TIE_MARGIN, *, quarantine: bool = True) -> Panel:
    """The panel's verdicts, canaries left out, and so are batches in quarantine (unless `quarantine` is false)."""
    rows = latest(judgments)
    left_out = quarantined(rows, tie_margin) if quarantine else {}
    return _panel((row for row in rows if row.batch not in left_out), tie_margin)


def _panel(rows: Iterable[Judgment], tie_margin: float) -> Panel:
    """The verdicts of the latest rows."""
    single: defaultdict[str, defaultdict[str, list[Judgment]]] = defaultdict(lambda: defaultdict(list))
    double: defaultdict[str, defaultdict[Pair, list[Judgment]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.canary:
            continue
        if row.candidate_b is None:
            single[row.judge][row.candidate_a].append(row)
        else:
            double[row.judge][row.candidate_a, row.candidate_b].append(row)
    return Panel(
        {judge: {key: combine_aspects(rows) for key, rows in found.items()} for judge, found in single.items()},
        {judge: {p: combine_orders(rows, tie_margin) for p, rows in found.items()} for judge, found in double.items()},
    )


class Seen(NamedTuple):
    """One canary before one judge. `fooled`: it preferred the canary to a real answer; None where it decided nothing:
    there is no verdict to go by, or a tie, which fools nobody. `tied`: it found both as good."""

    name: str
    fooled: bool | None
    tied: bool = False


def canaries(judgments: Iterable[Judgment], tie_margin: float = TIE_MARGIN) -> dict[str, list[Seen]]:
    """Per judge: each canary that it was shown, and whether it preferred it to a real answer.

    In a pair the real answer is `a`; a pointwise judge is fooled when the canary scores above the answer it stood in
    for.
    """
    found: defaultdict[str, dict[Shown, Seen]] = defaultdict(dict)
    for shown, seen in _canaries(latest(judgments), tie_margin).items():
        found[shown.judge][shown._replace(batch="")] = seen  # one that vouches for two batches is one canary
    return {judge: list(each.values()) for judge, each in found.items()}


class Shown(NamedTuple):
    """What a canary was shown for: judge, run, round, batch and the place that it took."""

    judge: str
    run: str
    round: int
    batch: str
    a: str
    b: str


def _canaries(rows: Sequence[Judgment], tie_margin: float) -> dict[Shown, Seen]:
    """Every canary among the latest rows, the one judged last at the end."""
    shown: defaultdict[Shown, list[Judgment]] = defaultdict(list)
    for row in rows:
        if row.canary:
            place = Shown(row.judge, row.run, row.round, row.batch, row.candidate_a, row.candidate_b or "")
            shown[place].append(row)
    if not shown:
        return {}
    replaced = {
        judge: {stand_in_key(name, key): score for key, score in scores.items() for name in CANARIES}
        for judge, scores in _panel((row for row in rows if row.candidate_b is None), tie_margin).scores.items()
    }
    ordered = sorted(shown, key=lambda place: (max(row.at for row in shown[place]), place))
    return {place: _seen(shown[place], replaced.get(place.judge, {}).get(place.a), tie_margin) for place in ordered}


def _seen(group: Sequence[Judgment], real: Score | None, tie_margin: float) -> Seen:
    name = group[0].canary_name or ""
    if group[0].candidate_b is not None:
        verdict = combine_orders(group, tie_margin)
        return Seen(name, None) if verdict is None else _decided(name, verdict)
    score = combine_aspects(group)
    if score is None or real is None:
        return Seen(name, None)
    return _decided(name, from_scores(real, score))


def _decided(name: str, verdict: Verdict) -> Seen:
    """What a verdict between a real answer, a, and a canary says."""
    return Seen(name, None, tied=True) if verdict.verdict == "tie" else Seen(name, verdict.verdict == "b")


# ------------------------------------------------------------------------------------------------------- quarantine


class Quarantine(NamedTuple):
    """Why the judgments of a batch do not count: of `decided` canaries, of its own (`of` is "batch") or of all that the
    judge saw in that round ("judge"), `fooled` were preferred to real answers."""

    judge: str
    of: Literal["batch", "judge"]
    fooled: int
    decided: int

    def why(self) -> str:
        """As a reader is told."""
        whose = "its batch's" if self.of == "batch" else "all its"
        return f"{self.judge} preferred {self.fooled} of {whose} {self.decided} decided canaries to real answers"


def quarantined(judgments: Iterable[Judgment], tie_margin: float = TIE_MARGIN) -> dict[str, Quarantine]:
    """The batches whose judgments do not count, and why.

    Counted are canaries that the judge decided, for the real answer or against it: a tie fools nobody. With at least
    three of them, a batch is out when the 95% Wilson interval of the share that fooled the judge lies above
    `TOLERATED`: 2 of 3, 3 of 4 or of 5, 5 of 9. Where the batch's own canaries do not say so, or are too few, those of
    all batches of the judge in that round are asked together: a judge at chance, which half of them fool, is caught
    although some of its batches are lucky, and a batch too small for canaries of its own goes with the rest. Rows
    without a batch (programs, people, and what was judged before batches were kept) are never in quarantine.
    """
    rows = latest(judgments)
    own: defaultdict[str, list[Seen]] = defaultdict(list)
    whole: defaultdict[tuple[str, str, int], dict[Shown, Seen]] = defaultdict(dict)
    for shown, seen in _canaries(rows, tie_margin).items():
        own[shown.batch].append(seen)
        whole[shown.judge, shown.run, shown.round][shown._replace(batch="")] = seen
    together = {place: _fools(seen.values()) for place, seen in whole.items()}
    found = {}
    for batch, place in sorted({row.batch: (row.judge, row.run, row.round) for row in rows if row.batch}.items()):
        if (counts := _fools(own[batch])) is not None:
            found[batch] = Quarantine(place[0], "batch", *counts)
        elif (counts := together.get(place)) is not None:
            found[batch] = Quarantine(place[0], "judge", *counts)
    return found


def _fools(seen: Iterable[Seen]) -> tuple[int, int] | None:
    """Canaries that fooled the judge and those that it decided, where these are enough to disbelieve it."""
    decided = [canary.fooled for canary in seen if canary.fooled is not None]
    fooled = sum(decided)
    return (fooled, len(decided)) if disbelieved(fooled, len(decided)) else None


def disbelieved(fooled: int, decided: int) -> bool:
    """Is a judge not to be believed that so many of its decided canaries fooled? See `quarantined`."""
    return decided >= FEWEST_CANARIES and wilson(fooled, decided).low > TOLERATED
