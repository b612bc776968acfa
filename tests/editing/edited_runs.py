"""Run folders with untrained experts and real routers, made in a moment, for tests of edits."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmole.allocation import UniformAllocator
from dmole.callbacks.evaluation_results import HEADER
from dmole.cli.main import main
from dmole.experts import save_expert
from dmole.models import PretrainedBackbone
from dmole.models.identity import base_parts
from dmole.module import ContinualModule
from dmole.routing import OracleRouter, RouteQuery
from dmole.run.learned import load_experts_and_router
from dmole.run.loading import build_router
from dmole.run.model_file import read_run_settings, write_model_file
from dmole.run.run_files import RunFile, RunFiles
from dmole.storage.digests import (
    Digests,
    file_digest,
    read_digests,
    verify_files,
    write_digests,
)
from dmole.storage.files import write_csv, write_json
from dmole.streams.stream import Stage

PATHS = ("model.vision_tower.encoder.layers.1.mlp.fc1", "model.language_model.layers.3.mlp.up_proj")
VISION, WIDTH = 128, 288
ORDER = "experts/experts.json"

ROUTERS: dict[str, dict[str, Any]] = {
    "AutoencoderRouter": {"components": 4},
    "KeyRouter": {},
    "OracleRouter": {},
    "AllExpertsRouter": {},
}


@functools.cache
def base() -> PretrainedBackbone:
    return PretrainedBackbone("tiny")


@functools.cache
def fingerprints() -> dict[str, Any]:
    return {"base": base().fingerprint(), "base_parts": base_parts(base())}


def embeddings(name: str, samples: int = 40) -> Tensor:
    """Return embeddings of the samples of a task, around a mean of its own."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    mean = torch.randn(WIDTH, generator=generator)
    return mean + 0.3 * torch.randn(samples, WIDTH, generator=generator)


def config_of(names: Sequence[str], router: str, options: dict[str, Any]) -> dict[str, Any]:
    address = "synthetic://count/{}?size=4"
    part = {"class_path": f"dmole.routing.{router}", "init_args": {**ROUTERS[router], **options}}
    tasks = [
        {"name": name, "train": address.format("train"), "test": address.format("test")}
        for name in names
    ]
    backbone = {
        "class_path": "dmole.models.PretrainedBackbone",
        "init_args": {"name_or_path": "tiny"},
    }
    return {
        "seed_everything": 0,
        "trainer": {"accelerator": "cpu"},
        "model": {"backbone": backbone, "router": part},
        "data": {"tasks": tasks},
    }


def make_run(
    run: Path, names: Sequence[str] = ("paint", "count", "read"), router: str = "", **options: Any
) -> Path:
    """Write a run folder that has trained nothing, with one task for each expert."""
    router = router or "AutoencoderRouter"
    run.mkdir(parents=True)
    write_model_file(run, config_of(names, router, options))
    fitted = build_router(read_run_settings(run))
    fitted.set_vision_width(VISION)
    module = ContinualModule(base(), allocator=UniformAllocator(), router=OracleRouter())
    files: list[RunFile] = [RunFile("model.json", lambda folder: None)]
    for name in names:
        fitted.fit(name, embeddings(name))
        module.library.add(name, dict.fromkeys(PATHS, 2), dict.fromkeys(PATHS, 4.0))
        generator = torch.Generator().manual_seed(sum(name.encode()))
        for _, parameter in module.library.parameters(name):
            parameter.data.normal_(std=0.1, generator=generator)
        save_expert(module.library, name, run / "experts" / name, "tiny")
        module.library.remove(name)
        files.append(RunFile(f"experts/{name}", lambda folder: None))
    stages = [Stage(index, name, (name,), name) for index, name in enumerate(names, start=1)]
    data = {name: {"train": "0" * 64, "test": "1" * 64} for name in names}
    metrics = {
        "format": 2,
        "fingerprints": {**fingerprints(), "data": data},
        "experts": {
            name: {"starts_from": names[0] if name != names[0] else None} for name in names
        },
    }
    routed = [
        {"stage": len(names), "true_task": name, "gate_set": gates, "count": 4, "phase": "test"}
        for name in names
        for gates in (name, f"{name}+{names[0]}" if name != names[0] else "base")
    ]
    RunFiles().put(
        run,
        stages,
        [
            *files,
            RunFile(
                "experts/experts.json",
                lambda r: write_json(r / ORDER, list(names)),
            ),
            RunFile("router", lambda r: fitted.save(r / "router")),
            RunFile("metrics.json", lambda r: write_json(r / "metrics.json", metrics)),
            RunFile("routing.csv", lambda r: write_csv(r / "routing.csv", HEADER, routed)),
        ],
    )
    return run


class Loaded:
    """A run folder as `predict` and `evaluate` load it."""

    def __init__(self, run: Path) -> None:
        router = build_router(read_run_settings(run))
        self.module = ContinualModule(base(), allocator=UniformAllocator(), router=router)
        try:
            load_experts_and_router(self.module, run)
            names = self.module.library.names
            self.tensors = {name: self.module.library.state_dict(name) for name in names}
        finally:  # the base model is shared
            for name in self.module.library.names:
                self.module.library.remove(name)
        self.router = router

    def route(self, rows: Tensor, experts: Sequence[str]) -> Any:
        return self.router.route(RouteQuery(rows, ["?"] * len(rows), "test", None, list(experts)))


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def content(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def edit(run: Path, *words: str | Path, output: Path) -> Path:
    """Run a verb that makes a run folder; RUN must stay as it is."""
    before = content(run)
    flags = [] if words[0] == "rename" else ["--no_evaluation"]
    assert main(["experts", str(run), *map(str, words), "--output", str(output), *flags]) == 0
    assert content(run) == before
    digests = read_digests(output)
    assert digests is not None
    verify_files(output, digests, lambda name: True)
    return output


def forge(run: Path, name: str, value: object) -> None:
    """Replace a file of a run, and its digest."""
    text = value if isinstance(value, str) else json.dumps(value)
    (run / name).write_text(text, encoding="utf-8")
    digests = read_digests(run)
    assert digests is not None
    files = {**digests.files, name: file_digest(run / name)}
    write_digests(run, Digests(files, digests.stages))
