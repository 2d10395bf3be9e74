"""What the options of LLM judges must be, told all at once when a judge is made: before anything is
paid for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factory.faults import ConfigError


def check(judge: str, needs: Mapping[str, bool]) -> None:
    """ConfigError with every need that is not met; each names its option first."""
    faults = [need for need, met in needs.items() if not met]
    if faults:
        raise ConfigError(faults, where=f"options of the judge {judge!r}", todo="mend these options")


def flag(name: str, value: Any) -> dict[str, bool]:
    """The need that an option is true or false (YAML and -J give "yes" as a text)."""
    return {f"{name}: must be true or false, not {value!r}": isinstance(value, bool)}


def choice(name: str, value: Any, known: tuple[str, ...]) -> dict[str, bool]:
    """The need that an option is one of the known words."""
    return {f"{name}: must be {', '.join(known)}; not {value!r}": value in known}


def share(name: str, value: Any) -> dict[str, bool]:
    """The need that an option is a number from 0 to 1."""
    return {f"{name}: must be a number from 0 to 1, not {value!r}": _is_number(value) and 0 <= value <= 1}


def count(name: str, value: Any, *, optional: bool = False) -> dict[str, bool]:
    """The need that an option is a whole number from 1 on."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return {f"{name}: must be a whole number from 1 on, not {value!r}": whole or (optional and value is None)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
