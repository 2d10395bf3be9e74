"""The objective of a reward model: scores of two answers, from one head on the model."""

from __future__ import annotations

import torch

from train.losses.facts import NON_NEGATIVE, register
from train.losses.parts import PairLoss, PairScores, log_sigmoid_link


@register("reward_model", data="scores", reference=False, centring=NON_NEGATIVE)
def reward_model(scores: PairScores, margin: bool = False, centring: float = 0.0) -> PairLoss:
    """Bradley-Terry's likelihood of the preference (arXiv 2203.02155, eq. 1): -log s(r_c - r_r).

    `margin`: the difference must also exceed the preference's own margin (Llama 2, arXiv 2307.09288, eq. 2).
    `centring`: times (r_c + r_r)^2, which settles the scale's zero (arXiv 2312.09244, section 3, eq. 3).
    """
    difference = scores.chosen - scores.rejected - (scores.margin if margin else 0.0)
    loss = log_sigmoid_link(difference) + centring * (scores.chosen + scores.rejected).square()
    return PairLoss(loss, torch.ones_like(loss), scores.chosen.detach(), scores.rejected.detach())
