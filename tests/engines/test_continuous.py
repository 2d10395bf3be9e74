"""Continuous batching: whatever comes and goes beside it, an answer is the one that its prompt and seed give alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from factory.engines.continuous import Continuous, Group, Room, WindowLayer, room_for
from factory.engines.decoding import MIN_SHARED, Decoder, Row
from factory.schema import Sampling

END, PAD = 2, 0
GREEDY = Sampling(temperature=0)
LENGTHS = (31, 17, 16, 16, 9, 5, 2, 1)
PROMPTS = [[(7 * k + 3 * at) % 90 + 5 for at in range(length)] for k, length in enumerate(LENGTHS)]
SMALL = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": PAD}


def tiny_llama(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def sliding_mistral(folder: Path) -> Any:
    """A window of 6, shorter than most prompts and answers."""
    config = MistralConfig(
        **SMALL, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, sliding_window=6,
    )  # fmt: skip
    return MistralForCausalLM(config)


def gpt2(folder: Path) -> Any:
    """Positions are learned, so that a wrong one shows."""
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=32, n_head=4, n_layer=2, n_positions=96))


@pytest.fixture(scope="module", params=[tiny_llama, sliding_mistral, gpt2], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    torch.manual_seed(0)
    return request.param(tiny_model).eval()


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Any:
    return tiny_llama(tiny_model).eval()


def decoder(model: Any, ends: tuple[int, ...] = (END,)) -> Decoder:
    return Decoder(model, ends, PAD)


def limit(place: int) -> int:
    """Answers of very different length: 1, 10, 19, 28, 4, ..."""
    return 1 + 9 * place % 33


def flow(maker: Decoder, rows: list[Row], room: Room, sampling: Sampling, at_once: int = 3) -> list[Row]:
    """The rows by their prompts' place in PROMPTS, read `at_once` prompts at a time; in the order they finish."""
    wanted = {row: row.prompt for row in rows}

    def groups() -> Iterator[Group]:
        for first in range(0, len(PROMPTS), at_once):
            part = [row for row in rows if first <= wanted[row] < first + at_once]
            for row in part:
                row.prompt -= first
            yield Group(maker.prefill(PROMPTS[first : first + at_once]), part)

    done = [row for burst in Continuous(maker, room, sampling).decode(groups()) for row in burst]
    assert set(done) == set(rows)
    assert len(done) == len(rows)
    return done


def room(slots: int, spare: int = 1) -> Room:
    """So few columns that rows are moved left at nearly every step."""
    return Room(slots, max(LENGTHS) + 33 + spare, 33)


def generated(model: Any, prompt: list[int], count: int) -> list[int]:
    """transformers' own greedy answer."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=PAD
    )
    new: list[int] = out[0, len(prompt) :].tolist()
    return new


# ----------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("slots", [1, 3, 20])
def test_greedy_answers_are_those_of_generate(model: Any, slots: int) -> None:
    rows = [Row(place, limit(place), 0) for place in range(len(PROMPTS))]
    flow(decoder(model), rows, room(slots), GREEDY)
    expected = [generated(model, prompt, limit(place)) for place, prompt in enumerate(PROMPTS)]
    assert [row.ids for row in rows] == expected


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.8)])
def test_sampled_answers_are_those_of_each_prompt_alone(model: Any, sampling: Sampling) -> None:
    """A fifth of the vocabulary ends an answer, so that rows come and go at every step."""
    maker = decoder(model, ends=tuple(range(0, 128, 5)))
    rows = [Row(place, limit(place), 100 * place + k) for place in range(len(PROMPTS)) for k in range(5)]
    flow(maker, rows, room(4), sampling)
    for place, prompt in enumerate(PROMPTS):
        alone = [Row(0, limit(place), 100 * place + k) for k in range(5)]
        list(maker.decode(maker.prefill([prompt]), alone, sampling))
        mine = rows[5 * place : 5 * place + 5]
        assert [(row.ids, row.finish_reason) for row in mine] == [(row.ids, row.finish_reason) for row in alone]
        assert [row.logprob for row in mine] == pytest.approx([row.logprob for row in alone], abs=1e-4)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_mix_of_limits_samples_and_room(llama: Any, data: st.DataObject) -> None:
    """The sum of log-probabilities is that of one plain forward pass, so that every token saw what it had to."""
    limits = data.draw(st.lists(st.lists(st.integers(1, 33), max_size=4), min_size=len(PROMPTS), max_size=len(PROMPTS)))
    rows = [Row(place, count, place) for place, some in enumerate(limits) for count in some]
    places = [row.prompt for row in rows]
    size = room(data.draw(st.integers(1, 9)), spare=data.draw(st.integers(1, 9)))
    flow(decoder(llama, ends=()), rows, size, Sampling(), at_once=data.draw(st.integers(1, 9)))
    for row, place in zip(rows, places, strict=True):
        assert len(row.ids) == row.limit
        with torch.inference_mode():
            logprobs = llama(torch.tensor([PROMPTS[place] + row.ids])).logits[0].log_softmax(-1)
        start = len(PROMPTS[place]) - 1
        expected = sum(float(logprobs[start + at, token]) for at, token in enumerate(row.ids))
        assert row.logprob == pytest.approx(expected, abs=1e-3)


def test_a_prefix_that_all_share_is_read_once_for_all_groups(llama: Any) -> None:
    prompts = [[*range(40, 40 + MIN_SHARED), 100 + k, *range(60, 70 - k)] for k in range(8)]
    maker = decoder(llama)
    prefix = maker.common(prompts)
    assert prefix.length == MIN_SHARED
    rows = [Row(0, 12, k) for k in range(8)]
    groups = (Group(maker.prefill([prompt], prefix=prefix), [row]) for prompt, row in zip(prompts, rows, strict=True))
    list(Continuous(maker, Room(3, 50, 12), GREEDY).decode(groups))
    assert [row.ids for row in rows] == [generated(llama, prompt, 12) for prompt in prompts]


# ------------------------------------------------------------------------------------------------------------- places


def test_rows_are_moved_left_when_the_columns_are_used_up(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    plain = WindowLayer.shift

    def shift(layer: WindowLayer, by: int) -> None:
        moved.append(by)
        plain(layer, by)

    monkeypatch.setattr(WindowLayer, "shift", shift)
    rows = [Row(place, limit(place), 0) for place in range(len(PROMPTS))]
    flow(decoder(llama, ends=()), rows, room(2), GREEDY)
    assert moved
    assert min(moved) > 0


def test_a_place_is_taken_in_the_step_in_which_it_comes_free(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots and answers of 1 to 9 tokens: both are taken at every step but the last few, when nothing waits."""
    rows = [Row(0, 1 + k, k) for k in range(9)]
    maker = decoder(llama, ends=())
    start = maker.prefill([[5, 6, 7]])
    steps: list[int] = []

    def forward(ids: Tensor, *rest: Any) -> Tensor:
        steps.append(len(ids))
        return Decoder.forward(maker, ids, *rest)

    monkeypatch.setattr(maker, "forward", forward)
    list(Continuous(maker, Room(2, 40, 9), GREEDY).decode(iter([Group(start, rows)])))
    assert sum(steps) == sum(row.limit - 1 for row in rows)
    assert steps == [2] * steps.count(2) + [1] * steps.count(1)
    assert steps.count(1) == 4


def test_a_group_is_asked_for_only_when_a_place_is_free_and_a_burst_only_when_it_is_wanted(llama: Any) -> None:
    maker = decoder(llama, ends=())
    asked: list[int] = []

    def groups() -> Iterator[Group]:
        for number in range(3):
            asked.append(number)
            yield Group(maker.prefill([[5, 6, 7]]), [Row(0, 4 + k, k) for k in range(2)])

    bursts = Continuous(maker, Room(2, 40, 9), GREEDY).decode(groups())
    assert asked == []
    assert [len(row.ids) for row in next(bursts)] == [4]
    assert asked == [0]
    assert [len(row.ids) for row in next(bursts)] == [5]
    assert asked == [0, 1]
    bursts.close()
    assert asked == [0, 1]


def test_many_samples_of_a_prompt_wait_for_places_and_it_is_read_once(llama: Any) -> None:
    maker = decoder(llama, ends=())
    rows = [Row(0, 5, k) for k in range(11)]
    bursts = list(Continuous(maker, Room(3, 20, 5), Sampling()).decode(iter([Group(maker.prefill([[5, 6]]), rows)])))
    assert [row for burst in bursts for row in burst] == rows
    assert len({tuple(row.ids) for row in rows}) > 1


def test_answers_of_one_token_take_no_place(llama: Any) -> None:
    maker = decoder(llama, ends=())
    rows = [Row(0, 1, k) for k in range(7)]
    bursts = list(Continuous(maker, Room(3, 20, 5), Sampling()).decode(iter([Group(maker.prefill([[5, 6]]), rows)])))
    assert [len(burst) for burst in bursts] == [3, 3, 1]


def test_nothing_to_do(llama: Any) -> None:
    assert list(Continuous(decoder(llama), Room(3, 20, 5), GREEDY).decode(iter([]))) == []


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 300), st.integers(1, 40000))
def test_a_room_holds_the_longest_answer_to_the_widest_prompt(widest: int, answer: int, rows: int, tokens: int) -> None:
    size = room_for(widest, answer, rows, tokens)
    assert size.columns > widest + answer
    assert 1 <= size.slots <= rows
    assert size.slots == 1 or size.slots * size.columns <= tokens
