"""The wheel holds what the program needs and nothing else, whatever git ignores or leaves beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel that was just built."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, cwd=out)
    [wheel] = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_module_and_data_file_is_in_the_wheel(names: set[str]) -> None:
    kept = [path for folder in ("factory", "train") for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT).as_posix() for path in kept if "__pycache__" not in path.parts}
    for folder in ("constitutions", "pipelines"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert files
        wanted |= {f"factory/bundled/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert wanted <= names
    assert {"factory/py.typed", "train/py.typed", "factory/report/templates/report.html.j2"} <= names
    assert {"factory/bundled/pipelines/quickstart.yaml", "factory/bundled/pipelines/prompts/verifiable.jsonl"} <= names


def test_nothing_else_is_in_the_wheel(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"factory", "train"}
    assert not [name for name in names if "__pycache__" in name or "test" in name.lower().split("/")]
    assert [name for name in names if name.endswith("licenses/LICENSE")]
