"""The fence: nothing foreign keeps a meaning for a chat template, nobody can write the line that ends it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from factory.judges import fence

SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end|>",
    "<|channel|>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "[INST]", "[/INST]", "<<SYS>>",
    "<</SYS>>", "<s>", "</s>", "<bos>", "<eos>", "<pad>",
    "<unk>", "<start_of_turn>", "<end_of_turn>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]",
    "<end_of_utterance>", "<|IM_START|>", "<extra_id_0>", "<think>", "</think>",
    "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<BOS_TOKEN>", "<|turn>", "<turn|>", "<|tool_call>", "[|user|]",
    "[|endofturn|]", "[gMASK]", "<sop>", "[BOS]", "[EOT]", "[THINK]", "[ARGS]", "[control_12]", "<|im_user|>",
    "<|fim_prefix|>", "<fim_middle>", "<reponame>", "<SPECIAL_12>", "<seed:bos>", "</seed:think>", ">>QUESTION<<",
    "]~b]", "]~!b[", "[e~[", "｜DSML｜", "<｜tool▁calls▁begin｜>", "<|start_of_role|>", "<|header_start|>", "<0x0A>",
]  # fmt: skip

DISGUISED = [
    "<| im_start |>", "< |im_start| >", "<|im_\nstart|>", "<|im start|>", "<|im-start|>", "<|imstart|>",
    "<|i m _ s t a r t|>", "＜|im_start|＞", "<｜im_start｜>", "<|im_\u200bstart|>", "<\u200d|im_start|>",
    "<|\u00adim_start|>", "<|Im_Start|>", "<| START_HEADER_ID |>", "<|e\u200cnd|>", "<\ufe0f|end_of_turn|>",
]  # fmt: skip


@pytest.mark.parametrize("token", DISGUISED)
def test_disguised_tokens_are_taken_out_too(token: str) -> None:
    """A tokenizer may not see these, but a judge that reads them may."""
    cleaned = fence.clean(f"before {token}system")
    assert cleaned.text == f"before {fence.REMOVED}system"
    assert cleaned.removed


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_are_taken_out_and_recorded(token: str) -> None:
    cleaned = fence.clean(f"before {token}system\nafter")
    assert token not in cleaned.text
    assert cleaned.removed == (token,)
    assert cleaned.text == f"before {fence.REMOVED}system\nafter"


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "x[0] = y[INSTALL]",
        "<b>bold</b>",
        "if a <| b",
        "café 👩‍🚀 naïve",
        "\tindented\n\nlines",
        "|>",
        "a <| f |> b",
        "usage: prog [args] [prefix]",
        "[Audio]",
        "x <|> y <| z",
        "Ελλάδα, Україна, 日本語",
        "a >> b << c",
        "<start> </end>",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert fence.clean(text) == (text, ())


def test_a_token_inside_a_token_does_not_close_up_into_one() -> None:
    for text in ("<|im_<|im_start|>start|>", "<<s>s>", "[IN[INST]ST]", "<|im_\x00start|>", "<|im_\u200bstart|>"):
        cleaned = fence.clean(text).text
        assert fence.clean(cleaned).text == cleaned
        assert not any(token in cleaned for token in SPECIAL)


def test_unseen_characters_go_and_are_recorded() -> None:
    cleaned = fence.clean("a\x00b\u202ec\U000e0041d\ud800e\r\nf\rg")
    assert cleaned.text == f"abcd{fence.REMOVED}e\nf\ng"
    assert cleaned.removed == ("unseen characters",)


@given(st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=5), st.sampled_from(["<", "|", ">", "s"]))))
def test_cleaning_twice_is_cleaning_once(parts: list[str]) -> None:
    once = fence.clean("".join(parts)).text
    assert fence.clean(once) == (once, ())
    once.encode("utf-8")


def test_a_nonce_is_the_same_on_resuming_and_differs_by_item_and_store() -> None:
    assert fence.nonce(b"secret", "item") == fence.nonce(b"secret", "item")
    assert len({fence.nonce(b"secret", "item"), fence.nonce(b"secret", "other"), fence.nonce(b"else", "item")}) == 3
    assert re.fullmatch(r"[0-9a-f]{8}", fence.nonce(b"", ""))


@given(st.binary(max_size=8), st.text(max_size=8), st.integers(1, 4))
def test_a_text_that_holds_the_nonce_gets_another(secret: bytes, item: str, times: int) -> None:
    text = ""
    for _ in range(times):
        code = fence.nonce(secret, item, [text])
        assert code not in text
        text += f"<<end of answer A {code.upper()}>>"


def test_the_fence_names_the_text_and_carries_the_nonce_on_both_lines() -> None:
    assert fence.fenced("answer A", "hello", "0f") == "<<answer A 0f>>\nhello\n<<end of answer A 0f>>"
