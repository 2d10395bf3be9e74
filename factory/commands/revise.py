"""The command that criticises a run's answers by a constitution and writes them anew."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import Annotated, Any

import typer

from factory import console
from factory.commands import options


def revise(
    constitution: Annotated[
        str, typer.Option(help="Constitution: a bundled one by name, or a YAML file.")
    ] = "helpful-honest-harmless",
    principle: Annotated[
        list[str] | None, typer.Option("--principle", help="Draw from these principles alone; repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Critiques and revisions of each answer, in turn.")] = 1,
    examples: Annotated[
        int | None, typer.Option(min=0, help="Show so many of the constitution's worked examples (default: all).")
    ] = None,
    model: options.Model = options.EMBEDDED,
    engine: options.EngineKind = "transformers",
    engine_option: options.EngineOptions = None,
    engines: options.Engines = 1,
    concurrency: options.Concurrency = None,
    split: Annotated[str, typer.Option(help="Split of the answers' prompts.")] = "train",
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest critique or revision in tokens.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Answers of at most so many prompts.")] = None,
    retry_failed: options.RetryFailed = False,
    max_cost: options.MaxCost = None,
    max_tokens_total: options.MaxTokensTotal = None,
    seed: options.Seed = 0,
    run: options.Run = None,
    round_number: options.RoundOf = None,
    dry_run: options.DryRun = False,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Criticise a run's answers by a constitution and write them anew; `pair --strategy draft_revision` makes
    preferences of it. The same command again goes on where it stopped."""
    from factory.engines import build
    from factory.revision import plan, revise as criticise_and_revise
    from factory.schema import Sampling

    sampling = Sampling(temperature, top_p, 0, max_tokens)
    with ExitStack() as stack:
        opened = stack.enter_context(options.opened(store))
        name = options.newest(opened, "candidates", run, split=split)
        number = options.newest_round(opened, "candidates", name, round_number, split=split)
        wanted: dict[str, Any] = {"run": name, "round": number, "split": split, "limit": limit, "rounds": rounds}
        wanted |= {"constitution": constitution, "principles": principle or (), "sampling": sampling}
        spec = options.spec(engine, model, engine_option, engines=engines, concurrency=concurrency)
        if dry_run:
            cost = options.priced(spec)
            planned = {"run": name} | plan(opened, **wanted) | cost
            console.emit(planned, as_json=as_json, text=console.facts(planned))
            return
        stack.enter_context(opened.run_lock(name))
        built = stack.enter_context(closing(build(spec)))
        counter = stack.enter_context(console.progress("critiques and revisions"))
        report = criticise_and_revise(
            opened,
            built,
            **wanted,
            examples=examples,
            seed=seed,
            retry_failed=retry_failed,
            budget=options.budget(max_cost, max_tokens_total),
            progress=counter,
        )
    result = {"run": name} | report.to_json()
    console.emit(result, as_json=as_json, text=console.facts(result))
    if report.failed:
        raise typer.Exit(1)
