"""Every kind of constraint passes, fails, and stays calm on hostile text; the floor on substance holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from factory import constraints
from factory.constraints.answer import Answer, clean
from factory.constraints.language import NAMES, guess
from factory.faults import ConfigError
from factory.schema import Message, Prompt, now

TALK = "Bread rises because yeast makes gas. The oven sets it. People love the smell."


def prompt(text: str) -> Prompt:
    return Prompt(key="p", messages=[Message(role="user", content=text)], split="train", group="g", at=now())


# kind with parameters, texts that meet it, texts that do not
CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"kind": "min_words", "count": 4}, ["one two three four", "well-known don't stop now"], ["one two three", ""]),
    ({"kind": "max_words", "count": 3}, ["one two three", "well-known don't stop", "- — *"], ["one two three four"]),
    ({"kind": "sentences", "count": 3}, [TALK, "One. Two?\n\nThree!"], ["One. Two.", TALK + " More."]),
    ({"kind": "sentences", "count": 1, "relation": "at_most"}, ["Dr. Smith paid 3.5 euros, e.g. for bread."], [TALK]),
    ({"kind": "sentences", "count": 2, "relation": "at_least"}, ["Is it? Yes", "你好。再见。"], ["No stop at all"]),
    ({"kind": "sentences", "count": 2}, ["<<A title>>\nOne here. Two here.", '"One." Two.'], ["One. Two. Three."]),
    ({"kind": "paragraphs", "count": 2}, ["a b\n\nc d", "<<T>>\n\na\nb\r\n\r\n\r\nc"], ["a\nb", "a\n\nb\n\nc"]),
    ({"kind": "lines", "count": 2}, ["one\n\ntwo", "<<T>>\none\ntwo"], ["one", "one\ntwo\nthree"]),
    ({"kind": "bullets", "count": 2},
     ["- a\n- b", "Here:\n• a\n● b\nbye", "* a\r\n* b"],
     ["- a", "- a\n-b\n- ", "1. a\n2. b"]),
    ({"kind": "bullets", "count": 2, "relation": "at_least"}, ["‣ a\n– b\n✓ c"], ["**bold** text\n- a", "---\n***"]),
    ({"kind": "numbered_list", "count": 3},
     ["1. a\n2. b\n3. c", "(1) a\n(2) b\n(3) c"],
     ["1. a\n1. b\n1. c", "3.5 kg\n1. a"]),
    ({"kind": "required_words", "words": ["yeast", "olive oil"]},
     ["YEAST and olive\noil"],
     ["yeasts and olive oil", "yeast"]),
    ({"kind": "required_words", "words": ["don't"]}, ["I don’t know"], ["I do not know"]),
    ({"kind": "forbidden_words", "words": ["good"]}, ["goodness gracious"], ["Good!", "so-good"]),
    ({"kind": "keyword_frequency", "word": "cat", "count": 2}, ["Cat and cat", "cat-cat"], ["cat and cats", "cat"]),
    ({"kind": "keyword_frequency", "word": "cat", "count": 1, "relation": "at_most"}, ["no", "cat"], ["cat cat"]),
    ({"kind": "numbers", "count": 2}, ["from 1,000 to 2.5", "in 1990 and 2000"], ["one 1", "1. a\n2. b\n3. c", "3.14"]),
    ({"kind": "language", "language": "fr"}, ["Le pain est sur la table et il est très bon."], [TALK, "oui", ""]),
    ({"kind": "lower_case"}, ["all small, 3 of them"], ["One capital", "123", "ǅ small", "面包"]),
    ({"kind": "upper_case"}, ["ALL BIG, 3 OF THEM"], ["NOT ALl", "123"]),
    ({"kind": "capital_words", "count": 2}, ["THIS is BIG"], ["I AM", "I A B", "this is BIG"]),
    (
        {"kind": "json_object", "keys": ["a"]},
        ['{"a": 1}', '```json\n{"a": {"b": []}, "c": null}\n```', "```\n{\"a\": 2}```"],
        ["[1]", '{"b": 1}', 'Sure: {"a": 1}', '{"a": NaN}', "{'a': 1}", "{", '"a"'],
    ),
    ({"kind": "json_object"}, ["{}"], ["null"]),
    ({"kind": "title"}, ["<<My title>>\ntext", "text << t >>"], ["<My title>", "<<>>", "<< ! >>", "<<a\nb>>"]),
    (
        {"kind": "quoted"},
        ['"all of it"', " “all of it”\n", "«tout»", '"he said "no" and left"', "“she said “yes” and “no””"],
        ['"all" of it', '"', '""', "'a b'", '"Rivers" flow to "oceans"', "“Rivers” flow to “oceans”"],
    ),
    ({"kind": "no_commas"}, ["none here"], ["one, here", "一，二"]),
    ({"kind": "placeholders", "count": 2}, ["[name] at [place]"], ["[name] and [Name]", "[a](b) [c](d)", "[]  [ ]"]),
    ({"kind": "highlights", "count": 2}, ["*one* and **two words**"], ["*one*", "2 * 3 * 4 * 5", "* a\n* b"]),
    ({"kind": "questions", "count": 1}, ["Why? Because.", 'He said "why?"'], ["Why not.", ""]),
    ({"kind": "start_phrase", "phrase": "In short"},
     ["in  short, bread", '"In short: yes"', "**In short** ok"],
     ["In shorts", "So"]),
    ({"kind": "end_phrase", "phrase": "That is all."},
     ["Bread. that is\nall.", '"Yes. That is all."'],
     ["That is all. Bye", "That is"]),
    ({"kind": "end_phrase", "phrase": "Good luck"},
     ["so good luck!", "Good luck."],
     ["no good luckiness", "xgood luck"]),
    ({"kind": "postscript"},
     ["Hello.\n\nP.S. bring some bread", "Hi there PS: see you"],
     ["P.S. only this here", "Hello. P.S. bread", "tips"]),
    ({"kind": "postscript", "marker": "P.P.S."}, ["Hello. P.S. one two P.P.S. three four"], ["Hello. P.S. three four"]),
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "good", "bad"), CASES)
def test_kind(constraint: dict[str, Any], good: list[str], bad: list[str]) -> None:
    for text in good:
        assert constraints.check(constraint, text).met, (text, constraints.check(constraint, text).why)
    for text in bad:
        assert not constraints.check(constraint, text).met, (text, constraints.check(constraint, text).why)


def test_an_example_of_the_prompt_is_no_title_or_highlight() -> None:
    asked = prompt("Add a title such as <<my title>> and highlight a word *like this*.")
    for constraint, echo, own in (
        ({"kind": "title"}, "<<my title>> bread", "<<Bread>> bread"),
        ({"kind": "highlights", "count": 1}, "bread *like this*", "bread *like that*"),
    ):
        assert not constraints.check(constraint, echo, asked).met
        assert constraints.check(constraint, own, asked).met


def test_every_kind_has_cases() -> None:
    assert {c["kind"] for c, _, _ in CASES} == {
        n for n in constraints.KINDS.names() if not constraints.KINDS.get(n).settles
    }
    assert len(constraints.KINDS.names()) >= 12


def test_invisible_characters_change_nothing() -> None:
    constraint = {"kind": "end_phrase", "phrase": "That is all."}
    assert constraints.check(constraint, "\ufeffBread.\u200b That\u00a0is\u202e al\u00adl.\u200f\x00").met
    assert clean("a\r\nb\rc\u2028d\x00\u200d\ud800") == "a\nb\nc\nd\ufffd"


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert constraints.check({"kind": "required_words", "words": ["café"]}, "a cafe\u0301 there").met


def test_a_look_alike_letter_is_another_letter() -> None:
    assert not constraints.check({"kind": "required_words", "words": ["bread"]}, "bre\u0430d").met


def test_sentences_know_abbreviations_and_items() -> None:
    text = (
        "Mr. J. Smith came at 5 p.m. on foot. He left!\n\n# Why\n- first thing\n- second thing\n  goes on\n1. Stop. Go"
    )
    assert Answer(text).sentences == [
        "Mr. J. Smith came at 5 p.m. on foot.", "He left!", "Why", "first thing", "second thing goes on", "Stop.", "Go",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ language

SAMPLES = {
    "en": "The bread is on the table and it smells very good.",
    "es": "El pan está en la mesa y huele muy bien.",
    "fr": "Le pain est sur la table et c'est très bon.",
    "de": "Das Brot liegt auf dem Tisch und es riecht sehr gut.",
    "it": "Il pane è sulla tavola e non è molto caro.",
    "pt": "O pão está na mesa e é muito bom para você.",
    "nl": "Het brood ligt op de tafel en het is heel lekker.",
    "sv": "Brödet ligger på bordet och det är mycket gott.",
    "ru": "Хлеб лежит на столе, и он очень вкусный.",
    "uk": "Хліб лежить на столі, і він дуже смачний.",
    "zh": "面包在桌子上，闻起来很香。",
    "ja": "パンはテーブルの上にあります。",
    "ko": "빵이 식탁 위에 있습니다.",
    "ar": "الخبز على الطاولة",
    "he": "הלחם על השולחן",
    "el": "Το ψωμί είναι στο τραπέζι",
    "hi": "रोटी मेज पर है",
    "th": "ขนมปังอยู่บนโต๊ะ",
}


@pytest.mark.parametrize("code", NAMES)
def test_language_is_told(code: str) -> None:
    assert guess(SAMPLES[code]) == code


@pytest.mark.parametrize(
    "text", ["", "42", "ok", "xyzzy plugh quux", "نان روی میز است گچ", SAMPLES["zh"] + SAMPLES["ko"]]
)
def test_unknown_language_is_said_to_be(text: str) -> None:
    assert guess(text) == "unknown"


def test_language_of_the_prompt() -> None:
    same = {"kind": "language", "language": "prompt"}
    assert constraints.check(same, SAMPLES["es"], prompt("¿Qué es el pan y cómo se hace en la casa?")).met
    assert not constraints.check(same, SAMPLES["es"], prompt("What is the bread that you like?")).met
    assert not constraints.check(same, SAMPLES["es"]).met


# ----------------------------------------------------------------------------------------------------- substance

END = [{"kind": "end_phrase", "phrase": "That is all."}]
ASK = 'Tell me how bread is made. End with the exact words "That is all."'


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (END, "That is all."),
        (END, "Bread. That is all."),
        (END, "It is what it is and that is that. That is all. That is all."),
        (END, ASK + " That is all."),
        (END, "Bread is made. Bread is made. That is all."),
        (END, "Knead flour, water, yeast slowly. " * 6 + "That is all."),
        (END, "mix water flour salt and bake the loaf " * 12 + ". That is all."),
        (END, "aaaaaaaaaaaaaaaaaaaaaaaaaaaa. That is all."),
        ([{"kind": "required_words", "words": ["flour", "yeast", "olive oil"]}], "Flour, yeast, olive oil."),
        ([{"kind": "keyword_frequency", "word": "bread", "count": 3}], "bread bread bread bread"),
        ([{"kind": "bullets", "count": 3}], "- bread\n- bread\n- bread"),
        ([{"kind": "json_object", "keys": ["answer"]}], '{"answer": ""}'),
        ([{"kind": "json_object", "keys": ["answer"]}], '{"answer": "answer", "flour water yeast salt": null}'),
        ([{"kind": "lower_case"}], "sure, here it is"),
        ([{"kind": "title"}], "<<Bread>>"),
        ([{"kind": "title"}], "<<Warm Loaves Rise Slowly Every Morning>>"),
        ([{"kind": "no_commas"}], "I will tell you how bread is made without using commas."),
        ([{"kind": "no_commas"}], "I am sorry but I cannot help with that request."),
        ([{"kind": "no_commas"}], "I’m sorry but I can’t answer your question."),
        ([{"kind": "lower_case"}], ""),
    ],
)
def test_hollow_answers_do_not_pass(wanted: list[dict[str, Any]], text: str) -> None:
    verdict = constraints.verify(wanted, text, prompt(ASK))
    assert not verdict.substance.met
    assert not verdict.all_met


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (END, "Mix flour, water and yeast, let it rise, then bake it. That is all."),
        ([{"kind": "bullets", "count": 3}], "- flour\n- water\n- salt"),
        ([{"kind": "max_words", "count": 3}], "Flour and heat"),
        ([{"kind": "json_object", "keys": ["answer"]}], '```json\n{"answer": "Knead, wait, then bake."}\n```'),
        ([{"kind": "lines", "count": 4}], "the rain\nthe wind\nthe morning\nthe door"),
        ([{"kind": "language", "language": "es"}], "El pan se hace con harina, agua y levadura."),
        ([{"kind": "language", "language": "zh"}], "面包是用面粉和水做的。"),
        (
            [{"kind": "keyword_frequency", "word": "bread", "count": 3}],
            "Bread needs time. Good bread needs flour; fresh bread smells warm.",
        ),
    ],
)  # fmt: skip
def test_short_but_sound_answers_pass(wanted: list[dict[str, Any]], text: str) -> None:
    verdict = constraints.verify(wanted, text, prompt("Tell me how it is made."))
    assert verdict.all_met, verdict


def test_a_long_prompt_may_be_worked_on_but_not_copied() -> None:
    source = " ".join(f"On day {i} the captain noted wind, rain and a heading of {i * 7} degrees." for i in range(20))
    asked = prompt("Shorten this log: " + source)
    assert constraints.verify(
        [{"kind": "no_commas"}], "The captain noted wind and rain on day one", asked
    ).substance.met
    assert not constraints.verify([{"kind": "no_commas"}], source, asked).substance.met


def test_share_and_all_met() -> None:
    wanted: list[dict[str, Any]] = [{"kind": "lower_case"}, {"kind": "sentences", "count": 3}]
    verdict = constraints.verify(wanted, TALK)
    assert [c.met for c in verdict.checks] == [False, True]
    assert verdict.share == 0.5
    assert verdict.substance.met
    assert not verdict.all_met


# -------------------------------------------------------------------------------------------------------- faults


def test_all_faults_at_once() -> None:
    wrong: list[Any] = [
        {"kind": "max_word", "count": 3},
        {"kind": "max_words", "count": 0, "colour": "red"},
        {"kind": "required_words"},
        {"kind": "sentences", "count": True, "relation": "about"},
        {"kind": "forbidden_words", "words": "good"},
        {"kind": "required_words", "words": ["good", "!"]},
        "lower_case",
    ]
    with pytest.raises(ConfigError) as caught:
        constraints.verify(wrong, "text")
    faults = caught.value.faults
    assert len(faults) == 9
    assert "did you mean 'max_words'" in faults[0]
    assert "no parameter 'colour'; known: count" in faults[1]
    assert any("parameter 'words' is missing" in f for f in faults)
    assert constraints.faults({"kind": "title"}) == ["constraints must be a list, not dict"]
    assert constraints.faults([]) == []


# ------------------------------------------------------------------------------------------------------- hostile

ALL = [constraint for constraint, _, _ in CASES]
HOSTILE = {
    "empty": "",
    "spaces": " " * 300_000,
    "nul": "\0" * 300_000,
    "surrogates": "\ud800" * 300_000,
    "zero width": "\u200d" * 300_000,
    "right to left": "\u202eabc\u202c " * 50_000,
    "stops": "." * 300_000 + "x",
    "stops and quotes": '."' * 150_000 + "x",
    "stars": "*a" * 150_000,
    "open brackets": "[" * 300_000,
    "brackets": "[a" * 150_000,
    "angles": "<<a" * 100_000,
    "marks": "e" + "\u0301\u0323" * 150_000,
    "deep json": '{"a":' * 100_000,
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "one word": "a" * 300_000,
    "hyphens": "a-" * 150_000,
    "bullets": "- a\n" * 75_000,
    "numbers": "1." * 150_000,
    "digits": "9" * 300_000,
    "json digits": '{"a": ' + "9" * 300_000 + "}",
    "backticks": "`" * 300_000,
    "postscripts": "p.s" * 100_000,
    "hashes": "# " * 150_000,
    "line feeds": "\r\n" * 150_000,
    "han": "面" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_meets_a_verdict(name: str) -> None:
    verdict = constraints.verify(ALL, HOSTILE[name], prompt(ASK))
    assert len(verdict.checks) == len(ALL)
    assert not verdict.all_met


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from(".!?,*[]<>\"'`-#{}: \n12aAÉ面\u200b\ud800"))))
def test_never_raises_and_is_deterministic(text: str) -> None:
    first = constraints.verify(ALL, text, prompt(text))
    assert constraints.verify(ALL, text, prompt(text)) == first


@settings(max_examples=80, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_json_objects_are_told_from_other_values(value: Any) -> None:
    met = constraints.check({"kind": "json_object"}, json.dumps(value)).met
    assert met == isinstance(value, dict)


@settings(max_examples=80, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_faults_never_raises(value: Any) -> None:
    assert isinstance(constraints.faults(value), list)
    assert constraints.faults([value])
