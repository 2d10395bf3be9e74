"""The command that puts runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory import console
from factory.commands import options
from factory.faults import FactoryError


def compare(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN...", help="Names of runs.")] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="LABEL=RUN,RUN: the mean of runs, as of several seeds; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also draw quality against KL and against seconds of making: FILE.svg.")
    ] = None,
    time: Annotated[
        Literal["clock", "processor"], typer.Option(help="Seconds of the picture: the clock's, or all processors'.")
    ] = "clock",
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Runs of a store beside each other, round by round: quality, distance, and what making the policy took."""
    from factory import comparing
    from factory.store.filesystem import write_whole

    if out is not None and out.suffix != ".svg":
        raise FactoryError("the picture is written as SVG", where=str(out), todo="end its name in .svg")
    options.check_file(out, "--out")
    groups = _groups(group or [])
    with options.opened(store) as opened:
        found = comparing.compare(opened, runs or [], groups)
    for note in found.notes:
        console.note(f"note: {note}")
    if out is not None:
        write_whole(out, str(comparing.picture(found, time)))
        console.note(f"picture: {out}")
    console.emit(found.to_json(), as_json=as_json, text=console.table(found.rows()))


def _groups(given: list[str]) -> dict[str, list[str]]:
    """LABEL=RUN,RUN as runs by label. FactoryError: one is not of that form, or a label or run is given twice."""
    found: dict[str, list[str]] = {}
    for text in given:
        label, _, listed = text.partition("=")
        names = [name.strip() for name in listed.split(",")]
        if not label or not all(names):
            raise FactoryError(f"--group {text!r} is not of the form LABEL=RUN,RUN", todo="write --group dpo=a,b")
        if label in found:
            raise FactoryError(f"--group {label} is given twice", todo="give each group a label of its own")
        if len(set(names)) < len(names):
            raise FactoryError(f"--group {label} has a run twice", todo="name each run once")
        found[label] = names
    return found
