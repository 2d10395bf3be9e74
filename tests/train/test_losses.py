"""Every objective against values worked by hand in float64, its gradient against finite differences, and its laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from factory.faults import ConfigError, FactoryError
from train import losses
from train.losses import LabelLogps, PairLogps

finite = st.floats(-60, 0, allow_nan=False)
betas = st.floats(0.01, 5)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pairs() -> PairLogps:
    """Two pairs with u_chosen = (2, -1), u_rejected = (-3, 0): margins 5 and -1; lengths (4, 5) and (10, 2)."""
    return PairLogps(f64(-10, -21), f64(-33, -8), f64(-12, -20), f64(-30, -8), f64(4, 5), f64(10, 2))


def labels() -> LabelLogps:
    """A desirable answer with u = 2 and an undesirable one with u = -1."""
    return LabelLogps(f64(-10, -21), f64(-12, -20), torch.tensor([True, False]), f64(4, 5))


def one_pair(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float) -> PairLogps:
    return PairLogps(f64(chosen), f64(rejected), f64(ref_chosen), f64(ref_rejected), f64(3), f64(7))


GOLDEN: dict[str, tuple[str, dict[str, Any], list[float]]] = {
    # -log s(.5) = log(1 + e^-.5); -log s(-.1) = log(1 + e^.1)
    "dpo": ("dpo", {"beta": 0.1}, [0.4740769841801067, 0.7443966600735709]),
    # .9 log(1 + e^-.5) + .1 log(1 + e^.5); .9 log(1 + e^.1) + .1 log(1 + e^-.1)
    "cdpo": ("cdpo", {"beta": 0.1, "label_smoothing": 0.1}, [0.5240769841801067, 0.7343966600735709]),
    # (.9 * .47407698 - .1 * .97407698) / .8; (.9 * .74439666 - .1 * .64439666) / .8
    "robust_dpo": ("robust_dpo", {"beta": 0.1, "label_smoothing": 0.1}, [0.4115769841801067, 0.7568966600735709]),
    # (5 - 1 / .2)^2 = 0; (-1 - 5)^2 = 36
    "ipo": ("ipo", {"beta": 0.1}, [0.0, 36.0]),
    # (2/4 + 3/10 - 5)^2 = 4.2^2; (-1/5 - 0 - 5)^2 = 5.2^2
    "ipo by length": ("ipo", {"beta": 0.1, "length_normalised": True}, [17.64, 27.04]),
    # 1 - .5; 1 + .1
    "hinge": ("hinge", {"beta": 0.1}, [0.5, 1.1]),
    # (2 - 5)^2 + (-3 + 5)^2 = 9 + 4; (-1 - 5)^2 + (0 + 5)^2 = 36 + 25
    "sppo": ("sppo", {"beta": 0.1}, [13.0, 61.0]),
    # 2 (-10/4 + 33/10) - 1 = .6: log(1 + e^-.6); 2 (-21/5 + 8/2) - 1 = -1.4: log(1 + e^1.4)
    "simpo": ("simpo", {"beta": 2.0, "gamma": 1.0}, [0.4374879504858856, 1.6204174099184509]),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_pair_objectives_have_the_values_of_their_equations(case: str) -> None:
    name, parameters, wanted = GOLDEN[case]
    outcome = losses.get(name)(pairs(), **parameters)
    torch.testing.assert_close(outcome.loss, f64(*wanted), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outcome.weight, f64(1, 1))


def test_kto_has_the_value_of_its_equation() -> None:
    """beta .5, z0 1: desirable 2 (1 - s(.5 (2 - 1))) = 2 (1 - .6224593312); undesirable 3 (1 - s(.5 (1 + 1)))
    = 3 (1 - .7310585786); rewards .5 * 2 and .5 * -1."""
    outcome = losses.get("kto")(labels(), beta=0.5, desirable_weight=2.0, undesirable_weight=3.0, kl=f64(1)[0])
    torch.testing.assert_close(outcome.loss, f64(0.7550813375962909, 0.8068242641099854), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outcome.reward, f64(1.0, -0.5))
    torch.testing.assert_close(outcome.weight, f64(1, 1))


@pytest.mark.parametrize("name", [n for n in losses.objectives.names() if losses.get(n).data == "pairs"])
def test_rewards_are_beta_times_the_log_ratio_or_the_mean_log_prob(name: str) -> None:
    objective = losses.get(name)
    outcome = objective(pairs(), beta=0.3)
    if objective.reference:
        chosen, rejected = f64(0.6, -0.3), f64(-0.9, 0.0)  # .3 u
    else:
        chosen, rejected = f64(0.3 * -2.5, 0.3 * -4.2), f64(0.3 * -3.3, 0.3 * -4.0)
    torch.testing.assert_close(outcome.chosen_reward, chosen)
    torch.testing.assert_close(outcome.rejected_reward, rejected)
    assert not outcome.chosen_reward.requires_grad


@pytest.mark.parametrize("name", losses.objectives.names())
def test_gradients_agree_with_finite_differences(name: str) -> None:
    objective = losses.get(name)
    logps: Any = pairs() if objective.data == "pairs" else labels()
    learnt = ("chosen", "rejected") if objective.data == "pairs" else ("policy",)
    # off the hinge's corner and the stationary point of ipo, where both sides would agree trivially
    inputs = tuple((getattr(logps, field) + 0.37).requires_grad_() for field in learnt)

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = objective(logps._replace(**dict(zip(learnt, tensors, strict=True)))).loss
        return result

    assert torch.autograd.gradcheck(loss, inputs)
    assert all(bool(grad.any()) for grad in torch.autograd.grad(loss(*inputs).sum(), inputs, allow_unused=False))


def test_the_gradient_of_dpo_is_that_of_the_paper() -> None:
    """d/d u_c = -beta s(-beta m): for m = 5, beta = .1: -.1 s(-.5) = -.0377540669."""
    chosen = pairs().chosen.requires_grad_()
    losses.get("dpo")(pairs()._replace(chosen=chosen), beta=0.1).loss.sum().backward()
    torch.testing.assert_close(chosen.grad, f64(-0.0377540668798145, -0.0524979187478940))


@given(finite, finite, betas)
def test_dpo_at_margin_zero_is_log_two(chosen: float, rejected: float, beta: float) -> None:
    loss = losses.get("dpo")(one_pair(chosen, rejected, chosen, rejected), beta=beta).loss
    assert loss.item() == pytest.approx(math.log(2), rel=1e-12)


@given(finite, finite, finite, finite, betas, st.floats(-20, 20))
def test_only_log_ratios_count(c: float, r: float, rc: float, rr: float, beta: float, shift: float) -> None:
    """Adding the same number to policy and reference changes nothing in an objective with a reference."""
    for name in ("dpo", "cdpo", "robust_dpo", "ipo", "hinge", "sppo"):
        objective = losses.get(name)
        plain = objective(one_pair(c, r, rc, rr), beta=beta).loss
        moved = objective(one_pair(c + shift, r - shift, rc + shift, rr - shift), beta=beta).loss
        torch.testing.assert_close(plain, moved, rtol=1e-6, atol=1e-6)


@given(finite, finite, finite, finite, betas)
def test_cdpo_and_robust_dpo_without_smoothing_are_dpo(c: float, r: float, rc: float, rr: float, beta: float) -> None:
    pair = one_pair(c, r, rc, rr)
    plain = losses.get("dpo")(pair, beta=beta).loss
    for name in ("cdpo", "robust_dpo"):
        torch.testing.assert_close(losses.get(name)(pair, beta=beta, label_smoothing=0.0).loss, plain)


@given(betas, st.floats(-5, 5))
def test_ipo_is_least_where_the_margin_is_half_over_beta(beta: float, off: float) -> None:
    best = 1 / (2 * beta)
    loss = losses.get("ipo")(one_pair(best + off, 0, 0, 0), beta=beta).loss.item()
    assert loss == pytest.approx(off**2, rel=1e-6, abs=1e-9)


@given(finite, finite, finite, finite, betas)
def test_a_swapped_pair_under_dpo_costs_the_margin_more(c: float, r: float, rc: float, rr: float, beta: float) -> None:
    """L(-d) - L(d) = d."""
    there = losses.get("dpo")(one_pair(c, r, rc, rr), beta=beta).loss
    back = losses.get("dpo")(one_pair(r, c, rr, rc), beta=beta).loss
    torch.testing.assert_close(back - there, f64(beta * ((c - rc) - (r - rr))), rtol=1e-6, atol=1e-6)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6))
def test_the_baseline_of_kto_is_a_mean_that_is_never_negative(u: list[float]) -> None:
    policy = f64(*u).requires_grad_()
    baseline = losses.kto_baseline(policy, torch.zeros_like(policy))
    assert baseline.item() == pytest.approx(max(0.0, sum(u) / len(u)), abs=1e-9)
    assert not baseline.requires_grad


def test_the_baseline_of_nothing_is_zero() -> None:
    assert losses.kto_baseline(f64(), f64()).item() == 0.0


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(FactoryError, match="no objective named 'dop'; did you mean 'dpo'"):
        losses.get("dop")


def test_all_faults_of_parameters_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        losses.get("cdpo")(pairs(), beta=-1.0, label_smoothing=0.5, gamma=1.0)
    assert caught.value.faults == (
        "beta is in (0, inf], not -1",
        "label_smoothing is in [0, 0.5), not 0.5",
        "cdpo has no parameter 'gamma'; it has: beta, label_smoothing",
    )


def test_switches_and_numbers_are_told_apart() -> None:
    with pytest.raises(ConfigError) as caught:
        losses.get("ipo").check({"beta": True, "length_normalised": 1.0})
    assert caught.value.faults == ("beta is a number, not True", "length_normalised is true or false, not 1.0")


def test_a_user_does_not_set_what_the_loop_supplies() -> None:
    with pytest.raises(ConfigError, match="no parameter 'kl'"):
        losses.get("kto").check({"kl": 1.0})


def test_facts_are_declared() -> None:
    assert losses.objectives.facts("kto") == {"data": "labels", "reference": True}
    assert losses.objectives.facts("simpo") == {"data": "pairs", "reference": False}
