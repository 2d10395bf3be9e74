"""What goes between the tests' process and the answer's: plain data as it is, nothing else by value."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import json
import socket
from typing import Any

import pytest
from hypothesis import given, strategies as st

from factory.execution import frames
from factory.execution.remote import ANSWERS, GoneError, Peer, Remote, taken

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.decimals(allow_nan=False) | st.fractions() | st.dates() | st.datetimes() | st.timedeltas()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.integers() | st.text(), inner)
    | st.sets(st.integers()) | st.frozensets(st.text()),
    max_leaves=20,
)  # fmt: skip


def peer() -> Peer:
    one, _other = socket.socketpair()
    return Peer(one.detach(), serves=ANSWERS)


@given(PLAIN)
def test_plain_data_comes_as_it_went(value: Any) -> None:
    end = peer()
    found = end.decode(json.loads(json.dumps(end.encode(value))))
    assert found == value
    assert type(found) is type(value)


def test_subclasses_come_as_what_they_are_at_heart() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Text(str):
        __slots__ = ()

    class Colour(enum.IntEnum):
        RED = 1

    point = collections.namedtuple("point", "x y")
    end = peer()
    for value, plain in [
        (Liar(7), 7), (Text("x"), "x"), (Colour.RED, 1), (point(1, 2), (1, 2)), (collections.Counter("aa"), {"a": 2}),
        (collections.OrderedDict(a=1), {"a": 1}), (collections.defaultdict(list, a=[1]), {"a": [1]}),
    ]:  # fmt: skip
        found = end.decode(end.encode(value))
        assert type(found) is type(plain)
        assert plain == found


@pytest.mark.parametrize(
    "packed", [["zz", 1], ["mine"], ["i", "x"], [], {}, ["d", [[1]]], ["yours", 5], ["F", ["1", "0"]]]
)
def test_nonsense_is_refused(packed: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, IndexError, ArithmeticError)):
        peer().decode(packed)


def test_the_other_end_gone_is_an_error() -> None:
    one, other = socket.socketpair()
    end = Peer(one.detach(), serves={})
    other.close()
    with pytest.raises(GoneError):
        end.request("load")


@pytest.mark.parametrize(
    "reply", [[], {"x": 1}, {"value": ["zz", 1]}, {"raised": 3}, {"value": 1, "changed": [[9, 9]]}]
)
def test_a_reply_of_nonsense_is_an_error_not_a_value(reply: Any) -> None:
    one, other = socket.socketpair()
    end = Peer(one.detach(), serves={})
    frames.send(other.fileno(), reply)
    with pytest.raises(GoneError):
        end.request("load")
    other.close()


def test_what_the_tests_judge_with_is_not_taken_from_the_answer() -> None:
    end = peer()
    names = [
        ["abs", "value", ["mine", 1, "abs", False], "solution"], ["math", "value", ["mine", 2, "M", False], None],
        ["os", "module", "os"], ["evil", "module", "antigravity_not_there"],
        ["isclose", "value", ["mine", 3, "x", False], "math"],
        ["ValueError", "error", ["ValueError", "Exception"]], ["add", "value", ["mine", 4, "add", False], "solution"],
    ]  # fmt: skip
    import math
    import os

    found = taken(end, names, None)
    assert found["math"] is math
    assert found["os"] is os
    assert found["isclose"] is math.isclose
    assert set(found) == {"math", "os", "isclose", "add"}
    assert type(found["add"]) is Remote
    assert type(taken(end, names, "abs")["abs"]) is Remote


def test_an_object_is_never_plain_data() -> None:
    remote = Remote(peer(), 1, "x")
    assert remote.__eq__(3) is False
    assert remote != 3
    assert remote not in (3, "x", None)
    for compare in (lambda: remote < 3, lambda: remote >= 3, lambda: max(3, remote)):  # type: ignore[type-var]
        with pytest.raises(TypeError):
            compare()
    assert not isinstance(remote, int)
    assert not isinstance(3, remote)  # type: ignore[arg-type]


def test_frames_are_whole_or_none() -> None:
    data = frames.pack({"passed": 1})
    assert frames.whole(data) == {"passed": 1}
    for broken in (data[:-1], data + b"x", b"", b"x" * 8, data + data, frames.pack(1)[:8] + b"{"):
        assert frames.whole(broken) is None


def test_values_that_json_has_no_word_for() -> None:
    end = peer()
    for value in (range(3), bytearray(b"x"), collections.deque([1]), ..., datetime.time(1, 2), decimal.Decimal("1.10"),
                  fractions.Fraction(1, 3), 10**5000, float("inf")):  # fmt: skip
        found = end.decode(json.loads(json.dumps(end.encode(value))))
        assert (found, type(found)) == (value, type(value))
