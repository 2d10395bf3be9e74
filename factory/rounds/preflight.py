"""Is a recipe sound, before anything is asked or paid for? Every name in it is looked up and every option tried.

`recipe.py` knows the form of a recipe; this knows what the names mean: engines, judges with their options, choices of
matchups, pairing strategies, objectives with their parameters. No model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory import engines, recipe as recipes
from factory.faults import ConfigError, FactoryError
from factory.labelling import matchups
from factory.registry import unknown_name
from factory.resources import to_come
from factory.rounds.runbook import judges_of
from factory.store import check_run_name

if TYPE_CHECKING:
    from factory.pairing import LabelRule
    from factory.recipe import EnginePart, PairPart, PanelPart, Recipe, RewardJudge, Step

LOCAL = ("transformers", "vllm")
"""Engines whose model runs here."""


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or path, sound. ConfigError with every fault of form and every name and option that is
    not known, all at once."""
    path = recipes.find(name)
    read = recipes.examine_file(path, overrides)
    named = faults(read.recipe, whole=not read.faults) if read.recipe is not None else ()
    found = [*read.faults, *(fault for fault in named if read.stands(fault))]
    if found or read.recipe is None:
        raise ConfigError(found, where=str(path), todo=recipes.MEND)
    return read.recipe


def check(recipe: Recipe, *, where: str) -> None:
    """ConfigError with every name and option of the recipe that is not known; `where` is its file."""
    found = list(faults(recipe))
    if found:
        raise ConfigError(found, where=where, todo=recipes.MEND)


def faults(recipe: Recipe, *, whole: bool = True) -> Iterator[str]:
    """Every fault as "key: what", in the order of the recipe; each once, also where several stages share it. Not
    `whole`: something of the recipe was left out, so that how its parts go together says nothing."""
    found = dict.fromkeys(_told("name", partial(check_run_name, recipe.name)))
    found |= dict.fromkeys(_told("engine", partial(_engine, recipe.engine)))
    found |= dict.fromkeys(_told("model", partial(to_come, recipe.model)))
    found |= dict.fromkeys(_told("prompts.source", partial(_source, recipe)))
    for step in recipe.stages:
        here = "" if step.name == step.stage and not step.set else f"stages.{step.name}: "
        known = {fault.removeprefix(here) for fault in found}
        found |= dict.fromkeys(here + f for f in CHECKS[step.stage](recipe.at(step)) if f not in known)
    found |= dict.fromkeys(_evaluation_judge(recipe))
    if whole:
        found |= dict.fromkeys(_order(recipe))
        found |= dict.fromkeys(_combined(recipe))
        found |= dict.fromkeys(_told("budget.max_cost", partial(_prices, recipe)))
        found |= dict.fromkeys(_evaluation(recipe))
    yield from found


def notes(recipe: Recipe) -> Iterator[str]:
    """What to know of a sound recipe before it runs: the models that are still to be fetched."""
    named = [recipe.model, *(model for part in judges_of(recipe) for model in _models(recipe, part))]
    for model in dict.fromkeys(named):
        if said := to_come(model):
            yield said


def labelled_by(recipe: Recipe) -> dict[str, str]:
    """Who says what is better in training, by name and by kind, with the model behind each; the verifier too where it
    rewards the policy's own answers."""
    found: dict[str, str] = {}
    for step in recipe.stages:
        here = recipe.at(step)
        parts: Sequence[PanelPart] = here.panel if step.stage == "label" else ()
        if step.stage == "train" and here.train.config.online is not None:
            parts = here.train.reward or ()
            found |= {} if parts else {"verifier": ""}
        for part in parts:
            model = _model_behind(here, part)
            found |= {part.judge: model, recipe.member_name(part): model}
    return found


def _model_behind(here: Recipe, part: PanelPart) -> str:
    """The name of the model that a judge asks, or is; "" of one without."""
    from factory.judges import judges

    if not judges.facts(part.judge).get("asks"):
        return str(part.options.get("model") or "")
    asked = part.model or ("policy" if part.judge in {"self_reward", "implicit"} else "start")
    return (part.engine or here.engine).model or (here.model if asked == "start" else asked)


def _evaluation_judge(recipe: Recipe) -> Iterator[str]:
    part = recipe.evaluate.judge
    return iter(()) if part is None else _judge("evaluate.judge", recipe, part, scored=True)


def _evaluation(recipe: Recipe) -> Iterator[str]:
    """Something that measures has not labelled, or the recipe admits that nothing does."""
    from factory.evaluation.judged import is_independent

    part = recipe.evaluate.judge
    with suppress(FactoryError):  # a judge of the panel that is unknown is told of already
        labels = labelled_by(recipe)
        other = part is not None and is_independent(
            recipe.member_name(part), part.judge, _model_behind(recipe, part), labels
        )
        if recipe.evaluate.independent and "verifier" in labels and not other:
            yield (
                "evaluate.independent: the verifier labels and measures, so that its measure is an echo: name a judge "
                "that is not in the panel, nor its model, in evaluate.judge, or admit it with independent: false"
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
        yield from _judge(f"panel.{number}", recipe, part, scored=scored)
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
    parts = recipe.train.reward or ()
    keys = ["train.reward" if len(parts) == 1 else f"train.reward.{number}" for number in range(len(parts))]
    found = [fault for key, part in zip(keys, parts, strict=True) for fault in _judge(key, recipe, part, scored=True)]
    yield from found
    if parts and not found:
        yield from _told("train.reward", partial(_together, parts))


CHECKS: dict[str, Callable[[Recipe], Iterator[str]]] = {
    "generate": _of_generate,
    "revise": _of_revise,
    "label": _of_label,
    "collect": _of_collect,
    "pair": _of_pair,
    "train": _of_train,
}
NEEDS = {"revise": "generate", "label": "generate", "collect": "label", "pair": "generate"}


def _combined(recipe: Recipe) -> Iterator[str]:
    """Weights and families of judges go with the way to combine, and are of judges that some stage hears."""
    from factory.pairing.combining import rule_of, ways

    panels = [recipe.at(step).panel for step in recipe.stages if step.stage == "label"]
    heard = sorted({recipe.member_name(part) for panel in panels for part in panel})
    for part in (recipe.at(step).pair for step in recipe.stages if step.stage == "pair"):
        if not heard or part.combine not in ways():
            continue
        combined = partial(rule_of, heard, combine=part.combine, lead=heard[0], break_ties=False, tie_margin=0.0)
        yield from _told("pair", partial(combined, weights=part.judge_weights, families=part.judge_families))


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
            elif step.stage == "train" and "pair" in needed:
                with suppress(FactoryError):
                    yield from _trained_on(recipe, step, [s for s in steps[:place] if s.stage == "pair"])


def _trained_on(recipe: Recipe, step: Step, pairings: Sequence[Step]) -> Iterator[str]:
    """A training learns rows that some stage before it makes."""
    from factory.training import needs

    here = recipe.at(step)
    table = needs(here.train.config)
    parts = [recipe.at(pairing).pair for pairing in pairings]
    made = {part.called for part in parts if table == "preferences" or part.label_by != "none"}
    wanted = here.train.pairings or [here.pair.called]
    own = "" if step.name == step.stage and not step.set else f"stages.{step.name}: "
    if not made and table == "labels":
        yield (
            f"{own}train.config.method: {here.train.config.method} learns from labels, and pair.label_by: none makes "
            "none (say threshold, quantile or pairs)"
        )
    elif strange := sorted(set(wanted) - made):
        known = f"those of that round make {', '.join(sorted(made)) or 'nothing'}"
        yield f"{own}train.pairings: no stage pair before it makes {table} called {', '.join(strange)}; {known}"


def labels_of(part: PairPart) -> LabelRule:
    """How the recipe has labels made."""
    from factory.pairing import LabelRule

    return LabelRule(part.label_by, part.threshold, part.quantiles, part.label_weights)


def _judge(key: str, recipe: Recipe, part: PanelPart, *, scored: bool) -> Iterator[str]:
    """The faults of one judge: itself, its engine, the models that it names."""
    yield from _told(key, partial(_member, part, scored))
    if part.engine is not None:
        yield from _told(f"{key}.engine", partial(_engine, part.engine))
    for model in _models(recipe, part):
        yield from _told(key, partial(to_come, model))


def _models(recipe: Recipe, part: PanelPart) -> list[str]:
    """The models that a judge names and that run here, those that come of the run left out."""
    from factory.judges import judges

    facts: dict[str, Any] = {}
    with suppress(FactoryError):  # a judge that is unknown is told of already
        facts = judges.facts(part.judge)
    engine = part.engine or recipe.engine
    named: list[Any] = []
    if facts.get("asks") and engine.kind in LOCAL:
        named = [engine.model or part.model]
    if facts.get("model"):
        named = [
            part.options.get("model") or part.model,
            *([part.options.get("reference")] if "reference" in facts else []),
        ]
    return [str(name) for name in named if name not in {None, "policy", "previous", "start"}]


def _source(recipe: Recipe) -> None:
    """The prompts' file is there; a data set of the hub is not looked up."""
    from factory.prompts.sources import open_source

    if recipe.prompts.source != "store":
        open_source(recipe.prompts.source)


def _told(key: str, attempt: Callable[[], object]) -> Iterator[str]:
    try:
        attempt()
    except ConfigError as fault:
        yield from (f"{key}: {line}" for line in fault.faults)
    except FactoryError as fault:
        where = f": {fault.where}" if fault.where and fault.where not in fault.what else ""
        yield f"{key}: {fault.what}{where}" + (f" ({fault.todo})" if fault.todo else "")


def _engine(part: EnginePart) -> None:
    facts = engines.engines.facts(part.kind)  # raises, naming the nearest
    if part.count > 1 and "devices" not in facts:
        raise FactoryError(f"count: the {part.kind} engine answers many requests at once in one process")
    if part.options:  # to know an engine's options is to import it
        engines.check(engines.EngineSpec(part.kind, part.model or "", part.options))
    if part.kind == "scripted" and (part.model or "").endswith((".yaml", ".yml")):
        from factory.engines.scripted import load_rules

        load_rules(Path(str(part.model)))


def _prices(recipe: Recipe) -> None:
    """A cap on dollars needs the prices of every model that is paid for."""
    from factory.budget import priced
    from factory.judges import judges

    if recipe.budget.max_cost is None:
        return
    wanted = [(recipe.engine, recipe.model)]
    for part in judges_of(recipe):
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


def _together(parts: Sequence[RewardJudge]) -> None:
    """The judges can reward what is sampled, and can be told apart."""
    from factory.training.rewards import RewardPart, Rewards

    engine = engines.EngineSpec("", "")
    made = [
        RewardPart(judge=part.judge, name=part.name or "", weight=part.weight, engine=engine, matchups=part.matchups)
        for part in parts
    ]
    Rewards(parts=tuple(made)).check()


def _is_pointwise(part: PanelPart) -> bool:
    from factory.labelling import PanelMember

    try:
        return PanelMember.of(part.judge, name=part.name, options=part.options).judge.kind == "pointwise"
    except FactoryError:
        return True  # its own fault is told already; not that of its neighbours too
