"""Warnings that teach: what goes wrong in trainings on preferences, seen in a step's metrics, each told once with its
remedy.

A watch is told the metrics of every step and answers with a text or with nothing. It is a function of the lines alone,
so that a training that goes on from a checkpoint is told the same. `all_of` makes those that a training needs; a new
one is one class and a line there.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from train.config import TrainConfig
from train.metrics import FallWatch

Line = Mapping[str, Any]


class Watch(Protocol):
    """Looks for one thing that goes wrong."""

    def see(self, line: Line) -> str:
        """Told the metrics of a step; the warning with its remedy, or empty. Speaks once."""


class Once:
    """What watches share: the last lines that have all of `names`, and one answer."""

    names: tuple[str, ...] = ()

    def __init__(self, window: int = 10) -> None:
        self.window = window
        self.lines: list[Line] = []
        self._told = False

    def see(self, line: Line) -> str:
        """Empty until `found` says something; then never again."""
        if self._told or any(name not in line for name in self.names):
            return ""
        self.lines.append(line)
        text = self.found() if len(self.lines) >= self.window else ""
        self._told = bool(text)
        return text

    def found(self) -> str:
        """The warning, from `self.lines`."""
        raise NotImplementedError

    def recent(self, name: str, skip: int = 0) -> float:
        """Mean over the last `window` lines, or over the window that ended `skip` lines ago."""
        end = len(self.lines) - skip
        part = [float(line[name]) for line in self.lines[max(0, end - self.window) : end]]
        return statistics.fmean(part)

    def first(self, name: str) -> float:
        """Mean over the first `window` lines."""
        return statistics.fmean(float(line[name]) for line in self.lines[: self.window])


class FlatAccuracy(Once):
    """The margin grows on pairs that are told apart already; those that are not stay so."""

    names = ("rewards/margins", "rewards/accuracies")

    def found(self) -> str:
        """Over three windows: the margin up by half and more, the accuracy where it was, and not near 1."""
        if len(self.lines) < 3 * self.window:
            return ""
        now, before = self.recent("rewards/margins"), self.recent("rewards/margins", 2 * self.window)
        accuracy, was = self.recent("rewards/accuracies"), self.recent("rewards/accuracies", 2 * self.window)
        if now <= max(1.5 * before, before + 0.2) or accuracy > was + 0.02 or accuracy > 0.95:
            return ""
        return (
            f"the margin grew from {before:.2f} to {now:.2f} while accuracy stayed at {accuracy:.0%}: the pairs that "
            "are told apart already are pushed further. Stop earlier, or take label_smoothing, ipo or robust_dpo where "
            "labels are noisy; more or cleaner pairs help more than more steps."
        )


class KLBudget(Once):
    """The policy is further from its reference than it was meant to go."""

    def __init__(self, nats: float, name: str, per_token: bool, window: int = 5) -> None:
        super().__init__(window)
        self.nats, self.name, self.per_token = nats, name, per_token
        self.names = (name, "completions/mean_length") if per_token else (name,)

    def found(self) -> str:
        """The mean over the window, an answer."""
        kl = self.recent(self.name) * (self.recent("completions/mean_length") if self.per_token else 1.0)
        return "" if kl <= self.nats else _past_budget(kl, self.nats)


def _past_budget(kl: float, nats: float) -> str:
    return (
        f"the policy is {kl:.1f} nats an answer from its reference, above kl_budget {nats:g}. Take a larger "
        "beta (online: a larger beta or kl_weight), a smaller learning rate, or stop here."
    )


class DriftBudget(Once):
    """The same of pairs that the policy sampled: the mean log-ratio of its own answers is their KL (of a best and a
    worst among more than two, about)."""

    names = ("logratios/chosen", "logratios/rejected")

    def __init__(self, nats: float, window: int = 5) -> None:
        super().__init__(window)
        self.nats = nats

    def found(self) -> str:
        """The mean over the window, an answer."""
        kl = (self.recent("logratios/chosen") + self.recent("logratios/rejected")) / 2
        return "" if kl <= self.nats else _past_budget(kl, self.nats)


class Lengths(Once):
    """Sampled answers grow or shrink: often what is rewarded is length."""

    names = ("completions/mean_length",)

    def found(self) -> str:
        """By half, or to two thirds, of the first window's."""
        if len(self.lines) < 2 * self.window:
            return ""
        then, now = self.first("completions/mean_length"), self.recent("completions/mean_length")
        if 2 / 3 <= now / then <= 1.5:
            return ""
        return (
            f"answers went from {then:.0f} to {now:.0f} tokens. See whether the reward pays for length: take dr_grpo "
            "or dapo as the normaliser, length-normalised rewards, or a judge that is blind to length."
        )


class PairLengths(Once):
    """Chosen and rejected differ in length, and what the policy learns from them is how long to be."""

    names = ("lengths/chosen", "lengths/rejected")

    def found(self) -> str:
        """Chosen longer by a third, or shorter by a quarter, over the window."""
        ratio = self.recent("lengths/chosen") / max(1.0, self.recent("lengths/rejected"))
        if 0.75 <= ratio <= 4 / 3:
            return ""
        longer = "longer" if ratio > 1 else "shorter"
        return (
            f"chosen answers are {longer} than rejected ones (x{ratio:.2f}): length alone tells them apart. Balance "
            "the pairs (factory pair --length-balanced), or take length_normalised, ld_alpha below 1, or simpo."
        )


class FallSinceStart(Once):
    """Without a reference: good and bad answers both became less likely than when the training began."""

    names = ("logps/chosen", "logps/rejected", "lengths/chosen", "lengths/rejected")

    def __init__(self, window: int = 5, nats: float = 0.1) -> None:
        super().__init__(window)
        self.nats = nats

    def see(self, line: Line) -> str:
        """Silent where log-ratios to a reference say it better."""
        return "" if "logratios/chosen" in line else super().see(line)

    def found(self) -> str:
        """Log-probs a token over the window against those of the first window: both down by `nats` and more. Rows
        differ from step to step, so that less than that says nothing."""
        if len(self.lines) < 2 * self.window:
            return ""
        falls = [self._fall(side) for side in ("chosen", "rejected")]
        if min(falls) < self.nats:
            return ""
        return (
            "chosen and rejected answers both became less likely than at the start of the training "
            f"(by {falls[0]:.2f} and {falls[1]:.2f} nats a token), and no reference holds them. Take a smaller "
            "learning rate, add the chosen answers' negative log-likelihood (add: {sft: 0.2}, or more), or take a "
            "method with a reference."
        )

    def _fall(self, side: str) -> float:
        """Nats a token that an answer has lost."""
        lines = (self.lines[: self.window], self.lines[-self.window :])
        first, last = (
            sum(float(line[f"logps/{side}"]) for line in part) / sum(float(line[f"lengths/{side}"]) for line in part)
            for part in lines
        )
        return first - last


class Saturated(Once):
    """Nothing left to learn from: every pair is told apart with room, or all samples of a prompt earn the same."""

    names = ("rewards/accuracies", "rewards/margins")

    def found(self) -> str:
        """Accuracy at 1 and a margin past 8 over the window."""
        if self.recent("rewards/accuracies") < 0.995 or self.recent("rewards/margins") < 8:
            return ""
        return (
            "every pair is told apart with a margin past 8: the loss is flat and only drift goes on. Stop here, take "
            "fewer epochs, or gather new pairs from the policy as it is now."
        )


class NoSpread(Once):
    """Samples of one prompt all earn the same: groups teach nothing."""

    names = ("frac_reward_zero_std",)

    def found(self) -> str:
        """Nine groups of ten, and more, without spread over the window."""
        share = self.recent("frac_reward_zero_std")
        if share < 0.9:
            return ""
        return (
            f"all samples of a prompt earn the same reward in {share:.0%} of the groups: there is nothing to prefer. "
            "Take harder or easier prompts, a finer reward, more samples (n), or a higher temperature; where the "
            "reward is at its top, stop here."
        )


class Unrewarded(Once):
    """Many samples have no reward: their judge fails, or is not believed."""

    names = ("unjudged", "samples")

    def found(self) -> str:
        """Half of them, and more, over the window."""
        share = self.recent("unjudged") / self.recent("samples")
        if share < 0.5:
            return ""
        return (
            f"{share:.0%} of the samples have no reward and are left out: the column `failure` of the table judgments "
            "says why. Give answers more tokens (max_tokens), add what the judge lacks to the prompts, or take another."
        )


class Exploding(Once):
    """A gradient far beyond what came before."""

    names = ("grad_norm",)

    def found(self) -> str:
        """The newest norm against the median of the others so far."""
        *before, newest = [float(line["grad_norm"]) for line in self.lines]
        usual = statistics.median(before)
        if newest <= 20 * usual or newest <= 1:
            return ""
        return (
            f"the gradient's norm jumped to {newest:.1f}, {newest / max(usual, 1e-9):.0f} times the usual {usual:.2f}. "
            "Lower learning_rate, lengthen warmup, or keep clip at 1; look at the longest rows of this step."
        )


class FlatBeta(Once):
    """beta is so large that the link is flat, or so small that it does not hold the policy."""

    names = ("rewards/margins", "logratios/chosen", "logratios/rejected")

    def found(self) -> str:
        """Rewards are beta times log-ratios: their sizes against each other."""
        margin = abs(self.recent("rewards/margins"))
        drift = max(abs(self.recent("logratios/chosen")), abs(self.recent("logratios/rejected")))
        if margin > 10 and drift < 2 * margin:
            return (
                f"rewards differ by {margin:.0f} at a drift of {drift:.0f} nats: beta is so large that the link is "
                "flat and gradients vanish. Take a smaller beta (0.1 is usual for dpo)."
            )
        if drift > 100 and margin < 0.02 * drift:
            return (
                f"log-probs moved by {drift:.0f} nats while rewards differ by {margin:.2f}: beta is too small to hold "
                "the policy. Take a larger beta, or a smaller learning rate."
            )
        return ""


class Watches:
    """All watches of a training as one."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self.watches = watches

    def see(self, line: Line) -> list[str]:
        """What is to be said after this step."""
        return [text for watch in self.watches if (text := watch.see(line))]


def all_of(config: TrainConfig) -> Watches:
    """The watches for a training with these settings."""
    found: list[Watch] = [
        FallWatch(sft=config.add.get("sft", 0.0)),
        FallSinceStart(),
        FlatAccuracy(),
        Saturated(),
        FlatBeta(),
        Lengths(),
        PairLengths(),
        NoSpread(),
        Unrewarded(),
        Exploding(),
    ]
    if config.kl_budget is not None:
        online = config.online is not None
        found.append(KLBudget(config.kl_budget, "kl", per_token=online))
        if online:
            found.append(DriftBudget(config.kl_budget))
    return Watches(found)
