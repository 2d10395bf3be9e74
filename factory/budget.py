"""A cap on what a run pays for answers: dollars, tokens, or both. It is never passed, and what is paid for is kept.

Before calls are made the most that they can use is reserved: the prompt at a token a byte (no byte-level vocabulary
needs more), an answer as long as it may be, and every try that the engine may make. What a call did use takes the place
of its reservation as soon as it is stored. Calls for which there is no room wait for those under way to settle; when
none is under way, the budget is spent: `BudgetError`.

What the run has paid for before counts, so that the same command again does not begin anew. An answer of a paid engine
whose bill is unknown (no usage came with it, or the call broke off after its deadline and may be billed all the same)
counts with the most that it can have used.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from factory.engines import build, engines
from factory.faults import ConfigError, FactoryError
from factory.schema import Call, Completion, Failure, Request, Sampling

if TYPE_CHECKING:
    from factory.engines import Engine, EngineSpec
    from factory.store import Store

ROUNDING = 1e-9  # dollars that sums of many small amounts may be off
TEMPLATE_TOKENS = 64  # that a chat template adds, at most


class BudgetError(FactoryError):
    """The budget is spent. What was paid for is stored; exit code 1: done, but not with everything."""

    exit_code = 1


class Spend(NamedTuple):
    """What answers use: tokens, read and written, and US dollars (None: unknown)."""

    tokens: int
    cost: float | None


@runtime_checkable
class PaidEngine(Protocol):
    """An engine whose answers are billed."""

    def worst_case(self, request: Request) -> Spend:
        """The most that one answer to the request can use, with every try. The cost is None without prices."""


def worst_case(engine: Engine, request: Request) -> Spend:
    """The most that one answer can use; one that is made here costs nothing."""
    if isinstance(engine, PaidEngine):
        return engine.worst_case(request)
    read = len(engine.render(request).encode("utf-8", "surrogatepass")) + len(request.prefix.encode("utf-8", "replace"))
    return Spend(read + TEMPLATE_TOKENS + request.sampling.max_tokens, 0.0)


def priced(spec: EngineSpec) -> bool:
    """Is it known what the engine's answers cost? Those of an engine that is not paid cost nothing."""
    if not engines.facts(spec.kind).get("paid"):
        return True
    with closing(build(replace(spec, model=spec.model or "model", count=1))) as engine:
        return worst_case(engine, Request([])).cost is not None


def used(engine: Engine, completion: Completion) -> Spend:
    """What a completion counts for in a budget."""
    tokens = completion.prompt_tokens + completion.completion_tokens
    if not isinstance(engine, PaidEngine):
        return Spend(tokens, 0.0)
    if completion.failure is not None and completion.failure.kind != "timeout":
        return Spend(tokens, completion.cost or 0.0)
    billed = completion.prompt_tokens > 0  # else no usage came: an answer's own tokens may be counted all the same
    if completion.cost is not None and billed:
        return Spend(tokens, completion.cost)
    worst = engine.worst_case(completion.request)
    return Spend(tokens if billed else worst.tokens, worst.cost if completion.cost is None else completion.cost)


class Budget:
    """At most `max_cost` US dollars and `max_tokens` tokens (read and written) for a run. Safe between threads, which
    share it: judges of a panel, stages one after the other."""

    def __init__(self, max_cost: float | None = None, max_tokens: int | None = None) -> None:
        faults = [
            f"{name}: must be above 0" for name, value in (("max_cost", max_cost), ("max_tokens", max_tokens))
            if value is not None and not 0 < value < float("inf")
        ]  # fmt: skip
        if faults:
            raise ConfigError(faults, where="the budget")
        self.max_cost, self.max_tokens = max_cost, max_tokens
        self.cost, self.tokens = 0.0, 0  # what was spent
        self._cost, self._tokens, self._calls = 0.0, 0, 0  # what is reserved, and for how many calls
        self._runs: set[str] = set()  # whose bills are counted
        self._models: set[tuple[str, str]] = set()  # and of which models also what has no bill
        self._changed = threading.Condition()

    def open(self, store: Store, engine: Engine, run: str) -> None:
        """Count what the run has paid for before, once. ConfigError: a cap on dollars where prices are unknown."""
        if self.max_cost is not None and worst_case(engine, Request([])).cost is None:
            raise ConfigError(
                [f"max_cost cannot be kept: the price of {engine.identity.model!r} is unknown"],
                where="the budget",
                todo="give the engine's option prices, or a cap on tokens instead",
            )
        content = engine.identity.content
        with self._changed:
            if run not in self._runs:
                self._count(_billed(store, run))
                self._runs.add(run)
            if (run, content) not in self._models:
                for call in _unbilled(store, run, content):
                    known = call.prompt_tokens + call.completion_tokens
                    spend = used(engine, _completion(call))
                    self._count(spend._replace(tokens=spend.tokens - known))  # what is known is counted already
                self._models.add((run, content))

    def _count(self, spend: Spend) -> None:
        self.tokens += spend.tokens
        self.cost += spend.cost or 0.0

    def reserve(self, worst: Sequence[Spend], ended: Callable[[], bool]) -> int:
        """Reserve for as many of these calls as there is room for, in order; how many. 0: none, and `ended` says so.

        Waits while there is room for none and others hold reservations. BudgetError: there is room for none at all.
        """
        with self._changed:
            while not (count := self._room(worst)):
                if ended():
                    return 0
                if not self._calls:
                    raise self._spent(worst)
                self._changed.wait(0.2)
            self._hold(worst[:count], 1)
            return count

    def settle(self, worst: Spend, spend: Spend) -> None:
        """A call is stored: what it used takes the place of its reservation."""
        with self._changed:
            self._hold([worst], -1)
            self._count(spend)
            self._changed.notify_all()

    def release(self, worst: Sequence[Spend]) -> None:
        """Calls that were not made, or of which nothing came."""
        with self._changed:
            self._hold(worst, -1)
            self._changed.notify_all()

    def _hold(self, worst: Iterable[Spend], sign: int) -> None:
        for tokens, cost in worst:
            self._calls += sign
            self._tokens += sign * tokens
            self._cost += sign * (cost or 0.0)
        if not self._calls:
            self._cost = 0.0  # no crumbs of rounding

    def _room(self, worst: Sequence[Spend]) -> int:
        tokens, cost = self.tokens + self._tokens, self.cost + self._cost
        for place, spend in enumerate(worst):
            tokens += spend.tokens
            cost += spend.cost or 0.0
            if self.max_tokens is not None and tokens > self.max_tokens:
                return place
            if self.max_cost is not None and cost > self.max_cost + ROUNDING:
                return place
        return len(worst)

    def _spent(self, worst: Sequence[Spend]) -> BudgetError:
        spent, next_ = [], []
        if self.max_cost is not None:
            spent.append(f"{_dollars(self.cost)} of {_dollars(self.max_cost)}")
            next_.append(_dollars(worst[0].cost or 0.0))
        if self.max_tokens is not None:
            spent.append(f"{self.tokens:,} of {self.max_tokens:,} tokens")
            next_.append(f"{worst[0].tokens:,} tokens")
        return BudgetError(
            f"the budget is spent: {' and '.join(spent)}; the next answer may take up to {' and '.join(next_)}",
            where=f"{len(worst):,} answers are left to ask for",
            todo="what is paid for is kept: give a larger budget and run the same command again",
        )


def _dollars(amount: float) -> str:
    """An amount with four places, or with as many as its first three digits need."""
    places = 4 if amount <= 0 else max(4, 2 - math.floor(math.log10(amount)))
    return f"${amount:,.{places}f}"


def _billed(store: Store, run: str) -> Spend:
    """What the run has paid for, as far as the store holds bills."""
    import pyarrow.compute as pc

    columns = ["prompt_tokens", "completion_tokens", "cost"]
    held = store.table(Call.TABLE, columns, {"run": run})
    prompt, completion, cost = (pc.sum(held[name]).as_py() or 0 for name in columns)
    return Spend(prompt + completion, float(cost))


def _unbilled(store: Store, run: str, content: str) -> list[Call]:
    """Calls of the run to a paid model that may have been billed, nobody knows how much."""
    paid = [kind for kind in engines.names() if engines.facts(kind).get("paid")]
    rows = store.rows(Call, {"run": run, "engine": paid, "model_hash": content, "cost": None})
    return [row for row in rows if row.failure in {None, "timeout"}]


def _completion(call: Call) -> Completion:
    """A call as the completion that it was made of, as far as a bill needs it."""
    request = Request(call.messages, Sampling(max_tokens=call.sampling["max_tokens"]))
    failure = None if call.failure is None else Failure(call.failure)
    return Completion(request, call.sample, prompt_tokens=call.prompt_tokens,
                      completion_tokens=call.completion_tokens, failure=failure)  # fmt: skip
