"""Conversations as data sets have them, read into turns of text: messages, ShareGPT's, HH-RLHF's texts.

Calls of tools and what tools gave are kept in the form of OpenAI's API; what is not text (images) is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from factory.prompts.sources import RowError
from factory.schema import Message, Messages

Values = Mapping[str, Any]

ROLES: Final = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
_RESULTS: Final = frozenset(("tool", "function", "observation", "function_response", "tool_response", "ipython"))
"""Roles of turns that hold what a tool gave."""
_CALLS: Final = frozenset(("function_call", "tool_call"))
"""Roles of turns whose text is the assistant's call of a tool, as JSON: {"name": ..., "arguments": ...}."""
_HH: Final = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def conversation(value: Any, column: str) -> Messages:
    """A value as turns: a list of messages (role/content or from/value), HH-RLHF's text, or one user turn's text."""
    if isinstance(value, str):
        if not value.strip():
            raise RowError(column, "empty")
        return _hh_turns(value) if is_hh(value) else [Message(role="user", content=value)]
    return turns(value, column)


def is_hh(text: str) -> bool:
    """Is it a conversation in HH-RLHF's form, "\\n\\nHuman: ...\\n\\nAssistant: ..."?"""
    return text.lstrip().startswith("Human:")


def _hh_turns(text: str) -> Messages:
    parts = _HH.split(text)[1:]
    spoken = [(ROLES[who.lower()], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if spoken[-1] == ("assistant", ""):
        spoken.pop()
    if not all(said for _, said in spoken):
        raise RowError("", "an empty turn in the conversation")
    return [Message(role=role, content=said) for role, said in spoken]


def turns(value: Any, column: str) -> Messages:
    """A list of messages as turns of text. RowError where it is something else, or holds what is not text."""
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        value = [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise RowError(column, f"must be a list of messages, not {type(value).__name__}")
    read = [_turn(turn, column) for turn in value]
    kept = [turn for turn in read if turn["role"] != "system" or turn["content"].strip()]
    if not kept:
        raise RowError(column, "no messages")
    return kept


def _turn(turn: Any, column: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(column, f"a message must be an object, not {type(turn).__name__}")
    said_by = turn.get("role") or turn.get("from")
    if not isinstance(said_by, str):
        raise RowError(column, "a message has no role")
    content = _text_of_content(turn["content"] if turn.get("content") is not None else turn.get("value"), column)
    if said_by.lower() in _CALLS:
        return _calling(content, column)
    if said_by.lower() in _RESULTS:
        return _result(turn, content, column)
    if said_by.lower() not in ROLES:
        raise RowError(column, f"a message by {said_by!r}; known: {', '.join((*ROLES, *sorted(_RESULTS | _CALLS)))}")
    role = ROLES[said_by.lower()]
    calls = _calls(turn, role, column)
    if not content.strip() and role != "system" and not calls:
        raise RowError(column, f"an empty turn of the {role}")
    said = Message(role=role, content=content)
    if calls:
        said["tool_calls"] = calls
    return said


def _result(turn: Values, content: str, column: str) -> Message:
    """The turn of a tool: what it gave, to which call."""
    said = Message(role="tool", content=content)
    names = _names(turn, ("name", "tool_call_id"), column)
    if "name" in names:
        said["name"] = names["name"]
    if "tool_call_id" in names:
        said["tool_call_id"] = names["tool_call_id"]
    return said


def _names(turn: Values, fields: Sequence[str], column: str) -> dict[str, str]:
    """Those of the fields that have a value."""
    found = {name: turn[name] for name in fields if turn.get(name) not in (None, "")}
    for name, value in found.items():
        if not isinstance(value, str):
            raise RowError(column, f"the {name} of a tool's turn must be a text, not {type(value).__name__}")
    return found


def _calling(content: str, column: str) -> Message:
    """The turn of an assistant that calls a tool, of the call's JSON (ShareGPT)."""
    try:
        call = json.loads(content)
    except (ValueError, RecursionError):
        raise RowError(column, "a call of a tool is not JSON") from None
    return Message(role="assistant", content="", tool_calls=[_call(one, column) for one in _list_of(call)])


def _list_of(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _calls(turn: Values, role: str, column: str) -> list[Any]:
    """The turn's calls of tools."""
    given = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    given = _list_of(parsed(given, column))
    if given and role != "assistant":
        raise RowError(column, f"a turn of the {role} calls tools; only the assistant can")
    return [_call(call, column) for call in given]


def parsed(value: Any, column: str) -> Any:
    """Calls that a table has as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowError(column, "the calls of tools are not JSON") from None


def _call(call: Any, column: str) -> dict[str, Any]:
    """A call in the form of OpenAI's API; keys without a value, which tables have, go."""
    if not isinstance(call, Mapping):
        raise RowError(column, f"a call of a tool must be an object, not {type(call).__name__}")
    inner = call.get("function", call)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise RowError(column, "a call of a tool has no name")
    arguments = inner.get("arguments", inner.get("parameters"))
    if not isinstance(arguments, str | Mapping | None):
        raise RowError(column, f"the arguments of {inner['name']} must be an object or its JSON")
    if isinstance(arguments, str) and not isinstance(parsed(arguments or "{}", column), Mapping):
        raise RowError(column, f"the arguments of {inner['name']} must be an object or its JSON")
    named = {"id": call["id"]} if isinstance(call.get("id"), str) and "function" in call else {}
    return {**named, "type": "function", "function": {"name": inner["name"], "arguments": arguments or {}}}


def _text_of_content(content: Any, column: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    others = sorted({str(p.get("type") if isinstance(p, Mapping) else type(p).__name__) for p in parts} - {"text"})
    if others:
        raise RowError(column, f"content of type {', '.join(others)} is not text; only text conversations are read")
    return "\n".join(_text_of_content(p.get("text"), column) for p in parts)


def ending_with_user(messages: Messages, column: str) -> Messages:
    """The conversation, if its last turn is the user's, or what a tool gave."""
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        by = messages[-1]["role"] if messages else "nobody"
        raise RowError(column, f"the prompt must end with the user's turn; its last is by {by}")
    return messages
