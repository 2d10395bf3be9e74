"""The command line: `factory`. A thin skin: each command is one call of the library, imported when the command runs.

Results go to stdout, progress and faults to stderr. Exit codes: 0 done, 1 done but rows failed or a gate was not met,
2 usage or configuration, 3 endpoint or credentials, 4 locked, 5 integrity, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from factory.commands import (
    agreement,
    bon,
    compare,
    data,
    health,
    labels,
    pairs,
    policies,
    revise,
    runs,
    simulate,
    sweep,
)
from factory.console import note
from factory.faults import FactoryError

FULL = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT), "free some space; what was done is kept, and the same command goes on from there"
)
"""What to do where a disk takes no more. Python names no file when a write fails."""


class FactoryGroup(TyperGroup):
    """Commands in the order of the flow; a fault that the user can cure is printed without a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=lambda name: name != "prompts")  # a group, which typer puts last

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FactoryError as fault:
            note(f"error: {fault.text()}")
            raise typer.Exit(fault.exit_code) from fault
        except KeyboardInterrupt:
            note("interrupted: what was done is kept; the same command goes on from there")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise typer.Exit(0) from None
        except OSError as error:
            if error.filename is None and error.errno not in FULL:
                raise
            where = "the store or the files to write" if error.filename is None else error.filename
            todo = FULL.get(error.errno or 0, "check the path, its rights, and the disk")
            note(f"error: {error.strerror}\n  where: {where}\n  to do: {todo}")
            raise typer.Exit(FactoryError.exit_code) from error


app = typer.Typer(
    name="factory",
    cls=FactoryGroup,
    help="Prompts and a model into preference data, preference data into a better model, round after round.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prompts = typer.Typer(no_args_is_help=True, help="Prompts of the store.")
recipe = typer.Typer(no_args_is_help=True, help="Recipes: what a run does.")

prompts.command("add")(data.add_prompts)
prompts.command("forget")(data.forget_prompts)
app.add_typer(prompts, name="prompts")
app.command("decontaminate")(data.decontaminate)
app.command("generate")(data.generate)
app.command("revise")(revise.revise)
app.command("label")(labels.label)
app.command("collect")(labels.collect)
app.command("agreement")(agreement.agreement)
app.command("pair")(pairs.pair)
app.command("train")(policies.train)
app.command("methods")(policies.methods)
app.command("merge")(policies.merge)
app.command("evaluate")(policies.evaluate)
app.command("bon")(bon.bon)
app.command("run")(runs.run)
app.command("sweep")(sweep.sweep)
app.command("compare")(compare.compare)
app.command("status")(runs.status)
app.command("report")(runs.report)
recipe.command("list")(runs.list_recipes)
recipe.command("show")(runs.show_recipe)
recipe.command("check")(runs.check_recipe)
app.add_typer(recipe, name="recipe")
app.command("simulate")(simulate.simulate)
app.command("query")(data.query)
app.command("schema")(data.schema)
app.command("export")(data.export)
app.command("doctor")(health.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"preference-factory {version('preference-factory')}")
        raise typer.Exit


@app.callback()
def root(
    plugins: Annotated[
        list[str] | None,
        typer.Option("--plugin", help="A Python file or module that adds judges, rules, objectives ...; repeatable."),
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prompts and a model into preference data, preference data into a better model, round after round."""
    if plugins:
        from factory.plugins import use

        use(plugins)


def main() -> None:
    """Entry point of the `factory` command."""
    # the factory has progress lines of its own: a library's bars would break into them
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()
