"""Generation: prompts in, n candidates each out. A second time with the same arguments asks for nothing new."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from factory import crash
from factory.budget import BudgetError
from factory.calls import answer
from factory.faults import EndpointError, FactoryError
from factory.schema import Call, Candidate, Message, Messages, Prompt, Request, Sampling, digest, now, unique

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.console import Progress
    from factory.engines import Engine
    from factory.store import Store

READER = "1"  # raise it when `candidate_of` reads calls differently
COMMIT = 64  # candidates in one commit; until then they can be read from their calls again


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """What one generation did. `candidates` and `failures` count all answers, held ones included; `tokens` new ones;
    `reasons` the failures by kind."""

    prompts: int
    candidates: int
    failures: int
    reused: int
    tokens: int
    seconds: float
    reasons: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}


def chosen_prompts(
    store: Store, *, split: str | None = None, keys: Iterable[str] | None = None, limit: int | None = None
) -> list[Prompt]:
    """The prompts of a split, or those of the keys, in the order of their keys; the first `limit` of them."""
    where: dict[str, Any] = {} if split is None else {"split": split}
    wanted = None if keys is None else unique(keys)
    if wanted is not None:
        where["key"] = wanted
    found = sorted(store.rows(Prompt, where), key=lambda prompt: prompt.key)
    if wanted is not None and split is None and len(found) < len(wanted):
        lost = sorted(set(wanted) - {prompt.key for prompt in found})
        raise FactoryError(
            f"the store has no prompt {lost[0]!r} ({len(lost)} in all)",
            where=str(store.folder),
            todo="add it with factory prompts add, or take keys from: factory query 'SELECT key FROM prompts'",
        )
    return found[:limit]


def generate(
    store: Store,
    engine: Engine,
    *,
    run: str,
    round: int,
    n: int,
    sampling: Sampling,
    seed: int,
    split: str | None = None,
    keys: Iterable[str] | None = None,
    limit: int | None = None,
    purpose: str = "generate",
    kind: str = "sample",
    system: str | None = None,
    retry_failed: bool = False,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> GenerateReport:
    """Sample `n` answers to each chosen prompt and keep them as candidates of this run and round.

    `system` is said to the model alone: judged and learnt are its answers to the prompts as they are (context
    distillation, Askell et al., arXiv 2112.00861); several also vary the answers of a prompt. An answer that failed
    becomes a candidate with `failure` set. What the store holds is not asked for again. Where a budget, an endpoint or
    the user ends it early, the answers that came are candidates all the same.
    """
    prompts = {prompt.key: prompt for prompt in chosen_prompts(store, split=split, keys=keys, limit=limit)}
    requests = [
        Request(told(prompt.messages, system), sampling, n=n, seed=seed, tag=key, tools=tuple(prompt.tools or ()))
        for key, prompt in prompts.items()
    ]
    clock = time.monotonic()
    count = reused = tokens = 0
    reasons: Counter[str] = Counter()
    waiting: list[Candidate] = []
    asked = answer(
        store,
        engine,
        requests,
        run=run,
        round=round,
        purpose=purpose,
        retry_failed=retry_failed,
        budget=budget,
        progress=progress,
    )
    try:
        for request, call, held in asked:
            count += 1
            if call.failure is not None:
                reasons[call.failure] += 1
            if held:
                reused += 1
            else:
                tokens += call.completion_tokens
            found = candidate_of(call, prompts[request.tag], run=run, round=round, kind=kind)
            waiting.append(found if system is None else replace(found, logprob=None))  # it is not that of the prompt's
            if len(waiting) >= COMMIT:
                _keep(store, waiting)
    except (BudgetError, EndpointError, KeyboardInterrupt):
        _keep(store, waiting)
        raise
    _keep(store, waiting)
    seconds = time.monotonic() - clock
    return GenerateReport(len(prompts), count, reasons.total(), reused, tokens, seconds, dict(sorted(reasons.items())))


def told(messages: Messages, system: str | None) -> Messages:
    """The conversation under a system prompt; one that it has already comes first."""
    if system is None:
        return messages
    own, rest = (messages[:1], messages[1:]) if messages[0]["role"] == "system" else ([], messages)
    content = "\n\n".join([*(turn["content"] for turn in own), system])
    return [Message(role="system", content=content), *rest]


def candidate_of(
    call: Call, prompt: Prompt, *, run: str, round: int, kind: str = "sample", parent: str | None = None
) -> Candidate:
    """Read a call as a candidate. A later attempt of a call is another candidate: the failed first one stays a row."""
    attempt = [] if call.attempt == 1 else [call.attempt]
    return Candidate(
        key=digest(run, round, call.key, kind, READER, *attempt),
        run=run,
        round=round,
        prompt_key=prompt.key,
        split=prompt.split,
        kind=kind,
        parent=parent,
        call_key=call.key,
        model=call.model,
        model_hash=call.model_hash,
        sample=call.sample,
        text=call.text,
        finish_reason=call.finish_reason,
        tokens=call.completion_tokens,
        logprob=call.logprob,
        failure=call.failure,
        reader=READER,
        at=now(),
    )


def _keep(store: Store, waiting: list[Candidate]) -> None:
    """Commit the candidates and empty the list."""
    crash.point("generation.before_candidates")
    store.append(Candidate.TABLE, waiting)
    waiting.clear()
