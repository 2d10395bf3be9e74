"""The reference's log-probs of the rows, kept in the store: computed once for all trainings on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from factory import crash
from factory.schema import Logp, digest, now, unique

if TYPE_CHECKING:
    from factory.store import Store
    from train.data import Encoded


def reference_logps(
    store: Store,
    rows: Sequence[Encoded],
    model_hash: str,
    dtype: str,
    scorer: Callable[[], AbstractContextManager[Any]],
) -> list[float]:
    """The log-probability of every row, nats: from the store where it is kept, else computed once and kept.

    `scorer` opens the model, and is not called when nothing is missing. What a killed pass left is computed in the
    same batches as it would have been, so to the same bits.
    """
    keys = logp_keys(rows, model_hash, dtype)
    wanted = set(store.missing("logps", keys))
    if wanted:
        from train.logps import score

        with scorer() as model:
            for batch in score(model, rows, needed=lambda i: keys[i] in wanted):
                store.append("logps", [
                    Logp(key=keys[i], model_hash=model_hash, dtype=dtype, logprob=s.logp, tokens=s.tokens, at=now())
                    for i, s in zip(batch.rows, batch.logps, strict=True)
                ])  # fmt: skip
                crash.point("train.after_score")
    held = store.read("logps", columns=["key", "logprob"], where={"key": unique(keys)})
    by_key = {row["key"]: row["logprob"] for row in held}
    return [by_key[key] for key in keys]


def logp_keys(rows: Sequence[Encoded], model_hash: str, dtype: str) -> list[str]:
    """The key that each row's log-prob is kept under."""
    return [digest(model_hash, dtype, row.prompt_ids, row.completion_ids) for row in rows]
