"""The floor on substance: what every answer must have before the constraints that it meets count for anything.

A policy learns to satisfy a checker by shrinking: "That is all." meets an end phrase and says nothing. So an answer
has to say a few things beyond the constraint's own words and the prompt's, and must not get there by saying one thing
over and over. The floor is low on purpose: it tells an answer from none, not a good answer from a poor one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from factory.constraints.answer import Answer, clean, find_words, split_sentences, strip_item
from factory.constraints.kinds import KINDS, Check, parse_json
from factory.constraints.language import STOP_WORDS, UNKNOWN, guess

CONTENT_WORDS: Final = 4  # different content words of the answer's own
TERSE_WORDS: Final = 3  # the same for lists, poems and JSON
WORDS_PER_CONTENT_WORD: Final = 4  # a limit of n words asks for no more than n/4 content words
LONG_PROMPT: Final = 120  # words: a prompt of this length brings a text of its own to be worked on
LOOP_WINDOW: Final = 400  # words read at each end of the answer when looking for loops

_CHAT: Final = frozenset((
    "sure", "okay", "ok", "yes", "certainly", "course", "thing", "things", "something", "anything", "everything",
    "etc", "here's", "i'm", "i'll", "i've", "i'd", "you're", "it's", "that's", "let's", "don't", "doesn't",
    "didn't", "isn't", "aren't", "can't", "cannot", "couldn't", "won't", "wouldn't",
))  # fmt: skip
_FORM: Final = frozenset((
    "answer", "answers", "response", "reply", "request", "requests", "requested", "question", "questions",
    "instruction", "instructions", "sorry", "apologies", "apologise", "apologize", "unable", "help", "assist",
    "use", "using", "used", "without", "write", "writing", "written", "tell", "word", "words", "sentence",
    "sentences", "comma", "commas", "paragraph", "paragraphs", "bullet", "bullets", "title", "text",
))  # fmt: skip
"""Words for the answer itself and for declining one: "I will write my answer without commas", "I cannot help"."""


def substance(answer: Answer, constraints: Sequence[Mapping[str, Any]] = (), least: int = CONTENT_WORDS) -> Check:
    """Does the answer say something: enough content words of its own, no loop, no copy of the prompt?

    `least` is the wanted number of different content words; it is lowered for terse forms and for word limits. Half of
    them must not be words of the prompt. The constraints must be valid.
    """
    spoken = _spoken(answer, constraints)
    if not find_words(spoken):
        return Check(False, "no words" if not find_words(answer.text) else "no words in the values or under the title")
    content = _content(spoken, constraints)
    wanted = _wanted(constraints, least)
    if len(content) < wanted:
        return Check(False, f"{len(content)} content words beyond the constraints' own, wanted {wanted}")
    prompt = find_words(answer.asked.casefold())
    own = content - set(prompt)
    if len(prompt) <= LONG_PROMPT and len(own) < (wanted + 1) // 2:
        return Check(False, f"{len(own)} content words that are not the prompt's, wanted {(wanted + 1) // 2}")
    if len(prompt) > LONG_PROMPT and _share_copied(find_words(spoken.casefold()), prompt) > 0.9:
        return Check(False, "a copy of the prompt")
    return _loops(spoken)


def _wanted(constraints: Sequence[Mapping[str, Any]], least: int) -> int:
    for constraint in constraints:
        if KINDS.get(constraint["kind"]).terse:
            least = min(least, TERSE_WORDS)
        if constraint["kind"] == "max_words":
            least = min(least, max(1, constraint["count"] // WORDS_PER_CONTENT_WORD))
    return least


def _spoken(answer: Answer, constraints: Sequence[Mapping[str, Any]]) -> str:
    """What the answer says: the values where it is JSON that was asked for, what stands under the title where that
    was, the whole text else."""
    kinds = {c["kind"] for c in constraints}
    if "json_object" not in kinds:
        return answer.body if "title" in kinds else answer.text
    try:
        return "\n".join(_leaves(parse_json(answer.text)))
    except ValueError:
        return answer.text


def _leaves(value: Any) -> list[str]:
    """The texts and numbers inside a JSON value, in order."""
    found: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(reversed(item.values()))
        elif isinstance(item, list):
            waiting.extend(reversed(item))
        elif isinstance(item, str):
            found.append(clean(item))
        elif item is not None and not isinstance(item, bool):
            found.append(str(item))
    return found


def _content(text: str, constraints: Sequence[Mapping[str, Any]]) -> set[str]:
    """The different words that are neither function words nor the constraints' own material."""
    language = guess(text)
    function = STOP_WORDS.get("en" if language == UNKNOWN else language, frozenset()) | _CHAT | _FORM
    joined = "".join(f" {word} " for word in find_words(text.casefold().replace("’", "'")))
    for material in _material(constraints):
        own = "  ".join(find_words(material.casefold().replace("’", "'")))
        joined = joined.replace(f" {own} ", " ")
    return {w for w in joined.split() if w not in function and (len(w) > 1 or w.isdigit() or not w.isascii())}


def _material(constraints: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for constraint in constraints:
        for name in KINDS.get(constraint["kind"]).material:
            value = constraint.get(name, ())
            yield from [value] if isinstance(value, str) else value


def _share_copied(words: Sequence[str], prompt: Sequence[str]) -> float:
    """The share of the answer's word trigrams that the prompt has too."""
    mine, theirs = _grams(words, 3), set(_grams(prompt, 3))
    return sum(gram in theirs for gram in mine) / len(mine) if mine else 0.0


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _loops(text: str) -> Check:
    """Is the answer one sentence, line or string of words over and over?"""
    units = [" ".join(find_words(unit.casefold())) for unit in _units(text)]
    counts = Counter(unit for unit in units if unit)
    total = sum(counts.values())
    repeats = total - len(counts)
    if (total >= 2 and len(counts) == 1) or (repeats >= 2 and repeats * 3 >= total):
        return Check(False, f"{repeats} of {total} sentences or lines repeat earlier ones")
    words = find_words(text.casefold())
    for window in (words[:LOOP_WINDOW], words[-LOOP_WINDOW:]):
        grams = _grams(window, 4)
        if len(grams) >= 12 and len(set(grams)) < 0.55 * len(grams):
            return Check(False, "the same string of words over and over")
    return Check(True, "says something")


def _units(text: str) -> list[str]:
    return [sentence for line in text.split("\n") for sentence in split_sentences(strip_item(line))]
