"""Miniatures of POPE, MME and MMMU."""

from __future__ import annotations

from dmole.benchmarks.shared.miniature import (
    COLORS,
    LETTERS,
    QUESTION,
    Miniature,
    color,
)


def write_retention(miniature: Miniature) -> None:
    """Write POPE, MME and MMMU."""
    rows, lines, items = [], [], []
    for n in miniature.numbers("test"):
        image = miniature.picture("retention/pope/val2014", f"{n}.jpg", n)
        prompt = f"Is it {COLORS[0]}?"
        rows.append({"question_id": n, "image": image, "text": prompt, "label": _yes(n == 0)})
        image = miniature.picture("retention/mme/images/color", f"{n}.jpg", n)
        for other in (n, n + 1):  # two questions an image, one of each answer
            prompt = f"Is it {color(other)}? Please answer yes or no."
            lines.append(f"{image}\t{prompt}\t{_yes(other == n).title()}\n")
        image = miniature.picture("retention/mmmu", f"images/{n}.png", n)
        item = {"id": f"dev_{n}", "question": f"<image 1> {QUESTION}", "image_1": image}
        options = {"options": str(list(COLORS)), "answer": LETTERS[n % 4]}
        items.append(item | (options if n else {"options": "[]", "answer": color(n)}))
    for kind in ("random", "popular", "adversarial"):
        miniature.lines(f"retention/pope/coco_pope_{kind}.json", rows)
    miniature.text("retention/mme/questions/color.txt", "".join(lines))
    miniature.json("retention/mmmu/validation.json", items)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"
