"""A test sample on the page: images, question, references, and its answers over the stages."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dmole.messages import shortened, visible
from dmole.report.history import StageAnswer, Story
from dmole.report.page.markup import html, join, label, number
from dmole.storage.case_images import Case

LONGEST_TEXT = 400
"""Most characters of a question or an answer; a longer one is cut in its middle."""

_REFERENCES = 3
"""References that are shown of a sample."""


def card(story: Story, images: Case | None, kind: str, more: Markup) -> Markup:
    """Return a sample with its answers.

    Args:
        story: The sample.
        images: Its images; None if none were kept.
        kind: What the sample is an example of, in a word.
        more: Markup below the answers; may be empty.
    """
    facts = [("question", text(story.prompt)), ("reference", _references(story.references))]
    entries = join(html("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in facts)
    return html(
        '<article class="case"{}><header><span class="kind {}">{}</span> <code>{}</code></header>'
        "{}<dl>{}</dl>{}{}</article>",
        html(' data-task="{}"', story.task),
        kind.replace(" ", "-"),
        kind,
        label(story.id),
        _images(story, images),
        entries,
        _answers(story.answers),
        more,
    )


def text(content: str) -> str:
    """Return a text of a sample: cut if it is long, every character visible, lines kept."""
    return visible(shortened(content.strip(), LONGEST_TEXT), keep="\n") or "(empty)"


def _references(references: Sequence[str]) -> str:
    shown = [text(each) for each in references[:_REFERENCES]]
    if len(references) > _REFERENCES:
        shown.append(f"and {len(references) - _REFERENCES} more")
    return "; ".join(shown) or "(none)"


def _images(story: Story, images: Case | None) -> Markup:
    kept = images.images if images is not None else ()
    pictures = (
        html(
            '<img src="data:image/jpeg;base64,{}" alt="image {} of sample {}" decoding="async">',
            image,
            at,
            label(story.id),
        )
        for at, image in enumerate(kept, start=1)
    )
    return html('<div class="images">{}</div>', join(pictures)) if kept else Markup()


def _answers(answers: Sequence[StageAnswer]) -> Markup:
    """Return a table of the answers; equal ones in a row share a line."""
    rows = join(
        html(
            '<tr class="{}"><th scope="row">{}</th><td>{}</td><td>{}</td><td>{}</td></tr>',
            "right" if group[0].right else "wrong",
            _stages(group),
            text(group[0].text),
            number(group[0].score, 0),
            label(group[0].gate_set),
        )
        for group in _grouped(answers)
    )
    return html(
        '<table class="answers"><thead><tr><th scope="col">after stage</th><th scope="col">answer'
        '</th><th scope="col">score (%)</th><th scope="col">experts</th></tr></thead>'
        "<tbody>{}</tbody></table>",
        rows,
    )


def _grouped(answers: Sequence[StageAnswer]) -> list[list[StageAnswer]]:
    groups: list[list[StageAnswer]] = []
    for answer in answers:
        last = groups[-1][0] if groups else None
        if last is not None and (answer.text, answer.gate_set) == (last.text, last.gate_set):
            groups[-1].append(answer)
        else:
            groups.append([answer])
    return groups


def _stages(group: Sequence[StageAnswer]) -> str:
    first, last = group[0].stage, group[-1].stage
    return str(first) if first == last else f"{first} to {last}"
