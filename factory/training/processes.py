"""A training in several processes: what they are told, and what each of them does."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from factory.faults import FactoryError
from factory.resources import model_files
from train.config import TrainConfig
from train.launching import Launch

if TYPE_CHECKING:
    from factory.console import Progress
    from factory.training.online import OnlineWork
    from train.processes import Group
    from train.trainer import Trained


class Work(NamedTuple):
    """What the processes of a training are told."""

    rows: Sequence[Any]
    start: str  # a name, which each host resolves
    base_name: str
    head: Literal["language", "score"]
    config: TrainConfig
    out: Path
    draft: Path
    model_hash: str
    threads: int
    online: OnlineWork | None = None


def several(processes: Launch | None, config: TrainConfig) -> Launch | None:
    """The processes, where there is more than one. FactoryError where they cannot be."""
    if processes is None:
        return None
    processes.check()
    if processes.size == 1:
        return None
    if processes.node:
        raise FactoryError("node 0 leads the training; the others help", todo="call help_train on this host")
    return processes


def train_share(group: Group, work: Work | None, progress: Progress | None) -> Trained:
    """One process of several: the loop on its share, then the policy's draft from the first one."""
    from factory.training.online import train as train_online
    from train.batches import FixedRows
    from train.policy import kept_tensors, save_policy
    from train.processes import gathered, load_sharded
    from train.shortages import memory_for
    from train.trainer import Trainer, threads

    told = group.from_first(lambda: work)
    if told is None:
        raise ValueError("the first process has no work")
    config, files = told.config, model_files(told.start)
    with threads(config.threads or told.threads), memory_for(f"process {group.rank}", str(told.out)):
        policy = load_sharded(
            group, files.base, files.adapter, lora=config.lora, dtype=config.dtype, seed=config.seed,
            base_name=told.base_name, head=told.head,
        )  # fmt: skip
        if told.online is not None:
            trained = train_online(told.online, policy, progress, group)
        else:
            source = FixedRows(told.rows, config.batch_size, config.epochs, config.seed)
            trained = Trainer(policy, source, config, told.out, told.model_hash, progress, group).run()
        tensors = gathered(group, kept_tensors(policy))
        if group.first:
            shutil.rmtree(told.draft, ignore_errors=True)
            save_policy(policy, told.draft, tensors)
        group.wait()
    return trained
