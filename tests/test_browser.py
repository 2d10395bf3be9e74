"""The report in a real browser: it opens from a file, shows its parts, loads nothing, and is not wider than the window.

Needs Chromium (or Chrome) on the PATH; run by `make soak`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny_run

pytestmark = pytest.mark.soak

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("no Chromium on the PATH: install it to look at the report")
    return found


@pytest.fixture(scope="module")
def page(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    text = tiny_run.recipe_text(tiny_model, tiny_run.write_prompts(folder / "prompts.jsonl"))
    assert tiny_run.finish(folder / "store", text) == 0, tiny_run.log_of(folder / "store")
    return folder / "store" / "runs" / "tiny" / "report.html"


def ask(browser: str, profile: Path, *arguments: str) -> str:
    command = [browser, *FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_page_opens_and_shows_its_parts(browser: str, page: Path, tmp_path: Path) -> None:
    dom = ask(browser, tmp_path / "profile", "--dump-dom", page.as_uri())
    parts = ("Rounds", "What changed", "Gain against distance", "Lengths", "Training", "Judges", "to read", "Decisions")
    for part in (*parts, "How far two judges agree", "What wins with each judge", "factory query"):
        assert part in dom
    assert dom.count("<svg") >= 12
    assert not re.search(r"<(script|iframe|link|img)\b", dom)


@pytest.mark.parametrize("scheme", ["0", "1"])
def test_light_and_dark_are_painted_in_their_colours(browser: str, page: Path, tmp_path: Path, scheme: str) -> None:
    """Chromium's preferred scheme 0 is dark, 1 is light: the corner of the page has the paper's colour."""
    from PIL import Image

    picture = tmp_path / "page.png"
    flags = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=600,400", f"--screenshot={picture}")
    ask(browser, tmp_path / "profile", *flags, page.as_uri())
    with Image.open(picture) as image:
        corner = image.convert("RGB").getpixel((2, 2))
    assert corner == {"0": (0x14, 0x16, 0x1A), "1": (0xFB, 0xFB, 0xF9)}[scheme]


HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


def test_hostile_answers_are_shown_and_never_run(browser: str, tmp_path: Path) -> None:
    from reported_run import preference, run_report

    from factory.report import PairToRead
    from factory.report.page import render

    pair = PairToRead("drawn", preference(1, chosen=HOSTILE, rejected=HOSTILE, asked=HOSTILE))
    where = tmp_path / "hostile.html"
    where.write_text(render(run_report(pairs=[pair])), encoding="utf-8")
    dom = ask(browser, tmp_path / "profile", "--dump-dom", where.as_uri())
    assert "<title>r · preference factory</title>" in dom
    assert not re.search(r"<(script|img)\b", dom)
    assert "&lt;script&gt;" in dom


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_painted_and_not_wider_than_the_window(
    browser: str, page: Path, tmp_path: Path, width: int
) -> None:
    picture = tmp_path / "page.png"
    ask(browser, tmp_path / "profile", f"--window-size={width},1600", f"--screenshot={picture}", page.as_uri())
    header = picture.read_bytes()[16:24]
    assert int.from_bytes(header[:4]) == width
    assert picture.stat().st_size > 20_000, "the page is blank"
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<iframe src="{page.as_uri()}" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>onload = () => {const d = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = `${d.scrollWidth} ${d.clientWidth}`}</script>"
    )
    dom = ask(browser, tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom", probe.as_uri())
    measured = re.search(r"<title>(\d+) (\d+)</title>", dom)
    assert measured is not None
    assert int(measured[1]) <= int(measured[2])
