"""The same steps as TRL's own trainers take, on the same tokens: losses, rewards, gradient norms and weights.

TRL is an oracle here; where its convention differs (IPO by length; KTO's mismatched pairs by neighbours), ours is set
to the same. Its sigmoid loss takes no label smoothing any more, so that cdpo has golden values only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from train import losses
from train.batches import FixedRows, Row
from train.config import LoraSpec, TrainConfig
from train.data import Encoded, LabelRow, PairRow
from train.logps import sequence_logps
from train.policy import load_policy
from train.shapes import of
from train.trainer import Trainer

pytestmark = pytest.mark.slow

STEPS, ROWS, RATE = 4, 6, 2e-3
PAIRS: list[tuple[str, str, dict[str, Any]]] = [
    ("sigmoid", "dpo", {}),
    ("robust", "robust_dpo", {"label_smoothing": 0.2}),
    ("ipo", "ipo", {"length_normalised": True}),
    ("hinge", "hinge", {}),
    ("sppo_hard", "sppo", {}),
]
SHARED = (  # under the same names in both
    "loss",
    "grad_norm",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def texts(kind: str) -> list[dict[str, Any]]:
    """Conversational rows of different lengths."""
    rows: list[dict[str, Any]] = []
    for i in range(ROWS):
        prompt = [{"role": "user", "content": "Write about the sea. " * (1 + i % 3)}]
        good = [{"role": "assistant", "content": "The sea is old" + ", and deep" * i}]
        bad = [{"role": "assistant", "content": "No" + " never" * (ROWS - i)}]
        if kind == "pairs":
            rows.append({"prompt": prompt, "chosen": good, "rejected": bad})
        else:
            rows.append({"prompt": prompt, "completion": good if i % 2 else bad, "label": bool(i % 2)})
    return rows


def settings(folder: Path) -> dict[str, Any]:
    """One batch of all rows a step, so that the order of rows does not matter."""
    return {
        "output_dir": str(folder), "per_device_train_batch_size": ROWS, "max_steps": STEPS, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1, "report_to": [], "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "no", "beta": 0.1,
        "seed": 0,
    }  # fmt: skip


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def ours(model: Path, rows: list[Row], config: TrainConfig, folder: Path) -> tuple[list[dict[str, Any]], Any]:
    """Our lines and model: references scored with the start, then the same steps."""
    policy = load_policy(str(model), lora=config.lora, dtype="float32", device="cpu", trainable=True, seed=config.seed)
    shape = of(losses.get(config.method), config.parameters)
    scored: list[Encoded] = [item for row in rows for item in shape.scored(row)]
    kept = iter([s.logp for s in sequence_logps(policy.model, scored)])
    held = [shape.with_reference(row, [next(kept) for _ in shape.scored(row)]) for row in rows]
    lines = Trainer(policy, FixedRows(held, ROWS, STEPS, 0), config, folder).run().lines
    return lines, policy.model


def config_of(method: str, parameters: dict[str, Any]) -> TrainConfig:
    return TrainConfig(
        method=method, parameters={"beta": 0.1, **parameters}, learning_rate=RATE, epochs=STEPS, batch_size=ROWS,
        warmup=0.0, schedule="constant", lora=None, dtype="float32", threads=1,
    )  # fmt: skip


def compare(theirs: list[dict[str, Any]], lines: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    logged = [line for line in theirs if "loss" in line]
    assert len(logged) == len(lines) == STEPS
    for step, (their, our) in enumerate(zip(logged, lines, strict=True)):
        for name in names:
            # TRL logs rounded numbers; rewards are differences of sums of hundreds of nats in float32
            assert our[name] == pytest.approx(float(their[name]), rel=1e-3, abs=5e-4), (step, name)


def learnt(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad]


def same_weights(theirs: Any, mine: Any) -> None:
    for (name, wanted), (_, got) in zip(learnt(theirs), learnt(mine), strict=True):
        moved = ((wanted - got).norm() / wanted.norm()).item()
        assert moved < 2e-4, name


@pytest.mark.parametrize(("loss_type", "method", "parameters"), PAIRS, ids=[method for _, method, _ in PAIRS])
def test_pairs(loss_type: str, method: str, parameters: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = loaded(tiny_model)
    smoothing = {k: v for k, v in parameters.items() if k == "label_smoothing"}
    args = DPOConfig(**settings(tmp_path / "trl"), loss_type=loss_type, max_length=512, **smoothing)
    theirs = DPOTrainer(model, args=args, train_dataset=Dataset.from_list(texts("pairs")), processing_class=tokenizer)
    rows: list[Row] = [
        PairRow(tuple(r["prompt_ids"]), tuple(r["chosen_ids"]), tuple(r["rejected_ids"])) for r in theirs.train_dataset
    ]
    theirs.train()
    lines, mine = ours(tiny_model, rows, config_of(method, parameters), tmp_path / "ours")
    compare(theirs.state.log_history, lines, (*SHARED, "rewards/accuracies"))
    same_weights(model, mine)


def test_labels(tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    model, tokenizer = loaded(tiny_model)
    args = KTOConfig(**settings(tmp_path / "trl"), desirable_weight=1.5, undesirable_weight=0.8, max_length=512)
    theirs = KTOTrainer(model, args=args, train_dataset=Dataset.from_list(texts("labels")), processing_class=tokenizer)
    rows: list[Row] = [
        LabelRow(tuple(r["prompt_ids"]), tuple(r["completion_ids"]), r["label"], tuple(r["KL_completion_ids"]))
        for r in theirs.train_dataset
    ]
    theirs.train()
    config = config_of("kto", {"desirable_weight": 1.5, "undesirable_weight": 0.8})
    lines, mine = ours(tiny_model, rows, config, tmp_path / "ours")
    compare(theirs.state.log_history, lines, (*SHARED, "kl"))
    same_weights(model, mine)


def test_lora_from_the_same_first_adapter(tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = config_of("dpo", {}).model_copy(update={"lora": LoraSpec(r=4)})
    start = load_policy(str(tiny_model), lora=config.lora, dtype="float32", device="cpu", trainable=True, seed=0)
    data = Dataset.from_list(texts("pairs"))
    args = DPOConfig(**settings(tmp_path / "trl"), max_length=512)
    theirs = DPOTrainer(start.model, args=args, train_dataset=data, processing_class=start.tokenizer)
    rows: list[Row] = [
        PairRow(tuple(r["prompt_ids"]), tuple(r["chosen_ids"]), tuple(r["rejected_ids"])) for r in theirs.train_dataset
    ]
    theirs.train()
    lines, mine = ours(tiny_model, rows, config, tmp_path / "ours")
    compare(theirs.state.log_history, lines, SHARED)
    same_weights(start.model, mine)
