"""Rules on what is learnt from: judges that can still be believed, and pairs that still teach."""

from __future__ import annotations

from collections.abc import Sequence

from factory.schema import Decision, Estimate
from factory.stopping.evidence import RoundEvidence, value_of
from factory.stopping.rules import Positive, Rule, Share, rules


@rules.register("judge_agreement")
class JudgeAgreement(Rule):
    """The judges that label cannot be believed: their verdicts change with the order of showing, they are all one
    judge, or people disagree with them. A limit of None asks nothing."""

    rule: str = "judge_agreement"
    judge: str | None = None
    """The judge that is asked about, by its name in the panel; by default all: one that can be believed is enough."""
    flips: Share | None = 0.6
    """Share of verdicts that change with the order: too many when the lower bound is above it."""
    effective: float | None = None
    """Independent judges that the panel must be worth (Kish)."""
    human: Share | None = None
    """Share of pairs on which people must agree with the judge, by the lower bound: too few gold pairs are too few."""

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By the last round's judgments."""
        last = history[-1]
        if last.round == 0:
            return self.say(False, "nothing is labelled in round 0")
        flipped, sure_of = self._of(last.flips), self._of(last.human)
        said, wrong = [], []
        if self.flips is not None:
            said.append(_told("changed with the order", flipped))
            if flipped and all(rate.low > self.flips for rate in flipped.values()):
                wrong.append(f"surely more than {self.flips:.0%} of the verdicts change with the order")
        if self.effective is not None:
            known = last.effective
            said.append("effective judges not measured" if known is None else f"{known:.2g} effective judges")
            if known is not None and known < self.effective:
                wrong.append(f"the panel is worth fewer than {self.effective:g} judges")
        if self.human is not None:
            said.append(_told("agreed with people", sure_of))
            if sure_of and all(not rate.low >= self.human for rate in sure_of.values()):
                wrong.append(f"agreement with people may be below {self.human:.0%}")
        reason = "; ".join([*said, *wrong]) or "no limit is set"
        return self.say(bool(wrong), reason, flips=flipped, effective=last.effective, human=sure_of)

    def _of(self, rates: dict[str, Estimate] | object) -> dict[str, Estimate]:
        found = dict(rates) if isinstance(rates, dict) else {}
        return {name: rate for name, rate in found.items() if self.judge in (None, name)}


def _told(what: str, rates: dict[str, Estimate]) -> str:
    if not rates:
        return f"verdicts that {what}: not measured"
    return f"verdicts that {what}: " + ", ".join(
        f"{name} {rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%})" for name, rate in rates.items()
    )


@rules.register("margin_saturation")
class MarginSaturation(Rule):
    """The pairs teach nothing new: training tells chosen and rejected apart as well as can be, and held-out pairs are
    told apart no better than a round ago (where that was measured)."""

    rule: str = "margin_saturation"
    accuracy: Share = 0.98
    """Share of the training pairs with a margin above zero at the end of training that counts as all."""
    lasting: Positive = 2

    def check(self, history: Sequence[RoundEvidence]) -> Decision:
        """By the last round's training and the held-out implicit accuracy."""
        last, before = history[-1], history[-2] if len(history) > 1 else None
        if last.accuracy is None:
            return self.say(False, "the accuracy of training pairs was not measured")
        now = last.report.implicit.get("accuracy")
        then = before.report.implicit.get("accuracy") if before else None
        learns = now is not None and then is not None and now.low > then.value
        full = last.accuracy >= self.accuracy
        heldout = value_of(now)
        reason = f"{last.accuracy:.1%} of the training pairs told apart, " + (
            "held-out pairs not measured" if heldout is None else f"{heldout:.1%} of the held-out pairs"
        )
        margin = None if last.margin is None else float(last.margin)
        return self.say(full and not learns, reason, accuracy=last.accuracy, margin=margin, heldout=heldout)
