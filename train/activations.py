"""Activation checkpointing: a layer keeps its inputs alone, and what is between is computed again on the way back
(arXiv 1604.06174).

The layer must then attend as it did on the way there: a packed row is packed only while the forward pass has the
packed attention open (`train/packing.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn

from factory.faults import FactoryError
from train.logps import causal_model


def checkpoint_activations(model: nn.Module) -> None:
    """Switch it on in a transformers model, under a peft wrapper or not. FactoryError: the model cannot."""
    inner = causal_model(model)
    if not getattr(inner, "supports_gradient_checkpointing", False):
        raise FactoryError(
            f"{type(inner).__name__} cannot compute its activations again", todo="leave checkpoint_activations out"
        )
    inner.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": partial(_contexts, inner)})


def _contexts(model: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the way there, which is now, and for the way back."""
    return nullcontext(), _attending(model, model.config._attn_implementation)


@contextmanager
def _attending(model: Any, by: str) -> Iterator[None]:
    """While it is open, the model attends by that function."""
    before = model.config._attn_implementation
    if before == by:
        yield
        return
    model.set_attn_implementation(by)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
