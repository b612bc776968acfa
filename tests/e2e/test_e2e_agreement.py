"""What the ranks of a run compare before the first stage and after its phases."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import FitWords, Recipe, find_processes

from dmole.callbacks import ContinualCallback
from dmole.run.agreement import _digest_of, difference, learned_values, start_values
from dmole.streams import ReplayStream

Texts = dict[str, dict[str, str]]


class Knows(ContinualCallback):
    """Knows the config of a run."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def config_values(self) -> dict[str, Any]:
        return self.values


def values_of(folder: Path, recipe: Recipe) -> Texts:
    built = recipe.build(folder)
    built.trainer._begin(built.module, built.data)
    values = start_values(built.trainer.sequence, built.module)
    return {group: dict(texts) for group, texts in values.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return values_of(tmp_path_factory.mktemp("plain"), Recipe())


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (Recipe(model={"dropout": 0.5}), "setting 'dropout'"),
        (Recipe(model={"optimizer": partial(torch.optim.AdamW, lr=0.1)}), "model.optimizer.lr"),
        (Recipe(model={"optimizer": partial(torch.optim.SGD, lr=5e-3)}), "model.optimizer"),
        (Recipe(data={"eval_batch_size": 3}), "data.eval_batch_size"),
        (Recipe(data={"max_length": 99}), "setting 'data.max_length'"),
        (Recipe(seed=1), "model setting 'seed'"),
        (Recipe(stream=ReplayStream(buffer_size=3)), "stream setting 'buffer_size'"),
        (Recipe(tasks=("count", "paint")), "order of stages"),
        (Recipe(trainer={"incremental_evaluation": False}), "trainer.incremental_evaluation"),
        (Recipe(trainer={"gradient_clip_val": 1.0}), "setting 'trainer.gradient_clip_val'"),
        (Recipe(trainer={"accumulate_grad_batches": 2}),
         "setting 'trainer.accumulate_grad_batches'"),
        (Recipe(trainer={"checkpoint_every_n_steps": 7}), "trainer.checkpoint_every_n_steps"),
        (Recipe(callbacks=[ContinualCallback()]), "trainer.callbacks"),
    ],
)  # fmt: skip
def test_another_setting_of_a_rank_is_found(
    recipe: Recipe, name: str, plain: Texts, tmp_path: Path
) -> None:
    other = values_of(tmp_path, recipe)
    message = difference([(plain, ""), (other, "")])
    assert message.startswith("rank 1 has another ")
    assert f"another {name}: " in message


def test_the_config_is_compared_first_and_places_may_differ(plain: Texts, tmp_path: Path) -> None:
    def config(rate: float, place: str) -> Recipe:
        task = {"name": "a", "train": f"{place}/a.json", "epochs": 1}
        return Recipe(
            callbacks=[Knows(
                model={"lr": rate},
                data={"data_root": place, "num_workers": len(place), "tasks": [task]},
                trainer={"default_root_dir": place},
            )]
        )  # fmt: skip

    here = values_of(tmp_path, config(0.1, "/a"))
    assert here["config"] == {
        "model.lr": "0.1", "data.tasks.0.name": "a", "data.tasks.0.epochs": "1"
    }  # fmt: skip
    assert here["config"] == values_of(tmp_path, config(0.1, "/elsewhere"))["config"]
    message = difference([(here, ""), (values_of(tmp_path, config(0.2, "/a")), "")])
    assert message == "rank 1 has another model.lr: 0.2 against 0.1 of rank 0"


def test_other_versions_and_another_base_are_found(
    plain: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmole.run.agreement._version", lambda package: "0.1")
    message = difference([(plain, ""), (values_of(tmp_path, Recipe()), "")])
    assert "another version of torch: 0.1 against " in message
    built = Recipe().build(tmp_path)
    with torch.no_grad():
        next(built.module.backbone.model.parameters()).add_(1)
    built.trainer._begin(built.module, built.data)
    values = start_values(built.trainer.sequence, built.module)
    message = difference([(plain, ""), (values, "")])
    assert message.startswith("rank 1 has another base model: ")


def test_a_changed_tensor_or_router_is_found(tmp_path: Path) -> None:
    built = Recipe().build(tmp_path)
    module, state = built.module, built.trainer.sequence
    built.trainer._begin(module, built.data)
    module.add_expert(module.allocator.allocate(
        "paint", module.units(), dict.fromkeys((u.name for u in module.units()), 1.0), first=True
    ))  # fmt: skip
    before = learned_values(state, module)
    key, tensor = next(iter(module.state_dict().items()))
    with torch.no_grad():
        tensor.view(-1)[0] += 1e-6
    assert difference([(before, ""), (learned_values(state, module), "")]).startswith(
        f"rank 1 has another {key}: "
    )
    middle = learned_values(state, module)
    module.router.fit("paint", torch.randn(8, 400, generator=torch.Generator().manual_seed(0)))
    message = difference([(middle, ""), (learned_values(state, module), "")])
    assert message.startswith("rank 1 has another router ")


def test_tensors_of_frozen_experts_are_digested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Recipe().build(tmp_path)
    module, state = built.module, built.trainer.sequence
    built.trainer._begin(module, built.data)
    scores = dict.fromkeys((u.name for u in module.units()), 1.0)
    for name in ("paint", "count"):
        plan = module.allocator.allocate(name, module.units(), scores, first=name == "paint")
        module.add_expert(plan)
        module.router.fit(name, torch.randn(8, 400, generator=torch.Generator().manual_seed(0)))
    state.stage = next(stage for stage in state.plan if stage.expert == "count")
    before = learned_values(state, module)
    digested: list[str] = []

    def count(tensor: torch.Tensor) -> str:
        digested.append("tensor")
        return _digest_of(tensor)

    monkeypatch.setattr("dmole.run.agreement._digest_of", count)
    assert learned_values(state, module) == before
    training = [key for key in module.state_dict() if key.startswith("count/")]
    assert len(digested) == len(training) + len(module.router.state_dict()["experts"]["count"])
    with torch.no_grad():  # a change of a frozen expert is found as before
        key = next(key for key in before["tensors"] if key.startswith("paint/"))
        module.state_dict()[key].add_(1)
    assert learned_values(state, module)["tensors"][key] != before["tensors"][key]


PER_RANK = """
import os, sys
from dmole.cli.main import main
words = sys.argv[1:]
at = words.index("--on_rank_1")
words, more = words[:at], words[at + 1 :]
sys.exit(main(words + more if os.environ["RANK"] == "1" else words))
"""
"""Each node of a run may have its own config."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.optimizer.init_args.lr", "0.001"],
         "rank 1 has another model.optimizer.init_args.lr: 0.001 against 0.003 of rank 0"),
        (["--data.data_root", "OTHER"], "rank 1 has another data of own (train): "),
    ],
)  # fmt: skip
def test_two_processes_that_differ_end_before_anything_is_trained(
    fit_words: FitWords, tmp_path: Path, flags: list[str], message: str
) -> None:
    for folder, answer in (("here", "red"), ("other", "blue")):
        (tmp_path / folder).mkdir()
        for name in ("train", "test"):
            turns = [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": answer}]
            content = json.dumps([{"id": str(i), "conversations": turns} for i in range(4)])
            (tmp_path / folder / f"{name}.json").write_text(content)
    (tmp_path / "per_rank.py").write_text(PER_RANK)
    task = {"name": "own", "train": "train.json", "test": "test.json", "max_new_tokens": 2}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"data": {"tasks": [task]}}))
    words = fit_words(
        tmp_path, "--config", str(tmp_path / "own.yaml"),
        "--data.data_root", str(tmp_path / "here"), "--trainer.devices", "2",
        "--trainer.strategy", "ddp",
    )  # fmt: skip
    other = [str(tmp_path / "other") if flag == "OTHER" else flag for flag in flags]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", str(tmp_path / "per_rank.py"), *words,
         "--on_rank_1", *other],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"dmole: {message}" in done.stderr
    assert "stage 0" not in done.stderr
    assert not find_processes(tmp_path)
