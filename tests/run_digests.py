"""Digests of what a run folder holds: equal runs have equal ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

from experiments.run_content import tensor_digest


def run_digests(run: Path) -> dict[str, str]:
    """Return a digest of all a run learned and found out, by file."""
    tensors = {
        str(path.relative_to(run)): tensor_digest(path) for path in run.rglob("*.safetensors")
    }
    texts = [*run.glob("*.csv"), run / "metrics.json", *run.rglob("predictions/*/*.jsonl")]
    return tensors | {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*texts, run / "router" / "router.json", run / "experts" / "experts.json"]
    }
