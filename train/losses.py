"""The objectives: each a reduction, a reward, a link and a weight, named.

    token log-probs --reduction--> policy, reference (batch,) --reward--> u --link--> loss --weight--> the batch's loss

The best policy under a reward r at KL weight beta is pi*(y|x) ~ pi_ref(y|x) exp(r / beta). Read backwards, a policy
has the implicit reward beta * u with u = log pi(y|x) - log pi_ref(y|x), and an objective puts a link on the margin of
two rewards, or on one reward against a baseline. Every tensor is (batch,), sums over completion tokens with the end
token, in nats. The loss of a batch is sum(loss * weight) / sum(weight) over the effective batch; the trainer takes
that sum.

    outcome = losses.get("dpo")(PairLogps(...), beta=0.1)

A new objective is one function with one registration; its facts say what data and whether a reference it needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from factory.faults import ConfigError
from factory.registry import Registry


class PairLogps(NamedTuple):
    """Summed log-probs of both answers under policy and reference (nats), and their lengths in tokens; all (batch,)."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_len: Tensor
    rejected_len: Tensor


class LabelLogps(NamedTuple):
    """Summed log-probs of one answer under policy and reference (nats), its label (bool) and length; all (batch,)."""

    policy: Tensor
    ref: Tensor
    desirable: Tensor
    length: Tensor


class PairLoss(NamedTuple):
    """What an objective on pairs gives, all (batch,). Rewards carry no gradient."""

    loss: Tensor
    weight: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


class LabelLoss(NamedTuple):
    """What an objective on labels gives, all (batch,). The reward carries no gradient."""

    loss: Tensor
    weight: Tensor
    reward: Tensor


# --------------------------------------------------------------------------------------------- what is registered


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed values of a parameter: low <= x <= high, the bounds left out where `open` says so."""

    low: float
    high: float = float("inf")
    open: Literal["", "low", "high", "both"] = ""

    def holds(self, value: float) -> bool:
        """Is `value` allowed?"""
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        below = value < self.high if self.open in ("high", "both") else value <= self.high
        return above and below

    def __str__(self) -> str:
        left, right = ("(" if self.open in ("low", "both") else "["), (")" if self.open in ("high", "both") else "]")
        return f"{left}{self.low:g}, {self.high:g}{right}"


POSITIVE = Range(0.0, open="low")
NON_NEGATIVE = Range(0.0)
FLIP_RATE = Range(0.0, 0.5, open="high")  # share of labels taken to be the wrong way round


@dataclass(frozen=True)
class Objective:
    """A named objective: call it with log-probs and parameters. `supplied` parameters come from the trainer."""

    name: str
    function: Callable[..., Any]
    data: Literal["pairs", "labels"]
    reference: bool
    supplied: tuple[str, ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def __call__(self, logps: Any, **parameters: Any) -> Any:
        """The objective on a batch. ConfigError lists every fault of the parameters."""
        self.check(parameters, supplied=True)
        return self.function(logps, **parameters)

    @property
    def defaults(self) -> dict[str, Any]:
        """The parameters that a user may set, with their defaults."""
        signature = inspect.signature(self.function)
        return {n: p.default for n, p in list(signature.parameters.items())[1:] if n not in self.supplied}

    def check(self, parameters: Mapping[str, Any], *, supplied: bool = False) -> None:
        """ConfigError with every fault of `parameters`: unknown names, wrong types, values out of range."""
        known = dict(self.defaults, **(dict.fromkeys(self.supplied, 0.0) if supplied else {}))
        faults = [f for name, value in parameters.items() if (f := self._fault(name, value, known))]
        if faults:
            raise ConfigError(faults, where=f"parameters of {self.name}")

    def _fault(self, name: str, value: Any, known: Mapping[str, Any]) -> str:
        if name not in known:
            return f"{self.name} has no parameter {name!r}; it has: {', '.join(sorted(known)) or 'none'}"
        if isinstance(known[name], bool):
            return "" if isinstance(value, bool) else f"{name} is true or false, not {value!r}"
        if isinstance(value, Tensor) and name in self.supplied:
            return ""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name} is a number, not {value!r}"
        allowed = self.ranges.get(name)
        return "" if allowed is None or allowed.holds(value) else f"{name} is in {allowed}, not {value:g}"


objectives: Registry[Objective] = Registry("objective")


def register(
    name: str,
    *,
    data: Literal["pairs", "labels"],
    reference: bool,
    supplied: tuple[str, ...] = (),
    **ranges: Range,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function (logps, **parameters) -> PairLoss | LabelLoss as an objective, with its facts.

    `ranges` are the allowed values of its numeric parameters; its signature has their defaults.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        objectives.add(
            name, Objective(name, function, data, reference, supplied, ranges), data=data, reference=reference
        )
        return function

    return decorate


def get(name: str) -> Objective:
    """The objective of that name. FactoryError names the nearest known one."""
    return objectives.get(name)


# ---------------------------------------------------------------------------------------- reductions and rewards


def per_token(logp: Tensor, length: Tensor) -> Tensor:
    """The mean log-prob of a token: a sequence's sum over its length."""
    return logp / length


def log_ratio(policy: Tensor, ref: Tensor) -> Tensor:
    """u = log pi(y|x) - log pi_ref(y|x): the implicit reward over beta (DPO, arXiv 2305.18290, eq. 5, without Z)."""
    return policy - ref


def _against_reference(logps: PairLogps, loss: Tensor, beta: float) -> PairLoss:
    """Every pair weighs 1; the rewards are beta * u, whatever the link."""
    chosen = beta * log_ratio(logps.chosen, logps.ref_chosen)
    rejected = beta * log_ratio(logps.rejected, logps.ref_rejected)
    return PairLoss(loss, torch.ones_like(loss), chosen.detach(), rejected.detach())


def _margin(logps: PairLogps) -> Tensor:
    """u_chosen - u_rejected."""
    return log_ratio(logps.chosen, logps.ref_chosen) - log_ratio(logps.rejected, logps.ref_rejected)


# ----------------------------------------------------------------------------------------------- links on margins


def log_sigmoid_link(d: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log s(d) - e log s(-d): Bradley-Terry's likelihood when a share e of the labels is flipped."""
    return -(1 - smoothing) * F.logsigmoid(d) - smoothing * F.logsigmoid(-d)


def square_link(m: Tensor, target: float) -> Tensor:
    """(m - target)^2."""
    return (m - target).square()


def hinge_link(d: Tensor) -> Tensor:
    """max(0, 1 - d)."""
    return F.relu(1 - d)


# ----------------------------------------------------------------------------------------------- pairs, with reference


@register("dpo", data="pairs", reference=True, beta=POSITIVE, label_smoothing=FLIP_RATE)
def dpo(logps: PairLogps, beta: float = 0.1, label_smoothing: float = 0.0) -> PairLoss:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7): -log s(beta (u_c - u_r))."""
    return _against_reference(logps, log_sigmoid_link(beta * _margin(logps), label_smoothing), beta)


@register("cdpo", data="pairs", reference=True, beta=POSITIVE, label_smoothing=FLIP_RATE)
def cdpo(logps: PairLogps, beta: float = 0.1, label_smoothing: float = 0.1) -> PairLoss:
    """Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3): a share of labels is flipped."""
    return _against_reference(logps, log_sigmoid_link(beta * _margin(logps), label_smoothing), beta)


@register("robust_dpo", data="pairs", reference=True, beta=POSITIVE, label_smoothing=FLIP_RATE)
def robust_dpo(logps: PairLogps, beta: float = 0.1, label_smoothing: float = 0.1) -> PairLoss:
    """Provably robust DPO (arXiv 2403.00409, eq. 12): ((1-e) L(d) - e L(-d)) / (1-2e), unbiased under flips."""
    d, e = beta * _margin(logps), label_smoothing
    loss = ((1 - e) * log_sigmoid_link(d) - e * log_sigmoid_link(-d)) / (1 - 2 * e)
    return _against_reference(logps, loss, beta)


@register("ipo", data="pairs", reference=True, beta=POSITIVE)
def ipo(logps: PairLogps, beta: float = 0.1, length_normalised: bool = False) -> PairLoss:
    """Identity preference optimisation (arXiv 2310.12036, eq. 17): (m - 1/(2 beta))^2, beta the paper's tau.

    m is the margin of sums, as in the paper. `length_normalised`: of per-token means, as TRL has it (a deviation).
    """
    m = _margin(logps)
    if length_normalised:
        chosen = per_token(log_ratio(logps.chosen, logps.ref_chosen), logps.chosen_len)
        m = chosen - per_token(log_ratio(logps.rejected, logps.ref_rejected), logps.rejected_len)
    return _against_reference(logps, square_link(m, 1 / (2 * beta)), beta)


@register("hinge", data="pairs", reference=True, beta=POSITIVE)
def hinge(logps: PairLogps, beta: float = 0.1) -> PairLoss:
    """The hinge on DPO's margin (SLiC, arXiv 2305.10425, in RSO's form, arXiv 2309.06657): max(0, 1 - beta (u_c -
    u_r))."""
    return _against_reference(logps, hinge_link(beta * _margin(logps)), beta)


@register("sppo", data="pairs", reference=True, beta=POSITIVE)
def sppo(logps: PairLogps, beta: float = 0.1) -> PairLoss:
    """Self-play preference optimisation (arXiv 2405.00675, eq. 4.7), win probabilities 1 and 0 ("hard").

    (u_c - 1/(2 beta))^2 + (u_r + 1/(2 beta))^2, where the paper's eta is 1/beta.
    """
    good = square_link(log_ratio(logps.chosen, logps.ref_chosen), 0.5 / beta)
    bad = square_link(log_ratio(logps.rejected, logps.ref_rejected), -0.5 / beta)
    return _against_reference(logps, good + bad, beta)


# --------------------------------------------------------------------------------------------- pairs, no reference


@register("simpo", data="pairs", reference=False, beta=POSITIVE, gamma=NON_NEGATIVE)
def simpo(logps: PairLogps, beta: float = 2.0, gamma: float = 1.0) -> PairLoss:
    """SimPO (arXiv 2405.14734, eq. 6): -log s(beta (mean_c - mean_r) - gamma); the reward is beta * mean log-prob."""
    chosen = beta * per_token(logps.chosen, logps.chosen_len)
    rejected = beta * per_token(logps.rejected, logps.rejected_len)
    loss = log_sigmoid_link(chosen - rejected - gamma)
    return PairLoss(loss, torch.ones_like(loss), chosen.detach(), rejected.detach())


# ---------------------------------------------------------------------------------------------------------- labels


def kto_baseline(policy: Tensor, ref: Tensor) -> Tensor:
    """z0 = max(0, mean(log pi - log pi_ref)) over mismatched pairs (batch,): a scalar without gradient.

    KTO's estimate of KL(pi || pi_ref) (arXiv 2402.01306, section 4.1). Give it the mismatched pairs of the whole
    effective batch: answers to other prompts. Without any it is 0.
    """
    if len(policy) == 0:
        return policy.new_zeros(())
    return log_ratio(policy, ref).detach().mean().clamp(min=0)


@register(
    "kto",
    data="labels",
    reference=True,
    supplied=("kl",),
    beta=POSITIVE,
    desirable_weight=NON_NEGATIVE,
    undesirable_weight=NON_NEGATIVE,
    kl=NON_NEGATIVE,
)
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
    gain = 1 - torch.sigmoid(beta * (u - kl))
    loss_ = 1 - torch.sigmoid(beta * (kl - u))
    loss = torch.where(logps.desirable.bool(), desirable_weight * gain, undesirable_weight * loss_)
    return LabelLoss(loss, torch.ones_like(loss), (beta * u).detach())
