"""Names to things: engines, judges, strategies, rules. A wrong name is answered with the nearest right one.

An entry is registered either with the object itself or with "module:attribute", which is imported on first use, so that
listing names costs nothing. Users enter things of their own by plugins (`plugins.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Generic, TypeVar

from factory import plugins
from factory.faults import FactoryError

T = TypeVar("T")
ONES_OWN = "name one of these, or bring your own: factory --plugin FILE (docs/extending.md)"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like this one; None where none is."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return near[0] if near else None


def unknown_name(kind: str, name: str, known: Iterable[str], todo: str = "") -> FactoryError:
    """The error for a name that is not known, with the nearest that is."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f"; did you mean {near!r}?" if near else "."
    return FactoryError(f"no {kind} named {name!r}{hint} Known: {', '.join(names)}", todo=todo)


class Registry(Generic[T]):
    """A table of names of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T | str] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def add(self, name: str, entry: T | str, **facts: Any) -> None:
        """Register `entry`, an object or "module:attribute", with facts about it."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        self._facts[name] = facts
        plugins.entered(self.kind, name)

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """`add` as a decorator."""

        def decorate(entry: T) -> T:
            self.add(name, entry, **facts)
            return entry

        return decorate

    def get(self, name: str) -> T:
        """The thing of that name, imported if need be. FactoryError names the nearest known name."""
        plugins.load()
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries, ONES_OWN)
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            loaded: T = getattr(import_module(module), attribute)
            self._entries[name] = loaded
            return loaded
        return entry

    def facts(self, name: str) -> dict[str, Any]:
        """What was declared with the entry."""
        plugins.load()
        if name not in self._facts:
            raise unknown_name(self.kind, name, self._facts, ONES_OWN)
        return self._facts[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        plugins.load()
        return sorted(self._entries)
