"""Worlds: their truth is what their names say, before any measurement."""

from __future__ import annotations

import math

import numpy as np
import pytest

from factory.simulation.worlds import ROUNDS, WORLDS, Course, World, course, kinds

SEEDS = range(20)


def courses(kind: str) -> list[tuple[World, Course]]:
    return [(w, course(w, np.random.default_rng(seed))) for w in WORLDS if w.kind == kind for seed in SEEDS]


def test_every_kind_has_two_worlds_to_tune_in_and_two_to_report_on() -> None:
    assert {world.kind for world in WORLDS} == set(kinds.names())
    assert len({world.name for world in WORLDS}) == len(WORLDS)
    for kind in kinds.names():
        for part in ("tune", "report"):
            found = [w for w in WORLDS if w.kind == kind and w.part == part]
            assert sorted(w.measure for w in found) == ["judge", "verifier"]
    tuned = {(w.kind, w.measure, w.rise) for w in WORLDS if w.part == "tune"}
    assert not tuned & {(w.kind, w.measure, w.rise) for w in WORLDS if w.part == "report"}


@pytest.mark.parametrize("kind", kinds.names())
def test_numbers_are_possible_and_the_start_is_the_start(kind: str) -> None:
    for world, run in courses(kind):
        for values in (run.quality, run.proxy, run.distinct_2, run.degenerate, run.ties):
            assert values.shape == (ROUNDS + 1,)
            assert ((values >= 0) & (values <= 1)).all()
        assert run.kl[0] == 0
        assert run.length[0] == 1
        assert run.proxy[0] == 0.5
        assert math.isnan(run.margin[0])
        assert run.quality[0] == 0.5 if world.measure == "judge" else 0.2 <= run.quality[0] <= 0.4
        assert run.quality[run.best_round] >= run.worth_keeping
        assert (run.quality[: run.best_round] < run.worth_keeping).all()


def test_steady_gain_rises_to_the_end() -> None:
    for _, run in courses("steady_gain"):
        assert (np.diff(run.quality) > 0.005).all()
        assert run.best_round >= ROUNDS - 1


def test_a_plateau_saturates() -> None:
    for _, run in courses("plateau"):
        assert (np.diff(run.quality) >= 0).all()
        assert run.quality[-1] - run.quality[-3] < 0.01


@pytest.mark.parametrize("kind", ["over_optimisation", "length_hacking", "collapse"])
def test_truth_falls_where_the_proxy_rises(kind: str) -> None:
    for _, run in courses(kind):
        peak = int(run.quality.argmax())
        assert peak < ROUNDS
        assert run.quality[-1] < run.quality[peak]
        assert run.proxy[-1] >= run.proxy[peak]


def test_only_a_collapse_breaks_answers_and_only_length_hacking_makes_them_much_longer() -> None:
    for world in WORLDS:
        run = course(world, np.random.default_rng(3))
        assert (run.degenerate[-1] > 0.1) == (world.kind == "collapse")
        assert (run.length[-1] > 3) == (world.kind == "length_hacking")


def test_noise_has_no_trend() -> None:
    ends = [run.quality[-1] - run.quality[0] for _, run in courses("noise_only")]
    assert abs(float(np.mean(ends))) < 0.005


def test_a_run_is_its_seed() -> None:
    for world in WORLDS[::5]:
        one, other = (course(world, np.random.default_rng(7)) for _ in range(2))
        assert (one.quality == other.quality).all()
        assert one.flips == other.flips
