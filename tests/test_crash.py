from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from factory import crash
from factory.faults import FactoryError


@pytest.fixture(autouse=True)
def fresh_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "_passed", type(crash._passed)())


def test_points_do_nothing_when_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(crash.VARIABLE, raising=False)
    for name in crash.POINTS:
        crash.point(name)
    assert crash._passed.total() == 0


def test_a_name_that_is_not_listed_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match=r"not in factory\.crash\.POINTS"):
        crash.point("store.nowhere")


def test_a_wrong_name_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(crash.VARIABLE, "store.append.before_comit")
    with pytest.raises(FactoryError, match=r"did you mean 'store\.append\.before_commit'"):
        crash.point("store.append.after_commit")


def test_names_are_distinct() -> None:
    assert len(set(crash.POINTS)) == len(crash.POINTS)


@pytest.mark.parametrize(("value", "passed"), [("store.append.after_commit", 0), ("store.append.after_commit:3", 2)])
def test_the_process_dies_at_the_nth_passing(value: str, passed: int) -> None:
    code = (
        "from factory import crash\n"
        "for i in range(5):\n"
        "    crash.point('store.append.before_commit')\n"
        "    crash.point('store.append.after_commit')\n"
        "    print(i, flush=True)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], env={crash.VARIABLE: value}, capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert child.stdout.split() == [str(i) for i in range(passed)]
