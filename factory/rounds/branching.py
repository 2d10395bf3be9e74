"""Going on from a point of an earlier run: a new run that shares what was done before, and pays for none of it again.

    factory run RECIPE --from round-2 --set ...      factory run RECIPE --from RUN:champion

What is shared is kept under the new run's name too: candidates, judgments, preferences and labels as rows that refer to
the same calls, policies as links to the same files, stages as marks that name where they come from. So the new run
stands by itself, and the old one may go on or be deleted. Held-out prompts are measured again from the calls that are
held, which asks no model anything unless the settings of the evaluation differ.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from factory import console, recipe as recipes
from factory.faults import ConfigError, FactoryError
from factory.rounds.runbook import Detail, Run
from factory.schema import digest

if TYPE_CHECKING:
    from factory.recipe import Recipe, Step
    from factory.store import Store

FIXED = ("model", "prompts.source", "prompts.group_by")
"""Keys of a recipe that a run which shares rounds with another cannot change."""


class Point(NamedTuple):
    """A place in a run: after `round`, and in the next round before `step` ("": before its first)."""

    run: str
    round: int
    step: str = ""


def point_of(store: Store, text: str, recipe: Recipe) -> Point:
    """The point that [RUN:]round-N or [RUN:]champion names; by default of the newest run of the recipe.

    FactoryError: there is no such run or round, or it is not done.
    """
    named, _, place = text.rpartition(":")
    origin = opened(store, named or _newest(store, recipe))
    number = re.fullmatch(r"round-(\d+)", place)
    if place != "champion" and number is None:
        raise FactoryError(f"--from {text!r} names no point of a run", todo="write round-2, champion, or RUN:round-2")
    chosen = int(number[1]) if number else origin.champion
    if not 0 <= chosen <= origin.last:
        raise FactoryError(
            f"round {chosen} of run {origin.name!r} is not done",
            where=str(origin.home),
            todo=f"name one of round-0 to round-{origin.last}" if origin.last >= 0 else "let the run go on first",
        )
    return Point(origin.name, chosen)


def opened(store: Store, name: str, *, rules: bool = True) -> Run:
    """A run as it was begun; without its stopping `rules`, which may be a plugin's, where it is only looked at.
    FactoryError: there is none of that name."""
    held = store.get_run(name)
    if held is None:
        raise FactoryError(f"no run named {name!r}", where=str(store.folder), todo="factory status lists the runs")
    read = recipes.parse if rules else recipes.parse_but_rules
    return Run(store, read(held["recipe"], where=f"run {name}"), name)


def _newest(store: Store, recipe: Recipe) -> str:
    """The newest run of the recipe; where there are several, it is said which one is meant."""
    of_it = [h for h in store.runs() if (yaml.safe_load(h["recipe"] or "{}") or {}).get("name") == recipe.name]
    if len(of_it) > 1:
        meant = of_it[-1]["run"]
        console.note(
            f"--from: run {meant}, the newest of {len(of_it)} of {recipe.name} (--from RUN:round-2 names another)"
        )
    if of_it:
        return str(of_it[-1]["run"])
    raise FactoryError(
        f"the store has no run of the recipe {recipe.name!r} to go on from",
        where=str(store.folder),
        todo="name one: --from RUN:round-2 (factory status lists the runs)",
    )


def name_of(store: Store, recipe: Recipe, point: Point) -> str:
    """A name for the new run: that of the same work if it was begun already, else one that is free."""
    from factory.rounds.runbook import work_of

    stem = f"{point.run}-from-{point.round}"
    work = work_of(recipes.dump(recipe))
    for tried in (stem, *(f"{stem}-{i}" for i in range(2, 1000))):
        held = store.get_run(tried)
        if held is None or work_of(held["recipe"]) == work:
            return tried
    raise FactoryError(f"there are too many runs named {stem}", todo="name this one with --run")


def check(store: Store, recipe: Recipe, point: Point) -> None:
    """ConfigError: what the recipe changes cannot be changed any more at that point."""
    origin = opened(store, point.run).recipe
    faults = [
        f"{key}: is {_at(recipe, key)!r}, but run {point.run!r} has {_at(origin, key)!r}, which it shares"
        for key in FIXED
        if _at(recipe, key) != _at(origin, key)
    ]
    if recipe.stop.max_rounds <= point.round:
        faults.append(
            f"stop.max_rounds: {recipe.stop.max_rounds} are done by then; allow for more, such as "
            f"--set stop.max_rounds={point.round + 2}"
        )
    if faults:
        raise ConfigError(faults, where=f"going on from round {point.round} of run {point.run!r}")


def changed(recipe: Recipe, origin: Recipe) -> list[str]:
    """The keys in which two recipes differ, dotted, with the new value."""
    ours, theirs = (dict(_flat(r.model_dump(mode="json"))) for r in (recipe, origin))
    return [f"{key}={ours.get(key)!r}" for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _at(recipe: Recipe, key: str) -> Any:
    found: Any = recipe
    for part in key.split("."):
        found = getattr(found, part)
    return found


# ------------------------------------------------------------------------------------------------------- sharing


def share(flow: Run, point: Point) -> None:
    """Take over what the earlier run did before the point; what was taken over already stays as it is.

    FactoryError: the earlier run has not done a stage that the recipe asks for.
    """
    origin = opened(flow.store, point.run)
    _mark(flow, origin, 0, "prompts")
    for number in range(1, point.round + 1):
        for step in flow.recipe.steps_of(number):
            _share(flow, origin, number, step)
    if point.step:
        for step in flow.recipe.steps_of(point.round + 1):
            if step.name == point.step:
                return
            _share(flow, origin, point.round + 1, step)


def _share(flow: Run, origin: Run, number: int, step: Step) -> None:
    if flow.done(number, step.name) is not None:
        return
    here = origin.at(step.name).here
    if origin.done(number, step.name) is None:
        raise FactoryError(
            f"run {origin.name!r} has not done the stage {step.name!r} in round {number}",
            where=str(origin.home),
            todo="go on from an earlier round, or with the stages that it had",
        )
    for table, where in ROWS[step.stage](here):
        _copy(flow, origin, table, {"run": origin.name, "round": number, **where})
    if step.stage == "train":
        theirs, ours = origin.at(step.name).out(number), flow.at(step.name).out(number)
        _link(theirs / "policy", ours / "policy")
        _link_file(theirs / "metrics.jsonl", ours / "metrics.jsonl")
    _mark(flow, origin, number, step.name)


def _mark(flow: Run, origin: Run, number: int, step: str) -> None:
    if flow.done(number, step) is None:
        detail: Detail = dict(origin.done(number, step) or {})
        flow.store.mark(flow.name, number, step, "done", detail | {"seconds": 0.0, "shared": origin.name})


def _candidates(*kinds: str) -> list[tuple[str, dict[str, Any]]]:
    return [("candidates", {"kind": list(kinds)})]


def _judged(here: Recipe) -> list[tuple[str, dict[str, Any]]]:
    return [("judgments", {"judge": [here.member_name(part) for part in here.panel]})]


def _paired(here: Recipe) -> list[tuple[str, dict[str, Any]]]:
    return [(table, {"strategy": here.pair.trained_on(table)}) for table in ("preferences", "labels")]


ROWS: Mapping[str, Any] = {
    "generate": lambda here: _candidates(here.generate.kind),
    "revise": lambda here: _candidates("critique", "revision"),
    "label": _judged,
    "collect": lambda here: _candidates("judgment"),
    "pair": _paired,
    "train": lambda here: [],
}
"""What each stage writes, as tables and conditions."""
REFERENCES = ("parent", "candidate_a", "candidate_b", "chosen_key", "rejected_key", "candidate_key")
"""Columns that hold the key of a candidate."""


def _copy(flow: Run, origin: Run, table: str, where: Mapping[str, Any]) -> None:
    """Rows under the new run's name. Their keys grow by a suffix, so that they keep their order: which of two
    candidates is `a` goes by it."""
    suffix = digest(flow.name)[:8]
    known = _learnable(origin, int(where["round"]))
    rows = flow.store.read(table, where=where)
    if table == "candidates":
        rows = [row for row in rows if row["key"] in known]
    if table == "judgments":
        rows = [row for row in rows if row["canary"] or row["candidate_a"] in known or row["candidate_b"] in known]
    for row in rows:
        row |= {"run": flow.name, "key": f"{row['key']}{suffix}"}
        row |= {name: f"{row[name]}{suffix}" for name in REFERENCES if row.get(name) in known}
    flow.store.append(table, rows)


def _learnable(origin: Run, number: int) -> set[str]:
    """Keys of the round's candidates that are not of its evaluation."""
    rows = origin.store.read("candidates", columns=["key", "split"], where={"run": origin.name, "round": number})
    return {row["key"] for row in rows if row["split"] not in ("heldout", "final")}


def _link(source: Path, target: Path) -> None:
    """The policy's files under another name, whole or not at all; where the disk cannot link, copied."""
    if target.exists() or not source.exists():
        return
    draft = target.with_name(target.name + ".writing")
    shutil.rmtree(draft, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, draft, copy_function=_linked)
    draft.rename(target)


def _link_file(source: Path, target: Path) -> None:
    if source.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _linked(str(source), str(target))


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
