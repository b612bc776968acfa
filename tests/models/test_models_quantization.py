"""Base models of 8 and 4 bits: what is found, trained and refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from families import all_linears, make_backbone, make_batch, make_samples, randomize
from families.saved import save_family
from torch import nn
from torch.testing import assert_close

from dmole.allocation import SensitivityAllocator
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.experts import ExpertLibrary, Gates
from dmole.models import Backbone, PretrainedBackbone
from dmole.models import quantization as module
from dmole.module import ContinualModule
from dmole.routing import OracleRouter
from dmole.trainer import ContinualTrainer


class PackedLinear(nn.Linear):
    """Holds its weight as bytes of another shape, as 4-bit layers do."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.bias = base.bias
        packed = base.weight.detach().reshape(-1, 1).view(torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.view(torch.float32).reshape(self.out_features, self.in_features)
        return nn.functional.linear(x, weight, self.bias)


@pytest.fixture
def packed() -> Backbone:
    backbone = make_backbone("llava")
    for path in all_linears(backbone):
        linear = backbone.model.get_submodule(path)
        backbone.model.set_submodule(path, PackedLinear(linear))
    return backbone


def with_expert(backbone: Backbone) -> ExpertLibrary:
    library = ExpertLibrary(backbone.model, backbone.parts.modality_of)
    paths = all_linears(backbone)
    library.add("a", dict.fromkeys(paths, 2), dict.fromkeys(paths, 4.0))
    randomize(library, "a")
    library.train_only("a")
    return library


def expert_loss(backbone: Backbone) -> torch.Tensor:
    library, batch = with_expert(backbone), make_batch(backbone, make_samples((1, 0, 2)))
    rows = backbone.vision_rows(batch.inputs, batch.image_counts)
    with library.context.use(Gates(["a"], torch.ones(3, 1), rows)):
        loss = backbone.loss(batch.inputs, batch.labels)
    loss.backward()
    assert all(p.grad is not None for _, p in library.parameters("a"))
    assert all(p.dtype == torch.float32 for _, p in library.parameters("a"))
    return loss.detach()


def test_experts_take_their_shape_from_the_features_not_the_packed_weight(packed: Backbone) -> None:
    plain = make_backbone("llava")
    assert packed.linear_shapes() == plain.linear_shapes()
    assert_close(expert_loss(packed), expert_loss(plain))


def test_scoring_a_quantized_layer_is_refused_with_what_to_use_instead(packed: Backbone) -> None:
    path = all_linears(packed)[0]
    with pytest.raises(ValueError, match=r"weight of model\.vision.* is quantized.*Uniform"):
        packed.linear_parameters(path)


def test_a_fit_that_needs_scores_stops_before_anything_is_computed(
    packed: Backbone, tmp_path: Path
) -> None:
    learner = ContinualModule(packed, SensitivityAllocator(), OracleRouter())
    trainer = ContinualTrainer(default_root_dir=str(tmp_path), accelerator="cpu")
    data = ContinualDataModule([Task("paint", "synthetic://paint/train", "synthetic://paint/test")])
    with pytest.raises(ValueError, match="is quantized"):
        trainer.fit(learner, datamodule=data)
    assert list(tmp_path.iterdir()) == []
    make_backbone("llava").check_scorable()


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"4bit needs the package bits.*.*dmole\[quantized"):
        PretrainedBackbone("tiny", quantization="4bit")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of bitsandbytes, about precision on the CPU
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_train_on_a_quantized_model(tmp_path: Path, quantization: str, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    folder = str(save_family("llava", tmp_path))
    plain = PretrainedBackbone(folder)
    backbone = PretrainedBackbone(folder, dtype=dtype, quantization=quantization)
    assert "bitsandbytes" in sys.modules
    linear = backbone.model.get_submodule(all_linears(backbone)[0])
    assert not linear.weight.is_floating_point()
    assert backbone.linear_shapes() == plain.linear_shapes()
    assert backbone.parameter_count() == plain.parameter_count()
    again = PretrainedBackbone(folder, dtype=dtype, quantization=quantization)
    assert backbone.fingerprint() == again.fingerprint() != plain.fingerprint()
    assert_close(expert_loss(backbone).float(), expert_loss(plain), rtol=0.1, atol=0.0)
    prompts = make_batch(backbone, make_samples((1, 0, 2), answers=False))
    assert len(backbone.generate(prompts.inputs, 3)) == 3
