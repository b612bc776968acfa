"""The chat page, in a real browser: it needs Chromium, which is no package of Python."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_runs import Question, Served, served

from dmole.inference import Answer, RoutedModel
from dmole.serving.limits import Access, Limits

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
KEY = "secret"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or google-chrome on the PATH of this machine"
)


@pytest.fixture(scope="module")
def server(model: RoutedModel, offline: list[Answer]) -> Iterator[Served]:
    with served(model, Limits(max_new_tokens=8), Access(api_key=KEY)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `dev`")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, server: Served) -> Iterator[Any]:
    """The page after its start; anything that it reports as an error fails the test."""
    opened = browser.new_page(viewport={"width": 375, "height": 700})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    requests: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(server.url)
    yield opened
    opened.close()
    assert problems == []
    local = (server.url, "data:", "blob:")
    assert [url for url in requests if not url.startswith(local)] == []  # it works offline


def ask(page: Any, text: str) -> Any:
    """Send a message with the keyboard; return the answer once it is complete."""
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")
    answer = page.locator(".answer").last
    answer.locator(".experts, .error").wait_for()
    return answer


def give_key(page: Any) -> None:
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Tab")
    page.locator("option", has_text="paint").wait_for(state="attached")


def test_the_page_shows_an_answer_about_an_image_and_its_experts(
    page: Any, questions: list[Question], offline: list[Answer], tmp_path: Path
) -> None:
    row = next(row for row, answer in enumerate(offline) if answer.experts and answer.text)
    picture = tmp_path / "picture.png"
    picture.write_bytes(questions[row].png)
    give_key(page)
    page.locator("#file").set_input_files(picture)
    page.get_by_alt_text("The image to send").wait_for()
    answer = ask(page, questions[row].text)
    assert answer.locator("p").first.inner_text().split()[0] == offline[row].text.split()[0]
    assert answer.locator(".experts").inner_text() == (
        f"Answered by {' + '.join(offline[row].experts)}"
    )
    cells = answer.locator("tbody tr").all_inner_texts()
    assert [cell.split()[0] for cell in cells] == list(offline[row].losses)
    used = {line.split()[0] for line in cells if "(used)" in line}
    assert used == set(offline[row].experts)
    assert page.get_by_alt_text("Image of the message").is_visible()
    assert page.evaluate("document.activeElement.id") == "text"
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(wide)  # nothing is cut off on a telephone


def test_the_picker_forces_an_expert_and_a_conversation_can_be_begun_anew(page: Any) -> None:
    give_key(page)
    page.get_by_label("Model").select_option("count")
    assert ask(page, "how many ?").locator(".experts").inner_text() == "Answered by count"
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0


def test_a_refusal_is_shown_and_the_next_message_is_answered(page: Any) -> None:
    assert "needs its API key" in ask(page, "how many ?").locator(".error").inner_text()
    give_key(page)
    assert ask(page, "how many ?").locator(".experts").count() == 1


@pytest.mark.slow
def test_every_control_has_a_name_and_is_reached_with_the_keyboard(page: Any) -> None:
    give_key(page)
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"model", "key", "text", "file", "clear", "send"} <= reached
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')]"
        ".filter((control) => !control.labels.length).map((control) => control.id)"
    )
    assert unnamed == []
    assert page.get_by_role("log").get_attribute("aria-live") == "polite"
