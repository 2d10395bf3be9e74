"""Rubrics and principles: the questions that LLM judges ask, read from constitutions/*.yaml.

A constitution is data: a list of principles, each with its source, a question for comparing two answers and one for
rating a single answer on a scale. A new one is one file; a name finds a bundled file, anything with a slash or .yaml
is a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from factory.faults import ConfigError, FactoryError
from factory.registry import unknown_name
from factory.resources import bundled

Text = Annotated[str, Field(min_length=1)]


class Principle(BaseModel):
    """One thing to judge by."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: Text
    """Name in the `aspect` column."""
    source: Text
    """Where it comes from."""
    comparison: str = ""
    """Question for two answers."""
    rating: str = ""
    """Question for one answer."""
    scale: dict[int, Text] = Field(default_factory=dict)
    """Meaning of each score, one digit each; needed for rating."""

    @model_validator(mode="after")
    def _usable(self) -> Principle:
        if not (self.comparison or self.rating):
            raise ValueError("needs a comparison or a rating question")
        if self.rating and len(self.scale) < 2:
            raise ValueError("a rating question needs a scale of at least two scores")
        if not all(0 <= score <= 9 for score in self.scale):
            raise ValueError("scores are single digits, so that each is one token")
        return self


class Constitution(BaseModel):
    """A file of principles."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: Text
    about: str = ""
    source: Text
    principles: Annotated[tuple[Principle, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Constitution:
        names = [p.name for p in self.principles]
        if len(set(names)) < len(names):
            raise ValueError("two principles have the same name")
        return self

    def choose(self, names: Sequence[str] | str, question: str) -> tuple[Principle, ...]:
        """The named principles (all when none is named) that have a question of that kind: "comparison" or "rating"."""
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        known = {p.name: p for p in self.principles if getattr(p, question)}
        for name in names:
            if name not in known:
                raise unknown_name(f"principle with a {question} question", name, known)
        if not known:
            raise FactoryError(
                f"constitution {self.name!r} has no principle with a {question} question",
                todo=f"write one ({question}: ...), or name another constitution",
            )
        return tuple(known[name] for name in names) if names else tuple(known.values())


@lru_cache(maxsize=32)
def load(name: str) -> Constitution:
    """A bundled constitution by name, or any file by path. FactoryError when it is unknown or not valid, all faults at
    once."""
    path = _find(name)
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Constitution.model_validate(data)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise FactoryError(
            f"cannot read constitution: {fault}",
            where=str(path),
            todo="see constitutions/instruction-following.yaml for the form, or name a bundled one",
        ) from fault
    except ValidationError as fault:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in fault.errors()]
        raise ConfigError(faults, where=str(path), todo="see constitutions/instruction-following.yaml") from fault


def _find(name: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = bundled("constitutions")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name("constitution", name, [p.stem for p in folder.glob("*.yaml")])
    return path
