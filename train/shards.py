"""Checkpoints of a training in several processes: each writes its shards, and the mark comes last.

Weights and the optimiser's state go through torch.distributed.checkpoint, which puts them together again for any number
of processes. With as many as wrote them the training goes on to the same bits, random states included; with another
number the rows fall to other processes and sums have another order, so that the last digits may differ.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read_shards
from torch.distributed.checkpoint.state_dict_saver import save as write_shards

from factory import crash
from train import checkpoint
from train.checkpoint import STATE, WEIGHTS, Found, Stamp
from train.processes import Group

log = logging.getLogger(__name__)

Weights = Mapping[str, nn.Parameter]


def save(
    home: Path, step: int, stamp: Stamp, weights: Weights, optimiser: Any, moving: Mapping[str, Any], group: Group
) -> None:
    """Write the checkpoint after `step` steps; every process of the group calls it. See `checkpoint.save`."""
    draft = group.from_first(lambda: checkpoint.begin(home, step))
    state = {_weight(name): p.detach() for name, p in weights.items()}
    for name, p in weights.items():
        state |= {_kept(name, key): value for key, value in optimiser.state[p].items()}
    with _unwrapped():
        write_shards(state, storage_writer=FileSystemWriter(draft))
    torch.save(_random_state(), draft / _random(group.rank))
    if group.first:
        torch.save({"moving": dict(moving)}, draft / STATE)
    crash.point("train.mid_checkpoint")
    own = [*draft.glob(f"__{group.rank}_*"), draft / _random(group.rank)]
    own += [draft / STATE, draft / ".metadata"] if group.first else []
    for path in own:
        checkpoint.sync(path)
    parts = group.gather({path.name: checkpoint.sha256(path) for path in own})
    sums = {name: digits for part in parts for name, digits in part.items()}
    group.from_first(lambda: checkpoint.finish(draft, Found(draft, step, stamp, group.size), sums))


def load(found: Found, weights: Weights, optimiser: Any, group: Group) -> dict[str, Any]:
    """Put weights, optimiser and random states back, whatever number of processes wrote them; what else was saved."""
    if found.processes == 1 and group.size == 1:
        return checkpoint.load(found, weights, optimiser)
    if found.processes != group.size:
        log.warning(
            "the checkpoint is of %d processes and the training goes on in %d: its last digits may differ from those "
            "of a training that was not cut", found.processes, group.size
        )  # fmt: skip
    state = torch.load(found.folder / STATE, weights_only=True)
    if found.processes == 1:
        _share_out(found.folder, state["optimiser"], weights, optimiser)
    else:
        _put_together(found.folder, weights, optimiser)
    if found.processes == group.size:
        _set_random_state(torch.load(found.folder / _random(group.rank), weights_only=True))
    else:
        torch.manual_seed(torch.initial_seed() + found.step)  # a state that no process has had
    return cast(dict[str, Any], state["moving"])


def _put_together(folder: Path, weights: Weights, optimiser: Any) -> None:
    """Each process reads of the shards in the folder what its own cover."""
    reader = FileSystemReader(folder)
    there = reader.read_metadata().state_dict_metadata
    state: dict[str, Any] = {_weight(name): p.detach() for name, p in weights.items()}
    optimiser.state.clear()
    for name, p in weights.items():
        prefix = _kept(name, "")
        for place, about in there.items():
            if place.startswith(prefix) and isinstance(about, TensorStorageMetadata):
                like = torch.zeros_like(p.detach()) if about.size == p.shape else torch.zeros(about.size)
                optimiser.state[p][place.removeprefix(prefix)] = state[place] = like
    with _unwrapped():
        read_shards(state, storage_reader=reader)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """What went wrong in a process, instead of the checkpointer's own exception, which is no Exception."""
    try:
        yield
    except CheckpointException as fault:
        raise next(iter(fault.failures.values()))[0] from fault


def _share_out(folder: Path, kept: Mapping[str, Any], weights: Weights, optimiser: Any) -> None:
    """A checkpoint of one process, its tensors cut as the weights are."""
    values = load_file(folder / WEIGHTS)
    optimiser.state.clear()
    with torch.no_grad():
        for i, (name, p) in enumerate(weights.items()):
            p.copy_(_as(p, values[name]))
            optimiser.state[p] = {
                key: _as(p, value) if value.shape == p.shape else value for key, value in kept["state"][i].items()
            }


def _as(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A whole tensor cut as the parameter is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    held: Any = parameter
    if not isinstance(held, DTensor):
        return value.to(parameter.device)
    return distribute_tensor(value.to(held.device), held.device_mesh, held.placements)


def _weight(name: str) -> str:
    return f"weights/{name}"


def _kept(name: str, key: str) -> str:
    return f"optimiser/{name}/{key}"


def _random(rank: int) -> str:
    return f"random-{rank}.pt"


def _random_state() -> dict[str, Any]:
    """Of this process and its device: dropout draws from them."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
