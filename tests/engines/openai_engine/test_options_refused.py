"""Options of the openai engine that cannot be are named, all of them, and no secret with them."""

from __future__ import annotations

from typing import Any

import pytest

from factory.engines.openai import OpenAIEngine
from factory.faults import ConfigError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "http://me:secret@host/v1"}, "user name or password"),
        ({"base_url": []}, None),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 2.5}, "concurrency"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": -1}, "tokens_per_minute"),
        ({"invalid_retries": -1}, "invalid_retries"),
        ({"prices": {"input": 1}}, "prices"),
        ({"prices": "no/such/file.yaml"}, "cannot be read"),
        ({"prefix": "maybe", "timeout": 0, "auth": "x", "max_tokens_name": "limit"}, "4 faults"),
        ({"extra_body": {"model": "x"}}, "extra_body: model must not"),
        ({"extra_body": [1]}, "extra_body: must be a mapping"),
        ({"base_url": 5}, "base_url: must be an address"),
        ({"base_url": [5], "n_in_one_call": "no", "concurrency": "many", "timeout": "long"}, "4 faults"),
    ],
)
def test_wrong_options_are_named_together(options: dict[str, Any], said: str | None) -> None:
    if said is None:
        assert OpenAIEngine("m", **options).base_url == "https://api.openai.com/v1"
        return
    with pytest.raises(ConfigError, match=said) as caught:
        OpenAIEngine("m", **options)
    assert "secret" not in str(caught.value)


def test_a_key_that_no_header_carries_is_a_fault_that_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ab\u00e9cd")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY: the key holds characters") as caught:
        OpenAIEngine("m")
    assert "sk-ab" not in str(caught.value)
