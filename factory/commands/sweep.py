"""The command that runs a recipe over several values of a setting, or several seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory import console
from factory.commands import options
from factory.commands.runs import Overrides, RecipeName, opened_for, plans_of
from factory.faults import FactoryError

if TYPE_CHECKING:
    from factory.rounds.branching import Point
    from factory.rounds.sweep import Variant


def sweep(
    name: RecipeName,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", help="Key and its values: train.config.learning_rate=1e-4,1e-3; repeatable: all pairs."),
    ] = None,
    beta: Annotated[str | None, typer.Option(help="Short for --vary train.config.parameters.beta=...")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of every value: 1,2,3.")] = None,
    overrides: Overrides = None,
    run_name: Annotated[
        str | None, typer.Option("--run", help="What the runs' names begin with; default: the recipe's name.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for sweep.json and sweep.svg; default: in the store.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs, what they share and what they would take; ask nothing.")
    ] = False,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Run a recipe once for each value, all sharing what comes before it; tell quality against KL. The same command
    again goes on with a sweep that was cut off."""
    from factory.rounds import preflight, sweep as sweeps
    from factory.store.filesystem import write_whole

    wanted = _varied([*(vary or ()), *([f"train.config.parameters.beta={beta}"] if beta else ())])
    if seeds is not None and "seed" in wanted:
        raise FactoryError("--seeds and --vary seed=... are the same", todo="leave one of them out")
    fixed = list(overrides or ())
    own = preflight.load(name, fixed)
    stem = f"{run_name or own.name}-sweep"
    found = sweeps.variants(lambda told: preflight.load(name, [*fixed, *told]), stem, wanted, _seeds(seeds))
    for note in dict.fromkeys(note for variant in found for note in preflight.notes(variant.recipe)):
        console.note(f"note: {note}")
    if dry_run:
        _show_plan(stem, found, store, as_json=as_json)
        return
    with opened_for(own, store, stem) as opened:
        done = sweeps.sweep(opened, stem, found, wanted)
        folder = out or opened.run_folder(stem)
    result = done.to_json()
    write_whole(folder / "sweep.json", json.dumps(result, ensure_ascii=False, indent=2))
    drawn = sweeps.picture(done)
    if drawn:
        write_whole(folder / "sweep.svg", str(drawn))
    text = f"{console.table(done.rows())}\n\nin {folder}: sweep.json" + (", sweep.svg" if drawn else "")
    console.emit(result, as_json=as_json, text=text)


def _varied(given: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each key. FactoryError: one is not of the form key=value,value, or a key is given twice."""
    from factory.rounds import sweep as sweeps

    found: dict[str, list[Any]] = {}
    for key, values in map(sweeps.values_of, given):
        if key in found:
            raise FactoryError(f"{key} is varied twice", todo=f"name all its values at once: --vary {key}=1,2,3")
        found[key] = values
    return found


def _show_plan(stem: str, found: Sequence[Variant], folder: Path, *, as_json: bool) -> None:
    """The plan of all runs, what they share counted once; nothing is asked or written."""
    from factory.rounds import forecast, sweep as sweeps

    shared = sweeps.shared(found)
    plans = plans_of([(one.recipe, its) for one, its in zip(found, shared, strict=True)], folder)
    rows = [
        {"run": one.run, "seed": one.seed, **one.values, "shares": _shares(point), "calls": plan["calls_at_most"],
         "tokens": plan["tokens_at_most"], "seconds": plan["seconds"], "cost_usd": plan["cost_usd"]}
        for one, point, plan in zip(found, sweeps.points(found), plans, strict=True)
    ]  # fmt: skip
    whole = forecast.total(plans)
    said = {k: v for k, v in whole.items() if k not in ("seconds", "cost_usd", "memory_bytes")}
    text = f"{console.facts(said)}\n\n{console.table(rows)}"
    console.emit({"sweep": stem, **whole, "runs": rows}, as_json=as_json, text=text)


def _shares(point: Point | None) -> str:
    return "" if point is None else f"what {point.run} did before {point.step}"


def _seeds(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise FactoryError(f"--seeds {text!r} is no list of different whole numbers", todo="write --seeds 1,2,3")
    return [int(part) for part in parts]
