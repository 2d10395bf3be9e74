"""Engines answer requests. One protocol; each engine is a module of its own, imported when it is first used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from factory.faults import FactoryError
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


@runtime_checkable
class BurstEngine(Protocol):
    """An engine that can also say which completions finish at the same moment, so that they share one commit."""

    def bursts(self, requests: Iterable[Request], have: Have = ...) -> Iterator[list[Completion]]:
        """`generate` in lists, none empty. The next list is asked for only when this one is stored."""


def nothing_held(request: Request, sample: int) -> bool:
    """The `Have` of a fresh start."""
    return False


engines: Registry[Callable[..., Engine]] = Registry("engine")
engines.add("transformers", "factory.engines.transformers:TransformersEngine")
engines.add("vllm", "factory.engines.vllm:VllmEngine", devices="tensor_parallel_size")
engines.add("openai", "factory.engines.openai:OpenAIEngine")
engines.add("scripted", "factory.engines.scripted:ScriptedEngine")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine as a recipe or a command names it: its kind, its model, and the options of its constructor."""

    kind: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)


def check(spec: EngineSpec) -> Callable[..., Engine]:
    """The maker of the engine. FactoryError for a wrong kind or option names the nearest right one."""
    make = engines.get(spec.kind)
    known = [name for name in inspect.signature(make).parameters if name != "model"]
    for name in spec.options:
        if name not in known:
            raise unknown_name(f"option of the {spec.kind} engine", name, known)
    return make


def build(spec: EngineSpec) -> Engine:
    """Make the engine. FactoryError for a wrong kind or option, or for no model."""
    make = check(spec)
    if not spec.model:
        raise FactoryError(f"the {spec.kind} engine needs a model", todo="name one (model: ...)")
    return make(spec.model, **spec.options)
