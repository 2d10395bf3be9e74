"""From rewards to advantages: what the answers to one prompt are worth against each other, or against a critic.

An objective on groups names its way in its facts (`advantage`). A new way is one function with one registration, which
declares the settings that it alone `reads`, the answers to a prompt that it needs at `least`, and what becomes of the
advantages `over` the whole batch. All take what is known of the sampled answers and give an advantage for each
answer's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from factory.faults import FactoryError
from factory.registry import Registry
from train.config import OnlineSpec
from train.data import Ids


class Sampled(NamedTuple):
    """One answer to a prompt with its reward. `old`, `ref`, `value`: of each of its tokens, (tokens,)."""

    completion: Ids
    reward: float
    old: Tensor
    ref: Tensor
    value: Tensor | None = None


@dataclass(frozen=True)
class Credit:
    """What one answer teaches: an advantage for each token, and a critic's returns where there is one."""

    advantage: tuple[float, ...]
    returns: tuple[float, ...] = ()


Way = Callable[[Sequence[Sampled], OnlineSpec], Sequence[Credit | None]]
"""The credit of each answer; None: the answer is not learnt from."""
Advantage = tuple[float, ...]
"""Of each token of an answer."""
OverBatch = Callable[[Sequence[Advantage], OnlineSpec], Sequence[Advantage]]
ways: Registry[Way] = Registry("way to advantages")


def reads(way: str) -> set[str]:
    """The settings of OnlineSpec that a way reads and not all others do; none of "", pairs made on the spot."""
    return set(ways.facts(way)["reads"]) if way else set()


def least(way: str) -> int:
    """Answers to a prompt, with verdicts, that a way needs; two make a pair."""
    return int(ways.facts(way)["least"]) if way else 2


def over_batch(way: str, advantages: Sequence[Advantage], spec: OnlineSpec) -> Sequence[Advantage]:
    """The advantages of a batch's answers, once all of them are known."""
    over: OverBatch | None = ways.facts(way).get("over")
    return advantages if over is None else over(advantages, spec)


def group_advantages(rewards: Tensor, *, scale: bool = True) -> Tensor:
    """(groups, n) rewards -> advantages of the same shape: reward minus the group's mean, over its deviation if
    `scale` (GRPO, arXiv 2402.03300, section 4.1.2; Dr. GRPO leaves the division out). A group whose rewards are all
    equal teaches nothing: 0."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if not scale:
        return centred
    spread = rewards.std(dim=1, keepdim=True) if rewards.shape[1] > 1 else torch.zeros_like(centred)
    return torch.where(spread > 1e-8, centred / spread.clamp(min=1e-8), torch.zeros_like(centred))


def leave_one_out(rewards: Tensor) -> Tensor:
    """(groups, n) rewards -> each minus the mean of the other n - 1 of its group (RLOO, arXiv 2402.14740, eq. 7)."""
    n = rewards.shape[1]
    if n < 2:
        raise FactoryError("leaving one out needs at least 2 answers a prompt", todo="sample more (n: 2 or above)")
    return (rewards - rewards.mean(dim=1, keepdim=True)) * n / (n - 1)


def estimates(rewards: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) of one answer: rewards and values (tokens,) ->
    (advantages, returns), both (tokens,). After the last token the value is 0: the answer has ended."""
    advantages = torch.empty_like(rewards)
    ahead = rewards.new_zeros(())
    following = rewards.new_zeros(())
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * following - values[t]
        ahead = delta + gamma * lam * ahead
        advantages[t], following = ahead, values[t]
    return advantages, advantages + values


def _rewards(answers: Sequence[Sampled]) -> Tensor:
    return torch.tensor([[a.reward for a in answers]], dtype=torch.float64)


def _whole(answers: Sequence[Sampled], advantages: Tensor) -> list[Credit]:
    """The same advantage at every token of an answer."""
    return [Credit((v,) * len(a.completion)) for a, v in zip(answers, advantages[0].tolist(), strict=True)]


@ways.register("group", reads=("scale",), least=2)
def group(answers: Sequence[Sampled], spec: OnlineSpec) -> list[Credit]:
    """GRPO's."""
    return _whole(answers, group_advantages(_rewards(answers), scale=spec.scale == "deviation"))


@ways.register("leave_one_out", reads=("kl_weight",), least=2)
def left_out(answers: Sequence[Sampled], spec: OnlineSpec) -> list[Credit]:
    """RLOO's, with the KL to the reference in the reward: r - kl_weight sum(log pi_old - log ref) (eq. 4)."""
    held = [a._replace(reward=a.reward - spec.kl_weight * float((a.old - a.ref).sum())) for a in answers]
    return _whole(answers, leave_one_out(_rewards(held)))


def whitened(advantages: Sequence[Advantage]) -> list[Advantage]:
    """The advantages of each answer's tokens, less their mean over all tokens, over their deviation (n - 1 for n, as
    TRL's masked_whiten; arXiv 2006.05990 measures what it does elsewhere). Rewards are mostly 0 or more: without a
    baseline every answer would be made more likely, and a critic that has not learnt yet is none."""
    every = torch.tensor([a for of_answer in advantages for a in of_answer], dtype=torch.float64)
    if len(every) < 2:
        return [tuple(of_answer) for of_answer in advantages]
    scale = (every.var() + 1e-8).rsqrt()
    mean = every.mean()
    return [tuple(((torch.tensor(a, dtype=torch.float64) - mean) * scale).tolist()) for a in advantages]


def _whitened_if_asked(advantages: Sequence[Advantage], spec: OnlineSpec) -> Sequence[Advantage]:
    return whitened(advantages) if spec.whiten else advantages


@ways.register("gae", reads=("kl_weight", "gamma", "lam", "whiten"), least=1, over=_whitened_if_asked)
def by_critic(answers: Sequence[Sampled], spec: OnlineSpec) -> list[Credit]:
    """PPO's: at each token -kl_weight (log pi_old - log ref), and the judge's reward at the last one."""
    found = []
    for answer in answers:
        if answer.value is None:
            raise FactoryError("generalised advantages need a critic's values")
        rewards = -spec.kl_weight * (answer.old - answer.ref).double()
        rewards[-1] += answer.reward
        advantages, returns = estimates(rewards, answer.value.double(), spec.gamma, spec.lam)
        found.append(Credit(tuple(advantages.tolist()), tuple(returns.tolist())))
    return found


def below_all(anchors: int) -> float:
    """BOND's reward of an answer that is worse than all k of the anchor's: -(k - 1) 2^k log 2, nats; -log 16 for the
    paper's 2 (arXiv 2407.14622, eq. 17).

    Best-of-k's reward is (k - 1) log p, p the share of the anchor's answers that are no better (eq. 6 of the paper's
    theorem 1, its second term left out). An answer at p is below all k of them with probability (1 - p)^k: this
    number makes the expectation right for the median answer.
    """
    return -(anchors - 1) * 2.0**anchors * math.log(2)


def less_baseline(advantages: Sequence[Advantage], spec: OnlineSpec) -> list[Advantage]:
    """BOND's, of the policy's own answer and the anchor's best in turn, with the mean worth of the batch's own answers
    taken off each of these (2407.14622, section 5.2)."""
    mean = sum(own[0] for own in advantages[::2]) / max(1, len(advantages[::2]))
    return [tuple(a - mean for a in each) if i % 2 == 0 else each for i, each in enumerate(advantages)]


@ways.register("bond", reads=("eta", "anchor_weight", "anchor_rate"), least=3, over=less_baseline)
def bond(answers: Sequence[Sampled], spec: OnlineSpec) -> list[Credit | None]:
    """J-BOND's (arXiv 2407.14622, section 5.2): the first answer is the policy's, the others are the anchor's.

    The anchor's best gets 1 - eta (the forward KL: it is to be imitated), its others are not learnt from. The policy's
    answer gets eta (r + log anchor - log pi) + kl (log anchor - log pi): the backward KL, and the paper's further
    regularisation to the anchor (`anchor_weight`). r is `below_all` where its reward is below all of the anchor's (an
    equal one is not below: best-of-n's p counts ties), else 0.
    """
    own, *anchors = answers
    if len(anchors) < 2:
        raise FactoryError("bond compares with at least 2 answers of the anchor", todo="set online.n to 3")
    eta = spec.eta
    best = max(range(len(anchors)), key=lambda i: anchors[i].reward)
    reward = below_all(len(anchors)) if own.reward < min(a.reward for a in anchors) else 0.0
    worth = eta * reward + (eta + spec.anchor_weight) * float((own.ref - own.old).sum())
    credits: list[Credit | None] = [Credit((worth,) * len(own.completion))]
    for i, anchor in enumerate(anchors):
        credits.append(Credit((1 - eta,) * len(anchor.completion)) if i == best else None)
    return credits
