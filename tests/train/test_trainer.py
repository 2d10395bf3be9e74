"""The loop: its gradient is the objective's over the effective batch, and a killed training ends with the same bits."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import crash
from factory.faults import FactoryError
from tests.train.conftest import completion_rows, label_rows, pair_rows, sample_rows
from train import losses
from train.batches import FixedRows, Row
from train.config import LoraSpec, TrainConfig
from train.data import PairRow
from train.logps import PlainForward, completion_logps
from train.metrics import read, timeless
from train.packing import Group
from train.policy import Policy, load_policy
from train.shapes import of
from train.trainer import Trainer, learning_rate

Loader = Callable[..., Policy]
METHODS = losses.objectives.names()
ROWS = {"pairs": pair_rows, "scores": pair_rows, "labels": label_rows, "completions": completion_rows,
        "groups": sample_rows}  # fmt: skip


def rows_for(method: str, count: int, seed: int = 0) -> Sequence[Row]:
    return ROWS[losses.get(method).data](count, seed)


def loaded_for(policy: Loader, method: str) -> Policy:
    """The tiny model with the head that the method trains."""
    return policy(head="score") if losses.get(method).data == "scores" else policy()


def config(method: str = "dpo", **more: Any) -> TrainConfig:
    return TrainConfig(**({"method": method, "threads": 1, "learning_rate": 1e-2, "epochs": 1} | more))


def trainer(policy: Policy, rows: Sequence[Row], settings: TrainConfig, folder: Path) -> Trainer:
    source = FixedRows(rows, settings.batch_size, settings.epochs, settings.seed)
    return Trainer(policy, source, settings, folder, "model")


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.trainable().items()}


def gradients(policy: Policy, rows: Sequence[Row], settings: TrainConfig, folder: Path) -> list[torch.Tensor]:
    """What one step's optimiser is given."""
    seen: list[torch.Tensor] = []
    loop = trainer(policy, rows, settings, folder)
    loop.optimiser.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in loop.weights.values() if p.grad is not None)
    )
    loop.run()
    return seen


# --------------------------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_the_same_whole_or_row_by_row(policy: Loader, method: str, tmp_path: Path) -> None:
    """Eight rows at once, and 1 x 8 accumulated, with row weights, a further term and KTO's baseline."""
    rows = rows_for(method, 8)
    settings = config(method, add={"sft": 0.3}, clip=None)
    whole, parts = (
        gradients(
            loaded_for(policy, method), rows, settings.model_copy(update={"micro_batch_tokens": size}), tmp_path / name
        )
        for size, name in ((10**6, "whole"), (1, "parts"))
    )
    assert len(whole) == len(parts) > 0
    for one, other in zip(whole, parts, strict=True):
        assert float((one - other).norm()) <= 1e-5 * float(one.norm()) + 1e-9
    lines = [timeless(read(tmp_path / name / "metrics.jsonl")[0]) for name in ("whole", "parts")]
    assert lines[0] == pytest.approx(lines[1], rel=1e-4, abs=1e-4)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("orpo", {"nll_of_prompt": True}),
    ("hinge", {"ld_alpha": 0.3}),
    ("dpo", {"f_divergence": "js"}),
    ("robust_dpo", {"length_normalised": True, "ld_alpha": 0.7}),
    ("reward_model", {"margin": True, "centring": 0.01}),
    ("sft", {"mean_over": "answers"}),
    ("grpo", {"normalise": "dapo", "clip_high": 0.28, "beta": 0.1, "kl_ratio": True}),
    ("grpo", {"normalise": "dr_grpo", "longest": 12, "sequence_ratio": True}),
]


@pytest.mark.parametrize(("method", "parameters"), [*((method, {}) for method in METHODS), *OPTIONS])
def test_the_gradient_is_the_objectives(
    policy: Loader, method: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    """Against the model's own forward, row by row, and sum(loss * weight) / sum(weight) written out."""
    rows = rows_for(method, 5)
    settings = config(method, clip=None, batch_size=5, parameters=parameters)
    got = gradients(loaded_for(policy, method), rows, settings, tmp_path)

    loaded = loaded_for(policy, method)
    objective, shape, plain = losses.get(method), of(losses.get(method), parameters), PlainForward(loaded.model)
    if objective.critic:
        shape.critic = torch.nn.Linear(64, 1)
        for parameter in shape.critic.parameters():
            torch.nn.init.zeros_(parameter)
    supplied: dict[str, Any] = {"shift": 0.0} if "shift" in objective.supplied else {}
    if "kl" in objective.supplied:
        others = [Group(r.prompt, [r.other]) for r in rows if r.other]
        refs = torch.tensor([r.ref_other for r in rows if r.other])
        with torch.no_grad():
            supplied["kl"] = (completion_logps(plain, others) - refs).mean().clamp(min=0)
    way = shape.way(loaded.model, rows) if objective.data == "scores" else plain
    outcome = objective(shape.logps(rows, shape.seen(way, rows)), **parameters, **supplied)
    weight = outcome.weight * torch.tensor([r.weight for r in rows])
    loss = (outcome.loss * weight).sum() / weight.sum()
    of_critic = [] if shape.critic is None else list(shape.critic.parameters())
    wanted = torch.autograd.grad(loss, [*loaded.trainable().values(), *of_critic])

    assert read(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(got, wanted, strict=True):
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm()) + 1e-8


def first_tokens(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...], count: int) -> float:
    return float(completion_logps(PlainForward(model), [Group(prompt, [answer[:count]])]))


def test_heads_are_sums_over_the_first_tokens(policy: Loader) -> None:
    """As many as the shorter answer has, and the same as scoring the cut answer by itself."""
    rows, loaded = pair_rows(4, seed=3), policy()
    shape = of(losses.get("ld_dpo"), {})
    found = shape.logps(rows, shape.seen(PlainForward(loaded.model), rows))
    for i, row in enumerate(rows):
        least = min(len(row.chosen), len(row.rejected))
        assert float(found.chosen_head[i]) == pytest.approx(
            first_tokens(loaded.model, row.prompt, row.chosen, least), rel=1e-5
        )
        assert float(found.rejected_head[i]) == pytest.approx(
            first_tokens(loaded.model, row.prompt, row.rejected, least), rel=1e-5
        )


def test_the_reference_scores_heads_where_they_are_needed() -> None:
    row = PairRow((5, 6), (7, 8, 9), (10,))
    plain, heads = of(losses.get("dpo"), {}), of(losses.get("ld_dpo"), {})
    assert [e.completion_ids for e in plain.scored(row)] == [(7, 8, 9), (10,)]
    assert [e.completion_ids for e in heads.scored(row)] == [(7, 8, 9), (10,), (7,)]
    kept = heads.with_reference(row, [-9.0, -4.0, -3.0])
    assert (kept.ref_chosen, kept.ref_chosen_head, kept.ref_rejected_head) == (-9.0, -3.0, -4.0)
    turned = row._replace(chosen=(10,), rejected=(7, 8, 9))
    kept = heads.with_reference(turned, [-4.0, -9.0, -3.0])
    assert (kept.ref_rejected, kept.ref_chosen_head, kept.ref_rejected_head) == (-9.0, -4.0, -3.0)


def test_the_prompts_own_tokens(policy: Loader) -> None:
    """A prompt of one token predicts none of its own."""
    rows, loaded = [PairRow((5, 6, 7), (8,), (9, 10)), PairRow((5,), (8,), (9,))], policy()
    shape = of(losses.get("orpo"), {"nll_of_prompt": True})
    found = shape.logps(rows, shape.seen(PlainForward(loaded.model), rows))
    wanted = completion_logps(PlainForward(loaded.model), [Group((5,), [(6, 7)])])
    assert found.prompt.tolist() == pytest.approx([float(wanted), 0.0], rel=1e-5)
    assert found.prompt_len.tolist() == [2, 0]


@pytest.mark.parametrize("weighting", ["wpo", "wpo_plain"])
def test_wpo_weighs_by_how_usual_the_answers_are(policy: Loader, weighting: str, tmp_path: Path) -> None:
    """exp(mean(log p - log sum p^2)) of both answers, from the model's own logits."""
    rows = [row._replace(weight=1.0) for row in pair_rows(4)]
    lines = trainer(policy(), rows, config(batch_size=4, weighting=weighting), tmp_path).run().lines
    model = policy().model

    def usual(prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = logps.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        return float((own - (2 * logps).logsumexp(-1)).mean().exp())

    weights = torch.tensor([usual(r.prompt, r.chosen) * usual(r.prompt, r.rejected) for r in rows])
    plain = PlainForward(model)
    shape = of(losses.get("dpo"), {})
    loss = losses.get("dpo")(shape.logps(rows, shape.seen(plain, rows))).loss.detach()
    wanted = (loss * weights).sum() / (weights.sum() if weighting == "wpo" else 4)
    assert lines[0]["loss"] == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("method", ["bco", "bco_pair"])
def test_the_shift_is_the_mean_reward_of_the_steps_before(policy: Loader, method: str, tmp_path: Path) -> None:
    settings = config(method, batch_size=4, epochs=2, schedule="constant", warmup=0.0)
    rows = rows_for(method, 8)
    seen: list[torch.Tensor] = []
    loop = trainer(policy(), rows, settings, tmp_path)
    rewards = loop.shape.rewards
    loop.shape.rewards = lambda outcome: (seen.append(rewards(outcome)), seen[-1])[1]  # type: ignore[method-assign]
    lines = loop.run().lines
    assert lines[0]["shift"] == 0.0
    for step in range(1, 4):
        assert lines[step]["shift"] == pytest.approx(float(torch.cat(seen[:step]).mean()), rel=1e-5)


def test_the_shift_is_kept_over_a_kill(policy: Loader, tmp_path: Path) -> None:
    settings = config("bco", batch_size=4, epochs=3, save_every=2)
    rows = label_rows(8)
    whole = [timeless(line) for line in trainer(policy(), rows, settings, tmp_path / "whole").run().lines]
    loop = trainer(policy(), rows, settings, tmp_path / "cut")
    steps = loop.step

    def until_three(step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return steps(step)

    loop.step = until_three  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    again = [timeless(line) for line in trainer(policy(), rows, settings, tmp_path / "cut").run().lines]
    assert again == whole
    assert whole[-1]["shift"] != 0.0


def test_the_further_term_is_the_mean_nll_per_token(policy: Loader, tmp_path: Path) -> None:
    """The loss with add: {sft: 2} minus the loss without is 2 * mean(-logp / length) of the chosen (weights 1)."""
    rows = [row._replace(weight=1.0) for row in pair_rows(4)]
    plain = trainer(policy(), rows, config(batch_size=4), tmp_path / "a")
    added = trainer(policy(), rows, config(batch_size=4, add={"sft": 2.0}), tmp_path / "b")
    loss, with_term = (loop.run().lines[0]["loss"] for loop in (plain, added))
    model = policy().model
    sums = completion_logps(PlainForward(model), [Group(r.prompt, [r.chosen]) for r in rows])
    nll = -(sums / torch.tensor([len(r.chosen) for r in rows])).mean().item()
    assert with_term - loss == pytest.approx(2 * nll, rel=1e-4)


def test_the_baseline_of_kto_is_over_the_whole_batch_of_mismatched_pairs(policy: Loader, tmp_path: Path) -> None:
    rows = [row._replace(ref_other=-9.0 * len(row.other)) for row in label_rows(8)]
    lines = trainer(policy(), rows, config("kto", micro_batch_tokens=1), tmp_path).run().lines
    others = completion_logps(PlainForward(policy().model), [Group(r.prompt, [r.other]) for r in rows])
    wanted = (others - torch.tensor([r.ref_other for r in rows])).mean().item()
    assert wanted > 0
    assert lines[0]["kl"] == pytest.approx(wanted, rel=1e-5)


def test_one_prompt_alone_has_no_baseline(policy: Loader, tmp_path: Path) -> None:
    rows = [row._replace(prompt=(5, 6), other=()) for row in label_rows(3)]
    assert trainer(policy(), rows, config("kto"), tmp_path).run().lines[0]["kl"] == 0.0


# ------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("method", [name for name in METHODS if losses.get(name).data != "groups"])
def test_training_raises_the_margin_on_its_data(policy: Loader, method: str, tmp_path: Path) -> None:
    rows = rows_for(method, 12)
    settings = config(method, epochs=6, batch_size=4, learning_rate=5e-3, schedule="constant")
    lines = trainer(loaded_for(policy, method), rows, settings, tmp_path).run().lines
    measure = "rewards/margins" if "rewards/margins" in lines[0] else "mean_token_logp"
    margin = [sum(line[measure] for line in part) for part in (lines[:3], lines[-3:])]
    assert margin[1] > margin[0] + 0.1
    assert len(lines) == 18


def test_the_whole_model_learns_where_there_is_no_adapter(policy: Loader, tmp_path: Path) -> None:
    loaded = policy(lora=None)
    before = weights_of(loaded)
    loop = trainer(loaded, pair_rows(8), config(lora=None, epochs=3, learning_rate=1e-3), tmp_path)
    lines = loop.run().lines
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"]
    assert all(not torch.equal(before[name], value) for name, value in weights_of(loaded).items())


def test_only_the_adapter_learns(policy: Loader, tmp_path: Path) -> None:
    loaded = policy()
    frozen = {n: p.detach().clone() for n, p in loaded.model.named_parameters() if not p.requires_grad}
    assert all("lora" in name for name in loaded.trainable())
    trainer(loaded, pair_rows(8), config(), tmp_path).run()
    assert all(torch.equal(value, dict(loaded.model.named_parameters())[name]) for name, value in frozen.items())


def test_both_falling_is_warned_of_once(policy: Loader, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """References far above the policy: both answers are less likely from the start."""
    rows = [row._replace(ref_chosen=0.0, ref_rejected=0.0) for row in pair_rows(8)]
    done = trainer(policy(), rows, config(epochs=8, learning_rate=1e-6), tmp_path).run()
    assert len(done.warnings) == 1
    assert "add: {sft: 0.2}" in done.warnings[0]
    assert caplog.text.count("both became less likely") == 1


@pytest.mark.parametrize("method", ["simpo", "orpo", "cpo"])
def test_without_a_reference_nothing_is_told_of_one(policy: Loader, method: str, tmp_path: Path) -> None:
    done = trainer(policy(), pair_rows(8), config(method=method, epochs=8, learning_rate=1e-6), tmp_path).run()
    assert all(line["logps/chosen"] < 0 for line in done.lines)
    assert not [name for line in done.lines for name in line if name.startswith("logratios/")]
    assert not [text for text in done.warnings if "reference" in text]


def test_a_training_that_goes_on_tells_its_warnings_again_but_logs_none_twice(
    policy: Loader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row._replace(ref_chosen=0.0, ref_rejected=0.0, rejected=row.rejected * 9) for row in pair_rows(8)]
    settings = config(epochs=10, learning_rate=1e-6, save_every=4)
    done = trainer(policy(), rows, settings, tmp_path).run()
    assert len(done.warnings) == 3
    assert caplog.text.count("length alone tells them apart") == 1
    caplog.clear()
    assert trainer(policy(), rows, settings, tmp_path).run().warnings == done.warnings
    assert "tells them apart" not in caplog.text


def test_lengths_of_chosen_and_rejected_are_measured_in_tokens(policy: Loader, tmp_path: Path) -> None:
    rows = [PairRow((5, 6), (7, 8, 9), (10,)), PairRow((5, 6), (7,), (10, 11, 12, 13, 14))]
    [line] = trainer(policy(), rows, config(), tmp_path).run().lines
    assert (line["lengths/chosen"], line["lengths/rejected"]) == (2.0, 3.0)


def test_the_learning_rate_rises_and_falls() -> None:
    linear = config(warmup=0.2, learning_rate=1.0)
    assert [learning_rate(linear, step, 10) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.125])
    cosine = linear.model_copy(update={"schedule": "cosine"})
    assert [learning_rate(cosine, step, 10) for step in (2, 6, 9)] == pytest.approx(
        [1.0, 0.5, 0.5 * (1 + math.cos(math.pi * 7 / 8))]
    )
    assert learning_rate(config(warmup=0, schedule="constant", learning_rate=3.0), 9, 10) == 3.0


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(policy: Loader, tmp_path: Path) -> None:
    rows = pair_rows(9)
    settings = config(batch_size=1, save_every=1)
    order = [row for step in range(9) for row in FixedRows(rows, 1, 1, 0).batch(step).rows]
    bad = [row._replace(ref_chosen=math.nan) if row == order[4] else row for row in rows]
    with pytest.raises(FactoryError, match="loss is not finite at step 5"):
        trainer(policy(), bad, settings, tmp_path).run()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000003", "step-000004"]
    assert len(read(tmp_path / "metrics.jsonl")) == 4


def test_threads_are_set_for_the_training_only(policy: Loader, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    class Watch:
        def advance(self, n: int = 1, *, failed: int = 0, reused: int = 0, tokens: int = 0) -> None:
            seen.append(torch.get_num_threads())

    loop = trainer(policy(), pair_rows(2), config(threads=before + 1), tmp_path)
    loop.progress = Watch()
    loop.run()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


# ------------------------------------------------------------------------------------------------------- resuming

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "transformers", "peft", "train.trainer"])
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora, dropout": ("dpo", {"lora": LoraSpec(r=4, dropout=0.2)}),
    "whole model": ("ipo", {"lora": None, "learning_rate": 1e-3}),
    "bfloat16": ("dpo", {"lora": LoraSpec(r=4), "dtype": "bfloat16"}),
    "kto": ("kto", {"lora": LoraSpec(r=4)}),
}


def _train(case: str, model: str, folder: str, crash_at: str = "") -> dict[str, torch.Tensor]:
    """A training of 8 steps over two epochs with a checkpoint every third; perhaps it is killed."""
    os.environ[crash.VARIABLE] = crash_at
    torch.set_num_threads(1)
    method, more = CASES[case]
    settings = config(method, epochs=2, batch_size=3, save_every=3, **more)
    policy = load_policy(
        model, lora=settings.lora, dtype=settings.dtype, device="cpu", trainable=True, seed=settings.seed
    )
    trainer(policy, rows_for(method, 11), settings, Path(folder)).run()
    return weights_of(policy)


def kill_at(point: str, case: str, model: Path, folder: Path) -> None:
    child = FORKS.Process(target=_train, args=(case, str(model), str(folder), point))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("case", "point"),
    [
        ("lora, dropout", "train.after_step:5"),  # mid-epoch, between checkpoints
        ("whole model", "train.mid_checkpoint:2"),  # while the second is written
        ("bfloat16", "train.after_step:4"),  # the epoch's edge
        ("kto", "train.after_step:7"),
    ],
)
def test_a_killed_training_ends_with_the_same_bits(
    case: str, point: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(crash.VARIABLE, "")
    wanted = _train(case, str(tiny_model), str(tmp_path / "whole"))
    kill_at(point, case, tiny_model, tmp_path / "killed")
    assert list((tmp_path / "killed" / "checkpoints").glob("step-*"))
    got = _train(case, str(tiny_model), str(tmp_path / "killed"))
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    lines = [[timeless(line) for line in read(tmp_path / name / "metrics.jsonl")] for name in ("whole", "killed")]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 8


def test_other_data_is_refused_on_resuming(policy: Loader, tmp_path: Path) -> None:
    rows = pair_rows(6)
    trainer(policy(), rows, config(save_every=1), tmp_path).run()
    with pytest.raises(FactoryError, match="another data"):
        trainer(policy(), [*rows[:-1], rows[0]], config(save_every=1), tmp_path).run()
    with pytest.raises(FactoryError, match="another settings"):
        trainer(policy(), rows, config(save_every=1, learning_rate=1e-3), tmp_path).run()


def test_a_finished_training_has_nothing_more_to_do(policy: Loader, tmp_path: Path) -> None:
    first = policy()
    lines = trainer(first, pair_rows(6), config(), tmp_path).run().lines
    second = policy()
    assert trainer(second, pair_rows(6), config(), tmp_path).run().lines == lines
    assert all(torch.equal(a, b) for a, b in zip(weights_of(first).values(), weights_of(second).values(), strict=True))
