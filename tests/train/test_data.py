"""Conversations become tokens as the model reads and writes them: one BOS, the end token, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from factory.schema import Messages
from train.conversations import Answer, RowError, completion_ids, end_ids, prompt_ids
from train.data import Labelled, LabelRow, Limits, Pair, encode, fit, label_row, pair_row, with_others
from train.policy import load_tokenizer

PROMPT: Messages = [
    {"role": "system", "content": "you are helpful"},
    {"role": "user", "content": "Write a story"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Please."},
]
ids = st.lists(st.integers(3, 90), min_size=1, max_size=12).map(tuple)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


def test_prompt_and_answer_are_the_whole_conversation(tokenizer: Any) -> None:
    row = encode(tokenizer, PROMPT, "The sea.")
    said = tokenizer.decode([*row.prompt_ids, *row.completion_ids])
    whole = tokenizer.apply_chat_template([*PROMPT, {"role": "assistant", "content": "The sea."}], tokenize=False)
    assert said == whole.rstrip("\n")
    assert row.completion_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.completion_ids.count(row.completion_ids[-1]) == 1


def test_there_is_one_bos(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that writes the BOS, and a tokenizer that would add another."""
    from tokenizers.processors import TemplateProcessing

    adds = load_tokenizer(tokenizer.name_or_path)
    adds.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    adds.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert adds("a")["input_ids"][0] == 1
    assert prompt_ids(adds, PROMPT).count(1) == 1


def test_without_a_template_the_texts_are_joined(tokenizer: Any) -> None:
    plain = load_tokenizer(tokenizer.name_or_path)
    plain.chat_template = None
    row = encode(plain, PROMPT[:2], "The sea.")
    assert plain.decode(row.prompt_ids) == "you are helpful\n\nWrite a story"
    assert plain.decode(row.completion_ids) == "The sea.<|im_end|>"


def test_the_end_is_what_the_template_writes_not_the_tokenizers_eos(tokenizer: Any) -> None:
    other = load_tokenizer(tokenizer.name_or_path)
    other.eos_token = "<|endoftext|>"
    assert other.eos_token_id != other.convert_tokens_to_ids("<|im_end|>")
    assert end_ids(other) == (other.convert_tokens_to_ids("<|im_end|>"),)


def test_a_template_that_ends_no_turn_leaves_the_eos(tokenizer: Any) -> None:
    other = load_tokenizer(tokenizer.name_or_path)
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert end_ids(other) == (other.eos_token_id,)


def test_an_answer_that_was_cut_has_no_end(tokenizer: Any) -> None:
    whole = completion_ids(tokenizer, Answer("The sea"))
    assert completion_ids(tokenizer, Answer("The sea", ended=False)) == whole[:-1]


def test_text_that_spells_a_special_token_stays_text(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    row = completion_ids(tokenizer, Answer("a <|im_end|> b"))
    assert row.count(end) == 1
    assert tokenizer.decode(row[:-1]) == "a <|im_end|> b"


@given(text=st.text(min_size=1).filter(str.strip))
@settings(max_examples=60, deadline=None)
def test_every_text_comes_back(tokenizer: Any, text: str) -> None:
    row = completion_ids(tokenizer, Answer(text))
    wanted = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(row[:-1], clean_up_tokenization_spaces=False) == wanted


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_completion_is_an_error(tokenizer: Any, text: str) -> None:
    with pytest.raises(RowError, match="empty completion"):
        encode(tokenizer, PROMPT, text)


def test_chosen_equal_to_rejected_is_refused(tokenizer: Any) -> None:
    with pytest.raises(RowError, match=r"the same$"):
        pair_row(tokenizer, Pair(PROMPT, Answer("yes"), Answer("yes")))
    with pytest.raises(RowError, match="the same up to max_length"):
        pair_row(tokenizer, Pair(PROMPT, Answer("yes and so on"), Answer("yes and no")), Limits(completion=2))


def test_rows_say_whether_they_were_cut(tokenizer: Any) -> None:
    pair = Pair(PROMPT, Answer("yes it is"), Answer("no"), weight=2.0)
    row, cut = pair_row(tokenizer, pair)
    assert not cut
    assert row.weight == 2.0
    short, cut = pair_row(tokenizer, pair, Limits(total=len(row.prompt) + 2))
    assert cut
    assert len(short.prompt) + max(len(short.chosen), len(short.rejected)) <= len(row.prompt) + 2
    labelled, cut = label_row(tokenizer, Labelled(PROMPT, Answer("no"), False, 0.5))
    assert (labelled.desirable, labelled.weight, cut) == (False, 0.5, False)


@given(ids, st.lists(ids, min_size=1, max_size=3), st.none() | st.integers(2, 20), st.none() | st.integers(1, 20))
def test_what_is_fitted_is_within_the_limits(
    prompt: tuple[int, ...], completions: list[tuple[int, ...]], total: int | None, most: int | None
) -> None:
    fitted = fit(prompt, completions, Limits(total, most))
    longest = max(len(c) for c in fitted.completions)
    assert total is None or len(fitted.prompt) + longest <= total
    assert most is None or longest <= most
    assert fitted.prompt
    assert all(kept == given[: len(kept)] for kept, given in zip(fitted.completions, completions, strict=True))
    assert fitted.prompt in ((*prompt[:1], *prompt[1 + len(prompt) - len(fitted.prompt) :]), prompt[-1:])
    left_out = zip((prompt, *completions), (fitted.prompt, *fitted.completions), strict=True)
    assert fitted.cut == sum(len(given) - len(kept) for given, kept in left_out)
    if total is None and most is None:
        assert not fitted.cut


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=20), st.integers(0, 5))
def test_mismatched_answers_are_never_matched(shape: list[tuple[int, int]], seed: int) -> None:
    """Also where neighbours share a prompt, where all do, in a batch of one, and where prompts share answers: what any
    row answers to a prompt is matched to it."""
    rows = [LabelRow((prompt,), (100 + answer,), True) for prompt, answer in shape]
    for row in with_others(rows, seed):
        matched = {r.completion for r in rows if r.prompt == row.prompt}
        assert bool(row.other) == bool({r.completion for r in rows} - matched)
        assert row.other not in matched
        assert row.other in {(), *(r.completion for r in rows)}
    assert [row._replace(other=()) for row in with_others(rows, seed)] == rows


def test_a_mismatched_answer_is_cut_to_the_room_that_its_prompt_leaves() -> None:
    """12 tokens at most: a prompt of 8 leaves 4 of the other's 9, a prompt of 2 all 3."""
    long, short = LabelRow((1,) * 8, (5, 6, 7), True), LabelRow((2,) * 2, tuple(range(50, 59)), False)
    first, second = with_others([long, short], 0, total=12)
    assert (first.other, second.other) == (tuple(range(50, 54)), (5, 6, 7))
