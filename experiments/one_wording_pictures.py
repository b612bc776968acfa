"""Draw docs/images/one_wording.png: two samples of each task with one wording, and their answers.

python -m experiments.one_wording_pictures [--output docs/images/one_wording.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from dmole.demo.world import synthetic_samples
from dmole.demo.world.signs import SIGN_TASKS


def draw(output: Path) -> None:
    figure, axes = plt.subplots(2, len(SIGN_TASKS), figsize=(11, 3.4), layout="constrained")
    for column, (task, (sign, _)) in enumerate(SIGN_TASKS.items()):
        axes[0][column].set_title(f"{task.removeprefix('sign_')}\nsign {sign}", fontsize=9)
        for row, sample in enumerate(synthetic_samples(f"synthetic://{task}/train?size=2")):
            axis = axes[row][column]
            axis.imshow(sample.images[0].load(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(sample.turns[-1].text, fontsize=9, family="monospace")
    figure.savefig(output, dpi=80, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/images/one_wording.png"))
    draw(parser.parse_args().output)
