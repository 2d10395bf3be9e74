"""Advantages by hand."""

from __future__ import annotations

import math

import pytest
import torch

from factory.faults import FactoryError
from train.advantages import LOWEST, Sampled, estimates, group_advantages, leave_one_out, ways
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
    assert [c.advantage for c in found] == [pytest.approx((1.0, 1.0)), pytest.approx((-1.0, -1.0))]
    moved = ways.get("leave_one_out")([sampled(1.0, old=-4.0, ref=-14.0), sampled(0.0)], OnlineSpec(kl_weight=0.1))
    assert moved[0].advantage == pytest.approx((1 - 1.0 + 0.05,) * 2)


def test_ppo_pays_at_the_last_token_and_for_the_kl_at_each() -> None:
    """kl .25 a token at weight .2: rewards -.05 and 1 - .05; values 0; gamma 1, lambda 1: .9 and .95."""
    (credit,) = ways.get("gae")([sampled(1.0, value=f64(0, 0))], OnlineSpec(kl_weight=0.2, lam=1.0))
    assert credit.advantage == pytest.approx((0.9, 0.95))
    assert credit.returns == pytest.approx((0.9, 0.95))


def test_bond_compares_with_the_anchors_answers() -> None:
    """Own below both: -log 16; its log-ratio ref - old = -.5. The anchor's best is imitated."""
    spec = OnlineSpec(n=3, eta=0.4)
    low = ways.get("bond")([sampled(0.0), sampled(2.0), sampled(1.0)], spec)
    assert low[0].advantage == pytest.approx((0.4 * (LOWEST - 0.5),) * 2)
    assert [c.advantage for c in low[1:]] == [(0.6, 0.6), (0.0, 0.0)]
    high = ways.get("bond")([sampled(1.5), sampled(2.0), sampled(1.0)], spec)
    assert high[0].advantage == pytest.approx((0.4 * -0.5,) * 2)
    with pytest.raises(FactoryError, match=r"online\.n to 3"):
        ways.get("bond")([sampled(0.0), sampled(1.0)], spec)
