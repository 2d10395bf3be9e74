"""The simulator: what is measured is the truth with the error that real evaluations have, and cells count rightly."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from factory.cli import app
from factory.faults import FactoryError
from factory.simulation.measuring import measured, paired
from factory.simulation.playing import Cell, Played, cells, play
from factory.simulation.table import chosen, markdown, rows, summary
from factory.simulation.worlds import ROUNDS, WORLDS, World, course
from factory.stopping import MaxRounds, NoGain, StopConfig

BY_NAME = {world.name: world for world in WORLDS}
STEADY, NOISE = BY_NAME["steady_gain large verifier"], BY_NAME["noise_only small verifier"]


def factory(*words: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *words])


# ------------------------------------------------------------------------------------------------------ measurement


def test_intervals_of_pass_rates_hold_the_truth() -> None:
    """11 rounds of 40 runs: about 95% of the intervals, rounds of one run hanging together."""
    held = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = course(STEADY, rng)
        for (evidence, _), quality in zip(measured(STEADY, truth, 300, rng), truth.quality, strict=True):
            rate = evidence.report.pass_rate
            assert rate is not None
            held.append(rate.low <= quality <= rate.high)
    assert 0.90 < sum(held) / len(held) <= 1


def test_a_judge_that_errs_pulls_win_rates_towards_a_half() -> None:
    world = BY_NAME["plateau large judge"]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = course(world, rng)
        last = measured(world, truth, 20_000, rng)[-1][0].report
        labelling, other = last.judged
        assert labelling.independent is False
        assert other.independent is True
        assert other.win_rate is not None
        expected = (truth.accuracy * truth.quality[-1] + (1 - truth.accuracy) * (1 - truth.quality[-1])) - 0.5
        assert other.length_controlled is not None
        assert other.length_controlled.value - 0.5 == pytest.approx(expected * (1 - truth.judge_ties), abs=0.03)
        assert last.pass_rate is None


def test_length_control_takes_most_of_a_judges_love_of_length() -> None:
    world = BY_NAME["length_hacking large judge"]
    rng = np.random.default_rng(1)
    truth = course(world, rng)
    other = measured(world, truth, 5000, rng)[-1][0].report.judged[1]
    assert other.win_rate is not None
    assert other.length_controlled is not None
    assert other.win_rate.value - other.length_controlled.value > 0.05


def test_outcomes_of_a_prompt_hang_together_between_rounds() -> None:
    rng = np.random.default_rng(2)
    truth = course(NOISE, rng)
    passed = [outcome for _, outcome in measured(NOISE, truth, 5000, rng)]
    assert passed[3] is not None
    assert passed[4] is not None
    assert np.corrcoef(passed[3], passed[4])[0, 1] > 0.15


def test_a_gain_is_paired_by_prompt() -> None:
    """100 prompts, 40 passed now, 30 then, 25 both: +10 points, narrower than if the two knew nothing of each other."""
    gain = paired(25, 40, 30, 100)
    assert gain.value == pytest.approx(0.1)
    assert gain.high - gain.low < paired(12, 40, 30, 100).high - paired(12, 40, 30, 100).low


# --------------------------------------------------------------------------------------------------------------- play


def test_a_run_is_its_seed_and_ends_with_the_world() -> None:
    endless = StopConfig(any=())
    one, other = (play(STEADY, endless, 100, 5) for _ in range(2))
    assert one == other
    assert (one.stopped, one.rule) == (ROUNDS, "max_rounds")
    assert play(STEADY, StopConfig(any=(MaxRounds(rounds=3),)), 100, 5).stopped == 3


def test_the_default_rules_tell_steady_gains_from_noise() -> None:
    """At 2,000 prompts, with the rules as they are shipped."""
    steady, noise = (next(cells([w], StopConfig(), runs=12, prompts=[2000])) for w in (STEADY, NOISE))
    assert steady.false_alarms is not None
    assert steady.false_alarms.value <= 1 / 12
    assert steady.given_back.value >= 11 / 12
    assert noise.stopped < 6
    assert noise.false_alarms is None


def test_the_same_truth_is_seen_at_every_number_of_prompts() -> None:
    small, large = cells([NOISE], StopConfig(), runs=4, prompts=[50, 100])
    assert [r.best_round for r in small.runs] == [r.best_round for r in large.runs]


# -------------------------------------------------------------------------------------------------------------- cells


def cell(world: World, *runs: Played) -> Cell:
    return Cell(world, 2000, runs, patience=2)


def test_in_time_is_from_the_best_to_patience_and_one_rounds_later() -> None:
    def stopped(at: int) -> Played:
        return Played(at, "no_gain", 3, 3, 0.99)

    found = cell(NOISE, *(stopped(at) for at in (2, 3, 6, 7)))
    assert found.in_time.value == 0.5
    assert found.too_early.value == 0.25
    assert found.stopped == 4.5
    assert found.misses == ["in time"]


def test_given_back_false_alarms_and_rules_are_counted() -> None:
    runs = (Played(10, "max_rounds", 10, 10, 1.0), Played(4, "no_gain", 4, 10, 0.7))
    found = cell(STEADY, *runs)
    assert found.false_alarms is not None
    assert found.false_alarms.value == 0.5
    assert found.given_back.value == 0.5
    assert found.kept == pytest.approx(0.85)
    assert found.by_rule == {"max_rounds": 1, "no_gain": 1}
    assert found.misses == ["false alarms", "given back"]
    assert "0 of 1 at 2,000 prompts" in summary([found])
    assert json.loads(json.dumps(rows([found]), allow_nan=False))[0]["false_alarms"][0] == 0.5
    assert "| **50** | **50** | 85.0 | 7.0 |" in markdown([found])


def test_worlds_are_chosen_by_part_kind_and_name() -> None:
    assert chosen(["all"]) == list(WORLDS)
    assert {w.part for w in chosen(["report"])} == {"report"}
    assert [w.kind for w in chosen(["collapse", "collapse small judge"])] == ["collapse"] * 4
    with pytest.raises(FactoryError, match="did you mean 'plateau'"):
        chosen(["platau"])


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command_prints_every_form() -> None:
    few = ("--worlds", "noise_only small verifier", "--runs", "2", "--prompts", "50,100")
    said = factory(*few)
    assert said.exit_code == 0, said.output
    assert "noise_only small verifier" in said.stdout
    assert "worlds that meet their aims" in said.stdout
    told = json.loads(factory(*few, "--format", "json").stdout)
    assert [row["prompts"] for row in told] == [50, 100]
    lines = list(csv.DictReader(io.StringIO(factory(*few, "--format", "csv").stdout)))
    assert [line["world"] for line in lines] == ["noise_only small verifier"] * 2
    assert math.isclose(float(lines[0]["kept"]), told[0]["kept"])
    assert factory(*few, "--format", "markdown").stdout.startswith("| world |")


def test_a_recipes_own_stop_section_is_tried() -> None:
    said = factory(
        "--recipe", "quickstart", "--set", "stop.any=[{rule: max_rounds, rounds: 1}]", "--worlds", "noise_only",
        "--runs", "1", "--prompts", "50", "--format", "json",
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    assert {row["stopped"] for row in json.loads(said.stdout)} == {1.0}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--prompts", "5"), "numbers from 10"),
        (("--prompts", "200,x"), "numbers from 10"),
        (("--worlds", "platau"), "did you mean 'plateau'"),
        (("--set", "seed=1"), "name one with --recipe"),
    ],
)
def test_faults_are_told_with_a_cure(words: tuple[str, ...], told: str) -> None:
    said = factory(*words)
    assert said.exit_code == 2
    assert told in said.stderr


def test_patience_of_the_window_is_the_rules() -> None:
    found = next(cells([NOISE], StopConfig(any=(NoGain(patience=3),)), runs=1, prompts=[50]))
    assert found.patience == 3
