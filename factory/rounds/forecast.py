"""What a run would take before it begins: calls, tokens, time, money and memory, stage by stage.

Calls and written tokens are the most that there can be; read tokens, time, money and memory are estimates, and each
says what it is made of. Local engines cost nothing; an endpoint costs by the prices that the recipe gives, unknown
without them. Time goes by what earlier runs of the store took with the same model, else by how fast this machine
multiplies now, which is right within a factor of about three. Memory and time of a training are `train/plan.py`'s, on
rows of the greatest length. Nothing is asked and no weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.faults import FactoryError
from factory.judges import Effort, judges
from factory.judges.canaries import planned
from factory.recipe import EnginePart, PanelPart, Recipe, Step

if TYPE_CHECKING:
    from factory.store import Store
    from train.config import TrainConfig

PROMPT_TOKENS = 60
"""Tokens of a prompt where the store has none to count yet."""
BYTES_A_TOKEN = 4
"""Of English text, about."""
RUBRIC_TOKENS = 350
"""What a judge is told besides prompt and answers, about."""
EXAMPLE_TOKENS = 700
"""What a critique is shown besides, about."""
DECODING = 0.3
"""Share of the rate of plain multiplication that decoding reaches, about."""
CACHED = 32_768
"""Positions in the engine's cache at once, at most."""


@dataclass(frozen=True)
class Ask:
    """Work for a model: so many calls in a round, tokens written and read by each, `times` rounds."""

    stage: str
    times: int
    calls: int
    written: int
    read: int
    engine: EnginePart
    model: str

    @property
    def tokens(self) -> int:
        """Written in all, at most."""
        return self.times * self.calls * self.written


def plan(
    recipe: Recipe, prompts: Mapping[str, int], *, prompt_tokens: int | None = None, store: Store | None = None
) -> dict[str, Any]:
    """The plan of a run as plain JSON values. prompts: number of prompts a split; prompt_tokens: mean of a prompt;
    store: where earlier runs tell how fast the model is here."""
    asks = list(_asks(recipe, prompts, prompt_tokens or PROMPT_TOKENS))
    trainings = list(_trainings(recipe, prompts, prompt_tokens or PROMPT_TOKENS))
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
        "time": _time(seconds, rate),
        "cost_usd": None if None in costs else round(sum(costs), 6),
        "cost": _cost(costs, unknown, paid),
        "memory_bytes": max(memory, default=None),
        "memory": _memory(max(memory, default=None), free),
    }


# ---------------------------------------------------------------------------------------------------- what is asked


def _asks(recipe: Recipe, prompts: Mapping[str, int], read: int) -> Iterator[Ask]:
    """Every stage that asks a model, in the order of the run."""
    part, engine = recipe.evaluate, recipe.engine
    held, final = (_limited(prompts.get(split, 0), part.limit) * part.n for split in ("heldout", "final"))
    rounds = recipe.stop.max_rounds
    yield Ask("evaluate the start", 1, held, part.max_tokens, read, engine, recipe.model)
    for step in recipe.stages:
        times = sum(step.in_round(number) for number in range(1, rounds + 1))
        yield from _of_step(recipe.at(step), step, times, prompts, read)
    yield Ask("evaluate the policy", rounds, held, part.max_tokens, read, engine, recipe.model)
    yield Ask("evaluate start and champion on final", 2, final, part.max_tokens, read, engine, recipe.model)


def _of_step(here: Recipe, step: Step, times: int, prompts: Mapping[str, int], read: int) -> Iterator[Ask]:
    drawn = min(here.prompts.per_round, prompts.get("train", 0)) or here.prompts.per_round
    if step.stage == "generate":
        sampled = here.generate
        yield Ask(step.name, times, drawn * sampled.n, sampled.max_tokens, read, here.engine, here.model)
    if step.stage == "revise":
        calls = 2 * here.revise.rounds * drawn * here.generate.n
        yield Ask(step.name, times, calls, here.revise.max_tokens, read + EXAMPLE_TOKENS, here.engine, here.model)
    if step.stage == "label":
        for part in here.panel:
            if judges.facts(part.judge)["asks"]:
                yield _judged(here, step, part, times, drawn, read)


def _judged(here: Recipe, step: Step, part: PanelPart, times: int, prompts: int, read: int) -> Ask:
    """What one judge is asked in a round at most: of each candidate, or of each pair; canaries on top. A judge that
    cannot say what a matchup costs (a rubric of each prompt's own) is counted as one call."""
    judge = judges.get(part.judge)(name=part.name or part.judge, **part.options)
    count, n = _limited(prompts, part.prompts), here.generate.n
    effort: Effort = getattr(judge, "effort", None) or Effort(2 if judge.kind == "pairwise" else 1, 1)
    shown = 1 if judge.kind == "pointwise" else 2
    matchups = count * (n if judge.kind == "pointwise" else _pairs(part.matchups, n))
    own = here.model if part.model in {None, "policy", "previous", "start"} else str(part.model)
    return Ask(
        f"{step.name}: {here.member_name(part)}",
        times,
        (matchups + planned(matchups)) * effort.calls,
        max(1, effort.tokens // effort.calls),
        read + RUBRIC_TOKENS + shown * here.generate.max_tokens,
        part.engine or here.engine,
        own,
    )


def _pairs(choice: str, n: int) -> int:
    """Pairs of a prompt's n answers that a choice of matchups makes, at most."""
    name, _, most = choice.partition(":")
    pairs = n - 1 if name == "against_best" else n * (n - 1) // 2
    return min(pairs, int(most)) if most.isdigit() else pairs


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


def _trainings(recipe: Recipe, prompts: Mapping[str, int], read: int) -> Iterator[Training]:
    from train import losses

    for step in recipe.stages:
        if step.stage != "train":
            continue
        here = recipe.at(step)
        times = sum(step.in_round(number) for number in range(1, recipe.stop.max_rounds + 1))
        drawn = min(here.prompts.per_round, prompts.get("train", 0)) or here.prompts.per_round
        config, online = here.train.config, here.train.config.online
        kind = losses.get(config.method).data
        if online is not None:
            rows = online.steps * online.prompts * online.n
            sampled, length = rows * online.max_tokens, online.max_tokens
        else:
            rows, sampled, length = drawn * _rows_a_prompt(here, kind), 0, here.generate.max_tokens
        needs = _needs(here.model, config, "completions" if online else kind, (rows, read, length))
        yield Training(step.name, times, rows, sampled, needs)


def _rows_a_prompt(here: Recipe, kind: str) -> int:
    n = here.generate.n
    if kind in ("labels", "completions"):
        return n
    return n * (n - 1) // 2 if here.pair.strategy == "all" else (n if here.pair.strategy == "draft_revision" else 1)


def _needs(model: str, config: TrainConfig, kind: str, size: tuple[int, int, int]) -> Needs | None:
    """What a training on so many rows of the greatest length takes; None where the model's configuration is not
    here. An online one learns from its samples as a supervised one would."""
    from factory.resources import model_files
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
    if config.online is not None:
        settings = config.model_dump(exclude={"method", "parameters", "online", "add", "weighting", "kl_budget"})
        batch = config.online.prompts * config.online.n
        config = TrainConfig(**{**settings, "method": "sft", "epochs": config.online.updates, "batch_size": batch})
    try:
        files = model_files(model)
        scored = (
            [Encoded(prompt, answer)] * (rows * (2 if kind == "pairs" else 1)) if kind in ("pairs", "labels") else []
        )
        limit = micro_batch_tokens(config, resolve_device("auto"))
        found = plans.plan(files.base, files.adapter, plans.Rows([made] * rows, scored), config, limit=limit)
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
    from pathlib import Path

    from factory.resources import model_files

    try:
        base = Path(model_files(ask.engine.model or ask.model).base)
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
    return f"about ${sum(c for c in costs if c):,.4f}: all answers as long as they may be, read tokens estimated"


def _time(seconds: list[float | None], rate: Rate) -> str:
    known = sum(s for s in seconds if s is not None)
    if all(s is None for s in seconds) or rate.writing is None:
        return "unknown: an endpoint's speed, or a model that is not here yet"
    more = " and the time of what an endpoint answers" if None in seconds else ""
    span = f"{known:.0f} s" if known < 90 else f"{known / 60:.0f} min" if known < 5400 else f"{known / 3600:.1f} h"
    return f"at most about {span}{more} ({rate.told})"


def _memory(most: int | None, free: int | None) -> str:
    if most is None:
        return "unknown: no model of this run is here yet"
    gib = 2**30
    short = "" if free is None or most <= free else ": more than there is"
    return f"about {most / gib:.2f} GiB at the fullest stage" + (
        f", {free / gib:.2f} GiB are free{short}" if free else ""
    )
