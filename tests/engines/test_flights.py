"""Turns of the interpreter's threads: quick while anybody wants them, and as before afterwards."""

from __future__ import annotations

import sys

import pytest

from factory.engines.flights import TURN, quick_turns


def test_turns_are_quick_while_anybody_wants_them() -> None:
    usual = sys.getswitchinterval()
    with quick_turns():
        assert sys.getswitchinterval() == pytest.approx(TURN)
        with quick_turns():
            assert sys.getswitchinterval() == pytest.approx(TURN)
        assert sys.getswitchinterval() == pytest.approx(TURN)
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_turns_go_back_also_after_a_fault() -> None:
    usual = sys.getswitchinterval()
    with pytest.raises(KeyError), quick_turns():
        raise KeyError
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_turns_that_are_quicker_already_stay() -> None:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(TURN / 4)
    try:
        with quick_turns():
            assert sys.getswitchinterval() == pytest.approx(TURN / 4)
    finally:
        sys.setswitchinterval(usual)
