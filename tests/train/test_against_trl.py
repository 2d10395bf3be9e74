"""The same steps as TRL's own trainers take, on the same tokens: losses, rewards, gradient norms and weights.

TRL is an oracle here; where its convention differs (IPO by length; KTO's mismatched pairs by neighbours; GRPO's KL with
the ratio's correction), ours is set to the same. Its sigmoid loss takes no label smoothing any more, and it has no PPO:
cdpo and ppo have golden values only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import sample_rows
from train import losses
from train.advantages import group_advantages, leave_one_out
from train.batches import FixedRows, Row
from train.config import LoraSpec, TrainConfig
from train.data import CompletionRow, Encoded, LabelRow, PairRow, SampleRow
from train.logps import sequence_logps
from train.policy import load_policy
from train.shapes import of
from train.trainer import Trainer

pytestmark = pytest.mark.slow

STEPS, ROWS, RATE = 4, 6, 2e-3
Settings = dict[str, Any]
PAIRS: list[tuple[str, Settings, str, Settings]] = [  # TRL's loss type and settings, our method and parameters
    ("sigmoid", {}, "dpo", {}),
    ("robust", {"label_smoothing": 0.2}, "robust_dpo", {"label_smoothing": 0.2}),
    ("ipo", {}, "ipo", {"length_normalised": True}),
    ("hinge", {}, "hinge", {}),
    ("sppo_hard", {}, "sppo", {}),
    ("exo_pair", {"label_smoothing": 0.1}, "exo_pair", {"label_smoothing": 0.1}),
    ("nca_pair", {}, "nca_pair", {}),
    ("bco_pair", {}, "bco_pair", {"running_shift": False}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("discopop", {}, "discopop", {}),
    ("sigmoid_norm", {}, "length_normalised_dpo", {}),
    ("sigmoid", {"ld_alpha": 0.3}, "ld_dpo", {"ld_alpha": 0.3}),
    ("sigmoid", {"f_divergence_type": "forward_kl"}, "dpo", {"f_divergence": "forward_kl"}),
    ("sigmoid", {"f_divergence_type": "js_divergence"}, "dpo", {"f_divergence": "js"}),
    (
        "sigmoid",
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
        "dpo",
        {"f_divergence": "alpha", "f_alpha": 0.5},
    ),
    ("sigmoid", {"use_weighting": True}, "dpo", {}),
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
    head = "score" if losses.get(config.method).data == "scores" else "language"
    policy = load_policy(
        str(model), lora=config.lora, dtype="float32", device="cpu", trainable=True, seed=config.seed, head=head
    )
    shape = of(losses.get(config.method), config.parameters)
    scored: list[Encoded] = [item for row in rows for item in shape.scored(row)]
    kept = iter([s.logp for s in sequence_logps(policy.model, scored)])
    held = [shape.with_reference(row, [next(kept) for _ in shape.scored(row)]) for row in rows]
    lines = Trainer(policy, FixedRows(held, ROWS, STEPS, 0), config, folder).run().lines
    return lines, policy.model


def with_beta(method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"beta": 0.1, **parameters} if "beta" in losses.get(method).defaults else parameters


def config_of(method: str, parameters: dict[str, Any]) -> TrainConfig:
    return TrainConfig(
        method=method, parameters=with_beta(method, parameters), learning_rate=RATE, epochs=STEPS, batch_size=ROWS,
        warmup=0.0, schedule="constant", lora=None, dtype="float32", threads=1,
    )  # fmt: skip


def compare(theirs: list[dict[str, Any]], lines: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    logged = [line for line in theirs if "loss" in line]
    assert len(logged) == len(lines) == STEPS
    for step, (their, our) in enumerate(zip(logged, lines, strict=True)):
        for name in names:
            # of rewards, differences of sums of hundreds of nats in float32, four decimals are left
            near = 1e-5 if name in ("loss", "grad_norm") else 2e-4
            far = 1e-5 if step == 0 else 5e-5  # AdamW carries float32's last digits from step to step
            assert our[name] == pytest.approx(float(their[name]), rel=far, abs=near), (step, name)


def learnt(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad]


def same_weights(theirs: Any, mine: Any, off: float = 3e-5) -> None:
    for (name, wanted), (_, got) in zip(learnt(theirs), learnt(mine), strict=True):
        moved = ((wanted - got).norm() / wanted.norm()).item()
        assert moved < off, name


def name_of(case: Any) -> str:
    return "-".join([case[2], *case[1], *(str(v) for v in case[3].values())])


@pytest.mark.parametrize("case", PAIRS, ids=name_of)
def test_pairs(case: tuple[str, Settings, str, Settings], tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    loss_type, theirs_too, method, parameters = case
    model, tokenizer = loaded(tiny_model)
    args = DPOConfig(**settings(tmp_path / "trl"), loss_type=loss_type, max_length=512, **theirs_too)
    theirs = DPOTrainer(model, args=args, train_dataset=Dataset.from_list(texts("pairs")), processing_class=tokenizer)
    rows: list[Row] = [
        PairRow(tuple(r["prompt_ids"]), tuple(r["chosen_ids"]), tuple(r["rejected_ids"])) for r in theirs.train_dataset
    ]
    theirs.train()
    config = config_of(method, parameters)
    if "use_weighting" in theirs_too:
        config = config.model_copy(update={"weighting": "wpo_plain"})
    lines, mine = ours(tiny_model, rows, config, tmp_path / "ours")
    reduced = "ld_alpha" in theirs_too  # their rewards and log-probs are then of the reduced sums
    compare(theirs.state.log_history, lines, SHARED[:2] if reduced else (*SHARED, "rewards/accuracies"))
    same_weights(model, mine)


FREE: list[tuple[str, Settings, str, Settings]] = [
    ("simpo", {"loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 0.0}, "simpo", {"gamma": 0.5}),
    ("cpo", {"loss_type": "sigmoid", "cpo_alpha": 1.0}, "cpo", {}),
    ("orpo", {}, "orpo", {"nll_of_prompt": True}),
]


@pytest.mark.parametrize("case", FREE, ids=[case[0] for case in FREE])
def test_pairs_without_a_reference(case: tuple[str, Settings, str, Settings], tiny_model: Path, tmp_path: Path) -> None:
    """A batch of one pair: their likelihood term is the mean over all tokens of a batch, ours over each answer's."""
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    name, theirs_too, method, parameters = case
    make, configure = (ORPOTrainer, ORPOConfig) if name == "orpo" else (CPOTrainer, CPOConfig)
    model, tokenizer = loaded(tiny_model)
    same = settings(tmp_path / "trl") | {"per_device_train_batch_size": 1}
    args = configure(**same, max_length=512, disable_dropout=True, **theirs_too)
    theirs = make(
        model=model, args=args, train_dataset=Dataset.from_list(texts("pairs")[1:2]), processing_class=tokenizer
    )
    data = theirs.train_dataset[0]
    prompt = tuple(data["prompt_input_ids"])
    answers = [tuple(data[f"{which}_input_ids"])[len(prompt) :] for which in ("chosen", "rejected")]
    theirs.train()
    lines, mine = ours(tiny_model, [PairRow(prompt, *answers)], config_of(method, parameters), tmp_path / "ours")
    names = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins")
    compare(theirs.state.log_history, lines, names)
    same_weights(model, mine)


def test_sft(tiny_model: Path, tmp_path: Path) -> None:
    """The mean over all completion tokens of the batch."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = loaded(tiny_model)
    same = {key: value for key, value in settings(tmp_path / "trl").items() if key != "beta"}
    data = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in texts("pairs")]
    args = SFTConfig(**same, max_length=512, completion_only_loss=True)
    theirs = SFTTrainer(model, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer)
    rows: list[Row] = [split_row(dict(r)) for r in theirs.train_dataset]
    theirs.train()
    lines, mine = ours(tiny_model, rows, config_of("sft", {}), tmp_path / "ours")
    compare(theirs.state.log_history, lines, ("loss", "grad_norm"))
    same_weights(model, mine)


def split_row(row: dict[str, Any]) -> CompletionRow:
    """Their row, whose mask or labels say where the completion begins."""
    ids = row["input_ids"]
    if "completion_mask" in row:
        start = row["completion_mask"].index(1)
    else:
        start = next(i for i, label in enumerate(row["labels"]) if label != -100)
    return CompletionRow(tuple(ids[:start]), tuple(ids[start:]))


@pytest.mark.parametrize("centring", [0.0, 0.05])
def test_reward_models(centring: float, tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    start = load_policy(str(tiny_model), lora=None, dtype="float32", device="cpu", trainable=True, seed=0, head="score")
    same = {key: value for key, value in settings(tmp_path / "trl").items() if key != "beta"}
    args = RewardConfig(**same, max_length=512, center_rewards_coefficient=centring or None, disable_dropout=True)
    data = Dataset.from_list(texts("pairs"))
    start.tokenizer.pad_token = start.tokenizer.pad_token or start.tokenizer.eos_token
    theirs = RewardTrainer(start.model, args=args, train_dataset=data, processing_class=start.tokenizer)
    rows: list[Row] = [
        PairRow(tuple(r["chosen_ids"][:1]), tuple(r["chosen_ids"][1:]), tuple(r["rejected_ids"][1:]))
        for r in theirs.train_dataset
    ]
    theirs.train()
    lines, mine = ours(tiny_model, rows, config_of("reward_model", {"centring": centring}), tmp_path / "ours")
    compare(theirs.state.log_history, lines, ("loss", "grad_norm"))
    same_weights(start.model, mine)


def test_reward_models_with_margins(tiny_model: Path, tmp_path: Path) -> None:
    """A preference's own margin is taken off the difference, and the scores are centred too."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    start = load_policy(str(tiny_model), lora=None, dtype="float32", device="cpu", trainable=True, seed=0, head="score")
    same = {key: value for key, value in settings(tmp_path / "trl").items() if key != "beta"}
    args = RewardConfig(**same, max_length=512, center_rewards_coefficient=0.02, disable_dropout=True)
    data = Dataset.from_list([row | {"margin": 0.2 * i} for i, row in enumerate(texts("pairs"))])
    start.tokenizer.pad_token = start.tokenizer.pad_token or start.tokenizer.eos_token
    theirs = RewardTrainer(start.model, args=args, train_dataset=data, processing_class=start.tokenizer)
    rows: list[Row] = [
        PairRow(
            tuple(r["chosen_ids"][:1]), tuple(r["chosen_ids"][1:]), tuple(r["rejected_ids"][1:]), margin=r["margin"]
        )
        for r in theirs.train_dataset
    ]
    theirs.train()
    lines, mine = ours(
        tiny_model, rows, config_of("reward_model", {"margin": True, "centring": 0.02}), tmp_path / "ours"
    )
    compare(theirs.state.log_history, lines, ("loss", "grad_norm"))
    same_weights(start.model, mine)


@pytest.mark.parametrize("method", ["kto", "apo_zero_unpaired"])
def test_labels(method: str, tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    model, tokenizer = loaded(tiny_model)
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.8}
    args = KTOConfig(**settings(tmp_path / "trl"), loss_type=method, max_length=512, **weights)
    theirs = KTOTrainer(model, args=args, train_dataset=Dataset.from_list(texts("labels")), processing_class=tokenizer)
    rows: list[Row] = [
        LabelRow(tuple(r["prompt_ids"]), tuple(r["completion_ids"]), r["label"], tuple(r.get("KL_completion_ids", ())))
        for r in theirs.train_dataset
    ]
    theirs.train()
    lines, mine = ours(tiny_model, rows, config_of(method, weights), tmp_path / "ours")
    compare(theirs.state.log_history, lines, (*SHARED, "kl") if method == "kto" else SHARED)
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


# ------------------------------------------------------------------------------------------------ policy gradients


def padded(rows: Sequence[Sequence[float]], left: bool = False, kind: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of numbers in one tensor, 0 where one has none."""
    longest = max(map(len, rows))
    filled = [[*[0] * (longest - len(r)), *r] if left else [*r, *[0] * (longest - len(r))] for r in rows]
    return torch.tensor(filled, dtype=kind)


def inputs_of(rows: Sequence[SampleRow]) -> dict[str, torch.Tensor]:
    """What their trainers put into the loss after sampling."""
    answers, prompts = [row.completion for row in rows], [row.prompt for row in rows]
    ones = [[1] * len(answer) for answer in answers]
    return {
        "prompt_ids": padded(prompts, left=True, kind=torch.long),
        "prompt_mask": padded([[1] * len(prompt) for prompt in prompts], left=True, kind=torch.long),
        "completion_ids": padded(answers, kind=torch.long),
        "completion_mask": padded(ones, kind=torch.long),
        "advantages": torch.tensor([row.advantage[0] for row in rows]),
        "old_per_token_logps": padded([row.old for row in rows]),
        "old_logps": torch.tensor([sum(row.old) for row in rows]),
        "ref_per_token_logps": padded([row.ref for row in rows]),
        "num_items_in_batch": torch.tensor(sum(map(len, answers))),
    }


def near_the_model(model: Any) -> list[SampleRow]:
    """Samples whose old and reference log-probs lie about those of the model: some ratios are clipped, some are not."""
    rows = []
    for number, row in enumerate(sample_rows(ROWS)):
        ids = torch.tensor([[*row.prompt, *row.completion]])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
        own = [float(logps[len(row.prompt) - 1 + k, t]) for k, t in enumerate(row.completion)]
        moved = [tuple(p + off * (1 + k % 2) for k, p in enumerate(own)) for off in (0.15 * (-1) ** number, 0.3)]
        rows.append(row._replace(old=moved[0], ref=moved[1], weight=1.0))
    return rows


GROUPS: list[tuple[str, Settings, Settings]] = [  # TRL's settings, our parameters
    ("grpo", {"loss_type": "grpo"}, {}),
    ("grpo", {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False}, {"beta": 0.1}),
    ("grpo", {"loss_type": "grpo", "beta": 0.1}, {"beta": 0.1, "kl_ratio": True}),
    ("grpo", {"loss_type": "bnpo", "beta": 0.1}, {"normalise": "bnpo", "beta": 0.1, "kl_ratio": True}),
    ("grpo", {"loss_type": "dr_grpo"}, {"normalise": "dr_grpo", "longest": 16}),
    ("grpo", {"loss_type": "dapo", "epsilon_high": 0.28}, {"normalise": "dapo", "clip_high": 0.28}),
    ("grpo", {"loss_type": "grpo", "importance_sampling_level": "sequence"}, {"sequence_ratio": True}),
    ("rloo", {}, {}),
]


@pytest.mark.parametrize("case", GROUPS, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def test_samples(case: tuple[str, Settings, Settings], tiny_model: Path, tmp_path: Path) -> None:
    """Their loss on the same samples; their optimiser is torch's AdamW, here stepped by hand."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    method, theirs_too, parameters = case
    make, configure = (GRPOTrainer, GRPOConfig) if method == "grpo" else (RLOOTrainer, RLOOConfig)
    model, tokenizer = loaded(tiny_model)
    rows = near_the_model(model)
    same = settings(tmp_path / "trl") | {"num_generations": ROWS, "max_completion_length": 16, "beta": 0.0}
    args = configure(**same | theirs_too)
    theirs = make(
        model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * ROWS), processing_class=tokenizer,
    )  # fmt: skip
    theirs.current_gradient_accumulation_steps = 1
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    log: list[dict[str, Any]] = []
    model.train()
    for _ in range(STEPS):
        loss = theirs._compute_loss(model, inputs_of(rows))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        log.append({"loss": loss.item(), "grad_norm": norm.item()})
    held_to = {"beta": 0.0, **parameters} if method == "grpo" else parameters
    lines, mine = ours(tiny_model, list(rows), config_of(method, held_to), tmp_path / "ours")
    compare(log, lines, ("loss", "grad_norm"))
    same_weights(model, mine, 1e-4)  # where most ratios are clipped, AdamW scales up a small gradient's last digits


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_of_groups(scale: bool) -> None:
    """GRPO's as they work them out (they add 1e-4 to the deviation, we do not); RLOO's as they do."""
    rewards = torch.tensor([[0.1, 0.9, 0.4, 0.4], [3.0, -1.0, 0.0, 2.0]], dtype=torch.float64)
    mean, spread = rewards.mean(dim=1, keepdim=True), rewards.std(dim=1, keepdim=True)
    wanted = (rewards - mean) / (spread + 1e-4 if scale else 1.0)
    torch.testing.assert_close(group_advantages(rewards, scale=scale), wanted, rtol=1e-3 if scale else 1e-12, atol=0)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    torch.testing.assert_close(leave_one_out(rewards), rewards - others)
