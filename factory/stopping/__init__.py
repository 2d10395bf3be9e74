"""When a run ends, and which of its policies it gives back. Pure: evidence of the rounds in, a decision out.

A rule is a frozen model of its settings that is called with the evidence so far, round 0 (the start policy) first, and
says whether to stop, why, and from which numbers. A new rule is one class in this package with one registration. What
the rules read is measured on held-out prompts, the same ones every round; their intervals are widened for that.
docs/stopping.md says what each rule reads and why its defaults are what they are.

    config = StopConfig.model_validate({"max_rounds": 3, "any": [{"rule": "kl_budget", "nats": 40}]})
    decide(evidence, config).stop, champion(evidence, config)
"""

from factory.stopping.deciding import All, Either, StopConfig, champion, decide, decide_marked, flagged, mark
from factory.stopping.drift import Degeneration, DiversityCollapse, LengthDrift
from factory.stopping.evidence import RoundEvidence
from factory.stopping.gain import NoGain
from factory.stopping.hacking import RewardHacking
from factory.stopping.limits import Budget, KlBudget, LabelStarvation, MaxRounds
from factory.stopping.rules import Rule, rules
from factory.stopping.signal import JudgeAgreement, MarginSaturation

__all__ = [
    "All", "Budget", "Degeneration", "DiversityCollapse", "Either", "JudgeAgreement", "KlBudget", "LabelStarvation",
    "LengthDrift", "MarginSaturation", "MaxRounds", "NoGain", "RewardHacking", "RoundEvidence", "Rule", "StopConfig",
    "champion", "decide", "decide_marked", "flagged", "mark", "rules",
]  # fmt: skip
