"""A recipe, whole: its parts, what it is in each step, and what in it does not go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, model_validator

from factory.faults import FactoryError
from factory.recipe import dotted, misfits
from factory.recipe.parts import (
    BudgetPart,
    CollectPart,
    Count,
    EnginePart,
    EvaluatePart,
    GeneratePart,
    LabelPart,
    PairPart,
    PanelPart,
    Part,
    PromptsPart,
    RevisePart,
    Step,
    TrainPart,
)
from factory.registry import unknown_name
from factory.stopping import StopConfig

PIECEMEAL = "piecemeal"
"""Told to a recipe that is read although it may not agree with itself."""
OF_THE_RUN = ("stages", "stop", "evaluate", "budget", "name", "model", "go_on_from")
"""Keys that no stage has a setting of its own of."""
FRAME = ("prompts", "evaluate", "final")
"""Stages that every run has, around those of its rounds."""


class Recipe(Part):
    """A run, whole."""

    name: str
    about: str = ""
    plugins: tuple[str, ...] = ()
    """Python files and modules that bring judges, rules, objectives ... of its own; see factory/plugins.py."""
    seed: Annotated[Count, Field(le=2**31 - 1)] = 0
    model: str = "smollm2-135m-instruct"
    """The start policy."""
    engine: EnginePart = Field(default_factory=EnginePart)
    budget: BudgetPart = Field(default_factory=BudgetPart)
    prompts: PromptsPart = Field(default_factory=PromptsPart)
    stages: tuple[Step, ...] = Field(
        default=tuple(Step(stage=s, name=s) for s in ("generate", "label", "pair", "train")), min_length=1
    )
    """What a round does, in order."""
    go_on_from: Literal["last", "champion"] = "last"
    """What a round begins with: the policy that the round before gave, or the run's best so far."""
    generate: GeneratePart = Field(default_factory=GeneratePart)
    revise: RevisePart = Field(default_factory=RevisePart)
    panel: tuple[PanelPart, ...] = Field(default=(), validate_default=True)
    label: LabelPart = Field(default_factory=LabelPart)
    collect: CollectPart = Field(default_factory=CollectPart)
    pair: PairPart = Field(default_factory=PairPart)
    train: TrainPart = Field(default_factory=TrainPart)
    evaluate: EvaluatePart = Field(default_factory=EvaluatePart)
    stop: StopConfig = Field(default_factory=StopConfig)
    isolate: Literal["auto", "always", "never"] = "auto"
    """Stages with a model in child processes, so that memory is free before training; auto: when there is a GPU."""

    @model_validator(mode="after")
    def _agrees(self, info: ValidationInfo) -> Recipe:
        """A recipe agrees with itself; one that is read piece by piece is asked later."""
        if info.context != PIECEMEAL and (faults := list(disagreements(self))):
            raise ValueError("\n".join(faults))
        return self

    def step(self, name: str) -> Step:
        """The step of that name. FactoryError, naming the nearest, when there is none."""
        for step in self.stages:
            if step.name == name:
                return step
        raise unknown_name("stage", name, [step.name for step in self.stages])

    def at(self, step: Step) -> Recipe:
        """The recipe as it is in one step: with the step's own settings, and this step alone."""
        if not step.set:
            return self.model_copy(update={"stages": (step,)})
        data = self._data_at(step)
        bare = {"stage": step.stage, "name": step.name}
        return Recipe.model_validate(data | {"stages": [bare]}, context=PIECEMEAL)

    def _data_at(self, step: Step) -> dict[str, Any]:
        """Plain values of the recipe with the step's own in their places."""
        data = self.model_dump(mode="json", exclude={"stages"})
        for key, value in step.set.items():
            if key.split(".")[0] in OF_THE_RUN:
                raise FactoryError(f"set: {key} is of the whole run, not of one stage")
            dotted.put(data, key, value, f"set {key!r}")
        return data

    def misfits_at(self, step: Step) -> list[misfits.Misfit]:
        """What is wrong with a step's own settings, each with the key that it would have in the recipe."""
        try:
            self.at(step)
        except ValidationError as error:
            return misfits.found(error, Recipe, self._data_at(step))
        except FactoryError as error:
            return [misfits.Misfit((), error.what)]
        return []

    def steps_of(self, number: int) -> list[Step]:
        """What a round does, in order."""
        return [step for step in self.stages if step.in_round(number)]

    def main(self, stage: str, number: int) -> str | None:
        """The step of that stage which a round is told by: the one of the stage's own name, else the last."""
        names = [step.name for step in self.steps_of(number) if step.stage == stage]
        return stage if stage in names else (names[-1] if names else None)

    @staticmethod
    def member_name(part: PanelPart) -> str:
        """The name a member has in the tables."""
        return part.name or part.judge

    @property
    def lead(self) -> str | None:
        """The judge that decides when combine is lead; None without a panel."""
        return self.pair.lead or (self.member_name(self.panel[0]) if self.panel else None)


# ------------------------------------------------------------------------------------------------------ agreement


def disagreements(recipe: Recipe) -> Iterator[str]:
    """What in a recipe does not go together, as "key: what"; each once."""
    names = [step.name for step in recipe.stages]
    if doubled := sorted({name for name in names if names.count(name) > 1 or name in FRAME}):
        yield f"stages: each needs a name of its own (name: ...): {', '.join(doubled)}"
    steps = [(step, recipe.misfits_at(step)) for step in recipe.stages]
    yield from (f"stages.{step.name}.set: {one.text()}" for step, found in steps for one in found)
    heres = [recipe.at(step) for step, found in steps if not found]
    yield from dict.fromkeys(fault for here in (recipe, *heres) for fault in _panel_faults(here))
    yield from _unheard(heres)


def _panel_faults(here: Recipe) -> Iterator[str]:
    names = [here.member_name(part) for part in here.panel]
    if len(set(names)) != len(names):
        yield f"panel: two members of the panel have the same name: {', '.join(names)}"
    if not names and len(here.stages) == 1 and here.stages[0].stage == "label":
        yield "panel: the stage label needs at least one judge"


def _unheard(heres: Sequence[Recipe]) -> Iterator[str]:
    """The lead of every pairing is heard in some stage."""
    panels = [here.panel for here in heres if here.stages[0].stage == "label"]
    heard = sorted({Recipe.member_name(part) for panel in panels for part in panel})
    leads = {here.pair.lead for here in heres if here.stages[0].stage == "pair"} - {None}
    if panels and (unheard := sorted(str(lead) for lead in leads if lead not in heard)):
        yield f"pair.lead: {unheard[0]!r} is not in the panel ({', '.join(heard)})"
