"""Advantages by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from factory.faults import FactoryError
from train.advantages import Credit, Sampled, below_all, estimates, group_advantages, leave_one_out, ways, whitened
from train.config import OnlineSpec


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sampled(reward: float, old: float = -4.0, ref: float = -4.5, value: torch.Tensor | None = None) -> Sampled:
    """An answer of two tokens; `old` and `ref` are its sums."""
    return Sampled((7, 8), reward, f64(old / 2, old / 2), f64(ref / 2, ref / 2), value)


def test_advantages_of_a_group() -> None:
    rewards = f64(1, 0, 0, 3).reshape(1, 4)
    torch.testing.assert_close(leave_one_out(rewards), f64(1 - 1, -4 / 3, -4 / 3, 3 - 1 / 3).reshape(1, 4))
    torch.testing.assert_close(group_advantages(rewards, scale=False), f64(0, -1, -1, 2).reshape(1, 4))
    torch.testing.assert_close(group_advantages(rewards), f64(0, -1, -1, 2).reshape(1, 4) / math.sqrt(2))
    assert not group_advantages(f64(2, 2).reshape(1, 2)).any()
    with pytest.raises(FactoryError, match="at least 2"):
        leave_one_out(f64(1).reshape(1, 1))


def test_generalised_advantages_by_hand() -> None:
    """gamma .9, lambda .5. delta: 1 - .3 = .7 at the end; 0 + .9 * .3 - .2 = .07 before; .07 + .45 * .7 = .385."""
    advantages, returns = estimates(f64(0, 1), f64(0.2, 0.3), gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, f64(0.385, 0.7))
    torch.testing.assert_close(returns, f64(0.585, 1.0))


def test_the_kl_is_in_the_reward_of_rloo() -> None:
    """1 - .1 * .5 = .95 and 0 - .1 * .5 = -.05: one left out, 1 and -1."""
    found = ways.get("leave_one_out")([sampled(1.0), sampled(0.0)], OnlineSpec(kl_weight=0.1))
    assert [c and c.advantage for c in found] == [pytest.approx((1.0, 1.0)), pytest.approx((-1.0, -1.0))]
    moved = ways.get("leave_one_out")([sampled(1.0, old=-4.0, ref=-14.0), sampled(0.0)], OnlineSpec(kl_weight=0.1))
    assert moved[0] is not None
    assert moved[0].advantage == pytest.approx((1 - 1.0 + 0.05,) * 2)


def test_ppo_pays_at_the_last_token_and_for_the_kl_at_each() -> None:
    """kl .25 a token at weight .2: rewards -.05 and 1 - .05; values 0; gamma 1, lambda 1: .9 and .95."""
    (credit,) = ways.get("gae")([sampled(1.0, value=f64(0, 0))], OnlineSpec(kl_weight=0.2, lam=1.0))
    assert credit is not None
    assert credit.advantage == pytest.approx((0.9, 0.95))
    assert credit.returns == pytest.approx((0.9, 0.95))


def test_ppo_s_advantages_are_whitened_over_all_tokens() -> None:
    """1, 3 and 8: mean 4, variance (9 + 1 + 16) / 2 = 13."""
    found = whitened([(1.0, 3.0), (8.0,)])
    assert found[0] == pytest.approx((-3 / 13**0.5, -1 / 13**0.5))
    assert found[1] == pytest.approx((4 / 13**0.5,))
    assert whitened([(2.0, 2.0), (2.0,)]) == [(0.0, 0.0), (0.0,)]
    assert whitened([(2.0,)]) == [(2.0,)]
    assert whitened([]) == []


def test_bond_compares_with_the_anchors_answers() -> None:
    """Own below both: -log 16; its log-ratio ref - old = -.5. The anchor's best is imitated."""
    spec = OnlineSpec(n=3, eta=0.4)
    low = ways.get("bond")([sampled(0.0), sampled(2.0), sampled(1.0)], spec)
    assert low[0] is not None
    assert low[0].advantage == pytest.approx((0.4 * (-math.log(16) - 0.5),) * 2)
    assert low[1:] == [Credit((0.6, 0.6)), None]
    high = ways.get("bond")([sampled(1.5), sampled(2.0), sampled(1.0)], spec)
    assert high[0] is not None
    assert high[0].advantage == pytest.approx((0.4 * -0.5,) * 2)
    tied = ways.get("bond")([sampled(1.0), sampled(2.0), sampled(1.0)], spec)
    assert tied[0] == high[0]  # an equal answer is not below
    held = ways.get("bond")([sampled(1.5), sampled(2.0), sampled(1.0)], spec.model_copy(update={"anchor_weight": 0.6}))
    assert held[0] is not None
    assert held[0].advantage == pytest.approx((1.0 * -0.5,) * 2)
    with pytest.raises(FactoryError, match=r"online\.n to 3"):
        ways.get("bond")([sampled(0.0), sampled(1.0)], spec)


@pytest.mark.parametrize("anchors", [2, 3, 4])
def test_bonds_reward_is_that_of_best_of_n_for_the_median_answer(anchors: int) -> None:
    """An answer at the share p of the anchor's is below all k with (1 - p)^k; best-of-k's reward is (k - 1) log p."""
    p = 0.5
    assert below_all(anchors) * (1 - p) ** anchors == pytest.approx((anchors - 1) * math.log(p))


def test_bond_steps_towards_the_best_of_two() -> None:
    """Three answers of rewards 0, 1, 2 under a uniform anchor: the best of two has 1/9, 3/9, 5/9. The expected gradient
    of the loss at the anchor itself, worked out over all draws, is that of sum over y of -(target - 1/3) log pi(y), of
    the forward KL exactly, and of the backward one with the reward -log 16 (1 - p)^2 in place of log p."""
    spec, third = OnlineSpec(n=3, eta=0.4), math.log(1 / 3)

    def answer(reward: float) -> Sampled:
        return Sampled((1,), reward, f64(third), f64(third))

    pull = [0.0, 0.0, 0.0]
    for own, first, second in itertools.product(range(3), repeat=3):
        answers = [answer(own), answer(first), answer(second)]
        for y, credit in zip((own, first, second), ways.get("bond")(answers, spec), strict=True):
            if credit is not None:
                pull[y] += credit.advantage[0] / 27
    best = [0.6 * share / 9 for share in (1, 3, 5)]
    backward = [0.4 * below_all(2) * ((2 - y) / 3) ** 2 / 3 for y in range(3)]
    assert pull == pytest.approx([f + b for f, b in zip(best, backward, strict=True)])
