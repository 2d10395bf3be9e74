"""What an objective declares, and how its parameters are checked: all faults at once, before anything is computed.

The trainer reads these facts and never compares names. A new objective is one function with one registration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from factory.faults import ConfigError
from factory.registry import Registry, unknown_name

Data = Literal["pairs", "labels", "completions", "groups", "scores"]
Takes = Literal["all", "best"]


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed values of a number: low <= x <= high, the bounds left out where `open` says so."""

    low: float
    high: float = float("inf")
    open: Literal["", "low", "high", "both"] = ""

    def holds(self, value: float) -> bool:
        """Is `value` allowed?"""
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        below = value < self.high if self.open in ("high", "both") else value <= self.high
        return above and below

    def fault(self, name: str, value: Any) -> str:
        """What is wrong with `value`; empty when nothing is."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name} is a number, not {value!r}"
        return "" if self.holds(value) else f"{name} is in {self}, not {value:g}"

    def __str__(self) -> str:
        left, right = ("(" if self.open in ("low", "both") else "["), (")" if self.open in ("high", "both") else "]")
        return f"{left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """Allowed values of a name."""

    names: tuple[str, ...]

    def fault(self, name: str, value: Any) -> str:
        """What is wrong with `value`; empty when nothing is."""
        if isinstance(value, str) and value in self.names:
            return ""
        return unknown_name(name, str(value), self.names).what


Allowed = Range | OneOf
POSITIVE = Range(0.0, open="low")
NON_NEGATIVE = Range(0.0)
ANY = Range(float("-inf"), open="both")
SHARE = Range(0.0, 1.0)
FLIP_RATE = Range(0.0, 0.5, open="high")  # share of labels taken to be the wrong way round


@dataclass(frozen=True)
class Objective:
    """A named objective: call it with log-probs and parameters.

    data: the shape of its rows. reference: does it read the reference's log-probs? supplied: parameters that the
    trainer gives (KTO's kl, BCO's shift). needs: further fields of its input, by parameter: {"ld_alpha": (1.0, "head")}
    asks for the heads when ld_alpha is another value than 1. advantage: how an objective on groups has its answers'
    advantages worked out, a name of train/advantages.py. critic: does it train a value head? takes: which rows it
    learns, all of them or the best answer to each prompt.
    """

    name: str
    function: Callable[..., Any]
    data: Data
    reference: bool
    supplied: tuple[str, ...] = ()
    allowed: Mapping[str, Allowed] = field(default_factory=dict)
    needs: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    advantage: str = ""
    critic: bool = False
    takes: Takes = "all"

    def __call__(self, logps: Any, **parameters: Any) -> Any:
        """The objective on a batch. ConfigError lists every fault of the parameters."""
        self.check(parameters, supplied=True)
        return self.function(logps, **parameters)

    @property
    def defaults(self) -> dict[str, Any]:
        """The parameters that a user may set, with their defaults."""
        signature = inspect.signature(self.function)
        return {n: p.default for n, p in list(signature.parameters.items())[1:] if n not in self.supplied}

    def needed(self, parameters: Mapping[str, Any]) -> set[str]:
        """The further fields of the input that these parameters ask for."""
        given = {**self.defaults, **parameters}
        return {what for name, (without, what) in self.needs.items() if given[name] != without}

    def check(self, parameters: Mapping[str, Any], *, supplied: bool = False) -> None:
        """ConfigError with every fault of `parameters`: unknown names, wrong types, values out of range."""
        known = dict(self.defaults, **(dict.fromkeys(self.supplied, 0.0) if supplied else {}))
        faults = [f for name, value in parameters.items() if (f := self._fault(name, value, known))]
        if faults:
            raise ConfigError(faults, where=f"parameters of {self.name}")

    def _fault(self, name: str, value: Any, known: Mapping[str, Any]) -> str:
        if name not in known:
            return f"{self.name} has no parameter {name!r}; it has: {', '.join(sorted(known)) or 'none'}"
        if isinstance(known[name], bool):
            return "" if isinstance(value, bool) else f"{name} is true or false, not {value!r}"
        if isinstance(value, Tensor) and name in self.supplied:
            return ""
        return self.allowed.get(name, ANY).fault(name, value)


objectives: Registry[Objective] = Registry("objective")


def register(
    name: str,
    *,
    data: Data,
    reference: bool,
    supplied: tuple[str, ...] = (),
    needs: Mapping[str, tuple[Any, str]] | None = None,
    advantage: str = "",
    critic: bool = False,
    takes: Takes = "all",
    **allowed: Allowed,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function (input, **parameters) -> outcome as an objective, with its facts.

    `allowed` are the values of its parameters; its signature has their defaults.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        enter(Objective(name, function, data, reference, supplied, allowed, needs or {}, advantage, critic, takes))
        return function

    return decorate


def enter(objective: Objective) -> None:
    """Make an objective known by its name."""
    objectives.add(objective.name, objective, data=objective.data, reference=objective.reference)


def get(name: str) -> Objective:
    """The objective of that name. FactoryError names the nearest known one."""
    return objectives.get(name)
