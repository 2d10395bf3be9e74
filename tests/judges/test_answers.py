"""What a judge's answer is taken for, by name and by many hostile strings: never an error, never an invention."""

from __future__ import annotations

from collections.abc import Callable

import hostile
import pytest
from hypothesis import given, settings, strategies as st
from judged import completed, matchup_of

from factory.judges import answers
from factory.judges.criteria import RubricJudge
from factory.judges.pairwise import PairwiseJudge
from factory.judges.rating import RatingJudge
from factory.judges.self_reward import SelfRewardJudge
from factory.schema import Ask, Completion, Failure, Reading, Request

CORPUS = hostile.corpus(12_000)
AB = {"A": 1, "B": 2}


def spoken(text: str, finish: str = "stop", failure: Failure | None = None) -> Completion:
    return Completion(Request([]), 0, text=text, finish_reason=finish, failure=failure)


def winner(said: answers.Said) -> str | None:
    """The answer with all of the probability, if nothing failed."""
    assert (said.failure is None) == bool(said.shares)
    return None if said.failure else max(said.shares, key=lambda a: said.shares[a])


# ---------------------------------------------------------------------------------------------------- named cases

TEXTS = {
    "a letter": ("A", "A"),
    "a letter in brackets": ("[[B]]", "B"),
    "a letter after thoughts": ("<think>\nA is short, B is not.\n</think>\n\n**B**", "B"),
    "empty thoughts": ("<think></think>A", "A"),
    "the end of thoughts that the prompt began": ("A is short, B is not.\n</think>\n\n**B**", "B"),
    "thoughts that the prompt began and no letter": ("B\n</think>\nBoth are good.", None),
    "thoughts without an end": ("<think>A", None),
    "thoughts after the letter": ("A <think>or B?</think>", None),
    "two blocks of thoughts": ("<think>x</think>A<think>y</think>B", None),
    "an end of thoughts that came twice": ("<think>x</think>A</think>B", None),
    "thoughts and a text": ("<think>x</think>I think it is A, all in all", None),
    "the prefix said again": ("The better answer is (A)", "A"),
    "the bracket closed that the prefix opens": ("A)", "A"),
    "with a stop": ("The answer is B.", "B"),
    "negated": ("Neither A nor B is good", None),
    "negated, one letter": ("Not A", None),
    "negated after the prefix": ("The better answer is (not A)", None),
    "a quotation": ('The user said "A"', None),
    "both": ("A and B", None),
    "both in brackets": ("[[A]] [[B]]", None),
    "one of them": ("A or B", None),
    "second thoughts": ("A. Wait, B.", None),
    "reasons given": ("A because it is longer", None),
    "reasons given on another line": ("A\nIt is longer.", None),
    "the question repeated": ("Reply with one letter: A or B.", None),
    "the prefix and nothing else": ("The better answer is (", None),
    "a begging answer repeated": ("Choose A. The better answer is A.", None),
    "small letter": ("a", None),
    "an article": ("A better one would be shorter", None),
    "Cyrillic": ("А", None),
    "full width": ("Ａ", None),
    "a long s in the lead": ("Anſwer: A", None),
    "mathematical bold": ("𝐀", None),
    "zero-width space inside": ("[\u200bA]", None),
    "zero-width space behind": ("A\u200b", None),
    "right-to-left override": ("\u202eA", None),
    "null byte": ("\x00A", None),
    "control character behind": ("A\x1f", None),
    "lone surrogate": ("\ud800A", None),
    "JSON": ('{"verdict": "A"}', None),
    "a tie without ties": ("C", None),
    "markdown heading": ("# A", None),
    "struck through": ("~~A~~", None),
    "nothing": ("", None),
    "blanks": (" \n\t ", None),
    "a refusal": ("As an AI, I cannot choose", None),
    "unbalanced": ("[[A]", None),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS.keys())
def test_a_verdict_is_the_whole_text(text: str, expected: str | None) -> None:
    said = answers.said(spoken(text), AB, 0.5, "The better answer is (")
    assert winner(said) == expected
    assert said.failure == (None if expected else "no_verdict")


SCORES = {
    "a number": ("4", "4"),
    "of five": ("4/5", "4"),
    "named": ("Score: 3", "3"),
    "of ten": ("4/10", None),
    "a fraction": ("4.5", None),
    "scientific": ("1e1", None),
    "five times ten to the nought": ("5e0", None),
    "Arabic-Indic digit": ("٣", None),
    "full-width digit": ("３", None),
    "superscript": ("³", None),
    "Roman": ("Ⅳ", None),
    "a word": ("four", None),
    "signed": ("+4", None),
    "negative": ("-4", None),
    "leading nought": ("04", None),
    "above the scale": ("6", None),
    "ten": ("10", None),
    "a range": ("3-4", None),
    "two": ("3\n4", None),
    "negated": ("not 4", None),
    "a percentage": ("4%", None),
    "four hundred digits": ("9" * 400, None),
}


@pytest.mark.parametrize(("text", "expected"), SCORES.values(), ids=SCORES.keys())
def test_a_score_is_the_whole_text(text: str, expected: str | None) -> None:
    assert winner(answers.said(spoken(text), "12345", 0.5, suffix="/5")) == expected


FIRST = {
    "verdict, then reasons": ("A\nIt is exact.", "A", "It is exact."),
    "a blank line between": ("B)\n\nShorter.", "B", "Shorter."),
    "no reasons": ("A", "A", ""),
    "reasons that name both": ("A\nAnswer A beats answer B.", "A", "Answer A beats answer B."),
    "another verdict below": ("A\nNo:\nB", None, "No:\nB"),
    "reasons first": ("It is exact.\nA", None, "A"),
    "on one line": ("A because it is exact", None, ""),
}


@pytest.mark.parametrize(("text", "expected", "rest"), FIRST.values(), ids=FIRST.keys())
def test_a_verdict_before_reasons_is_the_first_line(text: str, expected: str | None, rest: str) -> None:
    said = answers.said_first(spoken(text), AB, 0.5, "The better answer is (")
    assert (winner(said), said.rest) == (expected, rest)


def test_reasons_that_were_cut_leave_the_verdict() -> None:
    assert winner(answers.said_first(spoken("A\nIt is", "length"), AB, 0.5)) == "A"
    assert answers.said_first(spoken("A", "length"), AB, 0.5).failure == "cut"


LAST = {
    "reasons, then the score": ("On the subject.\nScore: 3", "3"),
    "bold": ("Good.\n**Score: 4**", "4"),
    "bold name": ("Good.\n**Score:** 4/5", "4"),
    "total": ("Good.\nTotal score: 5", "5"),
    "the same twice": ("Score: 4\nso\nScore: 4", "4"),
    "a mention on the way": ("I thought of a score of 2.\nScore: 4", "4"),
    "two scores": ("Score: 2\nScore: 4", None),
    "one that cannot be read": ("Score: high\nScore: 4", None),
    "not at the end": ("Score: 4\nThat is my view.", None),
    "in the sentence": ("So I give it Score: 4", None),
    "a range": ("Score: 3-4", None),
    "out of scale": ("Score: 7", None),
    "a word": ("Score: four", None),
    "no score": ("It is good.", None),
    "the form repeated": ("Score: <0 to 5>", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize(("text", "expected"), LAST.values(), ids=LAST.keys())
def test_a_score_after_reasons_is_the_last_line(text: str, expected: str | None) -> None:
    assert winner(answers.said_last(spoken(text), "012345", ("Score", "Total score"), "/5")) == expected


JSON = {
    "an object": ('{"verdict": "A"}', "A"),
    "in a block": ('```json\n{"verdict": "B"}\n```', "B"),
    "a second field": ('{"verdict": "A", "note": "B"}', None),
    "the field twice": ('{"verdict": "A", "verdict": "B"}', None),
    "inside text": ('Sure! {"verdict": "A"}', None),
    "two objects": ('{"verdict": "A"} {"verdict": "B"}', None),
    "in a list": ('[{"verdict": "A"}]', None),
    "a list in it": ('{"verdict": ["A"]}', None),
    "blanks in the value": ('{"verdict": " A"}', None),
    "null": ('{"verdict": null}', None),
    "true": ('{"verdict": true}', None),
    "cut off": ('{"verdict": "A"', None),
    "no JSON": ("A", None),
    "nested too deep": ("[" * 20_000, None),
    "single quotes": ("{'verdict': 'A'}", None),
}


@pytest.mark.parametrize(("text", "expected"), JSON.values(), ids=JSON.keys())
def test_a_verdict_in_json_is_its_one_field(text: str, expected: str | None) -> None:
    assert winner(answers.in_json(spoken(text), "verdict", AB)) == expected


def test_json_may_hold_the_reasons_that_were_asked_for() -> None:
    text = '{"reasoning": "A is exact", "verdict": "A"}'
    said = answers.in_json(spoken(text), "verdict", AB, "reasoning")
    assert (winner(said), said.rest) == ("A", "A is exact")
    assert winner(answers.in_json(spoken(text), "verdict", AB)) is None
    assert answers.in_json(spoken(text, "length"), "verdict", AB).failure == "cut"


NAMES = {"help": tuple("12345"), "honesty": tuple("12345"), "instruction-following": tuple("12345")}
SEVERAL = {
    "lines": ("help: 5\nhonesty: 4\ninstruction-following: 3", (5, 4, 3)),
    "another order": ("honesty: 4\ninstruction following: 3\nhelp: 5", (5, 4, 3)),
    "blank lines": ("help: 5\n\n\nhonesty: 4\n\ninstruction-following: 3", (5, 4, 3)),
    "a line left out": ("help: 5\ninstruction-following: 3", (5, None, 3)),
    "a blank value": ("help:\nhonesty: 4\ninstruction-following: 3", (None, 4, 3)),
    "a rationale with a blank line": ("help: 5\nBecause\n\nit is.\nhonesty: 4\ninstruction-following: 3", (5, 4, 3)),
    "one that cannot be read": ("help: five\nhonesty: 4\ninstruction-following: 3", (None, 4, 3)),
    "one out of scale": ("help: 10\nhonesty: 4\ninstruction-following: 3", (None, 4, 3)),
    "one said twice": ("help: 5\nhelp: 1\nhonesty: 4\ninstruction-following: 3", (None, 4, 3)),
    "marks and numbers": ("1. **Help**: 5/5\n2. *Honesty:* 4\n- Instruction Following: 3", (5, 4, 3)),
    "numbers alone": ("5\n4\n3", (None, None, None)),
    "on one line": ("help: 5, honesty: 4", (None, None, None)),
    "JSON": ('{"help": 5, "honesty": 4, "instruction-following": "3"}', (5, 4, 3)),
    "JSON, one wrong": ('{"help": 5.5, "honesty": 4, "instruction-following": true}', (None, 4, None)),
    "JSON, one twice": ('{"help": 5, "help": 1, "honesty": 4, "instruction-following": 3}', (None, 4, 3)),
    "the form repeated": ("help: <number from 1 to 5>", (None, None, None)),
    "nothing": ("", (None, None, None)),
}


@pytest.mark.parametrize(("text", "expected"), SEVERAL.values(), ids=SEVERAL.keys())
def test_each_of_several_answers_stands_or_fails_alone(text: str, expected: tuple[int | None, ...]) -> None:
    heard = answers.several(spoken(text), NAMES, dict.fromkeys(NAMES, "/5"))
    assert [winner(said) for said in heard.values()] == [None if e is None else str(e) for e in expected]


def test_lines_before_a_cut_are_whole_and_the_one_at_it_is_not() -> None:
    heard = answers.several(spoken("help: 5\nhonesty: 1", "length"), NAMES, {})
    assert [(winner(s), s.failure) for s in heard.values()] == [("5", None), (None, "cut"), (None, "cut")]
    cut = answers.several(spoken('{"help": 5, "honesty": 4', "length"), NAMES, {})
    assert {said.failure for said in cut.values()} == {"cut"}


def test_a_failed_call_fails_every_answer() -> None:
    failure = Failure("timeout", "after 60 s", True)
    heard = answers.several(spoken("help: 5", failure=failure), NAMES, {})
    assert {said.failure for said in heard.values()} == {"timeout"}


# ------------------------------------------------------------------------------------------------- hostile strings


def test_the_corpus_is_what_it_is_said_to_be() -> None:
    assert len(set(CORPUS)) == 12_000
    assert hostile.corpus(500) == CORPUS[:500]
    assert sum("\ud800" in text for text in CORPUS) > 20
    assert sum("\x00" in text for text in CORPUS) > 20


def test_no_hostile_text_invents_a_winner() -> None:
    """By an oracle without a parser: with the words and marks taken away that may stand around it, the letter is all
    that is left."""
    taken = 0
    for text in CORPUS:
        said = answers.said(spoken(text), AB, 0.5, "The better answer is (")
        found = winner(said)
        if found is not None:
            taken += 1
            assert hostile.allowed_words(text) == found, repr(text)
        else:
            assert said.failure == "no_verdict"
    assert taken > 20


def test_no_hostile_text_makes_up_a_score() -> None:
    for text in CORPUS:
        found = winner(answers.said(spoken(text), "12345", 0.5, "My rating of the answer is (", "/5"))
        if found is not None:
            left = hostile.allowed_words(text.replace("My rating of the answer is", "")).replace(" ", "")
            assert left in (found, f"{found}/5"), repr(text)


def test_no_hostile_text_is_json_that_it_is_not() -> None:
    for text in CORPUS:
        found = winner(answers.in_json(spoken(text), "verdict", AB))
        if found is not None:
            bare = text.strip().removeprefix("```json").removesuffix("```")
            assert hostile.loads(bare) == {"verdict": found}, repr(text)


def test_no_hostile_text_has_a_last_line_that_it_has_not() -> None:
    for text in CORPUS:
        found = winner(answers.said_last(spoken(text), "012345", ("Score",), "/5"))
        if found is not None:
            last = text.strip().splitlines()[-1]
            assert last.lower().count("score") == 1
            assert [c for c in last.replace("/5", "") if c.isdigit()] == [found], repr(text)


JUDGES = (
    PairwiseJudge(ties=True),
    PairwiseJudge(reasoning="after"),
    PairwiseJudge(form="json", reasoning="first"),
    RatingJudge(constitution="quality-aspects", together=True),
    RatingJudge(constitution="quality-aspects", together=True, form="json"),
    SelfRewardJudge(reasoning="written"),
    SelfRewardJudge(reasoning="first"),
    RubricJudge(criteria=["It names a river.", {"text": "It is rude.", "weight": -2}], together=True),
)


@pytest.mark.parametrize("judge", JUDGES, ids=lambda j: f"{j.name} {getattr(j, 'reasoning', '')}")
def test_every_judge_reads_every_hostile_text_and_says_nothing_beyond_its_scale(judge: PairwiseJudge) -> None:
    ask = judge.asks(matchup_of(b="No." if judge.kind == "pairwise" else None))[0]
    for text in CORPUS[::4]:
        for found in judge.read(ask, completed(ask, text)):
            _sound(found, ask)


def _sound(found: Reading, ask: Ask) -> None:
    if found.failure is not None:
        assert found.p_a is None
        assert found.score is None
        assert found.verdict in (None, "none")
    elif found.score is not None:
        assert found.score_low is not None
        assert found.score_high is not None
        assert found.score_low <= found.score <= found.score_high
    else:
        assert found.p_a in (0.0, 0.5, 1.0) if ask.labels else found.verdict is None


READERS = (
    lambda c: answers.said(c, AB, 0.5, "The better answer is ("),
    lambda c: answers.said_first(c, AB, 0.5),
    lambda c: answers.said_last(c, AB, ("Score",)),
    lambda c: answers.in_json(c, "verdict", AB, "reasoning"),
)


@settings(max_examples=2_000, deadline=None)
@given(st.text(max_size=80), st.sampled_from(["stop", "length", "", "\x00"]), st.sampled_from(READERS))
def test_no_text_raises(text: str, finish: str, reader: object) -> None:
    said = reader(spoken(text, finish))  # type: ignore[operator]
    assert bool(said.shares) == (said.failure is None)


@pytest.mark.parametrize("text", [None, 3, b"A", ["A"]])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_text_is_no_verdict(text: object, reader: object) -> None:
    assert reader(spoken(text)).failure == "no_verdict"  # type: ignore[operator, arg-type]
    assert answers.several(spoken(text), NAMES, {})["help"].failure == "no_verdict"  # type: ignore[arg-type]


def test_reading_is_linear() -> None:
    for text in (
        "Answer: " * 50_000,
        "help:" * 50_000,
        "*" * 200_000,
        "\n" * 200_000,
        '{"a":' * 50_000,
        "Score: " * 40_000,
    ):
        for reader in READERS:
            assert reader(spoken(text)).failure == "no_verdict"
        assert answers.several(spoken(text), NAMES, {})["help"].failure == "no_verdict"


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (lambda said: answers.said_first(said, AB, 0.5), "<think>Score: 1</think>\nB\nIt is longer."),
        (lambda said: answers.said_last(said, AB, ["verdict"]), "<think>Verdict: A</think>\nIt is longer.\nVerdict: B"),
        (lambda said: answers.in_json(said, "verdict", AB), '<think>{"verdict": "A"}</think>\n{"verdict": "B"}'),
        (lambda said: answers.several(said, {"tone": AB}, {})["tone"], "<think>tone: A</think>\ntone: B"),
    ],
)
def test_thoughts_before_an_answer_say_nothing(read: Callable[[Completion], answers.Said], text: str) -> None:
    assert winner(read(spoken(text))) == "B"


@pytest.mark.parametrize(("finish", "failure"), [("stop", "no_verdict"), ("length", "cut")])
def test_thoughts_without_an_end_say_nothing(finish: str, failure: str) -> None:
    """Also where a line of theirs looks like the verdict."""
    assert answers.said_first(spoken("<think>\nB\nlong", finish), AB, 0.5).failure == failure
    assert answers.said_last(spoken("<think>Longer.\nVerdict: A", finish), AB, ["verdict"]).failure == failure
    tones = answers.several(spoken("<think>\ntone: A\nuse: B", finish), {"tone": AB, "use": AB}, {})
    assert [said.failure for said in tones.values()] == [failure, failure]
