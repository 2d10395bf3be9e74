"""Recipes: YAML files that say how a run goes, read into frozen models that refuse what they do not know.

A recipe is found by name among the bundled ones (pipelines/*.yaml) or by path. Flags override it (`--set a.b=c`).
`stages` lists what a round does, in order: a stage may be left out, or come again under a name and with settings of its
own. Before the rounds the start is evaluated, after each the policy, after all the champion on `final`.

    parts.py     what each stage is told
    whole.py     the recipe, what it is in each step, what in it does not go together
    reading.py   from YAML and overrides, with every fault at once
    misfits.py   what pydantic finds, in plain words
    dotted.py    a.b=c
"""

from factory.recipe.parts import EnginePart, EvaluatePart, PairPart, PanelPart, RewardJudge, Step
from factory.recipe.reading import MEND, Read, bundled_recipes, dump, examine_file, find, load, parse, parse_but_rules
from factory.recipe.whole import FRAME, Recipe, disagreements

__all__ = [
    "FRAME", "MEND", "EnginePart", "EvaluatePart", "PairPart", "PanelPart", "Read", "Recipe", "RewardJudge", "Step",
    "bundled_recipes", "disagreements", "dump", "examine_file", "find", "load", "parse", "parse_but_rules",
]  # fmt: skip
