"""Commands that judge candidates and measure the judges."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import Annotated

import typer

from factory import console
from factory.commands import options


def label(
    judge: Annotated[
        list[str], typer.Option("--judge", help="verifier | pairwise | rating; several are a panel, the first leads.")
    ],
    judge_option: Annotated[
        list[str] | None, typer.Option("--judge-option", "-J", help="judge.option=value; repeatable.")
    ] = None,
    model: options.Model = options.EMBEDDED,
    engine: options.EngineKind = "transformers",
    engine_option: options.EngineOptions = None,
    matchups: Annotated[
        str, typer.Option(help="Pairs that pairwise judges see: all | against_best | verifier_ties | random:k.")
    ] = "all",
    split: Annotated[str, typer.Option(help="Split of the candidates' prompts.")] = "train",
    retry_failed: Annotated[bool, typer.Option(help="Ask again also where the failure was permanent.")] = False,
    seed: options.Seed = 0,
    run: options.Run = None,
    round_number: options.RoundOf = None,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Let judges say what they think of a run's candidates. The same command again goes on where it stopped."""
    from factory.engines import EngineSpec, build
    from factory.judges import judges
    from factory.labelling import PanelMember, label as label_candidates

    chosen = options.by_judge(judge_option, judge, "--judge-option")
    with ExitStack() as stack:
        opened = stack.enter_context(options.opened(store))
        name = options.newest(opened, "candidates", run, split=split)
        stack.enter_context(opened.run_lock(name))
        number = options.newest_round(opened, "candidates", name, round_number, split=split)
        asking = [which for which in judge if judges.facts(which)["asks"]]
        spec = EngineSpec(engine, model, options.settings(engine_option, "--engine-option"))
        built = stack.enter_context(closing(build(spec))) if asking else None
        panel = [
            PanelMember.of(
                which,
                engine=built if which in asking else None,
                matchups=matchups,
                options=chosen[which],
            )
            for which in judge
        ]
        counter = stack.enter_context(console.progress("judgments"))
        report = label_candidates(
            opened,
            panel,
            run=name,
            round=number,
            split=split,
            seed=seed,
            retry_failed=retry_failed,
            progress=counter,
        )
    console.emit({"run": name} | report.to_json(), as_json=as_json, text=console.table(report.rows()))
    if report.failures:
        raise typer.Exit(1)


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
