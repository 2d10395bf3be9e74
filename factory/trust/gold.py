"""Gold: what people said of a part of the pairs, from a file of verdicts or from a judge that the store holds.

Where several people judged a pair, gold is the mean of their votes: a or b by its side of 1/2, a tie in the middle.
Scores of single answers are read as verdicts on every two answers to one prompt, by person.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from factory.faults import FactoryError
from factory.trust.evidence import Evidence
from factory.verdicts import Pair

if TYPE_CHECKING:
    from factory.judges.human import Given

Word = Literal["a", "b", "tie"]
WORTH: dict[Word, float] = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True)
class Gold:
    """People's verdicts: by person and pair (canonical order), their scores by candidate (mean over people), and
    what of the source could not be used."""

    source: str
    people: Mapping[str, Mapping[Pair, Word]]
    scores: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def pairs(self) -> dict[Pair, Word]:
        """One verdict a pair: the mean of the people's votes."""
        votes: defaultdict[Pair, list[float]] = defaultdict(list)
        for said in self.people.values():
            for pair, word in said.items():
                votes[pair].append(WORTH[word])
        return {pair: _word(math.fsum(found) / len(found)) for pair, found in sorted(votes.items())}


def _word(p_a: float) -> Word:
    return "tie" if abs(p_a - 0.5) < 1e-9 else "a" if p_a > 0.5 else "b"


def find_gold(named: str, found: Evidence) -> Gold:
    """Gold by the name of a judge of the run, else from a file of verdicts. FactoryError when it is neither, or has
    nothing to say of the run's answers."""
    if named in found.said:
        gold = from_judge(named, found)
    elif Path(named).expanduser().exists():
        from factory.judges.human import read_verdicts

        gold = from_rows(named, read_verdicts(named), found)
    else:
        raise FactoryError(
            f"{named!r} is neither a file nor a judge of this run",
            todo=f"name a .csv or .jsonl of verdicts, or one of {', '.join(found.judges)}",
        )
    if not gold.people:
        raise FactoryError(
            "gold has no verdict on two answers of this run" + "".join(f"; {note}" for note in gold.notes),
            where=named,
            todo="verdicts name their answers by candidates.key; --escalate writes a sheet to be filled in",
        )
    return gold


def from_judge(judge: str, found: Evidence) -> Gold:
    """A judge of the run as gold; each of its people where it tells them apart (as `human` does)."""
    people: defaultdict[str, dict[Pair, Word]] = defaultdict(dict)
    scores: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for row in found.rows:
        if row.judge != judge or row.canary or row.failure is not None:
            continue
        persons = row.detail.get("persons") if isinstance(row.detail, Mapping) else None
        for person, vote in (persons or {}).items():
            if row.candidate_b is None and isinstance(vote, int | float):
                scores[person][row.candidate_a] = float(vote)
            elif row.candidate_b is not None and vote in WORTH:
                people[person][row.candidate_a, row.candidate_b] = vote
    if not people and not scores:
        people[judge] = {pair: verdict.verdict for pair, verdict in found.said[judge].items()}
    for person, given in scores.items():
        people[person] |= _by_scores(given, found)
    values = found.panel.scores.get(judge, {})
    means = {key: score.value for key, score in values.items() if score is not None}
    return Gold(judge, {person: said for person, said in people.items() if said}, means)


def from_rows(source: str, rows: Iterable[Given], found: Evidence) -> Gold:
    """Gold from a file's rows; those on other answers than this run's are counted in a note."""
    people: defaultdict[str, dict[Pair, Word]] = defaultdict(dict)
    scores: defaultdict[str, dict[str, float]] = defaultdict(dict)
    strange = 0
    for row in rows:
        keys = [row.candidate_a] + ([row.candidate_b] if row.candidate_b else [])
        if any(key not in found.candidates for key in keys):
            strange += 1
        elif row.candidate_b is not None and row.verdict is not None:
            people[row.person][row.candidate_a, row.candidate_b] = row.verdict
        elif row.score is not None:
            scores[row.person][row.candidate_a] = row.score
    by_answer: defaultdict[str, list[float]] = defaultdict(list)
    for person, given in scores.items():
        people[person] = _by_scores(given, found) | people[person]
        for key, score in given.items():
            by_answer[key].append(score)
    notes = (f"{strange} verdicts are on answers that are not among these",) if strange else ()
    means = {key: math.fsum(values) / len(values) for key, values in by_answer.items()}
    return Gold(source, {person: said for person, said in people.items() if said}, means, notes)


def _by_scores(scores: Mapping[str, float], found: Evidence) -> dict[Pair, Word]:
    """One person's scores as verdicts on every two answers to one prompt."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in sorted(scores):
        groups[found.prompts.get(key, key)].append(key)
    return {
        (a, b): "tie" if scores[a] == scores[b] else "a" if scores[a] > scores[b] else "b"
        for group in groups.values()
        for i, a in enumerate(group)
        for b in group[i + 1 :]
    }
