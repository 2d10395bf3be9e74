"""The fence between a judge's instructions and the texts that it judges.

A candidate is written by a model that may have learnt to talk to its judge. So every foreign text is cleaned of what a
chat template gives a meaning (its special tokens) and of characters that nobody sees, and is then shown between two
lines that carry a nonce the writer could not know: an HMAC of the store's secret and the item, the same again when a
run resumes. The judge's only effect is its verdict, so the worst a text can do is to win unjustly; canaries measure
how often.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from factory.schema import Matchup, Message, digest

REMOVED = "\N{REPLACEMENT CHARACTER}"
"""What stands where a special token was. It is never part of one, so that a single pass is enough: taking a token out
cannot join its neighbours into another."""

DIGITS = 8
"""Length of a nonce: each line of the fence carries it, and a judge reads all of them."""

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, but for tab and line feed
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # direction overrides, invisible marks
    "\U000e0000-\U000e007f]"  # tag characters: text that only a tokenizer reads
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPECIAL = re.compile(
    r"<\|[^\s|<>\ufffd]{1,64}\|>"  # ChatML, Llama 3, Phi, gpt-oss: <|im_start|>, <|eot_id|> ...
    r"|<[｜|][^\s｜|<>\ufffd]{1,64}[｜|]>"  # DeepSeek's full-width bars
    r"|</?s>|<(?:bos|eos|pad|unk|cls|sep|mask)>"  # sentencepiece
    r"|<(?:start|end)_of_(?:turn|image|role|text)>|<end_of_utterance>"  # Gemma, Granite, SmolVLM
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|PREFIX|SUFFIX)\]"  # Mistral
    r"|<</?SYS>>"  # Llama 2
    r"|<extra_id_\d{1,4}>|<reserved_\d{1,4}>|<unused\d{1,4}>"
    r"|</?(?:think|tool_call|tool_response)>",  # single tokens in Qwen, DeepSeek, SmolLM3
    re.IGNORECASE,
)


class Cleaned(NamedTuple):
    """A foreign text made safe to show, and what was taken out of it: each special token once, in order of appearance,
    and `unseen characters` when there were some."""

    text: str
    removed: tuple[str, ...]


def clean(text: str) -> Cleaned:
    """Take out special tokens of chat templates and characters that nobody sees. Line ends become line feeds."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    seen = _SURROGATE.sub(REMOVED, _UNSEEN.sub("", lines))
    removed = list(dict.fromkeys(match.group() for match in _SPECIAL.finditer(seen)))
    if seen != lines:
        removed.append("unseen characters")
    return Cleaned(_SPECIAL.sub(REMOVED, seen), tuple(removed))


def nonce(secret: bytes, item: str, texts: Iterable[str] = ()) -> str:
    """8 hex digits of HMAC-SHA256(secret, item); the next ones where one of the texts to be fenced holds them."""
    held = [text.lower() for text in texts]
    for turn in range(1_000):
        code = hmac.new(secret, f"{turn}:{item}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:DIGITS]
        if not any(code in text for text in held):
            return code
    raise ValueError("no nonce is free: the texts hold a thousand HMACs of a secret")


def nonce_of(matchup: Matchup, texts: Sequence[str]) -> str:
    """The nonce for a matchup whose cleaned texts are these. The item is what is shown, whichever is shown first, so
    that the same question asked again, in another run too, is the same call."""
    return nonce(matchup.secret, digest(sorted(texts)), texts)


def fenced(name: str, text: str, code: str) -> str:
    """The text between two lines that name it and carry the nonce."""
    return f"<<{name} {code}>>\n{text}\n<<end of {name} {code}>>"


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as a judge reads it: each turn headed by who speaks; the system's instructions too."""
    return "\n\n".join(f"{m['role'].capitalize()}:\n{m['content']}" for m in messages)


def stripped(matchup: Matchup) -> dict[str, dict[str, list[str]]]:
    """What was taken out of each text before it was shown; nothing where nothing was."""
    texts = {"prompt": transcript(matchup.prompt.messages), "a": matchup.a.text}
    if matchup.b is not None:
        texts["b"] = matchup.b.text
    removed = {name: list(clean(text).removed) for name, text in texts.items()}
    found = {name: tokens[:20] for name, tokens in removed.items() if tokens}
    return {"stripped": found} if found else {}
