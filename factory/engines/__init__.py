"""Engines answer requests. One protocol; each engine is a module of its own, imported when it is first used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from factory.faults import ConfigError, FactoryError
from factory.registry import Registry, unknown_name
from factory.schema import Completion, Have, Identity, Request


class Engine(Protocol):
    """Something that answers requests."""

    @property
    def identity(self) -> Identity:
        """What makes its answers its own: enters every call key."""

    def render(self, request: Request) -> str:
        """The request as the model will see it (chat template applied); enters the call key. Never raises for a request
        that cannot be rendered: `generate` gives its failure."""

    def generate(self, requests: Iterable[Request], have: Have = ...) -> Iterator[Completion]:
        """Yield each (request, sample) that `have` does not hold, as it finishes, in any order.

        A failure is a Completion with `failure` set; only a fault that ends everything (no endpoint, bad
        credentials, a model that does not load) raises FactoryError. An engine may yield an answer that `have` holds
        (a fixed batch is answered whole, so that its numbers do not depend on what was held); the caller ignores it.
        """

    def close(self) -> None:
        """Free the model or the connections."""


class Burst(list[Completion]):
    """Completions that have come and take up room at their engine until they are stored."""

    def parts(self) -> Iterator[list[Completion]]:
        """All of them, part by part; the room of a part is free for others when the next is asked for."""
        yield self


@runtime_checkable
class BurstEngine(Protocol):
    """An engine that can also say which completions finish at the same moment, so that they share one commit."""

    def bursts(self, requests: Iterable[Request], have: Have = ...) -> Iterator[list[Completion]]:
        """`generate` in lists. The next list is asked for only when this one is stored. An empty one says that nothing
        has come for a while: whoever wants to stop can close the iterator. One that is a `Burst` may be stored in
        parts."""


Item = tuple[Request, int]
"""A request and the index of one of its samples."""


@runtime_checkable
class BatchEngine(Protocol):
    """An engine whose numbers depend on what is answered together, and which can say what that is."""

    def cut(self, requests: Sequence[Request]) -> list[list[Item]] | None:
        """The whole list in the batches that `generate` would make of it, a function of the list alone; None when the
        engine is set to make other batches, which depend on what is held."""

    def answer(self, batch: Sequence[Item]) -> Iterator[list[Completion]]:
        """Answer one of the batches, in bursts."""


def nothing_held(request: Request, sample: int) -> bool:
    """The `Have` of a fresh start."""
    return False


# `paid`: what it answers may be billed. `light`: making one loads nothing and opens nothing
# `devices`: GPUs that one engine takes, or the option that says how many; without it, it runs in one process only
engines: Registry[Callable[..., Engine]] = Registry("engine")
engines.add("transformers", "factory.engines.transformers:TransformersEngine", devices=1)
engines.add("vllm", "factory.engines.vllm:VllmEngine", devices="tensor_parallel_size")
engines.add("openai", "factory.engines.openai:OpenAIEngine", paid=True, light=True)
engines.add("scripted", "factory.engines.scripted:ScriptedEngine", devices=0)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine as a recipe or a command names it: its kind, its model, the options of its constructor, and in how many
    processes it runs (see fleet.py)."""

    kind: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1


def check(spec: EngineSpec) -> Callable[..., Engine]:
    """The maker of the engine. FactoryError for a wrong kind or option names the nearest right one; the values of an
    engine that is made without a model or a connection (`light`) are checked too, all at once."""
    make = engines.get(spec.kind)
    known = [name for name in inspect.signature(make).parameters if name != "model"]
    wrong = [unknown_name(f"option of the {spec.kind} engine", name, known).what for name in spec.options
             if name not in known]  # fmt: skip
    if wrong:
        raise ConfigError(wrong)
    if engines.facts(spec.kind).get("light"):
        make(spec.model or "model", **spec.options).close()
    return make


def build(spec: EngineSpec) -> Engine:
    """Make the engine, or the fleet of them. FactoryError for a wrong kind, option or count, or for no model."""
    make = check(spec)
    if not spec.model:
        raise FactoryError(f"the {spec.kind} engine needs a model", todo="name one (model: ...)")
    if spec.count != 1:
        from factory.engines.fleet import Fleet

        return Fleet(spec, spec.count)
    return make(spec.model, **spec.options)
