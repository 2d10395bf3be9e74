"""Echoes: a measure that also said what is good in training proves nothing by itself, and a reader is told so.

What labelled is read from the run's recipe, step by step; what measures, from the champion's evaluation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from factory.faults import FactoryError

if TYPE_CHECKING:
    from factory.recipe import Recipe
    from factory.schema import PolicyReport

VERIFIER = "verifier"
SAYS = {
    "decided": "The verifier that measures is also the judge that decided the labels",
    "rewarded": "The verifier that measures also rewarded the answers that were learnt",
    "heard": "The verifier that measures also sat in the panel that labelled",
}
"""By what the verifier did, what did most first."""
UNREWARDED = {"relevance": "", "length": "words", "distinct-2": ""}
"""Measures that stand beside the verifier, and the judge that would reward one."""


def echo(recipe: str, best: PolicyReport | None) -> str | None:
    """What to beware of in the measures of the champion; None where something that measures had no say in training, or
    nobody knows."""
    read = _read(recipe)
    kinds = {} if read is None else labelling(read)
    role = "" if read is None else role_of_verifier(read)
    alone = [judge.judge for judge in best.judged if judge.independent] if best else []
    both = [judge.judge for judge in best.judged if judge.independent is False] if best else []
    if role and (best is None or best.pass_rate is not None):
        said = SAYS[role]
    elif alone or (best is not None and best.independent is not False):
        return None
    elif both:
        said = f"All that measures here also labelled ({', '.join(both)})"
    elif best is not None:
        said = "All that measures here also labelled"
    else:
        return None
    said_good = {*kinds.values(), *(_rewards(read) if read else ())}
    beside = [measure for measure, judge in UNREWARDED.items() if judge not in said_good]
    others = f", and {_listed(alone)} had no say in training" if alone else ""
    return f"{said}: {_listed(beside)} were never rewarded and stand beside it{others}."


def role_of_verifier(recipe: Recipe) -> str:
    """What the verifier did for the labels, as a key of SAYS; empty: nothing."""
    kinds, rewards = labelling(recipe), _rewards(recipe)
    found = {"decided"} if VERIFIER in {kinds.get(lead) for lead in _leads(recipe)} else set()
    found |= {"rewarded"} if VERIFIER in rewards else set()
    found |= {"heard"} if VERIFIER in kinds.values() else set()
    return next((role for role in SAYS if role in found), "")


def labelling(recipe: Recipe) -> dict[str, str]:
    """The judges of the steps that label, by name: their kind."""
    heres = [recipe.at(step) for step in recipe.stages if step.stage == "label"]
    return {here.member_name(part): part.judge for here in heres for part in here.panel}


def _leads(recipe: Recipe) -> set[str]:
    """The judges that decide alone in some pairing."""
    heres = [recipe.at(step) for step in recipe.stages if step.stage == "pair"]
    return {here.lead for here in heres if here.lead is not None and here.pair.combine == "lead"}


def _rewards(recipe: Recipe) -> set[str]:
    """Kinds of the judges that reward a policy's own answers; the verifier where none is named."""
    heres = [recipe.at(step) for step in recipe.stages if step.stage == "train"]
    online = [here.train.reward for here in heres if here.train.config.online is not None]
    return {part.judge for reward in online for part in reward or ()} | ({VERIFIER} if None in online else set())


def _read(recipe: str) -> Recipe | None:
    """The recipe but for its rules, which may be a plugin's; None where there is none, or it was written for another
    version."""
    from factory.recipe import parse_but_rules

    try:
        return parse_but_rules(recipe, where="the run's recipe") if recipe else None
    except (FactoryError, yaml.YAMLError):
        return None


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
