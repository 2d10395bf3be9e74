"""The transformers engine against plain `model.generate`, called once a prompt as most scripts do.

    python benchmarks/generate.py [--model NAME] [--prompts 24] [--n 4] [--max-tokens 60] [--pairs 2] [--threads N]

Both sample `n` answers to each prompt from the same model object in the same dtype with the same threads; `generate`
gets the n samples of a prompt as one batch (num_return_sequences). Runs alternate, so that a busy machine slows both;
printed are the medians of tokens a second and of the ratio within each pair. Then the same for judging: the log-probs
of "A" and "B" for prompts that share their instructions, against one plain forward pass a prompt.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch

from factory.engines.transformers import TransformersEngine
from factory.resources import EMBEDDED
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


def engine_sampling(engine: TransformersEngine, texts: list[str], n: int, sampling: Sampling) -> int:
    """Tokens generated."""
    requests = [Request([{"role": "user", "content": text}], sampling, n=n) for text in texts]
    return sum(completion.completion_tokens for completion in engine.generate(requests))


def plain_sampling(engine: TransformersEngine, texts: list[str], n: int, sampling: Sampling) -> int:
    """Tokens generated, up to and with the first end token of each answer."""
    model, tokens = engine.decoder.model, 0
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


def judging_texts(texts: list[str]) -> list[str]:
    return [f"{RUBRIC}Request: {text}\n\nA: It is old.\n\nB: People have known it for ages.\n" for text in texts]


def engine_judging(engine: TransformersEngine, texts: list[str]) -> int:
    """Prompts judged."""
    sampling = Sampling(max_tokens=1)
    requests = [Request([{"role": "user", "content": t}], sampling, answers=("A", "B")) for t in judging_texts(texts)]
    return sum(completion.answer_logprobs is not None for completion in engine.generate(requests))


@torch.inference_mode()
def plain_judging(engine: TransformersEngine, texts: list[str]) -> int:
    """Prompts judged."""
    for text in judging_texts(texts):
        engine.decoder.model(encoded(engine, text), logits_to_keep=1, use_cache=False).logits[0, -1].log_softmax(-1)
    return len(texts)


def encoded(engine: TransformersEngine, text: str) -> torch.Tensor:
    rendered = engine.render(Request([{"role": "user", "content": text}]))
    return torch.tensor([engine.tokenizer(rendered, add_special_tokens=False)["input_ids"]], device=engine.device)


class Rate(NamedTuple):
    """Units done in a second of the clock and in a second of processor time (which other programs slow less)."""

    wall: float
    cpu: float


def paired(name: str, unit: str, ours: Callable[[], int], plain: Callable[[], int], pairs: int) -> None:
    """Measure both in turn; print medians."""
    rates = [(rate(ours), rate(plain)) for _ in range(pairs)]
    for engine, baseline in rates:
        print(f"  {name}: engine {engine.wall:.1f}, plain {baseline.wall:.1f} {unit}/s", file=sys.stderr)
    print(
        f"{name}: engine {median(e.wall for e, _ in rates):.1f} {unit}/s, plain {median(p.wall for _, p in rates):.1f};"
        f" ratio {median(e.wall / p.wall for e, p in rates):.1f} by the clock,"
        f" {median(e.cpu / p.cpu for e, p in rates):.1f} by processor time"
    )


def rate(work: Callable[[], int]) -> Rate:
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    return Rate(done / (time.perf_counter() - wall), done / (time.process_time() - cpu))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch-size", type=int)
    given = parser.parse_args()
    options: dict[str, Any] = {"dtype": given.dtype, "threads": given.threads, "batch_size": given.batch_size}
    engine = TransformersEngine(given.model, **options)
    texts, sampling = prompts(given.prompts), Sampling(max_tokens=given.max_tokens)
    print(
        f"{given.model}, {engine.device}, {engine.dtype}, {engine.threads} threads, {given.prompts} prompts x {given.n}"
    )
    engine_sampling(engine, texts[:2], 2, sampling), plain_sampling(engine, texts[:1], 1, sampling)
    paired(
        "sampling", "tokens",
        lambda: engine_sampling(engine, texts, given.n, sampling),
        lambda: plain_sampling(engine, texts, given.n, sampling), given.pairs,
    )  # fmt: skip
    paired(
        "judging", "prompts", lambda: engine_judging(engine, texts), lambda: plain_judging(engine, texts), given.pairs
    )


if __name__ == "__main__":
    main()
