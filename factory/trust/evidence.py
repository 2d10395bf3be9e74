"""What the judges of a run said of pairs of answers, ready to be measured.

A judge of single answers is read on every pair of answers to one prompt, by its two scores; a judge of pairs on those
that it was shown. Batches in quarantine are left out unless they are asked for.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from factory import verdicts
from factory.faults import FactoryError
from factory.labelling.matchups import current
from factory.schema import Candidate, Judgment
from factory.verdicts import Pair, Verdict

if TYPE_CHECKING:
    from factory.store import Store

Said = Mapping[Pair, Verdict]


@dataclass(frozen=True)
class Evidence:
    """The latest judgments of a run, its answers, and the verdicts on pairs by judge and pair (canonical order)."""

    rows: Sequence[Judgment]
    candidates: Mapping[str, Candidate]
    prompts: Mapping[str, str]  # prompts.key by candidate
    panel: verdicts.Panel
    said: Mapping[str, Said]
    quarantine: Mapping[str, verdicts.Quarantine]  # by batch, whether left out or not
    tie_margin: float

    @property
    def judges(self) -> list[str]:
        """All that judged, also those of whom nothing counts; sorted."""
        return list(self.said)

    def prompt(self, pair: Pair) -> str:
        """The prompt of a pair: what is taken for independent."""
        return self.prompts.get(pair[0], pair[0])

    def author(self, key: str) -> str:
        """The model that wrote a candidate; with the kind where it is a draft, a revision or the like."""
        candidate = self.candidates[key]
        plain = candidate.kind in ("sample", "given")
        return candidate.model if plain else f"{candidate.model} ({candidate.kind})"

    def pairs(self) -> list[Pair]:
        """Every pair that any judge gave a verdict on, sorted."""
        return sorted({pair for said in self.said.values() for pair in said})


def gather(
    store: Store,
    *,
    run: str,
    round: int | None = None,
    split: str | None = None,
    tie_margin: float = verdicts.TIE_MARGIN,
    keep_quarantined: bool = False,
) -> Evidence:
    """The evidence of a run (of one round, of one split). FactoryError when it has no judgments."""
    where: dict[str, Any] = {"run": run} | ({} if round is None else {"round": round})
    candidates = store.rows(Candidate, where | ({} if split is None else {"split": split}))
    prompts = {c.prompt_key for c in candidates}
    kept = current(candidates)
    replaced = {c.key for c in candidates} - {c.key for c in kept}
    held = (row for row in store.rows(Judgment, where) if row.candidate_a not in replaced)
    judgments = [row for row in held if split is None or row.prompt_key in prompts]
    if not judgments:
        raise FactoryError(
            f"run {run!r} has no judgments" + ("" if round is None else f" in round {round}"),
            where=str(store.folder),
            todo="factory label makes them",
        )
    return evidence(judgments, candidates, tie_margin, keep_quarantined=keep_quarantined)


def evidence(
    judgments: Iterable[Judgment],
    candidates: Iterable[Candidate],
    tie_margin: float = verdicts.TIE_MARGIN,
    *,
    keep_quarantined: bool = False,
) -> Evidence:
    """The same from rows."""
    rows = verdicts.latest(judgments)
    answers = {c.key: c for c in candidates}
    panel = verdicts.read(rows, tie_margin, quarantine=not keep_quarantined)
    pairs = _pairs(answers.values())
    told = {row.candidate_a: row.prompt_key for row in rows}
    return Evidence(
        rows=rows,
        candidates=answers,
        prompts=told | {c.key: c.prompt_key for c in answers.values()},
        panel=panel,
        said={judge: _said(panel, judge, pairs) for judge in sorted({row.judge for row in rows})},
        quarantine=verdicts.quarantined(rows, tie_margin),
        tie_margin=tie_margin,
    )


def _pairs(candidates: Iterable[Candidate]) -> list[Pair]:
    """Every pair of answers to one prompt, in canonical order."""
    groups: defaultdict[tuple[str, str, int, str], list[str]] = defaultdict(list)
    for candidate in candidates:
        if candidate.failure is None:
            groups[candidate.prompt_key, candidate.run, candidate.round, candidate.kind].append(candidate.key)
    return [pair for _, group in sorted(groups.items()) for pair in itertools.combinations(sorted(group), 2)]


def _said(panel: verdicts.Panel, judge: str, pairs: Sequence[Pair]) -> Said:
    """A judge's verdicts on pairs: those it was asked about, or all that its scores order."""
    if judge in panel.pairs:
        return {pair: verdict for pair, verdict in panel.pairs[judge].items() if verdict is not None}
    found = ((pair, panel.verdict(judge, pair)) for pair in pairs)
    return {pair: verdict for pair, verdict in found if verdict is not None}
