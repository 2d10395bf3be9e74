"""The embedded engine: any causal language model of transformers on this machine, batched and seeded (see decoding.py).

The work list is cut into batches of equal sampling and similar length. With `fixed_batches` the make-up of a batch is a
function of the whole list alone, and a batch is answered whole unless all of it is held: a run that was killed and goes
on gives the same answers, to the bit, as one that was not (same machine, dtype and threads). Without it only what is
missing is answered, and the place of an answer that has ended is taken by the next (continuous.py), which is faster the
more the answers differ in length; they are the same up to the rounding of a differently shaped batch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor

from factory.engines import Item, nothing_held
from factory.engines.chat import ChatText, Prepared
from factory.engines.continuous import Continuous, Group, Room, room_for
from factory.engines.decoding import Decoder, Prefilled, Prefix, Row
from factory.faults import FactoryError
from factory.resources import ModelFiles, content_hash, local_folder, model_files
from factory.schema import Completion, Failure, Have, Identity, Request, Sampling, seed_of

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
log = logging.getLogger("factory")

THREAD_ROUNDS = 6  # of measuring
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
    """OMP_NUM_THREADS if set, else one, half or all of the cores, whichever is fastest now: beside other work two
    threads can take ten times as long as one, because each operation waits for the slower of them."""
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(given) > 0:
        return int(given)
    cores = torch.get_num_threads()
    try:
        return fastest(sorted({1, max(1, cores // 2), cores}), _seconds_with)
    finally:
        torch.set_num_threads(cores)


def fastest(counts: Sequence[int], seconds: Callable[[int], float]) -> int:
    """The count (of some, ascending) whose `seconds` are least in sum over rounds.

    In turns, so that all meet the same neighbours; in sum, not in the median, for where threads wait for a core now and
    then it is the long waits that count. A count that takes twice as long as another is given up, unless it is the
    least; more threads must gain a tenth.
    """
    spent = dict.fromkeys(counts, 0.0)
    for _ in range(THREAD_ROUNDS):
        for count in spent:
            spent[count] += seconds(count)
        enough = 2 * min(spent.values())
        spent = {count: total for count, total in spent.items() if total <= enough or count == counts[0]}
        if len(spent) == 1:
            break
    best = min(spent.values())
    return min(count for count, total in spent.items() if total <= 1.1 * best)


def _seconds_with(threads: int) -> float:
    """As many matrix products as a decoding step of a small model has in a few layers, one after the other."""
    torch.set_num_threads(threads)
    left, right = torch.ones(64, 576), torch.ones(576, 1536)
    start = time.perf_counter()
    for _ in range(20):
        left @ right
    return time.perf_counter() - start


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


class _Begun(NamedTuple):
    """An answer in the making: since when (seconds of the monotonic clock), and what was read for wanted answers."""

    item: _Work
    began: float
    answer_logprobs: Mapping[str, float] | None


class TransformersEngine:
    """Answers requests with a model of transformers.

    model: a name that `resources.model_files` knows. device: "auto" takes cuda where there is one. dtype: see
    `default_dtype`; it is part of the identity. batch_size: rows in decoding (auto: 128 on a CPU, 256 else).
    batch_tokens: cache positions of a batch. fixed_batches: see above; a model whose layers keep more than keys and
    values by position is answered in batches also without it. threads: see `default_threads`; it holds for the process.
    Their number may change the last bits of a number, and with them now and then a token, so a run that is to be
    repeated exactly names it. Wanted `answers`: the probability of all tokens that begin one (as it stands, after a
    space, at the start of a line) counts together, from the whole distribution; two that share a token fail with kind
    "ambiguous_answers".
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
        self.continuous = not fixed_batches and self.decoder.plain
        if not fixed_batches and not self.continuous:
            log.warning("%s keeps a state that cannot be moved between places: it is answered batch by batch", model)

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
        if self.continuous:
            yield from self._continuously(work)
            return
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
            group.sort(key=_longest_first)
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
        start, rows = self._begin(batch)
        sampling = batch[0].request.sampling
        stops = self._stopper(sampling.stop)
        stopped = None if stops is None else lambda row: stops(row.ids)
        for finished in self.decoder.decode(start, list(rows), sampling, stopped):
            yield [self._completion(rows[row], row) for row in finished]

    def _continuously(self, work: Iterable[_Work]) -> Iterator[list[Completion]]:
        """One burst for each step of decoding at which rows finish, the place of each taken by the next. What differs
        in stop strings, or in limits by less than a factor of two, is decoded together; answers of one token need no
        places."""
        groups: dict[tuple[Sampling, bool, int], list[_Work]] = {}
        for item in work:
            sampling = replace(item.request.sampling, max_tokens=0, stop=())
            limit = item.request.sampling.max_tokens.bit_length()
            groups.setdefault((sampling, bool(item.request.answers), limit), []).append(item)
        for (sampling, _, limit), group in groups.items():
            if limit == 1:
                for batch in self._batches(group):
                    yield from self._answer(batch)
                continue
            for stretch, room in self._stretches(sorted(group, key=_longest_first)):
                yield from self._flow(stretch, room, sampling)

    def _stretches(self, work: Sequence[_Work]) -> Iterator[tuple[Sequence[_Work], Room]]:
        """Work, longest prompts first, with room for it; cut where the rest has room for twice as many rows at a time:
        a few long prompts are not to keep places from all others."""
        longest = max(self._limit(item) for item in work)
        rooms = (room_for(len(item.prompt), longest, self.batch_size, self.batch_tokens) for item in work)
        start, room = 0, next(rooms)
        for at, other in enumerate(rooms, 1):
            if at - start >= room.slots and other.slots >= 2 * room.slots:
                yield work[start:at], room
                start, room = at, other
        yield work[start:], room._replace(slots=min(room.slots, len(work) - start))

    def _flow(self, work: Sequence[_Work], room: Room, sampling: Sampling) -> Iterator[list[Completion]]:
        """Answer work of equal sampling, longest prompts first, as places come free."""
        rows: dict[Row, _Begun] = {}
        prefix = self.decoder.common(list(dict.fromkeys(item.prompt for item in work)))
        known = prefix if prefix.length else None  # without one, what the prompts of a portion share is looked for

        def groups() -> Iterator[Group]:
            for part in self._portions(work, prefix.length):
                start, begun = self._begin(part, known)
                rows.update(begun)
                yield Group(start, list(begun))

        stopper = lru_cache(maxsize=None)(self._stopper)

        def stopped(row: Row) -> bool:
            stops = stopper(rows[row].item.request.sampling.stop)
            return stops is not None and stops(row.ids)

        for finished in Continuous(self.decoder, room, sampling, stopped).decode(groups()):
            yield [self._completion(rows.pop(row), row) for row in finished]

    def _portions(self, work: Iterable[_Work], shared: int) -> Iterator[list[_Work]]:
        """Work whose prompts are read together, in one pass: all samples of some prompts of like length, which have
        `shared` tokens in common."""
        part: list[_Work] = []
        prompts = 0
        for item in work:
            other = not part or item.prompt != part[-1].prompt
            width = len(part[0].prompt) if part else 0
            passed = (prompts + 1) * (width - shared) > self.decoder.prefill_tokens
            if part and other and (passed or (prompts + 1) * width > self.batch_tokens):
                yield part
                part, prompts = [], 0
            part.append(item)
            prompts += other
        yield part

    def _begin(self, batch: Sequence[_Work], prefix: Prefix | None = None) -> tuple[Prefilled, dict[Row, _Begun]]:
        """Read the prompts of a batch; its rows, in order."""
        began = time.perf_counter()
        places: dict[tuple[int, ...], int] = {}
        rows = {}
        for item in batch:
            place = places.setdefault(item.prompt, len(places))
            seed = seed_of(item.request.seed, item.sample, item.prepared.rendered)
            rows[Row(place, self._limit(item), seed)] = item
        start = self.decoder.prefill(
            list(places),
            keep=any(row.limit > 1 for row in rows),
            exact=any(item.request.answers for item in batch),
            prefix=prefix,
        )
        seen = self._seen(batch, places, start.logits)
        return start, {
            row: _Begun(item, began, seen.get((item.prompt, item.request.answers))) for row, item in rows.items()
        }

    def _limit(self, item: _Work) -> int:
        """Tokens that its answer may have."""
        return min(item.request.sampling.max_tokens, self.context - len(item.prompt))

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

    def _completion(self, begun: _Begun, row: Row) -> Completion:
        item = begun.item
        return Completion(
            item.request,
            item.sample,
            text=self.chat.text(row.ids, item.request.sampling.stop),
            finish_reason=row.finish_reason,
            prompt_tokens=len(item.prompt),
            completion_tokens=len(row.ids),
            logprob=row.logprob,
            answer_logprobs=begun.answer_logprobs,
            cost=0.0,
            latency=time.perf_counter() - begun.began,
        )

    def _stopper(self, stops: tuple[str, ...]) -> Callable[[Sequence[int]], bool] | None:
        """A function that tells whether the text of an answer's tokens holds a stop string by now; None without any."""
        if not stops:
            return None
        tail = max(len(stop.encode()) for stop in stops) + 8  # a token is at least a byte

        def stopped(ids: Sequence[int]) -> bool:
            near = self.tokenizer.decode(ids[-tail:], skip_special_tokens=True)
            if not any(stop in near for stop in stops):
                return False
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            return any(stop in text for stop in stops)

        return stopped


def _longest_first(item: _Work) -> tuple[int, tuple[int, ...]]:
    """The order of work: like lengths together, and samples of a prompt together."""
    return -len(item.prompt), item.prompt


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
