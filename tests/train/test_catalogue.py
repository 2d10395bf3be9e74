"""What is said of the objectives is what they declare, and docs/methods.md says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from train import losses
from train.losses.catalogue import BEGIN, END, ROWS, table, written

METHODS = Path(__file__).parent.parent.parent / "docs" / "methods.md"


def test_every_objective_is_told_of_with_its_parameters_and_their_ranges() -> None:
    found = {each.name: each for each in losses.about()}
    assert sorted(found) == losses.objectives.names()
    for name, each in found.items():
        assert each.data in ROWS
        assert {p.name: p.default for p in each.parameters} == losses.get(name).defaults
        assert each.line
        assert "\n" not in each.line
    smoothing = next(p for p in found["cdpo"].parameters if p.name == "label_smoothing")
    assert str(smoothing) == "label_smoothing=0.1 in [0, 0.5)"
    divergence = next(p for p in found["dpo"].parameters if p.name == "f_divergence")
    assert divergence.allowed == "reverse_kl | forward_kl | js | alpha"
    assert found["dpo"].line == ("Direct preference optimisation (arXiv 2305.18290, eq. 7): -log s(beta (u_c - u_r)).")
    assert (found["orpo"].reference, found["kto"].data) == (False, "labels")
    assert found["orpo"].to_json()["parameters"][0]["name"] == "beta"


def test_every_objective_names_where_it_is_from() -> None:
    """A paper or a note; learning answers as they are needs none."""
    without = [each.name for each in losses.about() if not any(w in each.line for w in ("arXiv", "2023"))]
    assert without == ["sft"]


def test_the_document_is_in_step() -> None:
    """Else: python -m train.losses docs/methods.md."""
    text = METHODS.read_text(encoding="utf-8")
    assert written(text) == text
    assert table() in text


def test_a_document_without_a_place_is_refused() -> None:
    assert written(f"a\n{BEGIN}\nold\n{END}\nb") == f"a\n{BEGIN}\n{table()}\n{END}\nb"
    with pytest.raises(ValueError, match="no lines"):
        written("a")
