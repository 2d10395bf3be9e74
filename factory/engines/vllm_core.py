"""One vLLM, shared by those of this process that want the same of it: started, asked step by step, given other weights.

Several engines may have requests in one vLLM, each in a thread of its own; the last that leaves it shuts it down.
"""

from __future__ import annotations

import gc
import itertools
import json
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from factory.faults import FactoryError
from factory.resources import ModelFiles
from factory.schema import Failure

MAX_ANSWER_TOKENS = 128  # token ids whose log-probs vLLM gives for one request
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # ranks that vLLM makes room for


class Setup(NamedTuple):
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


def rank_of(files: ModelFiles) -> int:
    """The highest rank in the adapter, rounded up to one that vLLM makes room for; 16 without an adapter."""
    if files.adapter is None:
        return 16
    where = Path(files.adapter) / "adapter_config.json"
    config = json.loads(where.read_text(encoding="utf-8"))
    highest = max([config.get("r", 0), *(config.get("rank_pattern") or {}).values()])
    return room_for(highest, str(where))


def room_for(rank: int, where: str) -> int:
    """The rank rounded up to one that vLLM makes room for."""
    if rank > LORA_RANKS[-1]:
        raise FactoryError(f"vLLM takes adapters up to rank {LORA_RANKS[-1]}, not {rank}", where=where)
    return next(room for room in LORA_RANKS if room >= rank)


_running: list[Core] = []
_starting = threading.Lock()


def acquire(setup: Setup, room: int, rank: int, on_cpu: bool, threads: int) -> Core:
    """A running vLLM of this setup with enough room for adapters, else a new one."""
    with _starting:
        for core in _running:
            if core.setup == setup and core.room >= room and (room == 0 or core.rank >= rank):
                core.users += 1
                return core
        _running.append(Core(setup, room, rank, on_cpu, threads))
        return _running[-1]


def release(core: Core) -> None:
    """Leave a vLLM; the last of its users shuts it down."""
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


class Core:
    """One vLLM. Several engines, each in a thread of its own, may have requests in it: whoever waits makes the step
    for all, and what belongs to others is kept for them."""

    def __init__(self, setup: Setup, room: int, rank: int, on_cpu: bool, threads: int) -> None:
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


def _start(setup: Setup, room: int, rank: int, on_cpu: bool, threads: int) -> Any:
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
