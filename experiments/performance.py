"""How fast dmole is: training steps, answers and whole runs, beside PEFT and the bare model.

    python -m experiments.performance                     # all sections; an hour on two cores
    python -m experiments.performance --only steps --models tiny --rounds 7
    python -m experiments.performance --profile           # also the five most expensive places

Times are processor times of one thread. The works of a section take turns within one process and
share the weights of the base model. Figures are medians of paired ratios with their quartiles.
Rows replace those of an earlier measurement in the JSON file; the tables of the page are made from
that file. With CUDA, two sections of the GPU script run too: a random LLaVA-1.5-7B in bfloat16,
beside PEFT.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from experiments import gpu_first_half_hour
from experiments.speed.answers import answers
from experiments.speed.page import Row, read_rows, renewed, tables, with_tables, write_rows
from experiments.speed.profiles import profile_rows
from experiments.speed.runs import runs
from experiments.speed.steps import steps
from experiments.speed.subjects import MODELS, Subject, build

ROOT = Path(__file__).resolve().parents[1]
WORKS: dict[str, Callable[[Subject, int], Iterator[Row]]] = {
    "steps": steps,
    "answers": answers,
    "profile": profile_rows,
}
OF_ALL = ("runs", "gpu")
ROWS = ROOT / "docs" / "results" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables, and write the rows and the tables of the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    sections = (*WORKS, *OF_ALL)
    default = [section for section in sections if section != "profile"]
    parser.add_argument("--only", nargs="*", choices=sections, default=default)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each time")
    parser.add_argument("--profile", action="store_true", help="as if --only named it too")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON file of all rows")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose tables are replaced")
    options = parser.parse_args(arguments)
    chosen = [*options.only, *(["profile"] if options.profile else [])]
    torch.set_num_threads(1)
    for model in options.models:
        own = [section for section in WORKS if section in chosen]
        if own and len(options.models) > 1:  # memory left behind would slow the next model
            _in_a_process_of_its_own(model, own, options)
            continue
        for section in own:
            _add(options.rows, _of_a_model(section, model, options.rounds))
    if "runs" in chosen:
        _add(options.rows, runs(options.rounds))
    if "gpu" in chosen:
        _on_a_gpu(options.rows.parent / "performance_gpu.md")
    page = options.page.read_text(encoding="utf-8")
    text = with_tables(page, tables(read_rows(options.rows)))
    options.page.write_text(text, encoding="utf-8")


def _of_a_model(section: str, model: str, rounds: int) -> Iterator[Row]:
    return WORKS[section](build(model), rounds)


def _in_a_process_of_its_own(model: str, sections: list[str], options: argparse.Namespace) -> None:
    words = ["--models", model, "--only", *sections, "--rounds", str(options.rounds)]
    files = ["--rows", str(options.rows), "--page", str(options.page)]
    command = [sys.executable, "-m", "experiments.performance", *words, *files]
    subprocess.run(command, check=True)


def _add(file: Path, rows: Iterator[Row]) -> None:
    """Print rows as they come, then write them to the file in place of those they renew."""
    new = []
    for row in rows:
        print(row.model, row.section, row.what, row.text(), row.note, sep=" | ", flush=True)
        new.append(row)
    write_rows(file, renewed(read_rows(file), new))


def _on_a_gpu(output: Path) -> None:
    if not torch.cuda.is_available():
        print("gpu | not run: there is no CUDA device", flush=True)
        return
    gpu_first_half_hour.main(["--only", "training", "generation", "--output", str(output)])


if __name__ == "__main__":
    main()
