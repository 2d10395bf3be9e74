"""Rows that the policy samples as it learns: a source of batches for methods on groups, and for pairs made on the spot.

    prompts of the step --sampler, live weights--> n answers each --reward--> advantages, or best over worst

The sampler reads the module in training itself. What it takes to train on the answers (log-probs under the weights that
sampled them and under the reference, a critic's values) is scored here, by the forward that training uses, so that the
first update's ratio is 1 to the last bit. A batch is a function of the weights and of the step: a training that was
killed draws the same again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from factory.schema import digest, seed_of
from train.advantages import Sampled, ways
from train.batches import Batch, Row
from train.config import OnlineSpec
from train.data import Ids, PairRow, SampleRow
from train.losses import Objective
from train.packing import Group


class Sampler(Protocol):
    """Draws answers with the weights as they are now."""

    def __call__(self, prompts: Sequence[Ids], seeds: Sequence[int], spec: OnlineSpec) -> list[Ids]:
        """One answer for each prompt (the same prompt may come several times): token ids, the end token included unless
        the answer was cut."""


class Reward(Protocol):
    """Judges answers. None: the judge had no verdict, and the answer is left out."""

    def __call__(self, answers: Sequence[tuple[Ids, Ids]]) -> list[float | None]:
        """A reward for each (prompt, answer)."""


class TokenScores(NamedTuple):
    """Log-probs of one answer's tokens, (tokens,), and a critic's values of them."""

    logps: Tensor
    values: Tensor | None = None


class Models(Protocol):
    """The models that an online training has: the one in training, its reference, an anchor."""

    def score(self, groups: Sequence[Group], *, critic: bool = False) -> list[TokenScores]:
        """Of every completion, in order, under the policy as it is; no gradient."""

    def reference(self) -> AbstractContextManager[Any]:
        """While it is open, `score` asks the reference."""

    def anchor(self) -> AbstractContextManager[Any]:
        """While it is open, `score` and sampling ask the anchor."""

    def follow(self, rate: float) -> None:
        """The anchor's weights go `rate` of the way to the policy's."""

    def state(self) -> dict[str, Tensor]:
        """The anchor's weights, by name."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put the anchor's weights back."""


@dataclass
class OnlineRows:
    """See the module. `prompts`: token ids, each once. Rows of a step are kept for its `updates`."""

    prompts: Sequence[Ids]
    spec: OnlineSpec
    objective: Objective
    sampler: Sampler
    reward: Reward
    models: Models
    seed: int
    limit: int = 4096  # tokens scored at once
    said: dict[str, float] = field(default_factory=dict)  # of the newest batch: rewards, lengths, what was left out
    _kept: tuple[int, list[Row]] = (-1, [])

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.spec.steps * self.spec.updates

    @property
    def hash(self) -> str:
        """Of the prompts and of how they are sampled."""
        return digest([list(p) for p in self.prompts], self.spec.model_dump(mode="json"), self.seed)

    def whole(self, step: int) -> bool:
        """May a training be cut after this step? Not between the updates on one batch: it could not be drawn again."""
        return (step + 1) % self.spec.updates == 0

    def state(self) -> dict[str, Any]:
        """The anchor's weights."""
        return dict(self.models.state())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put the anchor's weights back."""
        self.models.restore(state)

    def batch(self, step: int) -> Batch:
        """The rows of a step; they are sampled when a batch's first step asks."""
        place = step // self.spec.updates
        if self._kept[0] != place:
            self._kept = (place, self._sampled(place))
        passed = (step + 1) * self.spec.prompts / self.spec.updates / len(self.prompts)
        return Batch(self._kept[1], passed, self.said)

    def _drawn(self, place: int) -> list[Ids]:
        """The prompts of a batch: a seeded order, taken in turn, another order for each pass."""
        size = min(self.spec.prompts, len(self.prompts))
        found = []
        for at in range(place * size, (place + 1) * size):
            turn, i = divmod(at, len(self.prompts))
            order = list(range(len(self.prompts)))
            random.Random(f"{self.seed}/{turn}").shuffle(order)  # noqa: S311 - not a secret
            found.append(self.prompts[order[i]])
        return found

    def _sampled(self, place: int) -> list[Row]:
        if place:
            self.models.follow(self.spec.anchor_rate)
        groups = [Group(prompt, answers) for prompt, answers in self._answered(self._drawn(place), place)]
        rewards = iter(self.reward([(tuple(g.prompt), tuple(c)) for g in groups for c in g.completions]))
        judged = [[next(rewards) for _ in g.completions] for g in groups]
        self._tell(groups, judged)
        make = {"groups": self._for_groups, "pairs": self._for_pairs}[self.objective.data]
        return make(groups, judged)

    def _answered(self, prompts: Sequence[Ids], place: int) -> list[tuple[Ids, list[Ids]]]:
        """Every prompt with its n answers; all are drawn together."""
        asked = [(p, seed_of(self.seed, place, p, i), i) for p in prompts for i in range(self.spec.n)]
        if self.objective.advantage == "bond":
            own = iter(self._draw([ask for ask in asked if ask[2] == 0]))
            with self.models.anchor():
                others = iter(self._draw([ask for ask in asked if ask[2]]))
            answers = [next(others if i else own) for _, _, i in asked]
        else:
            answers = self._draw(asked)
        n = self.spec.n
        return [(prompt, answers[k * n : (k + 1) * n]) for k, prompt in enumerate(prompts)]

    def _draw(self, asked: Sequence[tuple[Ids, int, int]]) -> list[Ids]:
        return self.sampler([prompt for prompt, _, _ in asked], [seed for _, seed, _ in asked], self.spec)

    def _tell(self, groups: Sequence[Group], judged: Sequence[Sequence[float | None]]) -> None:
        found = torch.tensor([r for rewards in judged for r in rewards if r is not None], dtype=torch.float64)
        lengths = [len(c) for g in groups for c in g.completions]
        self.said = {
            "reward": float(found.mean()) if len(found) else float("nan"),
            "reward_std": float(found.std()) if len(found) > 1 else 0.0,
            "completions/mean_length": sum(lengths) / len(lengths),
            "unjudged": float(len(lengths) - len(found)),
        }

    # -------------------------------------------------------------------------------------------------- rows of it

    def _for_groups(self, groups: Sequence[Group], judged: Sequence[Sequence[float | None]]) -> list[Row]:
        kept = [_judged(g, rewards) for g, rewards in zip(groups, judged, strict=True)]
        least = {"gae": 1, "bond": self.spec.n}.get(self.objective.advantage, 2)
        usable = [(g, rewards) for g, rewards in kept if len(rewards) >= least]
        scores = iter(self._scored([g for g, _ in usable]))
        rows: list[Row] = []
        for g, rewards in usable:
            found = [
                Sampled(tuple(c), r, own.logps, ref.logps, own.values)
                for c, r, (own, ref) in zip(g.completions, rewards, scores, strict=False)
            ]
            for answer, credit in zip(found, ways.get(self.objective.advantage)(found, self.spec), strict=True):
                rows.append(_row(g.prompt, answer, credit.advantage, credit.returns))
        return _less_baseline(rows, self.spec.n) if self.objective.advantage == "bond" else rows

    def _scored(self, groups: Sequence[Group]) -> list[tuple[TokenScores, TokenScores]]:
        """Of every answer, under the policy and under the reference (bond: the anchor)."""
        own = self._in_parts(groups, critic=self.objective.critic)
        held_to: Callable[[], AbstractContextManager[Any]] = (
            self.models.anchor if self.objective.advantage == "bond" else self.models.reference
        )
        with held_to():
            return list(zip(own, self._in_parts(groups), strict=True))

    def _in_parts(self, groups: Sequence[Group], *, critic: bool = False) -> list[TokenScores]:
        found: list[TokenScores] = []
        part: list[Group] = []
        for g in groups:
            if part and sum(x.tokens for x in part) + g.tokens > self.limit:
                found += self.models.score(part, critic=critic)
                part = []
            part.append(g)
        return found + (self.models.score(part, critic=critic) if part else [])

    def _for_pairs(self, groups: Sequence[Group], judged: Sequence[Sequence[float | None]]) -> list[Row]:
        """The best of each prompt's answers over the worst; a prompt whose best and worst are equal has no pair."""
        pairs = []
        for g, rewards in zip(groups, judged, strict=True):
            answers, values = _judged(g, rewards)
            if not values or max(values) == min(values):
                continue
            best, worst = (answers.completions[values.index(pick(values))] for pick in (max, min))
            if best != worst:
                pairs.append(Group(g.prompt, (best, worst)))
        refs: list[TokenScores] = []
        if self.objective.reference:
            with self.models.reference():
                refs = self._in_parts(pairs)
        sums = [float(score.logps.sum()) for score in refs] or [0.0] * (2 * len(pairs))
        return [
            PairRow(tuple(g.prompt), tuple(g.completions[0]), tuple(g.completions[1]), sums[2 * i], sums[2 * i + 1])
            for i, g in enumerate(pairs)
        ]


def _judged(group: Group, rewards: Sequence[float | None]) -> tuple[Group, list[float]]:
    """The answers that have a reward."""
    kept = [(c, r) for c, r in zip(group.completions, rewards, strict=True) if r is not None]
    return Group(group.prompt, [c for c, _ in kept]), [r for _, r in kept]


def _row(prompt: Sequence[int], a: Sampled, advantage: tuple[float, ...], returns: tuple[float, ...]) -> SampleRow:
    values = () if a.value is None else tuple(a.value.tolist())
    old, ref = tuple(a.old.tolist()), tuple(a.ref.tolist())
    return SampleRow(tuple(prompt), a.completion, a.reward, advantage, old, ref, values, returns)


def _less_baseline(rows: Sequence[Row], n: int) -> list[Row]:
    """BOND's rows with the mean worth of the batch's own answers taken off each (2407.14622, section 5.2)."""
    own = [row for row in rows[::n] if isinstance(row, SampleRow)]
    mean = sum(row.advantage[0] for row in own) / max(1, len(own))
    found: list[Row] = []
    for i, row in enumerate(rows):
        if i % n == 0 and isinstance(row, SampleRow):
            found.append(row._replace(advantage=tuple(a - mean for a in row.advantage)))
        else:
            found.append(row)
    return found
