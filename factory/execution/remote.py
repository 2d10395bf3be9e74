"""Objects of another process: the tests have the answer's functions and classes in hand, and the answer runs elsewhere.

Both ends are the same `Peer`. What goes over is plain data, copied (numbers, texts, lists, dicts, dates ...), or the
name of an object that stays where it is. The end that judges takes values and nothing else: a comparison with plain
data is its own, never asked of the answer, so that no `__eq__` of the answer's can pass a test; nor is a difference
(`abs(f(x) - 4) < 1e-6`), and no exception of the answer's ends the tests' own loops or is swallowed by a `with` of its.
What a test asks of an object by a method (`f(x).startswith("ab")`) it is told by the answer. What the answer did to a
list or dict that it was given is done to the caller's.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import inspect
import numbers
import operator
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

from factory.execution import frames

LARGEST: Final = 32 << 20  # bytes of one message
_SHOWN: Final = 64 << 10  # characters printed in one call that are handed on


class GoneError(Exception):
    """The other process is no more, or talks nonsense."""


# ---------------------------------------------------------------------------------------------------- plain data


class _NotPlainError(Exception):
    pass


_AS_TEXT: Final[dict[type, tuple[str, Callable[[Any], Any]]]] = {
    bytes: ("b", bytes.hex),
    bytearray: ("B", bytearray.hex),
    complex: ("c", lambda v: [v.real, v.imag]),
    decimal.Decimal: ("D", str),
    fractions.Fraction: ("F", lambda v: [hex(v.numerator), hex(v.denominator)]),
    datetime.datetime: ("dt", datetime.datetime.isoformat),
    datetime.date: ("da", datetime.date.isoformat),
    datetime.time: ("ti", datetime.time.isoformat),
    datetime.timedelta: ("td", lambda v: [v.days, v.seconds, v.microseconds]),
    range: ("r", lambda v: [v.start, v.stop, v.step]),
    type(Ellipsis): ("e", lambda v: None),
}
_FROM_TEXT: Final[dict[str, Callable[[Any], Any]]] = {
    "b": bytes.fromhex,
    "B": bytearray.fromhex,
    "c": lambda v: complex(*v),
    "D": decimal.Decimal,
    "F": lambda v: fractions.Fraction(int(v[0], 16), int(v[1], 16)),
    "dt": datetime.datetime.fromisoformat,
    "da": datetime.date.fromisoformat,
    "ti": datetime.time.fromisoformat,
    "td": lambda v: datetime.timedelta(*v),
    "r": lambda v: range(*v),
    "e": lambda v: Ellipsis,
    "i": lambda v: int(v, 16),
}
_ITEMS: Final[dict[str, Callable[[Any], Any]]] = {
    "l": list, "t": tuple, "s": set, "f": frozenset, "q": collections.deque,
}  # fmt: skip
_KINDS: Final = (
    (list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f"), (collections.deque, "q"),
)  # fmt: skip


def _scalar(value: Any) -> Any:
    """A number, text or nothing as JSON; subclasses (flags, text enums) as what they are at heart."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -(2**63) < number < 2**63 else ["i", hex(number)]
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    for kind, (code, write) in _AS_TEXT.items():
        if type(value) is kind:
            return [code, write(value)]
    raise _NotPlainError


def _of_numpy(value: Any) -> Any:
    """A numpy scalar or array of numbers as plain data."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value).__module__ != "numpy":
        raise _NotPlainError
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "biufcUS":
        return value
    raise _NotPlainError


# ---------------------------------------------------------------------------------------------------------- peers


class Peer:
    """One end. `serves`: what the other may ask of this end's objects; `judges`: this end decides (see `Remote`)."""

    def __init__(self, fd: int, *, serves: Mapping[str, Callable[..., Any]], printed: Callable[[], str] | None = None):
        self._fd = fd
        self._serves = serves
        self._printed = printed
        self._mine: dict[int, Any] = {}
        self._errors: dict[str, type[BaseException]] = {}

    # -------------------------------------------------------------------------------------------------- asking

    def request(self, act: str, *given: Any, **named: Any) -> Any:
        """Have the other end do something with its objects; an exception there is raised here."""
        packed = [self.encode(value) for value in given]
        self._send({"do": act, "given": packed, "named": {name: self.encode(v) for name, v in named.items()}})
        while "do" in (message := self._receive()):
            self._serve(message)
        value, error = self._read(message, given)
        if isinstance(error, StopIteration | StopAsyncIteration) and act != "next":
            raise RuntimeError(f"the answer raised {type(error).__name__}")  # it would end a map() of the tests
        if error is not None:
            raise error
        return value

    def _read(self, message: Mapping[str, Any], given: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
        """What a reply says: a value, or an exception; what it says of changed arguments is done. GoneError: it is no
        reply of this code's other end, but something that was put in its place."""
        try:
            if message.get("printed"):
                sys.stdout.write(str(message["printed"]))
            for place, after in message.get("changed", []):
                _change(given[place], self.decode(after))
            if "raised" in message:
                return None, self._error(message["raised"])
            return self.decode(message["value"]), None
        except (
            ArithmeticError,
            AttributeError,
            ImportError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as fault:
            raise GoneError(f"a reply that cannot be read: {type(fault).__name__}") from None

    def mirror(self, name: str, mro: list[str]) -> type[BaseException]:
        """A class of exceptions here that stands for the other end's of that name."""
        if name not in self._errors:
            self._errors[name] = type(name, (_builtin_error(mro),), {})
        return self._errors[name]

    def _error(self, raised: Any) -> BaseException:
        mro, given, text = raised
        known = next((self._errors[name] for name in mro if name in self._errors), None)
        kind = known or _builtin_error(mro)
        try:
            return kind(*(self.decode(value) for value in given))
        except Exception:  # noqa: BLE001 - some exceptions cannot be made of their args
            return kind(text) if kind is not UnicodeDecodeError and kind is not UnicodeEncodeError else ValueError(text)

    # -------------------------------------------------------------------------------------------------- serving

    def serve(self) -> None:
        """Do what the other end asks until it is gone."""
        while True:
            try:
                message = self._receive()
            except GoneError:
                return
            self._serve(message)

    def _serve(self, message: Any) -> None:
        reply: dict[str, Any]
        try:
            given = [self.decode(value) for value in message["given"]]
            named = {name: self.decode(value) for name, value in message["named"].items()}
            act = self._serves.get(message["do"], _unserved)
            value = act(*given, **named)
            reply = {"value": self.encode(value), "changed": self._changed(message["given"], given)}
        except BaseException as error:  # noqa: BLE001 - also an exit or an interrupt is an answer
            reply = {"raised": self._raised(error)}
        if self._printed is not None:
            reply["printed"] = self._printed()[:_SHOWN]
        try:
            data = frames.pack(reply)
        except (ValueError, RecursionError):
            data = frames.pack({"raised": [["ValueError"], [], "a value that cannot be handed over"]})
        self._write(data)

    def _changed(self, before: list[Any], after: list[Any]) -> list[Any]:
        """Places of the arguments that are lists, dicts or the like, and not as they came, with what they are now."""
        changed = []
        for place, (packed, value) in enumerate(zip(before, after, strict=True)):
            if isinstance(value, list | dict | set | bytearray | collections.deque):
                now = self.encode(value)
                if now != packed:
                    changed.append([place, now])
        return changed

    def _raised(self, error: BaseException) -> list[Any]:
        mro = [kind.__name__ for kind in type(error).__mro__]
        try:
            given, text = [self.encode(value) for value in error.args[:8]], str(error)[:4000]
        except BaseException:  # noqa: BLE001 - an exception that cannot even be told
            given, text = [], ""
        return [mro, given, text]

    # ------------------------------------------------------------------------------------------------- messages

    def _send(self, message: Any) -> None:
        self._write(frames.pack(message))

    def _write(self, data: bytes) -> None:
        if len(data) > LARGEST:
            data = frames.pack({"raised": [["ValueError"], [], f"more than {LARGEST} bytes at once"]})
        try:
            frames.write(self._fd, data)
        except OSError as error:
            raise GoneError(str(error)) from error

    def _receive(self) -> dict[str, Any]:
        try:
            message = frames.receive(self._fd, LARGEST)
        except (EOFError, OSError, frames.BrokenFrameError) as error:
            raise GoneError(str(error)) from error
        if not isinstance(message, dict) or not ({"do", "given", "named"} <= set(message) or "value" in message
                                                 or "raised" in message):  # fmt: skip
            raise GoneError("a message that is none")
        return message

    # --------------------------------------------------------------------------------------------------- values

    def encode(self, value: Any) -> Any:
        """A value as JSON: itself where it is plain, a mark where it stays here."""
        if isinstance(value, Remote):
            return ["yours", object.__getattribute__(value, "_number")]
        try:
            return _scalar(value)
        except _NotPlainError:
            pass
        for kind, code in _KINDS:
            if isinstance(value, kind):
                return [code, [self.encode(item) for item in _each(kind, value)]]
        if isinstance(value, dict):
            return ["d", [[self.encode(k), self.encode(v)] for k, v in dict.items(value)]]
        try:
            plain = _of_numpy(value)
        except _NotPlainError:
            return self._kept(value)
        if type(plain).__module__ == "numpy":
            return ["n", plain.dtype.str, self.encode(plain.tolist())]
        return self.encode(plain)

    def _kept(self, value: Any) -> Any:
        self._mine[id(value)] = value
        kind = type(value)
        name = getattr(value, "__name__", kind.__name__)
        return ["mine", id(value), str(name)[:200], inspect.iscoroutine(value)]

    def decode(self, packed: Any) -> Any:
        """The value of what `encode` made at the other end. ValueError, KeyError, TypeError: it is none."""
        if packed is None or isinstance(packed, bool | int | float | str):
            return packed
        code, body = packed[0], packed[1]
        if code in _ITEMS:
            return _ITEMS[code](self.decode(item) for item in body)
        if code == "d":
            return {self.decode(k): self.decode(v) for k, v in body}
        if code == "yours":
            return self._mine[body]
        if code == "mine":
            remote = Remote(self, int(body), str(packed[2]))
            return _awaiting(self, remote) if packed[3] else remote
        if code == "n":
            import numpy

            return numpy.array(self.decode(packed[2]), dtype=body)
        return _FROM_TEXT[code](body)


def _each(kind: Any, value: Any) -> Any:
    """The items of a list or the like as it is at heart, whatever its own class makes of going through it."""
    return kind.__iter__(value)


def _builtin_error(mro: list[str]) -> type[BaseException]:
    """The nearest built-in exception in a chain of class names."""
    for name in mro:
        found = getattr(builtins, str(name), None)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
    return Exception


def _change(mine: Any, after: Any) -> None:
    """Make a list, dict or the like what it has become at the other end."""
    if type(mine) is not type(after):
        return
    if isinstance(mine, list | bytearray):
        mine[:] = after
    elif isinstance(mine, collections.deque):
        mine.clear()
        mine.extend(after)
    elif isinstance(mine, set | dict):
        mine.clear()
        mine.update(after)


# --------------------------------------------------------------------------------------------- the answer's objects


def _invoke(target: Any, /, *given: Any, **named: Any) -> Any:
    return target(*given, **named)


def _next(iterator: Any) -> Any:
    return next(iterator)


def _unserved(*given: Any, **named: Any) -> Any:
    raise TypeError("the tests' objects can be called and gone through, and nothing else")


def _wait(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


async def _awaiting(peer: Peer, remote: Remote) -> Any:
    """A coroutine of the answer's as one that the tests can await; it runs there when it is."""
    return peer.request("wait", remote)


_OPERATORS: Final = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift",
)  # fmt: skip
_UNARY: Final = ("neg", "pos", "invert", "abs")
_ORDER: Final = ("lt", "le", "gt", "ge")

ANSWERS: Final[dict[str, Callable[..., Any]]] = {
    "invoke": _invoke, "getattr": getattr, "setattr": setattr, "delattr": delattr, "hasattr": hasattr, "iter": iter,
    "next": _next, "len": len, "bool": bool, "str": str, "repr": repr, "hash": hash, "format": format, "int": int,
    "float": float, "index": operator.index, "isinstance": isinstance, "issubclass": issubclass, "dir": dir,
    "round": round, "wait": _wait,
    **{name: getattr(operator, name) for name in (*_OPERATORS, *_UNARY, *_ORDER)},
    **{name: getattr(operator, name) for name in ("eq", "getitem", "setitem", "delitem")},
}  # fmt: skip
"""What may be asked of the answer's objects: anything."""
TESTS: Final[dict[str, Callable[..., Any]]] = {"invoke": _invoke, "iter": iter, "next": _next}
"""What the answer may ask of the tests' objects: to call a function that it was given, to go through an iterator."""


class Remote:
    """An object of the answer's, in the hands of the tests."""

    __slots__ = ("_name", "_number", "_peer")

    def __init__(self, peer: Peer, number: int, name: str) -> None:
        for slot, value in (("_peer", peer), ("_number", number), ("_name", name)):
            object.__setattr__(self, slot, value)

    def _ask(self, act: str, *given: Any) -> Any:
        peer: Peer = object.__getattribute__(self, "_peer")
        return peer.request(act, self, *given)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call it there, and take over what it did to lists and dicts."""
        peer: Peer = object.__getattribute__(self, "_peer")
        return peer.request("invoke", self, *given, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in ("__name__", "__doc__", "__dict__"):
            raise AttributeError(name)
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delattr", name)

    def __eq__(self, other: object) -> bool:
        """With plain data: never. What equals what is the tests' to say, not the answer's."""
        if not isinstance(other, Remote):
            return False
        same: bool = object.__getattribute__(self, "_number") == object.__getattribute__(other, "_number")
        return same or bool(self._ask("eq", other))

    def __hash__(self) -> int:
        return int(self._ask("hash"))

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Remote) and bool(instance._ask("isinstance", self))

    def __subclasscheck__(self, subclass: object) -> bool:
        return isinstance(subclass, Remote) and bool(subclass._ask("issubclass", self))

    def __enter__(self) -> Any:
        return self._ask("getattr", "__enter__")()

    def __exit__(self, *fault: object) -> None:
        """Leave it there. What failed in the block has failed, whatever the answer says."""
        self._ask("getattr", "__exit__")(None, None, None)

    def __contains__(self, item: object) -> bool:
        """By going through it: what is in it is compared here."""
        return any(item is found or item == found for found in self)

    def __iter__(self) -> Any:
        return self._ask("iter")


def _forward(act: str) -> Callable[..., Any]:
    def method(self: Remote, *given: Any) -> Any:
        return _computed(act, self._ask(act, *given), given)

    return method


def _backward(act: str) -> Callable[..., Any]:
    def method(self: Remote, other: Any) -> Any:
        peer: Peer = object.__getattribute__(self, "_peer")
        return _computed(act, peer.request(act, other, self), (other,))

    return method


_COMPARING: Final = ("sub", "truediv", "floordiv", "mod", "xor")
"""Operators whose result with the value that is due says how near one is to it."""


def _computed(act: str, value: Any, given: tuple[Any, ...]) -> Any:
    """The result of an operator. TypeError: an object of the answer's was set against a number, and it would be for the
    answer to say how far they are apart: by a number now, or by one of the object that came of it."""
    against = any(isinstance(item, numbers.Number) for item in given)
    if act in _COMPARING and against and (act == "sub" or isinstance(value, numbers.Number)):
        raise TypeError(f"the answer gave an object where a number is due: {act} with a number is not its to say")
    return value


def _ordering(act: str) -> Callable[..., Any]:
    def method(self: Remote, other: Any) -> Any:
        return self._ask(act, other) if isinstance(other, Remote) else NotImplemented

    return method


for _name in _OPERATORS:
    setattr(Remote, f"__{_name.strip('_')}__", _forward(_name))
    setattr(Remote, f"__r{_name.strip('_')}__", _backward(_name))
for _name in (*_UNARY, "next", "len", "bool", "str", "repr", "format", "int", "float", "index", "dir", "round",
              "getitem", "setitem", "delitem"):  # fmt: skip
    setattr(Remote, f"__{_name}__", _forward(_name))
for _name in _ORDER:
    setattr(Remote, f"__{_name}__", _ordering(_name))


# ------------------------------------------------------------------------------------------------- names of a module


def told(peer: Peer, namespace: Mapping[str, Any]) -> list[Any]:
    """The public names of the answer's module for `taken` at the other end."""
    names: list[list[Any]] = []
    for name, value in namespace.items():
        if name.startswith("__"):
            continue
        if isinstance(value, ModuleType):
            names.append([name, "module", value.__name__])
        elif isinstance(value, type) and issubclass(value, BaseException):
            names.append([name, "error", [kind.__name__ for kind in value.__mro__]])
        else:
            origin = getattr(value, "__module__", None) if callable(value) else None
            names.append([name, "value", peer.encode(value), origin if isinstance(origin, str) else None])
    return names


def taken(peer: Peer, names: Any, wanted: str | None) -> dict[str, Any]:
    """The answer's names as the tests see them.

    Nothing of the answer's may stand in for what the tests judge with: its names that are built-in ones (but for the
    function `wanted`) or modules of the standard library are left out, and what it has imported from there is the real
    one here.
    """
    found: dict[str, Any] = {}
    for name, kind, what, *origin in names:
        if kind == "module" or name in sys.stdlib_module_names:
            real = _module(what if kind == "module" else name)
            if real is not None:
                found[name] = real
        elif kind == "error" and not hasattr(builtins, name):
            found[name] = peer.mirror(name, what)
        elif kind == "value" and (not hasattr(builtins, name) or name == wanted):
            real = _module(origin[0]) if origin and origin[0] in sys.stdlib_module_names else None
            found[name] = getattr(real, name) if real is not None and hasattr(real, name) else peer.decode(what)
    return found


def _module(name: Any) -> ModuleType | None:
    """A module of the standard library, or of numpy, which answers' tests lean on most; None: any other."""
    top = str(name).partition(".")[0]
    if top not in sys.stdlib_module_names and top != "numpy":
        return None
    try:
        return __import__(str(name), fromlist=["_"])
    except ImportError:
        return None
