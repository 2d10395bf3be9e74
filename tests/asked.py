"""What the tests of the openai engine ask, and of whom: servers on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fault_server import FaultServer, Handler

from factory.engines.openai import OpenAIEngine
from factory.schema import Completion, Request

Serve = Callable[[str | Handler], FaultServer]


def engine_for(*servers: FaultServer, **options: Any) -> OpenAIEngine:
    several = {"name": "set"} if len(servers) > 1 else {}
    return OpenAIEngine("m", **{"base_url": [server.url for server in servers], "timeout": 5.0} | several | options)


def ask(text: str = "tea", **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], **more)


def failure_of(completion: Completion) -> tuple[str, bool]:
    assert completion.failure is not None
    return completion.failure.kind, completion.failure.passing
