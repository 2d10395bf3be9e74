"""Engines answer requests. One protocol; each engine is a module of its own, imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from factory.registry import Registry
from factory.schema import Completion, Have, Identity, Request


class Engine(Protocol):
    """Something that answers requests."""

    @property
    def identity(self) -> Identity:
        """What makes its answers its own: enters every call key."""

    def render(self, request: Request) -> str:
        """The request as the model will see it (chat template applied); enters the call key."""

    def generate(self, requests: Iterable[Request], have: Have = ...) -> Iterator[Completion]:
        """Yield each (request, sample) that `have` does not hold, as it finishes, in any order.

        A failure is a Completion with `failure` set; only a fault that ends everything (no endpoint, bad
        credentials, a model that does not load) raises FactoryError. An engine may yield an answer that `have` holds
        (a fixed batch is answered whole, so that its numbers do not depend on what was held); the caller ignores it.
        """

    def close(self) -> None:
        """Free the model or the connections."""


def nothing_held(request: Request, sample: int) -> bool:
    """The `Have` of a fresh start."""
    return False


engines: Registry[Callable[..., Engine]] = Registry("engine")
engines.add("transformers", "factory.engines.transformers:TransformersEngine")
engines.add("openai", "factory.engines.openai:OpenAIEngine")
engines.add("scripted", "factory.engines.scripted:ScriptedEngine")
