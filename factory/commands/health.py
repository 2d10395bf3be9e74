"""The command that says whether everything is well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from factory import console
from factory.commands import options

if TYPE_CHECKING:
    from factory.doctor import Check


def doctor(
    model: Annotated[str | None, typer.Option(help="A model to look for.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Base URL of an endpoint to ask for one token.")] = None,
    endpoint_model: Annotated[str, typer.Option(help="Model to name to the endpoint.")] = "",
    api_key_env: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY",
    store: options.StoreFolder = options.STORE,
    as_json: options.AsJson = False,
) -> None:
    """Check versions, the store's parts and locks, disk, and that models and endpoints can be reached."""
    from factory.doctor import examine

    checks = examine(store, model=model, endpoint=endpoint, endpoint_model=endpoint_model, api_key_env=api_key_env)
    rows = [check._asdict() for check in checks]
    console.emit(rows, as_json=as_json, text="\n".join(map(_line, checks)))
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


def _line(check: Check) -> str:
    return f"{check.state:<4}  {check.name}: {check.what}" + (f"\n      to do: {check.todo}" if check.todo else "")
