"""The verifier: a judge that is a program. It scores an answer by the share of its prompt's constraints that are met.

An answer below the floor on substance (`factory/constraints/substance.py`) scores 0, whatever it meets; `detail` keeps
both, so that a reading of the raw share stays possible.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from factory import constraints
from factory.execution import Runner, imported
from factory.faults import ConfigError, FactoryError
from factory.judges import options, votes
from factory.schema import Candidate, Judgment, Matchup, Prompt, Reading, digest

READER = "3"
"""Version of what the constraints and the floor on substance mean."""
BATCH = 64  # answers whose code is run together


class VerifierJudge:
    """Pointwise and deterministic; instant where no code is run.

    least: content words that the floor on substance asks for. code: a file of Python whose `check(prompt, answer)` is
    one more constraint on every answer, run for `seconds` at most. unsafe_exec: code may run without isolation, where
    there is none. workers: pieces of code that run at a time.
    """

    kind: Literal["pointwise", "pairwise"] = "pointwise"

    def __init__(
        self,
        name: str = "verifier",
        *,
        least: int = constraints.CONTENT_WORDS,
        code: str | None = None,
        seconds: float = 5.0,
        unsafe_exec: bool = False,
        workers: int | None = None,
    ) -> None:
        options.check(
            name,
            {
                f"least: must be 0 or more, not {least}": least >= 0,
                f"seconds: must be above 0, not {seconds}": seconds > 0,
            }
            | options.count("workers", workers, optional=True),
        )
        self.name = name
        self.least = least
        self.unsafe_exec = unsafe_exec
        self.workers = workers or min(4, os.cpu_count() or 1)
        self._source = _read_code(code) if code is not None else ""
        self._own = [{"kind": "python", "code": self._source, "seconds": seconds}] if self._source else []
        self._runner: Runner | None = None
        self._starting = threading.Lock()
        floor = "" if least == constraints.CONTENT_WORDS else f", least {least}"
        own = f", code {digest(self._own)[:12]}" if self._own else ""
        self.reader = f"{READER}{floor}{own}"  # another floor or check is another reading: what is held is not taken

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        """One judgment for each candidate of each matchup (of a pair: a, then b). FactoryError: an answer is judged by
        running code, and code cannot be isolated here."""
        answers = votes.answers(matchups)
        while batch := list(islice(answers, BATCH)):
            given = [(prompt, candidate) for prompt, candidate, _ in batch]
            for (_, candidate, canary), reading in zip(batch, self._readings(given), strict=True):
                yield votes.judgment(self, candidate, reading, canary=canary)

    def _readings(self, given: Sequence[tuple[Prompt, Candidate]]) -> Iterable[Reading]:
        """What is said of each answer, in order; several at a time where code is run."""
        if self.workers == 1 or not any(constraints.runs_code(self._wanted(prompt)) for prompt, _ in given):
            return (self.read(prompt, candidate) for prompt, candidate in given)
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda answer: self.read(*answer), given))

    def read(self, prompt: Prompt, candidate: Candidate) -> Reading:
        """What the constraints say of the answer: a score on 0 to 1 with its detail, or why there is none."""
        wanted = self._wanted(prompt)
        if candidate.failure:
            return Reading(failure="candidate_failed")
        if not wanted:
            return Reading(failure="no_constraints")
        try:
            runner = self._open() if constraints.runs_code(wanted) else None
            verdict = constraints.verify(wanted, candidate.text, prompt, least=self.least, runner=runner)
        except ConfigError as error:
            return Reading(failure="bad_constraints", detail={"faults": list(error.faults)})
        detail = _detail(wanted, verdict)
        if verdict.failure:
            return Reading(failure=verdict.failure, detail=detail)
        score = verdict.share if verdict.substance.met else 0.0
        return Reading(score=score, score_low=0.0, score_high=1.0, detail=detail)

    def close(self) -> None:
        """End the processes that run code; they are started again when they are needed again."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None

    def _wanted(self, prompt: Prompt) -> Any:
        """The prompt's constraints, and the judge's own."""
        return [*(prompt.constraints or []), *self._own] if self._own else prompt.constraints

    def _open(self) -> Runner:
        with self._starting:
            if self._runner is None:
                self._runner = Runner(
                    workers=self.workers, unsafe_exec=self.unsafe_exec, modules=imported(self._source)
                )
            return self._runner


def _read_code(path: str) -> str:
    """The source of the user's check. FactoryError: it cannot be read, or is no check."""
    try:
        source = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FactoryError(f"the code of the check cannot be read: {error}", where=path) from error
    fault = constraints.programs.code_fault(source)
    if fault:
        raise FactoryError(f"the code of the check {fault}", where=path, todo="define check(prompt, answer) in it")
    return source


def _detail(wanted: Iterable[Mapping[str, Any]], verdict: constraints.Verdict) -> dict[str, Any]:
    by_kind: dict[str, list[bool]] = {}
    for constraint, check in zip(wanted, verdict.checks, strict=True):
        by_kind.setdefault(constraint["kind"], []).append(check.met)
    return {
        "met": [c.met for c in verdict.checks],
        **({"shares": [c.worth for c in verdict.checks]} if any(c.share is not None for c in verdict.checks) else {}),
        "why": [c.why[:200] for c in verdict.checks],
        "by_kind": {kind: sum(met) / len(met) for kind, met in by_kind.items()},
        "share": verdict.share,
        "all_met": verdict.all_met,
        "substance": verdict.substance.met,
        "substance_why": verdict.substance.why,
    }
