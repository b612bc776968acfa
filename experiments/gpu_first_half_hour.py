"""What only a GPU can show: one table, in less than half an hour of a large card.

    python -m experiments.gpu_first_half_hour --output gpu.md

Writes ``gpu.md`` and ``gpu.json`` after every row. Each section runs in a process of its own; its
failure is one row. The sections are in SECTIONS; the page docs/gpu.md says what they measure. With
``--accelerator cpu`` the same code runs on the CPU, with a tiny LLaVA in place of the 7B one.
Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from experiments.gpu.common import Setting
from experiments.gpu.report import Report
from experiments.gpu.scheduler import Section, run_sections

SECTIONS = (
    Section("environment", "environment.environment", alone=True),
    Section("proxy", "large.proxy", alone=True),
    Section("training", "large.training", alone=True),
    Section("generation", "large.generation", alone=True),
    Section("syncs", "syncs.syncs", alone=True),
    Section("tiny", "syncs.tiny_times", alone=True),
    Section("attention", "attention.attention", alone=True),
    Section("serve", "serve.serve", alone=True),
    Section("methods", "coverage.methods"),
    Section("families", "coverage.families"),
    Section("quickstart", "quickstart.quickstart"),
    Section("precision", "precision.precision"),
    Section("determinism", "determinism.determinism"),
    Section("resume", "quickstart.resume"),
    Section("two_gpus", "several.two_gpus"),
    Section("sharded", "several.sharded"),
    Section("four_bit", "several.four_bit"),
)
"""The most valuable first; those that only compare results may run beside each other."""


def main(arguments: list[str] | None = None) -> None:
    """Run the sections and write the report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    names = [section.name for section in SECTIONS]
    parser.add_argument("--output", type=Path, default=Path("gpu.md"))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION")
    parser.add_argument("--accelerator", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--base", choices=("7b", "tiny"), help="default: 7b on a GPU, else tiny")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each time")
    parser.add_argument("--jobs", type=int, help="default: a third of the cores, at most 6")
    parser.add_argument("--minutes", type=float, default=30.0, help="time of all sections")
    parser.add_argument("--section_minutes", type=float, default=10.0, help="time of a section")
    options = parser.parse_args(arguments)
    cores = os.cpu_count() or 1
    jobs = options.jobs or max(1, min(6, cores // 3))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // max(jobs, 2))))
    base = options.base or ("7b" if options.accelerator == "cuda" else "tiny")
    with tempfile.TemporaryDirectory(prefix="dmole_gpu_") as folder:
        run_sections(
            [section for section in SECTIONS if section.name in options.only],
            Setting(options.accelerator, Path(folder), options.repeats, base),
            Report(options.output),
            jobs=jobs,
            limit=60 * options.section_minutes,
            budget=60 * options.minutes,
        )


if __name__ == "__main__":
    main()
