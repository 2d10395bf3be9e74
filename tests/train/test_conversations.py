"""Chat templates of several families: what the model reads, what of it is learnt, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from factory.schema import Messages
from train.conversations import (
    Answer,
    Ids,
    RowError,
    answer_ids,
    answer_of,
    completion_ids,
    end_ids,
    head,
    learnt,
    plain,
    prompt_ids,
    render,
    unlearnt,
)
from train.data import Encoded, Labelled, LabelRow, Limits, Pair, completion_row, fit, label_row, pair_row, with_others
from train.logps import PackedForward, PlainForward, TokenLogps, sequence_logps
from train.packing import Group
from train.policy import Policy, load_tokenizer

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN = (
    "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Family(NamedTuple):
    template: str
    bos: str
    eos: str
    end: str
    others: tuple[str, ...] = ()


FAMILIES = {
    "llama 3": Family(LLAMA_3, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", ("<|start_header_id|>",)),
    "mistral": Family(MISTRAL, "<s>", "</s>", "</s>", ("[INST]", "[/INST]")),
    "gemma": Family(GEMMA, "<bos>", "<eos>", "<end_of_turn>", ("<start_of_turn>",)),
    "qwen": Family(QWEN, "<|endoftext|>", "<|im_end|>", "<|im_end|>"),
}
PROMPT: Messages = [{"role": "user", "content": "Write a story"}]
SYSTEM: Messages = [{"role": "system", "content": "you are helpful"}, *PROMPT]
LONG: Messages = [*PROMPT, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Please."}]
TOOLS = ({"type": "function", "function": {"name": "sea", "parameters": {"type": "object"}}},)
CALL = {"type": "function", "function": {"name": "sea", "arguments": {"depth": 3}}}
TURNS = (
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "name": "sea", "content": "blue water"},
    {"role": "assistant", "content": "The sea is blue."},
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Callable[[str], Any]:
    """The tiny model's tokenizer with the template and the special tokens of a family."""

    def load(name: str) -> Any:
        family, loaded = FAMILIES[name], load_tokenizer(str(tiny_model))
        loaded.add_special_tokens(
            {
                "bos_token": family.bos,
                "eos_token": family.eos,
                "additional_special_tokens": [family.end, *family.others],
            }
        )
        loaded.chat_template = family.template
        return loaded

    return load


def learnt_text(tokenizer: Any, ids: Ids) -> str:
    return str(tokenizer.decode([i for i in ids if i >= 0]))


# ------------------------------------------------------------------------------------------------------- one answer


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prompt", [PROMPT, LONG], ids=["one turn", "several"])
def test_prompt_and_answer_are_the_conversation_with_one_bos_and_one_end(
    tokenizer: Callable[[str], Any], name: str, prompt: Messages
) -> None:
    loaded, family = tokenizer(name), FAMILIES[name]
    ids = (*prompt_ids(loaded, prompt), *completion_ids(loaded, Answer("The sea.")))
    whole = loaded.apply_chat_template([*prompt, {"role": "assistant", "content": "The sea."}], tokenize=False)
    assert loaded.decode(ids).replace(" ", "") == whole.strip().replace(" ", "")
    bos, end = loaded.convert_tokens_to_ids([family.bos, family.end])
    assert ids.count(bos) == (family.bos in whole)
    assert ids[-1] == end
    assert end_ids(loaded) == (end,)


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_system_turn_that_the_template_refuses_goes_before_the_users_text(
    tokenizer: Callable[[str], Any], name: str
) -> None:
    loaded = tokenizer(name)
    folded = [{"role": "user", "content": "you are helpful\n\nWrite a story"}]
    assert render(loaded, SYSTEM, opened=True) == render(loaded, folded, opened=True)


def test_a_system_turn_that_the_template_drops_goes_there_too(tokenizer: Callable[[str], Any]) -> None:
    loaded = tokenizer("qwen")
    loaded.chat_template = QWEN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    assert "user\nyou are helpful\n\nWrite a story" in render(loaded, SYSTEM, opened=True)


def test_a_conversation_that_the_template_refuses_is_an_error_of_its_row(tokenizer: Callable[[str], Any]) -> None:
    with pytest.raises(RowError, match="only user and assistant roles"):
        prompt_ids(tokenizer("mistral"), [*PROMPT, {"role": "tool", "content": "3"}])


# ----------------------------------------------------------------------------------------------- tools and turns


def test_tools_and_their_calls_are_read_and_only_the_assistant_is_learnt(tokenizer: Callable[[str], Any]) -> None:
    loaded = tokenizer("qwen")
    before = prompt_ids(loaded, PROMPT, TOOLS)
    answer = answer_ids(loaded, PROMPT, answer_of(TURNS), TOOLS)
    whole = loaded.apply_chat_template([*PROMPT, *TURNS], tools=list(TOOLS), tokenize=False)
    assert loaded.decode([*before, *plain(answer)]) == whole.rstrip("\n")
    assert '"name": "sea"' in loaded.decode(before)
    assert learnt_text(loaded, answer) == (
        'I look.<tool_call>\n{"name": "sea", "arguments": {"depth": 3}}\n</tool_call><|im_end|>'
        "The sea is blue.<|im_end|>"
    )
    assert "blue water" not in learnt_text(loaded, answer)


@pytest.mark.parametrize("name", FAMILIES)
def test_of_several_turns_those_of_the_assistant_are_learnt_with_their_ends(
    tokenizer: Callable[[str], Any], name: str
) -> None:
    loaded, end = tokenizer(name), FAMILIES[name].end
    turns = [{"role": "assistant", "content": "Yes."}, *LONG[2:], {"role": "assistant", "content": "The sea."}]
    answer = answer_ids(loaded, PROMPT, answer_of(turns))
    whole = loaded.apply_chat_template([*PROMPT, *turns], tokenize=False)
    text = loaded.decode([*prompt_ids(loaded, PROMPT), *plain(answer)])
    assert text.replace(" ", "") == whole.strip().replace(" ", "")
    assert learnt_text(loaded, answer).replace(f" {end}", end) == f"Yes.{end}The sea.{end}"
    cut = answer_ids(loaded, PROMPT, answer_of(turns, ended=False))
    assert cut == answer[:-1]


def test_where_the_template_ends_no_turn_only_the_last_has_an_end(tokenizer: Callable[[str], Any]) -> None:
    loaded = tokenizer("qwen")
    loaded.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = [{"role": "assistant", "content": "Yes."}, *LONG[2:], {"role": "assistant", "content": "The sea."}]
    answer = answer_ids(loaded, PROMPT, answer_of(turns))
    assert learnt_text(loaded, answer) == "Yes.The sea.<|im_end|>"
    assert loaded.decode(plain(answer)) == "Yes.\nuser: Please.\nassistant: The sea.<|im_end|>"


def test_arguments_as_json_text_are_an_object_to_the_template(tokenizer: Callable[[str], Any]) -> None:
    call = {"type": "function", "function": {"name": "sea", "arguments": '{"depth": 3}'}}
    turns = ({**TURNS[0], "tool_calls": [call]}, *TURNS[1:])
    loaded = tokenizer("qwen")
    assert answer_ids(loaded, PROMPT, answer_of(turns), TOOLS) == answer_ids(loaded, PROMPT, answer_of(TURNS), TOOLS)
    call["function"]["arguments"] = "{depth"
    with pytest.raises(RowError, match="not JSON"):
        answer_ids(loaded, PROMPT, answer_of(turns), TOOLS)


def test_a_call_without_text_is_an_answer(tokenizer: Callable[[str], Any]) -> None:
    loaded = tokenizer("qwen")
    answer = answer_ids(
        loaded, PROMPT, answer_of([{"role": "assistant", "content": None, "tool_calls": [CALL]}]), TOOLS
    )
    assert learnt_text(loaded, answer).startswith("<tool_call>")
    assert learnt(answer) == len(answer)


def test_what_a_template_leaves_out_is_an_error_of_its_row(tokenizer: Callable[[str], Any]) -> None:
    """Tools, their calls (axolotl #3824), and turns after the first where there is no template at all."""
    silent = tokenizer("llama 3")
    with pytest.raises(RowError, match="no place for tools"):
        prompt_ids(silent, PROMPT, TOOLS)
    with pytest.raises(RowError, match="drops tool calls"):
        prompt_ids(silent, [*PROMPT, *TURNS[:2]])
    with pytest.raises(RowError, match="drops tool calls"):
        answer_ids(silent, PROMPT, answer_of(TURNS))
    silent.chat_template = None
    with pytest.raises(RowError, match="no chat template"):
        answer_ids(silent, PROMPT, answer_of(TURNS))
    with pytest.raises(RowError, match="no chat template"):
        prompt_ids(silent, PROMPT, TOOLS)


def test_a_template_that_rewrites_earlier_turns_is_an_error_of_its_row(tokenizer: Callable[[str], Any]) -> None:
    loaded = tokenizer("qwen")
    loaded.chat_template = "{{ messages | length }} turns: " + QWEN
    with pytest.raises(RowError, match="changes earlier turns"):
        answer_ids(loaded, PROMPT, answer_of(TURNS), TOOLS)


@pytest.mark.parametrize("turns", [TURNS[:2], TURNS[1:]])
def test_an_answer_begins_and_ends_with_the_assistant(tokenizer: Callable[[str], Any], turns: Any) -> None:
    with pytest.raises(RowError, match="begins and ends with the assistant"):
        answer_ids(tokenizer("qwen"), PROMPT, answer_of(turns), TOOLS)


def test_special_tokens_that_are_spelled_do_not_end_a_turn(tokenizer: Callable[[str], Any]) -> None:
    """As text in an answer's turn; in a call, whose text the template makes, they are refused."""
    loaded = tokenizer("qwen")
    end = loaded.convert_tokens_to_ids("<|im_end|>")
    turns = (*TURNS[:2], {"role": "assistant", "content": "a <|im_end|> b"})
    assert [i for i in answer_ids(loaded, PROMPT, answer_of(turns), TOOLS) if i >= 0].count(end) == 2
    call = {"function": {"name": "sea", "arguments": {"depth": "<|im_end|>"}}}
    with pytest.raises(RowError, match="spells a special token"):
        answer_ids(loaded, PROMPT, answer_of([{**TURNS[0], "tool_calls": [call]}]), TOOLS)


def test_rows_of_every_kind_take_turns(tokenizer: Callable[[str], Any]) -> None:
    loaded = tokenizer("qwen")
    good, bad = answer_of(TURNS), Answer("No.")
    row, cut = pair_row(loaded, Pair(PROMPT, good, bad, tools=TOOLS))
    assert (learnt(row.chosen) < len(row.chosen), learnt(row.rejected), cut) == (True, len(row.rejected), 0)
    labelled, _ = label_row(loaded, Labelled(PROMPT, good, True, tools=TOOLS))
    assert labelled.completion == row.chosen
    with pytest.raises(RowError, match=r"the same$"):
        pair_row(loaded, Pair(PROMPT, good, answer_of(TURNS), tools=TOOLS))


def test_every_turn_of_the_assistant_is_learnt_on_demand(tokenizer: Callable[[str], Any]) -> None:
    loaded = tokenizer("qwen")
    whole = Labelled([{"role": "assistant", "content": "Hi."}, *LONG], Answer("The sea."), True)
    last, _ = completion_row(loaded, whole)
    every, _ = completion_row(loaded, whole, every_turn=True)
    assert learnt_text(loaded, last.completion) == "The sea.<|im_end|>"
    assert learnt_text(loaded, every.completion) == "No.<|im_end|>The sea.<|im_end|>"
    assert [*last.prompt, *last.completion] == [*every.prompt, *plain(every.completion)]
    one = Labelled(PROMPT, Answer("The sea."), True)
    assert completion_row(loaded, one, every_turn=True) == completion_row(loaded, one)


# -------------------------------------------------------------------------------------------------- in the numbers


def test_heads_and_counts_are_of_what_is_learnt() -> None:
    ids = (5, *unlearnt((0, 7)), 8, ~9, 10)
    assert plain(ids) == [5, 0, 7, 8, 9, 10]
    assert (learnt(ids), head(ids, 0), head(ids, 1), head(ids, 2), head(ids, 3)) == (
        3, (), (5,), (5, ~0, ~7, 8), ids
    )  # fmt: skip


def test_a_cut_that_leaves_nothing_to_learn_is_an_error_of_its_row() -> None:
    assert fit((1, 2), [(~3, 4, 5)], Limits(completion=2)).completions == ((~3, 4),)
    with pytest.raises(RowError, match="nothing that is learnt"):
        fit((1, 2), [(~3, 4, 5)], Limits(completion=1))


def test_an_answer_to_another_prompt_is_cut_to_something_learnt_or_nothing() -> None:
    long, short = LabelRow((1,) * 8, (5, 6), True), LabelRow((2,) * 2, (~50, ~51, 52), False)
    assert [row.other for row in with_others([long, short], 0, total=11)] == [(~50, ~51, 52), (5, 6)]
    assert [row.other for row in with_others([long, short], 0, total=10)] == [(), (5, 6)]


GROUPS = [Group((5, 6, 7), [(8, ~9, ~10, 11), (12, 13)]), Group((14,), [(~15, 16), (17, ~18)])]


def by_hand(model: Any, prompt: tuple[int, ...], completion: Ids) -> list[float]:
    ids = [*prompt, *plain(completion)]
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(logps[len(prompt) - 1 + k, t]) for k, t in enumerate(completion) if t >= 0]


@pytest.mark.parametrize("way", [PackedForward, PlainForward])
def test_log_probs_are_of_the_learnt_tokens_and_the_others_are_read(policy: Callable[..., Policy], way: Any) -> None:
    model = policy().model.eval()
    found: TokenLogps = way(model).token_logps(GROUPS, spread=True)
    wanted = [by_hand(model, tuple(g.prompt), tuple(c)) for g in GROUPS for c in g.completions]
    assert found.lengths.tolist() == [2, 2, 1, 1]
    assert found.values.tolist() == pytest.approx([v for part in wanted for v in part], rel=1e-5)
    assert found.sums().tolist() == pytest.approx([sum(part) for part in wanted], rel=1e-5)
    assert found.heads(torch.tensor([1, 2, 1, 1])).tolist() == pytest.approx(
        [wanted[0][0], sum(wanted[1]), wanted[2][0], wanted[3][0]], rel=1e-5
    )
    assert found.alignment().shape == (4,)


def test_a_reference_scores_what_is_learnt(policy: Callable[..., Policy]) -> None:
    model = policy().model.eval()
    row = Encoded((5, 6, 7), (8, ~9, ~10, 11))
    [scored] = sequence_logps(model, [row])
    assert scored.tokens == 2
    assert scored.logp == pytest.approx(sum(by_hand(model, (5, 6, 7), row.completion_ids)), rel=1e-5)
