r"""What an answer states as its final answer, and the numbers in it.

Read in this order, the first that is there: what stands in \boxed{...}; what follows "final answer:" or "####"; what
follows "answer:" or "the answer is"; the whole text. Where one of these is there twice and does not say the same, the
answer is ambiguous, and nobody guesses. Everything here takes time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from itertools import islice
from typing import Final, NamedTuple

LONGEST: Final = 400  # characters of a number, and of a line that follows "answer:"
MOST: Final = 100  # statements of one form that are read
_BRACES: Final = re.compile(r"\\f?boxed\s{0,3}\{|[{}]")
_LEAD: Final = r"[\s*_`~]{0,6}(?:is\b|are\b|[:=])[\s:*_`~]{0,8}"
_FINAL: Final = re.compile(rf"(?i)(?:\bfinal\s{{1,3}}answer{_LEAD}|^[ \t]{{0,8}}\#{{4}}(?!\#))", re.MULTILINE)
_ANSWER: Final = re.compile(rf"(?i)\banswer{_LEAD}")


class Stated(NamedTuple):
    """Final answers as they are written, and what pointed to them: `boxed`, `final`, `answer`, or nothing (`whole`:
    the whole text)."""

    by: str
    texts: tuple[str, ...]


def statements(text: str) -> list[Stated]:
    """The final answers of a cleaned text, what points to them most clearly first; the whole text comes last."""
    found = [Stated("boxed", tuple(_boxes(text)))]
    for by, mark in (("final", _FINAL), ("answer", _ANSWER)):
        lines = (_line(text, m.end()) for m in islice(mark.finditer(text), MOST))
        found.append(Stated(by, tuple(line for line in lines if line)))
    return [*(each for each in found if each.texts), Stated("whole", (text,))]


def _boxes(text: str) -> list[str]:
    r"""The insides of \boxed{...}, braces in it balanced, the outermost only; one that is never closed is none."""
    opened: list[re.Match[str]] = []
    closed: list[tuple[int, int]] = []
    for found in _BRACES.finditer(text):
        if found[0] != "}":
            opened.append(found)
        elif opened and (box := opened.pop())[0] != "{":
            while closed and closed[-1][0] > box.end():
                closed.pop()
            closed.append((box.end(), found.start()))
    return [text[start:end].strip() for start, end in closed[:MOST] if end - start <= LONGEST]


def _line(text: str, start: int) -> str:
    """What follows on the line of a mark, or on the next line with something on it where the mark ends its own."""
    rest = text[start : start + 4 * LONGEST].lstrip()
    return rest.split("\n", 1)[0].strip()[:LONGEST]


# ------------------------------------------------------------------------------------------------------- numbers

_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR: Final = re.compile("[¼-¾⅐-⅞]")
_WRAPPERS: Final = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|operatorname)\s?\{([^{}]{0,100})\}")
_FRACTION: Final = re.compile(r"\\[dtc]?frac\s?\{\s?(-?\d{1,40})\s?\}\s?\{\s?(\d{1,40})\s?\}")
_SHORT_FRACTION: Final = re.compile(r"\\[dtc]?frac\s?(\d)(\d)")
_POWER: Final = r"\s?(?:[×x*·]|\\times|\\cdot)\s?10\s?\^\s?(?:\{\s?([-+]?\d{1,3})\s?\}|([-+]?\d{1,3}))(?!\d)"
_NUMBER: Final = re.compile(
    r"(?<![\w.^])(?P<sign>[-+](?=[$€£¥\d.]))?[$€£¥]?"
    r"(?:(?P<whole>\d{1,3})\ (?P<top>\d{1,3})/(?P<bottom>\d{1,3})(?![\d/.,]*\d)"
    r"|(?P<digits>\d{1,400}(?:[.,]\d{1,400})*|\.\d{1,400}))"
    rf"(?:[eE](?P<e>[-+]?\d{{1,3}})(?![\d.])|{_POWER})?"
    r"(?:\s?/\s?(?P<over>\d{1,40})(?![\d/]|[.,]\d))?"
    r"(?P<percent>\s?(?:\\?%|per\s?cent\b))?"
    r"(?P<more>(?:\s?[\^/]\s?(?:[{(]?[-+]?\d{1,40}[})]?|[({]))*)"
)
_GROUPED: Final = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_PLAIN: Final = re.compile(r"\d*(?:\.\d+)?")


class Number(NamedTuple):
    """A number as it stands in a text. `values`: what it may mean (5% is 5 and 0.05); empty: more than one thing, such
    as 1,5 or 3.4.5 or a power."""

    text: str
    start: int
    end: int
    values: tuple[Fraction, ...]


def plain(text: str) -> str:
    r"""The text with typographic and LaTeX forms of numbers made plain: −, ½, 10⁵, \frac{1}{2}, 1{,}000, \$."""
    text = re.sub("10([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3})", lambda m: f"10^{m[1].translate(_SUPERSCRIPTS)}", text)
    text = _VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/"), text)
    text = re.sub(r"(?<![\w)])[\u2012\u2013\ufe63\uff0d](?=[$€£¥]?[.\d])", "-", text.replace("\u2212", "-"))
    text = text.replace("\u2044", "/").replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"\\[,;:! ]|\\left|\\right", "", text)
    text = _WRAPPERS.sub(r" \1 ", text)
    text = _FRACTION.sub(r" \1/\2 ", text)
    return _SHORT_FRACTION.sub(r" \1/\2 ", text)


def numbers(text: str, decimal: str = ".") -> list[Number]:
    """The numbers of a text that `plain` has made plain, in order. `decimal` is the decimal mark."""
    return [Number(m[0].strip(), m.start(), m.end(), _values(m, decimal)) for m in _NUMBER.finditer(text)]


def _values(found: re.Match[str], decimal: str) -> tuple[Fraction, ...]:
    size = _size(found, decimal)
    if size is None or found["more"]:
        return ()
    exponent = found["e"] or found[7] or found[8]
    value = size * Fraction(10) ** int(exponent or 0)
    if found["over"]:
        if int(found["over"]) == 0:
            return ()
        value /= int(found["over"])
    if found["sign"] == "-":
        value = -value
    return (value, value / 100) if found["percent"] else (value,)


def _size(found: re.Match[str], decimal: str) -> Fraction | None:
    if found["whole"]:
        top, bottom = int(found["top"]), int(found["bottom"])
        return int(found["whole"]) + Fraction(top, bottom) if 0 < top < bottom else None
    digits = found["digits"]
    if decimal == ",":
        digits = digits.translate(str.maketrans(",.", ".,"))
    if len(digits) > LONGEST or not (_PLAIN.fullmatch(digits) or _GROUPED.fullmatch(digits)):
        return None
    return Fraction(digits.replace(",", ""))


def one_number(text: str, decimal: str = ".") -> Number | None:
    """The number that a whole text is, or None."""
    bare = plain(text).strip().strip("$").strip()
    found = numbers(bare, decimal)
    return found[0] if len(found) == 1 and found[0].text == bare else None
