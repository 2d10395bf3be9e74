"""The bundled instructions: enough of them, valid, worded as checked, without contradictions, split by topic."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from factory import constraints
from factory.prompts import BUNDLED_SHARES, add_prompts
from factory.prompts.splits import group_of, split_of
from factory.resources import bundled
from factory.schema import Message, Prompt, now
from factory.store import Store

ROWS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (bundled("pipelines") / "prompts" / "verifiable.jsonl").read_text(encoding="utf-8").splitlines()
]
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six")


def test_size_and_variety() -> None:
    assert 240 <= len(ROWS) <= 480
    assert len({row["prompt"] for row in ROWS}) == len(ROWS)
    assert len({row["topic"] for row in ROWS}) >= 60
    assert len({row["task"] for row in ROWS}) >= 5
    kinds = Counter(c["kind"] for row in ROWS for c in row["constraints"])
    assert set(kinds) == {name for name in constraints.KINDS.names() if not constraints.KINDS.get(name).settles}
    assert min(kinds.values()) >= 3
    counts = Counter(len(row["constraints"]) for row in ROWS)
    assert set(counts) == {1, 2, 3}
    assert counts[1] > counts[2] > counts[3] > 0


def test_every_constraint_is_valid() -> None:
    assert [fault for row in ROWS for fault in constraints.faults(row["constraints"])] == []


def _named(constraint: dict[str, Any]) -> list[str]:
    """The texts that the instruction must contain for this constraint."""
    texts = [constraint.get("phrase", ""), constraint.get("word", ""), constraint.get("marker", "")]
    return [t for t in (*texts, *constraint.get("words", ()), *constraint.get("keys", ())) if t]


def _number_is_named(constraint: dict[str, Any], prompt: str) -> bool:
    count = constraint.get("count", 0)
    if count < 2 or constraint["kind"] == "placeholders" or (count == 2 and "twice" in prompt):
        return True
    return str(count) in prompt if count > 6 else NUMERALS[count] in prompt.lower() or f"from 1 to {count}" in prompt


def test_each_instruction_says_what_is_checked() -> None:
    checked = [(c, row["prompt"]) for row in ROWS for c in row["constraints"]]
    assert [(c, p) for c, p in checked if not all(f'"{text}' in p for text in _named(c))] == []
    assert [(c, p) for c, p in checked if not _number_is_named(c, p)] == []


# ------------------------------------------------------------- an answer that meets all of a prompt's constraints

CLAUSES = (
    "warm rooms calm people", "gradual steps bring change", "patient friends share stories", "sharp tools last longer",
    "crisp air lifts spirits", "a plain meal feeds six hungry guests",
)  # fmt: skip
SPOKEN = {
    "es": (
        "el aire de la mañana es bueno para todos",
        "un libro nos ayuda a pensar en el futuro",
        "la casa de mi amigo es muy grande",
        "el tren sale a las nueve de la noche",
    ),
    "fr": (
        "le matin est un moment calme de la vie",
        "il aide les gens à mieux penser",
        "la maison de mon ami est très grande",
        "le train part à neuf heures du soir",
    ),
    "de": (
        "der Morgen ist eine ruhige Zeit",
        "er hilft den Menschen bei der Arbeit",
        "das Haus von meinem Freund ist sehr groß",
        "der Zug kommt erst um neun Uhr an",
    ),
    "it": (
        "il mattino è un momento di calma",
        "la lettura ci aiuta a pensare di più",
        "la casa del mio amico è molto grande",
        "il treno parte alle nove di sera",
    ),
    "pt": (
        "o ar da manhã é bom para todos",
        "um livro nos ajuda a pensar no futuro",
        "a casa do meu amigo é muito grande",
        "o trem sai às nove da noite",
    ),
}
PUT_IN = {
    "capital_words": "SO VERY TRUE",
    "highlights": "*this* **that**",
    "numbers": "12 or 34",
    "placeholders": "[name] [place]",
}
LONGER = (
    "and the kitchen clock ticks on while rain falls over distant hills and woods until someone brings bread with "
    "cheese and olives for all who sit at the round table near the door that never quite closes"
)
FORMS = {
    "bullets": ("- ", "\n"),
    "numbered_list": ("{}. ", "\n"),
    "lines": ("", "\n"),
    "paragraphs": ("", "\n\n"),
    "sentences": ("", " "),
}


def _answer(wanted: list[dict[str, Any]]) -> str:
    """An answer put together from what each constraint asks for."""
    by = {c["kind"]: c for c in wanted}
    said = [text for kind, text in PUT_IN.items() if kind in by]
    said += by.get("required_words", {}).get("words", [])
    said += [by["keyword_frequency"]["word"]] * by["keyword_frequency"]["count"] if "keyword_frequency" in by else []
    clauses = list(SPOKEN[by["language"]["language"]] if "language" in by else CLAUSES)
    said += [LONGER] if "min_words" in by else []
    clauses[0] = " ".join([clauses[0], *said])
    if "json_object" in by:
        return json.dumps(dict(zip(by["json_object"]["keys"], clauses, strict=False)))
    text = _framed(by, _shaped(by, clauses))
    text = text.lower() if "lower_case" in by else text.upper() if "upper_case" in by else text
    return f'"{text}"' if "quoted" in by else text


def _shaped(by: dict[str, dict[str, Any]], clauses: list[str]) -> str:
    questions = by.get("questions", {}).get("count", 0)
    parts = [clause + ("?" if i < questions else ".") for i, clause in enumerate(clauses)]
    for kind, (mark, joint) in FORMS.items():
        if kind in by:
            items = [mark.format(i) + part for i, part in enumerate(parts[: by[kind]["count"]], 1)]
            return joint.join(items)
    return " ".join(parts[: max(questions, 2)])


def _framed(by: dict[str, dict[str, Any]], text: str) -> str:
    if "start_phrase" in by:
        text = f"{by['start_phrase']['phrase']}{chr(10) if {'bullets', 'numbered_list'} & set(by) else ' '}{text}"
    if "title" in by:
        text = f"<<Notes>>\n{text}"
    if "postscript" in by:
        text += "\n\nP.S. bring warm socks"
    return f"{text}\n{by['end_phrase']['phrase']}" if "end_phrase" in by else text


def _verdict(row: dict[str, Any], answer: str) -> constraints.Verdict:
    asked = [Message(role="user", content=row["prompt"])]
    prompt = Prompt(key="p", messages=asked, split="train", group="g", at=now())
    return constraints.verify(row["constraints"], answer, prompt)


def test_some_answer_meets_all_constraints_of_each_prompt() -> None:
    answers = {row["prompt"]: _answer(row["constraints"]) for row in ROWS}
    verdicts = {row["prompt"]: _verdict(row, answers[row["prompt"]]) for row in ROWS}
    assert [(p, answers[p], v) for p, v in verdicts.items() if not v.all_met] == []


def test_the_prompt_itself_is_no_answer() -> None:
    assert [row["prompt"] for row in ROWS if _verdict(row, row["prompt"]).all_met] == []


# -------------------------------------------------------------------------------------------------------- splits


def test_split_by_topic_is_large_enough_to_measure() -> None:
    sizes = Counter(split_of(str(group_of(row["group"], None, None)), BUNDLED_SHARES) for row in ROWS)
    assert sizes["train"] >= 200
    assert sizes["heldout"] >= 90
    assert sizes["final"] >= 60


def test_added_by_name(tmp_path: Any) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        report = add_prompts(store, "verifiable")
        prompts = store.rows(Prompt)
    assert report.prompts == len(prompts) == len(ROWS)
    assert report.failures == ()
    assert report.unused == ()
    assert {p.source for p in prompts} == {"verifiable"}
    assert all(p.constraints and p.topic and p.task for p in prompts)
    topics = {split: {p.topic for p in prompts if p.split == split} for split in ("train", "heldout", "final")}
    assert not topics["train"] & topics["heldout"]
    assert not topics["final"] & (topics["train"] | topics["heldout"])
