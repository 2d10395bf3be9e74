"""Code of users' own: modules that enter judges, engines, rules, objectives ... under new names as they are imported.

They are named in the variable FACTORY_PLUGINS, by `factory --plugin` and by a recipe's `plugins`, which add to it, or
come with an installed package as entry points of the group GROUP. Each is imported once in a process, at the first look
into a `Registry`; child processes inherit the variable.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module, util
from pathlib import Path
from types import FrameType, ModuleType

from factory.faults import ConfigError, FactoryError

VARIABLE = "FACTORY_PLUGINS"
"""Files (ending in .py) and modules, with commas between."""
GROUP = "preference_factory.plugins"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One that was imported: as it is named, its file, and what it entered, as (kind, name)."""

    name: str
    file: str = ""
    entered: list[tuple[str, str]] = field(default_factory=list)

    def content(self) -> str:
        """Hash of its file; of what that imports nothing is known."""
        return hashlib.sha256(Path(self.file).read_bytes()).hexdigest() if Path(self.file).is_file() else ""

    def text(self) -> str:
        """What it brings, in words."""
        return f"{self.name}: {', '.join(f'{kind} {name}' for kind, name in self.entered)}"


_OWN = ("factory", "train")
_lock = threading.RLock()
_plugins: dict[str, Plugin | FactoryError] = {}  # by name, in the order of their import
_found: dict[str, tuple[Plugin, ...]] = {}  # by what the variable says
_importing: list[Plugin] = []  # the one that is being imported now, if one is


def use(names: Sequence[str], beside: Path | None = None) -> list[str]:
    """Add plugins to those of this process and its children. A file that is not found from here is looked for `beside`.
    The names, files as whole paths. ConfigError: a file is not there."""
    found = [_placed(name, beside) for name in names]
    if faults := [f"there is no file {name!r}" for name in found if _is_file(name) and not Path(name).is_file()]:
        raise ConfigError(faults, where="plugins", todo="name a Python file, or a module that Python finds")
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*_named(), *found]))
    return found


def load() -> tuple[Plugin, ...]:
    """All plugins of this process, those imported that were not yet. FactoryError: one cannot be, or enters nothing."""
    given = os.environ.get(VARIABLE, "")
    if (found := _found.get(given)) is not None:
        return found
    with _lock:
        if _importing:  # it looks something up while it is imported
            return ()
        for name in (*_named(), *_installed()):
            if name not in _plugins:
                _plugins[name] = _tried(name)
        every = list(_plugins.values())
        if fault := next((each for each in every if isinstance(each, FactoryError)), None):
            raise fault
        return _found.setdefault(given, tuple(each for each in every if isinstance(each, Plugin)))


def entered(kind: str, name: str) -> None:
    """A registry tells of a new entry; it is noted if a plugin makes it, and not a module of ours that it imports."""
    if _importing and _running(sys._getframe()).partition(".")[0] not in _OWN:
        _importing[0].entered.append((kind, name))


def _running(frame: FrameType | None) -> str:
    """The module whose code the innermost module-level frame runs."""
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals["__name__"])


def _named() -> list[str]:
    parts = os.environ.get(VARIABLE, "").split(",")
    return [_placed(name) for part in parts if (name := part.strip())]


@cache
def _installed() -> tuple[str, ...]:
    from importlib import metadata  # a tenth of the time that the command line takes to load

    return tuple(sorted({point.value for point in metadata.entry_points(group=GROUP)}))


def _is_file(name: str) -> bool:
    return name.endswith(".py")


def _placed(name: str, beside: Path | None = None) -> str:
    if not _is_file(name):
        return name
    places = [Path(name).expanduser(), *([beside / name] if beside is not None else [])]
    return str(next((place for place in places if place.is_file()), places[0]).resolve())


def _tried(name: str) -> Plugin | FactoryError:
    """The plugin, or why it is none: it is not tried again, since half of it may have been entered."""
    plugin = Plugin(name)
    known = name in sys.modules
    _importing.append(plugin)
    try:
        module = _run_file(Path(name)) if _is_file(name) else import_module(name)
    except Exception as error:  # noqa: BLE001 - another's code, told of by where it failed
        absent = isinstance(error, ModuleNotFoundError) and error.name in {name, name.partition(".")[0]}
        return FactoryError(
            f"the plugin {name!r} cannot be loaded: {type(error).__name__}: {error}",
            where=_place_of(error, name),
            todo="name its file (ending in .py), or let Python find it (PYTHONPATH=.)"
            if absent
            else f"mend it, or leave it out (--plugin, a recipe's plugins, {VARIABLE})",
        )
    finally:
        _importing.clear()
    if not plugin.entered and not known:
        return FactoryError(
            f"the plugin {name!r} enters nothing",
            where=module.__file__ or name,
            todo="register what it brings, for example with @judges.register(NAME, asks=False); see docs/extending.md",
        )
    return replace(plugin, file=module.__file__ or "")


def _run_file(path: Path) -> ModuleType:
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what lies beside it
    name = f"factory_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _place_of(error: BaseException, name: str) -> str:
    """The last line of the plugin's own file that was running."""
    lines = list(_lines(error))
    file, line = next((one for one in reversed(lines) if one[0] == name), lines[-1])
    return f"{file}, line {line}" if file == name else name


def _lines(error: BaseException) -> Iterator[tuple[str, int]]:
    at = error.__traceback__
    while at is not None:
        yield at.tb_frame.f_code.co_filename, at.tb_lineno
        at = at.tb_next
