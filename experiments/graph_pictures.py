"""Draw docs/images/graph_tasks.png: two samples of each graph task with prompt and answer.

python -m experiments.graph_pictures [--output docs/images/graph_tasks.png]
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

from dmole.demo.world import GRAPH_TASKS, synthetic_samples


def draw(output: Path) -> None:
    tasks = list(GRAPH_TASKS)
    figure, axes = plt.subplots(2, len(tasks), figsize=(11, 8.2), layout="constrained")
    for column, task in enumerate(tasks):
        axes[0][column].set_title(task, fontsize=12)
        for row, sample in enumerate(synthetic_samples(f"synthetic://{task}/train?size=2")):
            axis = axes[row][column]
            axis.imshow(sample.images[0].load(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            graph, question = sample.prompt.removeprefix("task ").split(" question ")
            lines = [*textwrap.wrap(graph, 36), "", question]
            lines += textwrap.wrap(f"→ {sample.turns[-1].text}", 36)
            axis.set_xlabel("\n".join(lines), fontsize=8, loc="left", family="monospace")
    figure.savefig(output, dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/images/graph_tasks.png"))
    draw(parser.parse_args().output)
