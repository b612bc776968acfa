"""The page in a real browser: it needs Chromium, which is no package of Python."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report_page_hostile import EVIL, TABLES

from dmole.metrics import write_matrix
from dmole.report.page import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or google-chrome on the PATH of this machine"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `dev`")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def file(runs: list[Path]) -> Path:
    """The page of a run with a table of every kind and a hostile name of a task."""
    names = [EVIL, "color", "count"]
    rows = [[0, 0, 0], [90, 0, 0], [60, 80, 0], [50, 70, 99]]
    write_matrix(runs[0] / "evaluation_matrix.csv", rows, names)
    (runs[0] / "oracle_matrix.csv").unlink()
    for name, text in TABLES.items():
        later = text.splitlines()[1].replace("1,", "2,", 1) if name == "routing.csv" else ""
        (runs[0] / name).write_text(f"{text}{later}".replace("{0}", "color"))
    return write_report([runs[0]])


@pytest.fixture(params=[1280, 390])
def page(browser: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page from disk; an error, a message or a request of it fails the test."""
    opened = browser.new_page(viewport={"width": request.param, "height": 800})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("dialog", lambda dialog: problems.append("a name has run as a script"))
    requests: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(file.as_uri())
    yield opened
    opened.close()
    assert problems == []
    assert requests == [file.as_uri()]


def test_it_fits_any_screen_and_prints(page: Any) -> None:
    assert not page.evaluate(WIDE)
    assert page.locator("section").count() == 7
    fonts = page.evaluate(
        "[...new Set([...document.querySelectorAll('body *')]"
        ".map((each) => getComputedStyle(each).fontFamily))].length"
    )
    assert fonts == 1
    assert page.pdf().startswith(b"%PDF")


def test_tables_are_sorted_and_tasks_are_filtered(page: Any) -> None:
    table = page.locator("#summary table", has_text="Learned at stage")
    names = table.locator("tbody th")
    table.get_by_role("button", name="Task").click()
    assert names.all_inner_texts()[1:] == ["color", "count"]
    table.get_by_role("button", name="Learned at stage").click()  # numbers begin with the highest
    assert names.first.inner_text() == "count"
    table.get_by_role("button", name="Learned at stage").click()
    assert names.last.inner_text() == "count"
    page.get_by_label("Show tasks that contain").fill("COU")
    assert page.locator("#matches").inner_text() == "1 of 3 tasks"
    assert [name.inner_text() for name in names.all() if name.is_visible()] == ["count"]
    page.get_by_role("button", name="Show all").click()
    names.first.wait_for(state="visible")


def test_values_are_reached_with_the_keyboard(page: Any) -> None:
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"A", "INPUT", "BUTTON", "TABLE"} <= reached
    page.locator("#matrix table").first.focus()
    tip = page.locator("#tip")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert tip.inner_text().startswith("color after stage 1 ")
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_the_slider_shows_the_gate_sets_of_one_stage(page: Any) -> None:
    slider = page.get_by_role("slider", name="Stage 2")
    assert page.locator("#activation details:visible").count() == 1
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("slider", name="Stage 1").count() == 1
    assert page.locator("#activation details:visible th", has_text="b (unseen)").count() == 1


def test_without_scripts_all_values_are_there(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("td[title='color after stage 3 count: 70.00']").count() == 1
    assert page.locator("#activation summary:visible").count() == 2
    context.close()
