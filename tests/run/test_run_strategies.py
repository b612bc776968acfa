from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_backbone
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

from dmole.allocation import UniformAllocator
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.models.sharding import check_splittable
from dmole.module import ContinualModule
from dmole.regularizers import ReplayImportance
from dmole.routing import SharedRouter
from dmole.run.strategies import check_precision, check_strategy, prepare_sharding
from dmole.strategies import ShardedBaseStrategy
from dmole.trainer import ContinualTrainer


def plain_trainer(**options: Any) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, **options)


@pytest.mark.parametrize(
    "strategy", ["auto", "ddp", "ddp_find_unused_parameters_true", "sharded_base"]
)
def test_one_device_and_ddp_are_taken(strategy: str) -> None:
    trainer = plain_trainer(strategy=strategy, devices=1 if strategy == "auto" else 2)
    check_strategy(trainer.strategy)


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_split_parameters_are_refused_in_one_line(kind: type[Strategy]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} does not keep whole parameters") as info:
        check_strategy(kind())
    assert "\n" not in str(info.value)


def test_the_trainer_checks_strategy_and_precision(tmp_path: Path) -> None:
    common = {"accelerator": "cpu", "default_root_dir": str(tmp_path), "devices": 2}
    with pytest.raises(ValueError, match="ModelParallelStrategy does not keep"):
        ContinualTrainer(strategy=ModelParallelStrategy(), **common)
    with pytest.raises(ValueError, match=r"trainer\.precision bf16-true casts the experts"):
        ContinualTrainer(strategy=DDPStrategy(), precision="bf16-true", **common)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_precisions_that_cast_the_experts_are_refused(precision: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.precision {precision} casts the experts"):
        check_precision(plain_trainer(precision=precision).precision_plugin)


def test_precisions_that_leave_the_experts_alone_are_taken() -> None:
    for precision in ("32-true", "bf16-mixed"):
        check_precision(plain_trainer(precision=precision).precision_plugin)
    check_precision(MixedPrecision("16-mixed", "cpu"))


def test_on_the_cpu_all_devices_are_one_process(tmp_path: Path) -> None:
    trainer = ContinualTrainer(accelerator="cpu", devices="auto", default_root_dir=str(tmp_path))
    assert (trainer.num_devices, trainer.world_size) == (1, 1)


def test_on_the_cpu_sixteen_bits_are_those_of_bfloat() -> None:
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        trainer = plain_trainer(precision="16-mixed")
    assert trainer.precision == "bf16-mixed"


def small_module(**options: Any) -> ContinualModule:
    return ContinualModule(make_backbone("llava"), UniformAllocator(), SharedRouter(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_vision": "ram"}, "model.cache_vision leaves out passes"),
        ({"regularizers": [ReplayImportance()]}, "ReplayImportance makes passes of its own"),
    ],
)
def test_what_lets_ranks_make_other_passes_is_refused_with_a_split_base(
    options: dict[str, Any], message: str
) -> None:
    module, data = small_module(**options), ContinualDataModule([Task("a", train="a", test="a")])
    prepare_sharding(ShardedBaseStrategy(), 1, module, data)
    prepare_sharding(DDPStrategy(), 2, module, data)
    with pytest.raises(ValueError, match=message) as info:
        prepare_sharding(ShardedBaseStrategy(), 2, module, data)
    assert "\n" not in str(info.value)


def test_a_quantized_base_and_one_with_experts_cannot_be_split() -> None:
    module = small_module()
    check_splittable(module.backbone)
    module.add_expert(module.allocator.allocate("a", module.units(), None, first=True))
    with pytest.raises(ValueError, match="sharded before it gets experts"):
        check_splittable(module.backbone)
    backbone = make_backbone("llava")
    linear: Any = backbone.model.get_submodule(backbone.blocks[0].linears[0])
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="a quantized base model cannot be sharded"):
        check_splittable(backbone)


def test_an_evaluation_on_a_split_base_is_refused_in_one_line() -> None:
    ShardedBaseStrategy().leave_whole()
    with pytest.raises(ValueError, match="set gather_for_evaluation to true") as info:
        ShardedBaseStrategy(gather_for_evaluation=False).leave_whole()
    assert "\n" not in str(info.value)
