"""What somebody said of answers that were brought in, as judgments of one judge: scores on a scale, and winners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from factory.prompts.scored import Scale
from factory.prompts.shapes import Given, Said
from factory.schema import Judgment, digest, now

READER: Final = "given 1"
_CHANCE: Final = {"a": 1.0, "b": 0.0, "tie": 0.5}
_TURNED: Final = {"a": "b", "b": "a", "tie": "tie"}
_COLUMNS: Final = ("key", "score", "score_low", "score_high", "p_a")


class Readable(Protocol):
    """What is needed of a store."""

    def read(
        self, table: str, *, columns: Sequence[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of a table."""


class Source(NamedTuple):
    """Who judged: the run that the answers are in, the judge's name, and the scale of its scores; None: no ends."""

    run: str
    judge: str
    scale: Scale | None = None


def given_key(run: str, prompt_key: str, text: str) -> str:
    """The key of an answer that was brought in."""
    return digest(run, 0, prompt_key, "given", text)


def judgments_of(given: Given, prompt_key: str, source: Source) -> list[Judgment]:
    """The rows for a prompt's answers, in their order."""
    rows = [_scored(said, prompt_key, source) for said in given.said if said.score is not None]
    if given.winner is None:
        return rows
    first, second = (given_key(source.run, prompt_key, said.text) for said in given.said[:2])
    turned = second < first
    verdict = _TURNED[given.winner] if turned else given.winner
    a, b = (second, first) if turned else (first, second)
    return [*rows, _row(source, prompt_key, a, b=b, kind="pairwise", verdict=verdict, p_a=_CHANCE[verdict])]


def _scored(said: Said, prompt_key: str, source: Source) -> Judgment:
    low, high = said.scale or source.scale or (None, None)
    a = given_key(source.run, prompt_key, said.text)
    return _row(source, prompt_key, a, kind="pointwise", score=said.score, score_low=low, score_high=high)


def _row(source: Source, prompt_key: str, a: str, *, b: str | None = None, kind: str, **said: Any) -> Judgment:
    return Judgment(
        key=digest(source.run, 0, source.judge, a, b, None, "", None, READER),
        run=source.run, judge=source.judge, kind=kind, prompt_key=prompt_key, candidate_a=a, candidate_b=b,
        reader=READER, at=now(), **said,
    )  # fmt: skip


class Verdicts:
    """What the judge has said so far, that nothing contradicts it."""

    def __init__(self, store: Readable, source: Source) -> None:
        self.store = store
        self.source = source
        self._held: dict[str, tuple[Any, ...]] | None = None

    def fault(self, judgments: Iterable[Judgment]) -> str:
        """Why a row's judgments cannot be taken: a score beyond the scale, or another verdict on the same answers than
        one that was taken before. Empty: they are taken."""
        new: dict[str, tuple[Any, ...]] = {}
        for row in judgments:
            said = (row.score, row.score_low, row.score_high, row.p_a)
            if _beyond(row):
                return f"the score {row.score:g} is not on the scale of {row.score_low:g} to {row.score_high:g}"
            if {said} != {self._so_far().get(row.key, said), new.setdefault(row.key, said)}:
                by = f"by the judge {self.source.judge!r}"
                return f"the same answer is there already, with another score, scale or winner {by}"
        if new:
            self._so_far().update(new)
        return ""

    def _so_far(self) -> dict[str, tuple[Any, ...]]:
        if self._held is None:
            where = {"run": self.source.run, "judge": self.source.judge}
            held = self.store.read("judgments", columns=_COLUMNS, where=where)
            self._held = {row["key"]: tuple(row[column] for column in _COLUMNS[1:]) for row in held}
        return self._held


def _beyond(row: Judgment) -> bool:
    """Is the score not on its scale?"""
    if row.score is None or row.score_low is None or row.score_high is None:
        return False
    return not row.score_low <= row.score <= row.score_high


def margin_of(given: Given, scale: Scale | None) -> float:
    """How much better the chosen answer is, as a share of the scale; 1 where no scale or not both scores are known."""
    scores = [said.score for said in given.said]
    if scale is None or len(scores) != 2 or scores[0] is None or scores[1] is None:
        return 1.0
    return (scores[0] - scores[1]) / (scale[1] - scale[0])
