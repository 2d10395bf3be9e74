"""What the benchmarks of the trainer compare is the same work: each technique with its alternative, and TRL with its
head limited to the completions with TRL itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """As for a script of that folder."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def loaded(name: str) -> Any:
    """A benchmark as a module."""
    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with importable(FOLDER):
        spec.loader.exec_module(module)
    return module


trl = loaded("train_vs_trl")
techniques = loaded("techniques")
SMALL = ["--width", "64", "--layers", "2", "--prompt", "7", "--shortest", "2", "--longest", "20"]


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    """A model of two layers and five pairs."""
    folder = tmp_path_factory.mktemp("benchmark")
    found: argparse.Namespace = trl.parser().parse_args([*SMALL, "--pairs", "5", "--vocabulary", "300"])
    trl.build_model(found, folder / "model")
    found.folder, found.model = str(folder), str(folder / "model")
    return found


NOT_HERE = ("torch.compile",)  # seconds of compiling; tests/train/test_compiling.py compares its gradients


@pytest.mark.parametrize(
    "technique",
    [t for t in techniques.TECHNIQUES if not t.name.startswith(NOT_HERE)],
    ids=lambda technique: technique.name,
)
def test_with_and_without_a_technique_the_same_is_computed(technique: Any, args: argparse.Namespace) -> None:
    on, off = technique.on(args)(), technique.off(args)()
    assert on == pytest.approx(off, rel=0.05 if "bfloat16" in technique.name else 1e-4)


def test_the_operations_of_the_floor_are_those_of_the_model(args: argparse.Namespace) -> None:
    """One linear layer of 6 into 4: 2 * 6 * 4 operations a token for each of reference, forward and both ways back."""
    products = trl.linear_products(6, 4, 10, 50)
    assert [2 * p.inner * p.columns * p.needed for p in products] == [2 * 6 * 4 * 50] * 4
    group = techniques.Group([1] * 3, [[1] * 3, [1] * 5])
    scores = 3 * 3 / 2 + (2 * 3 + 2 * 2 / 2) + (4 * 3 + 4 * 4 / 2)  # causal half, the last token of an answer left out
    # scores and mixtures, 2 operations each, once for the reference, once forward, twice back
    assert trl.attention_operations(args, [group]) == 2 * 2 * scores * args.width * (1 + 1 + 2) * args.layers


@pytest.mark.slow
def test_trl_with_its_head_limited_learns_what_trl_learns(
    args: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient norm of every step, at a rate at which they move."""
    pytest.importorskip("trl")
    args = argparse.Namespace(**vars(args) | {"pairs": 20})
    logs = []
    monkeypatch.setattr("trl.trainer.utils._use_triton", lambda device: False)
    for change in (None, trl.lean_head, trl.limit_head):
        trainer = trl.trl_trainer(args, tmp_path / str(change))
        trainer.args.learning_rate = 1e-3
        if change is not None:
            change(trainer)
        trainer.train()
        logs.append([(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "loss" in line])
    whole, *at_answers = logs
    assert len(whole) == 3
    assert whole[0][0] != pytest.approx(whole[-1][0], rel=1e-3)
    for found in at_answers:
        for ours, theirs in zip(found, whole, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
