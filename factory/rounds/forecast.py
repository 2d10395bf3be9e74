"""What a run would take before it begins: calls, tokens, time, money and memory, stage by stage.

Calls and written tokens are the most that there can be; read tokens, time, money and memory are estimates, and each
says what it is made of. Local engines cost nothing; an endpoint costs by the prices that the recipe gives, unknown
without them. Time goes by what earlier runs of the store took with the same model, else by how fast this machine
multiplies now, which is right within a factor of about three. Memory and time of a training are `train/plan.py`'s, on
rows of the greatest length. Nothing is asked and no weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.faults import FactoryError
from factory.judges import judges
from factory.recipe import EnginePart, Recipe
from factory.rounds import counting
from factory.rounds.counting import Ask, Counted

if TYPE_CHECKING:
    from factory.store import Store
    from train.config import TrainConfig

PROMPT_TOKENS = 60
"""Tokens of a prompt where the store has none to count yet."""
BYTES_A_TOKEN = 4
"""Of English text, about."""
DECODING = 0.3
"""Share of the rate of plain multiplication that decoding reaches, about."""
CACHED = 32_768
"""Positions in the engine's cache at once, at most."""


class Shared(NamedTuple):
    """What a run takes over from one that ran before it: round 1 before the step of that name ("": nothing of it), and
    the `start`'s answers on held-out prompts."""

    before: str = ""
    start: bool = False


def plan(
    recipe: Recipe,
    prompts: Mapping[str, int],
    *,
    prompt_tokens: int | None = None,
    store: Store | None = None,
    shared: Shared | None = None,
) -> dict[str, Any]:
    """The plan of a run as plain JSON values. prompts: number of prompts a split; prompt_tokens: mean of a prompt;
    store: where earlier runs tell how fast the model is here; shared: what another run has done for it."""
    rounds = [
        (times, counting.count(recipe, number, prompts, prompt_tokens or PROMPT_TOKENS))
        for number, times in ((1, 1), (2, recipe.stop.max_rounds - 1))
        if times
    ]
    shared = shared or Shared()
    asks = list(_asks(recipe, rounds, prompts, prompt_tokens or PROMPT_TOKENS, shared))
    trainings = list(_trainings(recipe, rounds, _before(recipe, shared.before)))
    rate = Rate.of(recipe, store, [t for t in trainings if t.needs])
    rows = [_row(ask, rate) for ask in asks]
    rows += [t.row(rate) for t in trainings]
    costs, seconds = [row["cost_usd"] for row in rows], [row["seconds"] for row in rows]
    unknown = sorted(
        {ask.engine.model or ask.model for ask, row in zip(asks, rows, strict=False) if row["cost_usd"] is None}
    )
    memory = [row["memory_bytes"] for row in rows if row["memory_bytes"]]
    free = _free(recipe) if memory else None
    paid = any(_is_paid(ask.engine) for ask in asks)
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "engine": recipe.engine.kind,
        "rounds_at_most": recipe.stop.max_rounds,
        "prompts": dict(prompts),
        "prompt_tokens": f"{prompt_tokens or PROMPT_TOKENS} a prompt" + ("" if prompt_tokens else ", assumed"),
        "stages": rows,
        "calls_at_most": sum(row["calls"] for row in rows),
        "tokens_at_most": sum(row["tokens"] for row in rows),
        "seconds": None if None in seconds else round(sum(seconds)),
        "time": _time(seconds, rate.told),
        "time_by": rate.told,
        "cost_usd": None if None in costs else round(sum(costs), 6),
        "cost": _cost(costs, unknown, paid),
        "memory_bytes": max(memory, default=None),
        "memory": _memory(max(memory, default=None), free),
    }


def total(plans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several runs, one after the other: their calls, tokens, time and cost together, the memory of the fullest."""
    seconds = [row["seconds"] for plan in plans for row in plan["stages"]]
    costs = [plan["cost_usd"] for plan in plans]
    told = next((plan["time_by"] for plan in plans if plan["time_by"]), "")
    fullest = max(plans, key=lambda plan: plan["memory_bytes"] or 0)
    unknown = next((plan["cost"] for plan in plans if plan["cost_usd"] is None), None)
    return {
        "calls_at_most": sum(plan["calls_at_most"] for plan in plans),
        "tokens_at_most": sum(plan["tokens_at_most"] for plan in plans),
        "seconds": None if None in seconds else round(sum(seconds)),
        "time": _time(seconds, told),
        "cost_usd": None if unknown else round(sum(costs), 6),
        "cost": unknown or (_about(sum(costs)) if sum(costs) else plans[0]["cost"]),
        "memory_bytes": fullest["memory_bytes"],
        "memory": fullest["memory"],
    }


# ---------------------------------------------------------------------------------------------------- what is asked


Rounds = list[tuple[int, Counted]]
"""The first round and the later ones: how many, and what each comes to."""


def _asks(recipe: Recipe, rounds: Rounds, prompts: Mapping[str, int], read: int, shared: Shared) -> Iterator[Ask]:
    """Every stage that asks a model, in the order of the run."""
    part, engine = recipe.evaluate, recipe.engine
    held, final = (_limited(prompts.get(split, 0), part.limit) for split in ("heldout", "final"))
    probed = _limited(held, min(part.probes or 0, part.score_limit or held)) if part.sampling().is_tempered else 0
    measured = Ask("evaluate the policy", recipe.stop.max_rounds, held * part.n + probed, part.max_tokens, read, engine,
                   recipe.model)  # fmt: skip
    if not shared.start:
        yield replace(measured, stage="evaluate the start", times=1)
    own = {step.name for step in recipe.steps_of(1)} - _before(recipe, shared.before)
    for step in recipe.stages:
        told = [(times if number or step.name in own else 0, counted.asks.get(step.name, []))
                for number, (times, counted) in enumerate(rounds)]  # fmt: skip
        yield from _merged(told)
    yield measured
    yield from _measuring(recipe, held, recipe.stop.max_rounds, read, "evaluate the policy")
    who = "champion" if shared.start else "start and champion"
    yield replace(measured, stage=f"evaluate {who} on final", times=1 if shared.start else 2, calls=final * part.n)
    yield from _measuring(recipe, final, 1, read, "evaluate champion on final")


def _merged(told: list[tuple[int, list[Ask]]]) -> Iterator[Ask]:
    """One line for what is the same in the first round and in later ones, else one for each."""
    of_stage: dict[str, list[Ask]] = {}
    for times, asks in told:
        for ask in asks:
            of_stage.setdefault(ask.stage, []).append(replace(ask, times=times))
    for stage, asks in of_stage.items():
        names = (f"{stage}, first round", f"{stage}, later rounds")
        if all(replace(ask, times=0) == replace(asks[0], times=0) for ask in asks):
            asks, names = [replace(asks[0], times=sum(ask.times for ask in asks))], (stage, "")
        yield from (replace(ask, stage=name) for name, ask in zip(names, asks, strict=False) if ask.times)


def _before(recipe: Recipe, name: str) -> set[str]:
    """Steps of round 1 that come before the one of that name."""
    names = [step.name for step in recipe.steps_of(1)]
    return set(names[: names.index(name)]) if name in names else set()


def _measuring(recipe: Recipe, prompts: int, times: int, read: int, stage: str) -> Iterator[Ask]:
    """A judge beside the verifier that asks a model compares each answer with the start's of the same number."""
    part, judge = recipe.evaluate, recipe.evaluate.judge
    if judge is not None and judges.facts(judge.judge)["asks"]:
        answers = counting.Answers(((prompts, 2),), read, part.max_tokens)
        ask = counting.judged(recipe, stage, judge.model_copy(update={"matchups": "all", "prompts": None}), answers)[0]
        yield replace(ask, times=times, calls=ask.calls * part.n)


def _limited(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


# -------------------------------------------------------------------------------------------------------- trainings


class Needs(NamedTuple):
    """Of one training: seconds, bytes at the fullest moment, parameters of the model, operations a second here."""

    seconds: float
    memory: int
    parameters: int
    rate: float


@dataclass(frozen=True)
class Training:
    """One train stage: `times` trainings on `rows` rows at most; `sampled` tokens are written by an online one."""

    stage: str
    times: int
    rows: int
    sampled: int
    needs: Needs | None

    def row(self, rate: Rate) -> dict[str, Any]:
        """As a line of the plan."""
        writing = rate.seconds(self.sampled, 0)
        known = self.needs is not None and writing is not None
        seconds = self.times * (self.needs.seconds + (writing or 0.0)) if self.needs and known else None
        return {
            "stage": f"{self.stage} ({self.rows} rows at most)",
            "times": self.times,
            "calls": 0,
            "tokens": self.times * self.sampled,
            "read": 0,
            "seconds": None if seconds is None else round(seconds, 1),
            "cost_usd": 0.0,
            "memory_bytes": self.needs.memory if self.needs else None,
        }


def _trainings(recipe: Recipe, rounds: Rounds, done: set[str]) -> Iterator[Training]:
    """Every train stage; `done`: steps of round 1 that another run did."""
    from train import losses

    for step in recipe.stages:
        if step.stage != "train":
            continue
        here = recipe.at(step)
        first = 2 if step.name in done else 1
        times = sum(step.in_round(number) for number in range(first, recipe.stop.max_rounds + 1))
        config, online = here.train.config, here.train.config.online
        made = max(
            (counted.trainings.get(step.name, []) for _, counted in rounds), key=lambda m: sum(x.rows for x in m)
        )
        objective = losses.get(config.method)
        rows = sum(each.rows for each in made) * (recipe.stop.max_rounds if here.train.all_rounds else 1)
        read, length = (max((each[place] for each in made), default=0) for place in (1, 2))
        needs = _needs(here.model, config, "completions" if online else objective.data, (rows, read, length))
        yield Training(step.name, times, rows, rows * length if online else 0, needs)


def _needs(model: str, config: TrainConfig, kind: str, size: tuple[int, int, int]) -> Needs | None:
    """What a training on so many rows of the greatest length takes; None where there are none, or where the model's
    configuration is not here. An online one learns from its samples as a supervised one would."""
    return _needs_of(model, config.model_dump_json(), kind, size) if size[0] else None


@cache
def _needs_of(model: str, settings: str, kind: str, size: tuple[int, int, int]) -> Needs | None:
    from factory.resources import held_folder, model_files
    from train import plan as plans
    from train.config import TrainConfig
    from train.data import CompletionRow, Encoded, LabelRow, PairRow
    from train.policy import resolve_device
    from train.trainer import micro_batch_tokens

    rows, read, length = size
    prompt, answer = (5,) * read, (7,) * length
    made: Any = {
        "pairs": PairRow(prompt, answer, answer),
        "scores": PairRow(prompt, answer, answer),
        "labels": LabelRow(prompt, answer, True),
    }.get(kind, CompletionRow(prompt, answer))
    config = plans.as_supervised(TrainConfig.model_validate_json(settings))
    scored = [Encoded(prompt, answer)] * (rows * (2 if kind == "pairs" else 1)) if kind in ("pairs", "labels") else []
    try:
        files = model_files(model)
        base = held_folder(files.base)
        if base is None:
            return None
        limit = micro_batch_tokens(config, resolve_device("auto"))
        found = plans.plan(str(base), files.adapter, plans.Rows([made] * rows, scored), config, limit=limit)
    except (FactoryError, OSError):  # a model that is not here is told of when it is loaded
        return None
    return Needs(found.seconds, found.memory.total, found.parameters, found.rate)


# ------------------------------------------------------------------------------------------------------ time, memory


@dataclass(frozen=True)
class Rate:
    """Tokens a second that the model writes here; `told`: by whom."""

    writing: float | None
    told: str

    @classmethod
    def of(cls, recipe: Recipe, store: Store | None, trainings: list[Training]) -> Rate:
        """What earlier runs took, else what the machine's multiplication allows for, else nothing is known."""
        if store is not None and (seen := _seen(store, recipe)):
            return cls(seen, "by earlier runs in this store")
        if recipe.engine.kind == "transformers" and trainings and (needs := trainings[0].needs):
            return cls(DECODING * needs.rate / (2 * needs.parameters), "by this machine's speed now, roughly")
        return cls(None, "")

    def seconds(self, written: int, read: int) -> float | None:
        """For so many tokens; reading is about ten times as fast as writing."""
        if not written and not read:
            return 0.0
        return None if self.writing is None else (written + read / 10) / self.writing


def _seen(store: Store, recipe: Recipe) -> float | None:
    """Tokens a second of the generations of earlier runs with the same model and engine."""
    import yaml

    tokens = seconds = 0.0
    for held in store.runs():
        kept = yaml.safe_load(held["recipe"] or "{}") or {}
        if kept.get("model") != recipe.model or (kept.get("engine") or {}).get("kind") != recipe.engine.kind:
            continue
        for mark in store.marks(held["run"]):
            said = (mark["detail"] or {}).get("candidates") if mark["state"] == "done" else None
            if said and said.get("tokens"):
                tokens += said["tokens"]
                seconds += said["seconds"]
    return tokens / seconds if seconds else None


def _row(ask: Ask, rate: Rate) -> dict[str, Any]:
    count = ask.times * ask.calls
    local = not _is_paid(ask.engine)
    seconds = rate.seconds(ask.tokens, count * ask.read) if local else None
    return {
        "stage": ask.stage,
        "times": ask.times,
        "calls": count,
        "tokens": ask.tokens,
        "read": count * ask.read,
        "seconds": None if seconds is None else round(seconds, 1),
        "cost_usd": _dollars(ask),
        "memory_bytes": _cache_bytes(ask) if ask.engine.kind == "transformers" else None,
    }


def _dollars(ask: Ask) -> float | None:
    from factory.engines.prices import read_prices

    if not _is_paid(ask.engine) or not ask.calls:
        return 0.0
    prices, _ = read_prices(ask.engine.options.get("prices"), ask.engine.model or ask.model)
    count = ask.times * ask.calls
    return None if prices is None else round(prices.cost(count * ask.read, count * ask.written), 6)


def _is_paid(engine: EnginePart) -> bool:
    from factory.engines import engines

    return bool(engines.facts(engine.kind).get("paid"))


def _cache_bytes(ask: Ask) -> int | None:
    """Weights and the cache of a full batch; None where the model is not here."""
    import json

    from factory.resources import held_folder, model_files

    try:
        base = held_folder(model_files(ask.engine.model or ask.model).base)
        if base is None:
            return None
        told = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (FactoryError, OSError, ValueError):  # told of when it is loaded
        return None
    told = told.get("text_config", told)
    heads = told.get("num_key_value_heads") or told.get("num_attention_heads") or 1
    width = told.get("head_dim") or told.get("hidden_size", 0) // (told.get("num_attention_heads") or 1)
    positions = min(CACHED, ask.calls * (ask.read + ask.written))
    cache = 2 * told.get("num_hidden_layers", 0) * heads * width * positions * 4
    return int(cache + sum(path.stat().st_size for path in base.glob("*.safetensors")))


def _free(recipe: Recipe) -> int:
    from train.plan import free_bytes
    from train.policy import resolve_device

    return free_bytes(resolve_device("auto"))


# -------------------------------------------------------------------------------------------------------------- words


def _cost(costs: list[float | None], unknown: list[str], paid: bool) -> str:
    if not paid:
        return "nothing is paid for: the model runs here"
    if None in costs:
        return f"unknown: no prices of {', '.join(unknown)} are given"
    return _about(sum(c for c in costs if c))


def _about(dollars: float) -> str:
    return f"about ${dollars:,.4f}: all answers as long as they may be, read tokens estimated"


def _time(seconds: list[float | None], told: str) -> str:
    known = sum(s for s in seconds if s is not None)
    if all(s is None for s in seconds) or not told:
        return "unknown: an endpoint's speed, or a model that is not here yet"
    more = " and the time of what an endpoint answers" if None in seconds else ""
    span = f"{known:.0f} s" if known < 90 else f"{known / 60:.0f} min" if known < 5400 else f"{known / 3600:.1f} h"
    return f"at most about {span}{more} ({told})"


def _memory(most: int | None, free: int | None) -> str:
    if most is None:
        return "unknown: no model of this run is here yet"
    gib = 2**30
    short = "" if free is None or most <= free else ": more than there is"
    return f"about {most / gib:.2f} GiB at the fullest stage" + (
        f", {free / gib:.2f} GiB are free{short}" if free else ""
    )
