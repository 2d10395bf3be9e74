"""Dotted keys: `train.config.epochs` into mappings, `panel.0.judge` into lists. Plain values, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from factory.faults import FactoryError


def put(data: dict[str, Any], path: str, value: Any, told: str) -> None:
    """Set the key that a dotted path leads to, in place."""
    *parents, last = path.split(".")
    target: Any = data
    for step in parents:
        target = _step(target, step, told)
    target = _entered(target, last)
    if isinstance(target, list):
        target[_index(target, last, told)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise FactoryError(f"{told}: {'.'.join(parents)} is a single value and has no keys")


def _entered(target: Any, key: str) -> Any:
    """A list of one mapping is as that mapping is for a key that is no place: one judge that rewards may be written
    either way."""
    lone = isinstance(target, list) and len(target) == 1 and isinstance(target[0], dict)
    return target[0] if lone and not key.isdigit() else target


def _step(target: Any, step: str, told: str) -> Any:
    target = _entered(target, step)
    if isinstance(target, list):
        return target[_index(target, step, told)]
    if isinstance(target, dict):
        if target.get(step) is None:
            target[step] = {}
        return target[step]
    raise FactoryError(f"{told}: {step!r} is below a single value")


def _index(target: Sequence[Any], step: str, told: str) -> int:
    if not step.isdigit() or int(step) >= len(target):
        raise FactoryError(f"{told}: {step!r} is not a place in a list of {len(target)}")
    return int(step)
