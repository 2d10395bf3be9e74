"""A vLLM that samples for a training: whoever trains hands its weights over, an adapter or the whole model's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from factory.engines.vllm_core import Setup, acquire, release, room_for
from factory.engines.vllm_environment import (
    DTypeName,
    auto_dtype,
    check_options,
    cpu_build,
    import_vllm,
    prepare_environment,
)
from factory.faults import FactoryError
from factory.resources import local_folder
from factory.schema import Sampling

_samplers = itertools.count(1)


class Drawn(NamedTuple):
    """A sampled answer: token ids, the end token included unless it was cut, and the sum of their log-probs, nats."""

    ids: tuple[int, ...]
    logprob: float


class VllmSampler:
    """Samples answers to token ids, with weights that whoever trains them hands over; has a vLLM of its own.

    base: folder or name of the model. rank: of the adapter that will come (`take_adapter`); None: the whole model's
    weights will (`take_weights`). gpu_memory_utilization leaves room for the training. Other options as for
    `VllmEngine`. On a GPU, too, the vLLM runs in this process: tensors are handed over as they are. FactoryError: it
    does not start.
    """

    def __init__(
        self,
        base: str,
        *,
        rank: int | None,
        dtype: DTypeName = "auto",
        float32_head: bool = True,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.4,
        max_num_seqs: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_options(
            dtype,
            gpu_memory_utilization,
            None,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            threads=threads,
        )
        on_cpu = cpu_build()
        threads = threads or torch.get_num_threads()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        prepare_environment(on_cpu, threads)
        import_vllm()
        kind = auto_dtype(on_cpu) if dtype == "auto" else dtype
        setup = Setup(str(local_folder(base)), kind, None, float32_head, max_model_len, gpu_memory_utilization, 1,
                       max_num_seqs, bare=rank is None, own=str(next(_samplers)))  # fmt: skip
        self.core = acquire(setup, int(rank is not None), room_for(rank or 1, base), on_cpu, threads)
        self._lora: Any = None
        self._closed = False

    def take_adapter(self, folder: str) -> None:
        """Sample with this adapter from now on; the folder is read now and not again. FactoryError: vLLM cannot use
        it."""
        if self._lora is not None:
            self.core.remove_adapter(self._lora)
        self._lora = self.core.add_adapter(folder, f"sampler {self.core.setup.own}, weights {self.core.name()}")

    def take_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Sample with these weights from now on: all of the model's, under the names of transformers."""
        self.core.take_weights(weights)

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, ends: Sequence[int]
    ) -> list[Drawn]:
        """One answer for each prompt with its seed, in order. FactoryError: vLLM refuses one, or ends."""
        places: dict[str, int] = {}
        found: dict[int, Drawn] = {}
        try:
            for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                name = self.core.name()
                refusal = self.core.add(name, prompt, self._parameters(len(prompt), seed, sampling, ends), self._lora)
                if refusal is not None:
                    raise FactoryError(f"vLLM refuses a prompt: {refusal.detail}", todo="raise max_model_len")
                places[name] = place
            while places:
                for out in self.core.step(places):
                    found[places.pop(out.request_id)] = _drawn(out)
        finally:
            self.core.abort(places)
        return [found[place] for place in range(len(prompts))]

    def _parameters(self, read: int, seed: int, sampling: Sampling, ends: Sequence[int]) -> dict[str, Any]:
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": max(1, min(sampling.max_tokens, self.core.context - read)),
            "stop_token_ids": list(ends),
            "detokenize": False,
            "seed": seed % 2**31,
            "logprobs": 0,
            "json_schema": None,
        }

    def close(self) -> None:
        """End the vLLM and give its memory back."""
        if not self._closed:
            self._closed = True
            release(self.core)


def _drawn(output: Any) -> Drawn:
    (made,) = output.outputs
    if made.finish_reason not in {"stop", "length"}:
        raise FactoryError(f"vLLM ended an answer: {made.finish_reason}")
    return Drawn(tuple(made.token_ids), float(made.cumulative_logprob))
