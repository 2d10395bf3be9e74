"""What an endpoint's tokens cost, from the user's own table. What is not in it is unknown, and never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

NEEDED = ("prompt", "completion")
NAMES = (*NEEDED, "cached_prompt")
FORM = "US dollars for a million tokens: {prompt: 2.5, completion: 10.0}, and cached_prompt where that is cheaper"


class Prices(NamedTuple):
    """US dollars for a million tokens. `cached_prompt`: for those that the endpoint reads from its cache."""

    prompt: float
    completion: float
    cached_prompt: float

    def cost(self, prompt: int, completion: int, cached: int = 0) -> float:
        """US dollars for so many tokens, `cached` of the prompt's among them."""
        paid = (prompt - cached) * self.prompt + cached * self.cached_prompt + completion * self.completion
        return paid / 1e6


def read_prices(given: Mapping[str, Any] | str | None, model: str) -> tuple[Prices | None, list[str]]:
    """The model's prices, None where they are unknown, and all faults of what was given.

    given: the prices themselves, a table of models, or the name of a YAML or JSON file with either.
    """
    if given is None:
        return None, []
    table: Any = given
    if isinstance(given, str):
        try:
            table = yaml.safe_load(Path(given).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            return None, [f"prices: {given} cannot be read ({type(error).__name__})"]
        except yaml.YAMLError:
            return None, [f"prices: {given} is neither YAML nor JSON"]
    if not isinstance(table, Mapping):
        return None, [f"prices: must be {FORM}; or a table of such by model"]
    if set(table) & set(NAMES):
        return _of_one(table, "prices")
    faults = [fault for name, entry in table.items() for fault in _of_one(entry, f"prices of {name}")[1]]
    found = _of_one(table[model], "")[0] if model in table and not faults else None
    return found, faults


def _of_one(entry: Any, where: str) -> tuple[Prices | None, list[str]]:
    if not isinstance(entry, Mapping):
        return None, [f"{where}: must be {FORM}"]
    faults = [f"{where}: {name} is missing ({FORM})" for name in NEEDED if name not in entry]
    faults += [f"{where}: {name!r} is not one of {', '.join(NAMES)}" for name in entry if name not in NAMES]
    values = {name: _number(entry[name]) for name in NAMES if name in entry}
    faults += [f"{where}: {name} must be a number of 0 or more" for name, value in values.items() if value is None]
    if faults:
        return None, faults
    prompt, completion = values["prompt"], values["completion"]
    if prompt is None or completion is None:
        return None, faults
    cached = values.get("cached_prompt")
    return Prices(prompt, completion, prompt if cached is None else cached), []


def _number(value: Any) -> float | None:
    """The number, also where YAML took it for text (5e-7); None where it is no price."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
