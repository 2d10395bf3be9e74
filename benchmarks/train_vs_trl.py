"""DPO against TRL's DPOTrainer, and against what the arithmetic alone would take: same random model, pairs and steps.

    python benchmarks/train_vs_trl.py                          both vocabularies, one round of 8 pairs: some minutes
    python benchmarks/train_vs_trl.py --pairs 16 --rounds 3    medians of three rounds
    python benchmarks/train_vs_trl.py --vocabularies 152000 --batch 4
    python benchmarks/train_vs_trl.py --lora                   an adapter in place of the whole model
    python benchmarks/train_vs_trl.py --trl-checkpointing      TRL with its default: less memory, more time

The model: 10 layers of width 384, 17.7M parameters, and an embedding that is the head too: 12.3M more with 32,000
words (30M in all), 58.4M more with 152,000. One CPU thread, float32, metrics on. Every measurement is a process of its
own, and the sides take turns. Counted: tokens (prompt and completion of both answers, alike for all) by processor
seconds of the reference pass and the steps, and the peak memory above what importing takes. Loading the model,
comparing our packed forward with the model's own and TRL's tokenising are paid once, however long the training: they
are the column "start".

The sides: ours; "trl", as it is shipped (without the activation checkpointing of its defaults, which makes it slower);
"limited", TRL with its head at the completions' places only, its own way where there is Triton, with torch's kernels;
"lean", the same by one log-softmax of ours, without the metrics that TRL takes from the logits, so that little but the
products is left to pay; "floor": the operations that cannot be left out (reference, forward and backward pass of each
prompt once and each answer; the head at the answers' places; attention's causal half), at the rate of this machine's
products of the same shapes, in the same round. TRL holds `--batch` pairs at a time and
accumulates up to the 8 of a step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

BATCH = 8  # pairs of a step
BETA, RATE = 0.1, 1e-5


class Sample(NamedTuple):
    """What one process measured: CPU seconds of reference pass and training, peak resident memory above the imports,
    CPU seconds of what is paid once, last loss."""

    seconds: float
    megabytes: float = 0.0
    start: float = 0.0
    loss: float = 0.0


def pairs(args: argparse.Namespace) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompts of a fixed length and completions of log-uniform lengths, as word numbers from 3 on."""
    draw = random.Random(args.seed)

    def words(count: int) -> list[int]:
        return [draw.randrange(3, args.vocabulary) for _ in range(count)]

    def length() -> int:
        return round(math.exp(draw.uniform(math.log(args.shortest), math.log(args.longest))))

    return [(words(args.prompt), words(length()), words(length())) for _ in range(args.pairs)]


def tokens(args: argparse.Namespace) -> int:
    """Of all pairs, an end token to each answer, the prompt counted for both."""
    return sum(2 * len(p) + len(c) + len(r) + 2 for p, c, r in pairs(args))


def feed_forward(args: argparse.Namespace) -> int:
    """Width of the layers' inner part."""
    inner: int = args.width * 8 // 3 // 64 * 64
    return inner


def build_model(args: argparse.Namespace, folder: Path) -> None:
    """A Llama with random weights, and a tokenizer that reads "w17 w5" as the words 17 and 5."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, args.vocabulary)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocabulary, hidden_size=args.width, intermediate_size=feed_forward(args),
        num_hidden_layers=args.layers, num_attention_heads=args.width // 64, num_key_value_heads=args.width // 64,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------ one process


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def preferences(args: argparse.Namespace) -> list[Any]:
    """The pairs as rows, each answer with its end token."""
    from train.data import PairRow

    return [PairRow(tuple(p), (*c, 2), (*r, 2)) for p, c, r in pairs(args)]


def train_ours(args: argparse.Namespace, folder: Path) -> Sample:
    """Load, score the reference, train."""
    import torch

    from train.batches import FixedRows
    from train.config import LoraSpec, TrainConfig
    from train.data import Encoded
    from train.logps import forward_for, sample_groups, sequence_logps
    from train.policy import load_policy
    from train.trainer import Trainer

    torch.set_num_threads(1)
    lora = LoraSpec(r=16, alpha=32) if args.lora else None
    config = TrainConfig(
        method="dpo", parameters={"beta": BETA}, learning_rate=RATE, epochs=1, batch_size=BATCH, warmup=0.0,
        schedule="constant", lora=lora, dtype="float32", save_every=10**6,
    )  # fmt: skip
    import peft, transformers  # noqa: E401, F401, I001 - their import is not measured

    before, began = peak_megabytes(), time.process_time()
    policy = load_policy(args.model, lora=lora, dtype="float32", device="cpu", trainable=True)
    rows = preferences(args)
    encoded = [Encoded(row.prompt, ids) for row in rows for ids in (row.chosen, row.rejected)]
    forward_for(policy.model, sample_groups(encoded))
    started = time.process_time()
    refs = [s.logp for s in sequence_logps(policy.model, encoded)]
    rows = [row._replace(ref_chosen=refs[2 * i], ref_rejected=refs[2 * i + 1]) for i, row in enumerate(rows)]
    trainer = Trainer(policy, FixedRows(rows, BATCH, 1, 0), config, folder)
    lines = [trainer.step(step) for step in range(trainer.source.steps)]  # TRL writes no checkpoint either
    return Sample(time.process_time() - started, peak_megabytes() - before, started - began, lines[-1]["loss"])


def trl_trainer(args: argparse.Namespace, folder: Path) -> Any:
    """TRL's DPOTrainer on the same pairs."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    def text(words: list[int]) -> str:
        return " ".join(f"w{i}" for i in words)

    data = Dataset.from_list(
        [{"prompt": text(p), "chosen": " " + text(c), "rejected": " " + text(r)} for p, c, r in pairs(args)]
    )
    together = at_once(args)
    settings = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=together, gradient_accumulation_steps=BATCH // together,
        num_train_epochs=1, learning_rate=RATE, beta=BETA, lr_scheduler_type="constant", warmup_steps=0,
        logging_steps=1, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no", max_length=2048,
        gradient_checkpointing=args.trl_checkpointing,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if args.lora else None
    return DPOTrainer(
        AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), args=settings, train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(args.model), peft_config=lora,
    )  # fmt: skip


def at_once(args: argparse.Namespace) -> int:
    """Pairs that TRL holds at a time: as told, else all of a step."""
    return args.batch or BATCH


def limited_forward(self: Any, *args: Any, labels: Any, fused_lm_head: bool, **inputs: Any) -> Any:
    """What TRL's own forward gives it, log-probs of the labels, with the head at the labelled places alone."""
    import torch
    from torch.nn.functional import linear
    from trl.trainer.utils import FusedCausalLMOutput

    hidden = self.base_model(*args, **inputs).last_hidden_state[:, :-1]
    labels = labels[:, 1:]
    mask = labels != -100
    head = self.get_output_embeddings()
    logps = linear(hidden[mask], head.weight, head.bias).log_softmax(-1).gather(-1, labels[mask][:, None])[:, 0]
    none = torch.zeros(mask.shape)
    return FusedCausalLMOutput(
        log_probs=none.masked_scatter(mask, logps), entropy=none, mean_logits=none, is_top1=mask, label_mask=mask
    )


def limit_head(trainer: Any) -> None:
    """Have TRL's own head score the labelled places alone, as on devices with Triton; its kernels stay torch's."""
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True


def lean_head(trainer: Any) -> None:
    """Give the policy and the reference of a DPOTrainer `limited_forward`."""
    for model in filter(None, (trainer.model, trainer.ref_model)):
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        causal.forward = MethodType(limited_forward, causal)


def train_trl(args: argparse.Namespace, folder: Path, change: Callable[[Any], None] | None = None) -> Sample:
    """The same with TRL."""
    import peft, torch, transformers, trl  # noqa: E401, F401, I001 - their import is not measured
    from trl import DPOTrainer  # noqa: F401 - nor this one, which TRL puts off

    torch.set_num_threads(1)
    before, began = peak_megabytes(), time.process_time()
    trainer = trl_trainer(args, folder)
    if change is not None:
        change(trainer)
    started = time.process_time()
    trainer.train()
    ended = time.process_time()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Sample(ended - started, peak_megabytes() - before, started - began, float(losses[-1]))


def train_limited(args: argparse.Namespace, folder: Path) -> Sample:
    """TRL with its head at the completions' places."""
    return train_trl(args, folder, limit_head)


def train_lean(args: argparse.Namespace, folder: Path) -> Sample:
    """The same with as little as can be paid for the head."""
    return train_trl(args, folder, lean_head)


# ------------------------------------------------------------------------------------------------------ the floor


class Product(NamedTuple):
    """A matrix product (rows, inner) @ (inner, columns), and for how many rows in all it is needed."""

    rows: int
    inner: int
    columns: int
    needed: float

    def seconds(self, repeats: int = 5) -> float:
        """CPU seconds of all its rows, at the median rate of products of `rows` rows."""
        import torch

        left, right = torch.randn(self.rows, self.inner), torch.randn(self.columns, self.inner).T
        out = torch.empty(self.rows, self.columns)
        found = []
        for _ in range(1 + repeats):
            began = time.process_time()
            torch.mm(left, right, out=out)
            found.append(time.process_time() - began)
        return statistics.median(found[1:]) * self.needed / self.rows


def linear_products(inputs: int, outputs: int, together: int, tokens: float) -> list[Product]:
    """Of a linear layer: the reference's pass, forward, into the inputs and into the weights. The last sums over the
    tokens: its rows are the outputs, and they are needed as often as `together` tokens go into all of them."""
    forward = Product(together, inputs, outputs, tokens)
    back = Product(together, outputs, inputs, tokens)
    weights = Product(outputs, together, inputs, outputs * tokens / together)
    return [forward, forward, back, weights]


def attention_operations(args: argparse.Namespace, groups: list[Any]) -> float:
    """Of the causal half, prompts shared: scores and mixtures of the reference and the forward pass, twice as many on
    the way back."""
    seen = 0.0
    for group in groups:
        prompt: int = len(group.prompt)
        seen += prompt**2 / 2 + sum((len(c) - 1) * prompt + (len(c) - 1) ** 2 / 2 for c in group.completions)
    operations: float = 4 * args.layers * 2 * 2 * args.width * seen
    return operations


def floor(args: argparse.Namespace, folder: Path) -> Sample:
    """CPU seconds of the products that cannot be left out."""
    import torch

    from train.batches import micro_batches
    from train.config import TrainConfig
    from train.packing import Group
    from train.trainer import micro_batch_tokens

    torch.set_num_threads(1)
    rows = preferences(args)
    groups = [Group(row.prompt, (row.chosen, row.rejected)) for row in rows]
    steps = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    limit = micro_batch_tokens(TrainConfig(lora=None), "cpu")
    parts = sum(len(list(micro_batches(step, limit))) for step in steps)
    tokens, learnt = sum(g.tokens for g in groups), sum(len(c) for g in groups for c in g.completions)
    width, wide = args.width, feed_forward(args)
    body = [
        product
        for inputs, outputs, count in ((width, width, 4), (width, wide, 2), (wide, width, 1))
        for product in linear_products(inputs, outputs, tokens // parts, tokens * count * args.layers)
    ]
    seconds = sum(product.seconds() for product in body)
    rate = sum(2 * p.inner * p.columns * p.needed for p in body) / seconds
    seconds += attention_operations(args, groups) / rate
    head = linear_products(width, args.vocabulary, learnt // parts, learnt)
    return Sample(seconds + sum(product.seconds() for product in head))


SIDES: dict[str, Callable[[argparse.Namespace, Path], Sample]] = {
    "ours": train_ours, "trl": train_trl, "limited": train_limited, "lean": train_lean, "floor": floor,
}  # fmt: skip

# -------------------------------------------------------------------------------------------------- all of them


def measure(side: str, model: str, args: argparse.Namespace) -> Sample:
    """One side in a process of its own."""
    one_thread = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    root = str(Path(__file__).resolve().parent.parent)
    told = ["--side", side, "--model", model, "--vocabulary", str(args.vocabulary)]
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], *told],
        env=os.environ | one_thread | {"PYTHONPATH": root}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{side} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return Sample(*json.loads(done.stdout.splitlines()[-1]))


def spread(values: list[float]) -> str:
    """The median, and what it lies between."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(args: argparse.Namespace, samples: dict[str, list[Sample]]) -> str:
    """Medians of all sides, and of the ratios within the rounds."""
    count = tokens(args)
    lines = [
        f"{args.vocabulary} words, {args.pairs} pairs, {args.rounds} rounds; TRL holds {at_once(args)} pairs at a time",
        f"{'':8}{'tokens / CPU s':>16}{'CPU s':>9}{'start':>8}{'peak MB':>10}{'last loss':>12}",
    ]
    for side, runs in samples.items():
        seconds, megabytes, start, loss = (statistics.median(column) for column in zip(*runs, strict=True))
        rest = "" if side == "floor" else f"{start:8.1f}{megabytes:10.0f}{loss:12.4f}"
        lines.append(f"{side:8}{count / seconds:16.0f}{seconds:9.1f}{rest}")
    return "\n".join([*lines, *ratios(samples)])


def ratios(samples: dict[str, list[Sample]]) -> list[str]:
    """Ours against each of the others: speed, and share of the peak."""
    lines = []
    for side in ("trl", "limited", "lean"):
        both = list(zip(samples["ours"], samples.get(side, ()), strict=False))
        if both:
            faster = spread([other.seconds / ours.seconds for ours, other in both])
            leaner = spread([ours.megabytes / other.megabytes for ours, other in both])
            lines.append(f"against {side}: {faster} x the speed, {leaner} of the peak memory")
    both = list(zip(samples["ours"], samples.get("floor", ()), strict=False))
    if both:
        lines.append(f"against floor: {spread([ours.seconds / least.seconds for ours, least in both])} x its time")
    return lines


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parse = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parse.add_argument("--width", type=int, default=384, help="hidden size, a multiple of 64")
    parse.add_argument("--layers", type=int, default=10)
    parse.add_argument("--vocabularies", type=int, nargs="+", default=[32000, 152000])
    parse.add_argument("--pairs", type=int, default=8)
    parse.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parse.add_argument("--shortest", type=int, default=16, help="tokens of a completion")
    parse.add_argument("--longest", type=int, default=384)
    parse.add_argument("--rounds", type=int, default=1, help="each side is measured as often")
    parse.add_argument("--batch", type=int, choices=(1, 2, 4, 8), help="pairs that TRL holds at a time")
    parse.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="ours is always among them")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--lora", action="store_true", help="an adapter; there is no floor for it")
    parse.add_argument("--trl-checkpointing", action="store_true", help="activation checkpointing in TRL, its default")
    for hidden in ("--side", "--model"):
        parse.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parse.add_argument("--vocabulary", type=int, default=32000, help=argparse.SUPPRESS)
    return parse


def compare(args: argparse.Namespace, folder: Path) -> str:
    """All sides in turn, as often as there are rounds, with one vocabulary."""
    build_model(args, folder / "model")
    chosen = [side for side in SIDES if side == "ours" or (side in args.sides and not (args.lora and side == "floor"))]
    samples: dict[str, list[Sample]] = {side: [] for side in chosen}
    for _ in range(args.rounds):
        for side, runs in samples.items():
            runs.append(measure(side, str(folder / "model"), args))
            print(f"  {side}: {runs[-1].seconds:.1f} CPU s, {runs[-1].megabytes:.0f} MB", file=sys.stderr)
    return table(args, samples)


def main() -> None:
    """Measure one side (a child), or all in turn."""
    args = parser().parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.side:
            print("\n" + json.dumps(SIDES[args.side](args, Path(temporary))))
            return
        for vocabulary in args.vocabularies:
            args.vocabulary = vocabulary
            print(compare(args, Path(temporary)), flush=True)


if __name__ == "__main__":
    main()
