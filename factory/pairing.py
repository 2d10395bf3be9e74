"""Pairing: the panel's verdicts to preferences (chosen over rejected) and to single labels (desirable or not).

Two steps, both pure. `combine` makes one probability for each pair of answers out of what the judges said of it; a
strategy then picks, among the pairs that this decides, those to train on. Ties never become preferences, an answer is
never paired with its own text, and a judgment that failed counts for nothing. Everything is the same whatever the
order of the rows.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from factory import matchups, verdicts
from factory.faults import FactoryError
from factory.registry import Registry, unknown_name
from factory.schema import Candidate, Judgment, Label, Message, Preference, Prompt, digest, now
from factory.verdicts import Pair, Panel, Verdict

if TYPE_CHECKING:
    from factory.store import Store

Combine = Literal["lead", "mean", "majority"]
LabelBy = Literal["threshold", "pairs", "none"]


class Choice(NamedTuple):
    """A preference between two answers. `margin` 0 to 1; `agreement`: share of the `judges` with a verdict that side
    with it."""

    chosen: Candidate
    rejected: Candidate
    margin: float
    agreement: float
    judges: int


class Group(NamedTuple):
    """One prompt's answers: `decided` are the pairs with a winner, `standing` each answer's mean probability of being
    the better one over all pairs with a verdict, ties included."""

    decided: Sequence[Choice]
    standing: Mapping[str, float]


Strategy = Callable[[Group, int], list[Choice]]
strategies: Registry[Strategy] = Registry("pairing strategy")


@dataclass(frozen=True)
class Rule:
    """How judges become one verdict, and when it is enough.

    combine   lead: the lead judge decides, the others only count for agreement (with `break_ties` the mean of the
              others decides what it ties); mean: the mean of p_a over judges; majority: each judge one vote
    """

    combine: Combine = "lead"
    lead: str | None = None
    break_ties: bool = False
    min_margin: float = 0.0
    tie_margin: float = verdicts.TIE_MARGIN


@dataclass
class PairReport:
    """What a call of `pair` did. `dropped`: pairs of answers that became no preference, by reason; with the
    preferences found they are all pairs of a prompt's answers that did not fail."""

    prompts: int = 0
    candidates: int = 0
    failed_candidates: int = 0
    pairs: int = 0
    preferences: int = 0  # found; written now or before
    written: int = 0  # of them new in the store
    held: int = 0  # all preferences of the run and round, those of other strategies too: what training will see
    labels: int = 0
    labels_written: int = 0
    labels_refused: int = 0  # the run and round hold the opposite label of that answer
    desirable: int = 0  # labels that are true
    mean_margin: float | None = None
    mean_agreement: float | None = None
    dropped: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


# -------------------------------------------------------------------------------------------------- judges to verdict


def combine(said: Mapping[str, Verdict], rule: Rule) -> Verdict | None:
    """One verdict on a pair out of those of the judges that have one; None when there is nothing to go by.

    Exchanging a and b in everything said exchanges them in the result.
    """
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


# ------------------------------------------------------------------------------------------------ verdict to choices


class Sifted(NamedTuple):
    """One prompt's pairs: what is decided, where answers stand, and why the other pairs are out."""

    group: Group
    dropped: Counter[str]


def sift(candidates: Sequence[Candidate], panel: Panel, judges: Sequence[str], rule: Rule) -> Sifted:
    """Every pair of one prompt's answers: a choice, or the reason why it is none (same_text, no_verdict, tie,
    below_margin)."""
    decided: list[Choice] = []
    dropped: Counter[str] = Counter()
    chances: defaultdict[str, list[float]] = defaultdict(list)
    for a, b in matchups.every_pair(candidates):
        said = _verdicts(panel, judges, (a.key, b.key))
        verdict = None if matchups.same_text(a, b) else combine(said, rule)
        if verdict is not None:
            chances[a.key].append(verdict.p_a)
            chances[b.key].append(1 - verdict.p_a)
        reason = _reason(a, b, verdict, rule.min_margin)
        if reason or verdict is None:
            dropped[reason] += 1
            continue
        chosen, rejected = (a, b) if verdict.verdict == "a" else (b, a)
        agreed = sided(said, verdict.verdict)
        decided.append(Choice(chosen, rejected, abs(2 * verdict.p_a - 1), agreed, len(said)))
    standing = {key: math.fsum(sorted(found)) / len(found) for key, found in chances.items()}
    return Sifted(Group(decided, standing), dropped)


def _verdicts(panel: Panel, judges: Sequence[str], pair: Pair) -> dict[str, Verdict]:
    found = ((judge, panel.verdict(judge, pair)) for judge in judges)
    return {judge: verdict for judge, verdict in found if verdict is not None}


def _reason(a: Candidate, b: Candidate, verdict: Verdict | None, min_margin: float) -> str:
    """Why a pair is no choice; empty when it is one."""
    if matchups.same_text(a, b):
        return "same_text"
    if verdict is None:
        return "no_verdict"
    if verdict.verdict == "tie":
        return "tie"
    return "below_margin" if abs(2 * verdict.p_a - 1) < min_margin - verdicts.SAME else ""


def _drawn(choice: Choice, seed: int) -> str:
    """A choice's place in an order drawn by seed."""
    return digest(seed, "pair", choice.chosen.key, choice.rejected.key)


@strategies.register("all")
def every(group: Group, seed: int) -> list[Choice]:
    """Every decided pair, by key."""
    return sorted(group.decided, key=lambda c: (c.chosen.key, c.rejected.key))


@strategies.register("random")
def draw(group: Group, seed: int) -> list[Choice]:
    """One decided pair, drawn by seed."""
    return sorted(group.decided, key=lambda c: _drawn(c, seed))[:1]


@strategies.register("max_margin")
def max_margin(group: Group, seed: int) -> list[Choice]:
    """The pair with the largest margin; of equals one that most judges saw, drawn by seed."""
    return sorted(group.decided, key=lambda c: (-round(c.margin, 9), -c.judges, _drawn(c, seed)))[:1]


@strategies.register("best_worst")
def best_worst(group: Group, seed: int) -> list[Choice]:
    """The best answer over the worst by standing (2310.01377 and 2401.10020 pair so). Where these two were not judged
    against each other, the decided pair whose standings lie farthest apart; of equals one that most judges saw, drawn
    by seed."""

    def apart(choice: Choice) -> float:
        return round(group.standing[choice.chosen.key] - group.standing[choice.rejected.key], 9)

    ahead = [choice for choice in group.decided if apart(choice) > 0]
    return sorted(ahead, key=lambda c: (-apart(c), -round(c.margin, 9), -c.judges, _drawn(c, seed)))[:1]


# ------------------------------------------------------------------------------------------------------------- labels


class Graded(NamedTuple):
    """One answer with its label and the panel's combined score, 0 to 1."""

    candidate: Candidate
    label: bool
    score: float


def grade(
    candidates: Sequence[Candidate],
    panel: Panel,
    judges: Sequence[str],
    rule: Rule,
    standing: Mapping[str, float],
    threshold: float,
) -> list[Graded]:
    """Labels of one prompt's answers; an answer without a usable score has none.

    The score is the lead judge's (combine lead), else the mean over pointwise judges, as a share of the scale; with
    pairwise judges alone, the answer's standing. Where every judge used says whether all was met, that is the label;
    else the score against the threshold.
    """
    used = [judge for judge in judges if judge in panel.scores]
    if rule.combine == "lead":
        used = [judge for judge in used if judge == rule.lead]
    graded = []
    for candidate in sorted((c for c in candidates if c.failure is None), key=lambda c: c.key):
        found = [score for judge in used if (score := panel.scores[judge].get(candidate.key)) is not None]
        if found:
            share = math.fsum(score.share for score in found) / len(found)
            met = [score.all_met for score in found if score.all_met is not None]
            graded.append(Graded(candidate, all(met) if len(met) == len(found) else share >= threshold, share))
        elif not used and candidate.key in standing:
            share = standing[candidate.key]
            graded.append(Graded(candidate, share >= threshold, share))
    return graded


def from_choices(choices: Iterable[Choice]) -> list[Graded]:
    """Labels out of preferences: chosen is desirable, rejected is not; an answer that is both is left out."""
    sides: defaultdict[str, list[Graded]] = defaultdict(list)
    for choice in choices:
        sides[choice.chosen.key].append(Graded(choice.chosen, True, (1 + choice.margin) / 2))
        sides[choice.rejected.key].append(Graded(choice.rejected, False, (1 - choice.margin) / 2))
    single = (found for _, found in sorted(sides.items()) if len({g.label for g in found}) == 1)
    return [
        Graded(found[0].candidate, found[0].label, math.fsum(g.score for g in found) / len(found)) for found in single
    ]


# ---------------------------------------------------------------------------------------------------- into the store


def pair(
    store: Store,
    *,
    run: str,
    round: int = 0,
    strategy: str = "best_worst",
    combine: Combine = "lead",
    lead: str | None = None,
    break_ties: bool = False,
    judges: Sequence[str] | None = None,
    min_margin: float = 0.0,
    tie_margin: float = verdicts.TIE_MARGIN,
    label_by: LabelBy = "threshold",
    threshold: float = 0.5,
    split: str = "train",
    kind: str = "sample",
    seed: int = 0,
) -> PairReport:
    """Preferences and labels from the judgments of a run and round, written to the store; what is there already is not
    doubled.

    `judges` narrows the panel (all that judged by default). `label_by`: threshold (see `grade`), pairs (see
    `from_choices`) or none. A pair whose opposite the run and round hold already is refused (`contradicts_kept`), and
    so is a label (`labels_refused`). FactoryError when there is nothing to pair or the lead is unknown.
    """
    choose = strategies.get(strategy)
    panel = verdicts.read(store.rows(Judgment, {"run": run, "round": round}), tie_margin)
    names = _names(panel, judges, f"run {run!r}, round {round}")
    rule = Rule(combine, _lead(names, combine, lead), break_ties, min_margin, tie_margin)
    groups = _groups(store, {"run": run, "round": round, "split": split, "kind": kind})
    prompts = {prompt.key: prompt for prompt in store.rows(Prompt, {"key": list(groups)})}
    held = _kept(store, run, round)
    kept = set(held)
    labelled = _labelled(store, run, round)
    report = PairReport(prompts=len(groups))
    preferences: list[Preference] = []
    labels: list[Label] = []
    for key, group in groups.items():
        sifted = sift(group, panel, names, rule)
        chosen = choose(sifted.group, seed)
        sound = [c for c in chosen if (c.rejected.key, c.chosen.key) not in kept]
        _tally(report, group, sifted, chosen, sound)
        preferences.extend(_preference(prompts[key], c, run, round, strategy) for c in sound)
        graded = grade(group, panel, names, rule, sifted.group.standing, threshold) if label_by == "threshold" else []
        graded = from_choices(sound) if label_by == "pairs" else graded
        labels.extend(_label(prompts[key], g, run, round, label_by) for g in graded)
    sound_labels = [row for row in labels if labelled.get(row.candidate_key, row.label) == row.label]
    report.labels_refused = len(labels) - len(sound_labels)
    report.written = store.append("preferences", preferences)
    report.held = len(held) + report.written
    report.labels_written = store.append("labels", sound_labels)
    return _finish(report, preferences, sound_labels)


def _names(panel: Panel, judges: Sequence[str] | None, place: str) -> list[str]:
    """The judges whose word counts, sorted. FactoryError when there are none, or one is not known."""
    known = panel.judges()
    if not known:
        raise FactoryError(f"{place} has no judgments", todo="factory label makes them")
    for name in judges or ():
        if name not in known:
            raise unknown_name("judge", name, known)
    return sorted(set(judges)) if judges else known


def _lead(names: Sequence[str], combine: str, lead: str | None) -> str | None:
    if combine not in ("lead", "mean", "majority"):
        raise unknown_name("way to combine judges", combine, ("lead", "mean", "majority"))
    if combine != "lead":
        return None
    if lead is None and len(names) > 1:
        raise FactoryError(f"which judge leads: {', '.join(names)}?", todo="name it, or combine by mean or majority")
    if lead is not None and lead not in names:
        raise unknown_name("judge", lead, names)
    return lead or names[0]


def _groups(store: Store, where: Mapping[str, Any]) -> dict[str, list[Candidate]]:
    """Candidates by prompt, in order of key."""
    groups: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(matchups.current(store.rows(Candidate, where)), key=lambda c: (c.prompt_key, c.key)):
        groups[candidate.prompt_key].append(candidate)
    if not groups:
        said = ", ".join(f"{name} {value}" for name, value in where.items())
        raise FactoryError(
            f"there are no candidates with {said}", where=str(store.folder), todo="factory generate makes them"
        )
    return dict(groups)


def _kept(store: Store, run: str, round: int) -> list[Pair]:
    """(chosen, rejected) of the preferences that the run and round hold."""
    rows = store.read("preferences", columns=["chosen_key", "rejected_key"], where={"run": run, "round": round})
    return [(row["chosen_key"], row["rejected_key"]) for row in rows]


def _labelled(store: Store, run: str, round: int) -> dict[str, bool]:
    """The label that the run and round hold of each answer, by whichever strategy."""
    rows = store.read("labels", columns=["candidate_key", "label"], where={"run": run, "round": round})
    return {row["candidate_key"]: row["label"] for row in rows}


def _tally(
    report: PairReport, group: Sequence[Candidate], sifted: Sifted, chosen: Sequence[Choice], sound: Sequence[Choice]
) -> None:
    """Count one prompt's answers and pairs."""
    failed = sum(c.failure is not None for c in group)
    report.candidates += len(group)
    report.failed_candidates += failed
    report.pairs += math.comb(len(group) - failed, 2)
    reasons = Counter(report.dropped) + sifted.dropped
    reasons["not_picked"] += len(sifted.group.decided) - len(chosen)
    reasons["contradicts_kept"] += len(chosen) - len(sound)
    report.dropped = {reason: n for reason, n in sorted(reasons.items()) if n}


def _finish(report: PairReport, preferences: Sequence[Preference], labels: Sequence[Label]) -> PairReport:
    report.preferences, report.labels = len(preferences), len(labels)
    report.desirable = sum(row.label for row in labels)
    agreed = [row.agreement for row in preferences if row.agreement is not None]
    if preferences:
        report.mean_margin = math.fsum(row.margin for row in preferences) / len(preferences)
        report.mean_agreement = math.fsum(agreed) / len(agreed) if agreed else None
    return report


def _said(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _preference(prompt: Prompt, choice: Choice, run: str, round: int, strategy: str) -> Preference:
    chosen, rejected = choice.chosen, choice.rejected
    return Preference(
        key=digest(run, round, prompt.key, chosen.key, rejected.key, strategy),
        run=run,
        round=round,
        prompt=prompt.messages,
        chosen=_said(chosen.text),
        rejected=_said(rejected.text),
        prompt_key=prompt.key,
        chosen_key=chosen.key,
        rejected_key=rejected.key,
        margin=choice.margin,
        agreement=choice.agreement,
        judges=choice.judges,
        strategy=strategy,
        at=now(),
    )


def _label(prompt: Prompt, graded: Graded, run: str, round: int, strategy: str) -> Label:
    return Label(
        key=digest(run, round, prompt.key, graded.candidate.key, strategy),
        run=run,
        round=round,
        prompt=prompt.messages,
        completion=_said(graded.candidate.text),
        label=graded.label,
        prompt_key=prompt.key,
        candidate_key=graded.candidate.key,
        score=graded.score,
        strategy=strategy,
        at=now(),
    )
