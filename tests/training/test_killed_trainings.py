"""What a kill leaves at any point: the same command ends with the same policy."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_rows import CONFIG, preference, train

from factory import crash
from factory.store import Store
from train import logps
from train.metrics import read, timeless

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "transformers", "peft", "pyarrow.dataset", "factory.training", "train.trainer"])


def _train(folder: str, model: str, method: str, crash_at: str) -> None:
    os.environ[crash.VARIABLE] = crash_at
    torch.set_num_threads(1)
    logps.DEFAULT_BATCH_TOKENS["cpu"] = 200  # several batches of scoring
    with Store.open(folder) as store:
        train(store, model, "out", CONFIG.model_copy(update={"method": method}))


def run_child(*arguments: str) -> int | None:
    child = FORKS.Process(target=_train, args=arguments)
    child.start()
    child.join(120)
    return child.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after a DPO training that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    with Store.open(folder, create=True) as store:
        store.append("preferences", [preference(i) for i in range(10)])
    assert run_child(str(folder), str(tiny_model), "dpo", "") == 0
    return folder


@pytest.mark.parametrize(
    "point",
    [
        "train.after_score:2",
        "train.after_step:3",
        "train.mid_checkpoint:2",
        "train.before_policy",
        "train.after_policy",
    ],
)
def test_a_killed_training_ends_the_same(point: str, uninterrupted: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with Store.open(folder, create=True) as store:
        store.append("preferences", [preference(i) for i in range(10)])
    assert run_child(str(folder), str(tiny_model), "dpo", point) == -signal.SIGKILL
    assert run_child(str(folder), str(tiny_model), "dpo", "") == 0

    ours, theirs = folder / "out", uninterrupted / "out"
    name = "policy/adapter_model.safetensors"
    wanted, got = load_file(theirs / name), load_file(ours / name)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)
    lines = [[timeless(line) for line in read(out / "metrics.jsonl")] for out in (ours, theirs)]
    assert lines[0] == lines[1]
    assert sorted(p.name for p in ours.iterdir()) == ["metrics.jsonl", "policy"]
    with Store.open(folder) as left, Store.open(uninterrupted) as right:
        columns = ["key", "logprob", "tokens"]
        assert left.read("logps", columns=columns) == right.read("logps", columns=columns)


def test_every_point_of_training_is_in_the_kill_test() -> None:
    points = {name for name in crash.POINTS if name.startswith("train.")}
    assert points == {
        "train.after_score", "train.after_step", "train.mid_checkpoint", "train.before_policy", "train.after_policy"
    }  # fmt: skip
