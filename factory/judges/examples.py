"""Few-shot examples for the pairwise judge: verdicts that were found right, shown before the real question.

Each is shown in both orders, the answers' letters changing with the order, so that the examples teach what is better
and never which place wins; which order comes first alternates. A file is YAML, JSON or JSONL with a list of
{prompt, a, b, verdict}, and `reasoning` where the judge reasons, written with {a} and {b} for the names of the answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from factory.faults import ConfigError, FactoryError
from factory.schema import Message, Messages

Text = Annotated[str, Field(min_length=1)]
Side = Literal["a", "b"]


class _Turn(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Text


class Example(BaseModel):
    """Two answers to a prompt and which of them is better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text | tuple[_Turn, ...]
    """A user's turn, or a conversation that ends with one."""
    a: str
    b: str
    verdict: Literal["a", "b", "tie"]
    principle: str | None = None
    """Name of the principle that it is an example of; of all of them when none is named."""
    reasoning: str | None = None
    """Why, with {a} and {b} for the names of the two answers."""

    @property
    def messages(self) -> Messages:
        """The conversation."""
        if isinstance(self.prompt, str):
            return [Message(role="user", content=self.prompt)]
        return [Message(role=turn.role, content=turn.content) for turn in self.prompt]

    def texts(self) -> list[str]:
        """All that is shown of it."""
        return [*(m["content"] for m in self.messages), self.a, self.b, self.reasoning or ""]


class Shown(NamedTuple):
    """An example in one order: candidate `first` is answer A."""

    example: Example
    first: Side

    @property
    def letter(self) -> str:
        """The right answer in this order."""
        if self.example.verdict == "tie":
            return "C"
        return "A" if self.example.verdict == self.first else "B"

    @property
    def reasoning(self) -> str:
        """Why, with the names that the answers have in this order."""
        a, b = ("answer A", "answer B") if self.first == "a" else ("answer B", "answer A")
        return (self.example.reasoning or "").replace("{a}", a).replace("{b}", b)


def both_orders(examples: Sequence[Example], principle: str) -> Iterator[Shown]:
    """The examples of a principle, each in both orders; the letters of the answers run A B, B A, A B ..."""
    fitting = [e for e in examples if e.principle in (None, principle)]
    for number, example in enumerate(fitting):
        winner: Side = "b" if example.verdict == "b" else "a"
        loser: Side = "a" if winner == "b" else "b"
        orders = (winner, loser) if number % 2 == 0 else (loser, winner)
        yield from (Shown(example, first) for first in orders)


def load(given: str | Sequence[Mapping[str, Any]]) -> tuple[Example, ...]:
    """The examples of a file, or of a list. ConfigError names every fault with its place in the list."""
    where = given if isinstance(given, str) else "the judge's examples"
    items = _read(Path(given)) if isinstance(given, str) else list(given)
    try:
        return TypeAdapter(tuple[Example, ...]).validate_python(items)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError(faults, where=where, todo="an example is {prompt, a, b, verdict: a | b | tie}") from error


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FactoryError(
            f"the examples cannot be read: {error}", where=str(path), todo="name a YAML, JSON or JSONL file"
        ) from error


def faults(examples: Sequence[Example], *, ties: bool, reasoning: bool, principles: Sequence[str]) -> list[str]:
    """What is wrong with the examples for a judge of this kind; each fault names the example by its place."""
    found = []
    for place, example in enumerate(examples):
        if example.verdict == "tie" and not ties:
            found.append(f"examples.{place}: a tie, and the judge knows none (ties: true allows them)")
        if reasoning and not (example.reasoning or "").strip():
            found.append(f"examples.{place}: no reasoning, and the judge is asked for it")
        if example.principle is not None and example.principle not in principles:
            found.append(f"examples.{place}: no principle {example.principle!r} here ({', '.join(principles)})")
        if example.messages[-1]["role"] != "user":
            found.append(f"examples.{place}: the prompt must end with the user's turn")
    return found
