"""What one call of `pair` makes of a round's judgments: preferences with weights, labels, and an account of the rest.

Pure: the panel's verdicts on all pairs are taken together, then each prompt is sifted and its strategy chooses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from factory.faults import FactoryError
from factory.pairing.choosing import Choice, is_flipped, strategies, turned
from factory.pairing.combining import Rule, joint
from factory.pairing.grading import (
    Graded,
    LabelBy,
    Labels,
    LabelWeights,
    Scored,
    by_quantile,
    by_threshold,
    from_choices,
)
from factory.pairing.sifting import (
    Filters,
    Matched,
    Sifted,
    balance,
    lineages,
    matched,
    most,
    near_duplicates,
    nearness,
    sift,
)
from factory.registry import unknown_name
from factory.schema import Candidate
from factory.verdicts import Pair, Panel

Weights = Literal["none", "margin", "probability", "consistency"]


@dataclass(frozen=True)
class LabelRule:
    """How answers become labels, see `grading`."""

    by: LabelBy = "threshold"
    threshold: float = 0.5
    quantiles: tuple[float, float] = (0.25, 0.75)
    weights: LabelWeights = "none"

    def check(self) -> None:
        """FactoryError when a value is out of its range."""
        for name, known in (("by", LabelBy), ("weights", LabelWeights)):
            _known(f"label {name}", getattr(self, name), known)
        low, high = self.quantiles
        if not 0 <= low < high <= 1:
            raise FactoryError(f"quantiles {low}, {high}: two numbers between 0 and 1 are wanted, the lower first")
        if not 0 <= self.threshold <= 1:
            raise FactoryError(f"threshold {self.threshold} is not between 0 and 1, the ends of the panel's score")


@dataclass
class PairReport:
    """What a call of `pair` did. `dropped`: pairs of answers that became no preference, by reason; with the
    preferences found they are all `pairs`: those of a prompt's answers that did not fail, or of drafts with
    revisions."""

    prompts: int = 0
    candidates: int = 0
    failed_candidates: int = 0
    pairs: int = 0
    preferences: int = 0  # found; written now or before
    written: int = 0  # of them new in the store
    flipped: int = 0  # of the preferences found: turned about on purpose
    held: int = 0  # all preferences of the run and round, those of other names too
    labels: int = 0
    labels_written: int = 0
    labels_refused: int = 0  # the opposite label of that answer is held under the same name
    labels_flipped: int = 0  # turned about on purpose
    desirable: int = 0  # labels that are true
    mean_margin: float | None = None
    mean_agreement: float | None = None
    mean_probability: float | None = None  # that the chosen is the better
    mean_length_ratio: float | None = None  # mean log of (length of chosen / of rejected); 0: length tells nothing
    dropped: dict[str, int] = field(default_factory=dict)
    labels_dropped: dict[str, int] = field(default_factory=dict)  # answers without a label, by reason
    held_by: dict[str, int] = field(default_factory=dict)  # of `held`, by name
    judge_accuracy: dict[str, float | None] = field(default_factory=dict)  # where the way to combine knows it
    effective_judges: float | None = None  # how many independent judges the panel is worth (Kish), where it knows
    quarantined: int = 0  # batches of judgments that do not count: canaries fooled the judge
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


# ---------------------------------------------------------------------------------------------------- what is wanted


@dataclass(frozen=True)
class Wanted:
    """One call of `pair`, checked."""

    run: str
    round: int
    strategy: str
    filters: Filters
    weights: Weights
    consistency: Mapping[str, float] | None
    labels: LabelRule
    seed: int
    called: str | None = None
    flip: float = 0.0

    @property
    def name(self) -> str:
        """What its preferences and labels go by in the column `strategy`."""
        return self.called or self.strategy

    @property
    def lineage(self) -> bool:
        """Are drafts paired with their revisions?"""
        return bool(strategies.facts(self.strategy)["lineage"])

    @property
    def unjudged(self) -> bool:
        """Can it do without judges?"""
        return self.lineage and not self.filters.confirm

    def check(self) -> None:
        """FactoryError when something in it cannot be."""
        strategies.get(self.strategy)
        self.filters.check()
        self.labels.check()
        _known("weights of preferences", self.weights, Weights)
        if not 0 <= self.flip <= 1:
            raise FactoryError(f"flip {self.flip} is not between 0 and 1, the share of preferences to turn about")
        if (self.weights == "consistency") != (self.consistency is not None):
            raise FactoryError("weights 'consistency' and a weight for each prompt go together", todo="give both")
        if self.unjudged and (self.filters.asks_judges() or self.weights in ("margin", "probability")):
            raise FactoryError(
                f"{self.strategy} pairs without asking the judges, so nothing can go by their margin or probability",
                todo="add confirm, or leave these filters and weights out",
            )
        if self.filters.confirm and not self.lineage:
            raise FactoryError(f"{self.strategy} goes by the judges already", todo="confirm is for draft_revision")


def _known(kind: str, name: str, names: Any) -> None:
    if name not in names.__args__:
        raise unknown_name(kind, name, names.__args__)


class Kept(NamedTuple):
    """What the run and round hold: (chosen, rejected) of preferences by name, the labels of answers under the name that
    labels go by, and that name."""

    pairs: Mapping[str, set[Pair]]
    labels: Mapping[str, bool]
    label_name: str


# ------------------------------------------------------------------------------------------------------ what is found


class Picked(NamedTuple):
    """A choice, the prompt that it answers, its weight in training, and whether it was turned about on purpose."""

    prompt_key: str
    choice: Choice
    weight: float
    flipped: bool = False


class Found(NamedTuple):
    """What a call of `pair` makes of the judgments."""

    picked: list[Picked]
    labels: Labels
    kept: Kept
    prompt_of: Mapping[str, str]  # of each answer
    report: PairReport


def find(
    groups: Mapping[str, Sequence[Candidate]],
    panel: Panel,
    judges: Sequence[str],
    rule: Rule,
    wanted: Wanted,
    kept: Kept,
) -> Found:
    """Preferences and labels of all prompts; pure."""
    answers = {key: [c for c in group if c.kind != "critique"] for key, group in groups.items()}
    report = PairReport(prompts=len(groups), candidates=sum(map(len, answers.values())))
    report.failed_candidates = sum(c.failure is not None for group in answers.values() for c in group)
    dropped: Counter[str] = Counter()
    among = _among(groups, panel, wanted)
    together = joint(panel, judges, ((a.key, b.key) for m in among.values() for a, b in m.pairs), rule)
    picked: list[Picked] = []
    scores: dict[str, Scored] = {}
    for key, group in answers.items():
        sifted = sift(group, panel, judges, rule, wanted.filters, among=among[key], together=together)
        report.pairs += sifted.pairs
        dropped.update(sifted.dropped)
        scores.update(sifted.scores)
        picked.extend(_pick(key, sifted, wanted, kept, dropped))
    picked = _balanced(picked, wanted, dropped, report)
    report.dropped = {reason: n for reason, n in sorted(dropped.items()) if n}
    if together.model is not None:
        report.judge_accuracy = {name: _finite(value) for name, value in together.model.accuracy.items()}
        report.effective_judges = _finite(together.model.effective)
    report.warnings.extend(together.notes)
    everyone = [c for group in answers.values() for c in group]
    labels = _labels(everyone, scores, [p.choice for p in picked], wanted.labels)
    labels = labels._replace(graded=[_flip_label(graded, wanted) for graded in labels.graded])
    picked = [_flip(each, wanted) for each in picked]
    return Found(picked, labels, kept, {c.key: c.prompt_key for c in everyone}, report)


def _told(choice: Choice, wanted: Wanted) -> Choice:
    """The choice as training is told of it: turned about where the draw says so."""
    flipped = is_flipped(wanted.flip, wanted.seed, choice.chosen, choice.rejected)
    return turned(choice) if flipped else choice


def _flip(picked: Picked, wanted: Wanted) -> Picked:
    told = _told(picked.choice, wanted)
    return picked._replace(choice=told, flipped=told is not picked.choice)


def _flip_label(graded: Graded, wanted: Wanted) -> Graded:
    """The label, turned about where a draw of its own says so."""
    if not is_flipped(wanted.flip, wanted.seed, graded.candidate):
        return graded
    return graded._replace(label=not graded.label, flipped=True)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _among(groups: Mapping[str, Sequence[Candidate]], panel: Panel, wanted: Wanted) -> dict[str, Matched]:
    """The pairs of each prompt that the panel is asked about."""
    threshold = wanted.filters.near_duplicates
    near = None if threshold is None else nearness((c for group in groups.values() for c in group), threshold)
    if wanted.lineage:
        return {key: lineages(group, near) for key, group in groups.items()}
    alike = near_duplicates(groups.values(), near, panel) if near else frozenset[str]()
    return {key: matched(group, alike) for key, group in groups.items()}


def _pick(key: str, sifted: Sifted, wanted: Wanted, kept: Kept, dropped: Counter[str]) -> list[Picked]:
    """What the strategy takes of one prompt's pairs, with why the rest is out."""
    chosen = strategies.get(wanted.strategy)(sifted.group, wanted.seed)
    few = most(chosen, wanted.filters.per_prompt, wanted.seed)
    held = kept.pairs.get(wanted.name, ())
    sound = [c for c in few if _opposite(_told(c, wanted)) not in held]
    weighed = [Picked(key, c, w) for c in sound if (w := _weight(c, key, wanted)) > 0]
    dropped["not_picked"] += len(sifted.group.decided) - len(chosen)
    dropped["per_prompt"] += len(chosen) - len(few)
    dropped["contradicts_kept"] += len(few) - len(sound)
    dropped["no_weight"] += len(sound) - len(weighed)
    return weighed


def _opposite(choice: Choice) -> Pair:
    return choice.rejected.key, choice.chosen.key


def _weight(choice: Choice, prompt_key: str, wanted: Wanted) -> float:
    """The weight of a preference in training; 0 where what it goes by is not known."""
    by = {
        "none": 1.0,
        "margin": choice.margin,
        "probability": choice.probability,
        "consistency": (wanted.consistency or {}).get(prompt_key),
    }
    weight = by[wanted.weights]
    return weight if weight is not None and math.isfinite(weight) else 0.0


def _balanced(picked: list[Picked], wanted: Wanted, dropped: Counter[str], report: PairReport) -> list[Picked]:
    """The preferences without those that `balance` drops, if that is wanted."""
    if not wanted.filters.length_balanced:
        return picked
    out = balance([p.choice for p in picked], wanted.seed)
    left = [p for p in picked if (p.choice.chosen.key, p.choice.rejected.key) not in out]
    dropped["length_balanced"] += len(out)
    if len(left) < len(picked) / 2:
        report.warnings.append(
            f"balancing the lengths left {len(left)} of {len(picked)} preferences: nearly all chosen answers are "
            "longer, or nearly all are shorter, than the rejected"
        )
    return left


def _labels(
    candidates: Sequence[Candidate], scores: Mapping[str, Scored], choices: Sequence[Choice], rule: LabelRule
) -> Labels:
    if rule.by == "pairs":
        return from_choices(choices)
    if rule.by == "threshold":
        return by_threshold(candidates, scores, rule.threshold)
    return by_quantile(candidates, scores, *rule.quantiles) if rule.by == "quantile" else Labels([], Counter())
