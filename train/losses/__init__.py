"""The objectives: each a reduction, a reward, a link and a weight, named.

    token log-probs --reduction--> policy, reference (batch,) --reward--> u --link--> loss --weight--> the batch's loss

The best policy under a reward r at KL weight beta is pi*(y|x) ~ pi_ref(y|x) exp(r / beta). Read backwards, a policy
has the implicit reward beta * u with u = log pi(y|x) - log pi_ref(y|x), and an objective puts a link on the margin of
two rewards, or on one reward against a baseline. The loss of a batch is sum(loss * weight) / sum(weight) over the
effective batch; the trainer takes that sum.

    outcome = losses.get("dpo")(PairLogps(...), beta=0.1)

`parts` has the pieces, `facts` what an objective declares; `pairs`, `labels`, `groups` and `scores` the named ones.
"""

from __future__ import annotations

from train.losses import groups, labels, pairs, scores
from train.losses.catalogue import About, about
from train.losses.facts import NON_NEGATIVE, POSITIVE, Objective, OneOf, Range, get, objectives, register
from train.losses.labels import kto_baseline
from train.losses.parts import (
    CompletionLogps,
    GroupLogps,
    GroupLoss,
    LabelLogps,
    LabelLoss,
    PairLogps,
    PairLoss,
    PairScores,
)

__all__ = [
    "NON_NEGATIVE",
    "POSITIVE",
    "About",
    "CompletionLogps",
    "GroupLogps",
    "GroupLoss",
    "LabelLogps",
    "LabelLoss",
    "Objective",
    "OneOf",
    "PairLogps",
    "PairLoss",
    "PairScores",
    "Range",
    "about",
    "get",
    "groups",
    "kto_baseline",
    "labels",
    "objectives",
    "pairs",
    "register",
    "scores",
]
