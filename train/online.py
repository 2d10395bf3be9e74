"""Rows that the policy samples as it learns: a source of batches for methods on groups, and for pairs made on the spot.

    prompts of the step --sampler, live weights--> n answers each --reward--> advantages, or best over worst

The sampler reads the module in training itself. What it takes to train on the answers (log-probs under the weights that
sampled them and under the reference, a critic's values) is scored here, by the forward that training uses, so that the
first update's ratio is 1 to the last bit. A batch is a function of the weights and of the step: a training that was
killed draws the same again.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from factory.schema import digest, seed_of
from train.advantages import Sampled, least, over_batch, ways
from train.batches import Batch, Row
from train.config import OnlineSpec
from train.data import Ids, PairRow, SampleRow
from train.losses import Objective
from train.losses.parts import k3
from train.packing import Group
from train.processes import Group as Processes

T = TypeVar("T")
SAME = 1e-9
"""Rewards closer than this are equal: the rest is rounding."""


class Sampler(Protocol):
    """Draws answers with the weights as they are now."""

    def __call__(self, prompts: Sequence[Ids], seeds: Sequence[int], spec: OnlineSpec) -> list[Ids]:
        """One answer for each prompt (the same prompt may come several times): token ids, the end token included unless
        the answer was cut."""


class Judged(NamedTuple):
    """Rewards of a batch's answers, group by group in their order; None: no verdict, and the answer is left out of its
    group. `said`: what else goes into the step's metrics."""

    rewards: Sequence[Sequence[float | None]]
    said: Mapping[str, float] = {}


class Reward(Protocol):
    """Judges answers. What it says of a batch is a function of the batches up to it, so that a resumed training hears
    the same."""

    def __call__(self, place: int, groups: Sequence[Group]) -> Judged:
        """A reward for each answer of the batch `place`, counted from 0. A prompt may come twice."""

    def state(self) -> dict[str, Any]:
        """What its answers depend on besides the batch: plain values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""


@dataclass(frozen=True)
class Rule:
    """A reward that is a function of prompt and answer, as token ids."""

    function: Callable[[Ids, Ids], float | None]

    def __call__(self, place: int, groups: Sequence[Group]) -> Judged:
        """Of each answer by itself."""
        return Judged([[self.function(tuple(g.prompt), tuple(c)) for c in g.completions] for g in groups])

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""


class TokenScores(NamedTuple):
    """Log-probs of one answer's tokens, (tokens,), and a critic's values of them."""

    logps: Tensor
    values: Tensor | None = None


class Models(Protocol):
    """The models that an online training has: the one in training, its reference, an anchor. No other process is needed
    to ask them."""

    def refresh(self) -> None:
        """Take over the weights as training has made them; all processes at once."""

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
    """See the module. `prompts`: token ids, each once. Rows of a step are kept for its `updates`.

    Of several `processes` each samples and scores the answers to its share of the prompts, the first one has them
    judged, and all have all rows. `reward` is asked in the first one only.
    """

    prompts: Sequence[Ids]
    spec: OnlineSpec
    objective: Objective
    sampler: Sampler
    reward: Reward | None
    models: Models
    seed: int
    limit: int = 4096  # tokens scored at once
    processes: Processes = field(default_factory=Processes)
    mark: str = ""  # of whatever else decides the rows: who rewards them
    measures_kl: bool = False  # bond: the KL to the reference too, which costs a forward pass of it
    said: dict[str, float] = field(default_factory=dict)  # of the newest batch: rewards, lengths, what was left out
    _kept: tuple[int, list[Row]] = (-1, [])

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.spec.steps * self.spec.updates

    @property
    def hash(self) -> str:
        """Of the prompts and of how they are sampled."""
        return digest([list(p) for p in self.prompts], self.spec.model_dump(mode="json"), self.seed, self.mark)

    def whole(self, step: int) -> bool:
        """May a training be cut after this step? Not between the updates on one batch: it could not be drawn again."""
        return (step + 1) % self.spec.updates == 0

    def state(self) -> dict[str, Any]:
        """The anchor's weights, and what the reward goes by."""
        return {"anchor": self.models.state(), "reward": {} if self.reward is None else self.reward.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.models.restore(state["anchor"])
        if self.reward is not None:
            self.reward.restore(state["reward"])

    def batch(self, step: int) -> Batch:
        """The rows of a step; they are sampled when a batch's first step asks."""
        place = step // self.spec.updates
        if self._kept[0] != place:
            self._kept = (place, self._sampled(place))
        passed = (step + 1) * self._size / self.spec.updates / len(self.prompts)
        return Batch(self._kept[1], passed, self.said)

    @property
    def _size(self) -> int:
        """Prompts of a batch."""
        return min(self.spec.prompts, len(self.prompts))

    def _drawn(self, place: int) -> list[Ids]:
        """The prompts of a batch: a seeded order, taken in turn, another order for each pass."""
        found = []
        for at in range(place * self._size, (place + 1) * self._size):
            turn, i = divmod(at, len(self.prompts))
            order = list(range(len(self.prompts)))
            random.Random(f"{self.seed}/{turn}").shuffle(order)  # noqa: S311 - not a secret
            found.append(self.prompts[order[i]])
        return found

    def _sampled(self, place: int) -> list[Row]:
        self.models.refresh()
        if place:
            self.models.follow(self.spec.anchor_rate)
        groups = self._answered(self._drawn(place), place)
        judged = self.processes.from_first(partial(self._judged, place, groups))
        self.said = self._told(groups, judged)
        make = {"groups": self._for_groups, "pairs": self._for_pairs}[self.objective.data]
        return make(groups, judged.rewards)

    def _judged(self, place: int, groups: Sequence[Group]) -> Judged:
        if self.reward is None:
            raise ValueError("the first process has no reward")
        return self.reward(place, groups)

    def _answered(self, prompts: Sequence[Ids], place: int) -> list[Group]:
        """Every prompt with its n answers; those of this process are all drawn together."""
        n, size = self.spec.n, self.processes.size
        asked = [
            (prompts[k], seed_of(self.seed, place, k, prompts[k], i), i)
            for k in range(self.processes.rank, len(prompts), size)
            for i in range(n)
        ]
        if self.objective.advantage == "bond":
            own = iter(self._draw([ask for ask in asked if ask[2] == 0]))
            with self.models.anchor():
                others = iter(self._draw([ask for ask in asked if ask[2]]))
            answers = [next(others if i else own) for _, _, i in asked]
        else:
            answers = self._draw(asked)
        drawn = [Group(asked[at][0], answers[at : at + n]) for at in range(0, len(asked), n)]
        return self._from_all(drawn, len(prompts))

    def _draw(self, asked: Sequence[tuple[Ids, int, int]]) -> list[Ids]:
        if not asked:
            return []
        return self.sampler([prompt for prompt, _, _ in asked], [seed for _, seed, _ in asked], self.spec)

    def _from_all(self, own: list[T], count: int) -> list[T]:
        """What each process has of its share (every so-many-th from its rank on), in order."""
        parts, size = self.processes.gather(own), self.processes.size
        return [parts[k % size][k // size] for k in range(count)]

    def _told(self, groups: Sequence[Group], judged: Judged) -> dict[str, float]:
        """The step's metrics. Of bond's answers the policy's own one and the anchor's are told apart."""
        is_bond = self.objective.advantage == "bond"
        own = [rewards[:1] if is_bond else rewards for rewards in judged.rewards]
        lengths = [len(c) for g in groups for c in (g.completions[:1] if is_bond else g.completions)]
        found = {
            "completions/mean_length": statistics.fmean(lengths),
            "unjudged": float(sum(r is None for rewards in judged.rewards for r in rewards)),
            "samples": float(sum(len(g.completions) for g in groups)),
        }
        found |= _spread("reward", own, judged.rewards)
        if is_bond:
            others = [r for rewards in judged.rewards for r in rewards[1:] if r is not None]
            found |= {"reward/anchor": statistics.fmean(others)} if others else {}
        return found | dict(judged.said)

    # -------------------------------------------------------------------------------------------------- rows of it

    def _for_groups(self, groups: Sequence[Group], judged: Sequence[Sequence[float | None]]) -> list[Row]:
        is_bond = self.objective.advantage == "bond"
        kept = [
            _with_verdict(g, rewards)
            for g, rewards in zip(groups, judged, strict=True)
            if not (is_bond and rewards[0] is None)
        ]
        usable = [(g, rewards) for g, rewards in kept if len(rewards) >= least(self.objective.advantage)]
        if is_bond and self.measures_kl:
            self.said["kl"] = self._kl([Group(g.prompt, g.completions[:1]) for g, _ in usable])
        rows: list[SampleRow] = []
        for (g, rewards), (own, ref) in zip(usable, self._scored([g for g, _ in usable]), strict=True):
            found = [
                Sampled(tuple(c), r, o.logps, f.logps, o.values)
                for c, r, o, f in zip(g.completions, rewards, own, ref, strict=True)
            ]
            for answer, credit in zip(found, ways.get(self.objective.advantage)(found, self.spec), strict=True):
                if credit is not None:
                    rows.append(_row(g.prompt, answer, credit.advantage, credit.returns))
        whole = over_batch(self.objective.advantage, [row.advantage for row in rows], self.spec)
        return [row._replace(advantage=advantage) for row, advantage in zip(rows, whole, strict=True)]

    def _scored(self, groups: Sequence[Group]) -> list[tuple[list[TokenScores], list[TokenScores]]]:
        """Of every group's answers, under the policy and under the reference (bond: the anchor)."""
        own = self._scores(groups, critic=self.objective.critic)
        held_to: Callable[[], AbstractContextManager[Any]] = (
            self.models.anchor if self.objective.advantage == "bond" else self.models.reference
        )
        with held_to():
            return list(zip(own, self._scores(groups), strict=True))

    def _scores(self, groups: Sequence[Group], *, critic: bool = False) -> list[list[TokenScores]]:
        """Of every group's answers under the model that is asked now; each process scores its share."""
        own = groups[self.processes.rank :: self.processes.size]
        flat = iter(self._in_parts(own, critic=critic))
        return self._from_all([[next(flat) for _ in g.completions] for g in own], len(groups))

    def _in_parts(self, groups: Sequence[Group], *, critic: bool = False) -> list[TokenScores]:
        found: list[TokenScores] = []
        part: list[Group] = []
        for g in groups:
            if part and sum(x.tokens for x in part) + g.tokens > self.limit:
                found += self.models.score(part, critic=critic)
                part = []
            part.append(g)
        return found + (self.models.score(part, critic=critic) if part else [])

    def _kl(self, groups: Sequence[Group]) -> float:
        """To the reference, nats a token, by k3 on the policy's own answers."""
        own = [s.logps for scores in self._scores(groups) for s in scores]
        with self.models.reference():
            ref = [s.logps for scores in self._scores(groups) for s in scores]
        return float(k3(torch.cat(own), torch.cat(ref)).mean()) if own else 0.0

    def _for_pairs(self, groups: Sequence[Group], judged: Sequence[Sequence[float | None]]) -> list[Row]:
        """The best of each prompt's answers over the worst; a prompt whose best and worst are equal has no pair."""
        pairs = []
        for g, rewards in zip(groups, judged, strict=True):
            answers, values = _with_verdict(g, rewards)
            if not values or max(values) == min(values):
                continue
            best, worst = (answers.completions[values.index(pick(values))] for pick in (max, min))
            if best != worst:
                pairs.append(Group(g.prompt, (best, worst)))
        sums = [[0.0, 0.0] for _ in pairs]
        if self.objective.reference:
            with self.models.reference():
                sums = [[float(score.logps.sum()) for score in scores] for scores in self._scores(pairs)]
        return [
            PairRow(tuple(g.prompt), tuple(g.completions[0]), tuple(g.completions[1]), *ref)
            for g, ref in zip(pairs, sums, strict=True)
        ]


def _with_verdict(group: Group, rewards: Sequence[float | None]) -> tuple[Group, list[float]]:
    """The answers that have a reward."""
    kept = [(c, r) for c, r in zip(group.completions, rewards, strict=True) if r is not None]
    return Group(group.prompt, [c for c, _ in kept]), [r for _, r in kept]


def _spread(
    name: str, own: Sequence[Sequence[float | None]], every: Sequence[Sequence[float | None]]
) -> dict[str, float]:
    """Mean and deviation of rewards, and the share of the groups whose answers all earn the same (TRL's name for it).
    No entry where nothing was judged."""
    found = [r for rewards in own for r in rewards if r is not None]
    groups = [judged for rewards in every if len(judged := [r for r in rewards if r is not None]) > 1]
    said = {}
    if found:
        said = {name: statistics.fmean(found), f"{name}_std": statistics.stdev(found) if len(found) > 1 else 0.0}
    if groups:
        said[f"frac_{name}_zero_std"] = statistics.fmean(max(g) - min(g) < SAME for g in groups)
    return said


def _row(prompt: Sequence[int], a: Sampled, advantage: tuple[float, ...], returns: tuple[float, ...]) -> SampleRow:
    values = () if a.value is None else tuple(a.value.tolist())
    old, ref = tuple(a.old.tolist()), tuple(a.ref.tolist())
    return SampleRow(tuple(prompt), a.completion, a.reward, advantage, old, ref, values, returns)
