"""The prompts that measure: those of a split but for the ones that the policy may have been trained on."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from factory.faults import FactoryError
from factory.prompts import decontamination
from factory.schema import Prompt

if TYPE_CHECKING:
    from factory.store import Store


class Held(NamedTuple):
    """The prompts that measure, in the order of their keys, and how many more of the split stand too near one that may
    be trained on."""

    prompts: list[Prompt]
    left_out: int


def held_prompts(store: Store, split: str, limit: int | None = None, until: datetime | None = None) -> list[Prompt]:
    """The prompts of a split: the first `limit` of those added by the time `until`. A prompt that is the same as one of
    the train split, or nearly (`factory/prompts/decontamination.py`), is left out: the policy may have been trained on
    it."""
    return prompts_that_measure(store, split, limit, until).prompts


def prompts_that_measure(store: Store, split: str, limit: int | None = None, until: datetime | None = None) -> Held:
    """`held_prompts`, and how many were left out. FactoryError: the split has none, or none that is clear."""
    prompts = _added(store, split, until)
    if not prompts:
        raise FactoryError(
            f"there are no prompts in the split {split!r}", where=str(store.folder), todo="factory prompts add FILE"
        )
    if split == "train":
        return Held(prompts[:limit], 0)
    near = {hit.key for hit in decontamination.near_trained(prompts, _added(store, "train", until))}
    clear = [prompt for prompt in prompts if prompt.key not in near]
    if not clear:
        raise FactoryError(
            f"every prompt of the split {split!r} is near one of the split 'train'",
            where=str(store.folder),
            todo="add other prompts; factory decontaminate shows which",
        )
    return Held(clear[:limit], len(near))


def _added(store: Store, split: str, until: datetime | None) -> list[Prompt]:
    return [prompt for prompt in store.rows(Prompt, {"split": split}) if until is None or prompt.at <= until]
