"""The vllm engine against the transformers engine, both in this process, with the same model, dtype and threads.

    .venv-vllm/bin/python benchmarks/vllm_engine.py [--model NAME] [--prompts 24] [--n 4] [--max-tokens 60] [--pairs 3]
        [--no-float32-head]

The work is that of generate.py: n samples of each prompt, then the log-probs of "A" and "B" for prompts that share
their instructions. Runs alternate, so that a busy machine slows both; printed are the medians of units a second and of
the ratio within each pair, by the clock and by processor time. Each run's prompts begin with its number, so that vLLM
finds no prefix in its cache but the run's own.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from functools import partial
from statistics import median
from typing import Any

from generate import judging_texts, prompts, rate

from factory.engines import Engine
from factory.engines.transformers import TransformersEngine
from factory.engines.vllm import VllmEngine
from factory.resources import EMBEDDED
from factory.schema import Request, Sampling


def sampled(engine: Engine, texts: list[str], n: int, max_tokens: int, number: int) -> int:
    """Tokens generated in run `number`, whose prompts no other run has."""
    requests = [
        Request([{"role": "user", "content": f"{number}. {text}"}], Sampling(max_tokens=max_tokens), n=n, seed=number)
        for text in texts
    ]
    return sum(completion.completion_tokens for completion in engine.generate(requests))


def judged(engine: Engine, texts: list[str], number: int) -> int:
    """Prompts judged in run `number`."""
    requests = [
        Request([{"role": "user", "content": f"{number}. {text}"}], Sampling(max_tokens=1), answers=("A", "B"))
        for text in judging_texts(texts)
    ]
    return sum(completion.answer_logprobs is not None for completion in engine.generate(requests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32-head", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    options: dict[str, Any] = {"dtype": given.dtype, "threads": given.threads}
    texts = prompts(given.prompts)
    with (
        closing(VllmEngine(given.model, max_model_len=2048, float32_head=given.float32_head, **options)) as vllm,
        closing(TransformersEngine(given.model, device="cpu", **options)) as transformers,
    ):
        print(f"{given.model}, {vllm.dtype} and {transformers.dtype}, {given.threads} threads, {given.prompts} prompts")
        sampling = partial(sampled, texts=texts, n=given.n, max_tokens=given.max_tokens)
        for name, unit, work in (
            ("sampling", "tokens", sampling),
            ("judging", "prompts", partial(judged, texts=texts)),
        ):
            for engine in (vllm, transformers):
                work(engine, number=0)
            runs = range(1, given.pairs + 1)
            pairs = [[rate(partial(work, engine, number=k)) for engine in (vllm, transformers)] for k in runs]
            print(
                f"{name}: vllm {median(v.wall for v, _ in pairs):.1f} {unit}/s,"
                f" transformers {median(t.wall for _, t in pairs):.1f};"
                f" ratio {median(v.wall / t.wall for v, t in pairs):.2f} by the clock,"
                f" {median(v.cpu / t.cpu for v, t in pairs):.2f} by processor time",
                flush=True,
            )


if __name__ == "__main__":
    main()
