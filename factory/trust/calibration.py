"""Calibration: judges held against people's verdicts on a part of the pairs (gold).

Of every judge, on the pairs that it shares with gold: how often it is right, what it confuses, how well its confidence
is calibrated, whether it may take a person's place (factory/trust/alternative_annotator.py), from which confidence on
it may be believed (factory/trust/abstention.py), and the habits that people do not share. Of every model that wrote
answers: what people would say of it, from all verdicts of a judge and the few of gold
(factory/trust/prediction_powered.py).

All but the confusion and kappa are about pairs on which people prefer one; a judge's tie on such a pair is half right,
as a coin would be. Intervals are 95% and take prompts for independent; all of it takes the pairs with gold for a random
draw of the pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from factory.schema import Estimate, digest
from factory.stats import clusters, intervals
from factory.stats.intervals import UNKNOWN
from factory.trust import abstention, agreement
from factory.trust.abstention import Threshold
from factory.trust.alternative_annotator import Alternative, alternative
from factory.trust.evidence import Evidence, Said
from factory.trust.gold import WORTH, Gold, Word
from factory.trust.habits import style
from factory.trust.prediction_powered import Powered, powered_mean
from factory.verdicts import Pair, Verdict
from factory.votes.reliability import known, plain

BINS = 5
"""Of the calibration curve: confidences from 1/2 to 1 in equal steps."""


# ------------------------------------------------------------------------------------------------- judge by judge


class Confusion(NamedTuple):
    """Pairs by what gold and the judge say. Which answer is called a is an accident, so that a and b are not told
    apart."""

    right: int  # people prefer one, the judge the same
    wrong: int  # the other
    tied: int  # people prefer one, the judge ties
    decided_tie: int  # people tie, the judge does not
    both_tie: int


class Bin(NamedTuple):
    """One step of the calibration curve: confidence from `low` (to the next step), their mean, and the share right."""

    low: float
    verdicts: int
    confidence: float
    right: Estimate


@dataclass(frozen=True)
class Against:
    """One judge against gold."""

    judge: str
    pairs: int  # with a verdict of both
    accuracy: Estimate  # of pairs on which people prefer one, a tie of the judge's as half
    right_if_decided: Estimate  # of those that the judge decides
    cohen_kappa: Estimate  # of the words a, tie, b
    brier: Estimate  # mean (p_a - gold)^2; 0.25 is a coin's
    ece: float  # mean distance of confidence and share right over the curve; NaN without verdicts
    ece_of_sound: float  # what a perfectly calibrated judge is to be expected to show with so few verdicts
    longer_excess: Estimate  # share of the longer answers that it picks minus the share that people pick
    confusion: Confusion
    curve: list[Bin]

    def row(self) -> dict[str, Any]:
        """One line of a table; None for what is unknown."""
        held = {name: known(getattr(self, name)) for name in self.__dataclass_fields__ if name != "curve"}
        return held | {name: None if math.isnan(held[name]) else held[name] for name in ("ece", "ece_of_sound")}


def against(found: Evidence, judge: str, gold: Mapping[Pair, Word], seed: int = 0) -> Against:
    """A judge of the run against gold."""
    said = found.said[judge]
    shared = [pair for pair in gold if pair in said]
    prompts = [found.prompt(pair) for pair in shared]
    preferred = [pair for pair in shared if gold[pair] != "tie"]
    worth = [_right(said[pair], gold[pair]) for pair in preferred]
    decided = [pair for pair in preferred if said[pair].verdict != "tie"]
    kappa = agreement.kappa([(said[pair], Verdict(WORTH[gold[pair]], gold[pair])) for pair in shared], prompts, seed)
    curve, ece, sound = _curve(found, said, gold, preferred)
    brier = [(said[pair].p_a - WORTH[gold[pair]]) ** 2 for pair in preferred]
    return Against(
        judge=judge,
        pairs=len(shared),
        accuracy=intervals.rate(worth, _prompts(found, preferred)),
        right_if_decided=intervals.rate([said[p].verdict == gold[p] for p in decided], _prompts(found, decided)),
        cohen_kappa=kappa,
        brier=clusters.mean(brier, _prompts(found, preferred)),
        ece=ece,
        ece_of_sound=sound,
        longer_excess=_longer_excess(found, said, gold, decided),
        confusion=_confusion(said, gold, shared),
        curve=curve,
    )


def _prompts(found: Evidence, pairs: Sequence[Pair]) -> list[str]:
    return [found.prompt(pair) for pair in pairs]


def _right(verdict: Verdict, word: Word) -> float:
    return 0.5 if verdict.verdict == "tie" else float(verdict.verdict == word)


def _confusion(said: Said, gold: Mapping[Pair, Word], shared: Sequence[Pair]) -> Confusion:
    counts = [0] * 5
    for pair in shared:
        word, verdict = gold[pair], said[pair].verdict
        if word == "tie":
            counts[4 if verdict == "tie" else 3] += 1
        else:
            counts[2 if verdict == "tie" else 0 if verdict == word else 1] += 1
    return Confusion(*counts)


def _curve(
    found: Evidence, said: Said, gold: Mapping[Pair, Word], pairs: Sequence[Pair]
) -> tuple[list[Bin], float, float]:
    """The calibration curve over max(p_a, 1 - p_a), its expected calibration error (Naeini et al. 2015), and that of a
    sound judge: the sum over steps of sqrt(2 / pi x the variance of its right answers)."""
    steps: defaultdict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        confidence = max(said[pair].p_a, 1 - said[pair].p_a)
        steps[min(int((confidence - 0.5) * 2 * BINS + 1e-9), BINS - 1)].append(pair)
    curve, gap, sound = [], 0.0, 0.0
    for step, inside in sorted(steps.items()):
        confidences = [max(said[pair].p_a, 1 - said[pair].p_a) for pair in inside]
        right = [_leaning(said[pair], gold[pair]) for pair in inside]
        centre = math.fsum(confidences) / len(inside)
        rate = intervals.rate(right, _prompts(found, inside))
        curve.append(Bin(0.5 + step / (2 * BINS), len(inside), centre, rate))
        gap += len(inside) * abs(rate.value - centre)
        sound += math.sqrt(2 / math.pi * math.fsum(c * (1 - c) for c in confidences))
    n = len(pairs)
    return curve, gap / n if n else math.nan, sound / n if n else math.nan


def _leaning(verdict: Verdict, word: Word) -> float:
    """Was the side right that p_a leans to? 1/2 where it leans to none."""
    return 0.5 if abs(verdict.p_a - 0.5) < 1e-9 else float((verdict.p_a > 0.5) == (word == "a"))


def _longer_excess(found: Evidence, said: Said, gold: Mapping[Pair, Word], decided: Sequence[Pair]) -> Estimate:
    """How much oftener the judge takes the longer answer than people do, on the same pairs."""
    length = {
        key: style(found.candidates[key].text).length for pair in decided for key in pair if key in found.candidates
    }
    kept = [(a, b) for a, b in decided if a in length and b in length and length[a] != length[b]]
    excess = [
        float((said[p].verdict == "a") == (length[p[0]] > length[p[1]]))
        - float((gold[p] == "a") == (length[p[0]] > length[p[1]]))
        for p in kept
    ]
    return clusters.mean(excess, _prompts(found, kept)) if kept else UNKNOWN


# ------------------------------------------------------------------------------------------------ what people would say


@dataclass(frozen=True)
class Believed:
    """What people would say of a model, by one judge's help. `of`: "win rate" against the answers of other models, ties
    half; "mean score" of its answers, on gold's scale."""

    model: str
    of: str
    judge: str
    powered: Powered

    def row(self) -> dict[str, Any]:
        """One line of a table; None for what is unknown."""
        held = {name: known(value) for name, value in self.powered._asdict().items()}
        return {"model": self.model, "of": self.of, "judge": self.judge} | held


def believed(found: Evidence, gold: Gold, judges: Sequence[str]) -> list[Believed]:
    """Win rates where several models wrote, mean scores where gold has scores; by every judge, and by the panel."""
    by = {judge: found.said[judge] for judge in judges}
    if len(judges) > 1:
        panel = dataclasses.replace(found, said=by)
        by = {agreement.PANEL: agreement.majority(panel)} | {agreement.beside_panel(judge): by[judge] for judge in by}
    rows = [row for judge, said in by.items() for row in _win_rates(found, gold.pairs(), judge, said)]
    rows += [row for judge in judges for row in _mean_scores(found, gold.scores, judge)]
    return sorted(rows, key=lambda row: (row.of, row.model))


def _win_rates(found: Evidence, gold: Mapping[Pair, Word], judge: str, said: Said) -> list[Believed]:
    inputs: defaultdict[str, _Inputs] = defaultdict(_Inputs)
    for pair, verdict in said.items():
        if pair[0] not in found.candidates or pair[1] not in found.candidates:
            continue
        one, other = (found.author(key) for key in pair)
        if one == other:
            continue
        truth = WORTH[gold[pair]] if pair in gold else None
        inputs[one].add(found.prompt(pair), verdict.p_a, truth)
        inputs[other].add(found.prompt(pair), 1 - verdict.p_a, None if truth is None else 1 - truth)
    return [Believed(model, "win rate", judge, held.mean()) for model, held in inputs.items() if held.gold]


def _mean_scores(found: Evidence, gold: Mapping[str, float], judge: str) -> list[Believed]:
    inputs: defaultdict[str, _Inputs] = defaultdict(_Inputs)
    for key, score in found.panel.scores.get(judge, {}).items():
        if score is not None and key in found.candidates:
            inputs[found.author(key)].add(found.prompts[key], score.value, gold.get(key))
    scored = {model: held for model, held in inputs.items() if held.gold}
    return [Believed(model, "mean score", judge, held.mean()) for model, held in scored.items()]


class _Inputs:
    """Predictions of one judge about one model, with gold and without."""

    def __init__(self) -> None:
        self.gold: list[float] = []
        self.judged: list[float] = []
        self.prompts: list[str] = []
        self.others: list[float] = []
        self.other_prompts: list[str] = []

    def add(self, prompt: str, judged: float, gold: float | None) -> None:
        """One item."""
        if gold is None:
            self.others.append(judged)
            self.other_prompts.append(prompt)
        else:
            self.gold.append(gold)
            self.judged.append(judged)
            self.prompts.append(prompt)

    def mean(self) -> Powered:
        """The prediction-powered mean."""
        return powered_mean(self.gold, self.judged, self.prompts, self.others, self.other_prompts)


# ----------------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True)
class Calibration:
    """Judges against gold. `people_agree`: two people's verdicts on one pair that are the same; NaN for one person."""

    source: str
    people: int
    pairs: int
    prompts: int
    ties: int  # pairs on which people prefer none
    people_agree: Estimate
    judges: list[Against]
    alternative: list[Alternative]
    believed: list[Believed]
    thresholds: list[Threshold]
    notes: tuple[str, ...] = ()

    def weights(self) -> dict[str, float]:
        """2 accuracy - 1 of every judge that shares a pair with gold: what its vote is worth beside a coin's."""
        return {
            stats.judge: max(2 * stats.accuracy.value - 1, 0.0)
            for stats in self.judges
            if not math.isnan(stats.accuracy.value)
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an estimate is [value, low, high] with null for NaN."""
        held: dict[str, Any] = _json(self)
        return held

    def text(self) -> str:
        """Tables for a reader."""
        return "\n\n".join(f"{head}\n{body}" for head, body in _blocks(self))


def _json(value: Any) -> Any:
    if isinstance(value, Estimate):
        return plain(value)
    if dataclasses.is_dataclass(value):
        return {f.name: _json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _json(inner) for name, inner in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    return plain(value)


def calibrate(
    found: Evidence,
    gold: Gold,
    *,
    risk: float = 0.2,
    delta: float = 0.1,
    epsilon: float = 0.2,
    seed: int = 0,
) -> Calibration:
    """Every judge of the run (gold itself aside) against gold."""
    judges = [judge for judge in found.judges if judge != gold.source]
    truth = gold.pairs()
    prompts = {pair: found.prompt(pair) for said in gold.people.values() for pair in said}
    people: dict[str, dict[Hashable, str]] = {person: dict(said) for person, said in gold.people.items()}
    words = {judge: {pair: verdict.verdict for pair, verdict in found.said[judge].items()} for judge in judges}
    return Calibration(
        source=gold.source,
        people=len(people),
        pairs=len(truth),
        prompts=len({prompts[pair] for pair in truth}),
        ties=sum(word == "tie" for word in truth.values()),
        people_agree=_people_agree(gold, found),
        judges=[against(found, judge, truth, seed) for judge in judges],
        alternative=[
            alternative(judge, dict(words[judge]), people, dict(prompts), epsilon=epsilon) for judge in judges
        ],
        believed=believed(found, gold, judges),
        thresholds=[_threshold(found, judge, truth, risk, delta, seed) for judge in judges],
        notes=gold.notes,
    )


def _people_agree(gold: Gold, found: Evidence) -> Estimate:
    """Over every two people and each pair that both judged: did they say the same?"""
    names = sorted(gold.people)
    same: list[bool] = []
    prompts: list[str] = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            for pair in sorted(gold.people[one].keys() & gold.people[other].keys()):
                same.append(gold.people[one][pair] == gold.people[other][pair])
                prompts.append(found.prompt(pair))
    return intervals.rate(same, prompts)


def _threshold(
    found: Evidence, judge: str, gold: Mapping[Pair, Word], risk: float, delta: float, seed: int
) -> Threshold:
    """The judge's threshold, from one gold pair a prompt, drawn by the seed."""
    decided = {pair: verdict for pair, verdict in found.said[judge].items() if verdict.verdict != "tie"}
    drawn: dict[str, Pair] = {}
    usable = [pair for pair in gold if pair in decided and gold[pair] != "tie"]
    for pair in sorted(usable, key=lambda pair: digest(seed, "gold", *pair)):
        drawn.setdefault(found.prompt(pair), pair)
    known_pairs = [(_confidence(decided[pair]), decided[pair].verdict != gold[pair]) for pair in drawn.values()]
    others = [_confidence(verdict) for pair, verdict in decided.items() if pair not in gold]
    return abstention.calibrate(judge, known_pairs, others, risk=risk, delta=delta)


def _confidence(verdict: Verdict) -> float:
    return max(verdict.p_a, 1 - verdict.p_a)


# ----------------------------------------------------------------------------------------------------- the tables


_AGAINST = {
    "judge": "judge", "pairs": "pairs", "accuracy": "accuracy", "right_if_decided": "right if decided",
    "cohen_kappa": "Cohen's kappa", "longer_excess": "longer, beyond people",
}  # fmt: skip
_CONFUSED = {
    "judge": "judge", "right": "right", "wrong": "wrong", "tied": "tied", "decided_tie": "people tie, judge decides",
    "both_tie": "both tie", "brier": "Brier", "ece": "ECE", "ece_of_sound": "ECE of a sound judge",
}  # fmt: skip
_CURVE = {"judge": "judge", "low": "confidence from", "verdicts": "verdicts", "confidence": "mean", "right": "right"}
_PEOPLE = {
    "judge": "judge", "omega": "omega", "advantage": "advantage", "passes": "may take a person's place", "note": "note",
}  # fmt: skip
_BELIEVED = {
    "of": "of", "model": "model", "judge": "judge", "estimate": "estimate", "gold_only": "gold alone",
    "judge_only": "judge alone", "weight": "weight", "gold": "with gold", "others": "without",
}  # fmt: skip
_TRUSTED = {
    "judge": "judge", "threshold": "from confidence", "kept": "keeps", "gold": "gold verdicts", "note": "note",
}  # fmt: skip


def _blocks(found: Calibration) -> Iterable[tuple[str, str]]:
    rows = [stats.row() for stats in found.judges]
    about = f"people: {found.people}, pairs: {found.pairs}, prompts: {found.prompts}, ties: {found.ties}"
    agree = "" if math.isnan(found.people_agree.value) else f"; two people agree on {_show(found.people_agree)}"
    notes = "".join(f"\n{note}" for note in found.notes)
    yield f"Gold from {found.source} ({about}{agree})", agreement.block(rows, _AGAINST) + notes
    confused = [row | row["confusion"]._asdict() for row in rows]
    yield "What each gets wrong, and how well its confidence is calibrated", agreement.block(confused, _CONFUSED)
    curve = [{"judge": stats.judge} | step._asdict() for stats in found.judges for step in stats.curve]
    if curve:
        yield "Calibration curve", agreement.block(curve, _CURVE)
    tests = [{name: getattr(test, name) for name in _PEOPLE} for test in found.alternative]
    epsilon = found.alternative[0].epsilon if found.alternative else 0.0
    yield f"Alternative annotator test (epsilon {epsilon:g})", agreement.block(tests, _PEOPLE)
    if found.believed:
        believed_rows = [row.row() for row in found.believed]
        yield (
            "What people would say of the models (gold taken as a random draw)",
            agreement.block(believed_rows, _BELIEVED),
        )
    limits = [{name: known(getattr(limit, name)) for name in _TRUSTED} for limit in found.thresholds]
    if found.thresholds:
        first = found.thresholds[0]
        head = f"Believed from which confidence on: at most {first.risk:.0%} wrong, in {1 - first.delta:.0%} of draws"
        yield head, agreement.block(limits, _TRUSTED)


def _show(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
