"""Single samples of each task with their answers after every stage."""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest

from markupsafe import Markup

from dmole.report.history import History, Story
from dmole.report.page.card import card
from dmole.report.page.markup import html, join, label, note
from dmole.report.page.record import RunRecord
from dmole.report.page.section import Section

SHOWN = 6
"""Most samples of a task that are shown."""

MOST_TASKS = 60
"""Most tasks that are shown."""

_OPEN = 2  # tasks that are open at first

KINDS = ("forgotten", "saved", "not learned", "kept")
"""Kinds of samples, in the order in which they are counted."""


def kind_of(story: Story, learned_at: int) -> str:
    """Return what became of a sample.

    Of the answers since the stage that learned its task: ``forgotten`` if the last one is wrong and
    an earlier one is right, ``saved`` if the last one is right and an earlier one is wrong,
    ``kept`` if all are right, ``not learned`` if none is, whatever the base model answered.

    Args:
        story: The sample.
        learned_at: The stage that learned its task; 0 for a task that no stage learned.
    """
    since = [answer for answer in story.answers if answer.stage >= learned_at] or story.answers
    if since[-1].right:
        return "kept" if all(answer.right for answer in since) else "saved"
    return "forgotten" if any(answer.right for answer in since) else "not learned"


def _draw(record: RunRecord) -> Markup | None:
    history = record.history
    if history is None or not history.cases:
        return None
    tasks = list(history.cases)
    parts = [_task(record, history, task, at < _OPEN) for at, task in enumerate(tasks[:MOST_TASKS])]
    parts += [note(line) for line in history.problems]
    if not history.images and not history.problems:
        parts.append(note("The run kept no images of its test samples (trainer.case_images)."))
    if len(tasks) > MOST_TASKS:
        parts.append(note(f"The first {MOST_TASKS} of {len(tasks)} tasks are shown."))
    return join(parts)


def _task(record: RunRecord, history: History, task: str, shown: bool) -> Markup:
    """Return the samples of a task, forgotten and saved ones first."""
    found = [history.stories[task][name] for name in history.cases[task]]
    stories = [story for story in found if story.answers]
    learned_at = record.learned_at.get(task, 0)
    kinds = [kind_of(story, learned_at) for story in stories]
    ranked = _ranked(list(zip(kinds, stories, strict=True)))
    images = history.images.get(task, {})
    cards = (card(story, images.get(story.id), kind, Markup()) for kind, story in ranked[:SHOWN])
    counts = Counter(kinds)
    words = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    return html(
        '<details class="cases"{} data-task="{}"><summary><b>{}</b>: {} of {} followed samples'
        '</summary><div class="cards">{}</div></details>',
        Markup(" open") if shown else Markup(),
        task,
        label(task),
        words,
        len(stories),
        join(cards),
    )


def _ranked(pairs: list[tuple[str, Story]]) -> list[tuple[str, Story]]:
    """Return samples with their kinds: forgotten, then saved ones, then the others in turn."""
    by_kind = {kind: [pair for pair in pairs if pair[0] == kind] for kind in KINDS}
    changed = by_kind["forgotten"] + by_kind["saved"]
    turns = zip_longest(by_kind["not learned"], by_kind["kept"])
    return changed + [pair for turn in turns for pair in turn if pair is not None]


CASES = Section(
    "cases",
    "Single samples: what the model answered after each stage",
    "The same samples in every run on these data. Forgotten: right (score of at least 50 %) at "
    "some stage since the task was learned, wrong now. Saved: wrong at some stage since, right "
    "now. Kept: right ever since. Not learned: wrong ever since. Equal answers of the same experts "
    "share a line; base is the model without experts.",
    _draw,
    costly=True,
)
