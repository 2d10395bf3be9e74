"""What a constraint's parameter may be: a rule that names the fault of a value, and the default where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from factory.constraints.answer import find_words

REQUIRED: Final = object()


class Parameter(NamedTuple):
    """`fault` says what is wrong with a value, or None. Without a `default` the parameter must be given."""

    fault: Callable[[Any], str | None]
    default: Any = REQUIRED


def whole(low: int, default: Any = REQUIRED) -> Parameter:
    """A whole number, at least `low`."""

    def fault(value: Any) -> str | None:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= low
        return None if right else f"must be a whole number of at least {low}, not {value!r}"

    return Parameter(fault, default)


def choice(*allowed: str, default: Any = REQUIRED) -> Parameter:
    """One of the texts in `allowed`."""

    def fault(value: Any) -> str | None:
        return None if value in allowed else f"must be one of {', '.join(allowed)}, not {value!r}"

    return Parameter(fault, default)


def number(low: float, default: Any = REQUIRED) -> Parameter:
    """A finite number, at least `low`."""

    def fault(value: Any) -> str | None:
        right = isinstance(value, int | float) and not isinstance(value, bool) and low <= value < math.inf
        return None if right else f"must be a number of at least {low:g}, not {value!r}"

    return Parameter(fault, default)


def flag(*, default: bool) -> Parameter:
    """True or false."""
    return Parameter(
        lambda value: None if isinstance(value, bool) else f"must be true or false, not {value!r}", default
    )


def text(default: Any = REQUIRED, *, most: int = 100_000) -> Parameter:
    """A text that is not blank, of at most `most` characters."""

    def fault(value: Any) -> str | None:
        if not isinstance(value, str) or not value.strip():
            return f"must be a text, not {value!r}"
        return None if len(value) <= most else f"is longer than {most} characters"

    return Parameter(fault, default)


def checked(reason: Callable[[Any], str | None], default: Any = REQUIRED) -> Parameter:
    """Whatever `reason` finds no fault with."""
    return Parameter(reason, default)


def phrase(default: Any = REQUIRED) -> Parameter:
    """A text that holds at least one word."""
    return Parameter(_phrase_fault, default)


def phrases(default: Any = REQUIRED) -> Parameter:
    """A list of texts, each with at least one word; empty only when that is the default."""

    def fault(value: Any) -> str | None:
        if isinstance(value, str) or not isinstance(value, Sequence) or (not value and default is REQUIRED):
            return f"must be a list of texts, not {value!r}"
        return next((f for f in map(_phrase_fault, value) if f), None)

    return Parameter(fault, default)


def _phrase_fault(value: Any) -> str | None:
    return None if isinstance(value, str) and find_words(value) else f"must be a text with a word in it, not {value!r}"


def relation(default: str) -> Parameter:
    """How a count is compared."""
    return choice("exactly", "at_least", "at_most", default=default)


def faults_of(given: Mapping[str, Any], known: Mapping[str, Parameter]) -> list[str]:
    """Every fault of the given parameters: unknown names, missing ones, wrong values."""
    faults = [f"no parameter {n!r}; known: {', '.join(known) or 'none'}" for n in given if n not in known]
    for name, parameter in known.items():
        if name not in given:
            faults += [f"parameter {name!r} is missing"] if parameter.default is REQUIRED else []
            continue
        fault = parameter.fault(given[name])
        faults += [f"{name} {fault}"] if fault else []
    return faults
