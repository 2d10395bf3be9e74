"""Every watch speaks once when its fault is there, names the remedy, and is silent on a sound training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from train.config import OnlineSpec, TrainConfig
from train.watches import (
    DriftBudget,
    Exploding,
    FallSinceStart,
    FlatAccuracy,
    FlatBeta,
    KLBudget,
    Lengths,
    NoSpread,
    PairLengths,
    Saturated,
    Unrewarded,
    Watch,
    all_of,
)


def sound(step: int) -> dict[str, Any]:
    """A DPO training as it should go: margins and accuracy rise together, the chosen hold, lengths are alike."""
    done = step / 60
    return {
        "step": step,
        "loss": 0.69 - 0.4 * done,
        "grad_norm": 1.0 + 0.3 * (step % 3),
        "rewards/margins": 0.05 + 1.5 * done,
        "rewards/accuracies": 0.5 + 0.45 * done,
        "logratios/chosen": 0.5 * done,
        "logratios/rejected": -12 * done,
        "lengths/chosen": 100.0 + step % 7,
        "lengths/rejected": 98.0,
    }


def unheld(step: int, fall: float = 0.0) -> dict[str, Any]:
    """Without a reference, as SimPO: log-probs of other rows at each step, `fall` nats a token less at the end."""
    logps = {
        side: -length * (1.5 + 0.04 * (step % 2) + fall * step / 60)
        for side, length in (("chosen", 60), ("rejected", 50))
    }
    return (
        {"step": step}
        | {f"logps/{s}": v for s, v in logps.items()}
        | {"lengths/chosen": 60.0, "lengths/rejected": 50.0}
    )


def sampled(step: int) -> dict[str, Any]:
    """An online training as it should go."""
    return {
        "step": step,
        "reward": 0.2 + step / 100,
        "frac_reward_zero_std": 0.25,
        "unjudged": 3.0,
        "samples": 32.0,
        "kl": 0.01,
        "completions/mean_length": 80.0 + step % 5,
        "grad_norm": 0.5,
    }


CASES: list[tuple[str, Callable[[], Watch], Callable[[int], dict[str, Any]], str]] = [
    ("margin up, accuracy flat", FlatAccuracy, lambda s: sound(s) | {"rewards/accuracies": 0.7}, "label_smoothing"),
    (
        "told apart with room",
        Saturated,
        lambda s: sound(s) | {"rewards/accuracies": 1.0, "rewards/margins": 9.0},
        "fewer epochs",
    ),
    (
        "beta too large",
        FlatBeta,
        lambda s: sound(s) | {"rewards/margins": 30.0, "logratios/rejected": -15.0},
        "smaller beta",
    ),
    (
        "beta too small",
        FlatBeta,
        lambda s: sound(s) | {"rewards/margins": 0.5, "logratios/rejected": -300.0},
        "larger beta",
    ),
    ("chosen longer", PairLengths, lambda s: sound(s) | {"lengths/chosen": 200.0}, "--length-balanced"),
    ("chosen shorter", PairLengths, lambda s: sound(s) | {"lengths/chosen": 50.0}, "shorter"),
    ("answers grow", Lengths, lambda s: sampled(s) | {"completions/mean_length": 50.0 + 3 * s}, "dr_grpo"),
    ("answers shrink", Lengths, lambda s: sampled(s) | {"completions/mean_length": 100.0 - 2 * min(s, 40)}, "tokens"),
    ("all alike", NoSpread, lambda s: sampled(s) | {"frac_reward_zero_std": 0.95}, "temperature"),
    ("no rewards", Unrewarded, lambda s: sampled(s) | {"unjudged": 20.0}, "column `failure`"),
    (
        "far in pairs",
        lambda: DriftBudget(5.0),
        lambda s: sound(s) | {"logratios/chosen": 9.0, "logratios/rejected": 4.0},
        "kl_budget 5",
    ),
    ("both fall, no reference", FallSinceStart, lambda s: unheld(s, fall=0.5), "no reference holds them"),
    ("a jump", Exploding, lambda s: sound(s) | {"grad_norm": 400.0 if s == 30 else 1.0}, "learning_rate"),
    ("far from the reference", lambda: KLBudget(5.0, "kl", True), lambda s: sampled(s) | {"kl": 0.1}, "kl_budget 5"),
    ("far from the reference, kto", lambda: KLBudget(5.0, "kl", False), lambda s: {"kl": float(s)}, "larger beta"),
]


def told(watch: Watch, lines: Iterable[dict[str, Any]]) -> list[str]:
    return [text for line in lines if (text := watch.see(line))]


@pytest.mark.parametrize(("name", "make", "line", "remedy"), CASES, ids=[case[0] for case in CASES])
def test_a_fault_is_told_once_with_its_remedy(
    name: str, make: Callable[[], Watch], line: Callable[[int], dict[str, Any]], remedy: str
) -> None:
    [text] = told(make(), (line(step) for step in range(60)))
    assert remedy in text


@pytest.mark.parametrize("line", [sound, sampled, unheld])
def test_a_sound_training_hears_nothing(line: Callable[[int], dict[str, Any]]) -> None:
    watches = all_of(TrainConfig(kl_budget=10, online=OnlineSpec() if line is sampled else None))
    assert [text for step in range(60) for text in watches.see(line(step))] == []


def test_one_side_that_falls_is_no_fall() -> None:
    def of_rejected(step: int) -> dict[str, Any]:
        return unheld(step) | {"logps/rejected": unheld(step, fall=0.5)["logps/rejected"]}

    assert told(FallSinceStart(), map(of_rejected, range(60))) == []


def test_with_a_reference_the_log_ratios_say_it() -> None:
    assert told(FallSinceStart(), (sound(s) | unheld(s, fall=0.5) for s in range(60))) == []


def test_lines_without_the_numbers_are_passed_over() -> None:
    assert told(FlatBeta(window=1), [{"loss": 1.0}, {"reward": 2.0}]) == []


def test_a_training_that_goes_on_is_told_the_same() -> None:
    """A watch is a function of the lines it has seen: told the kept ones first, it speaks at the same step."""
    lines = [sound(s) | {"rewards/accuracies": 0.7} for s in range(60)]
    at = next(i for i in range(60) if told(FlatAccuracy(), lines[: i + 1]))
    early, late = FlatAccuracy(), FlatAccuracy()
    assert told(early, lines[:at]) == []
    assert told(early, lines[at:]) == told(FlatAccuracy(), lines)
    assert len(told(late, lines[: at + 1])) == 1
    assert told(late, lines[at + 1 :]) == []
