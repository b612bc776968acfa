"""What every method of `configs/methods` must do, on tiny models of two families.

A new method gets these tests for free; what it trains and remembers it has to write out below.
"""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import queue
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuts import CutAfter, CutError
from families import WIDTH
from families.saved import Folders
from method_runs import (
    CONFIGS,
    METHODS,
    STEPS,
    TASKS,
    Builder,
    assert_equal,
    changed,
    layers_of,
    settings_of,
)
from run_digests import run_digests
from safetensors.torch import load_file
from torch.testing import assert_close
from two_ranks import become_rank, free_port

from dmole.callbacks import initialization, task_naming
from dmole.cli.config_files import read_settings
from dmole.experts import LoRAExpert
from dmole.experts.soft_prompts import PromptShape, SoftPrompt, shape_from_list
from dmole.metrics import read_matrix
from dmole.modality import INPUT
from dmole.module import ContinualModule
from dmole.regularizers.base import StageView
from dmole.run.checkpoint_file import read_checkpoint
from dmole.run.context import StageContext
from dmole.storage.seeds import expert_seed
from experiments.extended_content import compare_extended

Linears = Mapping[str, tuple[int, int]]
"""Inputs and outputs of linear layers by path."""

QUICK = ("branchlora", "dense_mole", "dmole", "dmole_alike", "moe_cl", "seq_ft")
"""One method for each way in which experts sit side by side and are chosen."""


def _classes(method: str) -> tuple[str, ...]:
    """Return the classes of a method, and the words that choose a rule within one."""
    text = (CONFIGS / "methods" / f"{method}.yaml").read_text(encoding="utf-8")
    return tuple(re.findall(r"(?:class_path|start|ranking|score): ([\w.]+)", text))


ON_BOTH = ("dmole", "moe_cl")
"""Methods that are also run on the second family by default."""
KINDS = tuple({_classes(method): method for method in reversed(METHODS)}.values())
"""One method of those that differ in numbers alone."""
STATEFUL = (
    *("branchlora", "dmole", "modal_prompt", "moe_cl", "ewc_lora"),
    *("replay_importance", "cl_moe", "same", "keep_lora"),
)
"""One method for each thing that is kept between steps.

That is experts, soft prompts, anchors, importance, values before a stage, moments of inputs,
directions.
"""


def cases(llava: Collection[str], idefics3: Collection[str] = ()) -> pytest.MarkDecorator:
    """Run a test for every method on both models, those that are not named as a slow test."""
    quick = {"llava": llava, "idefics3": idefics3}
    params = [
        pytest.param(method, family, marks=[] if method in quick[family] else pytest.mark.slow)
        for family in quick
        for method in METHODS
    ]
    return pytest.mark.parametrize(("method", "family"), params)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its experts, and the layers they may sit on."""

    method: str
    family: str
    folder: Path
    experts: dict[str, torch.Tensor]
    layers: dict[str, Linears]
    embedding: torch.nn.Embedding

    @property
    def linears(self) -> Linears:
        return {path: size for linears in self.layers.values() for path, size in linears.items()}

    def checkpoint(self) -> dict[str, Any]:
        return read_checkpoint(self.folder / "checkpoints" / "last.ckpt")

    def untrained(self, name: str) -> dict[str, torch.Tensor]:
        """Return an expert's tensors as its stage found them."""
        found = {}
        for path, numbers in self.checkpoint()["architecture"][name].items():
            shape = shape_from_list(numbers)
            generator = torch.Generator().manual_seed(expert_seed(0, name, path))
            if isinstance(shape, PromptShape):
                expert: torch.nn.Module = SoftPrompt(self.embedding, shape, generator)
            else:
                expert = LoRAExpert(torch.nn.Linear(*self.linears[path]), shape, generator)
            found |= {f"{name}/{path}.{key}": value for key, value in expert.state_dict().items()}
        return found

    def units(self) -> dict[str, list[str]]:
        """Return the blocks or linears that each expert is on, as ``allocation.csv`` says."""
        found: dict[str, list[str]] = {}
        with (self.folder / "allocation.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if int(row["rank"]):
                    found.setdefault(row["expert"], []).append(row["unit"])
        return found

    def linears_of(self, units: list[str]) -> Linears:
        single: dict[str, Linears] = {path: {path: size} for path, size in self.linears.items()}
        single[INPUT] = {INPUT: (WIDTH, WIDTH)}
        joined = {**self.layers, **single}
        return {path: size for unit in units for path, size in joined[unit].items()}


def _input_of(module: ContinualModule) -> torch.nn.Embedding:
    """Return the input embedding of the base model."""
    embedding: Any = module.backbone.model.get_input_embeddings()
    return getattr(embedding, "base", embedding)


Runs = Callable[..., Run]
"""Gives the run of a method, and of a family where it is named."""
OnTwoRanks = Callable[[str, str], dict[int, Any]]
"""Gives what both ranks found in the run of a method and family, by rank."""
Trained = Callable[..., dict[str, torch.Tensor]]
"""Gives the experts that a changed method learns."""


@pytest.fixture(scope="module")
def builder() -> Builder:
    return Builder()


@pytest.fixture(scope="module")
def runs(builder: Builder, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return a function that gives the uninterrupted run of a method, made on first use."""
    made: dict[tuple[str, str], Run] = {}

    def run(method: str, family: str = "llava") -> Run:
        if (method, family) not in made:
            root = tmp_path_factory.mktemp(f"{method}_{family}")
            built = builder.build(root, folders(family), method)
            folder = built.fit()
            made[method, family] = Run(
                *(method, family, folder, built.experts(), layers_of(built.module)),
                _input_of(built.module),
            )
        return made[method, family]

    return run


@pytest.fixture
def run(runs: Runs, method: str, family: str) -> Run:
    return runs(method, family)


def stages_of(method: str) -> int:
    return {"zero_shot": 0, "joint": 1}.get(method, len(TASKS))


# -- training ------------------------------------------------------------------------------


@cases(KINDS, ON_BOTH)
def test_two_tasks_are_learned_and_every_expert_is_written(run: Run) -> None:
    matrix, tasks = read_matrix(run.folder / "evaluation_matrix.csv")
    assert tasks == list(TASKS)
    assert matrix.shape == (stages_of(run.method) + 1, len(TASKS))
    assert np.isfinite(matrix).all()
    names = json.loads((run.folder / "experts" / "experts.json").read_text())
    assert bool(names) == bool(stages_of(run.method))
    for name in names:
        own = {key: value for key, value in run.experts.items() if key.startswith(f"{name}/")}
        untrained = run.untrained(name)
        assert own.keys() == untrained.keys()
        assert any(not torch.equal(value, untrained[key]) for key, value in own.items()), name
        (file,) = (run.folder / "experts" / name).glob("*.safetensors")
        written = load_file(file)
        assert sorted(t.shape for t in written.values()) == sorted(t.shape for t in own.values())


def expert_keys(architecture: Mapping[str, Mapping[str, list[float]]]) -> set[str]:
    """Return what experts of given forms consist of, by their keys in a checkpoint."""
    keys = set()
    for name, layers in architecture.items():
        for path, numbers in layers.items():
            shape = shape_from_list(numbers)
            if isinstance(shape, PromptShape):
                keys.add(f"{name}/{path}.tokens")
                continue
            parts = ["lora_a"] * bool(shape.rank) + ["router"] * bool(shape.heads)
            parts += ["text_router"] * bool(shape.heads and shape.text_width)
            parts += ["fusion"] * bool(shape.fused) + ["usage"] * bool(shape.usage)
            if shape.branches == 1:
                parts.append("lora_b")
            elif shape.branches:
                parts += [f"lora_b_{index}" for index in range(shape.branches)]
                parts += ["frozen", "trunk_frozen"]
            keys |= {f"{name}/{path}.{part}" for part in parts}
    return keys


CUT_AFTER = {"generic_mix": 5}
"""Steps to the second one of the last stage, for methods with more samples in the first."""


@cases(STATEFUL)
def test_a_run_cut_in_its_last_stage_and_resumed_ends_in_the_same_bytes(
    run: Run, builder: Builder, folders: Folders, tmp_path: Path
) -> None:
    """The second run has the same seed, so that a repetition is tested too."""
    last = stages_of(run.method)
    if last:
        cut = builder.build(tmp_path, folders(run.family), run.method, save_steps=True)
        cut.trainer.callbacks.insert(0, CutAfter(CUT_AFTER.get(run.method, 2 * STEPS)))
        with pytest.raises(CutError):
            cut.fit()
        content = read_checkpoint(cut.trainer.run_dir / "checkpoints" / "stage.ckpt")
        assert content["stage"] == last
        assert content["architecture"].keys() == set(cut.module.training_experts)
        own = {key for key in content["state_dict"] if not key.startswith("@regularizer/")}
        assert own == expert_keys(content["architecture"])
    torch.manual_seed(99)  # a new process has drawn other numbers
    resumed = builder.build(tmp_path, folders(run.family), run.method).fit("auto")
    assert [path.name for path in resumed.parent.iterdir()] == ["version_0"]
    assert run_digests(resumed) == run_digests(run.folder)


def test_a_run_cut_while_the_adapter_of_its_router_trains_begins_that_again(
    runs: Runs,
    builder: Builder,
    folders: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = runs("mr_lora")
    with (whole.folder / "exemplars.csv").open(newline="") as file:
        kept = [(row["expert"], row["task"], row["id"]) for row in csv.DictReader(file)]
    assert len(set(kept)) == len(kept) == 8 * len(TASKS)  # a task has 8 samples, less than 20
    batches = task_naming._batches

    def cut_short(*args: Any) -> Iterator[Any]:
        yield from itertools.islice(batches(*args), 3)
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(task_naming, "_batches", cut_short)
        with pytest.raises(CutError):
            builder.build(tmp_path, folders("llava"), "mr_lora").fit()
    torch.manual_seed(99)  # a new process has drawn other numbers
    resumed = builder.build(tmp_path, folders("llava"), "mr_lora").fit("auto")
    assert run_digests(resumed) == run_digests(whole.folder)
    first, second = (load_file(resumed / "router" / f"{name}.safetensors") for name in TASKS)
    assert second.keys() == {"label"}
    trained = [value for key, value in first.items() if key.endswith("lora_b")]
    assert len(trained) == len(whole.linears)
    assert all(bool(value.any()) for value in trained)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keep_lora", "eva"])
@pytest.mark.parametrize("family", ["llava"])
def test_a_run_cut_while_an_expert_is_initialized_ends_in_the_same_bytes(
    run: Run, builder: Builder, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = builder.build(tmp_path, folders(run.family), run.method)
    start, measured = initialization._start, []

    def interrupted(starts: Any, linear: Any, found: Any) -> Any:
        measured.append(linear.path)
        if len(measured) > 30:  # of 26 linears a stage
            raise CutError
        return start(starts, linear, found)

    with monkeypatch.context() as patch:
        patch.setattr(initialization, "_start", interrupted)
        with pytest.raises(CutError):
            cut.fit()
    torch.manual_seed(99)  # a new process has drawn other numbers
    resumed = builder.build(tmp_path, folders(run.family), run.method).fit("auto")
    assert run_digests(resumed) == run_digests(run.folder)


COMMON = [method for method in METHODS if "CommonExpertRouter" in " ".join(_classes(method))]
"""Methods with an expert that every stage trains in addition to that of its task."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in COMMON]
)
def test_the_common_expert_stays_first_where_the_first_stage_is_cut(
    runs: Runs, builder: Builder, folders: Folders, tmp_path: Path, method: str
) -> None:
    whole = runs(method)
    cut = builder.build(tmp_path, folders("llava"), method, save_steps=True)
    cut.trainer.callbacks.insert(0, CutAfter(STEPS))
    with pytest.raises(CutError):
        cut.fit()
    assert read_checkpoint(cut.trainer.run_dir / "checkpoints" / "stage.ckpt")["stage"] == 1
    resumed = builder.build(tmp_path, folders("llava"), method)
    folder = resumed.fit("auto")
    assert resumed.module.library.names == (resumed.module.router.common, *TASKS)
    assert run_digests(folder) == run_digests(whole.folder)
    ours, theirs = (
        read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (folder, whole.folder)
    )
    for part in ("architecture", "state_dict"):
        assert list(ours[part]) == list(theirs[part])
    assert_equal(ours["state_dict"], theirs["state_dict"])


@cases((*QUICK, *STATEFUL, "mr_lora", "smolora"))
def test_a_finished_run_answers_the_same_when_its_folder_is_loaded(
    run: Run, builder: Builder, folders: Folders, tmp_path: Path
) -> None:
    built = builder.build(tmp_path, folders(run.family), run.method)
    output = tmp_path / "again"
    built.trainer.evaluate(built.module, built.data, run=run.folder, output=output)
    loaded = built.experts()
    assert loaded.keys() == run.experts.keys()
    for key, tensor in run.experts.items():
        assert torch.equal(loaded[key], tensor), key
    (ours, _), (theirs, _) = (
        read_matrix(folder / "evaluation_matrix.csv") for folder in (output, run.folder)
    )
    kept = ~np.isnan(ours).any(axis=1)
    plan = built.trainer.sequence.plan
    stages = [name for stage in plan for name in stage.experts]
    trains_on = len(set(stages)) < len(stages)
    between = [not trains_on] * (len(kept) - 2)  # experts of these rows are others by now
    assert kept.tolist() == [True, *between, True][: len(kept)]
    np.testing.assert_array_equal(ours[kept], theirs[kept])
    last = Path("predictions") / f"stage_{stages_of(run.method)}.jsonl"
    assert (output / last).read_text() == (run.folder / last).read_text()


# -- a task that is added later ----------------------------------------------------------------

BY_PLAN = {
    "joint": "all tasks are one stage",
    "zero_shot": "there is no stage",
    "moe_cl": "its classifiers tell all planned tasks apart",
    "moe_cl_routed": "its classifiers tell all planned tasks apart",
}
"""Methods whose result depends on how many tasks are planned, and why."""
ADDED = ("dmole", "moe_cl", "joint", "zero_shot")


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in ADDED else pytest.mark.slow) for m in METHODS]
)
def test_a_task_that_is_added_to_a_finished_run_is_learned_as_if_it_had_been_planned(
    runs: Runs, builder: Builder, folders: Folders, tmp_path: Path, method: str
) -> None:
    base = folders("llava")
    parent = builder.build(tmp_path / "parent", base, method, tasks=TASKS[:1]).fit()
    before = run_digests(parent)
    torch.manual_seed(99)  # a new process has drawn other numbers
    extended = builder.build(tmp_path / "child", base, method)
    if method in ("joint", "zero_shot"):
        with pytest.raises(ValueError, match="cannot be extended: its stream does not learn"):
            extended.fit(str(parent))
        assert not (tmp_path / "child").exists()
        return
    found = compare_extended(runs(method).folder, extended.fit(str(parent)))
    assert run_digests(parent) == before
    assert found.all != (method in BY_PLAN), found
    matrix, _ = read_matrix(extended.trainer.run_dir / "evaluation_matrix.csv")
    assert np.isnan(matrix).tolist() == [[False, True], [False, True], [False, False]]


SUMMED = (
    *("eva", "intruder_reduction", "keep_lora", "keep_lora_release", "lora_ga", "o_lora"),
    *("o_lora_normalized", "osf", "reg_lora", "sefe", "seq_ft_merge"),
)
"""Methods whose experts all answer together, so that none can be replaced by a new version."""
UPDATED = ("branchlora", "dmole_o_lora", "moe_cl", "o_lora")


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in UPDATED else pytest.mark.slow) for m in METHODS]
)
def test_new_data_of_a_task_continue_its_expert_in_a_version_or_train_the_shared_one(
    builder: Builder, folders: Folders, tmp_path: Path, method: str
) -> None:
    built = builder.build(tmp_path, folders("llava"), method, tasks=("paint", "paint-v2"))
    if method in SUMMED:
        with pytest.raises(ValueError, match="task 'paint-v2' has update: true, which needs"):
            built.fit()
        return
    matrix, names = read_matrix(built.fit() / "evaluation_matrix.csv")
    stages = {"joint": 1, "zero_shot": 0}.get(method, 2)
    assert (names, matrix.shape) == (["paint"], (stages + 1, 1))
    assert np.isfinite(matrix).all()
    experts, router = built.module.library.names, built.module.router
    versions = {"paint-v2": "paint"} if "paint-v2" in experts else {}
    assert router.updates == versions
    shared = {"joint", "shared"} & {*experts} or method == "zero_shot"
    assert bool(versions) != bool(shared), experts


# -- what is saved and what trains -----------------------------------------------------------


def _sum(linears: Linears, cost: Callable[[int, int], int]) -> int:
    return sum(cost(inputs, outputs) for inputs, outputs in linears.values())


def _adapter(linears: Linears, stage: int = 1) -> int:
    """LoRA of rank 5."""
    return _sum(linears, lambda i, o: 5 * (i + o))


def _classifiers(linears: Linears) -> int:
    """MoE-CL: outputs of the language model's down_proj to the tasks, without bias."""
    down = {path: size for path, size in linears.items() if path.endswith("down_proj")}
    return _sum(down, lambda _, o: o * len(TASKS))


def _packed(linears: Linears) -> int:
    """RegLoRA: a bit for each element of a weight, in bytes."""
    return _sum(linears, lambda i, o: -(-i * o // 8))


TEXT = 32
"""Width of the language model."""
EMBEDDING = 32 + TEXT
"""Width of vision encoder and language model."""

REMEMBERED: dict[str, Callable[[Linears], int]] = {
    "lwf_lora": _adapter,  # the teacher
    # anchor and importance of all tasks, and what is left of their penalties at the anchor
    "ewc_lora": lambda linears: 2 * _adapter(linears) + 1,
    "ewc_lora_online": lambda linears: 2 * _adapter(linears),
    "moe_cl": _classifiers,
    "moe_cl_routed": _classifiers,
    "reg_lora": _packed,
    "sefe": _packed,
    # a layer of 16 without bias, its read-out, a strength a task, when to learn next; no step yet
    "replay_importance": lambda _: 16 * EMBEDDING + 16 + len(TASKS) + 1,
}
"""Numbers that the regularizers of a method keep; none where it is not named."""


def _moments(linears: Linears) -> int:
    """SAME: moments of the inputs of the MLP, and two averages of each of six experts."""
    mlp = _mlp(linears)
    return sum(inputs * min(64, inputs) + inputs + 1 for inputs, _ in mlp.values()) + 12 * len(mlp)


REMEMBERED_BY_RULES: dict[str, Callable[[Linears], int]] = {
    "dgg": _adapter,  # the parameters after the last stage
    "same": _moments,
}
"""Numbers that the gradient rules of a method keep; none where it is not named."""


@cases(KINDS, ON_BOTH)
def test_a_checkpoint_holds_experts_and_what_regularizers_remember_and_nothing_of_the_base(
    run: Run,
) -> None:
    content = run.checkpoint()
    state = content["state_dict"]
    extra = {key for key in state if key.startswith("@regularizer/")}
    assert state.keys() - extra == expert_keys(content["architecture"])
    numbers = sum(state[key].numel() for key in extra)
    assert numbers == REMEMBERED.get(run.method, lambda _: 0)(run.linears)
    kept = content["callbacks"].get("GradientRules", {"tensors": {}})["tensors"].values()
    by_rules = REMEMBERED_BY_RULES.get(run.method, lambda _: 0)(run.linears)
    assert sum(tensor.numel() for tensor in kept) == by_rules


def _dmole(linears: Linears, stage: int) -> int:
    """LoRA of rank 8."""
    return _sum(linears, lambda i, o: 8 * (i + o))


def _three(linears: Linears, stage: int) -> int:
    """Three experts of rank 1 side by side, and a router without bias."""
    return _sum(linears, lambda i, o: 3 * (i + o) + 3 * i)


def _six(linears: Linears, stage: int) -> int:
    """DynMoLE: six experts of rank 1 on the MLP."""
    return _sum(_mlp(linears), lambda i, o: 6 * (i + o) + 6 * i)


def _by_depth(linears: Linears, stage: int) -> int:
    """MoLA: the counts 2, 3, 4, 4 are 2 and 4 in modalities of two blocks."""
    count = {path: 2 if ".layers.0." in path else 4 for path in linears}
    return sum(count[path] * (i + o) + count[path] * i for path, (i, o) in linears.items())


def _branches(linears: Linears, stage: int) -> int:
    """A trunk of rank 1, four branches less those frozen before, a router of the task's own."""
    free = 4 - (stage - 1)
    return _sum(linears, lambda i, o: i + free * o + 4 * i)


def _common(linears: Linears, stage: int) -> int:
    """MoE-CL: two experts of rank 3 on the MLP, a router over both, classifiers."""
    return _sum(_mlp(linears), lambda i, o: 2 * 3 * (i + o) + 2 * i) + _classifiers(linears)


def _up(linears: Linears, stage: int) -> int:
    """KeepLoRA: the up-projections of a LoRA of rank 9."""
    return _sum(linears, lambda _, o: 9 * o)


def _fifth(linears: Linears, stage: int) -> int:
    """KappaTune: LoRA of rank 17 on a fifth of the linears."""
    return _sum(linears, lambda i, o: 17 * (i + o))


def _tokens(linears: Linears, stage: int) -> int:
    """ModalPrompt: ten tokens of the width of the language model."""
    return _sum(linears, lambda _, width: 10 * width)


def _separable(linears: Linears, stage: int) -> int:
    """SMoLoRA: eight experts of rank 1 on the MLP, two routers of four rows, a score a bank."""
    return _separable_release(linears, stage) + _sum(_mlp(linears), lambda i, _: 4 * (i + TEXT))


def _separable_release(linears: Linears, stage: int) -> int:
    """The same without the routers, which keep their initial values."""
    return _sum(_mlp(linears), lambda i, o: 8 * (i + o) + 2 * o)


def _mlp(linears: Linears) -> Linears:
    return {path: size for path, size in linears.items() if ".mlp." in path}


ONE_ADAPTER = (
    *("seq_ft", "seq_ft_merge", "finetune", "joint", "lwf_lora", "ewc_lora", "ewc_lora_online"),
    *("o_lora", "o_lora_normalized", "reg_lora", "sefe", "replay", "replay_importance"),
    *("generic_mix", "disco", "hide", "arrow", "dgg", "osf"),
    *("lora_ga", "eva", "intruder_reduction"),
)
TRAINED: dict[str, tuple[Callable[[Linears, int], int], int]] = {
    **dict.fromkeys(ONE_ADAPTER, (_adapter, 4)),
    **dict.fromkeys(("dmole", "dmole_paper", "dmole_alike"), (_dmole, 2)),
    **dict.fromkeys(("dmole_delta", "dmole_v3", "dmole_v4", "dmole_o_lora"), (_dmole, 2)),
    **dict.fromkeys(("dmole_v1", "dmole_v2"), (_dmole, 1)),  # half of one modality
    "dmole_release": (_dmole, 8),  # half of the linears of attention, four a block
    "dense_mole": (_three, 4),
    "sparse_mole": (_three, 4),
    "mola": (_by_depth, 4),
    "dynmole": (_six, 4),
    "mr_lora": (lambda linears, _: _sum(linears, lambda i, o: 2 * (i + o)), 4),
    "same": (_six, 4),
    "branchlora": (_branches, 4),
    "cl_moe": (_three, 4),
    "smolora": (_separable, 2),
    "smolora_release": (_separable_release, 2),
    "moe_cl": (_common, 4),
    "moe_cl_routed": (_common, 4),
    **dict.fromkeys(("keep_lora", "keep_lora_release"), (_up, 4)),
    "kappa": (_fifth, 5),
    "modal_prompt": (_tokens, 1),
}
"""Parameters that a stage trains on the linears of its units, and how many units have an expert.

Vision encoder and language model have two blocks each.
"""


@cases(KINDS, ON_BOTH)
def test_as_many_parameters_train_as_the_closed_form_says(run: Run) -> None:
    said = json.loads((run.folder / "timing.json").read_text())["parameters"]
    if not stages_of(run.method):
        assert "trainable" not in said
        return
    assert run.method in TRAINED, f"write out what {run.method} trains"
    closed_form, units = TRAINED[run.method]
    assert said["trainable"]
    for stage, (name, count) in enumerate(said["trainable"].items(), start=1):
        chosen = run.units()[name]
        assert len(chosen) == len(set(chosen)) == units
        assert count == closed_form(run.linears_of(chosen), stage), name


BUDGET: int = read_settings(CONFIGS.parent / "experiments" / "results.yaml")["budget"]


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in KINDS else pytest.mark.slow) for m in METHODS]
)
def test_no_method_trains_more_than_the_budget_in_a_stage_of_the_embedded_model(
    builder: Builder, method: str, tmp_path: Path
) -> None:
    built = builder.build(tmp_path, "tiny", method)
    module, tasks = built.module, ("paint", "count", "read", "find", "caption")
    stages = built.trainer.sequence.stream.stages(tasks)
    if not stages:
        assert method == "zero_shot"
        return
    stage, units = replace(stages[0], common=module.router.common), module.units()
    most = 0
    for favored in ("vision", "language"):  # whatever the data may say
        scores = {u.name: u.parameters * (1e6 if u.modality == favored else 1.0) for u in units}
        for name in reversed(stage.experts):
            first = not module.library.names
            module.add_expert(module.allocator.allocate(name, units, scores, first))
        module.begin_stage(StageContext.of(stage, epochs=1))
        for term in module.regularizers:
            term.before_stage(
                StageView(
                    library=module.library,
                    experts=module.training_experts,
                    index=1,
                    tasks=stage.tasks,
                    all_tasks=tasks,
                    samples=lambda *_: iter(()),
                    step=module.compute_step,
                )
            )
        most = max(most, sum(p.numel() for p in module.parameters() if p.requires_grad))
        for name in module.library.names:
            module.library.remove(name)
    assert 0 < most <= BUDGET


# -- two processes ---------------------------------------------------------------------------

SECONDS = 300
"""A hanging collective operation fails the test after this time."""


def on_rank(rank: int, port: str, todo: Mapping[str, Callable[[], Any]], answers: Any) -> None:
    """Fit method after method in one process group, as one of two processes."""
    become_rank(rank, port)
    for method, build in todo.items():
        try:
            built = build()
            folder = built.fit()
            plans = {key: plan for cb in built.trainer.callbacks for key, plan in plans_of(cb)}
            state = {key: value.numpy() for key, value in built.module.state_dict().items()}
            answers.put((method, rank, (folder, plans, state)))
        except BaseException as error:
            answers.put((method, rank, error))
            raise


def fit_on_two_ranks(todo: Mapping[str, Callable[[], Any]]) -> dict[str, dict[int, Any]]:
    """Return what each rank found or failed with, by method; less than both where one hangs."""
    # forked, so that nothing is imported again
    context = multiprocessing.get_context("fork")
    answers, port = context.Queue(), free_port()
    processes = [context.Process(target=on_rank, args=(r, port, todo, answers)) for r in (0, 1)]
    for process in processes:
        process.start()
    found: dict[str, dict[int, Any]] = {method: {} for method in todo}
    try:
        for _ in range(2 * len(todo)):
            method, rank, result = answers.get(timeout=SECONDS)
            found[method][rank] = result
            if isinstance(result, BaseException):
                break
    except queue.Empty:
        pass  # the test of the method that hangs fails
    finally:
        for process in processes:
            process.join(timeout=10 if all(len(ranks) == 2 for ranks in found.values()) else 0)
            process.kill()
    return found


def plans_of(callback: Any) -> list[tuple[int, str]]:
    plans = getattr(callback, "allocations", {})
    return [(key, plan.to_json()) for key, plan in plans.items()]


@pytest.fixture(scope="module")
def on_two_ranks(
    request: pytest.FixtureRequest,
    builder: Builder,
    folders: Folders,
    tmp_path_factory: pytest.TempPathFactory,
) -> OnTwoRanks:
    """Return a function that gives what both ranks of a family's runs found, by method."""
    selected = [
        item.callspec.params
        for item in request.session.items
        if "on_two_ranks" in getattr(item, "fixturenames", ())
    ]
    done: dict[str, dict[str, dict[int, Any]]] = {}

    def start(family: str) -> dict[str, dict[int, Any]]:
        methods = [params["method"] for params in selected if params["family"] == family]
        root, folder = tmp_path_factory.mktemp(f"ranks_{family}"), folders(family)
        for method in methods:
            builder.parse(method)  # once, not in each process

        def builds(method: str) -> Callable[[], Any]:
            return lambda: builder.build(root, folder, method, ranks=2)

        return fit_on_two_ranks({method: builds(method) for method in methods})

    def results(method: str, family: str) -> dict[int, Any]:
        if family not in done:
            done[family] = start(family)
        return done[family][method]

    return results


@cases(("dmole_alike", "moe_cl"))
def test_two_processes_end_with_the_same_experts_where_one_plan_put_them(
    on_two_ranks: OnTwoRanks, method: str, family: str
) -> None:
    found = on_two_ranks(method, family)
    for result in found.values():
        if isinstance(result, BaseException):
            raise result
    assert found.keys() == {0, 1}, "this or an earlier method hung or failed"
    (folder, plans, state), (other_folder, other_plans, other_state) = found[0], found[1]
    assert folder == other_folder
    assert plans == other_plans
    assert bool(plans) == bool(stages_of(method))
    assert state.keys() == other_state.keys()
    for key, tensor in state.items():
        assert (tensor == other_state[key]).all(), key
    trained = [tensor for key, tensor in state.items() if "lora_b" in key or ".tokens" in key]
    assert any(tensor.any() for tensor in trained) == bool(stages_of(method))
    matrix, _ = read_matrix(folder / "evaluation_matrix.csv")
    assert np.isfinite(matrix).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keep_lora", "keep_lora_release"])
@pytest.mark.parametrize("family", ["llava"])
def test_two_processes_fix_the_directions_that_one_does(
    on_two_ranks: OnTwoRanks, run: Run, method: str
) -> None:
    """Those of the first stage, since training differs by rounding."""
    found = on_two_ranks(method, run.family)
    assert not any(isinstance(result, BaseException) for result in found.values())
    _, _, state = found[0]
    downs = [key for key in run.experts if key.startswith("paint/") and key.endswith("lora_a")]
    assert downs
    for key in downs:
        ours, theirs = torch.from_numpy(state[key]), run.experts[key]
        assert_close(ours[:4], theirs[:4], atol=1e-4, rtol=0, msg=key)
        # directions of singular values near the rounding error move more
        assert_close(ours, theirs, atol=1e-2, rtol=0, msg=key)


# -- what a method is without what makes it one ------------------------------------------------

COEFFICIENT = "model.regularizers.0.init_args.coefficient"
OTHER_COEFFICIENT = "model.regularizers.1.init_args.coefficient"
ALLOCATOR, ROUTER = "model.allocator.init_args", "model.router.init_args"
GATE = f"{ROUTER}.gate.init_args"
INITIALIZER = f"{ALLOCATOR}.initializer"
NO_DROPOUT = {"model.dropout": 0.0}
RATE: float = read_settings(CONFIGS / "quickstart.yaml")["model"]["optimizer"]["init_args"]["lr"]
RULE = "trainer.callbacks.0.init_args.rules.0.init_args"
OTHER_RULE = "trainer.callbacks.0.init_args.rules.1.init_args"
NO_SHARE = {"trainer.stream.init_args.share": 0.0}


@pytest.fixture(scope="module")
def trained(
    builder: Builder, folders: Folders, runs: Runs, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Return a function that gives the experts that a changed method learns."""
    made: dict[str, dict[str, torch.Tensor]] = {}

    def experts(
        method: str, changes: Mapping[str, Any], tasks: Sequence[str] = TASKS
    ) -> dict[str, torch.Tensor]:
        if not changes and tasks == TASKS:
            return runs(method).experts
        key = repr((method, changes, tasks))
        if key not in made:
            root = tmp_path_factory.mktemp("trained")
            built = builder.build(root, folders("llava"), method, changes, tasks=tasks)
            made[key] = built.train()
        return made[key]

    return experts


@pytest.mark.parametrize(
    ("method", "changes", "other", "other_changes"),
    [
        ("lwf_lora", {COEFFICIENT: 0.0}, "seq_ft", {}),
        ("ewc_lora", {COEFFICIENT: 0.0}, "seq_ft", {}),
        pytest.param("ewc_lora_online", {COEFFICIENT: 0.0}, "seq_ft", {}, marks=pytest.mark.slow),
        pytest.param(
            *("o_lora", {COEFFICIENT: 0.0, **NO_DROPOUT}, "seq_ft_merge", {}),
            marks=pytest.mark.slow,
        ),
        ("o_lora_normalized", {COEFFICIENT: 0.0, **NO_DROPOUT}, "seq_ft_merge", {}),
        ("reg_lora", {COEFFICIENT: 0.0}, "seq_ft_merge", {}),
        pytest.param("disco", {}, "finetune", {}, marks=pytest.mark.slow),
        pytest.param("hide", {}, "finetune", {}, marks=pytest.mark.slow),
        pytest.param("arrow", {}, "finetune", {}, marks=pytest.mark.slow),
        ("sefe", NO_SHARE, "reg_lora", {}),
        ("generic_mix", NO_SHARE, "seq_ft", {}),
        ("dmole_o_lora", {COEFFICIENT: 0.0}, "dmole", {}),
        ("mr_lora", {f"{ALLOCATOR}.rank_factor": 0.625}, "finetune", {}),
        ("dmole_paper", {}, "dmole", {}),
        ("dmole_delta", {f"{ALLOCATOR}.score": "gradient"}, "dmole_v3", {}),
        (
            "dmole_alike",
            {
                f"{ALLOCATOR}.start": "fresh",
                f"{ROUTER}.partner": True,
                f"{ROUTER}.ranking": "loss",
                f"{ROUTER}.threshold_scale": 1.0,
            },
            "dmole",
            {},
        ),
        (
            *("modal_prompt", {f"{ROUTER}.top_k": 1}, "finetune"),
            {"model.allocator": settings_of("modal_prompt")["model"]["allocator"]},
        ),
        pytest.param(
            *("modal_prompt", {}, "modal_prompt"),
            {f"{ALLOCATOR}.lr_factor": 1.0, "model.optimizer.init_args.lr": 16 * RATE},
            marks=pytest.mark.slow,
        ),
        ("mola", {f"{ALLOCATOR}.counts": [3, 3, 3, 3]}, "sparse_mole", {}),
        (
            "sparse_mole",
            {f"{GATE}.top_k": 3, f"{GATE}.renormalize": False, COEFFICIENT: 0.0},
            "dense_mole",
            {},
        ),
        (
            "dynmole",
            {f"{GATE}.keep_top_k": 6, COEFFICIENT: 0.0, OTHER_COEFFICIENT: 0.0},
            "dense_mole",
            {f"{ALLOCATOR}.experts": 6, f"{ALLOCATOR}.targets": "mlp"},
        ),
        (
            "dense_mole",
            {f"{ALLOCATOR}.experts": 1, f"{ALLOCATOR}.rank_factor": 0.625},
            "seq_ft",
            {},
        ),
        ("dgg", {f"{RULE}.probability": 0.0}, "replay", {}),
        ("osf", {f"{RULE}.preserved": 0.0}, "seq_ft_merge", {}),
        (
            "same",
            {f"{RULE}.mu": None, f"{RULE}.damping": 0.0, f"{OTHER_RULE}.threshold": None},
            "sparse_mole",
            {f"{ALLOCATOR}.experts": 6, f"{ALLOCATOR}.targets": "mlp", COEFFICIENT: 0.0},
        ),
        (
            "replay_importance",
            {
                "model.regularizers.0.init_args.every": 0,
                "model.regularizers.0.init_args.heldout": 0.0,
            },
            "replay",
            {"trainer.stream.init_args.share": 0.4},
        ),
        ("lora_ga", {INITIALIZER: None}, "seq_ft_merge", {}),
        ("eva", {INITIALIZER: None}, "seq_ft_merge", {}),
        (
            "keep_lora",
            {
                f"{INITIALIZER}.init_args.weight_energy": 0.0,
                f"{INITIALIZER}.init_args.task_energy": 0.0,
                f"{INITIALIZER}.init_args.fix_down": False,
                f"{INITIALIZER}.init_args.proxy_fraction": 0.1,
                f"{ALLOCATOR}.rank_factor": 0.625,
            },
            "lora_ga",
            {f"{INITIALIZER}.init_args.scale": "unit"},
        ),
        (
            "keep_lora_release",
            {f"{INITIALIZER}.init_args.task_energy": 0.0},
            "keep_lora",
            {f"{INITIALIZER}.init_args.task_energy": 0.0},
        ),
        (
            "kappa",
            {f"{ALLOCATOR}.rank_factor": 0.625, f"{ALLOCATOR}.budget_fraction": 1.0},
            "seq_ft",
            {},
        ),
        (
            "intruder_reduction",
            {"model.regularizers.0.init_args.threshold": 0.0},
            "seq_ft_merge",
            {},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_its_term_a_method_learns_what_a_plainer_one_does(
    trained: Trained,
    method: str,
    changes: dict[str, Any],
    other: str,
    other_changes: dict[str, Any],
) -> None:
    assert_equal(trained(method, changes), trained(other, other_changes))


def test_the_likeliest_of_all_experts_renormalized_are_all_experts(trained: Trained) -> None:
    ours = trained("sparse_mole", {f"{GATE}.top_k": 3, COEFFICIENT: 0.0})
    theirs = trained("dense_mole", {})
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():  # a sum of three probabilities is 1 but for its rounding
        assert_close(tensor, theirs[key], rtol=1e-3, atol=1e-5, msg=key)


def test_one_expert_a_bank_without_fusion_is_one_adapter_of_twice_the_rank(
    trained: Trained,
) -> None:
    same = {f"{ALLOCATOR}.modules": ["language"], f"{ALLOCATOR}.targets": "mlp"}
    one = {f"{ALLOCATOR}.experts": 2, f"{ROUTER}.fusion": False}
    plain = {f"{ALLOCATOR}.rank_factor": 0.25}
    assert_equal(trained("smolora", one), trained("seq_ft", same | plain))


def test_without_momentum_the_shared_experts_are_a_dense_mixture(trained: Trained) -> None:
    neutral = {"model.regularizers.0.init_args.momentum": 0.0, **NO_DROPOUT}
    neutral["model.regularizers.0.init_args.past_momentum"] = 0.0
    ours = trained("cl_moe", neutral)
    common = {key: tensor for key, tensor in ours.items() if key.startswith("common/")}
    assert all(key.endswith(".usage") for key in ours.keys() - common.keys())
    plain = {"trainer.stream.init_args.shared_expert": "common", **NO_DROPOUT}
    assert_equal(common, trained("dense_mole", plain))


def test_a_single_branch_is_sequential_fine_tuning_of_one_adapter(trained: Trained) -> None:
    unchanged = {
        **NO_DROPOUT,  # its draws depend on the name of the stage's expert
        "trainer.gradient_clip_val": None,  # the norm's rounding depends on the routers' zeros
    }
    one = {
        f"{ALLOCATOR}.experts": 1,
        f"{ROUTER}.mixing.init_args.top_k": 1,
        "model.regularizers": [],  # freezing needs branches
        **unchanged,
    }
    plain = {
        "trainer.stream.init_args.shared_expert": "common",
        f"{ALLOCATOR}.rank_factor": 0.125,
        **unchanged,
    }
    ours = trained("branchlora", one)
    routers = {key for key in ours if not key.startswith("common/")}
    assert all(key.endswith(".router") for key in routers)
    common = {key: tensor for key, tensor in ours.items() if key not in routers}
    assert_equal(common, trained("seq_ft", plain))


FIRST = ("paint",)
SHARED = {"trainer.stream.init_args.shared_expert": "paint"}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("finetune", {}),
        ("joint", {"trainer.stream.init_args.expert": "paint"}),
        ("seq_ft_merge", {"model.dropout": 0.1}),
        ("o_lora", {}),
        pytest.param("o_lora_normalized", {}, marks=pytest.mark.slow),
        pytest.param("reg_lora", {"model.dropout": 0.1}, marks=pytest.mark.slow),
        pytest.param("sefe", {"model.dropout": 0.1, **NO_SHARE}, marks=pytest.mark.slow),
        pytest.param("generic_mix", {**SHARED, **NO_SHARE}, marks=pytest.mark.slow),
        ("lwf_lora", SHARED),
        pytest.param("ewc_lora", SHARED, marks=pytest.mark.slow),
        ("ewc_lora_online", SHARED),
        ("replay", SHARED),
        ("dgg", SHARED),
        ("osf", {f"{RULE}.preserved": 0.0, "model.dropout": 0.1}),
        ("replay_importance", {**SHARED, "model.regularizers.0.init_args.heldout": 0.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_with_a_single_task_a_method_with_one_adapter_is_fine_tuning(
    trained: Trained, method: str, changes: dict[str, Any]
) -> None:
    """Initial weights and dropout depend on the expert's name: all are given the same."""
    assert_equal(trained(method, changes, FIRST), trained("seq_ft", SHARED, FIRST))


def test_every_method_with_one_adapter_is_compared_on_a_single_task() -> None:
    adapters = {
        name
        for name in METHODS
        if settings_of(name)["model"].get("allocator", {}).get("init_args", {}).get("rank_factor")
        == 0.625
    }
    assert adapters == set(ONE_ADAPTER)


def test_changes_leave_the_settings_they_were_made_from() -> None:
    before = settings_of("lwf_lora")
    after = changed(before, {COEFFICIENT: 0.0})
    assert before == settings_of("lwf_lora")
    assert after["model"]["regularizers"][0]["init_args"]["coefficient"] == 0.0
