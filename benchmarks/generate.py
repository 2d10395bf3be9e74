"""The transformers engine against transformers' own `model.generate`: same weights, dtype and threads.

    python benchmarks/generate.py [sampling|mixed|judging ...] [--model NAME|tiny] [--prompts N] [--batch-size N]
        [--pairs N] [--threads N]

- sampling: `n` answers to each of some short prompts; `generate` is called once a prompt, with its n samples as a
  batch, as most scripts do.
- mixed: one answer to each prompt, prompts of 16 to 256 tokens in random order; `generate` is called on batches of
  `--batch-size` padded prompts, and the engine, with as many rows at most, runs continuously and in fixed batches. How
  long each answer gets is drawn beforehand (evenly from 8 to 128 tokens; or ending at each token with the same
  probability, 48 on average and 256 at most) and the same on all sides; end tokens do not count.
- judging: the log-probabilities of "A" and "B" for prompts that share their instructions; plain is one forward pass a
  prompt.

Runs alternate, so that a busy machine slows all; printed are the medians, and the median of the ratio within a pair.
`tiny` is a random model of two layers with the embedded model's tokenizer: what is measured there is overhead.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria

from factory.engines.transformers import DTYPES, TransformersEngine, load_model, load_tokenizer
from factory.resources import EMBEDDED, model_files
from factory.schema import Request, Sampling

TOPICS = (
    "rivers", "bread", "glass", "owls", "chess", "volcanoes", "tea", "maps", "the moon", "salt", "clocks", "bees",
    "bridges", "paper", "rice", "iron", "music", "horses", "snow", "lighthouses", "silk", "deserts", "kites", "apples",
)  # fmt: skip
TASKS = ("Tell me something about {}.", "Write two sentences about {}.", "Why do people like {}? Answer in a list.")
RUBRIC = (
    "Two answers to a request are shown. Decide which one follows the request more closely, is more correct and is "
    "better written. Do not let length or order sway you. Say A or B and nothing else.\n\n"
)


def prompts(count: int) -> list[str]:
    return [TASKS[i % len(TASKS)].format(TOPICS[i % len(TOPICS)]) for i in range(count)]


def chat(text: str, **more: Any) -> Request:
    return Request([{"role": "user", "content": text}], **more)


def plain_model(engine: TransformersEngine) -> Any:
    """The engine's model as transformers gives it."""
    return load_model(model_files(engine.identity.model), DTYPES[engine.dtype], engine.device)


def engine_sampling(engine: TransformersEngine, texts: list[str], n: int, sampling: Sampling) -> int:
    """Tokens generated."""
    requests = [chat(text, sampling=sampling, n=n) for text in texts]
    return sum(completion.completion_tokens for completion in engine.generate(requests))


def plain_sampling(engine: TransformersEngine, model: Any, texts: list[str], n: int, sampling: Sampling) -> int:
    """Tokens generated, up to and with the first end token of each answer."""
    tokens = 0
    ends = torch.tensor(sorted(engine.decoder.ends))
    for text in texts:
        ids = encoded(engine, text)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=n, max_new_tokens=sampling.max_tokens, pad_token_id=engine.decoder.pad,
        )[:, ids.shape[1] :]  # fmt: skip
        ended = torch.isin(out, ends).int()
        tokens += int(((ended.cumsum(-1) - ended) == 0).sum())
    return tokens


# ------------------------------------------------------------------------------------------------------ mixed lengths


class Measured(TransformersEngine):
    """The engine, but an answer has the length that `limits` has under its request's tag, and no end token ends it."""

    limits: Mapping[str, int]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.decoder.ends = frozenset()

    def _limit(self, item: Any) -> int:
        return self.limits[item.request.tag]


class AtLimits(StoppingCriteria):  # type: ignore[misc]
    """`generate` stops each row at its own length. limits (rows,); `width` of the prompts."""

    def __init__(self, width: int, limits: Tensor) -> None:
        self.width, self.limits = width, limits

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: Any) -> Tensor:
        return input_ids.shape[1] - self.width >= self.limits


LENGTHS: Mapping[str, Callable[[random.Random], int]] = {
    "even 8-128": lambda rng: rng.randint(8, 128),
    "random end, mean 48": lambda rng: min(256, 1 + int(rng.expovariate(1 / 48))),
}


def mixed_requests(engine: TransformersEngine, count: int, longest: int) -> list[Request]:
    """Prompts of 16 to 256 tokens, template included."""
    rng, made = random.Random(0), []
    for number in range(count):
        words, length = [rng.choice(TOPICS)], rng.randint(16, 256)
        while encoded(engine, " ".join(words)).shape[1] < length:
            words.append(rng.choice(TOPICS))
        made.append(chat(" ".join(words), sampling=Sampling(max_tokens=longest), seed=number, tag=str(number)))
    return made


def engine_mixed(engine: Measured, requests: Sequence[Request]) -> int:
    """Answers given."""
    got = {completion.request.tag: completion.completion_tokens for completion in engine.generate(requests)}
    if got != engine.limits:
        raise RuntimeError("the answers do not have the lengths that they were to have")
    return len(got)


def plain_mixed(engine: Measured, model: Any, requests: Sequence[Request]) -> int:
    """Answers given."""
    for first in range(0, len(requests), engine.batch_size):
        batch = requests[first : first + engine.batch_size]
        rendered = [engine.render(request) for request in batch]
        inputs = engine.tokenizer(
            rendered, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        ).to(engine.device)
        limits = torch.tensor([engine.limits[request.tag] for request in batch], device=engine.device)
        model.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=int(limits.max()),
            pad_token_id=engine.decoder.pad,
            stopping_criteria=[AtLimits(inputs["input_ids"].shape[1], limits)],
        )  # fmt: skip
    return len(requests)


def mixed(given: argparse.Namespace, options: dict[str, Any]) -> None:
    fixed = Measured(given.model, **options)
    free = Measured(given.model, **options, fixed_batches=False)
    model = plain_model(fixed)
    model.generation_config.eos_token_id = None
    requests = mixed_requests(fixed, given.prompts, 256)
    ways = {
        "continuous": lambda: engine_mixed(free, requests),
        "fixed batches": lambda: engine_mixed(fixed, requests),
        "generate": lambda: plain_mixed(fixed, model, requests),
    }
    print(f"mixed: {given.prompts} prompts of 16 to 256 tokens, {given.batch_size} rows at a time")
    for name, draw in LENGTHS.items():
        rng = random.Random(1)
        fixed.limits = free.limits = {request.tag: draw(rng) for request in requests}
        list(free.generate(requests[:2])), plain_mixed(fixed, model, requests[:2])
        paired(f"  {name}", "answers", ways, given.pairs)


# ------------------------------------------------------------------------------------------------------------ judging


def judging_texts(texts: list[str]) -> list[str]:
    return [f"{RUBRIC}Request: {text}\n\nA: It is old.\n\nB: People have known it for ages.\n" for text in texts]


def engine_judging(engine: TransformersEngine, texts: list[str]) -> int:
    """Prompts judged."""
    sampling = Sampling(max_tokens=1)
    requests = [chat(text, sampling=sampling, answers=("A", "B")) for text in judging_texts(texts)]
    return sum(completion.answer_logprobs is not None for completion in engine.generate(requests))


@torch.inference_mode()
def plain_judging(engine: TransformersEngine, model: Any, texts: list[str]) -> int:
    """Prompts judged."""
    for text in judging_texts(texts):
        model(encoded(engine, text), logits_to_keep=1, use_cache=False).logits[0, -1].log_softmax(-1)
    return len(texts)


def encoded(engine: TransformersEngine, text: str) -> torch.Tensor:
    rendered = engine.render(chat(text))
    return torch.tensor([engine.tokenizer(rendered, add_special_tokens=False)["input_ids"]], device=engine.device)


# ---------------------------------------------------------------------------------------------------------- measuring


class Rate(NamedTuple):
    """Units done in a second of the clock and in a second of processor time (which other programs slow less)."""

    wall: float
    cpu: float


def paired(name: str, unit: str, ways: Mapping[str, Callable[[], int]], pairs: int) -> None:
    """Measure all ways in turn; print medians, and of each but the last its ratio to the last."""
    rounds = []
    for _ in range(pairs):
        rounds.append({way: rate(work) for way, work in ways.items()})
        print(name, {way: round(one.wall, 2) for way, one in rounds[-1].items()}, f"{unit}/s", file=sys.stderr)
    *ours, plain = ways
    print(f"{name}: {plain} {median(each[plain].wall for each in rounds):.2f} {unit}/s")
    for way in ours:
        wall = median(each[way].wall / each[plain].wall for each in rounds)
        cpu = median(each[way].cpu / each[plain].cpu for each in rounds)
        speed = median(each[way].wall for each in rounds)
        print(f"{name}: {way} {speed:.2f} {unit}/s, {wall:.1f} times by the clock, {cpu:.1f} by processor time")


def rate(work: Callable[[], int]) -> Rate:
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    return Rate(done / (time.perf_counter() - wall), done / (time.process_time() - cpu))


def make_tiny(folder: str) -> str:
    """Two layers of width 64 with the embedded model's tokenizer and random weights."""
    tokenizer = load_tokenizer(model_files(EMBEDDED))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sampling(given: argparse.Namespace, options: dict[str, Any]) -> None:
    engine = TransformersEngine(given.model, **options)
    model, texts, how = plain_model(engine), prompts(given.prompts), Sampling(max_tokens=given.max_tokens)
    engine_sampling(engine, texts[:2], 2, how), plain_sampling(engine, model, texts[:1], 1, how)
    paired(
        f"sampling, {given.prompts} prompts x {given.n}", "tokens",
        {
            "engine": lambda: engine_sampling(engine, texts, given.n, how),
            "generate": lambda: plain_sampling(engine, model, texts, given.n, how),
        },
        given.pairs,
    )  # fmt: skip


def judging(given: argparse.Namespace, options: dict[str, Any]) -> None:
    engine = TransformersEngine(given.model, **options)
    model, texts = plain_model(engine), prompts(given.prompts)
    engine_judging(engine, texts[:2]), plain_judging(engine, model, texts[:2])
    paired(
        f"judging, {given.prompts} prompts", "prompts",
        {"engine": lambda: engine_judging(engine, texts), "forward": lambda: plain_judging(engine, model, texts)},
        given.pairs,
    )  # fmt: skip


PARTS = {"sampling": sampling, "mixed": mixed, "judging": judging}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", help=f"what to measure, of {', '.join(PARTS)}; all of them if none is named"
    )
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    if wrong := set(given.parts) - set(PARTS):
        parser.error(f"no part named {', '.join(sorted(wrong))}; known: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        name = given.model
        given.model = make_tiny(folder) if name == "tiny" else name
        options = {"dtype": given.dtype, "threads": given.threads, "batch_size": given.batch_size}
        engine = TransformersEngine(given.model, **options)
        options["threads"] = engine.threads
        print(f"{name}, {engine.device}, {engine.dtype}, {engine.threads} threads")
        del engine
        for part in given.parts or PARTS:
            PARTS[part](given, options)


if __name__ == "__main__":
    main()
