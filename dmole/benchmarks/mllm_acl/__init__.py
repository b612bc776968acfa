"""MLLM-ACL: four abilities, the ability tasks of MLLM-CL; training and test data differ in kind."""

from __future__ import annotations

from dmole.benchmarks.benchmark import Benchmark, Guide, Size, Sizes
from dmole.benchmarks.mllm_acl.mathvista import MATH
from dmole.benchmarks.mllm_acl.miniature import write_mllm_acl
from dmole.benchmarks.mllm_acl.readers import gui_items, mathvista_items
from dmole.benchmarks.mllm_acl.rules import APP, OCR, VP
from dmole.data.layout import Layout

_GUIDE = Guide(
    title="MLLM-ACL, the ability tasks of MLLM-CL (Zhao et al., 2025, arXiv 2506.05453)",
    folders=tuple(
        f"Ability_data/{task}{end}"
        for task in ("OCR", "Math", "VP", "APP")
        for end in ("", "_test")
    ),
    parts=(
        "Instructions and images: data set `Impression2805/MLLM-CL` on the Hugging Face hub; "
        "`train.json` and `images/` of each ability into `Ability_data/<ability>/`, `test.json` "
        "and `images/` into `Ability_data/<ability>_test/`.",
        "MathVista's `testmini.json` (repository lupantech/MathVista), an object of problems by "
        "`pid`: `Ability_data/Math_test/`.",
    ),
    notes=(
        "Training and test data are not of one distribution: OCR is tested on OCRBench, Math on "
        "MathVista, VP on a part of CV-Bench, APP on a part of MMT-Bench.",
        "Math: the authors let GPT-4o-mini extract answers. The score here does without and is "
        "not comparable with theirs.",
        "APP: the authors submit their answers to MMT-Bench's server. A `test.json` without "
        "answers needs the side file `answers` (an object of letters by `question_id`), or delete "
        "the task; answers to submit are in the run's `predictions/`.",
        "Users found the archive VP_test empty (MLLM-CL issue 3).",
    ),
)

_SIZES: Sizes = {
    # the repository states no counts; these are the whole test sets that its scripts name
    "OCR": {"test": Size(1000, "OCRBench; eval_ocr.py divides the number of right ones by 10")},
    "Math": {"test": Size(1000, "MathVista, split testmini")},
}

BENCHMARK = Benchmark(
    name="mllm_acl",
    config="mllm_acl.yaml",
    arxiv="2506.05453",
    guide=_GUIDE,
    sizes=_SIZES,
    formats={
        "mathvista": Layout(
            items=mathvista_items,
            does="questions; answers and types in MathVista's file, paired by number and text",
            required=("problems",),
        ),
        "mmt_gui": Layout(
            items=gui_items,
            does="questions with a letter as the answer, or with the letters in a side file",
            optional=("answers",),
        ),
    },
    metrics={
        "mllm_acl_app": APP,
        "mllm_acl_math": MATH,
        "mllm_acl_ocr": OCR,
        "mllm_acl_vp": VP,
    },
    miniature=write_mllm_acl,
)
