"""The reward model: a sequence-classification model whose score of a conversation with its answer is the judgment.

Any folder or hub name that transformers' AutoModelForSequenceClassification opens, or a peft adapter on one. A score
is a log-odds without ends: of two answers to one prompt, p_a = sigmoid(r_a - r_b) (Ouyang et al., 2203.02155, eq. 1).
Nothing is cut: a conversation that is longer than the model reads is a failure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from factory.faults import FactoryError
from factory.judges import fence, options
from factory.judges.scoring import ScoringJudge
from factory.resources import ModelFiles, content_hash, model_files
from factory.schema import Candidate, Messages, Prompt, Reading
from train.conversations import RowError, render
from train.policy import DTYPES, DTypeName, resolve_device, resolve_dtype

READER = "2"
BATCH_TOKENS = {"cpu": 4096}
ACCELERATOR_BATCH_TOKENS = 65536
UNLIMITED = 10**9  # tokenizers without a limit of their own say some number above this


class _Row(NamedTuple):
    """An answer as the model reads it, or why it cannot."""

    ids: tuple[int, ...]
    kinds: tuple[int, ...] | None  # BERT's segments
    stripped: int
    failure: Reading | None = None


class RewardModelJudge(ScoringJudge):
    """Scores every answer by `model`, which is loaded when it is first needed and stays until `close`.

    With one label its logit is the score; with more, the log-odds of `label` (a name or a number; of two labels the
    second by default) against the rest. `max_length` is the most tokens of a conversation with its answer; by default
    what the model reads. `dtype` auto is bfloat16 where the device multiplies it, the head always float32.
    """

    def __init__(
        self,
        name: str = "reward_model",
        *,
        model: str,
        label: str | int | None = None,
        max_length: int | None = None,
        device: str = "auto",
        dtype: DTypeName = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        options.check(
            name,
            options.count("max_length", max_length, optional=True)
            | options.count("batch_tokens", batch_tokens, optional=True),
        )
        self.name = name
        self.model = model
        self.label = label
        self.max_length = max_length
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device, whole=False)
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.partition(":")[0], ACCELERATOR_BATCH_TOKENS)
        self.files = model_files(model)
        self._loaded: _Loaded | None = None

    @cached_property
    def model_hash(self) -> str:
        """Content hash of the model with its adapter, tokenizer, chat template and dtype."""
        return content_hash(self.files, self.dtype)

    @property
    def reader(self) -> str:
        """Another model, label or limit is another reading: what is held of it is not taken for this one's."""
        label = "" if self.label is None else f", label {self.label}"
        limit = "" if self.max_length is None else f", max_length {self.max_length}"
        return f"{READER}, {self.model_hash[:12]}{label}{limit}"

    def read(self, answers: Sequence[tuple[Prompt, Candidate]]) -> list[Reading]:
        """The score of each answer, or its failure: candidate_failed, too_long, unreadable, no_number."""
        loaded = self._open()
        rows = [self._row(loaded, prompt, candidate) for prompt, candidate in answers]
        scores: dict[int, float] = {}
        for batch in _batches([0 if row.failure else len(row.ids) for row in rows], self._most(loaded)):
            scores.update(zip(batch, loaded.scores([rows[i] for i in batch]), strict=True))
        return [row.failure or self._reading(row, scores[i]) for i, row in enumerate(rows)]

    def _open(self) -> _Loaded:
        if self._loaded is None:
            self._loaded = _load(self.files, self.device, self.dtype, self.label, self.max_length)
        return self._loaded

    def _most(self, loaded: _Loaded) -> int:
        """Tokens of a batch; a model without padding takes one row at a time."""
        return self.batch_tokens if loaded.pad is not None else 1

    def _row(self, loaded: _Loaded, prompt: Prompt, candidate: Candidate) -> _Row:
        if candidate.failure:
            return _Row((), None, 0, Reading(failure="candidate_failed"))
        row = loaded.encode(prompt, candidate.text)
        if row.failure is None and len(row.ids) > loaded.limit:
            why = f"{len(row.ids)} tokens, and the model reads {loaded.limit}"
            return row._replace(failure=Reading(failure="too_long", detail={"why": why}))
        return row

    def _reading(self, row: _Row, score: float) -> Reading:
        detail: dict[str, Any] = {"tokens": len(row.ids), "model_hash": self.model_hash, "dtype": self.dtype}
        if row.stripped:
            detail["stripped"] = row.stripped
        if not math.isfinite(score):
            return Reading(failure="no_number", detail=detail | {"why": f"the score is {score}"})
        return Reading(score=score, detail=detail)


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Rows of similar length together, at most `most` tokens with padding; rows of length 0 are in none."""
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and lengths[i] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


# ------------------------------------------------------------------------------------------------------ the model


class _Loaded:
    """The model in memory with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, device: str, wanted: int | None, limit: int) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.wanted = wanted
        self.limit = limit
        self.pad = _padding(model, tokenizer)
        added = tokenizer.added_tokens_decoder.values()
        self._special = sorted({token.content for token in added if token.special}, key=len, reverse=True)

    def encode(self, prompt: Prompt, answer: str) -> _Row:
        """The conversation with its answer and the tools that it may call as token ids, by the chat template where
        there is one; else question and answer as a pair. What spells a special token is taken out of all."""
        given = [prompt.messages, prompt.tools or [], answer]
        told = self._plain(given)
        stripped = str(told).count(fence.REMOVED) - str(given).count(fence.REMOVED)
        try:
            found = self._ids(*told)
        except (RowError, ValueError, TypeError) as fault:  # a turn that the template refuses
            why = str(fault) if isinstance(fault, RowError) else f"{type(fault).__name__}: {fault}"[:200]
            return _Row((), None, stripped, Reading(failure="unreadable", detail={"why": why}))
        if not found["input_ids"]:
            return _Row((), None, stripped, Reading(failure="unreadable", detail={"why": "no tokens"}))
        kinds = found.get("token_type_ids")
        return _Row(tuple(found["input_ids"]), tuple(kinds) if kinds else None, stripped)

    def _ids(self, messages: Messages, tools: Sequence[Any], answer: str) -> Any:
        if self.tokenizer.chat_template:
            turns = [*messages, {"role": "assistant", "content": answer}]
            return self.tokenizer(render(self.tokenizer, turns, tools), add_special_tokens=False)
        if tools:
            raise RowError("there are tools, and the tokenizer has no chat template")
        return self.tokenizer("\n\n".join(m.get("content") or "" for m in messages), answer)

    def _plain(self, given: Any) -> Any:
        """A text, or what JSON holds of texts, without special tokens."""
        if isinstance(given, Mapping):
            return {self._plain(name): self._plain(value) for name, value in given.items()}
        if isinstance(given, list | tuple):
            return [self._plain(value) for value in given]
        if not isinstance(given, str):
            return given
        for token in self._special:
            given = given.replace(token, fence.REMOVED)
        return given

    @torch.inference_mode()
    def scores(self, rows: Sequence[_Row]) -> list[float]:
        """The score of each row: (rows,) log-odds."""
        width = max(len(row.ids) for row in rows)
        inputs = {
            "input_ids": self._padded([row.ids for row in rows], width, self.pad or 0),
            "attention_mask": self._padded([(1,) * len(row.ids) for row in rows], width, 0),
        }
        if rows[0].kinds is not None:
            inputs["token_type_ids"] = self._padded([row.kinds or () for row in rows], width, 0)
        logits: Tensor = self.model(**inputs).logits.float()
        return [float(score) for score in _log_odds(logits, self.wanted)]

    def _padded(self, rows: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
        return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], device=self.device)


def _log_odds(logits: Tensor, wanted: int | None) -> Tensor:
    """logits (rows, labels) -> (rows,): the one logit, or that of a label against all others."""
    if wanted is None:
        return logits[:, 0]
    others = torch.cat([logits[:, :wanted], logits[:, wanted + 1 :]], dim=1)
    return logits[:, wanted] - others.logsumexp(1)


def _padding(model: Any, tokenizer: Any) -> int | None:
    """The token that fills a batch. A decoder finds an answer's end by it: None, one row at a time, where it has none
    that an answer cannot end with."""
    config = model.config.get_text_config()
    if config.pad_token_id is None and tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        config.pad_token_id = tokenizer.pad_token_id
    pad: int | None = config.pad_token_id
    return pad


def _load(files: ModelFiles, device: str, dtype: str, label: str | int | None, max_length: int | None) -> _Loaded:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    own_tokenizer = files.adapter and (Path(files.adapter) / "tokenizer_config.json").is_file()
    head = _head_of(files.adapter) if files.adapter else None
    options = {} if head is None else {"num_labels": head}
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # of a base without a head: the adapter brings one, or it is a fault below
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.adapter if own_tokenizer else files.base)
        model, told = AutoModelForSequenceClassification.from_pretrained(
            files.base, dtype=DTYPES[dtype], output_loading_info=True, **options
        )
        if files.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, files.adapter)
    except (OSError, ValueError, RuntimeError) as error:
        raise FactoryError(f"the reward model does not load: {error}", where=files.name,
                           todo="name a folder or hub model of sequence classification, or a peft adapter on one",
                           ) from error  # fmt: skip
    finally:
        logging.set_verbosity(level)
    if told["missing_keys"] and head is None:
        raise FactoryError(
            f"the model has no trained head for scores (missing: {', '.join(sorted(told['missing_keys'])[:3])})",
            where=files.name, todo="name a model trained to score; a language model alone would score at random",
        )  # fmt: skip
    model.eval().requires_grad_(False)
    _widen_head(model)
    model.to(device)
    return _Loaded(model, tokenizer, device, _wanted(model, label, files.name), _limit(model, tokenizer, max_length))


def _head_of(adapter: str) -> int | None:
    """How many labels the head has that is kept in an adapter; None when it keeps none."""
    from safetensors import safe_open

    path = Path(adapter) / "adapter_model.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        heads = [k for k in file.keys() if k.endswith(("score.weight", "classifier.weight", "out_proj.weight"))]  # noqa: SIM118
        own = [k for k in heads if "lora_" not in k and ".layers." not in k]
        return int(file.get_slice(own[0]).get_shape()[0]) if own else None


def _widen_head(model: nn.Module) -> None:
    """Let the last linear layer multiply in float32: in bfloat16 two rewards that differ by 1% are a tie."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "score" and isinstance(module, nn.Linear):
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))


def _wanted(model: Any, label: str | int | None, where: str) -> int | None:
    """The index of the label whose log-odds are the score; None where there is one label alone."""
    names: dict[int, str] = model.config.id2label
    if len(names) == 1 and label in (None, 0, "0", names[0]):
        return None
    if label is None and len(names) == 2:
        return 1
    found = [i for i, name in names.items() if label in (i, str(i), name)]
    if len(found) == 1 and len(names) > 1:
        return found[0]
    known = ", ".join(names[i] for i in sorted(names))
    what = f"the model has {len(names)} labels" if label is None else f"the model has no label {label!r}"
    raise FactoryError(f"{what}: {known}", where=where, todo="set label to the one that means a good answer")


def _limit(model: Any, tokenizer: Any, wanted: int | None) -> int:
    """The most tokens of a row. FactoryError: more is wanted than the model reads."""
    config = model.config.get_text_config()
    places = getattr(config, "max_position_embeddings", None) or UNLIMITED
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "longformer"):
        places -= (config.pad_token_id or 0) + 1  # these begin to count behind the padding's place
    own = min(places, tokenizer.model_max_length if tokenizer.model_max_length < UNLIMITED else UNLIMITED)
    if wanted is not None and wanted > own:
        raise FactoryError(f"max_length is {wanted}, and the model reads {own} tokens", todo="set a lower max_length")
    return int(wanted or own)
