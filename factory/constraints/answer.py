"""An answer as the constraints see it: cleaned of what cannot be seen, and cut into words, sentences, lines and items.

Everything here takes time linear in the text and never raises, whatever the text holds: no pattern can start again
inside a run that it has already read.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from typing import Final

from factory.schema import Prompt

_BREAKS: Final = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_SPACES: Final = "\t\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_UNSEEN: Final = (
    (0x00, 0x08), (0x0E, 0x1B), (0x1F, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F),
    (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E),
    (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF9, 0xFFFB),
    (0xE0000, 0xE007F),
)  # fmt: skip
_TABLE: Final[dict[int, str | None]] = {
    **{code: None for low, high in _UNSEEN for code in range(low, high + 1)},
    **{ord(c): "\n" for c in _BREAKS},
    **{ord(c): " " for c in _SPACES},
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}
_QUOTES: Final = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'})

# Normal form C sorts every run of combining marks, in time quadratic in the run: a text with such a run stays as it is.
_LONG_RUN: Final = re.compile(r"[^\w\s\x00-\x7f]{64}")

# Han and kana are written without spaces: each character counts as a word. Indic, Hebrew, Arabic and Thai signs that
# are no letters to `\w` belong to the word around them.
_SINGLE: Final = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_SIGNS: Final = r"\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u064b-\u065f\u0670\u0900-\u0963\u0970-\u0e7f"
_LETTER: Final = rf"(?:[^\W_{_SINGLE}]|[{_SIGNS}])"
_WORD: Final = re.compile(rf"[{_SINGLE}]|{_LETTER}++(?:['’\-‑]{_LETTER}++)*+")

_BULLET: Final = re.compile(r" *+[-*+•‣⁃◦▪▫●○∙·‧・⁌⁍■□►▶➤➢✓✔★☆–—−] ++(?=\S)")
_NUMBERED: Final = re.compile(r" *+\(?(\d{1,4})[.):](?!\d) *+(?=\S)")
_TITLE: Final = re.compile(r"<<([^<>\n]{1,300})>>")
_HEADING: Final = re.compile(r" {0,3}#{1,6} ")

_TERMINATORS: Final = ".!?…。！？؟।"
_CLOSERS: Final = "\"'”’)]}*_»›`"
_CJK_END: Final = re.compile(r"([。！？][」』）”]*+)")
_NEVER_END: Final = frozenset(
    (
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "mt",
        "sr",
        "jr",
        "vs",
        "e.g",
        "i.e",
        "p.s",
        "p.p.s",
        "no",
        "approx",
        "fig",
        "cf",
    )
)
_MAY_END: Final = frozenset(("etc", "a.m", "p.m", "u.s", "u.k", "inc", "ltd", "co", "b.c", "a.d", "ph.d"))


def clean(text: str) -> str:
    """The text in one form: LF line breaks, plain spaces, nothing invisible, lone surrogates as U+FFFD, form C."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_TABLE)
    if text.isascii() or _LONG_RUN.search(text):
        return text
    return unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """The form in which phrases are compared: case folded, straight quotes, single spaces."""
    return " ".join(text.translate(_QUOTES).casefold().split())


def find_words(text: str) -> list[str]:
    """The words of a cleaned text. Hyphens and apostrophes join; each Han or kana character is a word."""
    return _WORD.findall(text)


def strip_item(line: str) -> str:
    """The line without the bullet, number or heading mark that opens it."""
    for mark in (_BULLET, _NUMBERED, _HEADING):
        found = mark.match(line)
        if found:
            return line[found.end() :]
    return line


def unfence(text: str) -> str:
    """The inside of a text that is one Markdown code fence; any other text as it is."""
    inner = text.strip()
    if inner.startswith("```") and inner.endswith("```") and len(inner) >= 6 and "\n" in inner:
        return inner[inner.index("\n") : -3].strip()
    return inner


def split_sentences(block: str) -> list[str]:
    """The sentences of one block of running text. What comes after the last stop counts as a sentence."""
    tokens = _CJK_END.sub(r"\1 ", block).split()
    sentences: list[str] = []
    start = 0
    for index, token in enumerate(tokens):
        if _ends_sentence(tokens, index, token, first=index == start):
            sentences.append(" ".join(tokens[start : index + 1]))
            start = index + 1
    sentences.append(" ".join(tokens[start:]))
    return [s for s in sentences if _WORD.search(s)]


def _ends_sentence(tokens: list[str], index: int, token: str, *, first: bool) -> bool:
    bare = token.rstrip(_CLOSERS)
    if not bare or bare[-1] not in _TERMINATORS:
        return False
    if not bare.endswith(".") or bare.endswith(".."):
        return True
    stem = bare[:-1].lstrip("\"'“‘([*_").casefold()
    following = tokens[index + 1] if index + 1 < len(tokens) else ""
    if not following:
        return True
    if stem in _NEVER_END:
        return False
    if stem in _MAY_END:
        return following.lstrip("\"'“‘([*_")[:1].isupper()
    initial = len(stem) == 1 and stem.isalpha() and stem != "i" and bare[-2].isupper()
    return not (initial and (first or tokens[index - 1][:1].isupper()))


class Answer:
    """A text to be checked, with the prompt that it answers where there is one. Parts are worked out when asked for.
    `raw` is the text as it was written."""

    def __init__(self, text: str, prompt: Prompt | None = None) -> None:
        self.raw = text
        self.text = clean(text).strip()
        self.prompt = prompt

    @cached_property
    def asked(self) -> str:
        """The user's last turn, cleaned; empty without a prompt."""
        turns = [m["content"] for m in self.prompt.messages if m["role"] == "user"] if self.prompt else []
        return clean(turns[-1]) if turns else ""

    @cached_property
    def folded(self) -> str:
        """The text as phrases are compared."""
        return fold(self.text)

    @cached_property
    def words(self) -> list[str]:
        """All words in order, as written."""
        return find_words(self.text)

    @cached_property
    def titles(self) -> list[str]:
        """What stands in double angle brackets."""
        return [t.strip() for t in _TITLE.findall(self.text) if _WORD.search(t)]

    @cached_property
    def body(self) -> str:
        """The text without titles in double angle brackets."""
        return _TITLE.sub("", self.text).strip()

    @cached_property
    def lines(self) -> list[str]:
        """The body's lines that hold a word."""
        return [line for line in self.body.split("\n") if _WORD.search(line)]

    @cached_property
    def paragraphs(self) -> list[str]:
        """The body's blocks between blank lines that hold a word."""
        blocks: list[list[str]] = [[]]
        for line in self.body.split("\n"):
            if line.strip():
                blocks[-1].append(line)
            elif blocks[-1]:
                blocks.append([])
        joined = ("\n".join(block) for block in blocks)
        return [block for block in joined if _WORD.search(block)]

    @cached_property
    def sentences(self) -> list[str]:
        """The body's sentences. A list item or heading is a block of its own; a plain line break ends nothing."""
        return [s for paragraph in self.paragraphs for block in _blocks(paragraph) for s in split_sentences(block)]

    @cached_property
    def bullets(self) -> list[str]:
        """The texts of the lines that a bullet opens."""
        return [strip_item(line) for line in self.text.split("\n") if _is_item(_BULLET, line)]

    @cached_property
    def numbered(self) -> list[str]:
        """The texts of the lines numbered 1, 2, 3 ... in that order; a number out of turn is not an item."""
        items: list[str] = []
        for line in self.text.split("\n"):
            found = _NUMBERED.match(line)
            if found and int(found[1]) == len(items) + 1 and _WORD.search(line, found.end()):
                items.append(line[found.end() :])
        return items


def _is_item(mark: re.Pattern[str], line: str) -> bool:
    found = mark.match(line)
    return bool(found and _WORD.search(line, found.end()))


def _blocks(paragraph: str) -> list[str]:
    blocks: list[str] = []
    running = False
    for line in paragraph.split("\n"):
        text = strip_item(line)
        own = text is not line
        if own or not running:
            blocks.append(text)
        else:
            blocks[-1] += " " + text
        running = not _HEADING.match(line)
    return blocks
