"""A training in five numbers, from its metrics."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from reported_run import metrics

from factory import report as reports
from factory.report import (
    training_of,
)


def test_training_takes_quarters() -> None:
    """Eight steps: the last two against the first two. Chosen +2 over 7 steps: 6/7 of the way; margins .6 and .7."""
    found = training_of(metrics(2.0, -9.0))
    assert found is not None
    assert found.steps == 8
    assert found.margin == pytest.approx(0.65)
    assert found.accuracy == pytest.approx(0.825)
    assert found.chosen == pytest.approx(2.0 * 6 / 7)
    assert found.rejected == pytest.approx(-9.0 * 6 / 7)


def test_training_goes_by_log_ratios_where_they_are_logged() -> None:
    """The last two of eight steps against the first: -3.25 and -1.625, whatever batch the log-probs are of."""
    steps = [
        row | {"logratios/chosen": -0.5 * i, "logratios/rejected": -0.25 * i} for i, row in enumerate(metrics(9, 9))
    ]
    found = training_of(steps)
    assert found is not None
    assert found.chosen == pytest.approx(-3.25)
    assert found.rejected == pytest.approx(-1.625)


def test_training_without_metrics_or_with_odd_ones() -> None:
    assert training_of([]) is None
    assert training_of([{"step": 1, "eval": 3}]) is None
    odd = training_of([{"loss": 0.5, "rewards/margins": math.nan}, {"loss": 0.4, "logps/chosen": "x"}])
    assert odd is not None
    assert (odd.steps, odd.margin, odd.chosen, odd.rejected) == (2, None, None, None)


def test_metrics_are_read_up_to_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert reports.read_metrics(path) == []
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"step": 3, "lo')
    assert reports.read_metrics(path) == [{"step": 1}, {"step": 2}]
