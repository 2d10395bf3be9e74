"""Made-up histories, as stopping rules read them."""

from __future__ import annotations

import math
from typing import Any

from factory.schema import Estimate, PolicyReport
from factory.stats import intervals
from factory.stopping import RoundEvidence

NAN = math.nan
PROMPTS = 200
SURE_GAIN = Estimate(0.2, 0.12, 0.28)


def report(passes: int | None, *, policy: str = "policy", **measures: Any) -> PolicyReport:
    """A held-out report: so many of 200 prompts passed; length, relevance and distinct-2 as at the start."""
    values = {
        "relevance": Estimate(1.0, 0.95, 1.05),
        "tokens": Estimate(60.0, 57.0, 63.0),
        "distinct_2": 0.8,
        "kl_sequence": Estimate(5.0, 4.0, 6.0),
    }
    rate = None if passes is None else intervals.wilson(passes, PROMPTS)
    return PolicyReport(policy, "heldout", PROMPTS, PROMPTS, 0, pass_rate=rate, **{**values, **measures})


def history(*passes: int | None, **last: Any) -> list[RoundEvidence]:
    """Rounds with these pass counts; `last` goes to the last round's report."""
    rounds = [
        RoundEvidence(
            round=i,
            report=report(p, policy=f"round {i}"),
            preferences=40 * (i > 0),
            seconds=100.0,
            tokens=1000,
            cost=0.5,
        )
        for i, p in enumerate(passes)
    ]
    if last:
        end = rounds[-1]
        rounds[-1] = RoundEvidence(
            round=end.round, report=report(passes[-1], **{"policy": end.report.policy, **last}), preferences=40
        )
    return rounds
