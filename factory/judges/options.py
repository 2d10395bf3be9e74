"""What the options of judges must be, told all at once when a judge is made: before anything is paid for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from factory.faults import ConfigError

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}


def check(judge: str, needs: Mapping[str, bool]) -> None:
    """ConfigError with every need that is not met; each names its option first."""
    faults = [need for need, met in needs.items() if not met]
    if faults:
        raise ConfigError(faults, where=f"options of the judge {judge!r}", todo="mend these options")


def typed(build: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, bool]:
    """The needs that options are of the types that the judge declares: YAML and -J read 5 as a number, not a text."""
    hints = get_type_hints(vars(build)["__init__"] if isinstance(build, type) else build)
    return {
        f"{name}: must be {_in_words(hints[name])}, not {value!r}": _is_of(hints[name], value)
        for name, value in given.items()
        if name in hints
    }


def _is_of(hint: Any, value: Any) -> bool:
    try:
        _adapter(hint).validate_python(os.fspath(value) if isinstance(value, os.PathLike) else value, strict=True)
    except ValidationError:
        return False
    return True


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _in_words(hint: Any) -> str:
    """A type as a user says it; "a text or a list of texts"."""
    if hint in _WORDS:
        return _WORDS[hint]
    within = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(map(str, within))
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return "a mapping"
    if isinstance(get_origin(hint), type) and get_origin(hint).__name__ == "Sequence":
        return "a list of texts" if within == (str,) else "a list"
    return " or ".join(map(_in_words, within)) or "anything"


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
