"""A store with prompts to be measured on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluated import PROMPTS, prompt

from factory.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with eight held-out prompts that ask for an end phrase, and a final one without constraints."""
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.append("prompts", [prompt(i) for i in range(PROMPTS)])
        opened.append("prompts", [prompt(99, split="final", constraints=None)])
        yield opened
