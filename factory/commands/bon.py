"""The command that studies what picking the best of n answers does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory import console
from factory.commands import options
from factory.faults import FactoryError

FORMS = {".svg", ".html"}


def bon(
    judge: Annotated[
        str, typer.Option(help="What picks: a judge whose scores are in the store, or tokens | words | relevance.")
    ] = "verifier",
    independent: Annotated[
        list[str] | None,
        typer.Option("--independent", help="What is watched and picks nothing: likewise; repeatable (default: words)."),
    ] = None,
    n: Annotated[
        list[str] | None,
        typer.Option("--n", help="Sizes of best-of-n, with commas: 1,2,4,8; repeatable (default: 1, 2, 4 ... all)."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the answers' prompts.")] = "heldout",
    model: options.Model = options.EMBEDDED,
    limit: options.Limit = None,
    out: Annotated[Path | None, typer.Option(help="Also write the charts: FILE.svg or FILE.html.")] = None,
    seed: options.Seed = 0,
    run: options.Run = None,
    round_number: options.RoundOf = None,
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Best-of-n from judged answers: quality by the judge that picks and by others, KL, passes, where it is fooled."""
    from factory.best_of_n import load, page, picture, study
    from factory.report import keep_study
    from factory.store.filesystem import write_whole

    watched, sizes = independent or ["words"], _sizes(n or [])
    if judge in watched:
        raise FactoryError(f"{judge!r} picks: it is not independent of itself", todo="name another with --independent")
    if out is not None and out.suffix not in FORMS:
        raise FactoryError("charts are written as SVG or HTML", where=str(out), todo="end its name in .svg or .html")
    options.check_file(out, "--out")
    with options.opened(store) as opened:
        name = options.newest(opened, "candidates", run, split=split)
        number = options.newest_round(opened, "candidates", name, round_number, split=split)
        scorer = None
        if "relevance" in (judge, *watched):
            from factory.evaluation.likelihoods import ModelScorer

            scorer = ModelScorer(opened)
        answers, left_out = load(
            opened,
            run=name,
            round=number,
            split=split,
            judge=judge,
            independent=watched,
            scorer=scorer,
            model=model,
            limit=limit,
        )
        found = study(answers, judge=judge, sizes=sizes, seed=seed, left_out=left_out)
        told = {"run": name, "round": number, "split": split} | found.to_json()
        keep_study(opened, name, told)  # so that the run's report shows it
    if out is not None:
        write_whole(out, str(page(found) if out.suffix == ".html" else picture(found)))
        console.note(f"charts: {out}")
    text = f"{console.table(found.rows())}\n\n{found.words()}"
    console.emit(told, as_json=as_json, text=text)


def _sizes(given: list[str]) -> list[int]:
    """The sizes named, each once; none named: none. FactoryError: what is no size."""
    parts = [part.strip() for text in given for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or int(part) < 1]
    if wrong:
        raise FactoryError(f"--n: {wrong[0]!r} is no size", todo="write whole numbers from 1 on: --n 1,2,4,8,16")
    return [int(part) for part in dict.fromkeys(parts)]
