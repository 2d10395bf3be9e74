"""People as a judge: their verdicts come from a file, and a sheet to be filled in is written for them.

    {"candidate_a": KEY, "candidate_b": KEY, "verdict": "a" | "b" | "tie" | KEY OF THE BETTER, "person": NAME}
    {"candidate_a": KEY, "score": 4, "person": NAME}

A line of JSON or a row of a CSV each. A row without verdict and score is one that nobody has filled in yet. Which of
the two answers a row calls a does not matter: all is turned into canonical order (a < b).
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from factory.faults import ConfigError, FactoryError
from factory.judges import votes
from factory.schema import Candidate, Judgment, Matchup, Reading, digest, text_of
from factory.store.filesystem import write_whole

READER = "1"
SHOWN = 20  # faults listed of one file
COLUMNS = ("prompt", "answer_a", "answer_b", "verdict", "person", "candidate_a", "candidate_b")
"""Of the sheet."""

Kind = Literal["pointwise", "pairwise"]
Word = Literal["a", "b", "tie"]


class Given(NamedTuple):
    """What one person said of a pair (canonical order, a < b: `verdict`) or of one candidate (`score`)."""

    candidate_a: str
    candidate_b: str | None
    verdict: Word | None
    score: float | None
    person: str


# ----------------------------------------------------------------------------------------------------- the file


def read_verdicts(path: Path | str) -> list[Given]:
    """What a CSV or JSONL file of verdicts says, in its order; the same said twice is said once.

    ConfigError with every fault of the file: rows that cannot be read, and one person's verdicts on one question that
    contradict each other.
    """
    where = Path(path).expanduser()
    faults: list[str] = []
    said: dict[tuple[str, str, str | None], tuple[int, Given]] = {}
    for line, row in _rows(where, faults):
        given = _given(line, row, faults)
        if given is None:
            continue
        question = (given.person, given.candidate_a, given.candidate_b)
        earlier, held = said.setdefault(question, (line, given))
        if held != given:
            by = f" by {given.person}" if given.person else ""
            faults.append(f"line {line}: another verdict{by} than in line {earlier} on the same question")
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise ConfigError([*faults[:SHOWN], *more], where=str(where), todo="mend these lines")
    return [given for _, given in said.values()]


def _rows(path: Path, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, columns) of each row that can be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FactoryError("the file of verdicts is not UTF-8", where=str(path), todo="save it as UTF-8") from error
    except OSError as error:
        raise FactoryError(f"the file of verdicts cannot be read: {error.strerror}", where=str(path)) from error
    ending = path.suffix.lower()
    if ending == ".csv":
        yield from _csv_rows(text, faults)
    elif ending in (".jsonl", ".ndjson", ".json"):
        yield from _json_rows(text, faults)
    else:
        raise FactoryError(f"verdicts are read from .csv and .jsonl, not {ending or path.name!r}", where=str(path))


def _json_rows(text: str, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError) as error:
            faults.append(f"line {line}: not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield line, row
        else:
            faults.append(f"line {line}: a row must be an object, not {type(row).__name__}")


def _csv_rows(text: str, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 2
    while True:
        try:
            row: dict[Any, Any] | None = next(reader, None)
        except csv.Error as error:
            faults.append(f"line {line}: not CSV: {error}")
            return
        if row is None:
            return
        if None in row or None in row.values():
            faults.append(f"line {line}: not as many cells as columns")
        else:
            yield line, row
        line = reader.line_num + 1


def _given(line: int, row: Mapping[str, Any], faults: list[str]) -> Given | None:
    """The row as a verdict; None, with its faults told, when it is none, and None when it is not filled in."""
    try:
        score, word = _score(row.get("score")), _text(row, "verdict")
        if score is None and not word:
            return None
        a, b, person = _text(row, "candidate_a"), _text(row, "candidate_b"), _text(row, "person")
        if not a:
            raise ValueError("no candidate_a")
        if score is not None and word:
            raise ValueError("a verdict and a score in one row")
        if score is not None:
            if b:
                raise ValueError("a score is of one candidate, and candidate_b names a second")
            return Given(a, None, None, score, person)
        return _pair(a, b, word, person)
    except ValueError as fault:
        faults.append(f"line {line}: {fault}")
        return None


def _pair(a: str, b: str, word: str, person: str) -> Given:
    if not b:
        raise ValueError("a verdict is on two candidates, and there is no candidate_b")
    if a == b:
        raise ValueError("candidate_a and candidate_b are the same")
    named: dict[str, Word] = {"a": "a", "b": "b", "tie": "tie", a: "a", b: "b"}
    verdict = named.get(word) or named.get(word.lower())
    if verdict is None:
        raise ValueError(f"verdict must be a, b, tie or the key of the better candidate, not {word!r}")
    if a < b:
        return Given(a, b, verdict, None, person)
    turned: dict[Word, Word] = {"a": "b", "b": "a", "tie": "tie"}
    return Given(b, a, turned[verdict], None, person)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{column} must be a text, not {value!r}")
    return str(value).strip()


def _score(value: Any) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"score must be a number, not {value!r}")
    return score


# ----------------------------------------------------------------------------------------------------- the judge


class HumanJudge:
    """Gives the verdicts of `file`: of one `person`, or of all, whose votes on a question are averaged.

    `kind` is that of the file; it must be said when the file holds both. Scores need their scale, `low` and `high`.
    """

    partial = True
    """It was not asked about everything: where it says nothing, nothing failed."""

    def __init__(
        self,
        name: str = "human",
        *,
        file: str,
        person: str | None = None,
        kind: Kind | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        given = [row for row in read_verdicts(file) if person is None or row.person == person]
        if not given:
            whose = "" if person is None else f" by {person!r}"
            raise FactoryError(f"there are no verdicts{whose}", where=str(file))
        self.name = name
        self.person = person
        self.kind = _kind(given, kind, file)
        self.low, self.high = low, high
        self._said = _by_question(row for row in given if (row.candidate_b is None) == (self.kind == "pointwise"))
        self._heard: set[tuple[str, str | None]] = set()
        if self.kind == "pointwise":
            _check_scale(self._said, low, high, file)
        # Other verdicts are another reading: what is held of them is not taken for these.
        self.reader = f"{READER}, {digest(sorted(given, key=str), low, high)[:12]}"

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        """One judgment for each matchup that somebody judged; none for a canary, which nobody was shown."""
        for matchup in matchups:
            question = (matchup.a.key, matchup.b.key if matchup.b else None)
            said = self._said.get(question)
            if said and matchup.canary is None:
                self._heard.add(question)
                yield votes.judgment(self, matchup.a, self.read(said), b=matchup.b)

    @property
    def unheard(self) -> int:
        """Questions of the file that no matchup asked so far: answers of another run, or pairs that were not chosen."""
        return len(self._said.keys() - self._heard)

    def read(self, said: Sequence[Given]) -> Reading:
        """The votes on one question as a reading: the mean of scores, or of verdicts as 1, 1/2 and 0."""
        persons = {vote.person: vote.verdict or vote.score for vote in said}
        detail = {"persons": persons} if any(persons) else None
        if self.kind == "pointwise":
            mean = math.fsum(vote.score or 0.0 for vote in said) / len(said)
            return Reading(score=mean, score_low=self.low, score_high=self.high, detail=detail)
        worth: dict[Word | None, float] = {"a": 1.0, "tie": 0.5, "b": 0.0}
        p_a = math.fsum(worth[vote.verdict] for vote in said) / len(said)
        return Reading(verdict="tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b", p_a=p_a, detail=detail)


def _kind(given: Sequence[Given], wanted: Kind | None, file: str) -> Kind:
    found: set[Kind] = {"pointwise" if row.candidate_b is None else "pairwise" for row in given}
    if wanted is None and len(found) > 1:
        raise FactoryError(
            "the file holds both verdicts on pairs and scores", where=str(file), todo="set kind: pairwise or pointwise"
        )
    kind = wanted or min(found)
    if kind not in found:
        what = "verdicts on pairs" if kind == "pairwise" else "scores"
        raise FactoryError(f"the file holds no {what}", where=str(file))
    return kind


def _by_question(given: Iterable[Given]) -> dict[tuple[str, str | None], list[Given]]:
    said: defaultdict[tuple[str, str | None], list[Given]] = defaultdict(list)
    for row in given:
        said[row.candidate_a, row.candidate_b].append(row)
    return dict(said)


def _check_scale(
    said: Mapping[tuple[str, str | None], Sequence[Given]], low: float | None, high: float | None, file: str
) -> None:
    if low is None or high is None or not low < high:
        raise FactoryError("scores need their scale", where=str(file), todo="set low and high, such as low=1, high=5")
    outside = [vote.score for each in said.values() for vote in each if not low <= (vote.score or 0.0) <= high]
    if outside:
        raise FactoryError(
            f"{len(outside)} scores are not on the scale from {low:g} to {high:g}, such as {outside[0]:g}",
            where=str(file), todo="mend them, or set low and high",
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- the sheet


def sheet(matchups: Iterable[Matchup], path: Path | str, *, seed: int = 0, person: str = "") -> int:
    """Write pairs to be judged by a person as CSV or JSONL, the column `verdict` empty, and give their number.

    The order of the pairs is drawn by `seed`, and so is which answer is called a: people like what they see first. In
    a CSV a text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    where = Path(path).expanduser()
    if where.exists():
        raise FactoryError("the sheet is there already", where=str(where), todo="name another file, or move this one")
    rows = [_sheet_row(m, seed, person) for m in matchups if m.b is not None and m.canary is None]
    rows.sort(key=lambda row: digest(seed, "sheet", *sorted((row["candidate_a"], row["candidate_b"]))))
    if where.suffix.lower() == ".csv":
        text = _as_csv(rows)
    elif where.suffix.lower() in (".jsonl", ".ndjson"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        raise FactoryError(f"a sheet is a .csv or a .jsonl file, not {where.name!r}", where=str(where))
    write_whole(where, text)
    return len(rows)


def _sheet_row(matchup: Matchup, seed: int, person: str) -> dict[str, str]:
    first, second = _shown(matchup, seed)
    values = (
        text_of(matchup.prompt.messages), first.text, second.text, "", person, first.key, second.key,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _shown(matchup: Matchup, seed: int) -> tuple[Candidate, Candidate]:
    a, b = matchup.a, matchup.b or matchup.a
    turn = random.Random(digest(seed, "side", a.key, b.key)).random() < 0.5  # noqa: S311 - not a secret
    return (b, a) if turn else (a, b)


def _as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
