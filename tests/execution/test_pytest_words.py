"""The stand-in for pytest says what pytest says."""

from __future__ import annotations

from typing import Any

import pytest

from factory.execution.jobs import _parametrized
from factory.execution.pytest_words import approx, module, raises

NUMBERS = [
    0,
    1,
    1 + 1e-7,
    1 + 1e-5,
    1e-13,
    -1.0,
    float("inf"),
    3,
    True,
    "x",
    None,
    [1.0],
    [1.0, 2],
    (1,),
    {"a": 1.0},
    {},
]


@pytest.mark.parametrize("expected", NUMBERS)
@pytest.mark.parametrize("found", NUMBERS)
def test_approx_is_pytests(found: Any, expected: Any) -> None:
    if isinstance(expected, str) or expected is None:
        return
    if type(found) is not type(expected) and isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        return  # pytest tells lists from tuples in some versions
    assert (found == approx(expected)) == (found == pytest.approx(expected))
    if isinstance(expected, int | float):
        for options in ({"abs": 0.1}, {"rel": 0.1}, {"rel": 0.1, "abs": 0.2}):
            assert (found == approx(expected, **options)) == (found == pytest.approx(expected, **options))


def test_raises() -> None:
    with raises(ValueError, match="^no") as info:
        raise ValueError("no way")
    assert str(info.value) == "no way"
    assert raises(ZeroDivisionError, lambda x: 1 / x, 0).type is ZeroDivisionError
    with pytest.raises(AssertionError, match="did not raise"), raises(ValueError):
        pass
    with pytest.raises(AssertionError, match="does not match"), raises(ValueError, match="yes"):
        raise ValueError("no")
    with pytest.raises(KeyError), raises((ValueError, TypeError)):
        raise KeyError("other")


def test_marks_are_read_as_pytests_are() -> None:
    words = module()
    for pytest_like in (words, pytest):
        seen: list[Any] = []

        @pytest_like.mark.parametrize("a, b", [(1, 2), pytest_like.param(3, 4)])
        @pytest_like.mark.parametrize("c", [5, 6])
        def function(a: int, b: int, c: int, seen: list[Any] = seen) -> None:
            seen.append((a, b, c))

        for test in _parametrized(function, function):
            test()
        assert sorted(seen) == [(1, 2, 5), (1, 2, 6), (3, 4, 5), (3, 4, 6)]

    @words.mark.slow
    def plain() -> int:
        return 1

    assert plain() == 1
    with pytest.raises(AssertionError, match="why"):
        words.fail("why")
