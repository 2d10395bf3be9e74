"""Rewards of an online training: judges of the factory, asked as `factory label` asks them.

    a batch's answers -> candidates (kind "online") -> judgments -> verdicts -> one weighted sum for each answer

Every answer that is paid for is a call of the store, so that a training that goes on pays for nothing twice; failures
are rows; a budget is kept. A pointwise judge rewards with its score (as a share of its scale, or as log-odds), a
pairwise one with the mean of its win rates over the other answers to the prompt. An answer that lacks a verdict of any
of the judges has no reward: it is left out, not scored 0.

A model's judgments come with canaries. Those of the batches so far are counted together, and while they say that a
judge is fooled (`verdicts.disbelieved`), its verdicts do not reward; one that is fooled for good ends the training.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from factory import verdicts
from factory.faults import ConfigError, FactoryError
from factory.judges.canaries import SHARE
from factory.labelling import matchups as choosing
from factory.labelling.judging import judged
from factory.labelling.panel import PanelMember, Work, locks_of, reader_of, shown_to
from factory.schema import Candidate, Prompt, digest, now

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.engines import Engine, EngineSpec
    from factory.schema import Judgment
    from factory.store import Store
    from train.data import Ids
    from train.online import Judged
    from train.packing import Group

log = logging.getLogger(__name__)

KIND = "online"
"""Of the candidates."""
LOCAL = {"transformers", "vllm"}
"""Engines that compute in this process."""
ENOUGH = 10
"""Canaries that a judge decided, and is fooled by, after which it is not waited for any longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPart:
    """One judge that rewards: its registered name, the name it goes by in the tables, its weight in the sum, its
    options, the engine of one that asks a model, and the pairs that a pairwise one sees (all, or random:k a prompt)."""

    judge: str
    name: str = ""
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineSpec | None = None
    matchups: str = "all"

    @property
    def called(self) -> str:
        """Its name in the tables."""
        return self.name or self.judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """What rewards the answers of a training. It holds no model, and can be sent to another process."""

    parts: tuple[RewardPart, ...] = (RewardPart(judge="verifier"),)
    max_cost: float | None = None  # US dollars of the whole run
    max_tokens: int | None = None  # of the whole run
    canary_share: float = SHARE
    retry_failed: bool = False

    def check(self) -> None:
        """ConfigError with every fault at once; an unknown judge is named."""
        from factory.judges import judges

        names = [part.called for part in self.parts]
        faults = [] if names else ["there is no judge"]
        if len(set(names)) < len(names):
            faults.append(f"judges need different names, not {', '.join(names)}")
        for part in self.parts:
            facts = judges.facts(part.judge)
            if not math.isfinite(part.weight) or part.weight == 0:
                faults.append(f"{part.called}: a weight is a number other than 0, not {part.weight:g}")
            if facts.get("file") or facts.get("kind", "sample") != "sample":
                faults.append(f"{part.called}: {part.judge} cannot judge answers as they are sampled")
            if facts["asks"] and part.engine is None:
                faults.append(f"{part.called}: {part.judge} asks a model, and no engine was given")
            if choosing.needs_scores(choosing.parse(part.matchups)):
                faults.append(f"{part.called}: matchups are all or random:k, not {part.matchups}")
        if faults:
            raise ConfigError(faults, where="rewards of the training")

    def build(self, stack: ExitStack, threads: int | None = None) -> list[PanelMember]:
        """The judges with their engines, closed with the stack; those that ask the same model share one. `threads`: of
        models in this process, where an engine's options do not say."""
        from factory.engines import build
        from factory.judges import judges

        self.check()
        built: dict[str, Engine] = {}
        members = []
        for part in self.parts:
            engine = None
            if part.engine is not None and judges.facts(part.judge)["asks"]:
                spec = part.engine
                if spec.kind in LOCAL and threads is not None:
                    spec = replace(spec, options={"threads": threads, **spec.options})
                key = digest(spec.kind, spec.model, dict(spec.options), spec.count)
                if key not in built:
                    built[key] = stack.enter_context(closing(build(spec)))
                engine = built[key]
            member = PanelMember.of(
                part.judge, name=part.called, engine=engine, matchups=part.matchups, options=part.options
            )
            if (close := getattr(member.judge, "close", None)) is not None:
                stack.callback(close)
            members.append(member)
        return members

    def identity(self) -> list[Any]:
        """What of it decides the rewards: a training by others is another training. Makes judges, no engines."""
        found: list[Any] = []
        for part in self.parts:
            spec = part.engine
            asked = None if spec is None else [spec.kind, spec.model, dict(spec.options)]
            reader = reader_of(PanelMember.of(part.judge, name=part.called, options=part.options).judge)
            found.append([part.called, part.judge, reader, part.weight, dict(part.options), asked, part.matchups])
        return [*found, self.canary_share]

    def budget(self) -> Budget | None:
        """What may be spent."""
        from factory.budget import Budget

        if self.max_cost is None and self.max_tokens is None:
            return None
        return Budget(self.max_cost, self.max_tokens)


class Place(NamedTuple):
    """Where answers and judgments are kept: the store, the run and round, a mark of the training (its batches are not
    another's), and the name of the model that answers."""

    store: Store
    run: str
    round: int
    mark: str
    model: str


@dataclass
class JudgeRewards:
    """A `train.online.Reward` from a panel. `prompts` by their tokens; `text` of an answer's tokens, and whether they
    `ended` by themselves; `weights` in the order of the panel."""

    place: Place
    panel: Sequence[PanelMember]
    weights: Sequence[float]
    prompts: Mapping[Ids, Prompt]
    text: Callable[[Ids], str]
    ended: Callable[[Ids], bool]
    seed: int = 0
    canary_share: float = SHARE
    retry_failed: bool = False
    budget: Budget | None = None
    _tallies: dict[str, list[int]] = field(default_factory=dict)  # judge: canaries that fooled it, that it decided
    _told: set[str] = field(default_factory=set)

    def __call__(self, place: int, groups: Sequence[Group]) -> Judged:
        """See `train.online.Reward`. BudgetError, EndpointError; FactoryError: a judge cannot work or is fooled."""
        from train.online import Judged

        answers = [self._candidates(place, k, group) for k, group in enumerate(groups)]
        self.place.store.append("candidates", [candidate for group in answers for candidate in group])
        by_judge = [self._values(member, answers) for member in self.panel]
        said = {}
        for member, values in zip(self.panel, by_judge, strict=True):
            known = [value for c in _flat(answers) if (value := values.get(c.key)) is not None]
            if known and len(self.panel) > 1:
                said[f"rewards/{member.name}"] = math.fsum(known) / len(known)
        return Judged([[self._sum(c, by_judge) for c in group] for group in answers], said)

    def state(self) -> dict[str, Any]:
        """The canaries so far."""
        return {name: list(counts) for name, counts in self._tallies.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The canaries as they were."""
        self._tallies = {name: list(counts) for name, counts in state.items()}

    def _sum(self, candidate: Candidate, by_judge: Sequence[Mapping[str, float | None]]) -> float | None:
        """The weighted sum of what all judges say; None where one says nothing."""
        values = [values.get(candidate.key) for values in by_judge]
        if any(value is None for value in values):
            return None
        return math.fsum(w * v for w, v in zip(self.weights, values, strict=True) if v is not None)

    def _candidates(self, place: int, k: int, group: Group) -> list[Candidate]:
        prompt, where = self.prompts[tuple(group.prompt)], self.place
        return [
            Candidate(
                key=digest(KIND, where.run, where.round, where.mark, place, k, i, list(ids)),
                run=where.run,
                round=where.round,
                prompt_key=prompt.key,
                split=prompt.split,
                kind=KIND,
                model=f"{where.model}, batch {place + 1}",
                sample=i,
                text=self.text(tuple(ids)),
                finish_reason="stop" if self.ended(tuple(ids)) else "length",
                tokens=len(ids),
                at=now(),
            )
            for i, ids in enumerate(group.completions)
        ]

    # ------------------------------------------------------------------------------------------------- one judge

    def _values(self, member: PanelMember, answers: Sequence[Sequence[Candidate]]) -> dict[str, float | None]:
        """What a judge's verdicts are worth, by candidate."""
        rows: list[Judgment] = []
        choice = choosing.parse(member.matchups or "all")
        for layer in _layers(answers):
            work = self._work(layer, member)
            rows += judged(work, member, shown_to(work, member, choice, None))
        if self._is_fooled(member, rows):
            return {}
        panel = verdicts.read(rows)
        if member.judge.kind == "pointwise":
            return {key: _worth(score) for key, score in panel.scores.get(member.name, {}).items()}
        said = panel.pairs.get(member.name, {})
        return {c.key: _win_rate(c, group, said) for group in answers for c in group}

    def _work(self, answers: Mapping[str, Sequence[Candidate]], member: PanelMember) -> Work:
        asked = {prompt.key: prompt for prompt in self.prompts.values() if prompt.key in answers}
        return Work(
            store=self.place.store,
            run=self.place.run,
            round=self.place.round,
            seed=self.seed,
            canary_share=self.canary_share,
            retry_failed=self.retry_failed,
            prompts=asked,
            candidates=answers,
            budget=self.budget,
            locks=locks_of([member]),
        )

    def _is_fooled(self, member: PanelMember, rows: Sequence[Judgment]) -> bool:
        """By the canaries of all batches so far. FactoryError: by so many that it is of no use."""
        tally = self._tallies.setdefault(member.name, [0, 0])
        for seen in verdicts.canaries(rows).get(member.name, []):
            if seen.fooled is not None:
                tally[0] += seen.fooled
                tally[1] += 1
        if not verdicts.disbelieved(*tally):
            return False
        why = f"{member.name} preferred {tally[0]} of {tally[1]} decided canaries to real answers"
        if tally[1] >= ENOUGH:
            raise FactoryError(
                f"{why}: it cannot reward", todo="take a stronger model or another judge; the last checkpoint is kept"
            )
        if member.name not in self._told:
            self._told.add(member.name)
            log.warning("%s: while it is so, its verdicts reward nothing", why)
        return True


def _worth(score: verdicts.Score | None) -> float | None:
    """Of a score: the share of a scale with ends, the log-odds of one without."""
    if score is None:
        return None
    return score.value if score.log_odds else score.share


def _win_rate(
    candidate: Candidate, group: Sequence[Candidate], said: Mapping[verdicts.Pair, verdicts.Verdict | None]
) -> float | None:
    """The mean, over the other answers, of the probability that this one is better. A tie counts half, and so does an
    answer that says the same; pairs without a verdict are left out, and where all are, there is none."""
    found = []
    for other in group:
        if other.key == candidate.key:
            continue
        if choosing.same_text(candidate, other):
            found.append(0.5)
            continue
        first, second = sorted((candidate.key, other.key))
        verdict = said.get((first, second))
        if verdict is not None:
            p = 0.5 if verdict.verdict == "tie" else verdict.p_a
            found.append(p if candidate.key == first else 1 - p)
    return math.fsum(found) / len(found) if found else None


def _layers(answers: Sequence[Sequence[Candidate]]) -> Iterator[dict[str, Sequence[Candidate]]]:
    """Groups by prompt, so that one that comes twice is in two parts: only answers of one group meet."""
    seen: defaultdict[str, int] = defaultdict(int)
    layers: defaultdict[int, dict[str, Sequence[Candidate]]] = defaultdict(dict)
    for group in answers:
        if group:
            key = group[0].prompt_key
            layers[seen[key]][key] = sorted(group, key=lambda c: c.key)
            seen[key] += 1
    for layer in layers.values():
        yield dict(sorted(layer.items()))


def _flat(answers: Sequence[Sequence[Candidate]]) -> Iterator[Candidate]:
    for group in answers:
        yield from group
