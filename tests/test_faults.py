"""Faults say what, where and what to do, and survive a trip between processes."""

from __future__ import annotations

import pickle

import pytest

from factory.faults import ConfigError, EndpointError, FactoryError, IntegrityError, LockedError
from factory.registry import Registry


def test_text_has_what_where_and_what_to_do() -> None:
    fault = FactoryError("no prompts", where="store", todo="factory prompts add FILE")
    assert str(fault).splitlines() == ["no prompts", "  where: store", "  to do: factory prompts add FILE"]


@pytest.mark.parametrize(
    ("kind", "code"), [(FactoryError, 2), (EndpointError, 3), (LockedError, 4), (IntegrityError, 5)]
)
def test_each_kind_has_its_exit_code_also_after_pickling(kind: type[FactoryError], code: int) -> None:
    again = pickle.loads(pickle.dumps(kind("what", where="where", todo="todo")))
    assert type(again) is kind
    assert (again.exit_code, again.what, again.where, again.todo) == (code, "what", "where", "todo")
    assert str(again) == str(kind("what", where="where", todo="todo"))


def test_a_config_error_lists_every_fault() -> None:
    fault = pickle.loads(pickle.dumps(ConfigError(["a: wrong", "b: missing"], where="x.yaml")))
    assert fault.faults == ("a: wrong", "b: missing")
    assert "2 faults:" in str(fault)
    assert "a: wrong" in str(fault)
    assert "b: missing" in str(fault)


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    names: Registry[object] = Registry("judge")
    names.add("pairwise", object())
    names.add("verifier", object())
    with pytest.raises(
        FactoryError, match=r"no judge named 'pairwsie'; did you mean 'pairwise'\? Known: pairwise, verif"
    ):
        names.get("pairwsie")
    with pytest.raises(ValueError, match="registered twice"):
        names.add("verifier", object())
