"""Adding prompts and preference data to a store: what goes in, what is reported, and that splits hold."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from factory.faults import ConfigError, FactoryError
from factory.pairing import pair
from factory.prompts import add_prompts
from factory.prompts.entering import AddReport
from factory.prompts.scored import scale_of
from factory.schema import Candidate, Judgment, Label, Preference, Prompt, digest
from factory.store import Store

U, A = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def add(store: Store, tmp_path: Path) -> Any:
    """Add rows, written as JSON lines, to the store."""

    def added(*rows: Any, name: str = "data.jsonl", **options: Any) -> AddReport:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return add_prompts(store, str(path), **options)

    return added


def splits(store: Store) -> dict[str, str]:
    return {p.messages[-1]["content"]: p.split for p in store.rows(Prompt)}


def test_plain_prompts(store: Store, add: Any) -> None:
    constraint = {"kind": "max_words", "count": 9}
    report = add({"prompt": "Why?", "topic": "bread", "task": "explain", "constraints": [constraint], "id": 7})
    [prompt] = store.rows(Prompt)
    assert prompt.key == digest([U])
    assert prompt.messages == [U]
    assert (prompt.topic, prompt.task, prompt.group) == ("bread", "explain", "topic=bread task=explain")
    assert prompt.constraints == [constraint]
    assert prompt.source == "data.jsonl"
    assert (report.rows, report.prompts, report.groups, report.unused) == (1, 1, 1, ("id",))
    assert sum(report.splits.values()) == 1
    assert report.failures == ()


def test_multi_turn_and_system_are_kept(store: Store, add: Any) -> None:
    turns = [{"role": "system", "content": "Be brief."}, U, A, {"role": "user", "content": "And?"}]
    add({"messages": turns})
    assert store.rows(Prompt)[0].messages == turns


def test_a_given_answer_is_reference_and_candidate(store: Store, add: Any) -> None:
    report = add({"messages": [U, A]}, {"messages": [U, {"role": "assistant", "content": "So."}]})
    [prompt] = store.rows(Prompt)
    assert prompt.reference == "Because."
    assert {c.text for c in store.rows(Candidate)} == {"Because.", "So."}
    assert (report.prompts, report.candidates, report.duplicates) == (1, 2, 0)


def test_preferences_refer_to_candidates(store: Store, add: Any) -> None:
    report = add({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, name="pairs.jsonl")
    [prompt], [preference] = store.rows(Prompt), store.rows(Preference)
    candidates = {c.key: c for c in store.rows(Candidate)}
    assert candidates[preference.chosen_key].text == "Because."
    assert candidates[preference.rejected_key].text == "No."
    assert {(c.kind, c.prompt_key, c.split, c.run) for c in candidates.values()} == {
        ("given", prompt.key, prompt.split, "given")
    }
    assert (preference.prompt, preference.chosen) == ([U], [A])
    assert (preference.prompt_key, preference.source, preference.strategy) == (prompt.key, "pairs.jsonl", "given")
    assert (report.preferences, report.candidates, report.prompts) == (1, 2, 1)


def test_hh_text(store: Store, add: Any) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    add({"chosen": f"{start} Because.", "rejected": f"{start} No."})
    [preference] = store.rows(Preference)
    assert [m["content"] for m in preference.prompt] == ["Hi", "Hello.", "Why?"]
    assert preference.rejected == [{"role": "assistant", "content": "No."}]


def test_labels(store: Store, add: Any) -> None:
    good = {"prompt": "Why?", "completion": "Because.", "label": True}
    report = add(good, {**good, "completion": "No.", "label": False}, {**good, "label": False})
    labels = {lab.completion[0]["content"]: lab for lab in store.rows(Label)}
    assert {text: lab.label for text, lab in labels.items()} == {"Because.": True, "No.": False}
    assert labels["No."].candidate_key in {c.key for c in store.rows(Candidate)}
    assert [(f.line, f.column) for f in report.failures] == [(3, "label")]
    again = add({**good, "label": False})
    assert "other label" in again.failures[0].reason


def test_bad_rows_are_reported_and_the_rest_goes_in(store: Store, add: Any) -> None:
    report = add(
        {"prompt": "One"},
        "{broken",
        {"prompt": ""},
        {"question": "no shape"},
        {"prompt": "Two", "chosen": "a", "rejected": "a"},
        {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        {"prompt": "Three", "constraints": [{"kind": "max_words"}]},
        {"prompt": "Four"},
    )
    assert sorted(splits(store)) == ["Four", "One"]
    assert [f.line for f in report.failures] == [2, 3, 4, 5, 6, 7]
    assert [f.column for f in report.failures] == ["", "prompt", "", "rejected", "messages", "constraints"]
    assert report.rows == 8
    assert "6 rows were left out" in report.text()
    assert "line 7: constraints: constraint 1: max_words: parameter 'count' is missing" in report.text()
    assert report.to_json()["failures"][3] == {
        "line": 5, "column": "rejected", "reason": "chosen and rejected are the same",
    }  # fmt: skip


def test_rows_left_out_for_the_same_reason_are_told_together(add: Any) -> None:
    wrong = [{"prompt": f"Why {n}?", "constraints": [{"kind": "max_words", "n": 9}]} for n in range(30)]
    lines = add({"prompt": 3}, *wrong, {"prompt": 4}).text().splitlines()
    told = lines[lines.index("  32 rows were left out:") + 1 :]
    assert [line.split(": ")[0] for line in told] == ["    line 1 and 1 more", "    line 2 and 29 more"]
    assert "no parameter 'n'" in told[1]
    many = add(*({"prompt": f"Why {n}?", "constraints": [{"kind": f"kind_{n}"}]} for n in range(13))).text()
    assert many.splitlines()[-1] == "    and for 3 other reasons: --json has all"


def test_deep_nesting_is_a_failure_of_its_row(store: Store, add: Any) -> None:
    deep = '{"prompt": "One", "x": ' + "[" * 900 + "]" * 900 + "}"
    report = add(deep, {"prompt": "Two"})
    assert list(splits(store)) == ["Two"]
    assert [(f.line, f.reason) for f in report.failures] == [(1, "nested too deep")]


def test_duplicates_are_dropped_and_counted(store: Store, add: Any) -> None:
    report = add({"prompt": "Why?"}, {"prompt": "Why?"}, {"prompt": "Why? "}, {"prompt": "Why?"})
    assert (report.prompts, report.duplicates, report.known) == (2, 2, 0)
    again = add({"prompt": "Why?"}, {"prompt": "How?"}, name="more.jsonl")
    assert (again.prompts, again.duplicates, again.known) == (1, 0, 1)
    assert len(store.rows(Prompt)) == 3


def test_the_same_prompt_with_other_constraints_is_a_failure(add: Any) -> None:
    report = add(
        {"prompt": "Why?", "constraints": [{"kind": "title"}]}, {"prompt": "Why?", "constraints": [{"kind": "quoted"}]}
    )
    assert [(f.line, f.column) for f in report.failures] == [(2, "constraints")]
    again = add({"prompt": "Why?", "constraints": [{"kind": "quoted"}]})
    assert "other constraints" in again.failures[0].reason


def test_adding_again_adds_nothing(store: Store, add: Any) -> None:
    rows = [
        {"prompt": "One", "chosen": "a", "rejected": "b"},
        {"prompt": "Two", "completion": "c", "label": True},
        {"prompt": "Three", "topic": "t"},
    ]
    first = add(*rows)
    before = {t: store.read(t) for t in ("prompts", "candidates", "preferences", "labels")}
    again = add(*rows)
    assert (first.prompts, again.prompts, again.known) == (3, 0, 3)
    assert (again.candidates, again.preferences, again.labels) == (0, 0, 0)
    assert {t: store.read(t) for t in before} == before


def test_mapping(store: Store, add: Any) -> None:
    report = add(
        {"question": {"text": "Why?"}, "subject": "bread"}, mapping={"prompt": "question.text", "topic": "subject"}
    )
    [prompt] = store.rows(Prompt)
    assert (prompt.messages, prompt.topic, report.unused) == ([U], "bread", ())


def test_unknown_shape_lists_columns_and_the_way_out(store: Store, add: Any) -> None:
    with pytest.raises(FactoryError) as caught:
        add({"question": "Why?", "answer": "Because."})
    assert "columns question, answer" in caught.value.where
    assert "--map prompt=question" in caught.value.todo
    with pytest.raises(ConfigError, match="no field named 'promt'"):
        add({"prompt": "Why?"}, mapping={"promt": "question"})
    with pytest.raises(ConfigError, match="there is no column 'query'"):
        add({"question": "Why?"}, mapping={"prompt": "query"})
    with pytest.raises(ConfigError, match="there is no column 'kind'"):
        add({"prompt": "Why?"}, group_by="kind")
    with pytest.raises(FactoryError, match="no rows"):
        add()
    assert store.rows(Prompt) == []


def test_limit_and_shares(store: Store, add: Any) -> None:
    report = add(*({"prompt": f"Question {i}", "topic": str(i)} for i in range(300)), limit=200, heldout=0.5, final=0.0)
    assert report.rows == report.prompts == 200
    assert report.splits["final"] == 0
    assert 70 <= report.splits["heldout"] <= 130
    with pytest.raises(ConfigError, match="below 1"):
        add({"prompt": "Why?"}, heldout=0.9, final=0.2)


def test_broken_characters_are_replaced_and_counted(store: Store, add: Any) -> None:
    report = add('{"prompt": "a\\ud800b\\udfff", "topic": "\\ud83d\\ude00"}')
    [prompt] = store.rows(Prompt)
    assert prompt.messages[0]["content"] == "a\ufffdb\ufffd"
    assert prompt.topic == "\U0001f600"
    assert report.replaced == 2


# -------------------------------------------------------------------------------------------------------- splits


def test_a_group_shares_a_split(store: Store, add: Any) -> None:
    add(*({"prompt": f"Question {i}", "kind": str(i % 40)} for i in range(400)), group_by="kind")
    for number in range(40):
        prompts = store.rows(Prompt, {"group": f"group={number}"})
        assert len(prompts) == 10
        assert len({p.split for p in prompts}) == 1
    assert {p.split for p in store.rows(Prompt)} == {"train", "heldout", "final"}


def test_group_by_needs_a_value(add: Any) -> None:
    report = add({"prompt": "One", "kind": "x"}, {"prompt": "Two", "kind": None}, group_by="kind")
    assert [(f.line, f.column) for f in report.failures] == [(2, "kind")]


def test_splits_stay_when_prompts_or_shares_change(store: Store, add: Any) -> None:
    rows = [{"prompt": f"Question {i}", "topic": str(i % 30)} for i in range(60)]
    add(*rows)
    before = splits(store)
    report = add(*({"prompt": f"More {i}", "topic": str(i % 30)} for i in range(60)), heldout=0.6, final=0.3)
    assert report.prompts == 60
    after = splits(store)
    assert {text: after[text] for text in before} == before
    assert all(after[f"More {i}"] == before[f"Question {i}"] for i in range(30))


def sentence(generator: random.Random, words: int = 14) -> str:
    return " ".join(generator.choices([f"word{i}" for i in range(500)], k=words))


def test_near_duplicates_share_a_split_also_across_calls(store: Store, add: Any) -> None:
    generator = random.Random(1)
    texts = [sentence(generator) for _ in range(60)]
    report = add(*({"prompt": t} for t in texts), *({"prompt": f"{t} please"} for t in texts), heldout=0.3, final=0.2)
    assert report.groups == 60
    add(*({"prompt": f"kindly {t}"} for t in texts), heldout=0.0, final=0.0)
    found = splits(store)
    assert len(found) == 180
    assert all(found[t] == found[f"{t} please"] == found[f"kindly {t}"] for t in texts)
    assert len(set(found.values())) == 3


def test_near_a_named_group_joins_it(store: Store, add: Any) -> None:
    text = sentence(random.Random(2))
    add({"prompt": text, "topic": "bread"}, {"prompt": f"{text} please"})
    assert {p.group for p in store.rows(Prompt)} == {"topic=bread"}


def test_between_two_splits_the_guarded_one(store: Store, add: Any) -> None:
    words = [f"w{i}" for i in range(60)]
    one, two, between = (" ".join(words[i : i + 40]) for i in (0, 14, 7))
    add({"prompt": one, "topic": "a"}, {"prompt": two, "topic": "b"}, heldout=0.0, final=0.0)
    [row] = store.read("prompts", where={"topic": "b"})
    held_out = [{"role": "user", "content": f"{two} x"}]
    moved = {**row, "key": digest(held_out), "split": "final", "group": "c", "messages": held_out}
    store.append("prompts", [moved])
    report = add({"prompt": between})
    assert report.bridged == 1
    assert splits(store)[between] == "final"


def test_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    generator = random.Random(5)
    texts = [sentence(generator) for _ in range(40)]
    rows = [{"prompt": t} for t in texts] + [{"prompt": f"{t} please"} for t in texts]
    found = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        with Store.open(tmp_path / name, create=True) as store:
            add_prompts(store, str(path))
            found.append({p.key: (p.group, p.split) for p in store.rows(Prompt)})
        generator.shuffle(rows)
    assert found[0] == found[1]


class MemoryStore:
    """The part of a store that adding needs, in memory: for many small trials."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, dict[str, Any]]] = {}

    def append(self, table: str, rows: Any) -> int:
        held = self.tables.setdefault(table, {})
        before = len(held)
        for row in rows:
            values = {name: getattr(row, name) for name in row.__dataclass_fields__}
            held.setdefault(values["key"], values)
        return len(held) - before

    def read(self, table: str, *, columns: Any = None, where: Any = None) -> list[dict[str, Any]]:
        rows = self.tables.get(table, {})
        return [{c: rows[key][c] for c in columns} for key in sorted(rows)]


rows_of_data = st.fixed_dictionaries(
    {"prompt": st.text(max_size=12)},
    optional={
        "chosen": st.sampled_from(["a", "b", ""]),
        "rejected": st.sampled_from(["a", "b"]),
        "completion": st.sampled_from(["a", "b"]),
        "label": st.booleans(),
        "topic": st.sampled_from(["x", "y"]),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(rows_of_data, min_size=1, max_size=12), second=st.lists(rows_of_data, min_size=1, max_size=12))
def test_every_row_is_accounted_for(tmp_path: Path, first: list[Any], second: list[Any]) -> None:
    store = MemoryStore()
    seen: dict[str, str] = {}
    for number, rows in enumerate((first, second)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        report = add_prompts(store, str(path))
        assert report.rows == len(rows)
        entered = report.rows - len(report.failures) - report.duplicates
        assert report.prompts + report.known <= entered
        prompts = store.tables.get("prompts", {})
        assert {key: prompts[key]["split"] for key in seen} == seen
        seen = {key: row["split"] for key, row in prompts.items()}
        by_group: dict[str, set[str]] = {}
        for row in prompts.values():
            by_group.setdefault(row["group"], set()).add(row["split"])
        assert all(len(found) == 1 for found in by_group.values())
    keys = set(store.tables.get("candidates", {}))
    assert all({p["chosen_key"], p["rejected_key"]} <= keys for p in store.tables.get("preferences", {}).values())
    assert {lab["candidate_key"] for lab in store.tables.get("labels", {}).values()} <= keys


# ------------------------------------------------------------------------------------- what others said of answers


SCORED = {"prompt": "Why?", "answers": ["Because.", "No."], "scores": [8, 3], "models": ["m", "n"]}


def test_scores_become_judgments_that_pairing_reads(store: Store, add: Any) -> None:
    report = add(SCORED, scale=(0.0, 10.0), judge="gpt", heldout=0.0, final=0.0)
    assert (report.candidates, report.judgments, report.endless) == (2, 2, 0)
    assert {(c.text, c.kind, c.model) for c in store.rows(Candidate)} == {
        ("Because.", "given", "m"), ("No.", "given", "n"),
    }  # fmt: skip
    assert {(j.judge, j.kind, j.score, j.score_low, j.score_high) for j in store.rows(Judgment)} == {
        ("gpt", "pointwise", 8.0, 0.0, 10.0), ("gpt", "pointwise", 3.0, 0.0, 10.0),
    }  # fmt: skip
    found = pair(store, run="given", kind="given")
    [preference] = store.rows(Preference)
    assert preference.chosen[0]["content"] == "Because."
    assert preference.margin == pytest.approx(0.5)
    assert (found.labels, found.desirable) == (2, 1)


def test_scores_without_a_scale_are_rewards_and_are_told(add: Any) -> None:
    report = add(SCORED)
    assert report.endless == 2
    assert "2 scores have no scale" in report.text()


def test_a_score_beyond_its_scale_is_a_failure(store: Store, add: Any) -> None:
    report = add(SCORED, scale=(1.0, 5.0))
    assert [f.reason for f in report.failures] == ["the score 8 is not on the scale of 1 to 5"]
    assert not store.rows(Judgment)


def test_another_score_of_the_same_answer_is_a_failure(store: Store, add: Any) -> None:
    add(SCORED)
    assert add(SCORED).failures == ()
    [failure] = add({**SCORED, "scores": [8, 4]}).failures
    assert "another score, scale or winner by the judge 'given'" in failure.reason
    assert not add({**SCORED, "scores": [8, 4]}, judge="other").failures
    assert {(j.judge, j.score) for j in store.rows(Judgment)} == {
        ("given", 8.0), ("given", 3.0), ("other", 8.0), ("other", 4.0),
    }  # fmt: skip


@pytest.mark.parametrize("winner", ["model_a", "model_b", "tie"])
def test_winners_become_judgments_in_canonical_order(store: Store, add: Any, winner: str) -> None:
    add({"prompt": "Why?", "response_a": "x", "response_b": "y", "winner": winner}, heldout=0.0, final=0.0)
    [judgment] = store.rows(Judgment)
    texts = {c.key: c.text for c in store.rows(Candidate)}
    assert judgment.candidate_b is not None
    assert judgment.candidate_a < judgment.candidate_b
    pair(store, run="given", kind="given")
    preferred = [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in store.rows(Preference)]
    assert preferred == {"model_a": [("x", "y")], "model_b": [("y", "x")], "tie": []}[winner]
    assert texts[judgment.candidate_a] in ("x", "y")


def test_scores_of_a_pair_are_its_margin(store: Store, add: Any) -> None:
    row = {"prompt": "Why?", "chosen": "x", "rejected": "y", "score_chosen": 9, "score_rejected": 5}
    add(row, scale=(0.0, 10.0))
    [preference] = store.rows(Preference)
    assert preference.margin == pytest.approx(0.4)
    assert sorted(j.score for j in store.rows(Judgment) if j.score is not None) == [5.0, 9.0]


@pytest.mark.parametrize("text", ["1", "5:1", "a:b", "0:inf", "1:1"])
def test_what_is_no_scale_is_refused(text: str) -> None:
    with pytest.raises(FactoryError, match="is no scale"):
        scale_of(text)
    assert scale_of("1:10") == (1.0, 10.0)


def test_answers_without_a_label_get_the_one_that_is_named(store: Store, add: Any) -> None:
    add(
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": "Who?", "completion": "He.", "label": False},
        label=True,
    )
    assert {(row.completion[0]["content"], row.label) for row in store.rows(Label)} == {
        ("Because.", True),
        ("He.", False),
    }
    assert {p.messages[0]["content"]: p.reference for p in store.rows(Prompt)} == {"Why?": "Because.", "Who?": None}


def test_answers_have_no_label_of_themselves(store: Store, add: Any) -> None:
    add({"prompt": "Why?", "completion": "Because."})
    assert not store.rows(Label)


@pytest.mark.parametrize("header", ["prompt;chosen;rejected", "prompt\tchosen\trejected"])
def test_cells_that_no_comma_parts_are_told_of(store: Store, tmp_path: Path, header: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(f"{header}\n{header}\n")
    with pytest.raises(FactoryError, match="not parted by commas") as fault:
        add_prompts(store, str(path))
    assert fault.value.todo == "write the file with commas"
