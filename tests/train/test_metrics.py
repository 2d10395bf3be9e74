"""metrics.jsonl survives kills and goes back to a checkpoint; both log-probs falling is told once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.metrics import FallWatch, Metrics, read, timeless


def line(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 0.1 * step, "seconds": 1.0, **more}


def test_lines_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    first = Metrics(path, 0)
    for step in (1, 2, 3):
        first.add(line(step))
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # torn
    second = Metrics(path, 2)
    second.add(line(3, loss=9.0))
    assert read(path) == [line(1), line(2), line(3, loss=9.0)]
    assert second.lines == read(path)


def test_a_training_from_the_start_has_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    Metrics(path, 0).add(line(1))
    assert Metrics(path, 0).lines == []
    assert read(path) == []


def test_times_can_be_left_out() -> None:
    assert timeless(line(1, tokens_per_second=5.0)) == {"step": 1, "loss": 0.1}


def drifts(good: float, bad: float) -> dict[str, float]:
    return {"logratios/chosen": good, "logratios/rejected": bad}


def test_both_falling_is_told_once_with_the_remedy() -> None:
    watch = FallWatch(window=3)
    said = [watch.see(drifts(-2.0, -9.0)) for _ in range(6)]
    assert [bool(text) for text in said] == [False, False, True, False, False, False]
    assert "by 2.0 and 9.0 nats" in said[2]
    assert "add: {sft: 0.2}" in said[2]
    late = FallWatch(window=1).see(drifts(-2.0, -9.0) | {"step": 7.0})
    assert "nats an answer, the mean over 1 of the steps up to step 7)" in late


def test_a_chosen_that_holds_is_no_fall() -> None:
    chosen_holds, rejected_holds = FallWatch(window=3), FallWatch(window=3)
    assert not any(chosen_holds.see(drifts(good, -9.0)) for good in (-2.0, -0.5, 0.0, -0.9, -1.5))
    assert not any(rejected_holds.see(drifts(-9.0, 0.0)) for _ in range(3))


def test_a_step_without_one_kind_is_passed_over() -> None:
    watch = FallWatch(window=2)
    assert [bool(watch.see(seen)) for seen in (drifts(-2, -2), {"loss": 1.0}, drifts(-2, -2))] == [False, False, True]


def test_the_remedy_knows_what_is_set_already() -> None:
    said = FallWatch(window=1, sft=0.2).see(drifts(-2.0, -9.0))
    assert "more weight than 0.2 (add: {sft: 0.4})" in said
