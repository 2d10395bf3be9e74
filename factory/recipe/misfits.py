"""What pydantic finds wrong with settings, in plain words: the key as written, what is allowed, the nearest name.

Pure. `found` reads a ValidationError; `without` gives the settings less what is wrong with them, so that the rest can
be looked at in the same go.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from factory.registry import nearest

if TYPE_CHECKING:
    from pydantic import ValidationError

Key = tuple[str | int, ...]
KINDS: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"), "a mapping of keys to values"
    ),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
}
"""What is wanted, by pydantic's name of the fault."""
ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    **dict.fromkeys(("num_epochs", "num_train_epochs"), ("epochs",)),
    "max_steps": ("steps", "epochs"),
    "per_device_train_batch_size": ("batch_size",),
    "warmup_ratio": ("warmup",),
    "lr_scheduler_type": ("schedule",),
    "max_grad_norm": ("clip",),
    "save_steps": ("save_every",),
    "gradient_checkpointing": ("checkpoint_activations",),
    "report_to": ("observers",),
    "num_generations": ("n",),
    **dict.fromkeys(("max_new_tokens", "max_completion_length"), ("max_tokens",)),
    "rank": ("r",),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "target_modules": ("target",),
}
"""What other trainers call a key, and what it may be here."""
BOUNDS = {
    "greater_than_equal": "{ge} or more",
    "greater_than": "above {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "below {lt}",
}


class Misfit(NamedTuple):
    """One fault: where in the settings, what it is, and for an unknown key the known one that it is nearest to."""

    key: Key
    what: str
    lacking: bool = False
    meant: str | None = None

    def text(self) -> str:
        """As a line: key: what."""
        return f"{dotted(self.key)}: {self.what}" if self.key else self.what


def dotted(key: Key) -> str:
    """A key as a user writes it: panel.0.judge."""
    return ".".join(map(str, key))


def found(error: ValidationError, model: type[BaseModel], data: Any) -> list[Misfit]:
    """The faults of `data` as a `model`, one for each key, in the order in which pydantic found them. A key that is
    lacking because it is misspelt is one fault, and so is a list that is short of what does not fit."""
    faults = [(_place(data, fault["loc"], fault["type"]), fault) for fault in error.errors()]
    said = [_misfit(key, [fault for _, fault in group], model, data) for key, group in groupby(faults, lambda f: f[0])]
    misspelt = {(*one.key[:-1], one.meant) for one in said if one.meant}
    return [one for one in said if not (one.lacking and one.key in misspelt) and one.what]


def without(data: Any, faults: Sequence[Misfit], standins: Mapping[str, Any]) -> Any:
    """A copy of the settings in which what is wrong is left out, so that defaults take its place: a misspelt key is
    taken for what it is nearest to, one that is lacking gets its stand-in, or what lacks it goes."""
    whole = copy.deepcopy(data)
    for fault in sorted(faults, key=lambda f: [str(part).zfill(6) for part in f.key], reverse=True):
        *parents, last = fault.key or ("",)
        target = _at(whole, tuple(parents))
        if fault.lacking and last in standins and isinstance(target, dict):
            target[last] = standins[str(last)]
        elif fault.lacking:
            _leave_out(whole, tuple(parents))
        elif fault.meant and isinstance(target, dict) and fault.meant not in target:
            target[fault.meant] = target.pop(last)
        else:
            _leave_out(whole, fault.key)
    return whole


def _leave_out(whole: Any, key: Key) -> None:
    target = _at(whole, key[:-1]) if key else None
    if isinstance(target, dict):
        target.pop(key[-1], None)
    elif isinstance(target, list) and isinstance(key[-1], int) and key[-1] < len(target):
        del target[key[-1]]


def _at(data: Any, key: Key) -> Any:
    for part in key:
        data = data[part] if _holds(data, part) else None
    return data


def _holds(data: Any, part: Any) -> bool:
    """Is there such a key, or such a place in a list?"""
    if isinstance(data, list | tuple):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, Mapping) and part in data


def _place(data: Any, loc: Key, kind: str) -> Key:
    """Where the fault is in what was written: pydantic's place also holds names of the alternatives that it tried, and
    a lone mapping that stands for a list of one is no list there."""
    key: Key = ()
    for part in loc:
        if part == 0 and isinstance(data, Mapping):
            continue
        if not _holds(data, part):
            return (*key, loc[-1]) if kind == "missing" else key
        key, data = (*key, part), data[part]
    return key


def _misfit(key: Key, faults: Sequence[Any], model: type[BaseModel], data: Any) -> Misfit:
    first = faults[0]
    if first["type"] == "missing":
        return Misfit(key, "is missing", lacking=True)
    if first["type"] == "extra_forbidden":
        known = known_keys(model, data, key[:-1])
        meant = next((name for name in ALSO_CALLED.get(str(key[-1]), ()) if name in known), None)
        meant = meant or nearest(str(key[-1]), known)
        hint = f"; did you mean {meant!r}?" if meant else f". Known: {', '.join(sorted(known))}"
        return Misfit(key, f"there is no such key{hint}", meant=meant)
    value = _at(data, key)
    if first["type"] == "too_short":
        least = first["ctx"]["min_length"]
        return Misfit(key, "" if value and len(value) >= least else f"needs at least {least}")
    own = [fault["msg"].removeprefix("Value error, ") for fault in faults if fault["type"] == "value_error"]
    wanted = list(dict.fromkeys(_wanted(fault) for fault in faults if fault["type"] != "value_error"))
    what = "; ".join([*own, *([f"must be {' or '.join(wanted)}"] if wanted else [])])
    return Misfit(key, what + _near(value, faults) + (f" (given: {value!r:.80})" if key else ""))


def _wanted(fault: Any) -> str:
    """What the value must be."""
    kind, context = fault["type"], fault.get("ctx") or {}
    if kind in BOUNDS:
        return BOUNDS[kind].format(**context)
    if kind == "literal_error":
        return f"one of {', '.join(_literals(fault))}"
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']}"
    if kind == "too_long":
        return f"{context['max_length']} at most"
    return KINDS.get(kind, fault["msg"])


def _literals(fault: Any) -> list[str]:
    return [word.strip("' ") for word in fault["ctx"]["expected"].replace(" or ", ", ").split(", ")]


def _near(value: Any, faults: Sequence[Any]) -> str:
    names = [name for fault in faults if fault["type"] == "literal_error" for name in _literals(fault)]
    near = nearest(value, names) if isinstance(value, str) else None
    return f"; did you mean {near!r}?" if near else ""


# ----------------------------------------------------------------------------------------------------- known keys


def known_keys(model: type[BaseModel], data: Any, key: Key) -> list[str]:
    """The keys that a mapping at this place may have."""
    models: list[type[BaseModel]] = [model]
    for part in key:
        data = data[part] if _holds(data, part) else None
        if isinstance(part, str):
            models = [m for each in models for m in _models(_field(each, part))]
    chosen = [_narrowed(each, data) for each in models]
    told = [each for each in chosen if each not in models] or chosen
    return list(dict.fromkeys(name for each in told for name in each.model_fields))


def _field(model: type[BaseModel], name: str) -> Any:
    field = model.model_fields.get(name)
    return None if field is None else field.annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models within an annotation: of an optional, a union, a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType, tuple, list):
        for inner in get_args(annotation):
            yield from _models(inner)


def _narrowed(model: type[BaseModel], data: Any) -> type[BaseModel]:
    """Of a model whose kinds are told by a key (a rule by its name) the kind that the data names."""
    needed = [name for name, field in model.model_fields.items() if field.is_required() and _holds(data, name)]
    kinds = (each for each in model.__subclasses__() if any(each.model_fields[n].default == data[n] for n in needed))
    return next(kinds, model)
