"""Packed, chunked scoring equals the model's own forward, with gradients, and is not used where it would not."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from train import logps as module
from train.data import Encoded
from train.logps import PackedForward, PlainForward, chunked_logps, completion_logps, forward_for, score, sequence_logps
from train.packing import Group, UnpackableError, pack
from train.policy import Policy, load_policy

Loader = Callable[..., Policy]


def random_ids(draw: random.Random, count: int) -> tuple[int, ...]:
    return tuple(draw.randrange(3, 300) for _ in range(count))


def groups(seed: int = 0) -> list[Group]:
    """Prompts with one, two and three completions, of one token and of many."""
    draw = random.Random(seed)
    shapes = [(5, [1]), (9, [7, 3]), (1, [2, 1]), (20, [4, 30, 1])]
    return [Group(random_ids(draw, p), [random_ids(draw, c) for c in cs]) for p, cs in shapes]


def small(kind: str, **more: Any) -> Any:
    """A random two-layer model of another family."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | more)), dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------- the head


@given(st.integers(1, 9), st.integers(1, 12), st.integers(2, 20), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_chunks_change_neither_values_nor_gradients(
    rows: int, tokens: int, words: int, bias: bool, learns: bool
) -> None:
    torch.manual_seed(tokens * 31 + words)
    head = nn.Linear(6, words, bias=bias).requires_grad_(learns)
    hidden = torch.randn(tokens, 6, requires_grad=True)
    targets = torch.randint(0, words, (tokens,))
    weights = torch.randn(tokens)
    inputs = [hidden, *(head.parameters() if learns else ())]

    whole = head(hidden).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    wanted = torch.autograd.grad((whole * weights).sum(), inputs)
    chunked = chunked_logps(hidden, head, targets, rows)
    got = torch.autograd.grad((chunked * weights).sum(), inputs)

    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("learns", [False, True])
def test_no_logits_of_more_than_a_chunk_are_held(learns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest (rows, words) tensor that the head makes has as many rows as a chunk, forward and backward."""
    widest = 0
    plain = module._logits

    def watched(hidden: torch.Tensor, *others: Any) -> torch.Tensor:
        nonlocal widest
        widest = max(widest, len(hidden))
        return plain(hidden, *others)

    monkeypatch.setattr(module, "_logits", watched)
    head = nn.Linear(6, 50).requires_grad_(learns)
    hidden = torch.randn(23, 6, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = chunked_logps(hidden, head, torch.zeros(23, dtype=torch.long), 4)
    torch.autograd.grad(out.sum(), hidden)
    assert widest == 4
    assert max(kept) < 23 * 50


@pytest.mark.parametrize(("room", "products"), [(1 << 20, 1), (0, 2)], ids=["kept", "made again"])
def test_logits_that_fit_are_made_once(room: int, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one chunk, and in the backward pass again only where there was no room to keep them; a second backward pass
    through the same graph makes them again too, to the same gradient."""
    made: list[int] = []
    plain = module._logits

    def watched(hidden: torch.Tensor, *others: Any) -> torch.Tensor:
        made.append(len(hidden))
        return plain(hidden, *others)

    monkeypatch.setattr(module, "_logits", watched)
    monkeypatch.setattr(module, "KEPT_BYTES", room)
    monkeypatch.setattr(module, "CHUNK_BYTES", 0)  # chunks of 16
    head = nn.Linear(6, 50)
    hidden = torch.randn(23, 6, requires_grad=True)
    out = chunked_logps(hidden, head, torch.arange(23)).sum()
    inputs = [hidden, head.weight, head.bias]
    first = torch.autograd.grad(out, inputs, retain_graph=True)
    assert sum(made) == 23 * products
    assert max(made) == (23 if room else 16)
    for again, once in zip(torch.autograd.grad(out, inputs), first, strict=True):
        torch.testing.assert_close(again, once)


def test_large_and_small_logits_are_normalised_alike() -> None:
    """Where one word has all the probability, or each the same, as log_softmax says it."""
    logits = torch.stack([torch.zeros(1000), 1e4 * torch.eye(1000)[3], torch.linspace(-90, 90, 1000)])
    target = torch.tensor([[5], [4], [0]])
    wanted, total, chances = module._normalised(logits.clone(), target)
    torch.testing.assert_close(wanted - total, logits.log_softmax(-1).gather(-1, target))
    torch.testing.assert_close(chances, logits.softmax(-1))


# ------------------------------------------------------------------------------------------------------- packing


def test_a_packed_row_has_the_places_that_predict_each_token() -> None:
    """Prompt 7 8 with completions 1 2 3 and 4: the last tokens 3 and 4 predict nothing and are left out."""
    row = pack([Group([7, 8], [[1, 2, 3], [4]])], torch.device("cpu"))
    assert row.ids.tolist() == [[7, 8, 1, 2]]
    assert row.positions.tolist() == [[0, 1, 2, 3]]
    assert row.predicts.tolist() == [1, 2, 3, 1]
    assert row.targets.tolist() == [1, 2, 3, 4]
    assert row.stretches == ((2, 2, 0),)


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("mistral", {"sliding_window": 6}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("qwen3", {}),
    ("gpt_neox", {"rotary_pct": 0.5}),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "attn_pdrop": 0.0}),
]


@pytest.mark.parametrize(("kind", "more"), FAMILIES, ids=[kind for kind, _ in FAMILIES])
def test_shared_prompts_equal_rows_of_their_own(kind: str, more: dict[str, Any]) -> None:
    model = small(kind, **more).eval()
    batch = groups()
    packed = PackedForward(model).token_logps(batch).values
    rows = [Group(g.prompt, [c]) for g in batch for c in g.completions]
    alone = torch.cat([PlainForward(model).token_logps([row]).values for row in rows])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def test_gradients_of_shared_prompts_equal_those_of_rows_of_their_own() -> None:
    model = small("llama")
    batch = groups()
    parameters = list(model.parameters())
    weights = torch.randn(sum(len(g.completions) for g in batch))
    wanted = torch.autograd.grad((completion_logps(PlainForward(model), batch) * weights).sum(), parameters)
    got = torch.autograd.grad((completion_logps(PackedForward(model), batch) * weights).sum(), parameters)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_models_own_attention_comes_back() -> None:
    model = small("llama")
    before = model.config._attn_implementation
    PackedForward(model).token_logps(groups())
    assert model.config._attn_implementation == before


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", {"final_logit_softcapping": 2.0}),  # logits are capped after the head
    ("cohere", {"logit_scale": 0.25}),  # logits are scaled after the head
    ("mamba", {"state_size": 4, "num_hidden_layers": 2}),  # tokens meet in states, not in attention
]


@pytest.mark.parametrize(("kind", "more"), OTHERS, ids=[kind for kind, _ in OTHERS])
def test_other_models_fall_back_and_say_so(kind: str, more: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    model = small(kind, **more).eval()
    batch = groups()
    with caplog.at_level("WARNING"):
        forward = forward_for(model, batch)
    assert forward.name == "plain"
    assert "packed rows are not used" in caplog.text
    values = completion_logps(forward, batch)
    assert values.shape == (8,)
    assert bool((values < 0).all())


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gemma2", {"final_logit_softcapping": 30.0, "attn_logit_softcapping": None}),
        ("cohere", {"logit_scale": 0.9}),
        ("granite", {"logits_scaling": 1.1}),
    ],
)
def test_logits_that_are_changed_after_the_head_are_known_where_both_forwards_look_alike(
    kind: str, more: dict[str, Any]
) -> None:
    """Small logits in bfloat16: what a cap of 30 does to them is far within what two forwards may differ by."""
    model = small(kind, **more).bfloat16().eval()
    assert forward_for(model, groups()).name == "plain"


def test_the_packed_forward_is_used_where_it_is_right(policy: Loader) -> None:
    loaded = policy()
    assert forward_for(loaded.model, groups()).name == "packed"


def test_unknown_attention_is_refused() -> None:
    from train.packing import packed_attention

    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UnpackableError, match="no layout"):
        packed_attention(nn.Identity(), q, q, q, None)
    with pytest.raises(UnpackableError, match="softcap"):
        packed_attention(nn.Identity(), q, q, q, None, softcap=2.0)


# ------------------------------------------------------------------------------------------------------- scoring


def rows_with_shared_prompts(count: int, seed: int = 0) -> list[Encoded]:
    draw = random.Random(seed)
    prompts = [random_ids(draw, draw.randint(1, 12)) for _ in range(max(1, count // 3))]
    return [Encoded(draw.choice(prompts), random_ids(draw, draw.randint(1, 15))) for _ in range(count)]


def test_scores_come_in_order_and_equal_the_models_own(policy: Loader) -> None:
    model = policy().model
    rows = rows_with_shared_prompts(17)
    plain = PlainForward(model)
    for batch_tokens in (1, 40, 4000):
        got = sequence_logps(model, rows, batch_tokens=batch_tokens)
        assert [s.tokens for s in got] == [len(r.completion_ids) for r in rows]
        for row, ours in zip(rows, got, strict=True):
            alone = completion_logps(plain, [Group(row.prompt_ids, [row.completion_ids])]).item()
            assert ours.logp == pytest.approx(alone, rel=1e-5, abs=1e-4)


@given(st.integers(1, 40), st.integers(1, 120), st.integers(0, 9))
@settings(max_examples=60)
def test_batches_hold_every_row_once_within_the_limit(count: int, limit: int, seed: int) -> None:
    rows = rows_with_shared_prompts(count, seed)
    batches = module._batches(rows, limit)
    assert sorted(i for batch in batches for _, members in batch for i in members) == list(range(count))
    for batch in batches:
        assert all(rows[i].prompt_ids == prompt for prompt, members in batch for i in members)
        size = sum(len(p) + sum(len(rows[i].completion_ids) for i in members) for p, members in batch)
        assert size <= limit or sum(len(members) for _, members in batch) == 1


def test_what_is_left_is_scored_to_the_same_bits(policy: Loader) -> None:
    model = policy().model
    rows = rows_with_shared_prompts(20)
    whole = dict(enumerate(sequence_logps(model, rows, batch_tokens=60)))
    again: dict[int, Any] = {}
    for batch in score(model, rows, batch_tokens=60, needed=lambda i: i in (3, 11)):
        again.update(zip(batch.rows, batch.logps, strict=True))
    assert {3, 11} <= set(again)
    assert len(again) < len(rows)
    assert all(again[i] == whole[i] for i in again)


def test_nothing_needed_is_nothing_computed(policy: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "forward_for", lambda *_: pytest.fail("the model was asked"))
    assert list(score(policy().model, rows_with_shared_prompts(5), needed=lambda i: False)) == []


def test_the_rows_compared_hold_the_longest(tiny_model: Path) -> None:
    rows = rows_with_shared_prompts(30)
    longest = max(len(r.prompt_ids) + len(r.completion_ids) for r in rows)
    sample = module.sample_groups(rows)
    assert longest in {len(g.prompt) + len(g.completions[0]) for g in sample}
    assert len(sample) <= 5


def test_a_model_that_was_scored_with_can_be_freed(tiny_model: Path) -> None:
    loaded = load_policy(str(tiny_model), dtype="float32", device="cpu").model
    sequence_logps(loaded, [Encoded((3, 4, 5), (6, 7))])
    left = weakref.ref(loaded)
    del loaded
    gc.collect()
    assert left() is None
