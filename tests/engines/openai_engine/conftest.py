"""Servers on this machine for the openai engine, and pauses short enough for tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asked import Serve
from fault_server import FaultServer, Handler


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[FaultServer] = []

    def start(behaviour: str | Handler) -> FaultServer:
        started.append(FaultServer(behaviour))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("factory.engines.attempts.BUSY_PAUSE", 0.001)
    monkeypatch.setattr("factory.engines.endpoints.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("factory.engines.endpoints.LONGEST_PAUSE", 0.01)
