"""Commands that put data in and take it out: prompts, candidates, SQL, exports."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from factory import console
from factory.commands import options
from factory.faults import FactoryError

MOST_PRINTED = 1000
"""Rows of a query that are printed where nobody says how many."""


def add_prompts(
    source: Annotated[
        str, typer.Argument(help="File (JSONL, JSON, CSV, Parquet), hub name, or the bundled verifiable.")
    ],
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="Column by its role, such as prompt=question or rubric=criteria; repeatable."),
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Column whose value keeps prompts together in one split.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="Column to keep with the prompts, for SQL and --where; repeatable."),
    ] = None,
    heldout: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of groups held out for decisions (default: .15; bundled: .25)."),
    ] = None,
    final: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of groups kept for the end (default: .05; bundled: .15).")
    ] = None,
    hub_config: Annotated[str | None, typer.Option(help="Configuration of the hub data set.")] = None,
    hub_split: Annotated[str, typer.Option(help="Split of the hub data set.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Read at most so many rows.")] = None,
    scale: Annotated[
        str | None, typer.Option(help="Scale of the scores in it, LOW:HIGH such as 1:10; else rewards without ends.")
    ] = None,
    label: Annotated[
        Literal["true", "false"] | None, typer.Option(help="Label of answers without one; true: to learn, as by sft.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Name of the judge whose scores and winners these are.")] = "given",
    decontaminate: Annotated[
        list[str] | None,
        typer.Option("--decontaminate", help="Leave out prompts that this file or hub name holds; repeatable."),
    ] = None,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Add prompts, or answers with what was said of them, to the store; makes the store when there is none."""
    from factory.prompts import RUN, add_prompts as add
    from factory.prompts.scored import scale_of
    from factory.prompts.sources import open_source

    ends = None if scale is None else scale_of(scale)
    open_source(source)  # what is not there is refused before a store is made
    # one at a time: what two add at once could not be grouped, and a paraphrase could be held out
    with options.opened(store, create=True) as opened, opened.run_lock(RUN):
        report = add(
            opened,
            source,
            mapping={key: str(value) for key, value in options.settings(mapping, "--map").items()},
            group_by=group_by,
            keep=keep or (),
            heldout=heldout,
            final=final,
            hub_config=hub_config,
            hub_split=hub_split,
            limit=limit,
            label=None if label is None else label == "true",
            judge=judge,
            scale=ends,
            decontaminate=decontaminate or (),
        )
    console.emit(report.to_json(), as_json=as_json, text=report.text())
    if report.failures:
        raise typer.Exit(1)


def forget_prompts(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys of prompts; or name them with --where.")] = None,
    where: options.Where = None,
    sure: Annotated[bool, typer.Option("--yes", help="Erase them; without it, only say what would go.")] = False,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Erase prompts that must not be kept, with every call, answer, judgment, preference and label made of them."""
    from factory.prompts import RUN
    from factory.prompts.forgetting import forget

    if bool(keys) == (where is not None):
        raise FactoryError("which prompts?", todo="give their keys, or --where CONDITION")
    with options.opened(store) as opened, opened.run_lock(RUN):
        found = forget(opened, keys or options.picked(opened, where) or (), erase=sure)
    if not any(found.rows.values()):
        raise FactoryError("the store holds nothing of these prompts", where=str(store), todo="keys: `factory query`")
    result = {"erased": sure} | found.to_json()
    console.emit(result, as_json=as_json, text=console.facts(result))
    if not sure:
        console.note("nothing is erased yet: add --yes")
    elif found.runs:
        console.note(f"note: reports, policies and exports of these runs stay: {', '.join(found.runs)}")


def decontaminate(
    against: Annotated[list[str], typer.Option("--against", help="File, bundled set or hub name; repeatable.")],
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="Column of its prompts, such as prompt=question; repeatable.")
    ] = None,
    hub_split: Annotated[str, typer.Option(help="Split of the hub data set.")] = "test",
    split: Annotated[str | None, typer.Option(help="Split of the store to test; all by default.")] = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Words of an n-gram.")] = 8,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Share of a prompt's n-grams that make a hit.")] = 0.8,
    threshold: Annotated[float, typer.Option(min=0.5, max=1, help="Similarity (Jaccard) that makes a hit.")] = 0.8,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Report which prompts of the store other sets hold: the same words, shared n-grams, near duplicates."""
    from factory.prompts import texts_of
    from factory.prompts.decontamination import Rule, check

    columns = {key: str(value) for key, value in options.settings(mapping, "--map").items()}
    texts = [text for source in against for text in texts_of(source, mapping=columns, hub_split=hub_split)]
    with options.opened(store) as opened:
        found = check(opened, texts, split=split, rule=Rule(n, share, threshold))
    console.emit(found.to_json(), as_json=as_json, text=found.text())
    if found.hits:
        raise typer.Exit(1)


def generate(
    model: options.Model = options.EMBEDDED,
    engine: options.EngineKind = "transformers",
    engine_option: options.EngineOptions = None,
    engines: options.Engines = 1,
    concurrency: options.Concurrency = None,
    split: Annotated[str, typer.Option(help="Split of the prompts: train | heldout | final.")] = "train",
    n: Annotated[int, typer.Option("--n", min=1, help="Answers a prompt.")] = 4,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 keeps the whole distribution.")] = 0,
    max_tokens: options.MaxTokens = 256,
    system: Annotated[
        str | None, typer.Option(help="System prompt to answer under; the prompts themselves stay without it.")
    ] = None,
    where: options.Where = None,
    limit: options.Limit = None,
    retry_failed: options.RetryFailed = False,
    max_cost: options.MaxCost = None,
    max_tokens_total: options.MaxTokensTotal = None,
    seed: options.Seed = 0,
    run: options.NewRun = None,
    round_number: options.RoundNumber = 0,
    dry_run: options.DryRun = False,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Sample n candidates for each prompt. The same command again goes on where it stopped."""
    from factory.engines import build
    from factory.generation import chosen_prompts, generate as sample
    from factory.schema import Sampling

    name = options.dated("generate", run)
    with options.opened(store) as opened, opened.run_lock(name):
        picked = options.picked(opened, where)
        keys = [prompt.key for prompt in chosen_prompts(opened, split=split, keys=picked, limit=limit)]
        if picked and not keys:
            what = f"none of the {len(picked):,} prompts that --where holds for is in split {split!r}"
            raise FactoryError(what, where=str(store), todo="name another --split")
        if not keys:
            held = Counter(str(row["split"]) for row in opened.read("prompts", columns=["split"]))
            todo = f"the store has {', '.join(f'{n} in {name}' for name, n in held.items())}" if held else ""
            todo = todo or "factory prompts add FILE"
            raise FactoryError(f"no prompts in split {split!r}", where=str(store), todo=todo)
        spec = options.spec(engine, model, engine_option, engines=engines, concurrency=concurrency)
        if dry_run:
            plan = {"calls_at_most": len(keys) * n, "tokens_at_most": len(keys) * n * max_tokens, "prompts": len(keys)}
            cost = options.priced(spec)
            console.emit(plan | cost, as_json=as_json, text=console.facts(plan | cost))
            return
        built = build(spec)
        try:
            with console.progress("candidates", len(keys) * n) as counter:
                report = sample(
                    opened,
                    built,
                    run=name,
                    round=round_number,
                    keys=keys,
                    n=n,
                    sampling=Sampling(temperature, top_p, top_k, max_tokens),
                    seed=seed,
                    system=system,
                    retry_failed=retry_failed,
                    budget=options.budget(max_cost, max_tokens_total),
                    progress=counter,
                )
        finally:
            built.close()
    result = {"run": name} | report.to_json()
    console.emit(result, as_json=as_json, text=console.facts(result))
    if report.failures:
        raise typer.Exit(1)


def query(
    sql: Annotated[str, typer.Argument(help="One SELECT over the store's tables and views (see `factory schema`).")],
    form: Annotated[
        str | None,
        typer.Option("--format", help="table | json | jsonl | csv | parquet; default: by --out, else table."),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="name=value for $name, or a value for ?; repeatable.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most rows; says when it cut. Default: 1000 to print, all to --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write instead of stdout.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which the query is ended.")] = 60.0,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Ask the store in SQL (DuckDB's). Reads only; sees the committed rows of a run at work."""
    from factory import query as queries
    from factory.query.render import render

    options.check_file(out, "--out")
    ending = "" if out is None else out.suffix.removeprefix(".")
    form = form or ("table" if ending in ("", "txt") else ending)
    limit = MOST_PRINTED if limit is None and out is None else limit
    with options.opened(store) as opened:
        result = queries.run(opened, sql, queries.parse_parameters(parameter or []), limit=limit, seconds=timeout)
    width = shutil.get_terminal_size().columns if out is None and sys.stdout.isatty() else None
    rendered = render(result.table, "json" if as_json else form, width=width)
    if out is not None:
        out.write_bytes(rendered)
    else:
        sys.stdout.buffer.write(rendered if form == "parquet" else rendered.rstrip(b"\n") + b"\n")
        sys.stdout.flush()
    if result.cut:
        console.note(result.cut)


def schema(
    table: Annotated[str | None, typer.Argument(help="One table or view; all by default.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Print every table, view and column with its meaning."""
    from factory.query import describe
    from factory.registry import unknown_name

    entries = describe()
    if table is not None and table not in {entry.name for entry in entries}:
        raise unknown_name("table", table, (entry.name for entry in entries))
    shown = [entry for entry in entries if table in {None, entry.name}]
    blocks = []
    for entry in shown:
        columns = [{"column": name, "type": kind, "meaning": said} for name, (kind, said) in entry.columns.items()]
        blocks.append(f"{entry.name} ({entry.kind}): {entry.meaning}\n{console.table(columns)}")
    console.emit([entry._asdict() for entry in shown], as_json=as_json, text="\n\n".join(blocks))


def export(
    out: Annotated[Path, typer.Argument(help="Folder to write, or a file that ends in .duckdb.")],
    form: Annotated[str, typer.Option("--format", help="dataset | jsonl | csv | duckdb | policy | store")] = "dataset",
    tables: Annotated[
        list[str] | None, typer.Option("--table", help="preferences | labels | judgments | candidates; all by default.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="One run; all by default, of policies the newest with rounds.")
    ] = None,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="Round whose policy is wanted; default: the champion's.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    repository: Annotated[
        str | None, typer.Option("--push-to-hub", help="Repository (owner/name) to upload the folder to; private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see the repository.")] = False,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Write preferences, labels, judgments and candidates, or a policy, for other tools; with a card for the Hub. The
    form `store` is a copy of the whole store, also while a run is at work."""
    from factory.export import POLICY, STORE, export as write, export_policy, export_store, hub

    form = "duckdb" if out.suffix == ".duckdb" else form
    kind: hub.Kind = "model" if form == POLICY else "dataset"
    if repository is not None:
        if form not in ("dataset", POLICY):
            raise FactoryError(f"the Hub has no place for an export as {form}", todo="leave --format, or name policy")
        hub.check(repository, kind, private=not public)
    with options.opened(store) as opened:
        if form == POLICY:
            if tables:
                raise FactoryError("a policy has no tables", todo="leave out --table")
            name = options.newest(opened, "rounds", run)
            report = export_policy(opened, out, run=name, number=round_number, force=force)
        elif form == STORE:
            if tables or run:
                raise FactoryError("a store is copied whole", todo="leave out --table and --run")
            report = export_store(opened, out, force=force)
        else:
            report = write(opened, out, form=form, tables=tables, run=run, force=force)
    result = report.to_json()
    if repository is not None:
        result["repository"] = _pushed(Path(report.out), repository, kind, private=not public)
    console.emit(result, as_json=as_json, text=console.facts(result))


def _pushed(folder: Path, repository: str, kind: Literal["dataset", "model"], *, private: bool) -> str:
    """Upload an export; its address."""
    from factory.export import hub, only_here

    base = only_here(folder)
    if base is not None:
        raise FactoryError(
            "the policy is an adapter of a model in a folder of this machine, which nobody else could load",
            where=base, todo="the export is written; `factory merge` makes one whole model of both",
        )  # fmt: skip
    return hub.push(folder, repository, kind, private=private)
