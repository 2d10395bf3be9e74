"""Strings that a judge's parser must survive: made from seeds of trouble by a fixed seed, the same every time."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator

LETTERS = ("A", "B", "C")
LOOKALIKES = ("А", "В", "Ａ", "Ｂ", "Α", "Β", "𝐀", "🅰", "Ⓐ", "ᴀ", "a", "b", "ª", "Å")
NUMBERS = (
    "0", "1", "2", "3", "4", "5", "6", "10", "-1", "1e1", "5e0", "٣", "３", "³", "Ⅳ", "four", "five", "4.5", "4,5",
    "+4", "04", "4/5", "4/10", "5/5", "0x4", "NaN", "inf", "1_0", "½", "4%", "9" * 400,
)  # fmt: skip
UNSEEN = (
    "\u200b", "\u200d", "\ufeff", "\u202e", "\u2066", "\x00", "\x1f", "\x7f", "\u00ad", "\ud800", "\udfff", "\U000e0041"
)  # fmt: skip
TALK = (
    "Neither {x} nor {y} is good",
    "Not {x}",
    "{x} is worse than {y}",
    "{x}? No, {y}",
    "I will not say {x}",
    "The answer is not {x}",
    "Both {x} and {y}",
    "It is a tie between {x} and {y}",
    "{x} or {y}",
    "{x}/{y}",
    "{x} and {y}",
    'He said "{x}", but I disagree',
    "> {x}\n{y}",
    "If {x} then {y}",
    "[[{x}]] [[{y}]]",
    "[[{x}]]\n[[{y}]]",
    "{x}\n{y}",
    "The better answer is {x}. Wait: {y}.",
    "Answer {x} is better",
    "I would pick {x}",
    "Let me think. {x}",
    "{x}{y}",
    "{x} {x}",
    "As an AI, I cannot choose {x}",
    "~~{x}~~ {y}",
    "{x} (not {y})",
    "Response {x} over response {y}",
    "The better answer is",
    "Reply with one letter: A or B.",
    "Choose A. The better answer is A.",
    "{x} > {y}",
    "¿{x}?",
    "{x}!",
    "{x}…",
    "<answer>{x}</answer>",
    "`{x}`",
    "# {x}",
    "- {x}\n- {y}",
    "| {x} | {y} |",
)
JSONS = (
    '{{"verdict": "{x}"}}',
    '{{"verdict": "{x}", "verdict": "{y}"}}',
    '{{"verdict": ["{x}"]}}',
    '{{"verdict": {{}}}}',
    '{{"verdict": null}}',
    '{{"verdict": true}}',
    '{{"verdict": NaN}}',
    '{{"verdict": "{x}"',
    'Sure: {{"verdict": "{x}"}}',
    '{{"verdict": "{x}"}} {{"verdict": "{y}"}}',
    '[{{"verdict": "{x}"}}]',
    '{{"Verdict": "{x}"}}',
    '{{"a": "{x}"}}',
    '{{"verdict": "{x}", "note": "or {y}"}}',
    "{{'verdict': '{x}'}}",
    '```json\n{{"verdict": "{x}"}}\n```',
    '"{x}"',
    '{{"verdict": "{x}", "reasoning": "{y}"}}',
    '{{"verdict": " {x} "}}',
    '{{"verdict": "\\u0041"}}',
    "[" * 5_000,
    '{{"verdict": ' * 300,
    '{{"verdict": 1e400}}',
    '{{"verdict": "{x}",}}',
    '\ufeff{{"verdict": "{x}"}}',
)
LINES = (
    "Score: {n}",
    "Score: {n}\nScore: {m}",
    "Score: {n}\n\nOn reflection {m}.",
    "score = {n}",
    "**Score:** {n}/5",
    "Total score: {n}",
    "Score: {n} or {m}",
    "The score: {n}",
    "Score:\n{n}",
    "Score {n}",
    "Not Score: {n}",
    "helpfulness: {n}\nhonesty: {m}",
    "helpfulness: {n}\n\nhonesty: {m}",
    "honesty: {n}",
    "{n}\n{m}",
    "{n}\n\n{m}",
    "helpfulness: {n}\nhelpfulness: {m}",
    "1. helpfulness: {n}\n2. honesty: {m}",
    "helpfulness - {n}",
    "helpfulness: {n}.",
    "helpfulness: not {n}",
    '{{"helpfulness": {n}, "honesty": {m}}}',
    '{{"helpfulness": "{n}"}}',
    "helpfulness: {n}, honesty: {m}",
)
WRAPS = (
    "{}",
    " {} ",
    "\n{}\n",
    "({})",
    "[[{}]]",
    "**{}**",
    '"{}"',
    "Answer: {}",
    "The better answer is ({}",
    "{}.",
    "\t{}",
)


def corpus(count: int, seed: int = 20_250_101) -> list[str]:
    """`count` different strings."""
    draw = random.Random(seed)
    found = dict.fromkeys(_plain())
    while len(found) < count:
        found[_mutated(draw)] = None
    return list(found)[:count]


def _plain() -> Iterator[str]:
    for x, y in itertools.permutations(LETTERS, 2):
        yield from (form.format(x=x, y=y) for form in (*TALK, *JSONS))
    for wrap, what in itertools.product(WRAPS, (*LETTERS, *LOOKALIKES, *NUMBERS)):
        yield wrap.format(what)
    for form, n, m in itertools.product(LINES, NUMBERS, ("2", "ten", "")):
        yield form.format(n=n, m=m)


def _mutated(draw: random.Random) -> str:
    """One of the forms, filled at random and then damaged."""
    marks = [*LETTERS, *LOOKALIKES, *NUMBERS, "neither", ""]
    form = draw.choice([*TALK, *JSONS, *LINES, *WRAPS])
    filled = form.format(draw.choice(marks), x=draw.choice(marks), y=draw.choice(marks), n=draw.choice(NUMBERS), m="3")
    text = list(filled)
    for _ in range(draw.randrange(4)):
        place = draw.randrange(len(text) + 1)
        text[place:place] = draw.choice([*UNSEEN, " ", "\n", "not ", "A", "B", "3", "]", "(", '"', "\r", "\u00a0", "é"])
    if draw.random() < 0.1 and text:
        del text[draw.randrange(len(text)) :]
    return "".join(text)


def allowed_words(text: str) -> str:
    """What is left of a text when everything that may stand around a verdict is taken away: an oracle of its own, that
    shares no code with the parser."""
    for mark in "[]()*\"'.:":
        text = text.replace(mark, " ")
    words = {
        "my",
        "the",
        "final",
        "better",
        "best",
        "preferred",
        "answer",
        "verdict",
        "choice",
        "response",
        "option",
        "rating",
        "score",
        "is",
        "of",
    }
    return " ".join(word for word in text.split() if word.lower() not in words)


def loads(text: str) -> object:
    """JSON, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
