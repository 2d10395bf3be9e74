"""The embedded engine on the tiny model: batches, seeds, failures alone, wanted answers, adapters, resume."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

from factory.engines.continuous import Continuous, Room
from factory.engines.decoding import Decoder, Row
from factory.engines.transformers import TransformersEngine, default_dtype, default_threads, end_tokens, fastest
from factory.faults import FactoryError
from factory.schema import Completion, Request, Sampling, seed_of

SHORT = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> TransformersEngine:
    return make(tiny_model)


def make(model: Path, **options: Any) -> TransformersEngine:
    return TransformersEngine(
        str(model), **{"device": "cpu", "dtype": "float32", "threads": 1, "batch_size": 5} | options
    )


def ask(text: str, **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], **{"sampling": SHORT} | more)


def by_place(completions: Iterable[Completion]) -> dict[tuple[str, int], Completion]:
    return {(c.request.messages[-1]["content"], c.sample): c for c in completions}


def texts(completions: Iterable[Completion]) -> dict[tuple[str, int], str]:
    return {place: completion.text for place, completion in by_place(completions).items()}


REQUESTS = [ask("river " * (k % 4) + f"number {k}", n=1 + k % 3, seed=k) for k in range(8)]


def test_every_sample_is_answered_once_with_its_counts(engine: TransformersEngine) -> None:
    completions = list(engine.generate(REQUESTS))
    assert len(completions) == len(by_place(completions)) == sum(request.n for request in REQUESTS)
    for completion in completions:
        rendered = engine.tokenizer(engine.render(completion.request), add_special_tokens=False)["input_ids"]
        assert completion.prompt_tokens == len(rendered)
        assert 1 <= completion.completion_tokens <= 6
        assert completion.completion_tokens == 6 or completion.finish_reason == "stop"
        assert completion.logprob is not None
        assert completion.logprob < 0


def test_the_prompt_is_the_chat_template_with_one_begin_and_the_prefix(engine: TransformersEngine) -> None:
    rendered = engine.render(ask("bread", prefix="The better answer is"))
    assert rendered == "<|im_start|>user\nbread<|im_end|>\n<|im_start|>assistant\nThe better answer is"


def test_answers_do_not_depend_on_batches(tiny_model: Path, engine: TransformersEngine) -> None:
    reference = texts(engine.generate(REQUESTS))
    for options in ({"batch_size": 64}, {"batch_size": 1}, {"batch_tokens": 40}):
        for fixed in (True, False):
            assert texts(make(tiny_model, **options, fixed_batches=fixed).generate(REQUESTS)) == reference


def test_a_sample_has_its_own_seed(engine: TransformersEngine) -> None:
    four = by_place(engine.generate([ask("music", n=4, seed=3)]))
    assert len({completion.text for completion in four.values()}) > 1
    two = by_place(engine.generate([ask("music", n=2, seed=3)]))
    assert all(four[place].text == completion.text for place, completion in two.items())
    assert texts(engine.generate([ask("music", n=4, seed=4)])) != {place: c.text for place, c in four.items()}


def test_what_is_held_is_not_asked_again(tiny_model: Path) -> None:
    loose = make(tiny_model, fixed_batches=False)
    held = {("number 0", 0), ("river number 1", 1)}
    left = by_place(loose.generate(REQUESTS, lambda r, sample: (r.messages[-1]["content"], sample) in held))
    assert set(left) == set(by_place(loose.generate(REQUESTS))) - held


def test_a_fixed_batch_is_answered_whole_or_not_at_all(engine: TransformersEngine) -> None:
    whole = by_place(engine.generate(REQUESTS))
    half = set(sorted(whole)[: len(whole) // 2])
    again = by_place(engine.generate(REQUESTS, lambda r, sample: (r.messages[-1]["content"], sample) in half))
    assert set(whole) - half <= set(again)
    for place, completion in again.items():
        assert (completion.text, completion.logprob) == (whole[place].text, whole[place].logprob)
    assert list(engine.generate(REQUESTS, lambda request, sample: True)) == []


@pytest.mark.parametrize("fixed", [True, False])
def test_a_poison_row_fails_alone(tiny_model: Path, fixed: bool) -> None:
    engine = make(tiny_model, fixed_batches=fixed)
    poison = ask("stone " * 2000, n=2)
    schema = ask("glass", json_schema={"type": "object"})
    bad = ask("salt", sampling=Sampling(top_p=0.0))
    answered = by_place(engine.generate([ask("music"), poison, schema, bad, ask("tea")]))
    kinds = {place: c.failure.kind for place, c in answered.items() if c.failure is not None}
    assert sorted(kinds.values()) == ["bad_request", "too_long", "too_long", "unsupported"]
    assert not any(c.failure.passing for c in answered.values() if c.failure is not None)
    assert answered["music", 0].text
    assert answered["tea", 0].text


def test_a_request_without_messages_fails(engine: TransformersEngine) -> None:
    (completion,) = engine.generate([Request([])])
    assert completion.failure is not None
    assert completion.failure.kind == "bad_request"


def test_a_conversation_that_the_template_refuses_fails_alone(tiny_model: Path, tmp_path: Path) -> None:
    strict = copy_of(tiny_model, tmp_path)
    template = (strict / "chat_template.jinja").read_text()
    guard = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    (strict / "chat_template.jinja").write_text(guard + template)
    refused = Request([{"role": "system", "content": "be brief"}, {"role": "user", "content": "tea"}], SHORT)
    answered = by_place(make(strict).generate([ask("music"), refused]))
    failure = answered["tea", 0].failure
    assert failure is not None
    assert (failure.kind, failure.passing) == ("template", False)
    assert "no system turn" in failure.detail
    assert answered["music", 0].failure is None
    assert make(strict).render(refused) == json.dumps(refused.messages, sort_keys=True)


def copy_of(model: Path, folder: Path) -> Path:
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


# ------------------------------------------------------------------------------------------------ continuous batching

MIXED = [
    ask(
        "bread " * (9 * k % 40) + f"number {k}",
        n=1 + 2 * (k % 4 == 0),
        seed=k,
        sampling=Sampling(max_tokens=1 + 11 * k % 29, stop=("a",) if k % 3 == 0 else ()),
        answers=("A", "B") if k % 5 == 0 else (),
    )
    for k in range(20)
]
"""Prompts and limits of all lengths, some with stop strings, some with wanted answers, some of one token."""


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_tokens": 300, "prefill_tokens": 150}])
def test_continuous_answers_are_those_of_fixed_batches(tiny_model: Path, options: dict[str, int]) -> None:
    fixed = by_place(make(tiny_model, **options).generate(MIXED))
    loose = by_place(make(tiny_model, **options, fixed_batches=False).generate(MIXED))
    assert set(loose) == set(fixed)
    for place, completion in loose.items():
        other = fixed[place]
        assert (completion.text, completion.finish_reason) == (other.text, other.finish_reason)
        assert completion.completion_tokens == other.completion_tokens
        assert completion.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert completion.answer_logprobs == pytest.approx(other.answer_logprobs, abs=1e-4)
    assert {c.completion_tokens == 1 for c in loose.values()} == {True, False}
    assert {c.finish_reason for c in loose.values()} == {"stop", "length"}


def test_a_few_long_prompts_do_not_keep_places_from_the_others(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three prompts of 270 tokens and 40 of about 20 in a cache of 1000 places: three rows at a time, then many."""
    rooms: list[tuple[int, int]] = []

    class Seen(Continuous):
        def __init__(self, decoder: Decoder, room: Room, *more: Any) -> None:
            rooms.append((room.slots, room.columns))
            super().__init__(decoder, room, *more)

    monkeypatch.setattr("factory.engines.transformers.Continuous", Seen)
    loose = make(tiny_model, batch_tokens=1000, batch_size=64, fixed_batches=False)
    requests = [ask("sea " * (250 if k % 15 == 0 else 1) + str(k), seed=k) for k in range(43)]
    assert texts(loose.generate(requests)) == texts(make(tiny_model).generate(requests))
    assert len(rooms) == 2
    assert rooms[0][0] < 4
    assert rooms[1][0] > 10
    assert all(slots * columns <= 1000 for slots, columns in rooms)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_prompt_that_nearly_fills_the_context_gets_what_is_left(tiny_model: Path, fixed: bool) -> None:
    """1023, 1022 and 1021 tokens of 1024, so that 1, 2 and 3 are left."""
    engine = make(tiny_model, fixed_batches=fixed, batch_tokens=1500, prefill_tokens=1000)
    engine.decoder.ends = frozenset()
    frame = len(engine.tokenizer(engine.render(ask("")), add_special_tokens=False)["input_ids"])
    requests = [ask(" sea" * (1023 - frame - k)) for k in range(3)] + [ask("tea")]
    completions = by_place(engine.generate(requests))
    assert [completions[r.messages[0]["content"], 0].prompt_tokens for r in requests[:3]] == [1023, 1022, 1021]
    assert [completions[r.messages[0]["content"], 0].completion_tokens for r in requests] == [1, 2, 3, 6]


def test_each_of_two_rubrics_is_shared_where_all_share_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = make(tiny_model, fixed_batches=False)
    shared: list[int] = []
    common = loose.decoder.common

    def counting(prompts: list[tuple[int, ...]]) -> Any:
        prefix = common(prompts)
        shared.append(prefix.length)
        return prefix

    monkeypatch.setattr(loose.decoder, "common", counting)
    rubrics = ("x" + " sea" * 60, "y" + " sea" * 30)
    loose.decoder.prefill_tokens = 400
    requests = [ask(f"{rubric} {k} {k}") for rubric in rubrics for k in range(5)]
    assert texts(loose.generate(requests)) == texts(make(tiny_model).generate(requests))
    assert shared[0] == 0
    assert max(shared) > 30


def test_answers_are_given_as_they_end_and_no_more_is_done_than_is_asked_for(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two places, so that the third prompt is begun when the first answer has ended and was taken."""
    loose = make(tiny_model, batch_size=2, prefill_tokens=1, fixed_batches=False)
    loose.decoder.ends = frozenset()
    read: list[int] = []
    prefill = loose.decoder.prefill

    def counting(prompts: list[tuple[int, ...]], **options: Any) -> Any:
        read.append(len(prompts))
        return prefill(prompts, **options)

    monkeypatch.setattr(loose.decoder, "prefill", counting)
    requests = [ask("sea " * (5 - k), sampling=Sampling(max_tokens=4 + k)) for k in range(4)]
    bursts = loose.bursts(requests)
    assert [c.completion_tokens for c in next(bursts)] == [4]
    assert read == [1, 1]
    assert [c.completion_tokens for c in next(bursts)] == [5]
    assert read == [1, 1, 1]
    assert sorted(c.completion_tokens for burst in bursts for c in burst) == [6, 7]
    assert read == [1, 1, 1, 1]


def test_a_model_that_keeps_a_state_is_answered_in_batches_and_says_so(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LFM2's convolutions keep their last inputs, which are no positions of a cache."""
    vocabulary = len(AutoTokenizer.from_pretrained(copy_of(tiny_model, tmp_path)))
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False,
        eos_token_id=2, pad_token_id=0, max_position_embeddings=512,
    )  # fmt: skip
    Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    fixed, loose = make(tmp_path), make(tmp_path, fixed_batches=False)
    assert "batch by batch" in caplog.text
    assert loose.cut(REQUESTS) is None
    assert texts(loose.generate(REQUESTS)) == texts(fixed.generate(REQUESTS))


# ---------------------------------------------------------------------------------------------------- wanted answers


@pytest.mark.parametrize("max_tokens", [1, 4])
def test_answer_logprobs_are_those_of_the_full_softmax(engine: TransformersEngine, max_tokens: int) -> None:
    """The probability that the next token is A, or A after a space, from one plain forward pass."""
    request = ask(
        "Answer A or B.", sampling=Sampling(max_tokens=max_tokens), answers=("A", "B"), prefix="The better answer is"
    )
    (completion,) = engine.generate([request])
    ids = engine.tokenizer(engine.render(request), add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logprobs = engine.decoder.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    vocabulary = engine.tokenizer.get_vocab()
    assert completion.answer_logprobs is not None
    for answer, logprob in completion.answer_logprobs.items():
        variants = [vocabulary[token] for token in (answer, "Ġ" + answer) if token in vocabulary]
        assert len(variants) == 2
        assert logprob == pytest.approx(float(logprobs[variants].logsumexp(0)), abs=1e-5)


def test_wanted_answers_of_many_prompts_and_samples_keep_their_places(engine: TransformersEngine) -> None:
    sampling = Sampling(max_tokens=1)
    requests = [ask(f"{'glass ' * k}?", sampling=sampling, answers=("1", "2"), n=2) for k in range(7)]
    together = by_place(engine.generate(requests))
    for request in requests:
        (alone, again) = engine.generate([request])
        assert alone.answer_logprobs is not None
        for completion in (
            together[request.messages[0]["content"], 0],
            together[request.messages[0]["content"], 1],
            again,
        ):
            assert completion.answer_logprobs == pytest.approx(alone.answer_logprobs, abs=1e-4)


def test_answers_that_begin_alike_fail(engine: TransformersEngine) -> None:
    (completion,) = engine.generate([ask("rate", answers=("1", "10"))])
    assert completion.failure is not None
    assert completion.failure.kind == "ambiguous_answers"


# ------------------------------------------------------------------------------------------------------------ stops


def test_a_stop_string_ends_and_is_cut_off(engine: TransformersEngine) -> None:
    free = by_place(engine.generate([ask("sea", sampling=Sampling(max_tokens=40), n=8)]))
    place, whole = next((place, c.text) for place, c in free.items() if len(c.text) > 12)
    stop = whole[6:8]
    stopped = by_place(engine.generate([ask("sea", sampling=Sampling(max_tokens=40, stop=(stop,)), n=8)]))
    assert stopped[place].finish_reason == "stop"
    assert stopped[place].completion_tokens < free[place].completion_tokens
    assert {p: c.text for p, c in stopped.items()} == {p: c.text.partition(stop)[0] for p, c in free.items()}


def test_the_chat_templates_end_token_ends_an_answer(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.generation_config.eos_token_id = [7]
    tokenizer.eos_token = "<|endoftext|>"
    assert end_tokens(model, tokenizer) == [0, 2, 7]


# ---------------------------------------------------------------------------------------------------------- loading


def adapter_of(base: Path, folder: Path) -> Path:
    """A LoRA adapter with random weights in both of its matrices."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged_and_is_another_model(
    engine: TransformersEngine, tiny_model: Path, tmp_path: Path
) -> None:
    adapted = make(adapter_of(tiny_model, tmp_path / "adapter"))
    assert adapted.identity.content != engine.identity.content
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        base, merged = engine.decoder.model(ids).logits, adapted.decoder.model(ids).logits
    assert (base - merged).abs().max() > 1e-3
    assert texts(adapted.generate(REQUESTS)) != texts(engine.generate(REQUESTS))


def test_an_adapters_base_is_loaded_once_and_left_as_it_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of(tiny_model, tmp_path / "adapter")
    before = (tiny_model / "model.safetensors").read_bytes()
    loaded: list[Path] = []
    load = AutoModelForCausalLM.from_pretrained

    def counting(folder: Path, **options: Any) -> Any:
        loaded.append(Path(folder))
        return load(folder, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counting)
    engine = make(adapter)
    assert loaded == [tiny_model]
    assert not any("lora" in name for name, _ in engine.decoder.model.named_modules())
    assert (tiny_model / "model.safetensors").read_bytes() == before


def test_the_identity_holds_the_dtype(tiny_model: Path, engine: TransformersEngine) -> None:
    assert make(tiny_model, dtype="bfloat16").identity.content != engine.identity.content
    assert engine.identity.kind == "transformers"
    assert engine.identity.model == str(tiny_model)


def test_bfloat16_gives_answers_near_those_of_float32(tiny_model: Path, engine: TransformersEngine) -> None:
    request = ask("Rate it 1 2 3.", sampling=Sampling(max_tokens=1), answers=("1", "2", "3"))
    (half,) = make(tiny_model, dtype="bfloat16").generate([request])
    (full,) = engine.generate([request])
    assert half.answer_logprobs == pytest.approx(full.answer_logprobs, abs=0.05)


def test_a_model_without_a_chat_template_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (copy_of(tiny_model, tmp_path) / "chat_template.jinja").unlink()
    with pytest.raises(FactoryError, match="no chat template"):
        make(tmp_path)


def test_a_wrong_dtype_is_refused(tiny_model: Path) -> None:
    with pytest.raises(FactoryError, match="no dtype named 'int3'"):
        make(tiny_model, dtype="int3")


def test_defaults_are_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_dtype("cpu") == default_dtype("cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: [1.0], 2: [0.6], 4: [0.5]}, 4),
        ({1: [1.0], 2: [0.55], 4: [0.5]}, 2),  # four gain less than a tenth over two
        ({1: [1.0], 2: [0.95]}, 1),
        ({1: [1.0], 2: [0.5, 0.5, 0.5, 9.0]}, 1),  # twice as fast but for a long wait now and then
        ({1: [9.0, 1.0, 1.0], 2: [3.0]}, 2),
        ({1: [9.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2: [2.4]}, 1),  # one thread had to wait once, and is not given up for it
    ],
)
def test_the_fastest_number_of_threads_is_that_of_all_rounds(seconds: dict[int, list[float]], best: int) -> None:
    rounds = {count: cycle(times) for count, times in seconds.items()}
    assert fastest(list(seconds), lambda count: next(rounds[count])) == best


def test_a_number_of_threads_that_is_much_slower_is_given_up_at_once() -> None:
    asked: list[int] = []

    def seconds(count: int) -> float:
        asked.append(count)
        return {1: 1.0, 8: 5.0}[count]

    assert fastest([1, 8], seconds) == 1
    assert asked.count(8) == 1


def test_measuring_leaves_the_number_of_threads_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert default_threads() in (1, 2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_the_seed_of_a_sample_is_of_seed_sample_and_rendered_text(engine: TransformersEngine) -> None:
    """The same stream is used whichever way a request is put: the decoder is seeded with `seed_of` of these three."""
    request = ask("moon", seed=9)
    (completion,) = engine.generate([request])
    ids = engine.tokenizer(engine.render(request), add_special_tokens=False)["input_ids"]
    row = Row(0, 6, seed_of(9, 0, engine.render(request)))
    list(engine.decoder.decode(engine.decoder.prefill([ids]), [row], SHORT))
    assert len(row.ids) == completion.completion_tokens
    assert row.logprob == pytest.approx(completion.logprob)
