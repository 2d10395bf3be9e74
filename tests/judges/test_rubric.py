"""Constitutions as files: what they may hold, and every fault told at once with its file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from factory.faults import ConfigError, FactoryError
from factory.judges.rubric import Constitution, Principle, draw, load

WHOLE: dict[str, Any] = {
    "name": "a", "source": "s", "weight": 2, "comparison": "Which?", "rating": "How?", "scale": {1: "bad", 2: "good"},
    "critique": "Say.", "revision": "Write.",
}  # fmt: skip


def written(tmp_path: Path, principles: list[dict[str, Any]], **more: Any) -> str:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"name": "own", "source": "s", "principles": principles} | more))
    return str(file)


def faults(tmp_path: Path, *principles: dict[str, Any], **more: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, list(principles), **more))
    assert str(tmp_path / "own.yaml") in caught.value.text()
    return caught.value.faults


def test_a_principle_may_hold_every_question(tmp_path: Path) -> None:
    (principle,) = load(written(tmp_path, [WHOLE])).principles
    assert (principle.weight, principle.comparison, principle.critique) == (2.0, "Which?", "Say.")
    assert principle.question("revision") == "Write."
    bare = Principle(name="b", source="s", comparison="Which?")
    assert (bare.weight, bare.rating, bare.critique, bare.revision, bare.scale) == (1.0, None, None, None, {})
    with pytest.raises(FactoryError, match="principle 'b' has no critique question"):
        bare.question("critique")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight": 0}, "principles.0.weight (a)"),
        ({"weight": -1}, "greater than 0"),
        ({"weight": float("nan")}, "principles.0.weight"),
        ({"weight": float("inf")}, "principles.0.weight"),
        ({"weight": True}, "valid number"),
        ({"weight": "heavy"}, "principles.0.weight (a)"),
        ({"revision": None}, "critique and revision go together"),
        ({"critique": None}, "critique and revision go together"),
        ({"scale": {}}, "needs a scale of at least two scores"),
        ({"scale": {1: "only"}}, "needs a scale of at least two scores"),
        ({"scale": {1: "bad", 10: "good"}}, "single digits"),
        ({"scale": {"x": "bad", 2: "good"}}, "principles.0.scale.x"),
        ({"comparison": ""}, "principles.0.comparison (a)"),
        ({"comparison": False}, "valid string"),
        ({"critic": "Say."}, "principles.0.critic (a)"),
        ({"source": None}, "principles.0.source (a)"),
        ({"comparison": None, "rating": None, "scale": {}, "critique": None, "revision": None}, "asks something"),
    ],
)
def test_each_fault_of_a_principle_is_told_with_its_key(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    (fault,) = faults(tmp_path, WHOLE | change)
    assert told in fault


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        WHOLE | {"weight": 0, "revision": None, "scale": {}},
        WHOLE | {"name": "", "colour": "red"},
        {"name": "c", "source": "s"},
        about=3,
        examples=[{"principle": "a"}],
        authors="us",
    )
    keys = [fault.split(":")[0] for fault in found]
    assert keys == [
        "about", "principles.0.weight (a)", "principles.0.scale (a)", "principles.0.revision (a)",
        "principles.1.name ()", "principles.1.colour ()", "principles.2.revision (c)", "examples.0.prompt",
        "examples.0.draft", "examples.0.critique", "examples.0.revision", "authors",
    ]  # fmt: skip


def test_a_constitution_has_principles(tmp_path: Path) -> None:
    assert faults(tmp_path) == ("principles: Value error, a constitution has at least one principle",)


def test_names_are_distinct_and_examples_know_their_principle(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, WHOLE, WHOLE)
    assert "two principles have the same name: a" in fault
    example = {"principle": "b", "prompt": "p", "draft": "d", "critique": "c", "revision": "r"}
    (fault,) = faults(tmp_path, WHOLE, examples=[example])
    assert "examples: " in fault
    assert "no principle with a critique named 'b'" in fault
    comparing = {k: v for k, v in WHOLE.items() if k not in ("critique", "revision")}
    (fault,) = faults(tmp_path, WHOLE, comparing | {"name": "b"}, examples=[example])
    assert "no principle with a critique named 'b'" in fault


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text(
        "name: t\nsource: s\nprinciples:\n- name: a\n  source: s\n  comparison: One?\n  comparison: Two?\nname: u\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(str(file))
    assert caught.value.faults == ("comparison: given twice (line 7)", "name: given twice (line 8)")


@pytest.mark.parametrize(
    "text", ["- a\n", "", "just words", "name: [", "a: &x [*x]\n", "\x00", "name: t\nprinciples: 3"]
)
def test_a_file_that_is_no_constitution_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(FactoryError, match=r"odd\.yaml"):
        load(str(file))


def test_aliases_upon_aliases_are_read_once(tmp_path: Path) -> None:
    """A file of 30 lines whose every line repeats the one before it ten times: 10^30 nodes to go through, or 300."""
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30))]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join([*lines, "name: n", "source: s", "principles: *a29"]))
    with pytest.raises(ConfigError, match=r"principles\.0"):
        load(str(file))


def test_principles_are_chosen_by_name_and_question() -> None:
    rated = Principle(name="r", source="s", rating="How?", scale={1: "bad", 2: "good"})
    asked = Principle(name="c", source="s", critique="Say.", revision="Write.")
    constitution = Constitution(name="n", source="s", principles=(rated, asked))
    assert constitution.choose([], "rating") == (rated,)
    assert constitution.choose("c, c,", "critique") == (asked,)
    assert constitution.choose("", "revision") == (asked,)
    with pytest.raises(FactoryError, match="no principle with a rating question named 'c'"):
        constitution.choose(["c"], "rating")
    for names in ([], ["c"]):
        with pytest.raises(FactoryError, match="constitution 'n' has no principle with a comparison question"):
            constitution.choose(names, "comparison")
    with pytest.raises(ValidationError, match="same name"):
        Constitution(name="n", source="s", principles=(rated, rated))


def test_a_draw_does_not_depend_on_order_and_grows_by_adding() -> None:
    principles = load("code-review").principles
    whole = draw(principles, 99, "seed", 1)
    assert sorted(p.name for p in whole) == sorted(p.name for p in principles)
    assert [draw(principles[::-1], k, "seed", 1) for k in range(4)] == [whole[:k] for k in range(4)]
    assert any(draw(principles, 1, "seed", k) != whole[:1] for k in range(10))
    kept = draw(principles[:-1], 99, "seed", 1)
    assert kept == tuple(p for p in whole if p != principles[-1])
