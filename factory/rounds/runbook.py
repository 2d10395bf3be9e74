"""A run as the store knows it: its recipe, the stages that are done, the reports of its rounds, its policies.

Nothing is kept in memory: whoever opens the run next, after a kill or in another process, reads the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from factory import console, plugins, recipe as recipes
from factory.faults import ConfigError, FactoryError
from factory.schema import TABLES, Decision, Prompt, now
from factory.stopping import RoundEvidence, champion

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.engines import Engine
    from factory.recipe import EnginePart, PanelPart, Recipe
    from factory.store import Store

Detail = dict[str, Any]
"""What a stage says of itself: plain JSON, kept with the mark that it is done."""


@dataclass(frozen=True)
class Run:
    """One run of one recipe in one store. `step`: the one at work, by name."""

    store: Store
    recipe: Recipe
    name: str
    step: str = ""

    def at(self, step: str) -> Run:
        """The run as one step of a round sees it."""
        return replace(self, step=step)

    @cached_property
    def here(self) -> Recipe:
        """The recipe with the settings of the step at work."""
        named = {step.name: step for step in self.recipe.stages}
        return self.recipe.at(named[self.step]) if self.step in named else self.recipe

    def done(self, number: int, stage: str) -> Detail | None:
        """What a stage said when it was done; None when it is not."""
        return self.details(number).get(stage)

    def details(self, number: int) -> dict[str, Detail]:
        """What each stage of a round that is done said of itself."""
        marks = (mark for mark in self.store.marks(self.name) if mark["round"] == number and mark["state"] == "done")
        return {mark["stage"]: dict(mark["detail"] or {}) for mark in marks}

    @property
    def reports(self) -> list[Detail]:
        """The reports of the rounds that are done, round 0 first."""
        found: list[Detail] = []
        while (path := self.folder(len(found)) / "report.json").exists():
            found.append(json.loads(path.read_text(encoding="utf-8")))
        return found

    @property
    def last(self) -> int:
        """The last round that is done."""
        return len(self.reports) - 1

    @property
    def decision(self) -> Decision:
        """What was decided after the last round."""
        return Decision(**self.reports[-1]["decision"])

    @property
    def champion(self) -> int:
        """The round whose policy is the best so far."""
        return champion(evidence_of(self.reports), self.recipe.stop)

    @property
    def home(self) -> Path:
        """The folder of the run."""
        return self.store.run_folder(self.name)

    def folder(self, number: int) -> Path:
        """Where a round keeps its policy, metrics and report."""
        return self.home / f"round-{number}"

    def policy(self, number: int) -> str:
        """The policy that came out of a round: the start model for round 0, what it began with where none was
        trained."""
        return self.recipe.model if number == 0 else self._trained(number, self._trainings(number))

    def base(self, number: int) -> str:
        """The policy that a round (1 is the first) begins with."""
        return self.policy(self.origin(number))

    def origin(self, number: int) -> int:
        """The round whose policy a round begins with: the one before, or the champion as it was decided then."""
        if self.recipe.go_on_from == "last":
            return number - 1
        return max((n for n, report in enumerate(self.reports[:number]) if report["champion"]), default=0)

    def current(self, number: int) -> str:
        """The policy that the step at work begins with: what the last training before it in the round gave, else what
        the round began with."""
        names = [step.name for step in self.recipe.steps_of(number)]
        before = names[: names.index(self.step)] if self.step in names else names
        return self._trained(number, [name for name in self._trainings(number) if name in before])

    def out(self, number: int) -> Path:
        """Where the training at work puts its policy: the round's folder for the last of a round, else a folder in
        it."""
        *_, last = self._trainings(number)
        return self.folder(number) if self.step in ("", last) else self.folder(number) / self.step

    def _trainings(self, number: int) -> list[str]:
        return [step.name for step in self.recipe.steps_of(number) if step.stage == "train"]

    def _trained(self, number: int, steps: list[str]) -> str:
        for name in reversed(steps):
            folder = self.at(name).out(number) / "policy"
            if folder.exists():
                return str(folder)
        return self.base(number)

    def relative(self, path: str | Path) -> str:
        """A path as it is kept in rows: from the store's folder when it lies there, so that a store can be moved."""
        home = self.store.folder.resolve()
        whole = Path(path)
        inside = whole.exists() and whole.resolve().is_relative_to(home)
        return str(whole.resolve().relative_to(home)) if inside else str(path)

    @property
    def until(self) -> datetime | None:
        """When the run had its prompts: those that are added later belong to other runs, or rounds could not be
        compared."""
        at = (self.done(0, "prompts") or {}).get("until")
        return datetime.fromisoformat(at) if at else None

    def prompts(self, split: str) -> list[Prompt]:
        """The run's prompts of a split, in the order of their keys."""
        held, until = self.store.rows(Prompt, {"split": split}), self.until
        return [prompt for prompt in held if until is None or prompt.at <= until]

    @property
    def threads(self) -> int | None:
        """CPU threads of the whole run, chosen when it began: another number may round otherwise."""
        held = self.store.get_run(self.name)
        return held["info"].get("threads") if held else None

    def engine(self, model: str, part: EnginePart | None = None) -> Engine:
        """An engine for a model: the recipe's, or the one that `part` describes."""
        from factory.engines import EngineSpec, build

        part = part or self.recipe.engine
        options = dict(part.options)
        if part.kind == "transformers" and self.threads:
            options.setdefault("threads", self.threads)
        return build(EngineSpec(part.kind, part.model or model, options, part.count))

    @property
    def verifier(self) -> dict[str, Any]:
        """Options of the panel's verifier: it grades in evaluations, too."""
        panels = [self.recipe.panel, *(self.recipe.at(step).panel for step in self.recipe.stages)]
        return next((dict(part.options) for panel in panels for part in panel if part.judge == "verifier"), {})

    @property
    def shared(self) -> int | None:
        """The last round that is shared with an earlier run; None where the run began at its start."""
        held = self.store.get_run(self.name)
        told = (held["info"] if held else {}).get("from")
        return None if told is None else int(told["round"])

    def budget(self) -> Budget | None:
        """What the run may still spend; None: whatever it takes. Counts what its earlier tries have spent."""
        from factory.budget import Budget

        part = self.recipe.budget
        if part.max_cost is None and part.max_tokens is None:
            return None
        return Budget(part.max_cost, part.max_tokens)


def open_run(store: Store, recipe: Recipe, name: str, begun: Mapping[str, Any] | None = None) -> Run:
    """The run of that name: begun now, or gone on with. A run keeps its recipe once something of it is done; another
    recipe then needs another name. `begun`: what else to keep of a run that is begun now."""
    text = recipes.dump(recipe)
    held = store.get_run(name)
    changed = held is not None and work_of(held["recipe"]) != work_of(text)
    if held is None or (changed and nothing_done(store, name)):
        info = {"versions": versions(), "threads": _threads(recipe), "began": now().isoformat()}
        info |= {"seed": recipe.seed, "models": models_of(recipe), "plugins": _plugins(), **(begun or {})}
        store.put_run(name, text, info)
    elif changed:
        raise FactoryError(
            f"run {name!r} was begun with another recipe",
            where=str(store.run_folder(name) / "recipe.yaml"),
            todo="go on with the recipe it was begun with, or give this one another name with --run",
        )
    else:
        _tell_of_other_code(held["info"].get("plugins") or {})
    return Run(store, recipe, name)


def _tell_of_other_code(begun: Mapping[str, str]) -> None:
    """A note of each plugin that is not as it was when the run began; one that was moved is known by its file name."""
    known = {Path(name).name: content for name, content in begun.items()}
    for name, content in _plugins().items():
        if known.get(Path(name).name, content) != content:
            console.note(f"note: the plugin {name} was changed since the run began: what is done stays as it was")


def _plugins() -> dict[str, str]:
    """The code of the user's own that this process has, by name, with the hash of each file."""
    return {plugin.name: plugin.content() for plugin in plugins.load()}


def nothing_done(store: Store, name: str) -> bool:
    """Is no stage of the run done, and no row its own?"""
    if any(mark["state"] == "done" for mark in store.marks(name)):
        return False
    tables = [table for table, row in TABLES.items() if "run" in {field.name for field in fields(row)}]
    return not any(store.read(table, columns=["key"], where={"run": name}) for table in tables)


def work_of(text: str) -> dict[str, Any]:
    """What a recipe does, whatever it may spend: a run that its budget stopped goes on with a larger one."""
    whole: dict[str, Any] = yaml.safe_load(text)
    with suppress(ConfigError):  # written by an earlier version: the keys that came since have their defaults
        whole = yaml.safe_load(recipes.dump(recipes.parse(text, where="the run's recipe")))
    return {key: value for key, value in whole.items() if key not in ("budget", "plugins")}


def models_of(recipe: Recipe) -> dict[str, str]:
    """The models that a recipe names, each with the hash of its content; of those behind an endpoint the name alone is
    known here."""
    from factory.resources import content_hash, model_files

    found: dict[str, str] = {}
    wanted = [(recipe.engine, recipe.model), *_judging(recipe, judges_of(recipe))]
    for engine, named in wanted:
        model = engine.model or named
        if model not in found:
            local = engine.kind in ("transformers", "vllm")
            found[model] = (
                content_hash(model_files(model), "as stored") if local else f"behind the {engine.kind} engine"
            )
    return found


def judges_of(recipe: Recipe) -> list[PanelPart]:
    """Every judge that a run asks: those of its panels, those that reward, and the one of its evaluation."""
    found: list[PanelPart] = []
    for step in recipe.stages:
        here = recipe.at(step)
        found += here.panel if step.stage == "label" else ()
        if step.stage == "train" and here.train.config.online is not None:
            found += here.train.reward or ()
    return [*found, *([recipe.evaluate.judge] if recipe.evaluate.judge else [])]


def _judging(recipe: Recipe, parts: Sequence[PanelPart]) -> list[tuple[EnginePart, str]]:
    """Engines and models of the judges that ask one, policies of the run left out."""
    own = {None, "policy", "previous", "start"}
    named = [(part, part.engine or recipe.engine) for part in parts if part.engine or part.model not in own]
    return [(engine, str(part.model if part.model not in own else recipe.model)) for part, engine in named]


def _threads(recipe: Recipe) -> int | None:
    """CPU threads for a run: as the recipe's engine says, else what is fastest now; None when nothing runs here."""
    if recipe.engine.kind != "transformers":
        return None
    from factory.engines.transformers import default_threads

    return int(recipe.engine.options.get("threads") or default_threads())


def evidence_of(reports: list[Detail]) -> list[RoundEvidence]:
    """What stopping rules read, from round reports."""
    return [RoundEvidence.from_json(report) for report in reports]


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("preference-factory", "torch", "transformers", "peft", "numpy", "pyarrow", "duckdb"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
