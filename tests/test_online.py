"""Trainings on answers of the policy's own: every method learns what is rewarded, and a cut one goes on to the same."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.training.online import LiveModels, LiveSampler
from train import losses
from train.batches import FixedRows
from train.config import LoraSpec, OnlineSpec, TrainConfig
from train.data import Ids, PairRow, SampleRow
from train.metrics import timeless
from train.online import Judged, OnlineRows, Rule
from train.packing import Group
from train.policy import Policy, load_policy
from train.trainer import Trainer

SMALL = LoraSpec(r=8)
PROMPTS: list[Ids] = [(5, 6, 7), (8, 9), (10, 11, 12, 13), (14, 15), *((5 + i, 6 + i) for i in range(12))]


def share(prompt: Ids, answer: Ids) -> float | None:
    """The share of an answer's tokens below 100."""
    return sum(token < 100 for token in answer) / len(answer)


@dataclass
class Every:
    """A reward by an answer's place in the batch."""

    value: Callable[[int], float | None]

    def __call__(self, place: int, groups: Sequence[Group]) -> Judged:
        count = itertools.count()
        return Judged([[self.value(next(count)) for _ in g.completions] for g in groups])

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        pass


def load(folder: Path, lora: LoraSpec | None = SMALL) -> Policy:
    return load_policy(str(folder), lora=lora, dtype="float32", device="cpu", trainable=True, seed=0)


def config(method: str, spec: OnlineSpec, **more: Any) -> TrainConfig:
    rate = {"ppo": 1e-2}.get(method, 8e-3)
    return TrainConfig(
        method=method, online=spec, learning_rate=rate, warmup=0.0, schedule="constant", threads=1, **more
    )


def trainer(policy: Policy, settings: TrainConfig, folder: Path, judge: Any = share) -> Trainer:
    frozen = None if policy.has_adapter else copy.deepcopy(policy.model)

    @contextmanager
    def reference() -> Any:
        with policy.without_adapter():
            yield policy.model if frozen is None else frozen

    assert settings.online is not None
    models = LiveModels(policy, policy.trainable(), reference)
    source = OnlineRows(
        PROMPTS, settings.online, losses.get(settings.method), LiveSampler(policy),
        judge if isinstance(judge, Every) else Rule(judge), models, settings.seed,
    )  # fmt: skip
    loop = Trainer(policy, source, settings, folder)
    models.follow_critic(loop.critic)
    return loop


SPECS = {
    "grpo": OnlineSpec(steps=30, prompts=4, n=6, max_tokens=12),
    "rloo": OnlineSpec(steps=30, prompts=4, n=6, max_tokens=12, kl_weight=0.0),
    "ppo": OnlineSpec(steps=30, prompts=4, n=6, max_tokens=12, updates=2, kl_weight=0.0),
    "bond": OnlineSpec(steps=40, prompts=16, n=3, max_tokens=12, anchor_rate=0.3),
    "dpo": OnlineSpec(steps=30, prompts=4, n=6, max_tokens=12),
}


@pytest.mark.parametrize("method", SPECS)
def test_what_is_rewarded_becomes_more_frequent(method: str, tiny_model: Path, tmp_path: Path) -> None:
    """All weights learn: under a frozen head with random weights an adapter has little to say."""
    lines = trainer(load(tiny_model, lora=None), config(method, SPECS[method]), tmp_path).run().lines
    first, last = (sum(line["reward"] for line in part) / len(part) for part in (lines[:6], lines[-6:]))
    assert last > first + 0.1, (first, last)


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_the_first_update_on_samples_has_ratio_one(method: str, tiny_model: Path, tmp_path: Path) -> None:
    spec = OnlineSpec(steps=1, prompts=2, n=3, max_tokens=8)
    loop = trainer(load(tiny_model), config(method, spec), tmp_path)
    rows = loop.source.batch(0).rows
    assert all(isinstance(row, SampleRow) for row in rows)
    loop._settle(rows)
    seen = loop.shape.logps(rows, loop.shape.seen(loop.forward, rows))
    torch.testing.assert_close(seen.policy, seen.old, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.old, seen.ref, rtol=1e-5, atol=1e-5)  # a new adapter changes nothing
    if method == "ppo":
        assert seen.value is not None
        assert not seen.value.any()


def test_a_batch_of_ppo_s_has_advantages_without_a_common_part(tiny_model: Path, tmp_path: Path) -> None:
    """Rewards of 0 or more would make every answer more likely before the critic has learnt."""
    found = {}
    for whiten in (True, False):
        spec = OnlineSpec(steps=1, prompts=3, n=3, max_tokens=8, whiten=whiten)
        loop = trainer(load(tiny_model), config("ppo", spec), tmp_path / str(whiten), Every(lambda i: float(i % 2)))
        rows = [row for row in loop.source.batch(0).rows if isinstance(row, SampleRow)]
        assert all(len(row.advantage) == len(row.completion) for row in rows)
        found[whiten] = torch.tensor([a for row in rows for a in row.advantage])
    assert found[True].mean() == pytest.approx(0, abs=1e-5)
    assert found[True].std() == pytest.approx(1, abs=1e-3)
    assert found[False].min() >= 0
    torch.testing.assert_close(
        found[True], (found[False] - found[False].mean()) / found[False].std(), rtol=1e-3, atol=1e-3
    )


def test_a_batch_of_all_prompts_is_one_epoch_however_many_were_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    loop = trainer(load(tiny_model), config("grpo", OnlineSpec(steps=1, prompts=99, n=2, max_tokens=1)), tmp_path)
    assert loop.source.batch(0).epoch == 1.0


def test_answers_without_a_verdict_are_left_out(tiny_model: Path, tmp_path: Path) -> None:
    some = Every(lambda i: None if i % 3 == 0 else float(i % 3))
    loop = trainer(load(tiny_model), config("grpo", OnlineSpec(steps=1, prompts=2, n=3, max_tokens=6)), tmp_path, some)
    batch = loop.source.batch(0)
    assert len(batch.rows) == 4
    assert batch.said["unjudged"] == 2
    assert {row.reward for row in batch.rows if isinstance(row, SampleRow)} == {1.0, 2.0}


def test_a_batch_that_teaches_nothing_is_said_and_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    policy = load(tiny_model)
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    settings = config("grpo", OnlineSpec(steps=2, prompts=2, n=2, max_tokens=4))
    done = trainer(policy, settings, tmp_path, Every(lambda i: None)).run()
    assert [(line["rows"], line["unjudged"], "reward" in line) for line in done.lines] == [(0, 4, False)] * 2
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable().items())
    [warning] = done.warnings
    assert warning.startswith("none of 2 steps had anything to learn from")
    again = trainer(load(tiny_model), settings, tmp_path, Every(lambda i: None)).run()
    assert again.warnings == [warning]


def test_a_step_that_learns_is_enough(tiny_model: Path, tmp_path: Path) -> None:
    some = Every(lambda i: float(i))
    loop = trainer(load(tiny_model), config("grpo", OnlineSpec(steps=1, prompts=2, n=2, max_tokens=4)), tmp_path, some)
    assert loop.run().warnings == []


def test_pairs_made_on_the_spot_are_best_over_worst(tiny_model: Path, tmp_path: Path) -> None:
    loop = trainer(load(tiny_model), config("dpo", OnlineSpec(steps=1, prompts=4, n=4, max_tokens=8)), tmp_path)
    rows = loop.source.batch(0).rows
    assert rows
    for row in rows:
        assert isinstance(row, PairRow)
        better, worse = share(row.prompt, row.chosen), share(row.prompt, row.rejected)
        assert better is not None
        assert worse is not None
        assert better > worse
        assert row.ref_chosen < 0 > row.ref_rejected


@pytest.mark.parametrize("method", ["grpo", "ppo", "bond"])
def test_a_cut_training_goes_on_to_the_same(method: str, tiny_model: Path, tmp_path: Path) -> None:
    """Cut in the middle of two updates on one batch: the batch is drawn again from the weights that drew it."""
    spec = SPECS[method].model_copy(update={"steps": 4, "updates": 2})
    settings = config(method, spec, save_every=1)
    whole = [timeless(line) for line in trainer(load(tiny_model), settings, tmp_path / "whole").run().lines]
    loop = trainer(load(tiny_model), settings, tmp_path / "cut")
    steps = loop.step

    def until_five(step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return steps(step)

    loop.step = until_five  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    again = [timeless(line) for line in trainer(load(tiny_model), settings, tmp_path / "cut").run().lines]
    assert again == whole


def test_fixed_rows_have_no_state() -> None:
    source = FixedRows([PairRow((1,), (2,), (3,))], 1, 1, 0)
    assert source.state() == {}
    assert source.whole(0)
