"""The command that runs a recipe over several values of a setting, or several seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from factory import console
from factory.commands import options
from factory.commands.runs import Overrides, RecipeName, opened_for
from factory.faults import FactoryError


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
        bool, typer.Option("--dry-run", help="Print the runs and what each shares with another; ask nothing.")
    ] = False,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Run a recipe once for each value, all sharing what comes before it; tell quality against KL. The same command
    again goes on with a sweep that was cut off."""
    from factory.rounds import preflight, sweep as sweeps
    from factory.store.filesystem import write_whole

    given = [*(vary or ()), *([f"train.config.parameters.beta={beta}"] if beta else ())]
    wanted = dict(sweeps.values_of(text) for text in given)
    fixed = list(overrides or ())
    own = preflight.load(name, fixed)
    stem = f"{run_name or own.name}-sweep"
    found = sweeps.variants(lambda told: preflight.load(name, [*fixed, *told]), stem, wanted, _seeds(seeds))
    for note in dict.fromkeys(note for variant in found for note in preflight.notes(variant.recipe)):
        console.note(f"note: {note}")
    if dry_run:
        rows = [_planned(sweeps.point_between(found[0], variant), variant) for variant in found]
        console.emit(rows, as_json=as_json, text=console.table(rows))
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


def _planned(point: Any, variant: Any) -> dict[str, Any]:
    shared = "" if point is None else f"what {point.run} did before {point.step}"
    return {"run": variant.run, "seed": variant.seed, **variant.values, "shares": shared}


def _seeds(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise FactoryError(f"--seeds {text!r} is no list of different whole numbers", todo="write --seeds 1,2,3")
    return [int(part) for part in parts]
