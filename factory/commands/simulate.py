"""The command that tries stopping rules on runs whose truth is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from factory import console
from factory.commands import options
from factory.faults import FactoryError

if TYPE_CHECKING:
    from factory.stopping import StopConfig


def simulate(
    worlds: Annotated[
        str,
        typer.Option(help="Which worlds: report | tune | all, a kind (plateau ...) or a name; with commas several."),
    ] = "report",
    runs: Annotated[int, typer.Option(min=1, help="Made-up runs of each world.")] = 200,
    prompts: Annotated[str, typer.Option(help="Numbers of held-out prompts, with commas.")] = "200,500,2000",
    rounds: Annotated[
        int, typer.Option(min=2, max=100, help="Rounds that a world goes on for; takes the place of max_rounds.")
    ] = 10,
    recipe: Annotated[
        str | None, typer.Option(help="Try this recipe's stop section: a bundled name or a YAML file.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override of the recipe, e.g. stop.any.0.patience=3; repeatable.")
    ] = None,
    seed: options.Seed = 0,
    output: Annotated[
        Literal["table", "json", "csv", "markdown"], typer.Option("--format", help="How to print the cells.")
    ] = "table",
) -> None:
    """Try stopping rules on runs whose truth is known: how often they stop in time and give back a good policy."""
    from factory.simulation import playing, table

    config, chosen, sizes = _config(recipe, overrides), table.chosen(_listed(worlds)), _sizes(prompts)
    found: list[playing.Cell] = []
    with console.progress("cells", len(chosen) * len(sizes)) as counter:
        for cell in playing.cells(chosen, config, runs=runs, prompts=sizes, seed=seed, rounds=rounds):
            found.append(cell)
            counter.advance()
    if output == "csv":
        said = table.comma_separated(found)
    else:
        said = table.markdown(found) if output == "markdown" else table.text(found)
    console.emit(table.rows(found), as_json=output == "json", text=said)


def _config(recipe: str | None, overrides: list[str] | None) -> StopConfig:
    """The recipe's stop section, or the rules' own defaults."""
    from factory import recipe as recipes
    from factory.stopping import StopConfig

    if recipe is None:
        if overrides:
            raise FactoryError("--set changes a recipe: name one with --recipe", todo="factory recipe list")
        return StopConfig()
    return recipes.load(recipe, overrides or ()).stop


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _sizes(text: str) -> list[int]:
    """Numbers of prompts; FactoryError names what is none."""
    wrong = [part for part in _listed(text) if not part.isdecimal() or not 10 <= int(part) <= 100_000]
    if wrong or not _listed(text):
        raise FactoryError(
            f"--prompts {text!r}: numbers from 10 to 100000 are wanted, with commas", todo="--prompts 200,2000"
        )
    return [int(part) for part in dict.fromkeys(_listed(text))]
