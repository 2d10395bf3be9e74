"""DPO against TRL's DPOTrainer: the same random model, pairs and steps, reference pass included.

    python benchmarks/train_vs_trl.py                    three minutes: 11M parameters, 32k words
    python benchmarks/train_vs_trl.py --lora             an adapter in place of the whole model
    python benchmarks/train_vs_trl.py --width 512 --layers 6 --vocabulary 152000 --pairs 48 --repeats 5

One CPU thread, float32. Every measurement is a process of its own; ours and TRL's take turns. Printed: tokens a CPU
second (prompt and completion of both answers, counted alike for both), peak memory above what importing takes, and
medians of the paired ratios.
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
from pathlib import Path
from typing import NamedTuple

BATCH = 8
BETA, RATE = 0.1, 1e-5


class Sample(NamedTuple):
    """What one process measured: CPU seconds of the training, peak resident memory above the imports, last loss."""

    seconds: float
    megabytes: float
    loss: float


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
        vocab_size=args.vocabulary, hidden_size=args.width, intermediate_size=args.width * 8 // 3 // 64 * 64,
        num_hidden_layers=args.layers, num_attention_heads=args.width // 64, num_key_value_heads=args.width // 64,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------ one process


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train_ours(args: argparse.Namespace, model: str, folder: Path) -> Sample:
    """Load, score the reference, train."""
    import torch

    from train.batches import FixedRows
    from train.config import LoraSpec, TrainConfig
    from train.data import Encoded, PairRow
    from train.logps import sequence_logps
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
    policy = load_policy(model, lora=lora, dtype="float32", device="cpu", trainable=True)
    rows = [PairRow(tuple(p), (*c, 2), (*r, 2)) for p, c, r in pairs(args)]
    encoded = [Encoded(row.prompt, ids) for row in rows for ids in (row.chosen, row.rejected)]
    refs = [s.logp for s in sequence_logps(policy.model, encoded)]
    rows = [row._replace(ref_chosen=refs[2 * i], ref_rejected=refs[2 * i + 1]) for i, row in enumerate(rows)]
    lines = Trainer(policy, FixedRows(rows, BATCH, 1, 0), config, folder).run().lines
    return Sample(time.process_time() - began, peak_megabytes() - before, lines[-1]["loss"])


def train_trl(args: argparse.Namespace, model: str, folder: Path) -> Sample:
    """The same with TRL as it is shipped, but without the activation checkpointing of its defaults (less memory,
    slower): ours has none."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(1)

    def text(words: list[int]) -> str:
        return " ".join(f"w{i}" for i in words)

    data = Dataset.from_list(
        [{"prompt": text(p), "chosen": " " + text(c), "rejected": " " + text(r)} for p, c, r in pairs(args)]
    )
    settings = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE, beta=BETA,
        lr_scheduler_type="constant", warmup_steps=0, logging_steps=1, report_to=[], use_cpu=True, bf16=False,
        disable_tqdm=True, save_strategy="no", max_length=2048, gradient_checkpointing=args.trl_checkpointing,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if args.lora else None
    before, began = peak_megabytes(), time.process_time()
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), args=settings, train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model), peft_config=lora,
    )  # fmt: skip
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Sample(time.process_time() - began, peak_megabytes() - before, float(losses[-1]))


SIDES = {"ours": train_ours, "trl": train_trl}

# -------------------------------------------------------------------------------------------------- all of them


def measure(side: str, model: str, arguments: list[str]) -> Sample:
    """One training in a process of its own."""
    one_thread = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--side", side, "--model", model],
        env=os.environ | one_thread | {"PYTHONPATH": root}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return Sample(*json.loads(done.stdout.splitlines()[-1]))


def table(args: argparse.Namespace, samples: dict[str, list[Sample]]) -> str:
    """Medians of both sides, and of the ratios of the pairs of runs."""
    count = tokens(args)
    lines = [f"{'':8}{'tokens / CPU s':>16}{'CPU s':>9}{'peak MB':>10}{'last loss':>12}"]
    for side, runs in samples.items():
        seconds, megabytes, loss = (statistics.median(column) for column in zip(*runs, strict=True))
        lines.append(f"{side:8}{count / seconds:16.0f}{seconds:9.1f}{megabytes:10.0f}{loss:12.4f}")
    both = list(zip(samples["ours"], samples["trl"], strict=True))
    faster = [trl.seconds / ours.seconds for ours, trl in both]
    leaner = [ours.megabytes / trl.megabytes for ours, trl in both]
    spread = f"{min(faster):.2f} to {max(faster):.2f}"
    lines.append(
        f"ratio   {statistics.median(faster):.2f} x the speed ({spread}), {statistics.median(leaner):.2f} of the peak"
    )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parse = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parse.add_argument("--width", type=int, default=256, help="hidden size, a multiple of 64")
    parse.add_argument("--layers", type=int, default=4)
    parse.add_argument("--vocabulary", type=int, default=32000)
    parse.add_argument("--pairs", type=int, default=16)
    parse.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parse.add_argument("--shortest", type=int, default=16, help="tokens of a completion")
    parse.add_argument("--longest", type=int, default=384)
    parse.add_argument("--repeats", type=int, default=2)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--lora", action="store_true")
    parse.add_argument("--trl-checkpointing", action="store_true", help="activation checkpointing in TRL, its default")
    parse.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parse.add_argument("--model", default="", help=argparse.SUPPRESS)
    return parse


def main() -> None:
    """Measure one side (a child), or both in turn."""
    args = parser().parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.side:
            print("\n" + json.dumps(SIDES[args.side](args, args.model, folder)))
            return
        build_model(args, folder / "model")
        samples: dict[str, list[Sample]] = {side: [] for side in SIDES}
        for _ in range(args.repeats):
            for side, runs in samples.items():
                runs.append(measure(side, str(folder / "model"), sys.argv[1:]))
                print(f"  {side}: {runs[-1].seconds:.1f} CPU s, {runs[-1].megabytes:.0f} MB", file=sys.stderr)
        print(table(args, samples))


if __name__ == "__main__":
    main()
