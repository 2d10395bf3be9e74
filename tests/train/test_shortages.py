"""Memory or disk that runs out, and data that is not there: a clear error, and the last good checkpoint is kept."""

from __future__ import annotations

import errno
import multiprocessing
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.faults import FactoryError
from tests.train.conftest import label_rows, pair_rows
from train import shortages
from train.batches import FixedRows, tokens_of
from train.config import LoraSpec, TrainConfig
from train.metrics import read, timeless
from train.policy import Policy, load_policy
from train.trainer import Part, Trainer

Loader = Callable[..., Policy]


def trainer(policy: Policy, folder: Path, rows: Sequence[Any] | None = None, **more: Any) -> Trainer:
    settings = TrainConfig(
        **({"threads": 1, "epochs": 1, "learning_rate": 1e-2, "save_every": 1, "batch_size": 4} | more)
    )
    source = FixedRows(pair_rows(12) if rows is None else rows, settings.batch_size, settings.epochs, settings.seed)
    return Trainer(policy, source, settings, folder)


def cramped(loop: Trainer, most: int, fault: type[BaseException] = torch.OutOfMemoryError, after: int = 0) -> list[int]:
    """A trainer that cannot take more than `most` tokens at once; the tokens of every part that went through."""
    through: list[int] = []
    part = loop._part

    def limited(rows: Sequence[Any], parameters: dict[str, Any], *, counts: bool = True) -> Part:
        tokens = sum(map(tokens_of, rows))
        if tokens > most and len(through) >= after:
            raise fault("CUDA out of memory. Tried to allocate 2.00 GiB")
        through.append(tokens)
        return part(rows, parameters, counts=counts)

    loop._part = limited  # type: ignore[method-assign]
    return through


# ---------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("method", ["dpo", "kto", "bco"])
@pytest.mark.parametrize("fault", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_where_memory_runs_out_smaller_parts_give_the_same_training(
    policy: Loader, tmp_path: Path, method: str, fault: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    rows = label_rows(12) if method != "dpo" else pair_rows(12)
    wanted = trainer(policy(), tmp_path / "roomy", rows, method=method).run().lines
    loop = trainer(policy(), tmp_path / "cramped", rows, method=method)
    through = cramped(loop, max(map(tokens_of, rows)) + 10, fault)
    lines = loop.run().lines
    assert max(through) <= max(map(tokens_of, rows)) + 10
    assert "out of memory at step 1: going on with" in caplog.text
    for one, other in zip(wanted, lines, strict=True):
        assert timeless(one) == pytest.approx(timeless(other), rel=1e-3, abs=1e-4)


def test_one_row_that_does_not_fit_is_an_error_and_the_last_checkpoint_is_kept(policy: Loader, tmp_path: Path) -> None:
    loop = trainer(policy(), tmp_path)
    cramped(loop, 5, after=2)  # two steps of one part each are whole
    with pytest.raises(
        FactoryError, match=r"out of memory at step 3[\s\S]*micro_batch_tokens: \d+[\s\S]*checkpoint_act"
    ):
        loop.run()
    assert (tmp_path / "checkpoints" / "step-000002").is_dir()
    assert len(trainer(policy(), tmp_path).run().lines) == 3


def test_another_fault_is_no_shortage(policy: Loader, tmp_path: Path) -> None:
    loop = trainer(policy(), tmp_path)

    def broken(rows: Sequence[Any], parameters: dict[str, Any], *, counts: bool = True) -> Part:
        raise RuntimeError("shapes do not match")

    loop._part = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        loop.run()


def test_a_real_allocation_that_fails_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert shortages.of_memory(caught.value)


# ------------------------------------------------------------------------------------------------------------ disk


def _train_with_small_files(model: str, folder: str, limit: int, pipe: Any) -> None:
    """What the training raised, in a process that may write `limit` bytes to a file."""
    loaded = load_policy(model, lora=LoraSpec(r=4), dtype="float32", device="cpu", trainable=True)
    loop = trainer(loaded, Path(folder))
    step = loop.step

    def limited(at: int) -> Any:
        if at == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return step(at)

    loop.step = limited  # type: ignore[method-assign]
    try:
        loop.run()
        pipe.send(None)
    except FactoryError as fault:
        pipe.send(str(fault))


@pytest.mark.parametrize(("limit", "what"), [(4096, "a checkpoint"), (50_000, "a checkpoint"), (100, "metrics")])
def test_a_disk_that_is_full_is_an_error_and_the_last_checkpoint_is_kept(
    tiny_model: Path, policy: Loader, tmp_path: Path, limit: int, what: str
) -> None:
    """Files beyond a limit fail as on a full disk: while weights, while the optimiser's state, while metrics are
    written."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    child = context.Process(target=_train_with_small_files, args=(str(tiny_model), str(tmp_path), limit, there))
    child.start()
    there.close()
    assert here.poll(100)
    said = here.recv()
    child.join()
    assert said.startswith(f"the disk is full: {what} could not be written")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    whole = trainer(policy(), tmp_path / "whole").run().lines
    again = trainer(policy(), tmp_path).run().lines
    assert list(map(timeless, again)) == list(map(timeless, whole))
    assert read(tmp_path / "metrics.jsonl") == again


def test_the_kinds_of_a_full_disk_and_what_is_none() -> None:
    assert shortages.of_room(OSError(errno.ENOSPC, "No space left on device"))
    assert shortages.of_room(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert shortages.of_room(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert shortages.of_room(RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"))
    assert not shortages.of_room(OSError(errno.EACCES, "Permission denied"))
    assert not shortages.of_room(RuntimeError("(os error 280)"))


# ------------------------------------------------------------------------------------------------------------ data


def test_no_rows_is_an_error(policy: Loader, tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="no rows to train on"):
        trainer(policy(), tmp_path, []).run()
