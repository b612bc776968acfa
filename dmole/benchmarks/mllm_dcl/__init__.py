"""MLLM-DCL: five domains, the domain tasks of MLLM-CL."""

from __future__ import annotations

from dmole.benchmarks.benchmark import Benchmark, Guide
from dmole.benchmarks.mllm_dcl.miniature import write_mllm_dcl
from dmole.benchmarks.mllm_dcl.rules import FIN, MED, RS_AD, SCI

_GUIDE = Guide(
    title="MLLM-DCL, the domain tasks of MLLM-CL (Zhao et al., 2025, arXiv 2506.05453)",
    folders=tuple(f"Domain_data/{task}" for task in ("RS", "Med", "AD", "Sci", "Fin")),
    parts=(
        "Instructions and images: named in the README of repository bjzhb666/MLLM-CL; "
        "`train.json`, `test.json` and the images of each domain into its folder.",
    ),
    notes=(
        "Users found one archive of the ability part (VP_test) empty (MLLM-CL issue 3); the "
        "domain part does not need it.",
        "The names of Sci's test images tell its sources apart (AI2D_, TQA_, VQA_, "
        "SciVerse_, else MapQA): keep them.",
    ),
)

BENCHMARK = Benchmark(  # neither of its repositories states sizes
    name="mllm_dcl",
    config="mllm_dcl.yaml",
    arxiv="2506.05453",
    guide=_GUIDE,
    metrics={
        "mllm_dcl_ad": RS_AD,
        "mllm_dcl_fin": FIN,
        "mllm_dcl_med": MED,
        "mllm_dcl_rs": RS_AD,
        "mllm_dcl_sci": SCI,
    },
    miniature=write_mllm_dcl,
)
