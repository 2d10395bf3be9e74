"""Objectives on single answers: with a label (desirable or not), or simply to be learnt."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from train.losses.facts import NON_NEGATIVE, POSITIVE, OneOf, register
from train.losses.parts import CompletionLogps, LabelLogps, LabelLoss, log_ratio, nll


def kto_baseline(policy: Tensor, ref: Tensor) -> Tensor:
    """z0 = max(0, mean(log pi - log pi_ref)) over mismatched pairs (batch,): a scalar without gradient.

    KTO's estimate of KL(pi || pi_ref) (arXiv 2402.01306, section 4.1). Give it the mismatched pairs of the whole
    effective batch: answers to other prompts. Without any it is 0.
    """
    if len(policy) == 0:
        return policy.new_zeros(())
    return log_ratio(policy, ref).detach().mean().clamp(min=0)


def _labelled(logps: LabelLogps, good: Tensor, bad: Tensor, beta: float, weights: tuple[float, float]) -> LabelLoss:
    """`good` for desirable answers and `bad` for the others, each times its weight, as part of the loss."""
    loss = torch.where(logps.desirable.bool(), weights[0] * good, weights[1] * bad)
    return LabelLoss(loss, torch.ones_like(loss), (beta * log_ratio(logps.policy, logps.ref)).detach())


@register(
    "kto", data="labels", reference=True, supplied=("kl",), beta=POSITIVE, desirable_weight=NON_NEGATIVE,
    undesirable_weight=NON_NEGATIVE, kl=NON_NEGATIVE,
)  # fmt: skip
def kto(
    logps: LabelLogps,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kl: Tensor | float = 0.0,
) -> LabelLoss:
    """Kahneman-Tversky optimisation (arXiv 2402.01306, eq. 8): lambda_y - v, that is
    lambda_D (1 - s(beta (u - z0))) for a desirable answer, lambda_U (1 - s(beta (z0 - u))) for an undesirable one.

    z0 is `kl`, from `kto_baseline`. The lambdas are part of the loss, as in the paper; every row weighs 1.
    """
    u = log_ratio(logps.policy, logps.ref)
    good, bad = 1 - torch.sigmoid(beta * (u - kl)), 1 - torch.sigmoid(beta * (kl - u))
    return _labelled(logps, good, bad, beta, (desirable_weight, undesirable_weight))


@register(
    "apo_zero_unpaired", data="labels", reference=True, beta=POSITIVE, desirable_weight=NON_NEGATIVE,
    undesirable_weight=NON_NEGATIVE,
)  # fmt: skip
def apo_zero_unpaired(
    logps: LabelLogps, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> LabelLoss:
    """Anchored preference optimisation on labels (arXiv 2408.06266, eq. 7, its two terms apart): 1 - s(beta u) for a
    desirable answer, s(beta u) for an undesirable one: KTO with its baseline at 0."""
    u = log_ratio(logps.policy, logps.ref)
    good, bad = 1 - torch.sigmoid(beta * u), torch.sigmoid(beta * u)
    return _labelled(logps, good, bad, beta, (desirable_weight, undesirable_weight))


@register(
    "bco", data="labels", reference=True, supplied=("shift",), beta=POSITIVE, desirable_weight=NON_NEGATIVE,
    undesirable_weight=NON_NEGATIVE,
)  # fmt: skip
def bco(
    logps: LabelLogps,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    shift: Tensor | float = 0.0,
) -> LabelLoss:
    """Binary classifier optimisation (arXiv 2404.04656, eq. 12): -log s(beta u - shift) for a desirable answer,
    -log s(shift - beta u) for an undesirable one. `shift` is the running mean of the rewards of both kinds, which the
    trainer keeps; the paper's density-ratio weights for prompts that differ between the kinds are not included."""
    r = beta * log_ratio(logps.policy, logps.ref)
    return _labelled(
        logps, -F.logsigmoid(r - shift), -F.logsigmoid(-(r - shift)), beta, (desirable_weight, undesirable_weight)
    )


@register("sft", data="completions", reference=False, mean_over=OneOf(("tokens", "answers")))
def sft(logps: CompletionLogps, mean_over: Literal["tokens", "answers"] = "tokens") -> LabelLoss:
    """Negative log-likelihood of the answer. mean_over: tokens (every token of the effective batch weighs the same, as
    language models are trained), or answers (every answer does, short or long). The reward is the mean log-prob."""
    loss = nll(logps.policy, logps.length)
    weight = logps.length.to(loss.dtype) if mean_over == "tokens" else torch.ones_like(loss)
    return LabelLoss(loss, weight, -loss.detach())


@register("raft", data="completions", reference=False, takes="best", mean_over=OneOf(("tokens", "answers")))
def raft(logps: CompletionLogps, mean_over: Literal["tokens", "answers"] = "tokens") -> LabelLoss:
    """Rejection-sampling fine-tuning (RAFT, arXiv 2304.06767, algorithm 1): sft on the best of each prompt's n answers
    by the judges' scores. The setting `best` says which answers are good enough and what becomes of ties."""
    outcome: LabelLoss = sft(logps, mean_over)
    return outcome
