"""Scripted policies, a scorer by rule and prompts of the tests of evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from factory.engines.scripted import Rule, ScriptedEngine
from factory.evaluation import evaluate
from factory.evaluation.likelihoods import NEUTRAL, Item
from factory.evaluation.measures import Scored
from factory.schema import (
    PolicyReport,
    Prompt,
    Request,
    digest,
    now,
)
from factory.store import Store

GOOD = "Quiet rivers carry northern glass towards distant harbours every winter. That is all."
BAD = "Quiet rivers carry northern glass towards distant harbours every winter."
PROMPTS = 8


def prompt(
    i: int, *, split: str = "heldout", constraints: object = ({"kind": "end_phrase", "phrase": "That is all."},)
) -> Prompt:
    messages = [{"role": "user", "content": f"Tell me of topic {i}. End with: That is all."}]
    wanted = None if constraints is None else list(constraints)  # type: ignore[call-overload]
    return Prompt(key=digest(i), messages=messages, split=split, group=str(i), constraints=wanted, at=now())


def topic(request: Request) -> int:
    return int(str(request.messages[-1]["content"]).split("topic ")[1].split(".")[0])


def policy(name: str, passing: int, *, failing: int | None = None) -> ScriptedEngine:
    """A policy that passes on the first `passing` topics and, if asked to, fails on one."""
    rules = [Rule(reply=lambda request, sample: GOOD if topic(request) < passing else BAD)]
    if failing is not None:
        rules.insert(0, Rule(match=f"topic {failing}\\.", fail="refused"))
    return ScriptedEngine(name, rules=rules)


class FakeScorer:
    """By rule: -1 nat a word under the start, -.5 under any other policy, -2 after the neutral prompt."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def score(self, policy: str, items: Sequence[Item]) -> list[Scored]:
        self.asked.append((policy, len(items)))
        return [self._one(policy, item) for item in items]

    def _one(self, policy: str, item: Item) -> Scored:
        words = len(item.text.split())
        each = -2.0 if item.messages == NEUTRAL else -1.0 if policy == "start" else -0.5
        return Scored(each * words, words)


def measure(store: Store, engine: ScriptedEngine, round_: int, **options: object) -> PolicyReport:
    settings: dict[str, object] = {"split": "heldout", "start": "start", "baseline_round": 0 if round_ else None}
    return evaluate(store, run="r", round=round_, policy=engine.identity.model, engine=engine, **(settings | options))  # type: ignore[arg-type]
