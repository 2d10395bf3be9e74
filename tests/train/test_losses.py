"""Every objective against values worked by hand in float64, its gradient against finite differences, and its laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from factory.faults import ConfigError, FactoryError
from train import losses
from train.losses import CompletionLogps, GroupLogps, LabelLogps, PairLogps, PairScores
from train.losses.groups import value_loss

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


def everything() -> PairLogps:
    """The pairs with all that some objective may ask for."""
    return pairs()._replace(
        chosen_head=f64(-8, -20),
        rejected_head=f64(-9, -8),
        ref_chosen_head=f64(-10, -19),
        ref_rejected_head=f64(-12, -8),
        prompt=f64(-6, -9),
        prompt_len=f64(2, 3),
    )


def group() -> GroupLogps:
    """Two answers of 2 and 3 tokens, ratios near 1, advantages 1 and -1."""
    policy = f64(-1.0, -2.0, -0.5, -1.5, -2.5)
    old = f64(-1.1, -1.7, -0.5, -1.4, -2.9)
    ref = f64(-1.3, -2.0, -0.4, -1.9, -2.5)
    return GroupLogps(policy, old, ref, f64(1, 1, -1, -1, -1), f64(2, 3), f64(0.7, 0.2))


INPUTS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "pairs": (everything, ("chosen", "rejected")),
    "labels": (labels, ("policy",)),
    "completions": (lambda: CompletionLogps(f64(-10, -21), f64(4, 5)), ("policy",)),
    "groups": (group, ("policy",)),
    "scores": (lambda: PairScores(f64(1.0, -0.5), f64(-1.0, 0.0), f64(0.5, 0.0)), ("chosen", "rejected")),
}


def one_pair(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float) -> PairLogps:
    return PairLogps(f64(chosen), f64(rejected), f64(ref_chosen), f64(ref_rejected), f64(3), f64(7))


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_loss(d: float) -> float:
    """-log s(d)."""
    return math.log(1 + math.exp(-d))


# The pairs above, by plain arithmetic: sums, u_c = (2, -1), u_r = (-3, 0), lengths; beta .1 unless given.
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
    # beta 5 of the per-token ratios: 2/4 + 3/10 = .8; -1/5
    "length_normalised_dpo": ("length_normalised_dpo", {}, [log_loss(4.0), log_loss(-1.0)]),
    # u_c 2, -1; u_r -3, 0: the chosen falls by 1 in the second pair, which costs 50
    "dpop": ("dpop", {}, [log_loss(0.5), log_loss(0.1 * (-1 - 50 * 1))]),
    # -log s(d) + 10/4; + 21/5
    "rpo": ("rpo", {}, [log_loss(0.5) + 2.5, log_loss(-0.1) + 4.2]),
    # 1 - s(.2) + s(-.3); 1 - s(-.1) + s(0)
    "apo_zero": ("apo_zero", {}, [1 - sig(0.2) + sig(-0.3), 1 - sig(-0.1) + 0.5]),
    # s(.2) + 1 - s(.5); s(-.1) + 1 - s(-.1) = 1
    "apo_down": ("apo_down", {}, [sig(0.2) + 1 - sig(0.5), 1.0]),
    # the KL of (s(d), s(-d)) from (.8, .2)
    "exo_pair": (
        "exo_pair",
        {"label_smoothing": 0.2},
        [
            sig(0.5) * math.log(sig(0.5) / 0.8) + sig(-0.5) * math.log(sig(-0.5) / 0.2),
            sig(-0.1) * math.log(sig(-0.1) / 0.8) + sig(0.1) * math.log(sig(0.1) / 0.2),
        ],
    ),
    # -log s(c) - (log s(-c) + log s(-r)) / 2 with c, r = (.2, -.3) and (-.1, 0)
    "nca_pair": (
        "nca_pair",
        {},
        [
            log_loss(0.2) + (log_loss(-0.2) + log_loss(0.3)) / 2,
            log_loss(-0.1) + (log_loss(0.1) + log_loss(0.0)) / 2,
        ],
    ),
    "bco_pair": ("bco_pair", {}, [log_loss(0.2) + log_loss(0.3), log_loss(-0.1) + log_loss(0.0)]),
    "bco_pair, shift": (
        "bco_pair",
        {"shift": 0.05},
        [log_loss(0.15) + log_loss(0.35), log_loss(-0.15) + log_loss(0.05)],
    ),
    # weight s(d / .05): s(10), s(-2)
    "discopop": (
        "discopop",
        {},
        [
            (1 - sig(10)) * log_loss(0.5) + sig(10) * math.exp(-0.5),
            (1 - sig(-2)) * log_loss(-0.1) + sig(-2) * math.exp(0.1),
        ],
    ),
    # f' at e^u: forward KL 1 - e^-u: (1 - e^-2) - (1 - e^3); (1 - e^1) - 0
    "dpo, forward KL": (
        "dpo",
        {"f_divergence": "forward_kl"},
        [log_loss(0.1 * (math.exp(3) - math.exp(-2))), log_loss(0.1 * (1 - math.e))],
    ),
    # log 2t/(1+t) = log 2 + log s(u); log 2 cancels
    "dpo, Jensen-Shannon": (
        "dpo",
        {"f_divergence": "js"},
        [log_loss(0.1 * (log_loss(-3) - log_loss(2))), log_loss(0.1 * (log_loss(0) - log_loss(-1)))],
    ),
    # (t^-.5 - 1) / -.5 = 2 (1 - e^(-u/2))
    "dpo, alpha divergence": (
        "dpo",
        {"f_divergence": "alpha", "f_alpha": 0.5},
        [log_loss(0.2 * (math.exp(1.5) - math.exp(-1))), log_loss(0.2 * (1 - math.exp(0.5)))],
    ),
    "dpo, alpha 1 is reverse KL": ("dpo", {"f_divergence": "alpha", "f_alpha": 1.0}, [log_loss(0.5), log_loss(-0.1)]),
    # .1 (-10 + 33) = 2.3; .1 (-21 + 8) = -1.3
    "cpo": ("cpo", {}, [log_loss(2.3) + 2.5, log_loss(-1.3) + 4.2]),
    # p = e^-2.5, e^-3.3; e^-4.2, e^-4
    "orpo": (
        "orpo",
        {},
        [
            2.5 + 0.1 * log_loss(math.log((math.exp(3.3) - 1) / (math.exp(2.5) - 1))),
            4.2 + 0.1 * log_loss(math.log((math.exp(4.0) - 1) / (math.exp(4.2) - 1))),
        ],
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_pair_objectives_have_the_values_of_their_equations(case: str) -> None:
    name, parameters, wanted = GOLDEN[case]
    outcome = losses.get(name)(pairs(), **parameters)
    torch.testing.assert_close(outcome.loss, f64(*wanted), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outcome.weight, f64(1, 1))


def test_every_objective_on_pairs_has_golden_values() -> None:
    named = {name for name, _, _ in GOLDEN.values()} | {"ld_dpo"}
    assert named == {n for n in losses.objectives.names() if losses.get(n).data == "pairs"}


def test_tokens_past_the_shorter_answer_count_alpha() -> None:
    """Heads of 3 and 2 tokens: policy -8 and -20, rejected -9 and -8; reference -10 and -19, -12 and -8.

    chosen .5 (-10) + .5 (-8) = -9, reference -11: 2; rejected -21 to -21: 0. Second pair: -20.5 + 19.5 = -1; 0.
    """
    heads = pairs()._replace(
        chosen_head=f64(-8, -20),
        rejected_head=f64(-9, -8),
        ref_chosen_head=f64(-10, -19),
        ref_rejected_head=f64(-12, -8),
    )
    outcome = losses.get("ld_dpo")(heads, ld_alpha=0.5)
    torch.testing.assert_close(outcome.loss, f64(log_loss(0.1 * (2 - 0)), log_loss(0.1 * -1)))
    torch.testing.assert_close(losses.get("dpo")(heads, ld_alpha=0.5).loss, outcome.loss)
    torch.testing.assert_close(outcome.chosen_reward, f64(0.2, -0.1))
    assert losses.get("ld_dpo").needed({}) == {"head"}
    assert losses.get("dpo").needed({}) == set()
    with pytest.raises(FactoryError, match="first tokens"):
        losses.get("ld_dpo")(pairs())


def test_orpo_counts_the_prompt_where_it_is_told_to() -> None:
    """(-6 - 10) / (2 + 4) = -2.6667; (-9 - 21) / (3 + 5) = -3.75 in place of -2.5 and -4.2."""
    with_prompt = pairs()._replace(prompt=f64(-6, -9), prompt_len=f64(2, 3))
    plain = losses.get("orpo")(with_prompt).loss
    moved = losses.get("orpo")(with_prompt, nll_of_prompt=True).loss
    torch.testing.assert_close(moved - plain, f64(16 / 6 - 2.5, 30 / 8 - 4.2))
    with pytest.raises(FactoryError, match="prompt"):
        losses.get("orpo")(pairs(), nll_of_prompt=True)


LABEL_GOLDEN: dict[str, tuple[str, dict[str, Any], list[float], list[float]]] = {
    # 2 (1 - s(.5 (2 - 1))) = 2 (1 - .6224593312); 3 (1 - s(.5 (1 + 1))) = 3 (1 - .7310585786)
    "kto": (
        "kto",
        {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 3.0, "kl": 1.0},
        [0.7550813375962909, 0.8068242641099854],
        [1.0, -0.5],
    ),
    "apo_zero_unpaired": ("apo_zero_unpaired", {"beta": 0.5}, [1 - sig(1.0), sig(-0.5)], [1.0, -0.5]),
    # -log s(1 - .25); -log s(.25 + .5)
    "bco": ("bco", {"beta": 0.5, "shift": 0.25}, [log_loss(0.75), log_loss(0.75)], [1.0, -0.5]),
}


@pytest.mark.parametrize("case", LABEL_GOLDEN)
def test_label_objectives_have_the_values_of_their_equations(case: str) -> None:
    name, parameters, wanted, rewards = LABEL_GOLDEN[case]
    outcome = losses.get(name)(labels(), **parameters)
    torch.testing.assert_close(outcome.loss, f64(*wanted), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outcome.reward, f64(*rewards))
    torch.testing.assert_close(outcome.weight, f64(1, 1))


def test_kto_without_a_baseline_is_apo_zero_unpaired() -> None:
    ours, theirs = losses.get("kto")(labels(), kl=0.0), losses.get("apo_zero_unpaired")(labels())
    torch.testing.assert_close(ours.loss, theirs.loss)


@pytest.mark.parametrize(("mean_over", "weight"), [("tokens", (4.0, 5.0)), ("answers", (1.0, 1.0))])
def test_sft_is_the_mean_over_tokens_or_over_answers(mean_over: str, weight: tuple[float, float]) -> None:
    """-(-10)/4 = 2.5, -(-21)/5 = 4.2: mean of tokens (10 + 21) / 9."""
    outcome = losses.get("sft")(CompletionLogps(f64(-10, -21), f64(4, 5)), mean_over=mean_over)
    torch.testing.assert_close(outcome.loss, f64(2.5, 4.2))
    torch.testing.assert_close(outcome.weight, f64(*weight))
    if mean_over == "tokens":
        assert float((outcome.loss * outcome.weight).sum() / outcome.weight.sum()) == pytest.approx(31 / 9)


def test_a_reward_model_learns_the_difference() -> None:
    scores = PairScores(f64(1.0, -0.5), f64(-1.0, 0.0), f64(0.5, 0.0))
    plain = losses.get("reward_model")(scores)
    torch.testing.assert_close(plain.loss, f64(log_loss(2.0), log_loss(-0.5)))
    far = losses.get("reward_model")(scores, margin=True, centring=0.1)
    torch.testing.assert_close(far.loss, f64(log_loss(1.5), log_loss(-0.5) + 0.1 * 0.25))
    torch.testing.assert_close(far.chosen_reward, f64(1.0, -0.5))


@pytest.mark.parametrize("name", [n for n in losses.objectives.names() if losses.get(n).data == "pairs"])
def test_rewards_are_beta_times_the_log_ratio_or_the_mean_log_prob(name: str) -> None:
    objective = losses.get(name)
    outcome = objective(everything(), beta=0.3)
    if objective.reference:
        chosen, rejected = f64(0.6, -0.3), f64(-0.9, 0.0)  # .3 u
    elif name == "cpo":
        chosen, rejected = f64(-3.0, -6.3), f64(-9.9, -2.4)  # .3 log pi
    else:
        chosen, rejected = f64(0.3 * -2.5, 0.3 * -4.2), f64(0.3 * -3.3, 0.3 * -4.0)
    torch.testing.assert_close(outcome.chosen_reward, chosen)
    torch.testing.assert_close(outcome.rejected_reward, rejected)
    assert not outcome.chosen_reward.requires_grad


@pytest.mark.parametrize("name", losses.objectives.names())
def test_gradients_agree_with_finite_differences(name: str) -> None:
    objective = losses.get(name)
    make, learnt = INPUTS[objective.data]
    given: Any = make()
    # off the hinge's corner and the stationary point of ipo, where both sides would agree trivially
    off = 0.37 if objective.data != "groups" else 0.013
    inputs = tuple((getattr(given, field) + off).requires_grad_() for field in learnt)

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = objective(given._replace(**dict(zip(learnt, tensors, strict=True)))).loss
        return result

    assert torch.autograd.gradcheck(loss, inputs)
    assert all(bool(grad.any()) for grad in torch.autograd.grad(loss(*inputs).sum(), inputs, allow_unused=False))


@pytest.mark.parametrize("name", [n for n in losses.objectives.names() if losses.get(n).data == "pairs"])
@pytest.mark.parametrize(("chosen", "rejected"), [(-2000.0, -1.0), (-1.0, -2000.0), (-1e4, -1e4), (0.0, 0.0)])
def test_pairs_far_off_have_finite_losses_and_gradients(name: str, chosen: float, rejected: float) -> None:
    """In float32, under a reference of -300 nats."""
    c, r = (torch.tensor([value], requires_grad=True) for value in (chosen, rejected))
    ref, length = torch.tensor([-300.0]), torch.tensor([5.0])
    loss = losses.get(name)(PairLogps(c, r, ref, ref, length, length, c, r, ref, ref)).loss.sum()
    loss.backward()
    assert c.grad is not None
    assert r.grad is not None
    assert torch.isfinite(torch.cat([loss.detach()[None], c.grad, r.grad])).all()


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
    with pytest.raises(FactoryError, match="no objective named 'simpoo'; did you mean 'simpo'"):
        losses.get("simpoo")


def test_all_faults_of_parameters_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        losses.get("cdpo")(pairs(), beta=-1.0, label_smoothing=0.5, gamma=1.0)
    assert caught.value.faults == (
        "beta is in (0, inf], not -1",
        "label_smoothing is in [0, 0.5), not 0.5",
        "cdpo has no parameter 'gamma'; it has: "
        "beta, f_alpha, f_divergence, label_smoothing, ld_alpha, length_normalised",
    )


def test_switches_and_numbers_are_told_apart() -> None:
    with pytest.raises(ConfigError) as caught:
        losses.get("ipo").check({"beta": True, "length_normalised": 1.0})
    assert caught.value.faults == ("beta is a number, not True", "length_normalised is true or false, not 1.0")


def test_a_user_does_not_set_what_the_loop_supplies() -> None:
    with pytest.raises(ConfigError, match="no parameter 'kl'"):
        losses.get("kto").check({"kl": 1.0})


def test_a_name_out_of_a_list_is_checked() -> None:
    with pytest.raises(ConfigError, match="no f_divergence named 'revers_kl'; did you mean 'reverse_kl'"):
        losses.get("dpo").check({"f_divergence": "revers_kl"})
    with pytest.raises(ConfigError, match="has no parameter 'f_divergence'"):
        losses.get("apo_zero").check({"f_divergence": "js"})


# ------------------------------------------------------------------------------------------------- sampled answers


def by_hand(g: GroupLogps, low: float, high: float, beta: float) -> list[float]:
    """Every token's clipped loss with its k3 penalty, in plain arithmetic."""
    advantages = [1.0, 1.0, -1.0, -1.0, -1.0]
    out = []
    for p, o, r, a in zip(g.policy.tolist(), g.old.tolist(), g.ref.tolist(), advantages, strict=True):
        rho = math.exp(p - o)
        cut = min(max(rho, 1 - low), 1 + high)
        out.append(-min(rho * a, cut * a) + beta * (math.exp(r - p) - (r - p) - 1))
    return out


@pytest.mark.parametrize("normalise", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_grpo_averages_tokens_as_it_is_told(normalise: str) -> None:
    outcome = losses.get("grpo")(group(), beta=0.04, normalise=normalise, longest=10)
    one, two, *rest = by_hand(group(), 0.2, 0.2, 0.04)
    first, second = one + two, sum(rest)
    wanted = {
        "grpo": (first / 2 + second / 3) / 2,
        "bnpo": (first + second) / 5,
        "dr_grpo": (first + second) / 20,
        "dapo": (first + second) / 5,
    }[normalise]
    got = (outcome.loss * outcome.weight).sum() / outcome.weight.sum()
    assert float(got) == pytest.approx(wanted, rel=1e-12)


def test_grpo_clips_only_what_goes_too_far() -> None:
    """rho = e^.1, e^-.3 | 1, e^-.1, e^.4. With A = 1 the upper end cuts none; with A = -1 the lower end cuts none, and
    a ratio of e^.4 above 1.2 is not cut."""
    outcome = losses.get("grpo")(group())
    torch.testing.assert_close(outcome.clipped, f64(0, 0))
    far = group()._replace(policy=group().old + f64(0.5, 0.0, -0.5, 0.0, 0.0))
    torch.testing.assert_close(losses.get("grpo")(far).clipped, f64(1 / 2, 1 / 3))
    torch.testing.assert_close(losses.get("grpo")(far, clip_high=0.8).clipped, f64(0, 1 / 3))


def test_kl_times_the_ratio_has_the_gradient_of_the_kl_under_the_policy() -> None:
    """E over old of rho k3 is E over pi of k3; of k3 alone it is another number. Two tokens, old (.5, .5)."""
    p, q, r = 0.8, 0.5, 0.6  # of the first token under policy, old, reference
    on_policy = sum(a * (b / a - math.log(b / a) - 1) for a, b in ((p, r), (1 - p, 1 - r)))
    total = 0.0
    for pi, old, ref in ((p, q, r), (1 - p, 1 - q, 1 - r)):
        logs = [f64(math.log(x)) for x in (pi, old, ref)]
        one = GroupLogps(logs[0], logs[1], logs[2], f64(0.0), f64(1), f64(0.0))
        total += old * float(losses.get("grpo")(one, beta=1.0, kl_ratio=True).loss)
    assert total == pytest.approx(on_policy, rel=1e-12)


def test_a_ratio_of_the_whole_answer_is_a_geometric_mean() -> None:
    """(.1 - .3) / 2 and (0 - .1 + .4) / 3 in the exponent."""
    outcome = losses.get("grpo")(group(), sequence_ratio=True)
    torch.testing.assert_close(outcome.loss, f64(-math.exp(-0.1), math.exp(0.1)))


def test_rloo_is_reinforce_where_the_policy_has_not_moved() -> None:
    fresh = group()._replace(policy=group().old.clone().requires_grad_())
    outcome = losses.get("rloo")(fresh)
    outcome.loss.sum().backward()
    torch.testing.assert_close(outcome.loss, f64(-1, 1))
    torch.testing.assert_close(fresh.policy.grad, f64(-1, -1, 1, 1, 1))


def test_ppo_takes_an_advantage_for_each_token() -> None:
    g = group()._replace(advantage=f64(1.0, 0.5, -1.0, 2.0, 0.0))
    outcome = losses.get("ppo")(g, clip=0.2)
    ratios = [math.exp(x) for x in (0.1, -0.3, 0.0, -0.1, 0.4)]
    first = -(ratios[0] * 1.0) - ratios[1] * 0.5
    second = ratios[2] - ratios[3] * 2.0
    got = float((outcome.loss * outcome.weight).sum() / outcome.weight.sum())
    assert got == pytest.approx((first + second) / 5, rel=1e-12)


def test_the_critic_does_not_run_from_its_old_value() -> None:
    """v = 1, old .5, clip .2: the cut value is .7; returns 0: 1/2 max(1, .49)."""
    torch.testing.assert_close(value_loss(f64(1.0), f64(0.5), f64(0.0)), f64(0.5))
    torch.testing.assert_close(value_loss(f64(1.0), f64(0.5), f64(1.0)), f64(0.5 * 0.3**2))


def test_facts_are_declared() -> None:
    assert losses.objectives.facts("kto") == {"data": "labels", "reference": True}
    assert losses.objectives.facts("simpo") == {"data": "pairs", "reference": False}
