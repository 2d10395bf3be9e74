"""Objectives on pairs: chosen and rejected answers to one prompt.

Those with a reference are a link on the two log-ratios u = log pi - log pi_ref; `linked` adds the options that compose
with any of them, so that a length-normalised or an f-divergence DPO is an option and not another loss:

  length_normalised   u over the answer's length: per-token log-ratios
  ld_alpha            tokens past the shorter answer's length count alpha (LD-DPO, arXiv 2409.06411, eq. 9)
  f_divergence        what holds the policy to the reference: reverse_kl, forward_kl, js, alpha (f-DPO, 2309.16240)

Rewards are beta * u of whole answers, whatever the link and the options; a reference-free objective's reward is its own
beta times its log-prob.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from factory.faults import FactoryError
from train.losses.facts import (
    FLIP_RATE,
    NON_NEGATIVE,
    POSITIVE,
    SHARE,
    Allowed,
    Objective,
    OneOf,
    Range,
    enter,
    objectives,
    register,
)
from train.losses.parts import (
    PairLogps,
    PairLoss,
    desensitised,
    divergence_score,
    hinge_link,
    log_odds,
    log_ratio,
    log_sigmoid_link,
    nll,
    per_token,
    square_link,
)

Link = Callable[..., Tensor]

DIVERGENCES = OneOf(("reverse_kl", "forward_kl", "js", "alpha"))
_REDUCTIONS: dict[str, tuple[Any, Allowed | None]] = {"length_normalised": (False, None), "ld_alpha": (1.0, SHARE)}
_TRANSFORMS: dict[str, tuple[Any, Allowed]] = {
    "f_divergence": ("reverse_kl", DIVERGENCES),
    "f_alpha": (0.5, Range(0.0, 1.0)),
}


def _log_ratios(logps: PairLogps, length_normalised: bool, ld_alpha: float) -> tuple[Tensor, Tensor]:
    """u of both answers under the chosen reduction, (batch,) each."""
    sums = (logps.chosen, logps.rejected, logps.ref_chosen, logps.ref_rejected)
    if ld_alpha != 1.0:
        heads = (logps.chosen_head, logps.rejected_head, logps.ref_chosen_head, logps.ref_rejected_head)
        chosen, rejected, ref_chosen, ref_rejected = (
            desensitised(whole, head, ld_alpha) for whole, head in zip(sums, heads, strict=True)
        )
    else:
        chosen, rejected, ref_chosen, ref_rejected = sums
    u_c, u_r = log_ratio(chosen, ref_chosen), log_ratio(rejected, ref_rejected)
    if length_normalised:
        u_c, u_r = per_token(u_c, logps.chosen_len), per_token(u_r, logps.rejected_len)
    return u_c, u_r


def linked(name: str, *, margin: bool = True, **allowed: Allowed) -> Callable[[Link], Link]:
    """Register link(u_chosen, u_rejected, beta, **own) -> loss (batch,) as an objective with a reference.

    `margin`: the link reads u_chosen - u_rejected alone, so that another f-divergence's score may take u's place (its
    constants cancel).
    """
    options = _REDUCTIONS | (_TRANSFORMS if margin else {})

    def decorate(link: Link) -> Link:
        @functools.wraps(link)
        def objective(logps: PairLogps, **given: Any) -> PairLoss:
            set_to = {option: given.pop(option, default) for option, (default, _) in options.items()}
            beta = given.get("beta", own["beta"].default)
            u_c, u_r = _log_ratios(logps, set_to["length_normalised"], set_to["ld_alpha"])
            if margin:
                u_c, u_r = (divergence_score(u, set_to["f_divergence"], set_to["f_alpha"]) for u in (u_c, u_r))
            loss = link(u_c, u_r, **given)
            rewards = (
                beta * log_ratio(logps.chosen, logps.ref_chosen),
                beta * log_ratio(logps.rejected, logps.ref_rejected),
            )
            return PairLoss(loss, torch.ones_like(loss), rewards[0].detach(), rewards[1].detach())

        own = dict(list(inspect.signature(link).parameters.items())[2:])
        objective.__signature__ = _signature(own, options)  # type: ignore[attr-defined]
        limits = {k: v for k, (_, v) in options.items() if v is not None}
        supplied = tuple(p for p in own if p == "shift")
        needs = {"ld_alpha": (1.0, "head")}
        enter(Objective(name, objective, "pairs", True, supplied, {**limits, **allowed}, needs))
        return link

    return decorate


def _signature(own: dict[str, inspect.Parameter], options: dict[str, tuple[Any, Any]]) -> inspect.Signature:
    """(logps, own parameters, options), the last two by keyword."""
    first = inspect.Parameter("logps", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            first,
            *(p.replace(kind=keyword) for p in own.values()),
            *(inspect.Parameter(option, keyword, default=default) for option, (default, _) in options.items()),
        ]
    )


def variant(name: str, of: str, about: str, **defaults: Any) -> None:
    """Register `of` with other defaults under a name of its own."""
    base = objectives.get(of)
    signature = inspect.signature(base.function)
    changed = [p.replace(default=defaults.get(p.name, p.default)) for p in signature.parameters.values()]

    @functools.wraps(base.function)
    def objective(logps: PairLogps, **given: Any) -> PairLoss:
        outcome: PairLoss = base.function(logps, **{**defaults, **given})
        return outcome

    objective.__signature__ = signature.replace(parameters=changed)  # type: ignore[attr-defined]
    objective.__doc__ = about
    enter(replace(base, name=name, function=objective))


# ----------------------------------------------------------------------------------------- links on the margin


@linked("dpo", beta=POSITIVE, label_smoothing=FLIP_RATE)
def dpo(u_c: Tensor, u_r: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7): -log s(beta (u_c - u_r))."""
    return log_sigmoid_link(beta * (u_c - u_r), label_smoothing)


variant(
    "cdpo",
    "dpo",
    """Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3): some labels are flipped.""",
    label_smoothing=0.1,
)
variant(
    "length_normalised_dpo",
    "dpo",
    """DPO on per-token log-ratios: -log s(beta (u_c/|c| - u_r/|r|)). TRL's sigmoid_norm (Tulu 3, arXiv 2411.15124,
    eq. 6). A useful beta is about a typical length times DPO's: Tulu 3 takes 5.""",
    length_normalised=True,
    beta=5.0,
)
variant(
    "ld_dpo",
    "dpo",
    """Length-desensitised DPO (arXiv 2409.06411, eq. 9): tokens past the shorter answer's length count ld_alpha.""",
    ld_alpha=0.5,
)


@linked("robust_dpo", beta=POSITIVE, label_smoothing=FLIP_RATE)
def robust_dpo(u_c: Tensor, u_r: Tensor, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """Provably robust DPO (arXiv 2403.00409, eq. 12): ((1-e) L(d) - e L(-d)) / (1-2e), unbiased under flips."""
    d, e = beta * (u_c - u_r), label_smoothing
    return ((1 - e) * log_sigmoid_link(d) - e * log_sigmoid_link(-d)) / (1 - 2 * e)


@linked("ipo", beta=POSITIVE)
def ipo(u_c: Tensor, u_r: Tensor, beta: float = 0.1) -> Tensor:
    """Identity preference optimisation (arXiv 2310.12036, eq. 17): (m - 1/(2 beta))^2, beta the paper's tau.

    m is the margin of sums, as in the paper. `length_normalised`: of per-token means, as TRL has it (a deviation from
    the paper's text; TRL reports that its authors meant it).
    """
    return square_link(u_c - u_r, 1 / (2 * beta))


@linked("hinge", beta=POSITIVE)
def hinge(u_c: Tensor, u_r: Tensor, beta: float = 0.1) -> Tensor:
    """The hinge on DPO's margin (SLiC, arXiv 2305.10425, in RSO's form, arXiv 2309.06657): max(0, 1 - beta (u_c -
    u_r))."""
    return hinge_link(beta * (u_c - u_r))


@linked("exo_pair", beta=POSITIVE, label_smoothing=Range(0.0, 0.5, open="both"))
def exo_pair(u_c: Tensor, u_r: Tensor, beta: float = 0.1, label_smoothing: float = 0.001) -> Tensor:
    """Efficient exact optimisation on pairs (arXiv 2402.00856, eq. 16): the reverse KL from the policy's preference
    s(d) to the labels' (1-e, e): s(d) log s(d)/(1-e) + s(-d) log s(-d)/e, d = beta (u_c - u_r)."""
    d, e = beta * (u_c - u_r), torch.tensor(label_smoothing, dtype=u_c.dtype, device=u_c.device)
    for_chosen = torch.sigmoid(d) * (F.logsigmoid(d) - torch.log1p(-e))
    return for_chosen + torch.sigmoid(-d) * (F.logsigmoid(-d) - torch.log(e))


@linked("discopop", beta=POSITIVE, tau=POSITIVE)
def discopop(u_c: Tensor, u_r: Tensor, beta: float = 0.1, tau: float = 0.05) -> Tensor:
    """DiscoPOP's log-ratio modulated loss (arXiv 2406.08414, eq. 5): (1 - w) (-log s(d)) + w e^-d, w = s(d / tau),
    d = beta (u_c - u_r)."""
    d = beta * (u_c - u_r)
    share = torch.sigmoid(d / tau)
    return (1 - share) * log_sigmoid_link(d) + torch.exp(F.logsigmoid(d / tau) - d)  # w e^-d, which 0 times inf is not


# ------------------------------------------------------------------------------------- links on each answer's ratio


@linked("sppo", margin=False, beta=POSITIVE)
def sppo(u_c: Tensor, u_r: Tensor, beta: float = 0.1) -> Tensor:
    """Self-play preference optimisation (arXiv 2405.00675, eq. 4.7), win probabilities 1 and 0 ("hard").

    (u_c - 1/(2 beta))^2 + (u_r + 1/(2 beta))^2, where the paper's eta is 1/beta.
    """
    return square_link(u_c, 0.5 / beta) + square_link(u_r, -0.5 / beta)


@linked("nca_pair", margin=False, beta=POSITIVE)
def nca_pair(u_c: Tensor, u_r: Tensor, beta: float = 0.1) -> Tensor:
    """Noise contrastive alignment on pairs (arXiv 2402.05369, table 1, K = 2): -log s(r_c) - 1/2 log s(-r_c) -
    1/2 log s(-r_r), r = beta u."""
    c, r = beta * u_c, beta * u_r
    return -F.logsigmoid(c) - 0.5 * F.logsigmoid(-c) - 0.5 * F.logsigmoid(-r)


@linked("bco_pair", margin=False, beta=POSITIVE)
def bco_pair(
    u_c: Tensor, u_r: Tensor, beta: float = 0.1, running_shift: bool = True, shift: Tensor | float = 0.0
) -> Tensor:
    """Binary classifier optimisation on pairs (arXiv 2404.04656, eq. 12): -log s(r_c - shift) - log s(-(r_r - shift)).

    r = beta u; `shift` is the running mean of the rewards, which the trainer keeps. Without `running_shift` it is 0, as
    TRL has it.
    """
    moved = shift if running_shift else 0.0
    return -F.logsigmoid(beta * u_c - moved) - F.logsigmoid(-(beta * u_r - moved))


@linked("apo_zero", margin=False, beta=POSITIVE)
def apo_zero(u_c: Tensor, u_r: Tensor, beta: float = 0.1) -> Tensor:
    """Anchored preference optimisation, zero (arXiv 2408.06266, eq. 7): 1 - s(r_c) + s(r_r). For chosen answers that
    are better than the policy's own."""
    return 1 - torch.sigmoid(beta * u_c) + torch.sigmoid(beta * u_r)


@linked("apo_down", margin=False, beta=POSITIVE)
def apo_down(u_c: Tensor, u_r: Tensor, beta: float = 0.1) -> Tensor:
    """Anchored preference optimisation, down (arXiv 2408.06266, eq. 8): s(r_c) + 1 - s(r_c - r_r). For chosen answers
    that are worse than the policy's own."""
    return torch.sigmoid(beta * u_c) + 1 - torch.sigmoid(beta * (u_c - u_r))


# -------------------------------------------------------------------------------- a margin and a term of its own


def _against_reference(logps: PairLogps, loss: Tensor, beta: float) -> PairLoss:
    """Every pair weighs 1; the rewards are beta * u, whatever the link."""
    chosen = beta * log_ratio(logps.chosen, logps.ref_chosen)
    rejected = beta * log_ratio(logps.rejected, logps.ref_rejected)
    return PairLoss(loss, torch.ones_like(loss), chosen.detach(), rejected.detach())


def _margin(logps: PairLogps) -> Tensor:
    """u_chosen - u_rejected."""
    return log_ratio(logps.chosen, logps.ref_chosen) - log_ratio(logps.rejected, logps.ref_rejected)


@register("dpop", data="pairs", reference=True, beta=POSITIVE, penalty=NON_NEGATIVE)
def dpop(logps: PairLogps, beta: float = 0.1, penalty: float = 50.0) -> PairLoss:
    """DPO-positive (Smaug, arXiv 2402.13228, eq. 3): -log s(beta (u_c - u_r - penalty max(0, -u_c))): a chosen answer
    may not become less likely than under the reference."""
    fall = F.relu(-log_ratio(logps.chosen, logps.ref_chosen))
    return _against_reference(logps, log_sigmoid_link(beta * (_margin(logps) - penalty * fall)), beta)


@register("rpo", data="pairs", reference=True, beta=POSITIVE, nll_weight=NON_NEGATIVE)
def rpo(logps: PairLogps, beta: float = 0.1, nll_weight: float = 1.0) -> PairLoss:
    """DPO and the chosen answer's own likelihood (iterative RPO, arXiv 2404.19733, eq. 2; as in 2405.16436):
    -log s(beta (u_c - u_r)) - nll_weight log pi(c) / |c|."""
    loss = log_sigmoid_link(beta * _margin(logps)) + nll_weight * nll(logps.chosen, logps.chosen_len)
    return _against_reference(logps, loss, beta)


# --------------------------------------------------------------------------------------------- pairs, no reference


def _free(loss: Tensor, chosen: Tensor, rejected: Tensor) -> PairLoss:
    return PairLoss(loss, torch.ones_like(loss), chosen.detach(), rejected.detach())


@register("simpo", data="pairs", reference=False, beta=POSITIVE, gamma=NON_NEGATIVE)
def simpo(logps: PairLogps, beta: float = 2.0, gamma: float = 1.0) -> PairLoss:
    """SimPO (arXiv 2405.14734, eq. 6): -log s(beta (mean_c - mean_r) - gamma); the reward is beta * mean log-prob."""
    chosen = beta * per_token(logps.chosen, logps.chosen_len)
    rejected = beta * per_token(logps.rejected, logps.rejected_len)
    return _free(log_sigmoid_link(chosen - rejected - gamma), chosen, rejected)


@register("cpo", data="pairs", reference=False, beta=POSITIVE, nll_weight=NON_NEGATIVE, label_smoothing=FLIP_RATE)
def cpo(logps: PairLogps, beta: float = 0.1, nll_weight: float = 1.0, label_smoothing: float = 0.0) -> PairLoss:
    """Contrastive preference optimisation (arXiv 2401.08417, eq. 5): -log s(beta (log pi(c) - log pi(r))) and the
    chosen answer's negative log-likelihood, mean per token (TRL takes its mean over all tokens of the batch)."""
    chosen, rejected = beta * logps.chosen, beta * logps.rejected
    loss = log_sigmoid_link(chosen - rejected, label_smoothing) + nll_weight * nll(logps.chosen, logps.chosen_len)
    return _free(loss, chosen, rejected)


@register("orpo", data="pairs", reference=False, needs={"nll_of_prompt": (False, "prompt")}, beta=NON_NEGATIVE)
def orpo(logps: PairLogps, beta: float = 0.1, nll_of_prompt: bool = False) -> PairLoss:
    """Odds ratio preference optimisation (arXiv 2403.07691, eq. 6 and 7): NLL(c) - beta log s(log odds_c - log odds_r).

    odds of the mean log-prob of a token; beta is the paper's lambda. The NLL is the mean over the chosen answer's
    tokens; `nll_of_prompt` counts the prompt's too, as TRL does. The reward is beta * mean log-prob.
    """
    chosen, rejected = per_token(logps.chosen, logps.chosen_len), per_token(logps.rejected, logps.rejected_len)
    loss = _own_nll(logps, nll_of_prompt) + beta * log_sigmoid_link(log_odds(chosen) - log_odds(rejected))
    return _free(loss, beta * chosen, beta * rejected)


def _own_nll(logps: PairLogps, of_prompt: bool) -> Tensor:
    if not of_prompt:
        return nll(logps.chosen, logps.chosen_len)
    if logps.prompt is None or logps.prompt_len is None:
        raise FactoryError("nll_of_prompt needs the prompt's log-probs", todo="give PairLogps prompt and prompt_len")
    return nll(logps.prompt + logps.chosen, logps.prompt_len + logps.chosen_len)
