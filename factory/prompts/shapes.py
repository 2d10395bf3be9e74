"""The shapes that data comes in, read into one: a conversation that ends with the user, and the answers given with it.

Known: plain prompts, TRL's prompt / completion / label and prompt / chosen / rejected (explicit and implicit prompts,
texts or messages; LLaMA-Factory's and axolotl's one turn), several answers with scores, two answers with a winner,
HH-RLHF's texts, OpenAI messages, ShareGPT and Alpaca. Each shape is one function; a row that it cannot read raises
`RowError`. Nothing is dropped: an answer that ends a conversation is kept as given; calls of tools,
what tools gave, and the tools themselves are kept in the form of OpenAI's API; and what is not text (images) is an
error of its row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from factory.constraints import faults as constraint_faults
from factory.faults import ConfigError
from factory.judges.criteria import criteria_of
from factory.prompts import expected, scored
from factory.prompts.scored import Scale, Winner
from factory.schema import Message, Messages

Values = Mapping[str, Any]


class RowError(Exception):
    """A row that cannot be read: the column at fault and the reason."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"{column}: {reason}")
        self.column = column
        self.reason = reason


class Said(NamedTuple):
    """An answer, the score that it came with, that score's own scale, and the model that wrote it."""

    text: str
    score: float | None = None
    scale: Scale | None = None
    model: str = ""


class Given(NamedTuple):
    """A conversation that ends with the user's turn, and what was given with it. `said`: answers with scores, those of
    the other fields among them; `winner`: which of the first two of these is better."""

    messages: Messages
    answer: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: bool | None = None
    said: tuple[Said, ...] = ()
    winner: Winner | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the store will hold it. `answer` is one given without judgement, or (with `label`) a judged one."""

    line: int
    shape: str
    given: Given
    topic: str | None = None
    task: str | None = None
    group: str | None = None
    constraints: list[dict[str, Any]] | None = None
    reference: str | None = None
    rubric: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """A known shape: the columns that make it, those that it may have, its reader, and other names that its columns go
    by. `fits`: is it of this shape, where the columns are there?"""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Values], Given]
    may: tuple[str, ...] = ()
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fits: Callable[[Values], bool] = lambda row: True

    def columns(self, row: Values) -> dict[str, str]:
        """The row's column for each of the shape's that has a value there."""
        found: dict[str, str] = {}
        for name in (*self.needs, *self.may):
            places = (name, *self.also.get(name, ()))
            place = next((column for column in places if row.get(column) is not None), None)
            if place is not None:
                found[name] = place
        return found

    def holds(self, row: Values) -> bool:
        """Is the row of this shape?"""
        return set(self.needs) <= self.columns(row).keys() and self.fits(row)


# ------------------------------------------------------------------------------------------------- conversations

_ROLES: Final = {
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
    spoken = [(_ROLES[who.lower()], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
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
    if said_by.lower() not in _ROLES:
        raise RowError(column, f"a message by {said_by!r}; known: {', '.join((*_ROLES, *sorted(_RESULTS | _CALLS)))}")
    role = _ROLES[said_by.lower()]
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
    given = _list_of(_parsed(given, column))
    if given and role != "assistant":
        raise RowError(column, f"a turn of the {role} calls tools; only the assistant can")
    return [_call(call, column) for call in given]


def _parsed(value: Any, column: str) -> Any:
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
    if isinstance(arguments, str) and not isinstance(_parsed(arguments or "{}", column), Mapping):
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


def split_answer(messages: Messages, column: str) -> Given:
    """The conversation without the assistant's turn that ends it, and that turn as the given answer."""
    if messages[-1]["role"] == "assistant":
        return Given(ending_with_user(messages[:-1], column), _said(messages[-1], column))
    return Given(ending_with_user(messages, column))


# -------------------------------------------------------------------------------------------------------- shapes


def _preference(row: Values) -> Given:
    messages = ending_with_user(_asked(row), "prompt")
    chosen, rejected = (_answer(row[name], messages, name) for name in ("chosen", "rejected"))
    return _preferred(row, messages, chosen, rejected)


def _implicit_preference(row: Values) -> Given:
    return _preferred(row, *_implicit(row, "chosen", "rejected"))


def _preferred(row: Values, messages: Messages, chosen: str, rejected: str) -> Given:
    if chosen == rejected:
        raise RowError("rejected", "chosen and rejected are the same")
    scores = [scored.number(row.get(f"score_{name}"), f"score_{name}") for name in ("chosen", "rejected")]
    if scores[0] is not None and scores[1] is not None and scores[0] < scores[1]:
        raise RowError("score_rejected", "the rejected answer has the higher score")
    given = any(score is not None for score in scores)
    said = (Said(chosen, scores[0]), Said(rejected, scores[1])) if given else ()
    return Given(messages, chosen=chosen, rejected=rejected, said=said)


def _asked(row: Values) -> Messages:
    """The prompt, with Alpaca's input where it is Alpaca's instruction."""
    if row["prompt"] is row.get("instruction") and isinstance(row["prompt"], str):
        return _instruction(row)
    return _prompt_turns(row["prompt"])


def _is_whole(value: Any) -> bool:
    """Is it a conversation from its first turn on, rather than an answer?"""
    if isinstance(value, str):
        return is_hh(value)
    first = value[0] if isinstance(value, list) and value else None
    by = (first.get("role") or first.get("from")) if isinstance(first, Mapping) else None
    return isinstance(by, str) and _ROLES.get(by.lower()) in ("system", "user")


def _implicit(row: Values, *names: str) -> tuple[Messages, str, str]:
    """Two full conversations: the turns that they share are the prompt (TRL's implicit prompt, HH-RLHF)."""
    for name in names:
        if isinstance(row[name], str) and not is_hh(row[name]):
            todo = "name the prompt's column: --map prompt=COLUMN"
            raise RowError(name, f"a text without a prompt; without one it must be a full conversation ({todo})")
    first, second = (conversation(row[name], name) for name in names)
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    if first == second:
        raise RowError(names[1], f"{names[0]} and {names[1]} are the same")
    messages = ending_with_user(first[:shared], names[0])
    return messages, _only(first[shared:], names[0]), _only(second[shared:], names[1])


def _answer(value: Any, messages: Messages, column: str) -> str:
    """An answer to `messages`: a text, one assistant turn, or the conversation with the answer at its end."""
    if isinstance(value, str) and not is_hh(value):
        if not value.strip():
            raise RowError(column, "empty")
        return value
    one_turn = isinstance(value, Mapping) and isinstance(value.get("role") or value.get("from"), str)
    given = conversation([value] if one_turn else value, column)
    spoken = [m for m in messages if m["role"] != "system"]
    for prompt in (messages, spoken):
        if given[: len(prompt)] == prompt:
            return _only(given[len(prompt) :], column)
    return _only(given, column)


def _said(turn: Message, column: str) -> str:
    if turn.get("tool_calls"):
        raise RowError(column, "the answer calls tools; answers are text, and such turns are read before them only")
    return turn["content"]


def _only(messages: Messages, column: str) -> str:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(m["role"] for m in messages) or "nothing"
        raise RowError(column, f"after the prompt there must be one turn of the assistant; found: {roles}")
    return _said(messages[0], column)


def _label(row: Values) -> Given:
    messages = ending_with_user(_prompt_turns(row["prompt"]), "prompt")
    return Given(messages, _answer(row["completion"], messages, "completion"), label=_truth(row["label"]))


_TRUTHS: Final = {
    "true": True,
    "1": True,
    "1.0": True,
    "yes": True,
    "false": False,
    "0": False,
    "0.0": False,
    "no": False,
}


def _truth(value: Any) -> bool:
    truth = _TRUTHS.get(str(value).strip().lower())
    if truth is None:
        raise RowError("label", f"must be true or false, not {value!r}")
    return truth


def _completion(row: Values) -> Given:
    messages = ending_with_user(_prompt_turns(row["prompt"]), "prompt")
    text, score = _answer(row["completion"], messages, "completion"), scored.number(row.get("score"), "score")
    if score is None:
        return Given(messages, text)
    return Given(messages, said=(Said(text, score, model=_plain(row, "model")),))


def _answers(row: Values) -> Given:
    messages = ending_with_user(_asked(row), "prompt")
    found = scored.several(row["answers"], _json_list(row.get("scores")), _json_list(row.get("models")))
    said = tuple(Said(_answer(each.answer, messages, "answers"), *each[1:]) for each in found)
    if not said:
        raise RowError("answers", "empty")
    return Given(messages, said=said)


def _json_list(value: Any) -> Any:
    """A list, itself or as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return _parsed(value, "answers")
    return value


def _are_answers(row: Values) -> bool:
    column = _SEVERAL.columns(row)["answers"]
    try:
        return scored.are_answers(_json_list(row[column]), _SEVERAL.columns(row).get("scores"), column)
    except RowError:
        return False


_SIDES: Final = ("response_a", "response_b")


def _comparison(row: Values) -> Given:
    return _compared(row, scored.winner(row["winner"]))


def _leaning(row: Values) -> Given:
    return _compared(row, scored.leaning(row["strength"]))


def _compared(row: Values, winner: Winner) -> Given:
    if row.get("prompt") is None:
        messages, *texts = _implicit(row, *_SIDES)
    else:
        messages = ending_with_user(_asked(row), "prompt")
        texts = [_answer(row[name], messages, name) for name in _SIDES]
    if texts[0] == texts[1]:
        raise RowError("response_b", "both answers are the same")
    said = tuple(
        Said(text, model=_plain(row, model)) for text, model in zip(texts, ("model_a", "model_b"), strict=True)
    )
    return Given(messages, said=said, winner=winner)


def _messages(row: Values) -> Given:
    return split_answer(turns(row["messages"], "messages"), "messages")


def _sharegpt(row: Values) -> Given:
    return split_answer(turns(row["conversations"], "conversations"), "conversations")


def _alpaca(row: Values) -> Given:
    return Given(_instruction(row), _plain(row, "output") or None)


def _instruction(row: Values) -> Messages:
    parts = [_plain(row, name) for name in ("instruction", "input")]
    if not parts[0]:
        raise RowError("instruction", "empty")
    return [Message(role="user", content="\n\n".join(p for p in parts if p))]


def _plain(row: Values, column: str) -> str:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise RowError(column, f"must be a text, not {type(value).__name__}")
    return value if value and value.strip() else ""


def _prompt(row: Values) -> Given:
    return split_answer(_prompt_turns(row["prompt"]), "prompt")


def _prompt_turns(value: Any) -> Messages:
    return conversation(value, "prompt")


_QUESTIONS: Final = ("instruction", "question", "query")
_SEVERAL: Final = Shape(
    "answers", ("prompt", "answers"), _answers, ("scores", "models", "input"),
    also={
        "prompt": _QUESTIONS,
        "answers": ("completions", "generations", "responses"),
        "scores": ("ratings", "rewards"),
        "models": ("generation_models",),
    },
    fits=_are_answers,
)  # fmt: skip
_GRADES: Final = ("score_chosen", "score_rejected")
_ALSO_GRADES: Final = {
    "score_chosen": ("chosen_score", "chosen_rating"),
    "score_rejected": ("rejected_score", "rejected_rating"),
}

_OF_TWO: Final = ("prompt", "model_a", "model_b", "input")
_ALSO_OF_TWO: Final = {
    "prompt": _QUESTIONS,
    "response_a": ("answer_a", "completion_a", "conversation_a", "response_1", "response1"),
    "response_b": ("answer_b", "completion_b", "conversation_b", "response_2", "response2"),
}
_ALSO_STRENGTH: Final = {
    **_ALSO_OF_TWO,
    "prompt": (*_QUESTIONS, "context"),
    "strength": ("preference_strength", "overall_preference"),
}
_ALSO_COMPLETION: Final = {"completion": ("response",)}

SHAPES: Final = (
    Shape(
        "preference", ("prompt", "chosen", "rejected"), _preference, (*_GRADES, "input"),
        also={"prompt": (*_QUESTIONS, "messages", "conversations"), **_ALSO_GRADES},
        fits=lambda row: row.get("prompt") is not None or not _is_whole(row["chosen"]),
    ),
    Shape("preference", ("chosen", "rejected"), _implicit_preference, _GRADES, also=_ALSO_GRADES),
    Shape("comparison", (*_SIDES, "winner"), _comparison, _OF_TWO, also=_ALSO_OF_TWO),
    Shape("comparison", (*_SIDES, "strength"), _leaning, _OF_TWO, also=_ALSO_STRENGTH),
    _SEVERAL,
    Shape("label", ("prompt", "completion", "label"), _label, also=_ALSO_COMPLETION),
    Shape("completion", ("prompt", "completion"), _completion, ("score", "model"), also=_ALSO_COMPLETION),
    Shape("messages", ("messages",), _messages),
    Shape("sharegpt", ("conversations",), _sharegpt),
    Shape("alpaca", ("instruction",), _alpaca, ("input", "output")),
    Shape("prompt", ("prompt",), _prompt),
)  # fmt: skip
"""Tried in this order: the first whose needed columns a row has is the row's shape."""

EXTRAS: Final = ("system", "topic", "task", "group", "constraints", "reference", "rubric", "tools", *expected.COLUMNS)
"""Columns that any shape may have."""

FIELDS: Final = tuple(dict.fromkeys([n for s in SHAPES for n in (*s.needs, *s.may)] + list(EXTRAS)))
"""Every column with a meaning: what --map may name."""


def shape_of(row: Values) -> Shape | None:
    """The shape of a row by the columns that have a value."""
    return next((shape for shape in SHAPES if shape.holds(row)), None)


def mapped(row: Values, mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row with columns renamed by {field: column}; "a.b" is the field b of an object in column a."""
    values = {field: find(row, column) for field, column in mapping.items()}
    taken = {column.split(".")[0] for column in mapping.values()}
    return {**{name: v for name, v in row.items() if name not in taken}, **values}


def find(row: Values, column: str) -> Any:
    """The value of a column, or of a dotted path into it; None where there is none."""
    if column in row:
        return row[column]
    head, _, rest = column.partition(".")
    inner = row.get(head)
    return find(inner, rest) if rest and isinstance(inner, Mapping) else None


def read_row(line: int, row: Values, shape: Shape, group_column: str = "group") -> Example:
    """The row as an Example. `group_column` is where the name of its group stands."""
    given = _read(shape, {**row, **{name: row[column] for name, column in shape.columns(row).items()}})
    system = _plain(row, "system")
    if system and given.messages[0]["role"] != "system":
        given = given._replace(messages=[Message(role="system", content=system), *given.messages])
    asked, known = _expected(row)
    return Example(
        line=line,
        shape=shape.name,
        given=given,
        topic=_name(row, "topic"),
        task=_name(row, "task"),
        group=_name(row, group_column),
        constraints=[*(_constraints(row.get("constraints")) or []), *asked] or None,
        reference=_plain(row, "reference") or (given.answer if given.label is None else None) or known,
        rubric=_rubric(row.get("rubric")),
        tools=_tools(row.get("tools")),
    )


def _read(shape: Shape, row: Values) -> Given:
    try:
        return shape.read(row)
    except scored.ColumnError as fault:
        raise RowError(fault.column, fault.reason) from None


def _expected(row: Values) -> expected.Expected:
    """What the columns answer, choices, tests ... ask of an answer (see `factory/prompts/expected.py`)."""
    try:
        return expected.expected(row)
    except expected.ColumnError as fault:
        raise RowError(fault.column, fault.reason) from None


def _name(row: Values, column: str) -> str | None:
    value = find(row, column)
    if value is not None and not isinstance(value, str | int | float):
        raise RowError(column, f"must be a text or a number, not {type(value).__name__}")
    return None if value is None or not str(value).strip() else str(value).strip()


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """Schemas of functions: {"type": "function", "function": {"name", ...}}; a bare function is put into that form."""
    value = _listed(value, "tools", deep=True)
    if value is None:
        return None
    if not isinstance(value, list):
        raise RowError("tools", f"must be a list of tools, not {type(value).__name__}")
    return [_tool(tool) for tool in value]


def _tool(tool: Any) -> dict[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RowError("tools", "a tool must be an object with a name")
    whole = tool if "function" in tool else {"function": inner}
    return {"type": "function", **whole}


def _rubric(value: Any) -> list[dict[str, Any]] | None:
    value = _listed(value, "rubric")
    if value is None:
        return None
    try:
        return [criterion.as_json() for criterion in criteria_of(value)]
    except ConfigError as fault:
        raise RowError("rubric", "; ".join(fault.faults)) from None


def _listed(value: Any, column: str, *, deep: bool = False) -> Any:
    """A list of objects, itself or as JSON text; None for none. A table gives every object every key of the column,
    null where it has none: those go, with `deep` those of inner objects too."""
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(column, "not JSON") from None
    if deep:
        return _without_nulls(value)
    if isinstance(value, list):
        return [
            {k: v for k, v in item.items() if v is not None} if isinstance(item, Mapping) else item for item in value
        ]
    return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _constraints(value: Any) -> list[dict[str, Any]] | None:
    value = _listed(value, "constraints")
    if value is None:
        return None
    faults = constraint_faults(value)
    if faults:
        raise RowError("constraints", "; ".join(faults))
    read: list[dict[str, Any]] = value
    return read
