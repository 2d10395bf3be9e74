"""Rows for the tests of the store: plain ones by number, and any that a table can hold."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from hypothesis import strategies as st

from factory.schema import Call, Candidate, Judgment, Prompt, digest
from factory.store.columns import columns_of

AT = datetime(2026, 11, 24, 10, 0, 0, 123456)


def prompt(number: int, **more: Any) -> Prompt:
    values: dict[str, Any] = {
        "key": digest("prompt", number),
        "messages": [{"role": "user", "content": f"question {number}"}],
        "split": "train",
        "group": f"g{number}",
        "at": AT,
    }
    return Prompt(**values | more)


def call(number: int, attempt: int = 1, **more: Any) -> Call:
    values: dict[str, Any] = {
        "key": digest("call", number),
        "attempt": attempt,
        "run": "r",
        "purpose": "generate",
        "engine": "scripted",
        "model": "m",
        "model_hash": "h",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "sampling": {"temperature": 1.0, "max_tokens": 8},
        "text": f"answer {number}",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "at": AT,
    }
    return Call(**values | more)


def candidate(number: int, **more: Any) -> Candidate:
    values: dict[str, Any] = {
        "key": digest("candidate", number),
        "run": "r",
        "prompt_key": digest("prompt", number // 4),
        "split": "train",
        "model": "m",
        "text": f"answer {number}",
        "at": AT,
    }
    return Candidate(**values | more)


def judgment(number: int, **more: Any) -> Judgment:
    values: dict[str, Any] = {
        "key": digest("judgment", number),
        "run": "r",
        "judge": "verifier",
        "kind": "pointwise",
        "prompt_key": digest("prompt", number // 4),
        "candidate_a": digest("candidate", number),
        "score": 0.5,
        "at": AT,
    }
    return Judgment(**values | more)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_text = st.text(max_size=12)  # no lone surrogates: those do not come back
_KINDS: dict[str, st.SearchStrategy[Any]] = {
    "text": _text,
    "integer": st.integers(-(2**63), 2**63 - 1),
    "number": st.floats(allow_nan=False),
    "boolean": st.booleans(),
    "time": st.datetimes(),
    "messages": st.lists(st.fixed_dictionaries({"role": _text, "content": _text}), max_size=3),
    "json": _json,
}


def any_row(table: str, keys: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Any row that the table can hold, as a dict; NaN and lone surrogates apart."""
    values = {c.name: st.none() | _KINDS[c.kind] if c.nullable else _KINDS[c.kind] for c in columns_of(table).values()}
    values["key"] = st.text(min_size=1, max_size=8) if keys is None else keys
    return st.fixed_dictionaries(values)
