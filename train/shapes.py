"""The shapes of data: how rows go through the model, into an objective and into metrics.

An objective declares its shape by name; the loop asks the shape and never which objective it is. `of` makes the shape
that an objective with its parameters wants: with the heads of answers for LD-DPO, the prompt's own tokens for ORPO with
its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from train.conversations import head, learnt
from train.data import CompletionRow, Encoded, LabelRow, PairRow, SampleRow, with_others
from train.logps import Forward, TokenLogps, forward_for
from train.losses import (
    CompletionLogps,
    GroupLogps,
    GroupLoss,
    LabelLogps,
    LabelLoss,
    Objective,
    PairLogps,
    PairLoss,
    PairScores,
)
from train.packing import Group
from train.scores import ScoreForward


class Fields(Protocol):
    """A named tuple of tensors."""

    _fields: tuple[str, ...]

    def _replace(self, **fields: Any) -> Any:
        """With other fields."""


T = TypeVar("T", bound=Fields)


class Shape(Protocol):
    """What the loop asks of a shape of data. `critic`: a value head that is trained with it."""

    critic: nn.Module | None

    def way(self, model: nn.Module, rows: Sequence[Any]) -> Any:
        """How this model is gone through, settled on some rows of the data."""

    def seen(self, way: Any, rows: Sequence[Any], *, spread: bool = False) -> Any:
        """What the model says of the rows, with gradients; with `spread` what WPO's weights need."""

    def logps(self, rows: Sequence[Any], seen: Any) -> Any:
        """The objective's input."""

    def alignment(self, rows: Sequence[Any], seen: Any) -> Tensor:
        """WPO's weight of each row: (batch,), no gradient."""

    def scored(self, row: Any) -> list[Encoded]:
        """What of a row the reference scores."""

    def with_reference(self, row: Any, logps: Sequence[float]) -> Any:
        """The row with the reference's log-probs of what `scored` named, in order."""

    def completed(self, rows: Sequence[Any], seed: int, total: int | None) -> Sequence[Any]:
        """The rows with what they take from each other, at most `total` tokens with the prompt."""

    def sft(self, logps: Any) -> Tensor:
        """Negative log-likelihood of the good answers, mean per token: (batch,); 0 for a row without one."""

    def rewards(self, outcome: Any) -> Tensor:
        """Every reward of the batch, (rewards,): what BCO's shift is the mean of."""

    def metrics(self, logps: Any, outcome: Any) -> dict[str, float]:
        """TRL's names: rewards/chosen, rewards/margins, logps/chosen ... as means over the batch; logratios/*,
        policy - reference, and lengths/*, tokens that are learnt."""


def _tensor(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)


class _ByLogps:
    """What shapes share whose rows become log-probs."""

    critic: nn.Module | None = None

    def __init__(self, needs: Collection[str] = ()) -> None:
        self.needs = frozenset(needs)

    def groups(self, rows: Sequence[Any]) -> list[Group]:
        """What goes through the model for these rows."""
        raise NotImplementedError

    def way(self, model: nn.Module, rows: Sequence[Any]) -> Forward:
        """Packed where that is exact for the model, else plain."""
        return forward_for(model, self.groups(rows))

    def seen(self, way: Forward, rows: Sequence[Any], *, spread: bool = False) -> TokenLogps:
        """Token log-probs of all completions."""
        return way.token_logps(self.groups(rows), spread=spread)

    def alignment(self, rows: Sequence[Any], seen: TokenLogps) -> Tensor:
        """exp of the mean alignment of the row's answers, multiplied (WPO, arXiv 2406.11827, eq. 2 and 3)."""
        each = seen.alignment().exp()
        answers = len(self.groups(rows[:1])[0].completions) if rows else 1
        product: Tensor = each.reshape(len(rows), answers).prod(dim=1)
        return product


class Pairs(_ByLogps):
    """prompt / chosen / rejected."""

    def groups(self, rows: Sequence[PairRow]) -> list[Group]:
        """A prompt with both its answers."""
        return [Group(row.prompt, (row.chosen, row.rejected)) for row in rows]

    def seen(self, way: Forward, rows: Sequence[PairRow], *, spread: bool = False) -> TokenLogps:
        """Token log-probs of both answers; after all of them, where they are needed, those of the prompts."""
        asked = self.groups(rows)
        if "prompt" in self.needs:
            asked += [Group(row.prompt[:1], (row.prompt[1:],)) for row in rows if len(row.prompt) > 1]
        return way.token_logps(asked, spread=spread)

    def logps(self, rows: Sequence[PairRow], seen: TokenLogps) -> PairLogps:
        """PairLogps of (batch,)."""
        sums, count = seen.sums(), 2 * len(rows)
        found = PairLogps(
            sums[0:count:2],
            sums[1:count:2],
            _tensor([row.ref_chosen for row in rows], sums),
            _tensor([row.ref_rejected for row in rows], sums),
            _tensor([learnt(row.chosen) for row in rows], sums),
            _tensor([learnt(row.rejected) for row in rows], sums),
        )
        if "head" in self.needs:
            found = self._with_heads(found, rows, seen)
        if "prompt" in self.needs:
            found = self._with_prompts(found, rows, sums[count:])
        return found

    def _with_heads(self, found: PairLogps, rows: Sequence[PairRow], seen: TokenLogps) -> PairLogps:
        own = seen.lengths[: 2 * len(rows)].reshape(-1, 2).amin(dim=1).repeat_interleave(2)
        rest = seen.lengths[2 * len(rows) :]
        heads = seen.heads(torch.cat([own, rest]))
        return found._replace(
            chosen_head=heads[0 : 2 * len(rows) : 2],
            rejected_head=heads[1 : 2 * len(rows) : 2],
            ref_chosen_head=_tensor([row.ref_chosen_head for row in rows], heads),
            ref_rejected_head=_tensor([row.ref_rejected_head for row in rows], heads),
        )

    def _with_prompts(self, found: PairLogps, rows: Sequence[PairRow], sums: Tensor) -> PairLogps:
        predicted = [len(row.prompt) - 1 for row in rows]
        places = torch.tensor([i for i, count in enumerate(predicted) if count], device=sums.device, dtype=torch.long)
        whole = torch.zeros(len(rows), device=sums.device).index_add(0, places, sums)
        return found._replace(prompt=whole, prompt_len=_tensor(predicted, sums))

    def alignment(self, rows: Sequence[PairRow], seen: TokenLogps) -> Tensor:
        """Of both answers, multiplied."""
        each = seen.alignment()[: 2 * len(rows)].exp()
        product: Tensor = each.reshape(-1, 2).prod(dim=1)
        return product

    def scored(self, row: PairRow) -> list[Encoded]:
        """Both answers; with heads, the first tokens of the longer one too."""
        whole = [Encoded(row.prompt, row.chosen), Encoded(row.prompt, row.rejected)]
        return [*whole, *self._head_of_longer(row)]

    def _head_of_longer(self, row: PairRow) -> list[Encoded]:
        short, long = sorted((row.chosen, row.rejected), key=learnt)
        if "head" not in self.needs or learnt(short) == learnt(long):
            return []
        return [Encoded(row.prompt, head(long, learnt(short)))]

    def with_reference(self, row: PairRow, logps: Sequence[float]) -> PairRow:
        """Chosen first."""
        chosen, rejected, *of_longer = logps
        heads = [chosen, rejected]
        if of_longer:
            heads[learnt(row.rejected) > learnt(row.chosen)] = of_longer[0]
        return row._replace(
            ref_chosen=chosen, ref_rejected=rejected, ref_chosen_head=heads[0], ref_rejected_head=heads[1]
        )

    def completed(self, rows: Sequence[PairRow], seed: int, total: int | None) -> Sequence[PairRow]:
        """Pairs are whole."""
        return rows

    def sft(self, logps: PairLogps) -> Tensor:
        """Of the chosen answers."""
        return -logps.chosen / logps.chosen_len

    def rewards(self, outcome: PairLoss) -> Tensor:
        """Of chosen and rejected."""
        return torch.cat([outcome.chosen_reward, outcome.rejected_reward])

    def metrics(self, logps: PairLogps, outcome: PairLoss) -> dict[str, float]:
        """Means over the pairs."""
        return _margins(outcome) | {
            "logps/chosen": _mean(logps.chosen),
            "logps/rejected": _mean(logps.rejected),
            "logratios/chosen": _mean(logps.chosen - logps.ref_chosen),
            "logratios/rejected": _mean(logps.rejected - logps.ref_rejected),
            "lengths/chosen": _mean(logps.chosen_len),
            "lengths/rejected": _mean(logps.rejected_len),
        }


class Labels(_ByLogps):
    """prompt / completion / label."""

    def groups(self, rows: Sequence[LabelRow]) -> list[Group]:
        """A prompt with its answer."""
        return [Group(row.prompt, (row.completion,)) for row in rows]

    def logps(self, rows: Sequence[LabelRow], seen: TokenLogps) -> LabelLogps:
        """LabelLogps of (batch,)."""
        sums = seen.sums()
        return LabelLogps(
            sums,
            _tensor([row.ref for row in rows], sums),
            torch.tensor([row.desirable for row in rows], device=sums.device),
            _tensor([learnt(row.completion) for row in rows], sums),
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

    def rewards(self, outcome: LabelLoss) -> Tensor:
        """Of all answers."""
        return outcome.reward

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


class Completions(_ByLogps):
    """prompt / completion, to be learnt as it is."""

    def groups(self, rows: Sequence[CompletionRow]) -> list[Group]:
        """A prompt with its answer."""
        return [Group(row.prompt, (row.completion,)) for row in rows]

    def logps(self, rows: Sequence[CompletionRow], seen: TokenLogps) -> CompletionLogps:
        """CompletionLogps of (batch,)."""
        sums = seen.sums()
        return CompletionLogps(sums, _tensor([learnt(row.completion) for row in rows], sums))

    def scored(self, row: CompletionRow) -> list[Encoded]:
        """Nothing: there is no reference."""
        return []

    def with_reference(self, row: CompletionRow, logps: Sequence[float]) -> CompletionRow:
        """As it is."""
        return row

    def completed(self, rows: Sequence[CompletionRow], seed: int, total: int | None) -> Sequence[CompletionRow]:
        """Completions are whole."""
        return rows

    def sft(self, logps: CompletionLogps) -> Tensor:
        """Of all answers."""
        return -logps.policy / logps.length

    def rewards(self, outcome: LabelLoss) -> Tensor:
        """Of all answers."""
        return outcome.reward

    def metrics(self, logps: CompletionLogps, outcome: LabelLoss) -> dict[str, float]:
        """Log-prob of an answer and of a token."""
        return {
            "logps/chosen": _mean(logps.policy),
            "mean_token_logp": float(logps.policy.sum() / logps.length.sum()),
        }


class Scores:
    """prompt / chosen / rejected for a reward model."""

    critic: nn.Module | None = None

    def __init__(self, needs: Collection[str] = ()) -> None:
        pass

    def way(self, model: nn.Module, rows: Sequence[PairRow]) -> ScoreForward:
        """The model's own forward, at the last token."""
        return ScoreForward(model)

    def seen(self, way: ScoreForward, rows: Sequence[PairRow], *, spread: bool = False) -> Tensor:
        """Scores of chosen and rejected in turn: (2 * batch,)."""
        return way.scores([(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)])

    def logps(self, rows: Sequence[PairRow], seen: Tensor) -> PairScores:
        """PairScores of (batch,)."""
        return PairScores(seen[0::2], seen[1::2], _tensor([row.margin for row in rows], seen))

    def alignment(self, rows: Sequence[PairRow], seen: Tensor) -> Tensor:
        """There are no log-probs to weigh by: 1."""
        return torch.ones(len(rows), device=seen.device)

    def scored(self, row: PairRow) -> list[Encoded]:
        """Nothing: there is no reference."""
        return []

    def with_reference(self, row: PairRow, logps: Sequence[float]) -> PairRow:
        """As it is."""
        return row

    def completed(self, rows: Sequence[PairRow], seed: int, total: int | None) -> Sequence[PairRow]:
        """Pairs are whole."""
        return rows

    def sft(self, logps: PairScores) -> Tensor:
        """There is no likelihood to raise: 0."""
        return torch.zeros_like(logps.chosen)

    def rewards(self, outcome: PairLoss) -> Tensor:
        """Of chosen and rejected."""
        return torch.cat([outcome.chosen_reward, outcome.rejected_reward])

    def metrics(self, logps: PairScores, outcome: PairLoss) -> dict[str, float]:
        """Means over the pairs."""
        return _margins(outcome)


class Samples(_ByLogps):
    """Answers that the policy sampled, those of a prompt together."""

    def groups(self, rows: Sequence[SampleRow]) -> list[Group]:
        """Every prompt once, with its answers."""
        return [Group(prompt, [rows[i].completion for i in places]) for prompt, places in self._places(rows).items()]

    def _places(self, rows: Sequence[SampleRow]) -> dict[tuple[int, ...], list[int]]:
        found: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(rows):
            found.setdefault(row.prompt, []).append(i)
        return found

    def seen(self, way: Forward, rows: Sequence[SampleRow], *, spread: bool = False) -> TokenLogps:
        """Token log-probs of all answers, in the order of the rows."""
        tokens = way.token_logps(self.groups(rows), spread=spread, critic=self.critic)
        came = [i for places in self._places(rows).values() for i in places]
        return tokens.reordered([came.index(i) for i in range(len(rows))])

    def logps(self, rows: Sequence[SampleRow], seen: TokenLogps) -> GroupLogps:
        """GroupLogps of (tokens,) and (batch,)."""

        def tokens(name: str) -> Tensor:
            return _tensor([v for row in rows for v in getattr(row, name)], seen.values)

        found = GroupLogps(
            seen.values,
            tokens("old"),
            tokens("ref"),
            tokens("advantage"),
            seen.lengths,
            _tensor([row.reward for row in rows], seen.values),
        )
        if seen.worth is None:
            return found
        return found._replace(value=seen.worth, old_value=tokens("value"), returns=tokens("returns"))

    def alignment(self, rows: Sequence[SampleRow], seen: TokenLogps) -> Tensor:
        """Samples are the policy's own: 1."""
        return torch.ones(len(rows), device=seen.values.device)

    def scored(self, row: SampleRow) -> list[Encoded]:
        """Nothing: it was scored when it was sampled."""
        return []

    def with_reference(self, row: SampleRow, logps: Sequence[float]) -> SampleRow:
        """As it is."""
        return row

    def completed(self, rows: Sequence[SampleRow], seed: int, total: int | None) -> Sequence[SampleRow]:
        """Samples are whole."""
        return rows

    def sft(self, logps: GroupLogps) -> Tensor:
        """There are no good answers to hold up: 0."""
        return torch.zeros_like(logps.reward)

    def rewards(self, outcome: GroupLoss) -> Tensor:
        """Of all answers."""
        return outcome.reward

    def metrics(self, logps: GroupLogps, outcome: GroupLoss) -> dict[str, float]:
        """TRL's names for online methods: reward, kl (k3 a token), clip_ratio; and the critic's share of variance."""
        length = logps.length.float()
        found = {
            "reward": _mean(outcome.reward),
            "kl": float((outcome.kl * length).sum() / length.sum()),
            "clip_ratio": float((outcome.clipped * length).sum() / length.sum()),
            "completions/mean_length": _mean(length),
        }
        if logps.value is not None and logps.returns is not None:
            left = (logps.returns - logps.value).detach().var(unbiased=False)
            found["value/explained"] = float(1 - left / logps.returns.var(unbiased=False).clamp(min=1e-8))
        return found


def _margins(outcome: PairLoss) -> dict[str, float]:
    margins = outcome.chosen_reward - outcome.rejected_reward
    return {
        "rewards/chosen": _mean(outcome.chosen_reward),
        "rewards/rejected": _mean(outcome.rejected_reward),
        "rewards/margins": _mean(margins),
        "rewards/accuracies": _mean((margins > 0).float()),
    }


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


SHAPES: Mapping[str, Callable[[Collection[str]], Shape]] = {
    "pairs": Pairs,
    "labels": Labels,
    "completions": Completions,
    "scores": Scores,
    "groups": Samples,
}


def of(objective: Objective, parameters: Mapping[str, Any]) -> Shape:
    """The shape of the objective's data, with the further fields that its parameters ask for."""
    return SHAPES[objective.data](objective.needed(parameters))
