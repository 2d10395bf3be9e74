"""Several prompts and their completions in one row without padding, each prompt computed once for all its completions.

Rows that share a prompt see the same keys and values of it, so one copy serves them all: in the packed row
`prompt, completion 1, completion 2, ...` a completion attends to the prompt and to itself, at the positions that it
would have in a row of its own. Linear layers see tokens only, so the attention is the one thing to tell:
`packed_attention` is registered with transformers as an attention function and does each stretch by itself, which
leaves nothing masked to compute.

Exact for models whose tokens meet in attention only. For the others (state-space layers, chunked attention, attention
sinks) `UnpackableError` is raised here, or the comparison in `train/logps.py` finds the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.conversations import plain

ATTENTION = "packed_prompts"  # the name under which transformers knows it


class UnpackableError(Exception):
    """The model's attention asks for something that packed rows do not offer."""


class Group(NamedTuple):
    """A prompt with the completions that are scored after it, as token ids, ~id where a token is read and not learnt.
    None may be empty."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """Tokens that go through the model: the last token of a completion predicts nothing that is asked for."""
        return len(self.prompt) + sum(len(c) - 1 for c in self.completions)


class Packed(NamedTuple):
    """A packed row. `predicts[i]` is the place in the row whose output predicts `targets[i]`.

    ids, positions: (1, tokens). predicts, targets: (learnt tokens,), in the order of the completions.
    stretches: for each group the lengths of its prompt and of its completions in the row.
    """

    ids: Tensor
    positions: Tensor
    predicts: Tensor
    targets: Tensor
    stretches: tuple[tuple[int, ...], ...]


def pack(groups: Sequence[Group], device: torch.device) -> Packed:
    """Lay the groups end to end in one row."""
    ids: list[int] = []
    positions: list[int] = []
    predicts: list[int] = []
    targets: list[int] = []
    for group in groups:
        last = len(ids) + len(group.prompt) - 1
        ids.extend(group.prompt)
        positions.extend(range(len(group.prompt)))
        for completion in group.completions:
            start = len(ids)
            places = (last, *range(start, start + len(completion) - 1))
            predicts.extend(place for place, target in zip(places, completion, strict=True) if target >= 0)
            targets.extend(target for target in completion if target >= 0)
            ids.extend(plain(completion[:-1]))
            positions.extend(range(len(group.prompt), len(group.prompt) + len(completion) - 1))

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    stretches = tuple((len(g.prompt), *(len(c) - 1 for c in g.completions)) for g in groups)
    return Packed(tensor(ids)[None], tensor(positions)[None], tensor(predicts), tensor(targets), stretches)


class Layout:
    """Where the stretches of one packed row lie, and the masks they need. Handed through the model to the attention."""

    def __init__(self, stretches: Sequence[Sequence[int]]) -> None:
        self.stretches = [tuple(s) for s in stretches]
        self.sizes = [size for group in stretches for size in group]
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def mask(self, before: int, own: int, window: int | None, like: Tensor) -> Tensor:
        """Added to the scores of `own` tokens that follow `before` others: 0 where a key may be seen, else -inf.

        `window`: a token sees itself and the `window - 1` tokens before it. Shape (own, before + own).
        """
        key = (before, own, window)
        if key not in self._masks:
            query = torch.arange(before, before + own, device=like.device)[:, None]
            keys = torch.arange(before + own, device=like.device)[None, :]
            hidden = keys > query if window is None else (keys > query) | (keys <= query - window)
            self._masks[key] = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
        return self._masks[key]


_HARMLESS = {"position_ids", "position_embeddings", "cache_position", "use_cache", "output_attentions", "is_causal"}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each prompt, and from each completion to its prompt and itself.

    query (1, heads, tokens, width), key and value (1, key heads, tokens, width) -> (1, tokens, heads, width).
    """
    strange = sorted(k for k, v in others.items() if v is not None and v is not False and k not in _HARMLESS)
    if packed_layout is None or strange or attention_mask is not None:
        raise UnpackableError(f"attention with {', '.join(strange) or 'no layout'}")
    dtype = query.dtype
    if query.device.type == "cpu":  # the kernels of a CPU are slower in bfloat16, the backward one by far
        query, key, value = query.float(), key.float(), value.float()
    grouped = key.shape[1] != query.shape[1]
    queries, keys, values = (torch.split(t, packed_layout.sizes, dim=2) for t in (query, key, value))
    out: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        out.append(
            F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )

    at = 0
    for prompt, *completions in packed_layout.stretches:
        window = sliding_window if sliding_window is not None and sliding_window < prompt else None
        mask = None if window is None else packed_layout.mask(0, prompt, window, query)
        attend(queries[at], keys[at], values[at], mask)
        for i, own in enumerate(completions, at + 1):
            if own:
                mask = packed_layout.mask(prompt, own, sliding_window, query)
                attend(queries[i], torch.cat([keys[at], keys[i]], 2), torch.cat([values[at], values[i]], 2), mask)
        at += 1 + len(completions)
    return torch.cat(out, dim=2).transpose(1, 2).to(dtype).contiguous(), None


@contextmanager
def packed_attention_on(model: nn.Module) -> Iterator[None]:
    """While it is open, the transformers model `model` (not a peft wrapper) attends by `packed_attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)
    setter: Any = model
    before = setter.config._attn_implementation
    setter.set_attn_implementation(ATTENTION)
    if setter.config._attn_implementation != ATTENTION:
        raise UnpackableError("the attention of this model cannot be set")
    try:
        yield
    finally:
        setter.set_attn_implementation(before)
