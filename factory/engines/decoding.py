"""Batched decoding with any causal language model of transformers, on CPU or GPU, with a random stream for each sample.

Where the time of plain `generate` goes on a CPU, and what is done about it here:

- it decodes one prompt's few rows at a time: here many prompts share a batch, so that a weight is read once for all;
- it concatenates the key/value cache at every step: here the cache is preallocated and a step writes one position;
- it repeats keys and values for grouped queries: here the queries of a group attend as if they were a short sequence;
- it prefills a prompt once a sample, and a common system prompt once a prompt: here each is prefilled once.

Sampling inverts the cumulative distribution at one uniform number a token. The uniforms come from a Philox stream keyed
by the sample's own seed, so the randomness of an answer does not depend on its neighbours in the batch: only rounding
does, which moves a draw that lies within it of the edge between two tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from factory.schema import Sampling

GROUPED = "sdpa_grouped"
MIN_SHARED = 16  # tokens; a shorter common prefix is not worth a forward pass of its own
HEAD_ROWS = 16384  # tokens of the vocabulary whose weights are widened at a time
NUCLEUS_CANDIDATES = 256  # the nucleus is looked for among so many most likely tokens before a full sort

# ------------------------------------------------------------------------------------------------------- attention


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token a row without repeating keys and values.

    query (batch, heads, 1, dim); key and value (batch, kv heads, length, dim); mask (batch, 1, 1, length) or None. The
    heads of a group share their keys, so they are laid out as a sequence of queries. All else goes to transformers'
    sdpa.
    """
    batch, heads, queries, dim = query.shape
    kv_heads = key.shape[1]
    if queries != 1 or kv_heads == heads or extra.get("position_bias") is not None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **extra
        )
        return out
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, dim)
    mixed = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return mixed.reshape(batch, 1, heads, mixed.shape[-1]), None


def use_grouped_attention(model: Any) -> None:
    """Switch a model whose attention is transformers' sdpa to `grouped_attention`; leave any other as it is."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    model.set_attn_implementation(GROUPED)


# ------------------------------------------------------------------------------------------------------------ the head


@contextmanager
def float32_head(model: Any) -> Iterator[None]:
    """While it is open, a plain linear LM head multiplies in float32 whatever the model's dtype, and what the model
    does to its logits after it follows. bfloat16 logits near 20 lie an eighth of a nat apart: a probability of one half
    read from two of them is off by up to three hundredths."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.dtype == torch.float32 or "forward" in vars(head):
        yield
        return
    head.forward = partial(_float32_linear, head.weight, head.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward


def _float32_linear(weight: Tensor, bias: Tensor | None, hidden: Tensor) -> Tensor:
    """hidden (..., width) -> (..., vocabulary) float32; the weight is widened a part of the vocabulary at a time."""
    wide = hidden.float()
    out = torch.cat([linear(wide, part.float()) for part in torch.split(weight, HEAD_ROWS)], dim=-1)
    return out if bias is None else out + bias.float()


# ----------------------------------------------------------------------------------------------------------- cache


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values (slots, heads, capacity, dim) of a layer: the first `rows` slots and `length` positions count."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, capacity: int) -> None:
        """`keys`, `values`: (prompts, heads, length, dim) of the prefill; `rows` (slots,): the prompt of each slot."""
        super().__init__()
        self.length = keys.shape[2]
        self.rows = rows.shape[0]
        self.keys = self._slots(keys, rows, capacity)
        self.values = self._slots(values, rows, capacity)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def _slots(self, filled: Tensor, rows: Tensor, capacity: int) -> Tensor:
        slots = filled.new_empty((self.rows, filled.shape[1], capacity, filled.shape[3]))
        slots[:, :, : self.length] = filled.index_select(0, rows)
        return slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the slots are filled at the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions in place; hand back views of all positions so far."""
        end = self.length + key_states.shape[2]
        self.keys[: self.rows, :, self.length : end] = key_states
        self.values[: self.rows, :, self.length : end] = value_states
        self.length = end
        return self.keys[: self.rows, :, :end], self.values[: self.rows, :, :end]

    def move(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        """Copy slots (from, to), then keep the first `rows`."""
        for source, target in moves:
            self.keys[target, :, : self.length] = self.keys[source, :, : self.length]
            self.values[target, :, : self.length] = self.values[source, :, : self.length]
        self.rows = rows

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])


def has_plain_cache(config: Any) -> bool:
    """True when every layer keeps keys and values by position, so that slots are right for it."""
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def has_window(config: Any) -> bool:
    """True when a layer sees the last so many places only. Padding between a shared prefix and the rest would count
    among them, so that prefixes are not shared; padding on the left of all is out of sight."""
    return any(type(layer) is DynamicSlidingWindowLayer for layer in DynamicCache(config=config).layers)


# -------------------------------------------------------------------------------------------------------- sampling


def uniforms(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The first `count` numbers in [0, 1) of the stream of this seed (Philox 4x64; Salmon et al., SC 2011)."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


class Choice(NamedTuple):
    """Tokens (rows,) and their untempered log-probabilities (rows,), nats."""

    tokens: Tensor
    logprobs: Tensor


def choose(logits: Tensor, points: Tensor, sampling: Sampling) -> Choice:
    """One token a row. logits (rows, vocabulary) float32; points (rows,) uniform in [0, 1).

    Temperature first, then top_k, then top_p within what is left, as transformers does. Temperature 0 is greedy.
    """
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    total = weights.sum(-1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        if sampling.temperature != 1:
            weights = ((logits - peak) / sampling.temperature).exp_()
        tokens = _draw(weights, points, sampling)
    picked = logits.gather(-1, tokens[:, None]) - peak
    return Choice(tokens, picked[:, 0] - total.log())


def _draw(weights: Tensor, points: Tensor, sampling: Sampling) -> Tensor:
    """weights (rows, vocabulary): probabilities up to a factor for each row. What is kept is drawn from in the order of
    the vocabulary: in the order of the weights, rounding that swaps two near-equal tokens would change the draw."""
    least = least_kept(weights, sampling)
    return _invert(weights if least is None else weights.masked_fill(weights < least, 0), points)


def least_kept(weights: Tensor, sampling: Sampling) -> Tensor | None:
    """The smallest weight (rows, 1) that top_k and top_p keep; None when they keep all. Ties with it are kept too."""
    if sampling.top_k and sampling.top_k < weights.shape[1]:
        kept = weights.topk(sampling.top_k).values
        return _nucleus_edge(kept, kept.sum(-1, keepdim=True) * sampling.top_p)
    if sampling.top_p == 1:
        return None
    mass = weights.sum(-1, keepdim=True) * sampling.top_p
    kept = weights.topk(min(NUCLEUS_CANDIDATES, weights.shape[1])).values
    edge = _nucleus_edge(kept, mass)
    wide = (kept.sum(-1, keepdim=True) < mass)[:, 0].nonzero()[:, 0]
    if len(wide):
        edge[wide] = _nucleus_edge(_descending(weights[wide]), mass[wide])
    return edge


def _descending(weights: Tensor) -> Tensor:
    """Each row sorted; on a CPU by numpy, which takes a third of the time."""
    if weights.device.type != "cpu":
        return weights.sort(descending=True).values
    return torch.from_numpy(np.sort(weights.numpy())[:, ::-1].copy())


def _nucleus_edge(kept: Tensor, mass: Tensor) -> Tensor:
    """The weight (rows, 1) of the last token of the smallest set with `mass` (rows, 1); kept (rows, k) descending."""
    before = kept.cumsum(-1) - kept
    size = (before < mass).sum(-1, keepdim=True).clamp(min=1)
    return kept.gather(-1, size - 1)


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """The first index at which the running sum passes `points` of the whole; never one of weight zero."""
    running = weights.cumsum(-1)
    below_one = points.to(running.dtype).clamp(max=1 - 2**-24)
    target = below_one[:, None] * running[:, -1:]
    return torch.searchsorted(running, target, right=True)[:, 0].clamp(max=weights.shape[1] - 1)


# -------------------------------------------------------------------------------------------------------- decoding


@dataclass(slots=True, eq=False)
class Row:
    """One answer in the making. `prompt` is its prompt's place in the batch; `ids` end with the end token, if any
    came."""

    prompt: int
    limit: int  # at most so many tokens, at least 1
    seed: int
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish_reason: str = ""


class Prefix(NamedTuple):
    """The start of several prompts, read: so many tokens, and the cache of its one row (None for no tokens)."""

    length: int
    cache: Cache | None


class Prefilled(NamedTuple):
    """What a forward pass over the prompts leaves. logits (prompts, vocabulary) float32 of the position after each
    prompt; `caches` one for each chunk of prompts, empty when none was kept; `mask` (prompts, length), 1 for a token
    and 0 for padding on the left; `lengths` of the prompts in tokens."""

    logits: Tensor
    caches: list[Cache]
    mask: Tensor
    lengths: Tensor


class Decoder:
    """Prefill and decoding with one model. Not thread safe.

    `ends`: ids of all tokens that end an answer. `pad`: id used for padding (masked, so any will do). `prefill_tokens`:
    tokens, padding included, in one forward pass of the prefill.
    """

    def __init__(self, model: Any, ends: Sequence[int], pad: int, prefill_tokens: int = 4096) -> None:
        use_grouped_attention(model)
        self.model = model
        self.ends = frozenset(ends)
        self.pad = pad
        self.prefill_tokens = prefill_tokens
        self.plain = has_plain_cache(model.config)
        self.shares = self.plain and not has_window(model.config)
        self.device = model.device

    @torch.inference_mode()
    def prefill(
        self, prompts: Sequence[Sequence[int]], keep: bool = True, exact: bool = False, prefix: Prefix | None = None
    ) -> Prefilled:
        """Read all prompts (token ids, none empty) once, the prefix that all share only once. `keep`: for decoding;
        `exact`: the logits as `float32_head` gives them, for probabilities that are read; `prefix`: one that has been
        read, with which all prompts begin and none ends."""
        prefix = prefix or self.common(prompts)
        shared = prefix.length
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, :shared] = torch.tensor(prompt[:shared], dtype=torch.long)
            ids[row, width - len(prompt) + shared :] = torch.tensor(prompt[shared:], dtype=torch.long)
            mask[row, :shared] = 1
            mask[row, width - len(prompt) + shared :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        chunk = max(1, self.prefill_tokens // (width - shared)) if self.plain else len(prompts)
        logits, caches = [], []
        for start in range(0, len(prompts), chunk):
            part = slice(start, start + chunk)
            with float32_head(self.model) if exact else nullcontext():
                out, cache = self._read(ids[part], mask[part], prefix, keep)
            logits.append(out)
            caches += [cache] if keep else []
        return Prefilled(torch.cat(logits), caches, mask, mask.sum(-1))

    @torch.inference_mode()
    def common(self, prompts: Sequence[Sequence[int]]) -> Prefix:
        """Read the prefix that all prompts share; one of length 0 where there is none worth it."""
        shared = self._shared(prompts)
        if not shared:
            return Prefix(0, None)
        cache = DynamicCache()
        self.forward(torch.tensor([list(prompts[0][:shared])], device=self.device), None, None, cache)
        return Prefix(shared, cache)

    def _shared(self, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens at the start that all prompts share, 0 where sharing does not pay or is not right for the model."""
        if len(prompts) < 2 or not self.shares:
            return 0
        first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
        limit = min(map(len, prompts)) - 1
        shared = next((i for i in range(limit) if first[i] != last[i]), limit)
        return shared if shared >= MIN_SHARED else 0

    def _read(self, ids: Tensor, mask: Tensor, prefix: Prefix, keep: bool) -> tuple[Tensor, Cache]:
        cache: Cache | None = None
        if prefix.cache is not None:
            cache = DynamicCache()
            for index, layer in enumerate(prefix.cache.layers):
                shape = (len(ids), -1, -1, -1)
                cache.update(layer.keys.expand(shape), layer.values.expand(shape), index)
        elif keep:
            cache = DynamicCache() if self.plain else DynamicCache(config=self.model.config)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return self.forward(ids[:, prefix.length :], mask, positions[:, prefix.length :], cache), cache

    def forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache | None) -> Tensor:
        """Logits (rows, vocabulary) of the last position, float32: only that one goes through the LM head. ids (rows,
        new); mask (rows, length, new included); positions (rows, new)."""
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
        )
        last: Tensor = out.logits[:, -1].float()
        return last

    def decode(
        self, start: Prefilled, rows: Sequence[Row], sampling: Sampling, stopped: Callable[[Row], bool] | None = None
    ) -> Iterator[list[Row]]:
        """Answer all rows; yield those that finish at the same step together. Uses up the caches of `start`.

        `stopped` is asked after each token of a row whether a stop string has come.
        """
        longest = max(row.limit for row in rows)
        of_row = torch.tensor([row.prompt for row in rows], device=self.device)
        points = torch.from_numpy(np.stack([uniforms(row.seed, longest) for row in rows])).to(self.device)
        slots = Slots(start, of_row, longest, self.plain) if longest > 1 else None
        live, logits = list(rows), start.logits.index_select(0, of_row)
        for step in range(longest):
            choice = self.choose(logits, points[:, step], sampling)
            finished = self.take(live, choice, stopped)
            if finished:
                yield [live[slot] for slot in finished]
            if slots is None or len(finished) == len(live):
                return
            tokens = choice.tokens
            if finished:
                moves = closing_moves(finished, len(live))
                tokens, points = slots.close(moves, len(live) - len(finished), tokens, points)
                for source, target in moves:
                    live[target] = live[source]
                del live[len(live) - len(finished) :]
            logits = self._step(slots, tokens)

    @torch.inference_mode()
    def choose(self, logits: Tensor, points: Tensor, sampling: Sampling) -> Choice:
        """See `choose`."""
        return choose(logits, points, sampling)

    def take(self, live: Sequence[Row], choice: Choice, stopped: Callable[[Row], bool] | None) -> list[int]:
        """Give each row its token; the slots of the rows that are finished by it, ascending."""
        finished = []
        for slot, (row, token, logprob) in enumerate(
            zip(live, choice.tokens.tolist(), choice.logprobs.tolist(), strict=True)
        ):
            row.ids.append(token)
            row.logprob += logprob
            if token in self.ends or (stopped is not None and stopped(row)):
                row.finish_reason = "stop"
            elif len(row.ids) >= row.limit:
                row.finish_reason = "length"
            if row.finish_reason:
                finished.append(slot)
        return finished

    @torch.inference_mode()
    def _step(self, slots: Slots, tokens: Tensor) -> Tensor:
        mask, positions = slots.next()
        return self.forward(tokens[:, None], mask, positions, slots.cache)


def closing_moves(finished: Sequence[int], count: int) -> list[tuple[int, int]]:
    """(from, to) slots that close the gaps of `finished` (ascending) among `count` with as few copies as can be."""
    gone, left = set(finished), count - len(finished)
    sources = [slot for slot in range(left, count) if slot not in gone]
    return list(zip(sources, [slot for slot in finished if slot < left], strict=True))


class Slots:
    """The rows in decoding: their cache, their padding and the position of their next token."""

    @torch.inference_mode()
    def __init__(self, start: Prefilled, of_row: Tensor, extra: int, plain: bool) -> None:
        """`of_row` (rows,): the prompt of each row; `extra`: tokens to make room for."""
        self.length = start.mask.shape[1]
        self.mask = start.mask.new_ones((len(of_row), self.length + extra))
        self.mask[:, : self.length] = start.mask.index_select(0, of_row)
        self.positions = start.lengths.index_select(0, of_row)
        self.layers: list[SlotLayer] | None = None
        if plain:
            self.layers = [SlotLayer(*layer, of_row, self.length + extra) for layer in joined(start)]
            self.cache = Cache(layers=self.layers)
        else:
            self.cache = start.caches.pop()
            self.cache.reorder_cache(of_row)

    def next(self) -> tuple[Tensor, Tensor]:
        """Mask (rows, length + 1) and positions (rows, 1) of one more token."""
        self.length += 1
        positions = self.positions[:, None].clone()
        self.positions += 1
        return self.mask[:, : self.length], positions

    @torch.inference_mode()
    def close(self, moves: Sequence[tuple[int, int]], count: int, *others: Tensor) -> list[Tensor]:
        """Keep `count` rows after the moves (from, to); hand back `others` (rows, ...) in the new order."""
        order = list(range(count))
        for source, target in moves:
            order[target] = source
        index = torch.tensor(order, device=self.mask.device)
        self.mask, self.positions = self.mask.index_select(0, index), self.positions.index_select(0, index)
        if self.layers is None:
            self.cache.reorder_cache(index)
        else:
            for layer in self.layers:
                layer.move(moves, count)
        return [other.index_select(0, index) for other in others]


def joined(start: Prefilled) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (prompts, heads, length, dim) of each layer over all chunks of a prefill; none if no cache was
    kept. Uses up its caches."""
    layers = []
    for index in range(len(start.caches[0].layers) if start.caches else 0):
        keys = [cache.layers[index].keys for cache in start.caches]
        values = [cache.layers[index].values for cache in start.caches]
        layers.append((torch.cat(keys), torch.cat(values)) if len(keys) > 1 else (keys[0], values[0]))
    start.caches.clear()
    return layers
