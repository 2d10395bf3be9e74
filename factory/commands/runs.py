"""Commands that run recipes, say where a run is, and tell what came out of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory import console
from factory.commands import options
from factory.faults import FactoryError
from factory.registry import unknown_name

if TYPE_CHECKING:
    from factory.recipe import Recipe
    from factory.rounds.forecast import Shared
    from factory.store import Store

Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override of the recipe, e.g. train.config.epochs=1; repeatable.")
]
RecipeName = Annotated[str, typer.Argument(help="Name of a bundled recipe, or a YAML file.")]


def run(
    name: RecipeName,
    overrides: Overrides = None,
    run_name: Annotated[
        str | None, typer.Option("--run", help="Name; default: of the one cut off, else recipe and date.")
    ] = None,
    begin_from: Annotated[
        str | None,
        typer.Option("--from", help="Begin after round-N, or after the champion, of an earlier run: [RUN:]round-2."),
    ] = None,
    max_cost: options.MaxCost = None,
    max_tokens_total: options.MaxTokensTotal = None,
    dry_run: options.DryRun = False,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Run a recipe's rounds until a rule says stop. The same command again goes on with a run that was cut off."""
    from factory.rounds import preflight

    capped = {"budget.max_cost": max_cost, "budget.max_tokens": max_tokens_total}
    caps = [f"{key}={value}" for key, value in capped.items() if value is not None]
    loaded = preflight.load(name, [*(overrides or ()), *caps])
    if dry_run and begin_from is not None:
        raise FactoryError("--dry-run plans whole runs, not what is left after --from", todo="leave one of them out")
    for note in preflight.notes(loaded):
        console.note(f"note: {note}")
    if dry_run:
        _show_plan(loaded, store, as_json=as_json)
        return
    from factory import report as reports
    from factory.report import story as stories
    from factory.rounds import branching, run as run_rounds, unfinished

    with opened_for(loaded, store, run_name, begun=begin_from is not None) as opened:
        if begin_from is None:
            point = None
            chosen = run_name or unfinished(opened, loaded) or options.dated(loaded.name, None)
        else:
            point = branching.point_of(opened, begin_from, loaded)
            chosen = run_name or branching.name_of(opened, loaded, point)
            console.note(f"run {chosen}: on from round {point.round} of {point.run}")
        outcome = run_rounds(opened, loaded, chosen, point)
        summary = stories.summary(reports.collect(opened, outcome.run))
    console.emit(outcome.to_json(), as_json=as_json, text=f"{summary}\n\nreport: {outcome.report}")


@contextmanager
def opened_for(loaded: Recipe, folder: Path, run_name: str | None, *, begun: bool = False) -> Iterator[Store]:
    """The store, for a run: made now unless it must hold something already (`begun`: an earlier run). What would be
    refused as soon as the run began is refused before a store is made."""
    from factory.prompts import RUN
    from factory.rounds.runbook import models_of
    from factory.store import check_run_name
    from factory.store.journal import FILE

    if run_name == RUN:
        raise FactoryError(
            f"the run {RUN!r} holds the answers and verdicts that were brought in", where="--run", todo="name another"
        )
    check_run_name(run_name or options.dated(loaded.name, None))
    if not (folder / FILE).is_file():
        models_of(loaded)
    with options.opened(folder, create=not begun and loaded.prompts.source != "store") as opened:
        yield opened


def _show_plan(loaded: Recipe, folder: Path, *, as_json: bool) -> None:
    """The plan of a run; nothing is asked or written."""
    from factory.rounds.forecast import Shared

    [plan] = plans_of([(loaded, Shared())], folder)
    hidden = ("stages", "seconds", "cost_usd", "memory_bytes", "time_by")
    said = {k: v for k, v in plan.items() if k not in hidden}
    rows = [{k: v for k, v in row.items() if k != "memory_bytes"} for row in plan["stages"]]
    console.emit(plan, as_json=as_json, text=f"{console.facts(said)}\n\n{console.table(rows)}")


def plans_of(runs: Sequence[tuple[Recipe, Shared]], folder: Path) -> list[dict[str, Any]]:
    """The plan of each run, by what the store holds, if there is one; nothing is asked or written."""
    from factory.rounds import forecast
    from factory.store.journal import FILE

    with ExitStack() as stack:
        held = stack.enter_context(options.opened(folder)) if (folder / FILE).is_file() else None
        tokens = _prompt_tokens(held) if held is not None else None
        counts: dict[tuple[str, str | None], dict[str, int]] = {}
        found = []
        for recipe, shared in runs:
            part = recipe.prompts
            key = part.source, part.group_by
            counts[key] = counts.get(key) or _prompts_of(recipe, folder)
            found.append(forecast.plan(recipe, counts[key], prompt_tokens=tokens, store=held, shared=shared))
    return found


def _prompt_tokens(held: Store) -> int | None:
    """Mean tokens of the store's prompts, about."""
    from factory.rounds.forecast import BYTES_A_TOKEN
    from factory.schema import Prompt, text_of

    sizes = [len(text_of(prompt.messages).encode()) for prompt in held.rows(Prompt)]
    return round(sum(sizes) / len(sizes) / BYTES_A_TOKEN) or 1 if sizes else None


def _prompts_of(loaded: Recipe, folder: Path) -> dict[str, int]:
    """Prompts a split that a run would have; nothing is written."""
    from factory.prompts import survey
    from factory.schema import Prompt

    if loaded.prompts.source != "store":
        return survey(loaded.prompts.source, group_by=loaded.prompts.group_by).splits
    with options.opened(folder) as opened:
        return dict(Counter(prompt.split for prompt in opened.rows(Prompt)))


def status(
    run_name: Annotated[str | None, typer.Option("--run", help="One run; all by default.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until all is done, or ctrl-c.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two looks.")] = 2.0,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Where the runs of a store are: stages done, under way or failed, rates and cost, and the last decision."""
    if watch and as_json:
        raise FactoryError("--watch is for people, --json for programs", todo="leave one of them out")
    with options.opened(store) as opened:
        if watch:
            console.watch(lambda: _look(opened, run_name, store, last=WATCHED), every)
            return
        found = _found(opened, run_name, store)
        by_hand = "" if found else _by_hand(opened)
    text = "\n\n".join(_block(item) for item in found) or "\n".join(filter(None, (NO_RUNS, by_hand)))
    console.emit(found, as_json=as_json, text=text)


NO_RUNS = "no runs yet: factory run quickstart"
WATCHED = 12
"""Stages of a run that --watch shows, the newest: a screen has no more room."""


def _by_hand(opened: Store) -> str:
    """What single commands left in the store, run by run."""
    tables = ("candidates", "judgments", "preferences", "labels")
    counts = {table: _by_run(opened, table) for table in tables}
    names = sorted({name for counted in counts.values() for name in counted})
    rows = [{"run": name, **{table: counts[table][name] for table in tables}} for name in names]
    return f"by single commands:\n{console.table(rows)}" if rows else ""


def _by_run(opened: Store, table: str) -> Counter[str]:
    """How many rows of the table each run has."""
    counted = opened.table(table, ["run"]).column("run").value_counts().to_pylist()
    return Counter({each["values"]: each["counts"] for each in counted})


def _look(opened: Store, run_name: str | None, folder: Path, last: int) -> tuple[str, bool]:
    """What is to be seen now, and whether that will never change."""
    found = _found(opened, run_name, folder)
    text = "\n\n".join(_block(item | {"stages": item["stages"][-last:]}) for item in found)
    return text or NO_RUNS, bool(found) and all(item["state"] == "done" for item in found)


def _found(opened: Store, run_name: str | None, folder: Path) -> list[dict[str, Any]]:
    """Where each run is, with the stage under way. FactoryError: there is no such run."""
    from factory.rounds import progress_of
    from factory.rounds.live import underway

    names = [run_name] if run_name else [str(held["run"]) for held in opened.runs()]
    found = []
    for name in names:
        if opened.get_run(name) is None:
            raise FactoryError(f"no run named {name!r}", where=str(folder), todo="factory status lists the runs")
        now = underway(opened, name)
        found.append(progress_of(opened, name) | {"now": now and asdict(now), "said": now and now.text()})
    return found


def _block(item: dict[str, Any]) -> str:
    """One run as text."""
    said = f"\n{item['said']}" if item["said"] else ""
    return f"{item['run']}: {item['state']}\n{console.table(item['stages'])}{_decided(item)}{said}"


def _decided(progress: dict[str, Any]) -> str:
    """The last decision as a line below the stages."""
    last = progress["decision"]
    if last is None:
        return ""
    rule = f" by {last['rule']}" if last["rule"] else ""
    return f"\nafter round {last['round']}: {last['decision']}{rule}: {last['reason']}"


def report(
    run_name: Annotated[str | None, typer.Option("--run", help="Name of the run; the newest by default.")] = None,
    form: Annotated[str, typer.Option("--format", help="html | md | json | svg")] = "html",
    out: Annotated[
        Path | None,
        typer.Option(help="File to write (default: html in the run's folder, others to stdout)."),
    ] = None,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Tell a run from the store, also one at work: its page and a summary, or all of it as Markdown or JSON, or the
    charts of its measures as one SVG."""
    from factory import report as reports
    from factory.report import story as stories
    from factory.store.filesystem import write_whole

    if form not in reports.FORMS:
        raise unknown_name("form of a report", form, reports.FORMS)
    options.check_file(out, "--out")
    with options.opened(store) as opened:
        name = options.newest(opened, "rounds", run_name)
        collected = reports.collect(opened, name)
        path = out or (opened.run_folder(name) / "report.html" if form == "html" else None)
    written = reports.written(collected, form)
    if path is None:
        sys.stdout.write(written)
        return
    write_whole(path, written)
    result: dict[str, Any] = {"run": name, "report": str(path)}
    console.emit(result, as_json=as_json, text=f"{stories.summary(collected)}\n\nreport: {path}")


def list_recipes(as_json: options.AsJson = False) -> None:
    """The bundled recipes."""
    from factory import recipe as recipes

    rows = [{"recipe": name, "about": recipes.load(name).about} for name in recipes.bundled_recipes()]
    console.emit(rows, as_json=as_json, text=console.table(rows))


def show_recipe(name: RecipeName, overrides: Overrides = None, as_json: options.AsJson = False) -> None:
    """A recipe with all its defaults filled in."""
    from factory import recipe as recipes

    loaded = recipes.load(name, overrides or ())
    console.emit(loaded.model_dump(mode="json"), as_json=as_json, text=recipes.dump(loaded))


def check_recipe(
    path: Annotated[Path, typer.Argument(help="YAML file.")],
    overrides: Overrides = None,
    as_json: options.AsJson = False,
) -> None:
    """Check a recipe: every fault at once."""
    from factory.rounds import preflight

    loaded = preflight.load(str(path), overrides or ())
    for note in preflight.notes(loaded):
        console.note(f"note: {note}")
    console.emit({"recipe": loaded.name, "faults": []}, as_json=as_json, text=f"{loaded.name}: no faults")
