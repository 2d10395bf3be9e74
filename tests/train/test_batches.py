"""Every row once an epoch, in an order that the seed and the step decide."""

from __future__ import annotations

from hypothesis import given, strategies as st

from tests.train.conftest import label_rows, pair_rows
from train.batches import FixedRows, micro_batches, tokens_of


@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 3), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(count: int, size: int, epochs: int, seed: int) -> None:
    rows = pair_rows(count)
    source = FixedRows(rows, size, epochs, seed)
    for epoch in range(epochs):
        steps = range(epoch * source.per_epoch, (epoch + 1) * source.per_epoch)
        assert sorted(row for step in steps for row in source.batch(step).rows) == sorted(rows)
        assert source.batch(steps[-1]).epoch == epoch + 1
    assert source.steps == epochs * source.per_epoch


def test_epochs_have_orders_of_their_own_and_a_seed_repeats_them() -> None:
    rows = pair_rows(16)
    source = FixedRows(rows, 16, 2, 7)
    assert source.batch(0).rows != source.batch(1).rows
    assert source.batch(1).rows == FixedRows(rows, 16, 2, 7).batch(1).rows
    assert source.batch(0).rows != FixedRows(rows, 16, 2, 8).batch(0).rows


def test_the_hash_is_of_rows_and_order() -> None:
    rows = pair_rows(6)
    base = FixedRows(rows, 2, 1, 0).hash
    changed = [rows[0]._replace(ref_chosen=-1.0), *rows[1:]]
    others = [FixedRows(changed, 2, 1, 0), FixedRows(rows, 3, 1, 0), FixedRows(rows, 2, 2, 0), FixedRows(rows, 2, 1, 1)]
    assert base == FixedRows(list(rows), 2, 1, 0).hash
    assert base not in {other.hash for other in others}


@given(st.integers(1, 20), st.integers(1, 120))
def test_micro_batches_hold_all_rows_within_the_limit(count: int, limit: int) -> None:
    rows = label_rows(count)
    parts = list(micro_batches(rows, limit))
    assert sorted(row for part in parts for row in part) == sorted(rows)
    assert all(len(part) == 1 or sum(tokens_of(row) for row in part) <= limit for part in parts)
