"""Observers are told of the start, of every step and of the end, whatever ends a training; TensorBoard is one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from factory.faults import FactoryError
from tests.train.conftest import pair_rows
from train.batches import FixedRows
from train.config import TrainConfig
from train.metrics import read
from train.observers import Training, named
from train.policy import Policy
from train.trainer import Trained, Trainer

Loader = Callable[..., Policy]
TOLD: list[tuple[str, Any]] = []


class Listener:
    def start(self, training: Training) -> None:
        TOLD.append(("start", (training.steps, training.done)))

    def step(self, line: Mapping[str, Any], warnings: Sequence[str]) -> None:
        TOLD.append(("step", line["step"]))
        TOLD.extend(("warning", text) for text in warnings)

    def end(self, fault: BaseException | None) -> None:
        TOLD.append(("end", type(fault).__name__))


class Deaf:
    def start(self, training: Training) -> None: ...


def run(policy: Policy, folder: Path, *observers: str, rows: Any = None, **more: Any) -> Trained:
    settings = TrainConfig(**({"threads": 1, "epochs": 3, "batch_size": 4, "observers": observers} | more))
    source = FixedRows(rows or pair_rows(8), settings.batch_size, settings.epochs, settings.seed)
    return Trainer(policy, source, settings, folder).run()


def test_an_observer_is_told_of_all_steps_and_of_the_end(policy: Loader, tmp_path: Path) -> None:
    TOLD.clear()
    run(policy(), tmp_path, f"{__name__}:Listener")
    assert [("start", (6, 0)), *(("step", i) for i in range(1, 7)), ("end", "NoneType")] == TOLD


def test_it_hears_warnings_and_what_ended_a_training(policy: Loader, tmp_path: Path) -> None:
    TOLD.clear()
    rows = [row._replace(ref_chosen=0.0, ref_rejected=0.0) for row in pair_rows(8)]
    run(policy(), tmp_path / "warned", f"{__name__}:Listener", rows=rows, learning_rate=1e-6)
    assert [what for kind, what in TOLD if kind == "warning" and "both became less likely" in what]
    TOLD.clear()
    with pytest.raises(FactoryError):
        run(
            policy(),
            tmp_path / "failed",
            f"{__name__}:Listener",
            rows=[r._replace(ref_chosen=float("nan")) for r in rows],
        )
    assert TOLD == [("start", (6, 0)), ("end", "FactoryError")]


def test_a_training_that_goes_on_says_where_it_begins(policy: Loader, tmp_path: Path) -> None:
    run(policy(), tmp_path, save_every=2)
    (tmp_path / "checkpoints" / "step-000006" / "checkpoint.json").unlink()
    TOLD.clear()
    run(policy(), tmp_path, f"{__name__}:Listener", save_every=2)
    assert TOLD == [("start", (6, 4)), ("step", 5), ("step", 6), ("end", "NoneType")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        ("no.such.module:Thing", "cannot be loaded: No module named 'no'"),
        (f"{__name__}:Nobody", "cannot be loaded.*has no attribute 'Nobody'"),
        (f"{__name__}:Deaf", "has no step, end"),
    ],
)
def test_a_wrong_observer_is_an_error_before_the_training(name: str, said: str) -> None:
    with pytest.raises(FactoryError, match=said):
        named(name)


def test_tensorboard_that_is_not_there_is_missed_when_it_is_asked_for(
    policy: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(FactoryError, match=r"pip install 'preference-factory\[tensorboard\]'"):
        run(policy(), tmp_path, "tensorboard")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_has_every_metric_of_every_step_once(policy: Loader, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(policy(), tmp_path, "tensorboard", save_every=2)
    (tmp_path / "checkpoints" / "step-000006" / "checkpoint.json").unlink()
    run(policy(), tmp_path, "tensorboard", save_every=2)
    written = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = read(tmp_path / "metrics.jsonl")
    for name in lines[0].keys() - {"step"}:
        assert [event.step for event in written.Scalars(name)] == [1, 2, 3, 4, 5, 6]
        assert [event.value for event in written.Scalars(name)] == pytest.approx([line[name] for line in lines])
