"""Imports: the command line is light, imports point one way, and no name shadows factory_boy's."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "transformers",
    "duckdb",
    "pyarrow",
    "pandas",
    "datasets",
    "openai",
    "vllm",
    "numpy",
    "peft",
    "aiohttp",
}
LAYERS = (
    {"faults", "plugins", "registry", "schema", "crash", "resources", "console", "stats"},
    {"store", "query", "engines", "judges", "constraints", "stopping", "execution", "budget", "verdicts", "votes",
     "recipe"},
    {"calls", "threads"},
    {"labelling"},
    {"prompts", "generation", "revision", "meta_judging", "trust", "pairing", "training", "evaluation", "best_of_n",
     "export", "report", "simulation", "doctor"},
    {"rounds"},
    {"comparing"},
    {"commands"},
    {"cli"},
)  # fmt: skip
FORBIDDEN = {
    "alchemy", "base", "builder", "declarations", "django", "enums", "errors", "faker", "fuzzy", "helpers", "mogo",
    "mongoengine", "random", "utils",
}  # fmt: skip


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, factory.cli; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in loaded
    assert not HEAVY & set(loaded)


def test_the_train_package_and_its_config_are_light() -> None:
    code = "import sys, train.config; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def part_of(path: Path) -> str:
    """The module, or the folder, of `factory` that a file belongs to."""
    inside = path.relative_to(ROOT / "factory")
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path) -> set[str]:
    """Parts of `factory` that a file imports, also inside functions, but not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "factory":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("factory."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("factory.")}
    return found


def level(part: str) -> int:
    for i, names in enumerate(LAYERS):
        if part in names:
            return i
    raise AssertionError(f"factory.{part} has no layer: add it to LAYERS and to ARCHITECTURE.md")


FILES = sorted(
    path for path in (ROOT / "factory").rglob("*.py") if path.name != "__init__.py" or path.parent.name != "factory"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = part_of(path)
    above = {part for part in imported(path) if level(part) > level(own)}
    assert not above, f"{path.name} imports from layers above its own: {sorted(above)}"


PACKAGES = sorted({path.parent for path in FILES if path.parent.parent.name == "factory"})


def siblings(path: Path) -> set[str]:
    """Modules of its own package that a file imports as it is loaded."""
    package = f"factory.{path.parent.name}"
    tops = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    whole = {alias.name for node in tops if node.module == package for alias in node.names}
    return whole | {str(node.module).split(".")[2] for node in tops if (node.module or "").startswith(f"{package}.")}


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_modules_of_a_package_import_each_other_one_way(folder: Path) -> None:
    graph = {path.stem: siblings(path) for path in folder.glob("*.py") if path.stem != "__init__"}
    TopologicalSorter(graph).prepare()  # CycleError


@pytest.mark.parametrize("path", sorted((ROOT / "train").glob("*.py")), ids=lambda path: path.name)
def test_the_trainer_does_not_know_the_factory(path: Path) -> None:
    assert imported(path) <= {"faults", "plugins", "registry", "schema", "crash"}


def test_no_module_has_a_name_of_factory_boys() -> None:
    assert not {path.stem for path in (ROOT / "factory").glob("*.py")} & FORBIDDEN


def test_every_module_opens_with_what_it_is() -> None:
    without = [
        str(path.relative_to(ROOT))
        for folder in ("factory", "train")
        for path in (ROOT / folder).rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert without == []
