"""Recipes from YAML: found by name or path, overridden key by key, read as far as they fit, all faults at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from factory import plugins
from factory.faults import ConfigError, FactoryError
from factory.recipe import dotted, misfits
from factory.recipe.parts import Step
from factory.recipe.whole import PIECEMEAL, Recipe, disagreements
from factory.registry import unknown_name


class _UniqueKeys(yaml.SafeLoader):
    """safe_load that refuses a key given twice instead of keeping the last."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            line = key_node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice (line {line})")
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_UniqueKeys.add_constructor("tag:yaml.org,2002:map", _mapping)


def bundled_recipes() -> dict[str, Path]:
    """Name to file of the recipes that come with the factory."""
    from factory.resources import bundled

    return {path.stem: path for path in sorted(bundled("pipelines").glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a recipe: a path that exists, or a bundled name."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise FactoryError(f"no recipe file {name!r}", todo="give the path of a YAML file, or a bundled name")
    known = bundled_recipes()
    if name not in known:
        raise unknown_name("recipe", name, known)
    return known[name]


class Read(NamedTuple):
    """A recipe as far as it can be read, what is left out of it because it does not fit, and what is wrong."""

    recipe: Recipe | None
    faults: tuple[str, ...]
    left_out: tuple[misfits.Key, ...] = ()

    def stands(self, fault: str) -> bool:
        """Is a fault of `recipe` one of what was written, and not of what was left out?"""
        key = fault.partition(": ")[0]
        return not any(f"{key}.".startswith(f"{misfits.dotted(out)}.") for out in self.left_out)


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or path, with `a.b=c` overrides. ConfigError lists every fault at once."""
    path = find(name)
    return _sound(examine_file(path, overrides), str(path))


def text_of(path: Path) -> str:
    """What a recipe's file holds."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FactoryError(f"the recipe cannot be read: {error}", where=str(path), todo="save it as UTF-8") from error


def parse(text: str, *, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a YAML text holds, such as one kept with a run: its plugins are not imported, since a store may
    come from anywhere. ConfigError lists every fault of its form at once."""
    return _sound(examine(text, where=where, overrides=overrides), where, f"{MEND}, or name its plugins (--plugin)")


def parse_but_rules(text: str, *, where: str) -> Recipe:
    """`parse` for those who only look at a run: without its stopping rules, which may be a plugin's."""
    whole = yaml.safe_load(text)
    told = {key: value for key, value in whole.items() if key != "stop"} if isinstance(whole, dict) else whole
    return parse(yaml.safe_dump(told), where=where)


MEND = "mend these keys, or override with --set"


def _sound(read: Read, where: str, todo: str = MEND) -> Recipe:
    if read.faults or read.recipe is None:
        raise ConfigError(read.faults, where=where, todo=todo)
    return read.recipe


STANDINS: Mapping[str, Any] = {"name": "recipe", "judge": "rating"}
"""What takes the place of a key that is lacking, while the rest is looked at."""


def examine_file(path: Path, overrides: Sequence[str] = ()) -> Read:
    """`examine` of a file's text, after its plugins are imported; they are looked for from here and beside it, and kept
    by their whole paths. FactoryError: one cannot be had."""
    return examine(text_of(path), where=str(path), overrides=overrides, beside=path.parent)


def examine(text: str, *, where: str, overrides: Sequence[str] = (), beside: Path | None = None) -> Read:
    """The recipe that a YAML text holds, as far as it holds one, with every fault. FactoryError: it is no mapping, or
    an override cannot be read."""
    try:
        data = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError([f"not valid YAML: {error}"], where=where, todo="mend the file") from error
    if not isinstance(data, dict):
        raise ConfigError(
            ["a recipe is a mapping of keys to values"], where=where, todo="see pipelines/quickstart.yaml"
        )
    for override in overrides:
        _override(data, override)
    if beside is not None:
        _use_plugins(data, beside)
    plugins.load()  # one that does not load is no fault of the keys that it would have answered
    found: list[misfits.Misfit] = []
    recipe = _as_far_as_it_fits(data, found)
    out = [one.key[:-1] if one.lacking and len(one.key) > 1 else one.key for one in found]
    read = Read(recipe, tuple(dict.fromkeys(one.text() for one in found)), tuple(out))
    if recipe is None:
        return read
    own = [fault for fault in disagreements(recipe) if read.stands(fault) and _is_told_by(fault, out)]
    mended = recipe.model_copy(update={"stages": tuple(_mended(recipe, step) for step in recipe.stages)})
    return read._replace(recipe=mended, faults=(*read.faults, *own))


def _use_plugins(data: dict[str, Any], beside: Path) -> None:
    """Before anything of a recipe is looked at: what it names may come from them."""
    named = data.get("plugins")
    if isinstance(named, list) and all(isinstance(name, str) for name in named):
        data["plugins"] = plugins.use(named, beside)


def _as_far_as_it_fits(data: Any, found: list[misfits.Misfit]) -> Recipe | None:
    """The recipe without what does not fit, which goes into `found`; None where nothing is left."""
    for _ in range(8):
        try:
            return Recipe.model_validate(data, context=PIECEMEAL)
        except ValidationError as error:
            faults = misfits.found(error, Recipe, data)
            found += faults
            data = misfits.without(data, faults, STANDINS)
    return None


BETWEEN: Mapping[str, set[str]] = {"pair.lead": {"panel", "stages", "pair"}, "panel": {"stages"}}
"""Faults between parts, by key, and the parts."""


def _is_told_by(fault: str, out: Sequence[misfits.Key]) -> bool:
    """Can a fault be told, although some parts are left out? Not where one of those is among its own."""
    return not BETWEEN.get(fault.partition(": ")[0], set()) & {str(key[0]) for key in out if key}


def _mended(recipe: Recipe, step: Step) -> Step:
    """The step without those of its own settings that do not fit."""
    keys = [misfits.dotted(one.key) for one in recipe.misfits_at(step)]
    fits = {k: v for k, v in step.set.items() if not any(_meet(k, key) for key in keys)}
    return step.model_copy(update={"set": fits}) if keys else step


def _meet(one: str, other: str) -> bool:
    """Are two dotted keys the same, or one within the other? All are within the empty one."""
    return not one or not other or f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def dump(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML: what is kept with a run."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(data: dict[str, Any], text: str) -> None:
    """Set one `a.b=c` in place; a number steps into a list."""
    path, sign, raw = text.partition("=")
    if not sign or not path:
        raise FactoryError(
            f"--set {text!r} is not of the form key.key=value", todo="for example --set train.config.epochs=1"
        )
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise FactoryError(f"--set {path}: {raw!r} is not a YAML value", todo="quote the value") from error
    dotted.put(data, path, value, f"--set {text!r}")
