"""Uploads, against a server that speaks as much of the Hub's API as an upload takes; nothing leaves unasked."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from store_rows import prompt
from test_export import preference
from typer.testing import CliRunner

from factory.cli import app
from factory.export import hub
from factory.faults import EndpointError, FactoryError
from factory.store import Store


class FakeHub(BaseHTTPRequestHandler):
    """Repositories by name with their files; every request is written down."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: Any, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        state: Any = self.server
        state.seen.append(("GET", self.path.split("?")[0], None))
        parts = self.path.split("?")[0].split("/")
        held = state.repositories.get("/".join(parts[3:5]))
        if held is None:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        else:
            self._answer(200, {"id": "/".join(parts[3:5]), "private": held["private"], "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        state: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        state.seen.append(("POST", path, self.headers.get("Authorization")))
        if state.refuse:
            self._answer(403, {"error": "this token may only read"})
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            state.repositories[name] = {"private": wanted.get("private") or wanted.get("visibility") == "private",
                                        "kind": wanted.get("type", "model"), "files": {}}  # fmt: skip
            self._answer(200, {"url": f"{state.address}/{name}"})
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif "/commit/" in path:
            name = "/".join(path.split("/")[3:5])
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    state.repositories[name]["files"][line["value"]["path"]] = base64.b64decode(
                        line["value"]["content"]
                    )
            self._answer(200, {"success": True, "commitUrl": f"{state.address}/{name}/commit/1", "commitOid": "1" * 40})
        else:
            self._answer(200, {})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.repositories, server.seen, server.refuse = {}, [], False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.append("prompts", [prompt(i) for i in range(4)])
        opened.append("preferences", [preference(i) for i in range(4)])
    return tmp_path / "store"


def factory(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_an_export_is_pushed_whole_and_private(fake: Any, store: Path, tmp_path: Path) -> None:
    done = factory("export", tmp_path / "out", "--store", store, "--push-to-hub", "me/prefs", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["repository"] == f"{fake.address}/datasets/me/prefs"
    held = fake.repositories["me/prefs"]
    assert (held["private"], held["kind"]) == (True, "dataset")
    here = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert held["files"] == here
    assert {said for method, _, said in fake.seen if method == "POST"} == {"Bearer hf_of_a_test"}


def test_public_only_when_asked_for(fake: Any, store: Path, tmp_path: Path) -> None:
    assert factory("export", tmp_path / "a", "--store", store, "--push-to-hub", "me/open", "--public").exit_code == 0
    assert fake.repositories["me/open"]["private"] is False
    refused = factory("export", tmp_path / "b", "--store", store, "--push-to-hub", "me/open")
    assert refused.exit_code == 2
    assert "the repository me/open is public" in refused.stderr
    assert not (tmp_path / "b").exists()


def test_nothing_is_sent_without_the_flag(fake: Any, store: Path, tmp_path: Path) -> None:
    assert factory("export", tmp_path / "out", "--store", store).exit_code == 0
    assert fake.seen == []


def test_no_token_no_export(fake: Any, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    done = factory("export", tmp_path / "out", "--store", store, "--push-to-hub", "me/prefs")
    assert done.exit_code == 3
    assert "there is no token for the Hub" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert not (tmp_path / "out").exists()
    assert fake.seen == []


@pytest.mark.parametrize("name", ["prefs", "a/b/c", "me/..", "me/pre fs", ""])
def test_names_that_are_none(name: str, fake: Any) -> None:
    with pytest.raises(FactoryError, match=r"no name of a repository|does not name its owner"):
        hub.check(name, "dataset")
    assert fake.seen == []


def test_a_token_that_may_only_read_is_told(fake: Any, tmp_path: Path) -> None:
    fake.refuse = True
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(EndpointError, match=r"refused[\s\S]*check that the token may write"):
        hub.push(tmp_path, "me/prefs", "dataset")


def test_a_hub_that_is_gone_or_told_to_stay_offline(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EndpointError, match="cannot be reached"):
        hub.check("me/prefs", "dataset")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EndpointError, match=r"stay offline[\s\S]*HF_HUB_OFFLINE"):
        hub.check("me/prefs", "dataset")


def test_other_forms_have_no_place_on_the_hub(fake: Any, store: Path, tmp_path: Path) -> None:
    done = factory("export", tmp_path / "out", "--store", store, "--format", "csv", "--push-to-hub", "me/prefs")
    assert done.exit_code == 2
    assert "no place for an export as csv" in done.stderr
    assert fake.seen == []
