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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from factory.constraints import faults as constraint_faults
from factory.faults import ConfigError
from factory.judges.criteria import criteria_of
from factory.prompts import expected, scored
from factory.prompts.scored import Scale, Winner
from factory.prompts.sources import RowError
from factory.prompts.turns import ROLES, conversation, ending_with_user, is_hh, parsed, turns
from factory.schema import Message, Messages

Values = Mapping[str, Any]


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
    kept: dict[str, Any] | None = None


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
    return isinstance(by, str) and ROLES.get(by.lower()) in ("system", "user")


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
        return parsed(value, "answers")
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
    given = shape.read({**row, **{name: row[column] for name, column in shape.columns(row).items()}})
    system = _plain(row, "system")
    if system and given.messages[0]["role"] != "system":
        given = given._replace(messages=[Message(role="system", content=system), *given.messages])
    asked, known = expected.expected(row)
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
