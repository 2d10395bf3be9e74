"""Objectives on answers sampled by the policy itself, with a reward for each: policy gradients.

Input is token by token (`GroupLogps`); a token's loss is clipped in its probability ratio to the weights that sampled
it, and `normalise` says how tokens are averaged, in the words of TRL's loss types:

  grpo      mean over each answer's tokens, then over answers (arXiv 2402.03300, eq. 3)
  bnpo      mean over all tokens of the effective batch
  dr_grpo   sum over tokens over a constant, the longest answer allowed (arXiv 2503.20783, section 3.2): no length bias
  dapo      bnpo's mean, with a higher upper clip, 0.28 (arXiv 2503.14476, eq. 8 to 10)

The batch's loss is sum(loss * weight) / sum(weight) over the effective batch, over micro-batches and processes alike:
for bnpo and dapo an answer weighs its number of tokens. Where advantages come from is a fact of the objective
(`train/advantages.py`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from train.losses.facts import NON_NEGATIVE, POSITIVE, OneOf, Range, register
from train.losses.parts import GroupLogps, GroupLoss, k3, of_answers, to_tokens

Normalise = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
NORMALISERS = OneOf(("grpo", "bnpo", "dr_grpo", "dapo"))
CLIP = Range(0.0, 1.0, open="both")


def _ratio(logps: GroupLogps, of_sequence: bool) -> Tensor:
    """pi / pi_old at each token; of the whole answer (geometric mean over its tokens, GSPO, 2507.18071, eq. 7) with
    `of_sequence`."""
    log = logps.policy - logps.old
    if of_sequence:
        log = to_tokens(of_answers(log, logps.length) / logps.length, logps.length)
    return torch.exp(log)


def _averaged(tokens: Tensor, logps: GroupLogps, normalise: str, longest: int) -> tuple[Tensor, Tensor]:
    """Loss and weight of each answer, (batch,), so that sum(loss * weight) / sum(weight) is the wanted average."""
    total = of_answers(tokens, logps.length)
    length = logps.length.to(total.dtype)
    if normalise == "dr_grpo":
        return total / longest, torch.ones_like(total)
    return total / length, torch.ones_like(total) if normalise == "grpo" else length


def _outcome(tokens: Tensor, clipped: Tensor, logps: GroupLogps, normalise: str, longest: int) -> GroupLoss:
    loss, weight = _averaged(tokens, logps, normalise, longest)
    length = logps.length.to(loss.dtype)
    kl = of_answers(k3(logps.policy, logps.ref).detach(), logps.length) / length
    share = of_answers(clipped.to(loss.dtype), logps.length) / length
    return GroupLoss(loss, weight, logps.reward, kl, share)


@register(
    "grpo", data="groups", reference=True, advantage="group", beta=NON_NEGATIVE, clip_low=CLIP, clip_high=POSITIVE,
    normalise=NORMALISERS, longest=Range(1),
)  # fmt: skip
def grpo(
    logps: GroupLogps,
    beta: float = 0.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalise: Normalise = "grpo",
    kl_ratio: bool = False,
    sequence_ratio: bool = False,
    longest: int = 256,
) -> GroupLoss:
    """Group relative policy optimisation (arXiv 2402.03300, eq. 3): -min(rho A, clip(rho, 1 - low, 1 + high) A) +
    beta k3(pi, ref) at each token, averaged by `normalise`.

    `kl_ratio`: k3 times rho, which makes its gradient that of the KL under the policy in training when answers were
    sampled by an older one (arXiv 2512.02556, section 3.1). `sequence_ratio`: rho of the answer (GSPO). `longest`:
    dr_grpo's constant, the most tokens of an answer.
    """
    rho, advantage = _ratio(logps, sequence_ratio), logps.advantage
    cut = rho.clamp(1 - clip_low, 1 + clip_high)
    tokens = -torch.minimum(rho * advantage, cut * advantage)
    if beta:
        away = k3(logps.policy, logps.ref)
        tokens = tokens + beta * (away * rho if kl_ratio else away)
    clipped = ((rho < 1 - clip_low) & (advantage < 0)) | ((rho > 1 + clip_high) & (advantage > 0))
    return _outcome(tokens, clipped, logps, normalise, longest)


@register("rloo", data="groups", reference=True, advantage="leave_one_out", clip_low=CLIP, clip_high=POSITIVE)
def rloo(logps: GroupLogps, clip_low: float = 0.2, clip_high: float = 0.2) -> GroupLoss:
    """REINFORCE with the other samples' mean as baseline (arXiv 2402.14740, eq. 7), on whole answers: -min(rho A,
    clip(rho) A) with rho the ratio of the answers' probabilities, which is -A log pi's gradient where rho is 1."""
    rho = torch.exp(of_answers(logps.policy - logps.old, logps.length))
    advantage = of_answers(logps.advantage, logps.length) / logps.length
    cut = rho.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(rho * advantage, cut * advantage)
    kl = of_answers(k3(logps.policy, logps.ref).detach(), logps.length) / logps.length
    return GroupLoss(loss, torch.ones_like(loss), logps.reward, kl, (rho != cut).to(loss.dtype))


@register("bond", data="groups", reference=True, advantage="bond")
def bond(logps: GroupLogps) -> GroupLoss:
    """J-BOND (arXiv 2407.14622, section 5): -A log pi(y|x) of whole answers. The best of the anchor's has A = 1 - eta,
    the forward KL; the policy's own answer has eta (r + log anchor - log pi - baseline), the backward KL, whose
    gradient this is: half of the paper's, as a mean over both. Both are worked out where answers are sampled
    (`advantages.bond`). `kl` is to the anchor."""
    total = of_answers(logps.policy * logps.advantage, logps.length)
    kl = of_answers(k3(logps.policy, logps.ref).detach(), logps.length) / logps.length
    return GroupLoss(-total, torch.ones_like(total), logps.reward, kl, torch.zeros_like(total))


@register(
    "ppo", data="groups", reference=True, advantage="gae", critic=True, clip=CLIP, value_weight=NON_NEGATIVE,
    value_clip=POSITIVE,
)  # fmt: skip
def ppo(logps: GroupLogps, clip: float = 0.2, value_weight: float = 0.1, value_clip: float = 0.2) -> GroupLoss:
    """Proximal policy optimisation (arXiv 1707.06347, eq. 7 and 9): the clipped objective and value_weight times the
    critic's loss, mean over all tokens of the batch. The KL to the reference is in the rewards of the tokens
    (2203.02155, eq. 2; `advantages.gae`)."""
    rho, advantage = _ratio(logps, False), logps.advantage
    tokens = -torch.minimum(rho * advantage, rho.clamp(1 - clip, 1 + clip) * advantage)
    clipped = ((rho < 1 - clip) & (advantage < 0)) | ((rho > 1 + clip) & (advantage > 0))
    if logps.value is not None and logps.old_value is not None and logps.returns is not None:
        tokens = tokens + value_weight * value_loss(logps.value, logps.old_value, logps.returns, value_clip)
    return _outcome(tokens, clipped, logps, "bnpo", 1)


def value_loss(value: Tensor, old: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """PPO's loss of the critic, (tokens,): 1/2 max((v - R)^2, (clip(v, old +- clip) - R)^2)."""
    near = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - returns).square(), (near - returns).square())
