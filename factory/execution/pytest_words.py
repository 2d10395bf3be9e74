"""The few words of pytest that test code is written with, for where pytest itself is not installed: raises, approx,
mark.parametrize, param, fail."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple


class _Raises:
    """`with raises(kind, match=pattern) as info`: what is inside raises such an exception (`info.value`)."""

    def __init__(self, kinds: Any, match: str | None = None) -> None:
        self.kinds = kinds
        self.match = match
        self.value: BaseException | None = None
        self.type: type[BaseException] | None = None

    def __enter__(self) -> _Raises:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if error is None:
            raise AssertionError(f"did not raise {self.kinds}")
        if not isinstance(error, self.kinds):
            return False
        self.value, self.type = error, kind
        if self.match is not None and not re.search(self.match, str(error)):
            raise AssertionError(f"{str(error)!r} does not match {self.match!r}")
        return True


def raises(kinds: Any, *call: Any, match: str | None = None, **named: Any) -> _Raises:
    """pytest.raises, around a block or with a function and its arguments."""
    expecting = _Raises(kinds, match)
    if call:
        with expecting:
            call[0](*call[1:], **named)
    return expecting


class approx:  # noqa: N801 - the name is pytest's
    """Equal within 1e-6 of the expected number, or 1e-12; lists, tuples and dicts item by item."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None) -> None:
        self.expected = expected
        self.rel = rel
        self.abs = abs

    def __eq__(self, found: object) -> bool:
        return self._near(found, self.expected)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"approx({self.expected!r})"

    def _near(self, found: Any, expected: Any) -> bool:
        if isinstance(expected, Mapping):
            same = isinstance(found, Mapping) and found.keys() == expected.keys()
            return same and all(self._near(found[key], expected[key]) for key in expected)
        if isinstance(expected, Sequence) and not isinstance(expected, str | bytes):
            same = isinstance(found, Sequence) and len(found) == len(expected)
            return same and all(self._near(a, b) for a, b in zip(found, expected, strict=True))
        numbers = (int, float, complex)
        if isinstance(expected, bool):
            return isinstance(found, bool) and found is expected
        if not (isinstance(expected, numbers) and isinstance(found, numbers)):
            return bool(found == expected)
        if abs(expected) == math.inf:
            return bool(found == expected)
        least = 1e-12 if self.abs is None else self.abs
        relative = (1e-6 if self.rel is None and self.abs is None else self.rel or 0.0) * abs(expected)
        return bool(found == expected or abs(found - expected) <= max(least, relative))


class Mark(NamedTuple):
    """What a decorator has put on a test function."""

    name: str
    args: tuple[Any, ...]


class Parameters(NamedTuple):
    """One set of values for a test."""

    values: tuple[Any, ...]


class _Marks:
    def __getattr__(self, name: str) -> Any:
        def marking(*args: Any, **named: Any) -> Any:
            if len(args) == 1 and callable(args[0]) and not named:
                return args[0]  # a mark without arguments

            def decorate(function: Any) -> Any:
                function.pytestmark = [Mark(name, args), *getattr(function, "pytestmark", [])]
                return function

            return decorate

        return marking


def _fail(reason: str = "") -> None:
    raise AssertionError(reason)


def module() -> ModuleType:
    """It, as a module of the name pytest."""
    made = ModuleType("pytest")
    words = {"raises": raises, "approx": approx, "mark": _Marks(), "fail": _fail,
             "param": lambda *values, **named: Parameters(values)}  # fmt: skip
    made.__dict__.update(words)
    return made
