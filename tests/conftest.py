"""What every test may use: a tiny random-weight chat model with its own tokenizer, built once a session in seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_models import build_tiny_model

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model; do not write into it."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny-model"))
