"""What a run folder holds is verified when it is loaded: every change is named by its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dmole.allocation import UniformAllocator
from dmole.experts import save_expert
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter
from dmole.run.learned import load_experts_and_router, read_stages
from dmole.run.run_files import RunFile, RunFiles
from dmole.storage.files import write_json
from dmole.storage.tensors import write_tensor_file
from dmole.streams.stream import SequentialStream

NAMES = ["paint", "count"]
WEIGHTS = "experts/{}/adapter_model.safetensors"
ENCODER = "router/{}.safetensors"

Change = Callable[[Path], object]


def make_module(seed: int = 0, router: AutoencoderRouter | None = None) -> ContinualModule:
    router = router or AutoencoderRouter(components=2)
    return ContinualModule(PretrainedBackbone("tiny"), UniformAllocator(rank=2), router, seed=seed)


def write_run(run: Path, seed: int = 0) -> Path:
    """Write the experts and the router of a run of two tasks that has trained nothing."""
    module, files = make_module(seed), RunFiles()
    generator = torch.Generator().manual_seed(seed)
    for name in NAMES:
        module.add_expert(module.allocator.allocate(name, module.units(), None, first=True))
        for _, parameter in module.library.parameters(name):
            parameter.data.normal_(generator=generator)
        module.router.fit(name, torch.randn(40, 64, generator=generator))
    found = [
        *(RunFile(f"experts/{name}", expert_writer(module, name)) for name in NAMES),
        RunFile(
            "experts/experts.json",
            lambda run: write_json(run / "experts/experts.json", list(module.library.names)),
        ),
        RunFile("router", lambda run: module.router.save(run / "router")),
    ]
    files.put(run, SequentialStream().stages(NAMES), found)
    return run


def expert_writer(module: ContinualModule, name: str) -> Callable[[Path], None]:
    return lambda run: save_expert(module.library, name, run / "experts" / name, "tiny")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def module() -> ContinualModule:
    return make_module()


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def problem(module: ContinualModule, run: Path) -> str:
    """Return the error of loading a run, empty if it is loaded; leaves no experts."""
    try:
        load_experts_and_router(module, run)
    except ValueError as error:
        return str(error)
    finally:
        for name in module.library.names:
            module.library.remove(name)
    return ""


def swap(one: str, other: str) -> Change:
    """Return a change that swaps two files or folders."""

    def change(run: Path) -> None:
        (run / one).rename(run / "spare")
        (run / other).rename(run / one)
        (run / "spare").rename(run / other)

    return change


def edit(name: str, change: Callable[[Any], Any]) -> Change:
    """Return a change of a JSON file."""

    def edited(run: Path) -> None:
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(change(content) or content))

    return edited


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Return a change of a tensor file that keeps name and a right digest, as an attacker would."""

    def edited(run: Path) -> None:
        with safe_open(run / name, framework="pt") as file:
            owner = file.metadata()["expert"]
        content = load_file(run / name)
        change(content)
        write_tensor_file(run / name, content, owner)

    return edited


def scaled(content: dict[str, torch.Tensor]) -> None:
    next(iter(content.values())).mul_(1.001)


def doubled(content: dict[str, torch.Tensor]) -> None:
    for key, tensor in content.items():
        content[key] = tensor.double()


def poisoned(content: dict[str, torch.Tensor]) -> None:
    next(iter(content.values())).view(-1)[3] = float("inf")


PAINT, COUNT = (WEIGHTS.format(name) for name in NAMES)
CHANGES: dict[str, tuple[Change, list[str]]] = {
    "folders swapped": (
        swap("experts/paint", "experts/count"),
        [PAINT, "holds the tensors of expert 'count', not of 'paint'"],
    ),
    "weights swapped": (swap(PAINT, COUNT), [PAINT, "of expert 'count'"]),
    "autoencoders swapped": (
        swap(ENCODER.format("paint"), ENCODER.format("count")),
        [ENCODER.format("paint"), "holds the tensors of expert 'count', not of 'paint'"],
    ),
    "weight changed": (
        tensors(PAINT, scaled),
        [PAINT, "is not the file that this run has written"],
    ),
    "type changed": (tensors(PAINT, doubled), [PAINT, "is not the file"]),
    "weight infinite": (tensors(PAINT, poisoned), [PAINT, "is not finite"]),
    "autoencoder infinite": (
        tensors(ENCODER.format("count"), poisoned),
        [ENCODER.format("count"), "is not finite"],
    ),
    "autoencoder changed": (
        tensors(ENCODER.format("paint"), lambda t: t["losses_heldout"].mul_(2)),
        [ENCODER.format("paint"), "is not the file"],
    ),
    "threshold edited": (
        edit("router/router.json", lambda c: c["experts"][0].update(threshold=9.0)),
        ["router/router.json", "dmole evaluate --threshold_scale scales them"],
    ),
    "scaling edited": (
        edit("experts/paint/adapter_config.json", lambda c: c | {"lora_alpha": 32.0}),
        ["experts/paint/adapter_config.json", "is not the file"],
    ),
    "order of experts": (
        edit("experts/experts.json", lambda c: c[::-1]),
        ["experts/experts.json", "is not the file"],
    ),
    "expert left out": (
        edit("experts/experts.json", lambda c: c[:1]),
        ["experts/experts.json does not name the expert 'count'"],
    ),
    "expert twice": (
        edit("experts/experts.json", lambda c: [*c, "paint"]),
        ["experts/experts.json names the expert 'paint' 2 times"],
    ),
    "expert without folder": (
        edit("experts/experts.json", lambda c: [*c, "find"]),
        ["experts/experts.json names the expert 'find', which has no folder"],
    ),
    "expert folder lost": (
        lambda run: shutil.rmtree(run / "experts/count"),
        ["experts/experts.json names the expert 'count', which has no folder"],
    ),
    "digests edited": (
        edit("digests.json", lambda c: c["files"].update({PAINT: "0" * 64})),
        [PAINT, "in digests.json 000000000000"],
    ),
    "digests of a file elsewhere": (
        edit("digests.json", lambda c: c["files"].update({"../x": "0" * 64})),
        ["digests.json: 'files' must map paths below the run folder"],
    ),
    "digests broken": (
        lambda run: (run / "digests.json").write_text("{"),
        ["digests.json", "broken JSON"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_of_a_run_is_named(run: Path, module: ContinualModule, name: str) -> None:
    change, culprits = CHANGES[name]
    change(run)
    line = problem(module, run)
    assert all(culprit in line for culprit in culprits), line
    assert "\n" not in line


def test_a_whole_run_is_loaded_with_its_stages(run: Path, module: ContinualModule) -> None:
    assert problem(module, run) == ""
    assert read_stages(run) == SequentialStream().stages(NAMES)


@pytest.mark.parametrize("part", ["experts/paint", "router", "experts"])
def test_a_part_of_another_run_is_refused(
    run: Path, other: Path, module: ContinualModule, part: str
) -> None:
    shutil.rmtree(run / part)
    shutil.copytree(other / part, run / part)
    line = problem(module, run)
    assert "is not the file that this run has written" in line
    assert f"/{part}" in line


OLD = ["folders swapped", "autoencoders swapped", "weight infinite", "expert left out"]


@pytest.mark.parametrize("name", ["", *OLD])
def test_a_run_without_digests_is_verified_as_far_as_its_files_allow(
    run: Path, module: ContinualModule, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "digests.json").unlink()
    change, culprits = CHANGES[name] if name else (lambda run: None, [""])
    change(run)
    line = problem(module, run)
    assert all(culprit in line for culprit in culprits), line
    assert ("only part of its files can be verified" in caplog.text) == (not name)
    assert read_stages(run) is None


def test_files_of_the_first_versions_without_metadata_are_read(
    run: Path, module: ContinualModule
) -> None:
    (run / "digests.json").unlink()
    for path in run.rglob("*.safetensors"):
        save_file(load_file(path), path)
    assert problem(module, run) == ""


def test_a_router_that_does_not_know_an_expert_is_refused(
    run: Path, module: ContinualModule
) -> None:
    (run / "digests.json").unlink()
    edit("router/router.json", lambda c: c["experts"].__delitem__(1))(run)
    assert "router.json does not know the expert 'count' of the run" in problem(module, run)
    (run / "experts/experts.json").write_text('["paint"]')
    shutil.rmtree(run / "experts/count")
    assert problem(module, run) == ""


def test_a_router_that_knows_more_experts_than_the_run_is_refused(
    run: Path, module: ContinualModule
) -> None:
    (run / "digests.json").unlink()
    (run / "experts/experts.json").write_text('["paint"]')
    shutil.rmtree(run / "experts/count")
    assert "router.json knows the expert 'count', which the run does not" in problem(module, run)


@pytest.mark.parametrize(
    "change",
    [{"index": 7}, {"tasks": []}, {"tasks": ["../a"]}, {"expert": None}, {"common": "a/b"}],
    ids=str,
)
def test_a_stage_that_cannot_be_is_refused(run: Path, change: dict[str, Any]) -> None:
    edit("digests.json", lambda c: c["stages"][1].update(change))(run)
    with pytest.raises(ValueError, match=r"digests\.json: stage 2"):
        read_stages(run)
