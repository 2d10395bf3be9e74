"""The bundled constitutions are whole: each principle asks all that it can be asked, and says where it is from."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from factory.judges.rubric import Constitution, load
from factory.resources import bundled

OURS = ("helpful-honest-harmless", "concise-and-sourced", "code-review")
FILES = sorted(bundled("constitutions").glob("*.yaml"))
WHOLE = [file for file in FILES if file.stem in OURS]


def by_name(file: Path) -> str:
    return file.stem


def test_the_three_are_there() -> None:
    assert {file.stem for file in WHOLE} == set(OURS)


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_each_loads_under_the_name_of_its_file(file: Path) -> None:
    constitution = load(file.stem)
    assert constitution.name == file.stem
    assert constitution.about.endswith("?")
    assert len(constitution.source) > 40
    assert all(line == line.rstrip() and len(line) <= 125 for line in file.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("file", WHOLE, ids=by_name)
def test_each_principle_has_every_question_and_its_source(file: Path) -> None:
    constitution = load(file.stem)
    assert 6 <= len(constitution.principles) <= 12
    for principle in constitution.principles:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", principle.name)
        assert principle.comparison is not None
        assert principle.rating is not None
        assert principle.critique is not None
        assert principle.revision is not None
        assert principle.comparison.startswith("Which answer")
        assert "?" in principle.rating
        assert principle.revision.startswith("Write the answer again")
        assert sorted(principle.scale) == [1, 2, 3, 4, 5]
        assert len(set(principle.scale.values())) == 5
        assert len(principle.source) > 10


@pytest.mark.parametrize("file", WHOLE, ids=by_name)
def test_no_two_questions_of_a_constitution_say_the_same(file: Path) -> None:
    constitution = load(file.stem)
    for kind in ("comparison", "rating", "critique", "revision"):
        words = [set(re.findall(r"[a-z]+", str(getattr(p, kind)).lower())) for p in constitution.principles]
        for one, other in combinations(words, 2):
            assert len(one & other) / len(one | other) < 0.5


@pytest.mark.parametrize("file", WHOLE, ids=by_name)
def test_examples_show_their_principle_at_work(file: Path) -> None:
    constitution = load(file.stem)
    assert constitution.examples
    for example in constitution.examples:
        assert example.critique not in (example.draft, example.revision)
    changed = [e for e in constitution.examples if e.draft != e.revision]
    assert changed, "at least one example has to revise"


@pytest.mark.parametrize("file", FILES, ids=by_name)
def test_sources_are_named_so_that_they_can_be_found(file: Path) -> None:
    constitution = load(file.stem)
    for text in (constitution.source, *(p.source for p in constitution.principles)):
        for number in re.findall(r"arXiv (\S+)", text):
            assert re.fullmatch(r"\d{4}\.\d{5}", number.strip("(),;.")), f"{number} is no arXiv number"


def test_weights_are_used_sparingly() -> None:
    for name in OURS:
        weights = [p.weight for p in load(name).principles]
        assert max(weights) / sum(weights) < 0.25, f"{name}: one principle would drown the others"
        assert isinstance(load(name), Constitution)
