"""Errors that a user can cure. Each says what happened, where (file and key) and what to do, and carries its exit code.

The command line prints them without a traceback; everything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FactoryError(Exception):
    """A fault with a cause and a cure. Exit code 2: usage or configuration."""

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what = what
        self.where = where
        self.todo = todo
        super().__init__(self.text())

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.__dict__)

    def text(self) -> str:
        """The fault as the user reads it: one line each for what, where and what to do."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.todo:
            lines.append(f"  to do: {self.todo}")
        return "\n".join(lines)


def _again(kind: type[FactoryError], state: dict[str, Any]) -> FactoryError:
    """A fault as it was before it went through a pipe."""
    fault = kind.__new__(kind)
    fault.__dict__.update(state)
    Exception.__init__(fault, fault.text())
    return fault


class ConfigError(FactoryError):
    """Every fault of a configuration at once."""

    def __init__(self, faults: Sequence[str], *, where: str = "", todo: str = "") -> None:
        self.faults = tuple(faults)
        what = faults[0] if len(faults) == 1 else f"{len(faults)} faults:\n" + "\n".join(f"  - {f}" for f in faults)
        super().__init__(what, where=where, todo=todo)


class EndpointError(FactoryError):
    """An endpoint cannot be reached, or refuses the credentials."""

    exit_code = 3


class LockedError(FactoryError):
    """Another process holds what this one needs."""

    exit_code = 4


class IntegrityError(FactoryError):
    """Stored data does not match its checksum or its schema."""

    exit_code = 5
