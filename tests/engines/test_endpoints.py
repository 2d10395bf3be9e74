"""Addresses, headers and proxies: what of them is sent, what may be shown, and what makes an identity."""

from __future__ import annotations

import pytest

from factory.engines.endpoints import Address, addresses, headers, proxy
from factory.engines.openai import OpenAIEngine

AZURE = "https://mine.openai.azure.com/openai/deployments/d/?api-version=2024-10-21"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OPENAI_API_KEY", "OPENAI_BASE_URL", "AZURE_OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID",
        "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def test_azure_is_asked_by_its_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    address = Address(AZURE)
    wanted = "https://mine.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21"
    assert address.url == wanted
    assert headers(address, "auto", "key")["api-key"] == "key"
    assert "Authorization" not in headers(address, "auto", "key")
    assert headers(address, "bearer", "key")["Authorization"] == "Bearer key"
    engine = OpenAIEngine("d", base_url=AZURE)
    assert engine.bodies.limit_name == "max_completion_tokens"
    assert engine.api_key_env == "OPENAI_API_KEY"
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "key")
    assert OpenAIEngine("d", base_url=AZURE).api_key_env == "AZURE_OPENAI_API_KEY"
    assert OpenAIEngine("d", base_url="http://localhost/v1").api_key_env == "OPENAI_API_KEY"


def test_a_query_is_sent_and_not_shown() -> None:
    address = Address("http://host:8000/v1/?token=secret&api-version=1")
    assert address.shown == "http://host:8000/v1"
    assert address.url == "http://host:8000/v1/chat/completions?token=secret&api-version=1"
    assert address.name == "http://host:8000/v1?token=secret"
    assert "secret" not in OpenAIEngine("m", base_url=address.parts.geturl()).base_url


def test_openai_itself_is_the_default() -> None:
    (address,) = addresses(None)
    assert address.url == "https://api.openai.com/v1/chat/completions"
    assert address.is_official
    assert not Address("http://api.openai.com.evil.example/v1").is_official
    assert not Address("http://openai.azure.com.evil.example/v1").is_azure


def test_several_addresses_come_as_a_list_or_with_commas() -> None:
    given = ["http://a/v1", "http://b/v1"]
    for form in (given, " http://a/v1 , http://b/v1,", (*given, "http://a/v1")):
        assert [address.shown for address in addresses(form)] == given


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("http://host/v1", True),
        ("https://[::1]:8000", True),
        ("localhost:8000", False),
        ("http://", False),
        ("http://host:port", False),
        ("http://host:0", False),
        ("http://user@host", False),
        ("http://[::1", False),
        ("http://a..b/v1", False),
        (f"http://{'x' * 64}.org/v1", False),
        ("http://ho st/v1", False),
        ("http://host/a b/v1", False),
        ("http://h\u00f6st/v1", False),
        ("http://host/\u043c/v1", False),
        ("http://xn--hst-sna/%D0%BC/v1", True),
    ],
)
def test_an_address_is_checked(text: str, good: bool) -> None:
    assert (Address(text).faults() == []) == good


def test_the_environments_proxy_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy(Address("https://api.openai.com/v1")) == "http://proxy:3128"
    assert proxy(Address("https://inside.example/v1")) is None
    for local in ("http://localhost:1/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1"):
        assert proxy(Address(local)) is None
