"""The embedded engine: any causal language model of transformers on this machine, batched and seeded (see decoding.py).

The work list is cut into batches of equal sampling and similar length. With `fixed_batches` the make-up of a batch is a
function of the whole list alone, and a batch is answered whole unless all of it is held: a run that was killed and goes
on gives the same answers, to the bit, as one that was not (same machine, dtype and threads). Without it only what is
missing is batched; the answers are then the same up to the rounding of a differently shaped batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from torch import Tensor

from factory.engines import Item, nothing_held
from factory.engines.chat import ChatText, Prepared
from factory.engines.decoding import Decoder, Row
from factory.faults import FactoryError
from factory.resources import ModelFiles, content_hash, local_folder, model_files
from factory.schema import Completion, Failure, Have, Identity, Request, Sampling, seed_of

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def default_dtype(device: str) -> str:
    """bfloat16 where the device multiplies it in hardware, else float32. Capability flags, not timing, decide: a
    resumed run must decide the same."""
    if device == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def default_threads() -> int:
    """OMP_NUM_THREADS if set, else 1 or all cores, whichever multiplies faster now (on a busy machine often one)."""
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(given) > 0:
        return int(given)
    cores = torch.get_num_threads()
    if cores == 1:
        return 1
    return min((1, cores), key=_seconds_with)


def _seconds_with(threads: int) -> float:
    """Median of ten matrix products of the size of a decoding step."""
    torch.set_num_threads(threads)
    left, right = torch.ones(64, 1024), torch.ones(1024, 1024)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


@dataclass(frozen=True, slots=True)
class _Work:
    """One answer to be made: a sample of a request, whose prompt is tokenised."""

    request: Request
    sample: int
    prepared: Prepared

    @property
    def prompt(self) -> tuple[int, ...]:
        """Its token ids."""
        return self.prepared.ids

    @property
    def room(self) -> int:
        """Positions that it may take in the cache."""
        return len(self.prompt) + self.request.sampling.max_tokens


class TransformersEngine:
    """Answers requests with a model of transformers.

    model: a name that `resources.model_files` knows. device: "auto" takes cuda where there is one. dtype: see
    `default_dtype`; it is part of the identity. batch_size: rows in decoding (auto: 128 on a CPU, 256 else).
    batch_tokens: cache positions of a batch. threads: see `default_threads`; it holds for the process. Their number may
    change the last bits of a number, and with them now and then a token, so a run that is to be repeated exactly names
    it. Wanted `answers`: the probability of all tokens that begin one (as it stands, after a space, at the start of a
    line) counts together, from the whole distribution; two that share a token fail with kind "ambiguous_answers".
    `json_schema` is not supported: such a request fails with kind "unsupported".
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: DTypeName = "auto",
        batch_size: int | None = None,
        batch_tokens: int = 32768,
        prefill_tokens: int = 4096,
        fixed_batches: bool = True,
        threads: int | None = None,
    ) -> None:
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.dtype = default_dtype(self.device) if dtype == "auto" else dtype
        if self.dtype not in DTYPES:
            raise FactoryError(f"no dtype named {dtype!r}. Known: auto, {', '.join(DTYPES)}")
        self.threads = threads or default_threads()
        torch.set_num_threads(self.threads)
        self.batch_size = batch_size or (128 if self.device == "cpu" else 256)
        self.batch_tokens = batch_tokens
        self.fixed_batches = fixed_batches
        files = model_files(model)
        self._identity = Identity("transformers", model, content_hash(files, self.dtype))
        self.tokenizer = load_tokenizer(files)
        language_model = load_model(files, DTYPES[self.dtype], self.device)
        self.context = int(getattr(language_model.config, "max_position_embeddings", 0) or 2**31)
        ends = end_tokens(language_model, self.tokenizer)
        self.decoder = Decoder(language_model, ends, min(ends), prefill_tokens)
        self.chat = ChatText(self.tokenizer, ends, self.context)

    @property
    def identity(self) -> Identity:
        """Kind, name, and the content hash of the model with adapter, chat template and dtype."""
        return self._identity

    def close(self) -> None:
        """Free the model; the engine is of no use after it."""
        self.__dict__.pop("decoder", None)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def render(self, request: Request) -> str:
        """See `ChatText.render`."""
        return self.chat.render(request)

    # -------------------------------------------------------------------------------------------------- the work list

    def generate(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[Completion]:
        """See `Engine.generate`."""
        for burst in self.bursts(requests, have):
            yield from burst

    def bursts(self, requests: Iterable[Request], have: Have = nothing_held) -> Iterator[list[Completion]]:
        """`generate`, with the completions that finish at the same moment together."""
        work, refused = self._works((request, sample) for request in requests for sample in range(request.n))
        if failed := [c for c in refused if not have(c.request, c.sample)]:
            yield failed
        if not self.fixed_batches:
            work = [item for item in work if not have(item.request, item.sample)]
        for batch in self._batches(work):
            if not all(have(item.request, item.sample) for item in batch):
                yield from self._answer(batch)

    def cut(self, requests: Sequence[Request]) -> list[list[Item]] | None:
        """See `BatchEngine.cut`. What cannot be answered is a batch of its own."""
        if not self.fixed_batches:
            return None
        work, refused = self._works((request, sample) for request in requests for sample in range(request.n))
        batches = [[(item.request, item.sample) for item in batch] for batch in self._batches(work)]
        return [[(c.request, c.sample) for c in refused], *batches] if refused else batches

    def answer(self, batch: Sequence[Item]) -> Iterator[list[Completion]]:
        """See `BatchEngine.answer`."""
        work, refused = self._works(batch)
        if refused:
            yield refused
        if work:
            yield from self._answer(work)

    def _works(self, items: Iterable[Item]) -> tuple[list[_Work], list[Completion]]:
        """The items as work, in order, and the failures of those that cannot be answered."""
        work: list[_Work] = []
        refused: list[Completion] = []
        seen: dict[int, Prepared | Failure] = {}
        for request, sample in items:
            if id(request) not in seen:
                seen[id(request)] = self._prepare(request)
            prepared = seen[id(request)]
            if isinstance(prepared, Failure):
                refused.append(Completion(request, sample, failure=prepared))
            else:
                work.append(_Work(request, sample, prepared))
        return work, refused

    def _prepare(self, request: Request) -> Prepared | Failure:
        if request.json_schema is not None:
            return Failure("unsupported", "the transformers engine does not support json_schema; use vllm or openai")
        return self.chat.prepare(request)

    def _batches(self, work: Sequence[_Work]) -> Iterator[list[_Work]]:
        """Batches of equal sampling, with wanted answers or without, longest prompts first, samples of a prompt
        together."""
        groups: dict[tuple[Sampling, bool], list[_Work]] = {}
        for item in work:
            groups.setdefault((item.request.sampling, bool(item.request.answers)), []).append(item)
        for group in groups.values():
            group.sort(key=lambda item: (-len(item.prompt), item.prompt))
            batch: list[_Work] = []
            for item in group:
                widest = batch[0].room if batch else item.room
                if batch and (len(batch) == self.batch_size or (len(batch) + 1) * widest > self.batch_tokens):
                    yield batch
                    batch = []
                batch.append(item)
            yield batch

    # ------------------------------------------------------------------------------------------------------ answering

    def _answer(self, batch: Sequence[_Work]) -> Iterator[list[Completion]]:
        """One burst for each step of decoding at which rows finish."""
        began = time.perf_counter()
        places: dict[tuple[int, ...], int] = {}
        rows: dict[int, _Work] = {}
        made: list[Row] = []
        for item in batch:
            place = places.setdefault(item.prompt, len(places))
            limit = min(item.request.sampling.max_tokens, self.context - len(item.prompt))
            made.append(Row(place, limit, seed_of(item.request.seed, item.sample, item.prepared.rendered)))
            rows[id(made[-1])] = item
        sampling = batch[0].request.sampling
        start = self.decoder.prefill(
            list(map(list, places)),
            keep=any(row.limit > 1 for row in made),
            exact=any(item.request.answers for item in batch),
        )
        seen = self._seen(batch, places, start.logits)
        stopped = self._stopper(sampling.stop)
        for finished in self.decoder.decode(start, made, sampling, stopped):
            latency = time.perf_counter() - began
            items = [rows[id(row)] for row in finished]
            yield [
                self._completion(item, row, latency, seen.get((item.prompt, item.request.answers)))
                for item, row in zip(items, finished, strict=True)
            ]

    @torch.inference_mode()
    def _seen(
        self, batch: Sequence[_Work], places: Mapping[tuple[int, ...], int], logits: Tensor
    ) -> dict[tuple[tuple[int, ...], tuple[str, ...]], dict[str, float]]:
        """Log-probability that the first token begins each wanted answer, by prompt and answers; `logits` (prompts,
        vocabulary)."""
        wanted = {(item.prompt, item.request.answers): item.prepared.answers for item in batch if item.request.answers}
        seen = {}
        for (prompt, answers), variants in wanted.items():
            logprobs = logits[places[prompt]].log_softmax(-1)
            seen[prompt, answers] = {
                answer: min(0.0, float(logprobs[list(tokens)].logsumexp(0))) for answer, tokens in variants.items()
            }
        return seen

    def _completion(
        self, item: _Work, row: Row, latency: float, answer_logprobs: Mapping[str, float] | None
    ) -> Completion:
        return Completion(
            item.request,
            item.sample,
            text=self.chat.text(row.ids, item.request.sampling.stop),
            finish_reason=row.finish_reason,
            prompt_tokens=len(item.prompt),
            completion_tokens=len(row.ids),
            logprob=row.logprob,
            answer_logprobs=answer_logprobs,
            cost=0.0,
            latency=latency,
        )

    def _stopper(self, stops: tuple[str, ...]) -> Any:
        """A function that tells whether a row's text holds a stop string by now; None without any."""
        if not stops:
            return None
        tail = max(len(stop.encode()) for stop in stops) + 8  # a token is at least a byte

        def stopped(row: Row) -> bool:
            near = self.tokenizer.decode(row.ids[-tail:], skip_special_tokens=True)
            if not any(stop in near for stop in stops):
                return False
            text = self.tokenizer.decode(row.ids, skip_special_tokens=True)
            return any(stop in text for stop in stops)

        return stopped


# ---------------------------------------------------------------------------------------------------------- loading


def load_tokenizer(files: ModelFiles) -> Any:
    """The base's tokenizer; it must have a chat template."""
    from transformers import AutoTokenizer

    folder = local_folder(files.base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise FactoryError(
            "the model has no chat template", where=str(folder),
            todo="name an instruction-tuned model, or put a chat_template.jinja into its folder",
        )  # fmt: skip
    return tokenizer


def load_model(files: ModelFiles, dtype: torch.dtype, device: str) -> Any:
    """The model in evaluation mode, its adapter merged into the weights (in float32, then cast)."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = local_folder(files.base)
    try:
        if files.adapter is None:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        else:
            from peft import PeftModel

            base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            model = PeftModel.from_pretrained(base, files.adapter).merge_and_unload().to(dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise FactoryError(
            f"the model does not load: {error}", where=files.adapter or str(folder),
            todo="name a causal language model that this transformers knows, and an adapter made for it",
        ) from error  # fmt: skip
    return model.to(device).eval()


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids of every token that ends an answer: the generation config's, the tokenizer's, and the chat template's."""
    listed = model.generation_config.eos_token_id
    ends = set(listed if isinstance(listed, list) else [listed]) | {tokenizer.eos_token_id, _turn_end(tokenizer)}
    ends.discard(None)
    if not ends:
        raise FactoryError("the model names no end token", todo="set eos_token_id in its generation_config.json")
    return sorted(ends)


def _turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template puts after an assistant's answer, if it puts one."""
    said = "answer"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": said}]
    try:
        after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(said)[2]
    except TemplateError:
        return None
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return ids[0] if ids and ids[0] in special else None
