"""Is a recipe sound, before anything is asked or paid for? Every name in it is looked up and every option tried.

`recipe.py` knows the form of a recipe; this knows what the names mean: engines, judges with their options, choices of
matchups, pairing strategies, objectives with their parameters. No model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from factory import engines
from factory.faults import ConfigError, FactoryError
from factory.labelling import matchups
from factory.registry import unknown_name

if TYPE_CHECKING:
    from factory.pairing import LabelRule
    from factory.recipe import EnginePart, PairPart, PanelPart, Recipe


def check(recipe: Recipe, *, where: str) -> None:
    """ConfigError with every name and option of the recipe that is not known; `where` is its file."""
    found = list(faults(recipe))
    if found:
        raise ConfigError(found, where=where, todo="mend these keys, or override with --set")


def faults(recipe: Recipe) -> Iterator[str]:
    """Every fault as "key: what", in the order of the recipe; each once, also where several stages share it."""
    found = dict.fromkeys(_told("engine", partial(_engine, recipe.engine)))
    for step in recipe.stages:
        here = "" if step.name == step.stage and not step.set else f"stages.{step.name}: "
        known = {fault.removeprefix(here) for fault in found}
        found |= dict.fromkeys(here + f for f in CHECKS[step.stage](recipe.at(step)) if f not in known)
    found |= dict.fromkeys(_order(recipe))
    found |= dict.fromkeys(_told("budget.max_cost", partial(_prices, recipe)))
    found |= dict.fromkeys(_evaluation(recipe))
    yield from found


def labelled_by(recipe: Recipe) -> dict[str, str]:
    """Who says what is better in training, by name and by kind, with the model behind each; the verifier too where it
    rewards the policy's own answers."""
    from factory.judges import judges

    found: dict[str, str] = {}
    for step in recipe.stages:
        here = recipe.at(step)
        parts = here.panel if step.stage == "label" else ()
        if step.stage == "train" and here.train.config.online is not None:
            parts = (here.train.reward,) if here.train.reward else ()
            found |= {} if here.train.reward else {"verifier": ""}
        for part in parts:
            asked = part.model or ("policy" if part.judge in {"self_reward", "implicit"} else "start")
            own = recipe.model if asked == "start" else asked
            spec = part.engine or here.engine
            model = (
                (spec.model or own) if judges.facts(part.judge).get("asks") else str(part.options.get("model") or "")
            )
            found |= {part.judge: model, recipe.member_name(part): model}
    return found


def _evaluation(recipe: Recipe) -> Iterator[str]:
    """Something that measures has not labelled, or the recipe admits that nothing does."""
    part = recipe.evaluate.judge
    if part is not None:
        fault = list(_told("evaluate.judge", partial(_member, part, True)))
        yield from fault
        if fault:
            return
    with suppress(FactoryError):  # a judge of the panel that is unknown is told of already
        labels = labelled_by(recipe)
        other = part is not None and not {part.judge, recipe.member_name(part)} & set(labels)
        if recipe.evaluate.independent and "verifier" in labels and not other:
            yield (
                "evaluate.independent: the verifier labels and measures, so that its measure is an echo: name a judge "
                "that is not in the panel in evaluate.judge, or admit it with independent: false"
            )


def _of_generate(recipe: Recipe) -> Iterator[str]:
    yield from _told("engine", partial(_engine, recipe.engine))


def _of_revise(recipe: Recipe) -> Iterator[str]:
    from factory.judges import rubric

    part = recipe.revise
    yield from _told("engine", partial(_engine, recipe.engine))
    yield from _told("revise", lambda: rubric.load(part.constitution).choose(part.principles, "critique"))


def _of_label(recipe: Recipe) -> Iterator[str]:
    scored = False
    for number, part in enumerate(recipe.panel):
        yield from _told(f"panel.{number}", partial(_member, part, scored))
        if part.engine is not None:
            yield from _told(f"panel.{number}.engine", partial(_engine, part.engine))
        scored = scored or _is_pointwise(part)


def _of_collect(recipe: Recipe) -> Iterator[str]:
    return iter(())  # what it names is looked up in the order of the stages


def _of_pair(recipe: Recipe) -> Iterator[str]:
    from factory.pairing import Filters, strategies
    from factory.pairing.combining import ways

    yield from _told("pair.strategy", partial(strategies.get, recipe.pair.strategy))
    yield from _told("pair", Filters.of(recipe.pair).check)
    yield from _told("pair", labels_of(recipe.pair).check)
    if recipe.pair.combine not in ways():
        yield f"pair.combine: {unknown_name('way to combine judges', recipe.pair.combine, ways()).what}"
    if recipe.pair.combine in ("one_coin", "dawid_skene", "dependent") and len(recipe.panel) < 3:
        yield f"pair.combine: {recipe.pair.combine} learns from 3 judges or more; the panel has {len(recipe.panel)}"


def _of_train(recipe: Recipe) -> Iterator[str]:
    yield from _told("train.config", recipe.train.config.check)
    if recipe.train.reward is not None:
        yield from _told("train.reward", partial(_rewards, recipe.train.reward))


CHECKS: dict[str, Callable[[Recipe], Iterator[str]]] = {
    "generate": _of_generate,
    "revise": _of_revise,
    "label": _of_label,
    "collect": _of_collect,
    "pair": _of_pair,
    "train": _of_train,
}
NEEDS = {"revise": "generate", "label": "generate", "collect": "label", "pair": "generate"}


def _order(recipe: Recipe) -> Iterator[str]:
    """Every stage comes after what it works on, in the first round and in later ones."""
    from factory.pairing import strategies
    from factory.training import needs

    for number in (1, 2):
        steps = recipe.steps_of(number)
        if not any(step.stage == "train" for step in steps):
            yield "stages: a round without a train stage has no policy"
        for place, step in enumerate(steps):
            before, here = {earlier.stage for earlier in steps[:place]}, recipe.at(step)
            needed = {NEEDS.get(step.stage, "")} - {""}
            with suppress(FactoryError):  # what is unknown is told of already
                if step.stage == "train":
                    needed = set() if here.train.all_rounds or needs(here.train.config) == "prompts" else {"pair"}
                if step.stage == "pair":
                    needed = {"revise" if strategies.facts(here.pair.strategy).get("lineage") else "label"}
            if lacking := sorted(needed - before):
                yield f"stages: {step.name} needs a stage {lacking[0]} before it"


def labels_of(part: PairPart) -> LabelRule:
    """How the recipe has labels made."""
    from factory.pairing import LabelRule

    return LabelRule(part.label_by, part.threshold, part.quantiles, part.label_weights)


def _told(key: str, attempt: Callable[[], object]) -> Iterator[str]:
    try:
        attempt()
    except ConfigError as fault:
        yield from (f"{key}: {line}" for line in fault.faults)
    except FactoryError as fault:
        yield f"{key}: {fault.what}" + (f" ({fault.todo})" if fault.todo else "")


def _engine(part: EnginePart) -> None:
    facts = engines.engines.facts(part.kind)  # raises, naming the nearest
    if part.count > 1 and "devices" not in facts:
        raise FactoryError(f"count: the {part.kind} engine answers many requests at once in one process")
    if part.options:  # to know an engine's options is to import it
        engines.check(engines.EngineSpec(part.kind, part.model or "", part.options))


def _prices(recipe: Recipe) -> None:
    """A cap on dollars needs the prices of every model that is paid for."""
    from factory.budget import priced
    from factory.judges import judges

    if recipe.budget.max_cost is None:
        return
    panels = [recipe.at(step).panel for step in recipe.stages if step.stage == "label"]
    wanted = [(recipe.engine, recipe.model)]
    for part in (part for panel in panels for part in panel):
        with suppress(FactoryError):  # a judge that is unknown is told of already
            if judges.facts(part.judge)["asks"]:
                own = recipe.model if part.model in {None, "policy", "previous", "start"} else part.model
                wanted.append((part.engine or recipe.engine, str(own)))
    unknown = set()
    for engine, own in wanted:
        model = engine.model or own
        with suppress(FactoryError):  # as above
            if not priced(engines.EngineSpec(engine.kind, model, engine.options)):
                unknown.add(model)
    if unknown:
        raise FactoryError(f"cannot be kept: no prices of {', '.join(sorted(unknown))} are given")


def _member(part: PanelPart, scored: bool) -> None:
    from factory.labelling import PanelMember

    member = PanelMember.of(part.judge, name=part.name, options=part.options)
    choice = matchups.parse(part.matchups)
    if member.judge.kind == "pairwise" and matchups.needs_scores(choice) and not scored:
        raise FactoryError(f"{part.matchups!r} needs the scores of a pointwise judge before it in the panel")


def _rewards(part: PanelPart) -> None:
    """A judge that scores single answers by itself."""
    from factory.labelling import PanelMember

    judge = PanelMember.of(part.judge, name=part.name, options=part.options).judge
    if judge.kind != "pointwise" or not hasattr(judge, "vote"):
        raise FactoryError(
            f"judge {part.judge!r} does not score single answers by itself",
            todo="an online training takes verifier, reward_model or implicit",
        )


def _is_pointwise(part: PanelPart) -> bool:
    from factory.labelling import PanelMember

    try:
        return PanelMember.of(part.judge, name=part.name, options=part.options).judge.kind == "pointwise"
    except FactoryError:
        return True  # its own fault is told already; not that of its neighbours too
