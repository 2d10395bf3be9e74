"""The kinds of constraint, each a small function of the answer, after IFEval (Zhou et al., arXiv 2311.07911).

A kind is registered with its parameters, and with the material that the constraint itself puts into the answer (a start
phrase, required words ...), which says nothing of substance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from factory.constraints.answer import Answer, find_words, fold, unfence
from factory.constraints.language import NAMES, guess
from factory.constraints.parameters import Parameter, choice, phrase, phrases, relation, whole
from factory.registry import Registry


class Check(NamedTuple):
    """Is the constraint met, and what was found. `share`: how far, 0 to 1, where a kind says more than yes or no.
    `failure`: kind of failure where nothing can be said of the answer."""

    met: bool
    why: str
    share: float | None = None
    failure: str | None = None

    @property
    def worth(self) -> float:
        """How far the constraint is met, 0 to 1."""
        return float(self.met) if self.share is None else self.share


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of constraint. `material` names the parameters whose words the constraint itself puts into an answer;
    `terse`: answers of this form are short by nature; `settles`: the kind checks what the answer says, so that no floor
    on substance is asked of it; `runs`: code is run, by a keyword `runner`."""

    name: str
    test: Callable[..., Check]
    parameters: Mapping[str, Parameter]
    material: tuple[str, ...] = ()
    terse: bool = False
    settles: bool = False
    runs: bool = False


KINDS: Registry[Kind] = Registry("constraint kind")


def kind(
    name: str,
    *,
    material: tuple[str, ...] = (),
    terse: bool = False,
    settles: bool = False,
    runs: bool = False,
    **parameters: Parameter,
) -> Callable[[Callable[..., Check]], Callable[..., Check]]:
    """Register a function (answer, **parameters) -> Check under `name`."""

    def decorate(test: Callable[..., Check]) -> Callable[..., Check]:
        KINDS.add(name, Kind(name, test, parameters, material, terse, settles, runs))
        return test

    return decorate


def compare(found: int, wanted: int, relation: str, noun: str) -> Check:
    """A count against the wanted one."""
    met = {"exactly": found == wanted, "at_least": found >= wanted, "at_most": found <= wanted}[relation]
    return Check(met, f"{found} {noun}, wanted {relation.replace('_', ' ')} {wanted}")


def occurrences(phrase: str, answer: Answer) -> int:
    """How often the phrase stands in the answer as whole words, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(fold(phrase))}(?!\w)", answer.folded))


# -------------------------------------------------------------------------------------------------------- length


@kind("min_words", count=whole(1))
def min_words(answer: Answer, count: int) -> Check:
    """At least `count` words."""
    return compare(len(answer.words), count, "at_least", "words")


@kind("max_words", count=whole(1))
def max_words(answer: Answer, count: int) -> Check:
    """At most `count` words."""
    return compare(len(answer.words), count, "at_most", "words")


@kind("sentences", count=whole(1), relation=relation("exactly"))
def sentences(answer: Answer, count: int, relation: str) -> Check:
    """So many sentences; titles in << >> are not counted."""
    return compare(len(answer.sentences), count, relation, "sentences")


@kind("paragraphs", count=whole(1), relation=relation("exactly"))
def paragraphs(answer: Answer, count: int, relation: str) -> Check:
    """So many blocks between blank lines; titles in << >> are not counted."""
    return compare(len(answer.paragraphs), count, relation, "paragraphs")


@kind("lines", terse=True, count=whole(1), relation=relation("exactly"))
def lines(answer: Answer, count: int, relation: str) -> Check:
    """So many lines with words, as of a poem; titles in << >> are not counted."""
    return compare(len(answer.lines), count, relation, "lines")


# --------------------------------------------------------------------------------------------------------- words


@kind("required_words", material=("words",), words=phrases())
def required_words(answer: Answer, words: Sequence[str]) -> Check:
    """Each word or phrase stands in the answer, as a whole word, in any case."""
    absent = [w for w in words if not occurrences(w, answer)]
    return Check(not absent, f"missing: {', '.join(absent)}" if absent else "all required words are there")


@kind("forbidden_words", words=phrases())
def forbidden_words(answer: Answer, words: Sequence[str]) -> Check:
    """None of the words or phrases stands in the answer as a whole word."""
    found = [w for w in words if occurrences(w, answer)]
    return Check(not found, f"forbidden: {', '.join(found)}" if found else "no forbidden word")


@kind("keyword_frequency", material=("word",), word=phrase(), count=whole(1), relation=relation("at_least"))
def keyword_frequency(answer: Answer, word: str, count: int, relation: str) -> Check:
    """The word or phrase stands in the answer so many times."""
    return compare(occurrences(word, answer), count, relation, f"times {word!r}")


@kind("numbers", count=whole(1), relation=relation("at_least"))
def numbers(answer: Answer, count: int, relation: str) -> Check:
    """So many numbers in digits, the numbering of lists left out."""
    text = "\n".join(re.sub(r"^ *+\(?\d{1,4}[.):](?!\d)", "", line) for line in answer.text.split("\n"))
    return compare(len(re.findall(r"\d+(?:[.,]\d+)*", text)), count, relation, "numbers")


@kind("language", language=choice(*NAMES, "prompt"))
def language(answer: Answer, language: str) -> Check:
    """The answer is in the language of that code; "prompt" is the language of the last user turn."""
    if language == "prompt":
        language = guess(answer.asked)
        if language == "unknown":
            return Check(False, "the prompt's own language is not known")
    found = guess(answer.text)
    return Check(found == language, f"language {found}, wanted {language}")


# ---------------------------------------------------------------------------------------------------------- case


@kind("lower_case")
def lower_case(answer: Answer) -> Check:
    """No capital letter, and at least one small one."""
    if any(map(str.isupper, answer.text)) or any(map(str.istitle, answer.text)):
        return Check(False, "there are capital letters")
    return Check(answer.text.upper() != answer.text, "all in lower case, if there are letters")


@kind("upper_case")
def upper_case(answer: Answer) -> Check:
    """No small letter, and at least one capital."""
    if any(map(str.islower, answer.text)):
        return Check(False, "there are small letters")
    return Check(answer.text.lower() != answer.text, "all in capitals, if there are letters")


@kind("capital_words", count=whole(1), relation=relation("at_least"))
def capital_words(answer: Answer, count: int, relation: str) -> Check:
    """So many words of two letters or more in capitals only."""
    return compare(sum(len(w) > 1 and w.isupper() for w in answer.words), count, relation, "words in capitals")


# -------------------------------------------------------------------------------------------------------- format


@kind("bullets", terse=True, count=whole(1), relation=relation("exactly"))
def bullets(answer: Answer, count: int, relation: str) -> Check:
    """So many lines that a bullet opens."""
    return compare(len(answer.bullets), count, relation, "bullet points")


@kind("numbered_list", terse=True, count=whole(1), relation=relation("exactly"))
def numbered_list(answer: Answer, count: int, relation: str) -> Check:
    """So many lines numbered 1, 2, 3 ... in turn."""
    return compare(len(answer.numbered), count, relation, "numbered items")


def parse_json(text: str) -> Any:
    """The JSON value that the text is, a Markdown fence around it left out. ValueError when it is none."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(unfence(text), parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


@kind("json_object", material=("keys",), terse=True, keys=phrases(default=()))
def json_object(answer: Answer, keys: Sequence[str]) -> Check:
    """The whole answer is one JSON object (a Markdown fence may stand around it) that has all `keys`."""
    try:
        value = parse_json(answer.text)
    except ValueError:
        return Check(False, "not JSON")
    if not isinstance(value, dict):
        return Check(False, "JSON, but not an object")
    absent = [key for key in keys if key not in value]
    return Check(not absent, f"keys missing: {', '.join(absent)}" if absent else "a JSON object with the keys")


@kind("title")
def title(answer: Answer) -> Check:
    """A title in double angle brackets, <<like this>>; an example that the prompt gives is none."""
    asked = answer.asked
    own = [t for t in answer.titles if f"<<{t}>>" not in asked]
    return Check(bool(own), "a title in << >>" if own else "no title of its own in << >>")


_PAIRS: Final = (('"', '"'), ("“", "”"), ("„", "“"), ("«", "»"))


def _open(text: str, mark: str, closing: str) -> bool:
    """Is the quotation that `mark` opens at the start still open where the text ends? A straight mark between a word
    and a blank closes; between a blank and a word it opens another."""
    inner = text[1:-1]
    if mark != closing:
        return closing not in inner or mark in inner[: inner.index(closing)]
    first = inner.find(mark)
    return first < 0 or not inner[:first].strip() or inner[first - 1].isspace() or inner[first - 1] in "([—–"


@kind("quoted")
def quoted(answer: Answer) -> Check:
    """Double quotation marks around the whole answer."""
    text = answer.text
    around = len(text) > 2 and any(text.startswith(a) and text.endswith(b) and _open(text, a, b) for a, b in _PAIRS)
    return Check(around, "in double quotes" if around else "no double quotes around the answer")


@kind("no_commas")
def no_commas(answer: Answer) -> Check:
    """Not a single comma."""
    found = sum(map(answer.text.count, ",，、،﹐﹑"))
    return Check(not found, f"{found} commas")


@kind("placeholders", count=whole(1), relation=relation("at_least"))
def placeholders(answer: Answer, count: int, relation: str) -> Check:
    """So many different placeholders in square brackets, such as [name]; links do not count."""
    found = {fold(p) for p in re.findall(r"\[([^\[\]\n]{1,80})\](?!\()", answer.text) if find_words(p)}
    return compare(len(found), count, relation, "placeholders")


@kind("highlights", count=whole(1), relation=relation("at_least"))
def highlights(answer: Answer, count: int, relation: str) -> Check:
    """So many parts in *asterisks* or **double ones**; an example that the prompt gives is none."""
    found = re.findall(r"(?<![\w*])\*{1,2}(?=[^\s*])([^*\n]{1,200})(?<!\s)\*{1,2}(?![\w*])", answer.text)
    asked = answer.asked
    own = [f for f in found if find_words(f) and f"*{f}*" not in asked]
    return compare(len(own), count, relation, "highlighted parts")


@kind("questions", count=whole(1), relation=relation("at_least"))
def questions(answer: Answer, count: int, relation: str) -> Check:
    """So many sentences that end with a question mark."""
    found = sum(s.rstrip("\"'”’)]*_»!").endswith(("?", "？", "؟")) for s in answer.sentences)
    return compare(found, count, relation, "questions")


# ------------------------------------------------------------------------------------------------------- phrases

_OPENERS: Final = " \n\"'“‘«„*_#>(["
_ENDERS: Final = " \n\"'”’»“*_)]"


@kind("start_phrase", material=("phrase",), phrase=phrase())
def start_phrase(answer: Answer, phrase: str) -> Check:
    """The phrase comes first, in any case; quotation and emphasis marks may stand before it."""
    start, wanted = fold(answer.text.lstrip(_OPENERS)), fold(phrase).lstrip(_OPENERS)
    apart = not (start[len(wanted) : len(wanted) + 1].isalnum() and wanted[-1:].isalnum())
    return Check(start.startswith(wanted) and apart, f"starts with {start[: len(wanted)]!r}")


@kind("end_phrase", material=("phrase",), phrase=phrase())
def end_phrase(answer: Answer, phrase: str) -> Check:
    """The phrase comes last, in any case; quotation marks may follow, and a stop where the phrase has none."""
    end, wanted = fold(answer.text).rstrip(_ENDERS), fold(phrase).rstrip(_ENDERS)
    if wanted[-1:].isalnum():
        end = end.rstrip(".!…" + _ENDERS)
    before = end[: -len(wanted)][-1:]
    return Check(end.endswith(wanted) and not before.isalnum(), f"ends with {end[-len(wanted) :]!r}")


@kind("postscript", material=("marker",), marker=choice("P.S.", "P.P.S.", default="P.S."))
def postscript(answer: Answer, marker: str) -> Check:
    """A postscript of two words or more after the answer, opened by the marker; "PS:" will do for "P.S."."""
    letters = marker.replace(".", "").casefold()
    dotted = r"[.] ?".join(letters)
    found = re.search(rf"(?<![\w.])(?:{dotted}[.]?|{letters}[.:])(?!\w)", answer.folded)
    if not found or not find_words(answer.folded[: found.start()]):
        return Check(False, f"no {marker} after an answer")
    return compare(len(find_words(answer.folded[found.end() :])), 2, "at_least", f"words after {marker}")
