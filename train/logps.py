"""Log-probabilities of completions: the one place where sequences are scored, with gradients or without.

Fast path: rows packed without padding (`train/packing.py`), only the places that predict a completion's token go
through the LM head, and the head's logits are held a chunk at a time, forward and backward. It reproduces what the
model itself says, or it is not used: `forward_for` compares both on rows of the user's own data and falls back to the
plain forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.conversations import learnt, plain
from train.data import Encoded
from train.packing import Group, Layout, UnpackableError, pack, packed_attention_on

log = logging.getLogger(__name__)

CHUNK_BYTES = 64 << 20  # float32 logits held at a time
KEPT_BYTES = 512 << 20  # float32 logits held from the forward pass to the backward one, where the head learns
DEFAULT_BATCH_TOKENS = {"cpu": 2048}
ACCELERATOR_BATCH_TOKENS = 32768


AFTER_THE_HEAD = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0, "lm_head_multiplier": 1.0}
"""Settings of models that cap or scale logits, with the value that changes nothing: small logits would hide a cap from
the comparison, and it takes two bfloat16 forwards for equal where a scale is near 1."""


class LogpSum(NamedTuple):
    """`logp`: sum over the completion's learnt tokens, end token included, nats. `tokens`: how many they are."""

    logp: float
    tokens: int


class TokenLogps(NamedTuple):
    """Log-probs of all completions' learnt tokens end to end, `values` (tokens,) float32, nats; how many each has,
    `lengths` (completions,); `spread` (tokens,): log of the sum of squared probabilities over the vocabulary, where it
    was asked for; `worth` (tokens,): what a critic's head says where each token is about to be chosen, where one was
    given."""

    values: Tensor
    lengths: Tensor
    spread: Tensor | None = None
    worth: Tensor | None = None

    def sums(self) -> Tensor:
        """Of each completion: (completions,)."""
        return self._summed(self.values)

    def reordered(self, order: Sequence[int]) -> TokenLogps:
        """With the completions in another order: the i-th is then the one that was at order[i]."""
        ends = self.lengths.cumsum(0).tolist()
        starts = [end - size for end, size in zip(ends, self.lengths.tolist(), strict=True)]
        index = torch.cat([torch.arange(starts[i], ends[i]) for i in order]).to(self.values.device)
        lengths = self.lengths[torch.tensor(order, device=self.lengths.device)]
        moved = [None if field is None else field[index] for field in (self.spread, self.worth)]
        return TokenLogps(self.values[index], lengths, *moved)

    def heads(self, counts: Tensor) -> Tensor:
        """Over the first `counts` (completions,) tokens of each completion."""
        starts = self.lengths.cumsum(0) - self.lengths
        place = torch.arange(len(self.values), device=self.values.device) - starts.repeat_interleave(self.lengths)
        return self._summed(torch.where(place < counts.repeat_interleave(self.lengths), self.values, 0.0))

    def alignment(self) -> Tensor:
        """Mean over each completion of log p(token) - log sum p^2, no gradient: how usual the policy finds it (WPO,
        arXiv 2406.11827, eq. 2)."""
        if self.spread is None:
            raise ValueError("the spread was not asked for")
        return self._summed((self.values - self.spread).detach()) / self.lengths

    def _summed(self, tokens: Tensor) -> Tensor:
        owner = torch.repeat_interleave(torch.arange(len(self.lengths), device=tokens.device), self.lengths)
        return torch.zeros(len(self.lengths), device=tokens.device).index_add(0, owner, tokens)


# ------------------------------------------------------------------------------------------------ the head, in chunks


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Of the head's products: float32 on a CPU, whatever the model's; autocast's or the model's own on an
    accelerator."""
    kind = hidden.device.type
    if kind == "cpu":
        return torch.float32
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _ChunkedLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias)[target], a chunk of rows at a time.

    d logp / d hidden = weight[target] - softmax @ weight. It does not depend on the gradient that comes in but by a
    factor a token, so where the head is frozen it is formed in the forward pass, while the chunk's logits are
    there. Where the head learns and one chunk holds all rows, their probabilities are kept in the place of the logits
    for the backward pass, which is the next thing to come and needs no product of its own to have them; with more
    chunks the backward pass makes the logits of each again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int) -> Tensor:
        ctx.dtype, ctx.rows, ctx.kept = _compute_dtype(hidden), rows, None
        ctx.head_learns = weight.requires_grad or (bias is not None and bias.requires_grad)
        unit = torch.empty_like(hidden) if hidden.requires_grad and not ctx.head_learns else None
        out = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for at, logits, w in _chunks(hidden, weight, bias, rows, ctx.dtype):
                target = targets[at, None]
                wanted, total, chances = _normalised(logits, target)
                out[at] = (wanted - total)[:, 0]
                if unit is not None:
                    slope = chances.neg_().scatter_add_(1, target, torch.ones_like(total))
                    unit[at] = (slope.to(w.dtype) @ w).to(unit.dtype)
        if ctx.head_learns and len(hidden) <= rows:
            ctx.kept = chances
        ctx.save_for_backward(*((unit,) if unit is not None else (hidden, weight, bias, targets)))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if not ctx.head_learns:
            (unit,) = ctx.saved_tensors
            return (unit * grad[:, None]).to(unit.dtype), None, None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        into_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        into_weight: Tensor | None = None
        into_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for at, chances, w in _chances(ctx, hidden, weight, bias, targets):
            part = grad[at, None]
            slope = chances.mul_(-part).scatter_add_(1, targets[at, None], part).to(w.dtype)
            if into_hidden is not None:
                into_hidden[at] = (slope @ w).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                into_weight = _plus_product(into_weight, slope, hidden[at].to(w.dtype), weight.dtype)
            if into_bias is not None:
                into_bias += slope.sum(0)
        return into_hidden, into_weight, into_bias, None, None


def _chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: int, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(which rows, their float32 logits, the weight in the dtype of the products) for one chunk after another. On a CPU
    all chunks lie in the same memory: new pages for each would take a third of the products' time."""
    w = weight.to(dtype)
    b = None if bias is None else bias.to(dtype)
    held = None
    if hidden.device.type == "cpu":
        held = torch.empty(min(rows, len(hidden)), len(weight), dtype=dtype)
    for start in range(0, len(hidden), rows):
        at = slice(start, start + rows)
        yield at, _logits(hidden[at].to(dtype), w, b, held).float(), w


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, held: Tensor | None) -> Tensor:
    """hidden @ weight.T + bias, in the first rows of `held` where there is such a place."""
    if held is None:
        return F.linear(hidden, weight, bias)
    place = held[: len(hidden)]
    with torch.no_grad():
        torch.mm(hidden, weight.T, out=place)
        return place if bias is None else place.add_(bias)


def _normalised(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The targets' logits (rows, 1), the log of the sum of all exponentials (rows, 1), and the softmax (rows, words),
    which takes the place of the logits.

    With p = softmax, log sum exp(z) = max z - log max p: the exponentials, dearest of all but the products, are formed
    once.
    """
    wanted, top = logits.gather(-1, target), logits.amax(-1, keepdim=True)
    chances = torch.softmax(logits, -1, out=logits) if logits.device.type == "cpu" else logits.softmax(-1)
    return wanted, top - chances.amax(-1, keepdim=True).log(), chances


def _chances(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(which rows, their probabilities, the weight) a chunk at a time: as they were kept, once, else made again."""
    kept, ctx.kept = ctx.kept, None
    if kept is not None:
        yield slice(0, len(hidden)), kept, weight.to(ctx.dtype)
        return
    for at, logits, w in _chunks(hidden, weight, bias, ctx.rows, ctx.dtype):
        yield at, _normalised(logits, targets[at, None])[2], w


def _plus_product(total: Tensor | None, slope: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """total + slope.T @ hidden: (words, width) in the weight's dtype, in place where there is a total."""
    if total is None:
        return (slope.T @ hidden).to(dtype)
    return total.addmm_(slope.T, hidden) if dtype == hidden.dtype else total.add_(slope.T @ hidden)


def chunked_logps(hidden: Tensor, head: nn.Linear, targets: Tensor, rows: int | None = None) -> Tensor:
    """Log-probability of each target: hidden (tokens, width), targets (tokens,) -> (tokens,) float32, nats.

    `rows` tokens' logits are held at a time (default: as many as CHUNK_BYTES holds; all of them up to KEPT_BYTES where
    the head learns, so that they are there for the backward pass).
    """
    words = head.weight.shape[0]
    learns = torch.is_grad_enabled() and head.weight.requires_grad
    if rows is None:
        rows = max(16, CHUNK_BYTES // (4 * words))
        if learns and 4 * words * len(hidden) <= KEPT_BYTES:
            rows = max(rows, len(hidden))
    out: Tensor = _ChunkedLogps.apply(hidden, head.weight, head.bias, targets, rows)  # type: ignore[no-untyped-call]
    return out


@torch.no_grad()
def chunked_spread(hidden: Tensor, head: nn.Linear) -> Tensor:
    """log sum p^2 over the vocabulary at each place: hidden (tokens, width) -> (tokens,) float32, no gradient."""
    rows = max(16, CHUNK_BYTES // (4 * head.weight.shape[0]))
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = _chunks(hidden.detach(), head.weight, head.bias, rows, _compute_dtype(hidden))
        return torch.cat([(2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1) for _, logits, _ in chunks])


# ----------------------------------------------------------------------------------------- two ways through the model


class Forward(Protocol):
    """A way to score groups of completions."""

    name: str

    def token_logps(
        self, groups: Sequence[Group], *, spread: bool = False, critic: nn.Module | None = None
    ) -> TokenLogps:
        """Of the completions of all groups, in order."""


def causal_model(model: nn.Module) -> Any:
    """The transformers model under a peft wrapper, or the model itself; adapters stay in its layers."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


class PackedForward:
    """Packed rows, shared prompts, the head on completions only."""

    name = "packed"

    def __init__(self, model: nn.Module) -> None:
        self._causal = causal_model(model)
        head = self._causal.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise UnpackableError(f"the head is a {type(head).__name__}")
        config = self._causal.config.get_text_config()
        if getattr(config, "attention_chunk_size", None):
            raise UnpackableError("attention in chunks")
        if changed := [
            name for name, none in AFTER_THE_HEAD.items() if getattr(config, name, None) not in (None, none)
        ]:
            raise UnpackableError(f"logits are changed after the head ({', '.join(changed)})")
        self._head = head

    def token_logps(
        self, groups: Sequence[Group], *, spread: bool = False, critic: nn.Module | None = None
    ) -> TokenLogps:
        """Of the completions of all groups, in order."""
        row = pack(groups, self._head.weight.device)
        with packed_attention_on(self._causal):
            out = self._causal.base_model(
                input_ids=row.ids,
                position_ids=row.positions,
                packed_layout=Layout(row.stretches),
                use_cache=False,
            )
        hidden = out.last_hidden_state[0, row.predicts]
        values = chunked_logps(hidden, self._head, row.targets)
        wide = chunked_spread(hidden, self._head) if spread else None
        return TokenLogps(values, lengths_of(groups, values), wide, _worth(critic, hidden))


class PlainForward:
    """Every completion in a row of its own, padded on the right, through the model's own forward."""

    name = "plain"

    def __init__(self, model: nn.Module) -> None:
        self._causal = causal_model(model)

    def token_logps(
        self, groups: Sequence[Group], *, spread: bool = False, critic: nn.Module | None = None
    ) -> TokenLogps:
        """Of the completions of all groups, in order."""
        rows = [(group.prompt, completion) for group in groups for completion in group.completions]
        width = max(len(p) + len(c) for p, c in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        seen = torch.zeros_like(ids)
        for i, (prompt, completion) in enumerate(rows):
            size = len(prompt) + len(completion)
            ids[i, :size] = torch.tensor([*prompt, *plain(completion)])
            seen[i, :size] = 1
        device = next(self._causal.parameters()).device
        ids, seen = ids.to(device), seen.to(device)
        out = self._causal(input_ids=ids, attention_mask=seen, use_cache=False, output_hidden_states=critic is not None)
        logits = out.logits
        parts, spreads, hidden = [], [], []
        for i, (prompt, completion) in enumerate(rows):
            at = torch.tensor([len(prompt) - 1 + k for k, token in enumerate(completion) if token >= 0], device=device)
            logp = logits[i, at].float().log_softmax(-1)
            parts.append(logp.gather(-1, ids[i, at + 1, None])[:, 0])
            if spread:
                spreads.append((2 * logp.detach()).logsumexp(-1))
            if critic is not None:
                hidden.append(out.hidden_states[-1][i, at])
        values = torch.cat(parts)
        wide = torch.cat(spreads) if spread else None
        worth = _worth(critic, torch.cat(hidden)) if critic is not None else None
        return TokenLogps(values, lengths_of(groups, values), wide, worth)


def _worth(critic: nn.Module | None, hidden: Tensor) -> Tensor | None:
    """What the critic says at each place: hidden (tokens, width) -> (tokens,) float32."""
    return None if critic is None else critic(hidden.float())[:, 0]


def lengths_of(groups: Sequence[Group], like: Tensor) -> Tensor:
    """Learnt tokens of every completion of every group, in order: (completions,)."""
    return torch.tensor([learnt(c) for group in groups for c in group.completions], device=like.device)


_packs: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # a Forward would hold its model, and so its own key


def forward_for(model: nn.Module, sample: Sequence[Group]) -> Forward:
    """The packed forward when it says what the model's own forward says on `sample` rows, else the plain one.

    Decided once for each model. A fall-back is logged with its reason. Give rows of the user's data, the longest among
    them.
    """
    base = causal_model(model)
    if base not in _packs:
        fault = _difference(base, sample)
        if fault:
            log.warning("packed rows are not used with %s: %s; training is slower", type(base).__name__, fault)
        _packs[base] = not fault
    return PackedForward(base) if _packs[base] else PlainForward(base)


def _difference(model: nn.Module, sample: Sequence[Group]) -> str:
    """Why the packed forward cannot be used; empty when it can."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plain = torch.cat([PlainForward(model).token_logps([group]).values for group in sample])
            packed = PackedForward(model).token_logps(sample).values
    except (UnpackableError, TypeError) as fault:
        return str(fault)
    finally:
        model.train(was_training)
    worst = float((plain - packed).square().mean().sqrt())
    exact = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(plain.device.type)
    allowed = 1e-3 if exact else 0.25  # nats a token, root mean square; two bfloat16 forwards differ by about 0.08
    return "" if worst <= allowed else f"they differ from the model's own forward by {worst:.3g} nats a token"


def completion_logps(forward: Forward, groups: Sequence[Group]) -> Tensor:
    """Summed log-probability of every completion of every group, in order: (completions,) float32, nats."""
    return forward.token_logps(groups).sums()


# --------------------------------------------------------------------------------------------------- scoring, no grad


class Scored(NamedTuple):
    """One batch of scored rows: `rows` are their indices in the list that was given; `by_token`: each learnt token's
    own log-probability."""

    rows: list[int]
    logps: list[LogpSum]
    by_token: list[list[float]]


def score(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int | None = None,
    needed: Callable[[int], bool] = lambda row: True,
) -> Iterator[Scored]:
    """Score the rows in batches of about `batch_tokens` tokens; rows with the same prompt share it.

    The make-up of a batch depends on `rows` alone; a batch with a row that is `needed` is scored whole. So what a
    killed pass left is scored to the last bit as an uninterrupted pass would have.
    """
    device = next(model.parameters()).device
    limit = batch_tokens or DEFAULT_BATCH_TOKENS.get(device.type, ACCELERATOR_BATCH_TOKENS)
    batches = [b for b in _batches(rows, limit) if any(needed(i) for _, members in b for i in members)]
    if not batches:
        return
    forward = forward_for(model, sample_groups(rows))
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            groups = [Group(prompt, [rows[i].completion_ids for i in members]) for prompt, members in batch]
            with torch.inference_mode():
                found = forward.token_logps(groups)
            order = [i for _, members in batch for i in members]
            sums = [
                LogpSum(s, learnt(rows[i].completion_ids)) for i, s in zip(order, found.sums().tolist(), strict=True)
            ]
            values, ends = found.values.tolist(), [0, *found.lengths.cumsum(0).tolist()]
            by_token = [values[begin:end] for begin, end in pairwise(ends)]
            yield Scored(order, sums, by_token)
    finally:
        model.train(was_training)


def sequence_logps(model: nn.Module, rows: Sequence[Encoded], *, batch_tokens: int | None = None) -> list[LogpSum]:
    """The log-probability of every row's completion given its prompt, in order, without gradients."""
    out: dict[int, LogpSum] = {}
    for batch in score(model, rows, batch_tokens=batch_tokens):
        out.update(zip(batch.rows, batch.logps, strict=True))
    return [out[i] for i in range(len(rows))]


def sample_groups(rows: Sequence[Encoded], count: int = 4) -> list[Group]:
    """Rows to compare the two forwards on: the longest, and some spread over the data, two to a prompt where they
    share it."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt_ids) + len(rows[i].completion_ids))
    picks = {order[-1], *(order[len(order) * k // count] for k in range(count))}
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(tuple(row.prompt_ids), []).append(i)
    groups = []
    for i in sorted(picks):
        mates = [m for m in by_prompt[tuple(rows[i].prompt_ids)] if m != i][:1]
        groups.append(Group(rows[i].prompt_ids, [rows[m].completion_ids for m in (i, *mates)]))
    return groups


_Batch = list[tuple[tuple[int, ...], list[int]]]  # (prompt, rows that share it) ...


def _batches(rows: Sequence[Encoded], limit: int) -> list[_Batch]:
    """Rows grouped by prompt and cut into batches of at most `limit` tokens (one longer row is a batch by itself)."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(tuple(row.prompt_ids), []).append(i)
    batches: list[_Batch] = []
    left = 0
    for prompt, members in sorted(by_prompt.items(), key=lambda item: (len(item[0]), item[1])):
        for i in members:
            own = len(rows[i].completion_ids)
            joins = bool(batches) and bool(batches[-1]) and batches[-1][-1][0] == prompt
            cost = own if joins else own + len(prompt)
            if not batches or cost > left:
                batches.append([])
                left, joins, cost = limit, False, own + len(prompt)
            if joins:
                batches[-1][-1][1].append(i)
            else:
                batches[-1].append((prompt, [i]))
            left -= cost
    return batches
