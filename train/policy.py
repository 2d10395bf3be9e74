"""A policy in memory: a causal language model, perhaps with a LoRA adapter, and its tokenizer; loaded, trained, saved.

What learns is always float32. In bfloat16 a frozen base is held in bfloat16 under a float32 adapter; a whole model
that learns is held in float32 and multiplied in bfloat16 by autocast, which needs an accelerator.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from factory.faults import FactoryError
from train.config import LoraSpec

log = logging.getLogger(__name__)

DTypeName = Literal["auto", "float32", "bfloat16"]
Head = Literal["language", "score"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Policy:
    """A model on its device. `dtype` is the name of the forward pass's; `base_name` is what the user calls the base."""

    model: nn.Module
    tokenizer: Any
    device: str
    dtype: str
    base_name: str
    has_adapter: bool

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def precision(self) -> AbstractContextManager[Any]:
        """To be open around forward passes: autocast where weights are wider than the products wanted."""
        if self.dtype == "bfloat16" and self.device != "cpu":
            return torch.autocast(self.device, dtype=torch.bfloat16)
        return nullcontext()

    def without_adapter(self) -> AbstractContextManager[Any]:
        """While it is open, the model is its base."""
        switch: Any = self.model
        off: AbstractContextManager[Any] = switch.disable_adapter() if self.has_adapter else nullcontext()
        return off


def resolve_device(device: str) -> str:
    """`auto`: cuda where there is one, else cpu."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def resolve_dtype(dtype: DTypeName, device: str, *, whole: bool) -> str:
    """`auto`: bfloat16 where the device multiplies it in hardware, else float32. By flags, not by timing: a resumed
    training must decide the same. A `whole` model learns in float32 on a CPU.

    FactoryError: a whole model in bfloat16 on a CPU, which would lose the small steps that it learns by.
    """
    if device == "cpu":
        if whole and dtype == "bfloat16":
            raise FactoryError(
                "a whole model does not learn in bfloat16 on a CPU", todo="set dtype: float32, or train a lora adapter"
            )
        fast = not whole and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    else:
        fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    if dtype == "auto":
        return "bfloat16" if fast else "float32"
    return dtype


def load_policy(
    base: str,
    adapter: str | None = None,
    *,
    lora: LoraSpec | None = None,
    dtype: DTypeName = "auto",
    device: str = "auto",
    trainable: bool = False,
    seed: int = 0,
    base_name: str | None = None,
    head: Head = "language",
) -> Policy:
    """Load a policy: folder or hub name `base`, and the peft folder `adapter` on it if there is one.

    To be trained (`trainable`): with `lora` the given adapter learns on as it is (where `lora` says otherwise, that is
    logged), or a new one whose first values `seed` decides; without `lora` the whole model learns, a given adapter
    merged into it first. `head`: "score" puts one number's head in the place of the language model's (a reward model);
    its first values come from `seed` too.
    FactoryError: it does not load.
    """
    whole = trainable and lora is None
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where, whole=whole)
    tokenizer = load_tokenizer(base)
    model: Any = _load(base, torch.float32 if whole else DTYPES[kind], head, seed)
    if adapter is not None:
        model = _with_adapter(model, adapter, learns=trainable and not whole)
        if trainable and lora is not None:
            _tell_what_is_kept(model, lora)
        if whole:
            model = model.merge_and_unload()
    elif trainable and lora is not None:
        model = new_adapter(model, lora, seed, head)
    has_adapter = (adapter is not None and not whole) or (trainable and lora is not None)
    if not has_adapter:
        model.requires_grad_(whole)
    model.to(where).train(trainable)
    return Policy(model, tokenizer, where, kind, base_name or base, has_adapter)


def load_tokenizer(base: str) -> Any:
    """The tokenizer of a model folder or hub name."""
    from transformers import AutoTokenizer

    with mapped(base):
        return AutoTokenizer.from_pretrained(base)


def kept_tensors(policy: Policy) -> dict[str, Tensor]:
    """What of the model is saved, under its names: the adapter, or all of it."""
    tensors: dict[str, Tensor] = policy.model.state_dict(keep_vars=True)
    return {name: t for name, t in tensors.items() if t.requires_grad} if policy.has_adapter else tensors


def save_policy(policy: Policy, folder: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write what is needed to load it again, in safetensors: the adapter, or the whole model with its tokenizer.

    An adapter names its base as the user does, so that an embedded or hub name stays one. `tensors`: what
    `kept_tensors` named, where the model itself holds a shard of it alone.
    """
    model: Any = policy.model
    held = None if tensors is None else dict(tensors)
    if not policy.has_adapter:
        model.save_pretrained(folder, state_dict=held)
        policy.tokenizer.save_pretrained(folder)
        return
    # with the embeddings, peft would look the base up on the hub
    model.save_pretrained(folder, state_dict=held, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = policy.base_name
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()  # peft keeps a set: its order changes from process to process
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def merge(base: str, adapter: str, folder: Path, *, dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> None:
    """Write the model that an adapter makes of its base as a whole one: safetensors and tokenizer, in `folder`.

    The sum is formed in float32; `dtype` is what it is stored in, auto: as the base is. FactoryError: it does not load.
    """
    head: Head = "score" if _adapter_config(adapter).get("task_type") == "SEQ_CLS" else "language"
    model = _load(base, torch.float32, head, seed=0)
    tied = _untie(model)
    merged: Any = _with_adapter(model, adapter, learns=False).merge_and_unload()
    if tied and torch.equal(merged.get_output_embeddings().weight, merged.get_input_embeddings().weight):
        merged.config.tie_word_embeddings = True
        merged.tie_weights()
    stored = _stored_dtype(base) if dtype == "auto" else DTYPES[dtype]
    merged.to(stored).save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)


def _untie(model: Any) -> bool:
    """Give the head weights of its own where it shares the embeddings': an adapter may change one of them alone. Was it
    so?"""
    output = model.get_output_embeddings()
    if output is None or output.weight is not model.get_input_embeddings().weight:
        return False
    output.weight = nn.Parameter(output.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return True


def _adapter_config(adapter: str) -> dict[str, Any]:
    path = Path(adapter) / "adapter_config.json"
    with mapped(adapter):
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _stored_dtype(base: str) -> torch.dtype:
    """What the base's configuration says that its weights are; float32 where it does not say."""
    from transformers import AutoConfig

    with mapped(base):
        found = AutoConfig.from_pretrained(base).dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def _load(base: str, dtype: torch.dtype, head: Head, seed: int) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    with mapped(base):
        if head == "language":
            return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # that the score's head is new is no news
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return AutoModelForSequenceClassification.from_pretrained(base, dtype=dtype, num_labels=1)
        finally:
            logging.set_verbosity(level)


def _with_adapter(model: Any, adapter: str, *, learns: bool) -> Any:
    from peft import PeftModel

    with mapped(adapter):
        return PeftModel.from_pretrained(model, adapter, is_trainable=learns)


def _tell_what_is_kept(model: Any, lora: LoraSpec) -> None:
    """An adapter that learns on keeps its rank and the like, whatever the settings say: say so."""
    told = model.peft_config[model.active_adapter]
    own = {"r": told.r, "alpha": told.lora_alpha, "dropout": told.lora_dropout}
    kept = [f"{name} {has:g}, not {wanted:g}" for name, has in own.items() if has != (wanted := getattr(lora, name))]
    if kept:
        log.warning("the adapter that training begins with keeps its own settings: %s", "; ".join(kept))


def new_adapter(model: Any, lora: LoraSpec, seed: int, head: Head) -> Any:
    """A new adapter on a model, its first values from the seed."""
    from peft import LoraConfig, get_peft_model

    target = lora.target if isinstance(lora.target, str) else list(lora.target)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=target,
        task_type="CAUSAL_LM" if head == "language" else "SEQ_CLS",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


@contextmanager
def mapped(name: str) -> Iterator[None]:
    """Loading faults of transformers and peft as ours."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise FactoryError(
            f"the model does not load: {error}",
            where=name,
            todo="name a transformers folder, a hub name that is in reach, or a peft adapter's folder",
        ) from error
