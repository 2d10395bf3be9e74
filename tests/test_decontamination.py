"""Prompts that another set holds are found by their words, their n-grams or their likeness; others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

from factory.cli import app
from factory.evaluation.held import held_prompts, prompts_that_measure
from factory.faults import ConfigError, FactoryError
from factory.prompts import add_prompts, texts_of
from factory.prompts.decontamination import Hit, Rule, check, find, near_trained, said
from factory.prompts.near_duplicates import nearest
from factory.schema import Prompt, digest, now
from factory.store import Store

LONG = (
    "Explain in a few sentences why the sea is salt and the rivers that run into it are not, for a child of ten years."
)
OTHER = (
    "Write a friendly letter to a neighbour who plays the trumpet late at night and ask him kindly to stop before ten."
)


def hit_by(prompts: list[str], texts: list[str], rule: Rule | None = None) -> list[str]:
    """The test that each prompt was hit by, "" for none."""
    hits = {hit.key: hit.test for hit in find({str(i): p for i, p in enumerate(prompts)}, texts, rule)}
    return [hits.get(str(i), "") for i in range(len(prompts))]


def test_the_same_words_are_the_same() -> None:
    assert hit_by(["what is 2 + 2", "WHAT is\n“2+2”?", "What is 2 + 3?"], ["What is 2+2?"]) == ["same", "same", ""]
    assert hit_by(["???", "!!"], ["???"]) == ["same", ""]


def test_a_prompt_inside_a_longer_text_is_hit_by_its_n_grams() -> None:
    """All 8-grams of the prompt occur, though the text is ten times as long: the likeness is small, the share is 1."""
    inside = " ".join(f"Sentence {i} of a long page tells of quite other things." for i in range(20)) + " " + LONG
    [hit] = find({"p": LONG}, [OTHER, inside])
    assert (hit.test, hit.value) == ("n-grams", 1.0)
    assert hit.found.startswith("Sentence 0")
    assert hit_by([OTHER], [inside]) == [""]


def test_the_share_by_hand() -> None:
    """Ten words have three 8-grams; another last word leaves two of them: 2/3."""
    text, changed = (
        "one two three four five six seven eight nine ten",
        "one two three four five six seven eight nine 10",
    )
    [hit] = find({"p": changed}, [text], Rule(share=0.6, threshold=1.0))
    assert hit == Hit("p", "n-grams", 2 / 3, changed, text)
    assert hit_by([changed], [text], Rule(share=0.7, threshold=1.0)) == [""]
    assert hit_by(["one two three four"], [text]) == [""]  # too short for an 8-gram, and not near


def test_a_prompt_with_words_exchanged_is_near() -> None:
    """Every 12th of 100 words is another: no 80% of the 8-grams are left, but most trigrams are."""
    words = [f"w{i}" for i in range(100)]
    other = [f"x{i}" if i % 12 == 11 else word for i, word in enumerate(words)]
    assert hit_by([" ".join(other)], [" ".join(words)], Rule(threshold=0.5)) == ["near"]
    assert hit_by([" ".join(other)], [" ".join(words)]) == [""]


def test_templates_alone_are_no_hits() -> None:
    """The same constraint after another question."""
    tail = "Number your points from 1 to 3, each on a line of its own."
    questions = ["How can I remember a long password?", "Which foods keep well without a fridge?"]
    assert hit_by([f"{questions[0]} {tail}"], [f"{questions[1]} {tail}"]) == [""]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=6), st.lists(st.text(max_size=60), max_size=6))
def test_any_text_is_tested_and_every_copy_found(prompts: list[str], texts: list[str]) -> None:
    found = hit_by(prompts, [*texts, *prompts])
    assert found == ["same"] * len(prompts)
    assert len(hit_by(prompts, texts)) == len(prompts)


def test_nearest_names_the_most_similar() -> None:
    words = [f"w{i}" for i in range(60)]
    close = " ".join([*words[:57], "a", "b", "c"])
    far = " ".join([*words[:48], *(f"y{i}" for i in range(12))])
    found = nearest([" ".join(words), "nothing like it at all"], [far, close], threshold=0.6)
    assert found[1] is None
    assert found[0] is not None
    assert found[0].place == 1
    assert found[0].similarity == pytest.approx(55 / 61, abs=0.12)  # 55 trigrams of 61 in all are common
    assert nearest([], ["a"]) == []
    assert nearest(["a"], []) == [None]


@pytest.mark.parametrize("rule", [Rule(n=1), Rule(share=0.0), Rule(share=1.1), Rule(threshold=0.4)])
def test_a_rule_that_means_nothing_is_refused(rule: Rule) -> None:
    with pytest.raises(ConfigError):
        find({"p": "a"}, ["a"], rule)


# ------------------------------------------------------------------------------------------------------ in the store


def prompt(text: str, split: str) -> Prompt:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return Prompt(key=digest(text, split), messages=messages, split=split, group=text, at=now())


def test_held_out_prompts_near_the_train_split_do_not_measure(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.append("prompts", [prompt(LONG, "train"), prompt(LONG.upper(), "heldout"), prompt(OTHER, "heldout")])
        found = prompts_that_measure(store, "heldout")
        assert [said(p.messages) for p in found.prompts] == [OTHER]
        assert found.left_out == 1
        assert held_prompts(store, "heldout", limit=1) == found.prompts
        assert len(held_prompts(store, "train")) == 1
        [hit] = near_trained(store.rows(Prompt, {"split": "heldout"}), store.rows(Prompt, {"split": "train"}))
        assert hit.test == "same"
        assert check(store, [LONG], split="heldout").splits == {"heldout": 1}
        store.append("prompts", [prompt(LONG + "!", "final")])
        with pytest.raises(FactoryError, match="every prompt of the split 'final' is near"):
            held_prompts(store, "final")


def written(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_row_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    """A prompt that it holds would be taken for clear of the set."""
    broken = tmp_path / "b.jsonl"
    broken.write_text(f'{{"prompt": "{LONG}"}}\n{{"prompt": \n', encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2: not JSON"):
        texts_of(str(broken))


def test_texts_of_known_shapes_and_of_any_other(tmp_path: Path) -> None:
    assert texts_of(written(tmp_path / "a.jsonl", [{"prompt": LONG}, {"prompt": "Short."}])) == [LONG, "Short."]
    odd = written(tmp_path / "b.jsonl", [{"stem": LONG, "id": "7", "answer_key": "B"}])
    assert texts_of(odd) == [LONG]
    assert texts_of(odd, mapping={"prompt": "stem"}) == [LONG]
    with pytest.raises(FactoryError, match="no texts to test against"):
        texts_of(written(tmp_path / "c.jsonl", [{"id": "7"}]))


def test_rows_that_another_set_holds_are_left_out(tmp_path: Path) -> None:
    benchmark = written(tmp_path / "benchmark.jsonl", [{"stem": LONG.lower()}])
    source = written(tmp_path / "mine.jsonl", [{"prompt": LONG}, {"prompt": OTHER}])
    with Store.open(tmp_path / "store", create=True) as store:
        report = add_prompts(store, source, decontaminate=[benchmark])
        assert (report.rows, report.prompts, report.decontaminated) == (2, 1, 1)
        assert "1 rows were left out: a set that they are kept clear of" in report.text()
        assert [said(p.messages) for p in store.rows(Prompt)] == [OTHER]


def test_the_commands(tmp_path: Path) -> None:
    benchmark = written(tmp_path / "benchmark.jsonl", [{"stem": LONG}])
    source = written(tmp_path / "mine.jsonl", [{"prompt": LONG}, {"prompt": OTHER}])
    runner, store = CliRunner(), str(tmp_path / "store")
    assert runner.invoke(app, ["prompts", "add", source, "--store", store]).exit_code == 0
    hit = runner.invoke(app, ["decontaminate", "--against", benchmark, "--store", store, "--json"])
    assert hit.exit_code == 1
    told = json.loads(hit.stdout)
    assert (told["prompts"], told["texts"], len(told["hits"])) == (2, 1, 1)
    assert told["rule"] == {"n": 8, "share": 0.8, "threshold": 0.8}
    assert told["hits"][0]["test"] == "same"
    clean = written(tmp_path / "clean.jsonl", [{"stem": "Quite another text, of another kind."}])
    assert runner.invoke(app, ["decontaminate", "--against", clean, "--store", store]).exit_code == 0
    kept = str(tmp_path / "kept")
    added = runner.invoke(app, ["prompts", "add", source, "--decontaminate", benchmark, "--store", kept, "--json"])
    assert json.loads(added.stdout)["decontaminated"] == 1
