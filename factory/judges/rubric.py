"""Rubrics and principles: the questions that LLM judges ask, read from constitutions/*.yaml.

A constitution is data: a list of principles, each with its source and weight, a question for comparing two answers,
one for rating a single answer on a scale, and the two requests of Constitutional AI (Bai et al. 2022, arXiv 2212.08073,
section 3.1): criticise the answer, then revise it. A new one is one file; a name finds a bundled file, anything with a
slash or .yaml is a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from factory.faults import ConfigError, FactoryError
from factory.registry import unknown_name
from factory.resources import bundled
from factory.schema import seed_of

Text = Annotated[str, Field(min_length=1)]
Question = Literal["comparison", "rating", "critique", "revision"]

_FORM = "see constitutions/instruction-following.yaml for the form, or name a bundled one"


class Principle(BaseModel):
    """One thing to judge by."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: Text
    """Name in the `aspect` column."""
    source: Text
    """Where it comes from."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] = 1.0
    """How often it is drawn, and how much its score counts, beside the others."""
    comparison: Text | None = None
    """Question for two answers."""
    rating: Text | None = None
    """Question for one answer."""
    scale: dict[int, Text] = Field(default_factory=dict, validate_default=True)
    """Meaning of each score, one digit each; needed for rating."""
    critique: Text | None = None
    """Request to say what is wrong with an answer."""
    revision: Annotated[Text | None, Field(validate_default=True)] = None
    """Request to write the answer anew after that critique."""

    @field_validator("scale")
    @classmethod
    def _rated(cls, scale: dict[int, str], info: ValidationInfo) -> dict[int, str]:
        if not all(0 <= score <= 9 for score in scale):
            raise ValueError("scores are single digits, so that each is one token")
        if len(scale) < 2 and (scale or info.data.get("rating")):
            raise ValueError("a rating question needs a scale of at least two scores")
        return scale

    @field_validator("revision")
    @classmethod
    def _asked(cls, revision: str | None, info: ValidationInfo) -> str | None:
        """Checked last, when every other question has been read or found faulty."""
        if "critique" in info.data and bool(info.data["critique"]) != bool(revision):
            raise ValueError("critique and revision go together: a revision answers its critique")
        if not revision and not any(info.data.get(name, "faulty") for name in ("comparison", "rating", "critique")):
            raise ValueError("a principle asks something: comparison, rating, or critique and revision")
        return revision

    def question(self, kind: Question) -> str:
        """The question or request of that kind. FactoryError where the principle has none."""
        text: str | None = getattr(self, kind)
        if text is None:
            raise FactoryError(f"principle {self.name!r} has no {kind} question", todo=f"write one ({kind}: ...)")
        return text


class Example(BaseModel):
    """One worked example for few-shot critiques and revisions."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    principle: Text
    """Name of the principle whose requests it answers."""
    prompt: Text
    """What the user asked."""
    draft: Text
    """The answer that is criticised."""
    critique: Text
    """A critique as it should be."""
    revision: Text
    """The answer written anew."""


class Constitution(BaseModel):
    """A file of principles."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: Text
    about: str = ""
    source: Text
    principles: tuple[Principle, ...]
    examples: tuple[Example, ...] = ()
    """Shown before the real work when critiques and revisions are asked for."""

    @field_validator("principles")
    @classmethod
    def _distinct(cls, principles: tuple[Principle, ...]) -> tuple[Principle, ...]:
        if not principles:
            raise ValueError("a constitution has at least one principle")
        twice = [name for name, count in Counter(p.name for p in principles).items() if count > 1]
        if twice:
            raise ValueError(f"two principles have the same name: {', '.join(twice)}")
        return principles

    @field_validator("examples")
    @classmethod
    def _known(cls, examples: tuple[Example, ...], info: ValidationInfo) -> tuple[Example, ...]:
        known = [p.name for p in info.data.get("principles", ()) if p.critique]
        for example in examples if "principles" in info.data else ():
            if example.principle not in known:
                raise ValueError(unknown_name("principle with a critique", example.principle, known).what)
        return examples

    def choose(self, names: Sequence[str] | str, question: Question) -> tuple[Principle, ...]:
        """The named principles (all when none is named) that have a question of that kind: comparison, rating, critique
        or revision."""
        names = [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names
        known = {p.name: p for p in self.principles if getattr(p, question)}
        if not known:
            raise FactoryError(
                f"constitution {self.name!r} has no principle with a {question} question",
                todo=f"write one ({question}: ...), or name another constitution",
            )
        for name in names:
            if name not in known:
                raise unknown_name(f"principle with a {question} question", name, known)
        return tuple(known[name] for name in dict.fromkeys(names)) if names else tuple(known.values())


def draw(principles: Sequence[Principle], count: int, *parts: Any) -> tuple[Principle, ...]:
    """`count` different principles drawn by weight, the same for the same `parts`; all of them when there are no more.

    Each is drawn with a probability in proportion to its weight among those not drawn yet: the largest u^(1/weight)
    come first (Efraimidis and Spirakis 2006). The order of `principles` does not matter.
    """

    def place(principle: Principle) -> tuple[float, str]:
        uniform = (seed_of("principle", principle.name, *parts) + 1) / 2**63
        return -(uniform ** (1 / principle.weight)), principle.name

    return tuple(sorted(principles, key=place)[:count])


# ------------------------------------------------------------------------------------------------------------ reading


@lru_cache(maxsize=32)
def load(name: str) -> Constitution:
    """A bundled constitution by name, or any file by path. FactoryError when it is unknown or not valid, all faults at
    once."""
    path = _find(name)
    try:
        text = path.read_text(encoding="utf-8")
        repeated = list(_repeated(yaml.compose(text, yaml.SafeLoader), set()))
        data: Any = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as fault:
        raise FactoryError(f"cannot read constitution: {fault}", where=str(path), todo=_FORM) from fault
    return _checked(data, repeated, path)


def _checked(data: Any, faults: Sequence[str], path: Path) -> Constitution:
    """The constitution in a file's data. ConfigError with all its faults, and those found before."""
    told = list(faults)
    try:
        constitution = Constitution.model_validate(data)
    except ValidationError as error:
        told += [_told(e["loc"], e["msg"], data) for e in error.errors()]
    if told:
        raise ConfigError(told, where=str(path), todo=_FORM)
    return constitution


def _told(place: Sequence[str | int], message: str, data: Any) -> str:
    """A fault with its key; that of a principle with its name too, since nobody counts them."""
    key = ".".join(map(str, place)) or "file"
    held = data["principles"][place[1]] if place[:1] == ("principles",) and len(place) > 2 else None
    named = isinstance(held, Mapping) and isinstance(held.get("name"), str)
    return f"{key} ({held['name']}): {message}" if named and held else f"{key}: {message}"


def _repeated(node: yaml.Node | None, looked_at: set[int]) -> Iterator[str]:
    """A fault for each key that a mapping of the file gives twice: YAML would silently take the last. What an alias
    repeats is looked at once."""
    if node is None or id(node) in looked_at:
        return
    looked_at.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                yield f"{key.value}: given twice (line {key.start_mark.line + 1})"
            seen.add(str(key.value))
            yield from _repeated(value, looked_at)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, looked_at)


def _find(name: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = bundled("constitutions")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name("constitution", name, [p.stem for p in folder.glob("*.yaml")])
    return path
