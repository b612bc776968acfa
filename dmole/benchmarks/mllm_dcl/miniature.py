"""Miniature of MLLM-DCL."""

from __future__ import annotations

from dmole.benchmarks.shared.miniature import (
    QUESTION,
    Miniature,
    color,
    question,
    talk,
)


def write_mllm_dcl(miniature: Miniature) -> None:
    """Write MLLM-DCL: five domains with separate images."""
    for task in ("RS", "Med", "AD", "Sci", "Fin"):
        for split in ("train", "test"):
            items = []
            for n in miniature.numbers(split):
                source = ("AI2D", "TQA", "VQA", "map")[n % 4] if task == "Sci" else task
                image = miniature.picture(
                    f"Domain_data/{task}", f"images/{source}_{split}_{n}.png", n
                )
                if split == "train":
                    items.append(talk(n, image, QUESTION, color(n)))
                else:
                    items.append(question(n, image, QUESTION, answer=color(n)))
            miniature.json(f"Domain_data/{task}/{split}.json", items)
