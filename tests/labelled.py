"""A store with candidates, scripted engines that judge, and what a panel of one says of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from judged import candidate_of, pointwise, prompt_of

from factory.engines.scripted import Rule, ScriptedEngine
from factory.judges.pairwise import PairwiseJudge
from factory.labelling import PanelMember, label
from factory.schema import Ask, Candidate, Completion, Judgment, Matchup, Reading, Request
from factory.store import Store


def fill(store: Store, prompts: int = 3, answers: int = 3, *, failed: bool = False) -> list[Candidate]:
    """Prompts with answers of different lengths; of the first prompt one more, which failed."""
    asked = [prompt_of(f"Tell me about topic {n}.") for n in range(prompts)]
    store.append("prompts", asked)
    rows = [
        candidate_of(f"{n:02d}-{k}", f"answer {n} {'x' * k}", prompt=prompt)
        for n, prompt in enumerate(asked)
        for k in range(answers)
    ]
    rows += [candidate_of("zz", "", failure="timeout", prompt=asked[0])] if failed else []
    store.append("candidates", rows)
    return rows


def logs(**shares: float) -> dict[str, float]:
    return {name: math.log(share) for name, share in shares.items()}


def first_wins(p: float = 0.9) -> ScriptedEngine:
    return ScriptedEngine(rules=[Rule(asks=True, answer_logprobs=logs(A=p * 0.99, B=(1 - p) * 0.99))])


def reads(request: Request, sample: int) -> str:
    """A judge that likes what is longer, and says so."""
    said = request.messages[-1]["content"]
    a, b = (said.split(f"<<answer {name} ")[1].split("<<end")[0] for name in "AB")
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "Neither"


@dataclass
class Textual(PairwiseJudge):
    """A pairwise judge that reads the text alone, as for an endpoint without log-probs."""

    def read(self, ask: Ask, completion: Completion) -> list[Reading]:
        return super().read(ask, replace(completion, answer_logprobs=None, finish_reason="stop"))


@dataclass
class Program:
    """A program that scores by length and breaks on some texts."""

    name: str = "length"
    breaks_on: str = "never"
    kind: Literal["pointwise", "pairwise"] = "pointwise"

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        for matchup in matchups:
            if self.breaks_on in matchup.a.text:
                raise ZeroDivisionError(self.breaks_on)
            yield pointwise("another name", matchup.a.key, min(len(matchup.a.text) / 20, 1.0))


def panel_of(store: Store, member: PanelMember, **options: Any) -> tuple[Any, list[Judgment]]:
    report = label(store, [member], run="r", **({"canary_share": 0.0} | options))
    return report.judges[0], [row for row in store.rows(Judgment) if row.judge == member.name]
