"""Decoding: what it samples, what it sums, and that neither neighbours nor tricks change an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from factory.engines.decoding import (
    MIN_SHARED,
    Decoder,
    Row,
    choose,
    closing_moves,
    grouped_attention,
    has_plain_cache,
    least_kept,
    uniforms,
)
from factory.schema import Sampling

END, PAD = 2, 0
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [20], [21, 22, 23, 24, 25, 26]]
LONG = [[*range(40, 40 + MIN_SHARED + 4), 100 + k, *range(60, 60 + k)] for k in range(5)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def decoder(model: Any, ends: tuple[int, ...] = (END,), **options: int) -> Decoder:
    return Decoder(model, ends, PAD, **options)


def answers(
    maker: Decoder, prompts: list[list[int]], n: int, sampling: Sampling, seed: int = 0, limit: int = 12
) -> list[Row]:
    """All rows of `n` samples a prompt, with a seed that depends on the prompt and the sample alone."""
    rows = [Row(place, limit, seed + 1000 * prompt[0] + k) for place, prompt in enumerate(prompts) for k in range(n)]
    done = [row for finished in maker.decode(maker.prefill(prompts), rows, sampling) for row in finished]
    assert sorted(map(id, done)) == sorted(map(id, rows))
    return rows


def plain_logprob(model: Any, prompt: list[int], ids: list[int]) -> float:
    """Sum of the answer's token log-probs by one forward pass over the whole sequence."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([[*prompt, *ids]])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[len(prompt) + at - 1, token]) for at, token in enumerate(ids))


def plain_greedy(model: Any, prompt: list[int], limit: int) -> list[int]:
    """Greedy decoding without a cache."""
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) - len(prompt) < limit and (len(ids) == len(prompt) or ids[-1] != END):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


# -------------------------------------------------------------------------------------------------------- sampling


def kept_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that `sampling` asks for, by full sorts; logits (vocabulary,)."""
    probabilities = (logits / sampling.temperature).softmax(-1)
    order = probabilities.argsort(descending=True)
    if sampling.top_k:
        order = order[: sampling.top_k]
    kept = probabilities[order] / probabilities[order].sum()
    inside = kept.cumsum(-1) - kept < sampling.top_p
    out = torch.zeros_like(probabilities)
    out[order[inside]] = kept[inside] / kept[inside].sum()
    return out


@pytest.mark.parametrize("size", [7, 300, 2000])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=5),
        Sampling(top_p=0.8),
        Sampling(temperature=1.7, top_k=40, top_p=0.7),
        Sampling(temperature=3.0, top_p=0.98),
    ],
)
def test_evenly_spread_points_draw_each_token_at_its_probability(size: int, sampling: Sampling) -> None:
    """With points (i + 1/2)/N a token of probability p is drawn N p times, give or take one for each of its edges."""
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2
    count = 4000
    points = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = choose(logits.expand(count, -1), points, sampling).tokens
    share = torch.bincount(drawn, minlength=size) / count
    assert (share - kept_probabilities(logits, sampling)).abs().max() <= 1.01 / count


def test_log_probabilities_are_untempered() -> None:
    logits = torch.randn(5, 50)
    choice = choose(logits, torch.full((5,), 0.3), Sampling(temperature=0.2, top_k=3))
    expected = logits.log_softmax(-1).gather(-1, choice.tokens[:, None])[:, 0]
    assert torch.allclose(choice.logprobs, expected, atol=1e-5)


def test_temperature_zero_is_greedy() -> None:
    logits = torch.randn(5, 50)
    assert torch.equal(choose(logits, torch.rand(5), Sampling(temperature=0)).tokens, logits.argmax(-1))


def test_the_ends_of_the_unit_interval_draw_tokens_of_weight() -> None:
    logits = torch.full((2, 6), -torch.inf)
    logits[:, 1], logits[:, 3] = 0.0, 1.0
    drawn = choose(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), Sampling()).tokens
    assert drawn.tolist() == [1, 3]


def test_a_wide_nucleus_is_cut_at_the_same_weight_as_by_a_full_sort() -> None:
    """Nearly even weights over 5000 tokens: the nucleus of 0.9 has about 4500, and is compared to the last bit."""
    weights = torch.rand(3, 5000, generator=torch.Generator().manual_seed(0)) + 2
    ordered = weights.sort(descending=True).values
    before = ordered.cumsum(-1) - ordered
    last = (before < weights.sum(-1, keepdim=True) * 0.9).sum(-1, keepdim=True) - 1
    edge = least_kept(weights, Sampling(top_p=0.9))
    assert edge is not None
    assert torch.equal(edge, ordered.gather(-1, last))


def test_a_longer_stream_of_uniforms_begins_like_a_shorter_one() -> None:
    assert uniforms(7, 20)[:5].tolist() == uniforms(7, 5).tolist()
    assert uniforms(7, 5).tolist() != uniforms(8, 5).tolist()


# ----------------------------------------------------------------------------------------------------------- tricks


def test_grouped_attention_is_attention_with_repeated_keys() -> None:
    query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    mask = torch.ones(3, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., :2] = False
    mixed, _ = grouped_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    key, value = key.repeat_interleave(3, 1), value.repeat_interleave(3, 1)
    scores = (query @ key.transpose(-1, -2) * 0.3).masked_fill(~mask, -torch.inf)
    assert torch.allclose(mixed, (scores.softmax(-1) @ value).transpose(1, 2), atol=1e-5)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_closing_moves_keep_every_unfinished_row_once(case: tuple[int, set[int]]) -> None:
    count, finished = case
    slots = list(range(count))
    moves = closing_moves(sorted(finished), count)
    for source, target in moves:
        slots[target] = source
    assert set(slots[: count - len(finished)]) == set(range(count)) - finished
    assert len(moves) <= len(finished)


# --------------------------------------------------------------------------------------------------------- decoding


def test_greedy_answers_are_those_of_decoding_without_a_cache(model: Any) -> None:
    rows = answers(decoder(model), PROMPTS, 1, Sampling(temperature=0))
    assert [row.ids for row in rows] == [plain_greedy(model, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(), Sampling(temperature=0.7, top_p=0.8)])
def test_neighbours_do_not_change_an_answer(model: Any, sampling: Sampling) -> None:
    """Up to rounding: a draw within 1e-7 of the edge between two tokens may fall to either; none of these does."""
    maker = decoder(model)
    together = answers(maker, [*PROMPTS, *LONG], 3, sampling)
    alone = [row for prompt in [*PROMPTS, *LONG] for row in answers(maker, [prompt], 3, sampling)]
    assert [row.ids for row in together] == [row.ids for row in alone]
    assert [row.logprob for row in together] == pytest.approx([row.logprob for row in alone], abs=1e-4)


def test_samples_of_a_prompt_differ_and_repeat_by_seed(model: Any) -> None:
    first, again, other = (answers(decoder(model), PROMPTS, 4, Sampling(), seed) for seed in (0, 0, 1))
    assert len({tuple(row.ids) for row in first[:4]}) > 1
    assert [row.ids for row in first] == [row.ids for row in again]
    assert [row.ids for row in first] != [row.ids for row in other]


def test_log_probabilities_are_those_of_a_plain_forward(model: Any) -> None:
    prompts = [*PROMPTS, *LONG]
    for place, row in enumerate(answers(decoder(model), prompts, 2, Sampling(temperature=0.8))):
        assert row.logprob == pytest.approx(plain_logprob(model, prompts[place // 2], row.ids), abs=1e-4)


def test_rows_end_at_end_tokens_and_leave_the_batch(model: Any) -> None:
    """With a quarter of the vocabulary as end tokens rows finish at every step, and slots are moved all the time."""
    ends = tuple(range(0, 403, 4))
    rows = answers(decoder(model, ends), PROMPTS, 16, Sampling(), limit=9)
    for row in rows:
        assert not set(row.ids[:-1]) & set(ends)
        assert (row.ids[-1] in ends) == (row.finish_reason == "stop")
        assert row.finish_reason == "stop" or len(row.ids) == 9
        assert row.logprob == pytest.approx(plain_logprob(model, PROMPTS[row.prompt], row.ids), abs=1e-4)
    assert {row.finish_reason for row in rows} == {"stop", "length"}


def test_one_row_may_stop_by_itself(model: Any) -> None:
    rows = [Row(0, 8, 1), Row(0, 8, 2)]
    maker = decoder(model, ends=())
    bursts = list(maker.decode(maker.prefill(PROMPTS[:1]), rows, Sampling(), lambda row: row is rows[0]))
    assert bursts == [[rows[0]], [rows[1]]]
    assert (len(rows[0].ids), len(rows[1].ids)) == (1, 8)


def test_a_row_has_its_own_limit(model: Any) -> None:
    rows = [Row(0, 3, 1), Row(0, 7, 2)]
    maker = decoder(model, ends=())
    list(maker.decode(maker.prefill(PROMPTS[:1]), rows, Sampling()))
    assert [len(row.ids) for row in rows] == [3, 7]


def test_prefill_in_pieces_and_with_a_shared_prefix_gives_the_same_logits(model: Any) -> None:
    whole = decoder(model).prefill(LONG)
    pieces = decoder(model, prefill_tokens=8).prefill(LONG, keep=False)
    alone = torch.cat([decoder(model).prefill([prompt], keep=False).logits for prompt in LONG])
    assert len(whole.caches) == 1
    assert torch.allclose(whole.logits, alone, atol=1e-4)
    assert torch.allclose(pieces.logits, alone, atol=1e-4)


def test_a_prompt_that_is_a_prefix_of_another_keeps_its_last_token(model: Any) -> None:
    prompts = [LONG[0], [*LONG[0], 7, 8]]
    alone = torch.cat([decoder(model).prefill([prompt], keep=False).logits for prompt in prompts])
    assert torch.allclose(decoder(model).prefill(prompts, keep=False).logits, alone, atol=1e-4)


SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": END,
    "pad_token_id": PAD,
}


def test_a_sliding_window_is_kept() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SMALL, num_hidden_layers=2, sliding_window=4)).eval()
    rows = answers(decoder(model), PROMPTS, 1, Sampling(temperature=0))
    assert [row.ids for row in rows] == [plain_greedy(model, prompt, 12) for prompt in PROMPTS]


def test_a_sliding_window_sees_no_padding_after_a_common_start() -> None:
    """Prompts that share 20 tokens and differ in length, a window of 24: the shortest still sees the common start."""
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SMALL, num_hidden_layers=2, sliding_window=MIN_SHARED + 8)).eval()
    for row in answers(decoder(model), LONG, 2, Sampling()):
        assert row.logprob == pytest.approx(plain_logprob(model, LONG[row.prompt], row.ids), abs=1e-4)


def test_layers_that_keep_a_state_are_reordered_and_never_shared() -> None:
    torch.manual_seed(0)
    layers = ["conv", "full_attention"]
    config = Lfm2Config(**SMALL, num_hidden_layers=2, layer_types=layers, block_auto_adjust_ff_dim=False)
    model = Lfm2ForCausalLM(config).eval()
    assert not has_plain_cache(model.config)
    maker = decoder(model, ends=tuple(range(0, 128, 4)))
    for row in answers(maker, [*PROMPTS, *LONG], 4, Sampling()):
        prompt = [*PROMPTS, *LONG][row.prompt]
        assert row.logprob == pytest.approx(plain_logprob(model, prompt, row.ids), abs=1e-4)


def test_logits_to_be_read_are_of_float32_in_a_bfloat16_model(tiny_model: Path) -> None:
    """Logits of tens, as real models have them: bfloat16 rounds them to eighths; the exact ones are the product of the
    last hidden states with the head in float32, and the head is as before afterwards."""
    half = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        half.model.norm.weight.mul_(100)
    reader = decoder(half)
    coarse, exact = reader.prefill(PROMPTS[:1]).logits, reader.prefill(PROMPTS[:1], exact=True).logits
    with torch.inference_mode():
        hidden = half.model(torch.tensor(PROMPTS[:1])).last_hidden_state[:, -1]
    assert exact.dtype == torch.float32
    assert exact.abs().max() > 8
    torch.testing.assert_close(exact, hidden.float() @ half.lm_head.weight.float().T, atol=1e-3, rtol=0)
    assert (coarse - exact).abs().max() > 0.01
    torch.testing.assert_close(reader.prefill(PROMPTS[:1]).logits, coarse, atol=0, rtol=0)
