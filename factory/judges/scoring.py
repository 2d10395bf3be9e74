"""What judges have in common that are models in memory and score answers: a vote from readings, and letting go."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch

from factory.judges import votes
from factory.schema import Candidate, Judgment, Matchup, Prompt, Reading


class ScoringJudge(ABC):
    """Scores every answer by a model, which is loaded when it is first needed and stays until `close`."""

    kind: Literal["pointwise", "pairwise"] = "pointwise"
    name: str
    model: str
    device: str
    _loaded: Any = None

    @property
    @abstractmethod
    def reader(self) -> str:
        """Version of what its readings mean: another model or setting is another one."""

    @abstractmethod
    def read(self, answers: Sequence[tuple[Prompt, Candidate]]) -> list[Reading]:
        """The score of each answer, or its failure."""

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        """One judgment for each candidate of each matchup, in order."""
        asked = list(votes.answers(matchups))
        if not asked:
            return
        readings = self.read([(prompt, candidate) for prompt, candidate, _ in asked])
        for (_, candidate, canary), reading in zip(asked, readings, strict=True):
            yield votes.judgment(self, candidate, reading, model=self.model, canary=canary)

    def close(self) -> None:
        """Free the memory; what was loaded is loaded again when it is needed again."""
        self._loaded = None
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
