"""Checkpoints: what learns, the optimiser, the random states and the step, in a folder that is whole or not there.

A checkpoint is written under another name, synced, and renamed when its last file is there; checkpoint.json holds the
SHA-256 of the others, so that a torn or changed one is passed over and the one before it is taken. The learning rate
and the order of the data are functions of the step, which is all that need be kept of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from factory import crash
from factory.faults import FactoryError

log = logging.getLogger(__name__)

WEIGHTS, STATE, MARK = "weights.safetensors", "state.pt", "checkpoint.json"
KEPT = 2  # the newest so many


class Stamp(NamedTuple):
    """What a training is of. Where it differs, a checkpoint is of another training."""

    data: str
    config: str
    model: str


class Found(NamedTuple):
    """A whole checkpoint: its folder, the steps that were done, and the processes that wrote it."""

    folder: Path
    step: int
    stamp: Stamp
    processes: int = 1


def save(
    home: Path,
    step: int,
    stamp: Stamp,
    weights: Mapping[str, nn.Parameter],
    optimiser: Any,
    moving: Mapping[str, Any] | None = None,
) -> None:
    """Write the checkpoint after `step` steps into `home`, then drop all but the newest. `moving`: what else goes
    from step to step, numbers and tensors by name."""
    draft = begin(home, step)
    save_file({name: p.detach().cpu().contiguous() for name, p in weights.items()}, draft / WEIGHTS)
    state = {"optimiser": optimiser.state_dict(), "random": _random_states(), "moving": dict(moving or {})}
    torch.save(state, draft / STATE)
    crash.point("train.mid_checkpoint")
    finish(draft, Found(draft, step, stamp), {name: sha256(draft / name) for name in (WEIGHTS, STATE)})


def begin(home: Path, step: int) -> Path:
    """An empty folder to write the checkpoint after `step` steps in."""
    draft = home / f"writing-{step:06d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def finish(draft: Path, what: Found, sums: Mapping[str, str]) -> None:
    """Mark a checkpoint whose files are all there, put it in its place, and drop all but the newest."""
    mark = {"step": what.step, "stamp": what.stamp._asdict(), "processes": what.processes, "sha256": dict(sums)}
    (draft / MARK).write_text(json.dumps(mark, indent=2), encoding="utf-8")
    for path in (*sorted(draft.iterdir()), draft):
        sync(path)
    home, folder = draft.parent, draft.with_name(f"step-{what.step:06d}")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    sync(home)
    for old in sorted(home.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def newest(home: Path, stamp: Stamp) -> Found | None:
    """The newest whole checkpoint in `home`. FactoryError when it is of another training."""
    for folder in sorted(home.glob("step-*"), reverse=True):
        found = _whole(folder)
        if found is None:
            log.warning("the checkpoint %s is not whole and is passed over", folder)
            continue
        _refuse_other(found, stamp)
        return found
    return None


def load(found: Found, weights: Mapping[str, nn.Parameter], optimiser: Any) -> dict[str, Any]:
    """Put weights, optimiser and random states back; what else was saved with them."""
    kept: dict[str, Tensor] = load_file(found.folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(kept[name])
    state = torch.load(found.folder / STATE, weights_only=True)
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"]["cpu"])
    if torch.cuda.is_available() and state["random"]["cuda"]:
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    moving: dict[str, Any] = state["moving"]
    return moving


def _random_states() -> dict[str, Any]:
    """Of torch: dropout draws from them. The order of the data has its own seed."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _whole(folder: Path) -> Found | None:
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        if any(sha256(folder / name) != wanted for name, wanted in mark["sha256"].items()):
            return None
        return Found(folder, mark["step"], Stamp(**mark["stamp"]), mark.get("processes", 1))
    except (OSError, ValueError, KeyError, TypeError):
        return None


_NAMES = {"data": "data", "config": "settings", "model": "model"}


def _refuse_other(found: Found, stamp: Stamp) -> None:
    changed = [name for key, name in _NAMES.items() if getattr(found.stamp, key) != getattr(stamp, key)]
    if changed:
        raise FactoryError(
            f"the checkpoint is of a training with another {' and '.join(changed)}",
            where=str(found.folder),
            todo="train into another folder, or delete this one's checkpoints to begin anew",
        )


def sha256(path: Path) -> str:
    """Of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Until the file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
