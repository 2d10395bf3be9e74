"""The parts that objectives are built of: what goes in and comes out, reductions, rewards and links.

Log-probs are sums over completion tokens with the end token, in nats. Parts are plain functions of tensors; a named
objective is a choice of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from factory.faults import FactoryError


class PairLogps(NamedTuple):
    """Summed log-probs of both answers under policy and reference (nats), and their lengths in tokens; all (batch,).

    The rest is there for objectives that say so in their facts (`needs`): `*_head`, sums over the first
    min(chosen_len, rejected_len) tokens alone; `prompt`, the sum over the prompt's own tokens under the policy, with
    the number of tokens it predicts.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_len: Tensor
    rejected_len: Tensor
    chosen_head: Tensor | None = None
    rejected_head: Tensor | None = None
    ref_chosen_head: Tensor | None = None
    ref_rejected_head: Tensor | None = None
    prompt: Tensor | None = None
    prompt_len: Tensor | None = None


class LabelLogps(NamedTuple):
    """Summed log-probs of one answer under policy and reference (nats), its label (bool) and length; all (batch,)."""

    policy: Tensor
    ref: Tensor
    desirable: Tensor
    length: Tensor


class CompletionLogps(NamedTuple):
    """Summed log-prob of one answer under the policy (nats) and its length in tokens; (batch,)."""

    policy: Tensor
    length: Tensor


class GroupLogps(NamedTuple):
    """Sampled answers, token by token, all tokens end to end (tokens,), and what is known of each answer (batch,).

    policy: log-prob under the weights in training. old: under those that sampled it. ref: under the reference.
    advantage: (tokens,), an answer's own at each of its tokens. length: tokens of each answer, (batch,), which add up
    to `tokens`. reward: the judge's, (batch,), for the metrics. value: of a critic in training, (tokens,); old_value
    and returns: what it said when the answer was sampled, and what came.
    """

    policy: Tensor
    old: Tensor
    ref: Tensor
    advantage: Tensor
    length: Tensor
    reward: Tensor
    value: Tensor | None = None
    old_value: Tensor | None = None
    returns: Tensor | None = None


class PairScores(NamedTuple):
    """A reward model's scores of both answers, and by how much the chosen is better where that is known; (batch,)."""

    chosen: Tensor
    rejected: Tensor
    margin: Tensor


class PairLoss(NamedTuple):
    """What an objective on pairs gives, all (batch,). Rewards carry no gradient."""

    loss: Tensor
    weight: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


class LabelLoss(NamedTuple):
    """What an objective on single answers gives, all (batch,). The reward carries no gradient."""

    loss: Tensor
    weight: Tensor
    reward: Tensor


class GroupLoss(NamedTuple):
    """What an objective on sampled answers gives, all (batch,). `kl`: k3 estimate a token against the reference;
    `clipped`: share of tokens whose ratio was clipped. Only the loss carries a gradient."""

    loss: Tensor
    weight: Tensor
    reward: Tensor
    kl: Tensor
    clipped: Tensor


# ------------------------------------------------------------------------------------------------------ reductions


def per_token(logp: Tensor, length: Tensor) -> Tensor:
    """The mean log-prob of a token: a sequence's sum over its length."""
    return logp / length


def desensitised(whole: Tensor, head: Tensor | None, alpha: float) -> Tensor:
    """head + alpha (whole - head): tokens past the shorter answer's length count alpha (LD-DPO, 2409.06411, eq. 9)."""
    if head is None:
        raise FactoryError(
            "ld_alpha needs the log-probs of the first tokens alone", todo="give PairLogps the *_head fields"
        )
    return head + alpha * (whole - head)


def of_answers(tokens: Tensor, length: Tensor) -> Tensor:
    """Sum over the tokens of each answer: (tokens,) end to end -> (batch,)."""
    sizes = length.long()
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=tokens.device), sizes)
    return tokens.new_zeros(len(sizes)).index_add(0, owner, tokens)


def to_tokens(values: Tensor, length: Tensor) -> Tensor:
    """Each answer's value at each of its tokens: (batch,) -> (tokens,)."""
    return torch.repeat_interleave(values, length.long())


# --------------------------------------------------------------------------------------------------------- rewards


def log_ratio(policy: Tensor, ref: Tensor) -> Tensor:
    """u = log pi(y|x) - log pi_ref(y|x): the implicit reward over beta (DPO, arXiv 2305.18290, eq. 5, without Z)."""
    return policy - ref


LARGEST_EXPONENT = 80.0  # of e in float32, with room for a sum


def divergence_score(u: Tensor, name: str, alpha: float) -> Tensor:
    """f'(t) at t = pi / pi_ref = e^u: what takes the log-ratio's place when the KL of the objective is another
    f-divergence (arXiv 2309.16240, table 1, without constants that cancel in a margin).

    reverse_kl: u. forward_kl: 1 - 1/t. js: log 2t/(1 + t). alpha: (t^(a-1) - 1) / (a - 1), u at a = 1. Exponents are
    cut at 80, where float32 ends; the gradient there is 0.
    """
    if name == "reverse_kl" or (name == "alpha" and abs(alpha - 1) < 1e-6):
        return u
    if name == "forward_kl":
        return 1 - torch.exp((-u).clamp(max=LARGEST_EXPONENT))
    if name == "js":
        return math.log(2) + F.logsigmoid(u)
    return (torch.exp(((alpha - 1) * u).clamp(max=LARGEST_EXPONENT)) - 1) / (alpha - 1)


def log_odds(mean_logp: Tensor) -> Tensor:
    """log p / (1 - p) of the geometric mean p of an answer's token probabilities: (batch,) of mean log-probs."""
    m = mean_logp.clamp(max=-1e-6)  # p = 1 has no odds
    return m - torch.log(-torch.expm1(m))


def nll(logp: Tensor, length: Tensor) -> Tensor:
    """Negative log-likelihood, mean per token."""
    return -per_token(logp, length)


def k3(policy: Tensor, ref: Tensor) -> Tensor:
    """ref/pi - log(ref/pi) - 1: an unbiased estimate of KL(pi || ref) at sampled tokens that is never negative
    (Schulman 2020, "Approximating KL divergence"; GRPO, arXiv 2402.03300, eq. 4)."""
    d = ref - policy
    return torch.expm1(d) - d


# ----------------------------------------------------------------------------------------------------------- links


def log_sigmoid_link(d: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log s(d) - e log s(-d): Bradley-Terry's likelihood when a share e of the labels is flipped."""
    return -(1 - smoothing) * F.logsigmoid(d) - smoothing * F.logsigmoid(-d)


def square_link(m: Tensor, target: float) -> Tensor:
    """(m - target)^2."""
    return (m - target).square()


def hinge_link(d: Tensor) -> Tensor:
    """max(0, 1 - d)."""
    return F.relu(1 - d)
