"""What was found, as rows in the store; and what the user should know of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from factory.pairing.finding import Found, Kept, PairReport, Picked, Wanted
from factory.pairing.grading import Graded, weigh
from factory.pairing.sifting import length_ratio
from factory.schema import Label, Message, Preference, Prompt, digest, now
from factory.verdicts import Pair

if TYPE_CHECKING:
    from factory.store import Store

COMMIT = 2000
"""Rows in one commit: all at once, those of a large round would keep every other writer of the store waiting."""


def kept_in(store: Store, wanted: Wanted) -> Kept:
    """What the store holds of the run and round."""
    where = {"run": wanted.run, "round": wanted.round}
    pairs: defaultdict[str, set[Pair]] = defaultdict(set)
    for row in store.read("preferences", columns=["chosen_key", "rejected_key", "strategy"], where=where):
        pairs[row["strategy"]].add((row["chosen_key"], row["rejected_key"]))
    name = _label_name(store, wanted)
    labels = store.read("labels", columns=["candidate_key", "label"], where=where | {"strategy": name})
    return Kept(dict(pairs), {row["candidate_key"]: row["label"] for row in labels}, name)


def _label_name(store: Store, wanted: Wanted) -> str:
    """What labels go by: the pairing's name. Labels of pairings without a name once went by the way to label; a round
    that holds such goes on with them, so that nothing is labelled twice."""
    older = {"run": wanted.run, "round": wanted.round, "strategy": wanted.labels.by}
    if wanted.called is None and store.read("labels", columns=["key"], where=older):
        return wanted.labels.by
    return wanted.name


def write(store: Store, found: Found, wanted: Wanted) -> PairReport:
    """Append what was found, and hand back the report, complete."""
    report = found.report
    prompts = {prompt.key: prompt for prompt in store.rows(Prompt, {"key": sorted(set(found.prompt_of.values()))})}
    preferences = [_preference(prompts[p.prompt_key], p, wanted) for p in found.picked]
    sound = [g for g in found.labels.graded if found.kept.labels.get(g.candidate.key, g.label) == g.label]
    weights = weigh(sound, wanted.labels.weights)
    weighed = [(g, weight) for g, weight in zip(sound, weights, strict=True) if weight > 0]
    name = found.kept.label_name
    labels = [_label(prompts[found.prompt_of[g.candidate.key]], g, weight, wanted, name) for g, weight in weighed]
    report.labels_refused = len(found.labels.graded) - len(sound)
    dropped = Counter(found.labels.dropped) + Counter(no_weight=len(sound) - len(weighed))
    report.labels_dropped = {reason: n for reason, n in sorted(dropped.items()) if n}
    report.written = _append(store, "preferences", preferences)
    report.labels_written = _append(store, "labels", labels)
    _count(report, preferences, labels, found)
    _held(report, found, wanted)
    report.warnings.extend(_warnings(report, found, wanted))
    return report


def _append(store: Store, table: str, rows: Sequence[Preference | Label]) -> int:
    """Write rows, so many in one commit, between which others write; how many were new."""
    return sum(store.append(table, rows[place : place + COMMIT]) for place in range(0, len(rows), COMMIT))


def _count(report: PairReport, preferences: Sequence[Preference], labels: Sequence[Label], found: Found) -> None:
    report.preferences, report.labels = len(preferences), len(labels)
    report.flipped = sum(row.flipped for row in preferences)
    report.labels_flipped = sum(row.flipped for row in labels)
    report.desirable = sum(row.label for row in labels)
    report.mean_margin = _mean(row.margin for row in preferences)
    report.mean_agreement = _mean(row.agreement for row in preferences)
    report.mean_probability = _mean(row.probability for row in preferences)
    report.mean_length_ratio = _mean(length_ratio(p.choice) for p in found.picked)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _held(report: PairReport, found: Found, wanted: Wanted) -> None:
    now_held = {name: set(pairs) for name, pairs in found.kept.pairs.items()}
    now_held.setdefault(wanted.name, set()).update(_keys(found))
    report.held_by = {name: len(pairs) for name, pairs in sorted(now_held.items()) if pairs}
    report.held = sum(report.held_by.values())


def _keys(found: Found) -> set[Pair]:
    return {(p.choice.chosen.key, p.choice.rejected.key) for p in found.picked}


def _warnings(report: PairReport, found: Found, wanted: Wanted) -> Iterable[str]:
    """What the user should know before training on this."""
    if wanted.flip:
        yield (
            f"{report.flipped} of {report.preferences} preferences and {report.labels_flipped} of {report.labels} "
            f"labels are turned about on purpose (flip {wanted.flip:g}): column flipped"
        )
    if report.labels and report.desirable in (0, report.labels):
        which = "desirable" if report.desirable else "undesirable"
        yield (
            f"all {report.labels} labels are {which}: KTO and its like learn from both kinds "
            "(another threshold, or labels by quantile)"
        )
    others = [f"{name} ({n})" for name, n in report.held_by.items() if name != wanted.name]
    if others:
        yield (
            f"the run and round hold preferences of {', '.join(others)} too: "
            "training takes those of one name, which has to be given"
        )
    labelled = {(graded.candidate.key, graded.label) for graded in found.labels.graded}
    earlier = [
        ("preferences", wanted.name, len(found.kept.pairs.get(wanted.name, set()) - _keys(found))),
        (
            "labels",
            found.kept.label_name,
            0 if wanted.labels.by == "none" else len(found.kept.labels.items() - labelled),
        ),
    ]
    for rows, name, count in earlier:
        if count:
            yield (
                f"the run and round hold {count} {rows} of {name} that an earlier call made and this one "
                "does not: training takes them too; to keep them apart, give this pairing a name of its own"
            )


def _said(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _preference(prompt: Prompt, picked: Picked, wanted: Wanted) -> Preference:
    choice = picked.choice
    chosen, rejected = choice.chosen, choice.rejected
    return Preference(
        key=digest(wanted.run, wanted.round, prompt.key, chosen.key, rejected.key, wanted.name),
        run=wanted.run,
        round=wanted.round,
        prompt=prompt.messages,
        tools=prompt.tools,
        chosen=_said(chosen.text),
        rejected=_said(rejected.text),
        prompt_key=prompt.key,
        chosen_key=chosen.key,
        rejected_key=rejected.key,
        margin=choice.margin,
        agreement=choice.agreement,
        judges=choice.judges,
        probability=choice.probability,
        entropy=choice.entropy,
        weight=picked.weight,
        flipped=picked.flipped,
        strategy=wanted.name,
        at=now(),
    )


def _label(prompt: Prompt, graded: Graded, weight: float, wanted: Wanted, name: str) -> Label:
    return Label(
        key=digest(wanted.run, wanted.round, prompt.key, graded.candidate.key, name),
        run=wanted.run,
        round=wanted.round,
        prompt=prompt.messages,
        tools=prompt.tools,
        completion=_said(graded.candidate.text),
        label=graded.label,
        prompt_key=prompt.key,
        candidate_key=graded.candidate.key,
        score=graded.score,
        weight=weight,
        flipped=graded.flipped,
        strategy=name,
        at=now(),
    )
