"""The two shapes of data, pairs and labels: how their rows go through the model, into an objective and into metrics.

An objective declares its shape by name; the loop asks the shape and never which objective it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from train.data import Encoded, LabelRow, PairRow, with_others
from train.losses import LabelLogps, LabelLoss, PairLogps, PairLoss
from train.packing import Group


class Fields(Protocol):
    """A named tuple of tensors."""

    _fields: tuple[str, ...]

    def _replace(self, **fields: Any) -> Any:
        """With other fields."""


T = TypeVar("T", bound=Fields)


class Shape(Protocol):
    """What the loop asks of a shape of data."""

    def groups(self, rows: Sequence[Any]) -> list[Group]:
        """What goes through the model for these rows."""

    def logps(self, rows: Sequence[Any], sums: Tensor) -> Any:
        """The objective's input from the summed log-probs of all completions, in the order of `groups`."""

    def scored(self, row: Any) -> list[Encoded]:
        """What of a row the reference scores."""

    def with_reference(self, row: Any, logps: Sequence[float]) -> Any:
        """The row with the reference's log-probs of what `scored` named, in order."""

    def completed(self, rows: Sequence[Any], seed: int, total: int | None) -> Sequence[Any]:
        """The rows with what they take from each other, at most `total` tokens with the prompt."""

    def sft(self, logps: Any) -> Tensor:
        """Negative log-likelihood of the good answers, mean per token: (batch,); 0 for a row without one."""

    def metrics(self, logps: Any, outcome: Any) -> dict[str, float]:
        """TRL's names: rewards/chosen, rewards/margins, logps/chosen ... as means over the batch; and logratios/*,
        policy - reference."""


def _tensor(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)


class Pairs:
    """prompt / chosen / rejected."""

    def groups(self, rows: Sequence[PairRow]) -> list[Group]:
        """A prompt with both its answers."""
        return [Group(row.prompt, (row.chosen, row.rejected)) for row in rows]

    def logps(self, rows: Sequence[PairRow], sums: Tensor) -> PairLogps:
        """(2 * batch,) -> PairLogps of (batch,)."""
        return PairLogps(
            sums[0::2],
            sums[1::2],
            _tensor([row.ref_chosen for row in rows], sums),
            _tensor([row.ref_rejected for row in rows], sums),
            _tensor([len(row.chosen) for row in rows], sums),
            _tensor([len(row.rejected) for row in rows], sums),
        )

    def scored(self, row: PairRow) -> list[Encoded]:
        """Both answers."""
        return [Encoded(row.prompt, row.chosen), Encoded(row.prompt, row.rejected)]

    def with_reference(self, row: PairRow, logps: Sequence[float]) -> PairRow:
        """Chosen first."""
        return row._replace(ref_chosen=logps[0], ref_rejected=logps[1])

    def completed(self, rows: Sequence[PairRow], seed: int, total: int | None) -> Sequence[PairRow]:
        """Pairs are whole."""
        return rows

    def sft(self, logps: PairLogps) -> Tensor:
        """Of the chosen answers."""
        return -logps.chosen / logps.chosen_len

    def metrics(self, logps: PairLogps, outcome: PairLoss) -> dict[str, float]:
        """Means over the pairs."""
        margins = outcome.chosen_reward - outcome.rejected_reward
        return {
            "rewards/chosen": _mean(outcome.chosen_reward),
            "rewards/rejected": _mean(outcome.rejected_reward),
            "rewards/margins": _mean(margins),
            "rewards/accuracies": _mean((margins > 0).float()),
            "logps/chosen": _mean(logps.chosen),
            "logps/rejected": _mean(logps.rejected),
            "logratios/chosen": _mean(logps.chosen - logps.ref_chosen),
            "logratios/rejected": _mean(logps.rejected - logps.ref_rejected),
        }


class Labels:
    """prompt / completion / label."""

    def groups(self, rows: Sequence[LabelRow]) -> list[Group]:
        """A prompt with its answer."""
        return [Group(row.prompt, (row.completion,)) for row in rows]

    def logps(self, rows: Sequence[LabelRow], sums: Tensor) -> LabelLogps:
        """(batch,) -> LabelLogps of (batch,)."""
        return LabelLogps(
            sums,
            _tensor([row.ref for row in rows], sums),
            torch.tensor([row.desirable for row in rows], device=sums.device),
            _tensor([len(row.completion) for row in rows], sums),
        )

    def scored(self, row: LabelRow) -> list[Encoded]:
        """The answer, and the answer to another prompt."""
        return [Encoded(row.prompt, ids) for ids in (row.completion, row.other) if ids]

    def with_reference(self, row: LabelRow, logps: Sequence[float]) -> LabelRow:
        """The answer first."""
        return row._replace(ref=logps[0], ref_other=logps[1] if row.other else 0.0)

    def completed(self, rows: Sequence[LabelRow], seed: int, total: int | None) -> Sequence[LabelRow]:
        """Every label with the answer to another prompt."""
        return with_others(rows, seed, total)

    def sft(self, logps: LabelLogps) -> Tensor:
        """Of the desirable answers; 0 for the others."""
        return torch.where(logps.desirable, -logps.policy / logps.length, 0.0)

    def metrics(self, logps: LabelLogps, outcome: LabelLoss) -> dict[str, float]:
        """Means over the desirable ("chosen") and the undesirable ("rejected"); a kind that is not there is left
        out."""
        good = logps.desirable
        out: dict[str, float] = {}
        for name, which in (("chosen", good), ("rejected", ~good)):
            if bool(which.any()):
                out[f"rewards/{name}"] = _mean(outcome.reward[which])
                out[f"logps/{name}"] = _mean(logps.policy[which])
                out[f"logratios/{name}"] = _mean((logps.policy - logps.ref)[which])
        if "rewards/chosen" in out and "rewards/rejected" in out:
            out["rewards/margins"] = out["rewards/chosen"] - out["rewards/rejected"]
        return out


def _mean(values: Tensor) -> float:
    return float(values.detach().mean())


def joined(parts: Sequence[T]) -> T:
    """The parts of a batch as one, field by field, without gradients; a field that is not there stays None."""
    first = parts[0]
    fields = {
        name: torch.cat([getattr(part, name).detach() for part in parts])
        for name in first._fields
        if getattr(first, name) is not None
    }
    whole: T = first._replace(**fields)
    return whole


SHAPES: Mapping[str, Shape] = {"pairs": Pairs(), "labels": Labels()}
