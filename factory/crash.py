"""Named points at which a test may kill the process, as `kill -9` would.

`FACTORY_CRASH=name` kills at the first passing of that point, `FACTORY_CRASH=name:3` at the third (counted in each
process). Every point has its name in POINTS, so that the kill test can go over all of them.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

from factory.registry import unknown_name

VARIABLE = "FACTORY_CRASH"

POINTS: tuple[str, ...] = (
    "store.create.before_commit",
    "store.append.before_commit",
    "store.append.after_commit",
    "store.seal.before_write",
    "store.seal.after_write",
    "store.seal.after_rename",
    "store.seal.before_commit",
    "store.seal.after_commit",
    "calls.after_append",
    "generation.before_candidates",
    "revise.before_candidates",
    "labelling.after_append",
    "train.after_score",
    "train.after_step",
    "train.mid_checkpoint",
    "train.before_policy",
    "train.after_policy",
    "evaluate.after_answers",
    "evaluate.after_verdicts",
    "evaluate.after_scores",
    "round.before_mark",
    "round.after_mark",
    "round.before_report",
    "round.after_report",
)

_passed: Counter[str] = Counter()


def point(name: str) -> None:
    """Die here by SIGKILL if the environment says so. ValueError: the name is not in POINTS."""
    wanted = os.environ.get(VARIABLE)
    if name not in POINTS:
        raise ValueError(f"crash point {name!r} is not in factory.crash.POINTS")
    if not wanted:
        return
    target, _, count = wanted.partition(":")
    if target not in POINTS:
        raise unknown_name("crash point", target, POINTS)
    if target != name:
        return
    _passed[name] += 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
