"""A run as the store knows it: its recipe, the stages that are done, the reports of its rounds, its policies.

Nothing is kept in memory: whoever opens the run next, after a kill or in another process, reads the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from factory import recipe as recipes
from factory.faults import FactoryError
from factory.schema import Decision, Prompt, now
from factory.stopping import RoundEvidence, champion

if TYPE_CHECKING:
    from factory.budget import Budget
    from factory.engines import Engine
    from factory.recipe import EnginePart, Recipe
    from factory.store import Store

Detail = dict[str, Any]
"""What a stage says of itself: plain JSON, kept with the mark that it is done."""


@dataclass(frozen=True)
class Run:
    """One run of one recipe in one store."""

    store: Store
    recipe: Recipe
    name: str

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
        """The policy that came out of a round: the start model for round 0, the one before where none was trained."""
        if number == 0:
            return self.recipe.model
        folder = self.folder(number) / "policy"
        return str(folder) if folder.exists() else self.policy(number - 1)

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
        return next((dict(part.options) for part in self.recipe.panel if part.judge == "verifier"), {})

    def budget(self) -> Budget | None:
        """What the run may still spend; None: whatever it takes. Counts what its earlier tries have spent."""
        from factory.budget import Budget

        part = self.recipe.budget
        if part.max_cost is None and part.max_tokens is None:
            return None
        return Budget(part.max_cost, part.max_tokens)


def open_run(store: Store, recipe: Recipe, name: str) -> Run:
    """The run of that name: begun now, or gone on with. A run keeps its recipe; another recipe needs another name."""
    text = recipes.dump(recipe)
    held = store.get_run(name)
    if held is None:
        info = {"versions": versions(), "threads": _threads(recipe), "began": now().isoformat()}
        store.put_run(name, text, info)
    elif work_of(held["recipe"]) != work_of(text):
        raise FactoryError(
            f"run {name!r} was begun with another recipe",
            where=str(store.run_folder(name) / "recipe.yaml"),
            todo="go on with the recipe it was begun with, or give this one another name with --run",
        )
    return Run(store, recipe, name)


def work_of(text: str) -> dict[str, Any]:
    """What a recipe does, whatever it may spend: a run that its budget stopped goes on with a larger one."""
    whole: dict[str, Any] = yaml.safe_load(text)
    return {key: value for key, value in whole.items() if key != "budget"}


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
