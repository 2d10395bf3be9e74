"""A store for trainings, and a count of what their reference reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.store import Store
from train import logps


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts of every forward pass without gradients."""
    counts: list[int] = []
    whole = logps.PackedForward.token_logps

    def counted(self: logps.PackedForward, groups: Any, *, spread: bool = False) -> Any:
        if not torch.is_grad_enabled():
            counts.append(len(groups))
        return whole(self, groups, spread=spread)

    monkeypatch.setattr(logps.PackedForward, "token_logps", counted)
    return counts
