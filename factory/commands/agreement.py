"""The command that measures the judges."""

from __future__ import annotations

from typing import Annotated

import typer

from factory import console
from factory.commands import options


def agreement(
    run: options.Run = None,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, max=options.LARGEST, help="One round; all by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the candidates' prompts.")] = "train",
    seed: options.Seed = 0,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """How far the judges agree with each other, and with themselves when the order is turned."""
    from factory import agreement as measures

    with options.opened(store) as opened:
        name = options.newest(opened, "judgments", run, split=split)
        report = measures.report(opened, run=name, round=round_number, split=split, seed=seed)
    text = "\n\n".join([console.table(report.judge_rows()), console.table(report.pair_rows())])
    console.emit({"run": name} | report.to_json(), as_json=as_json, text=text)
