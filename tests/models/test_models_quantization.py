"""Base models of 8 and 4 bits: what is found, trained and refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import all_linears, make_backbone, make_batch, make_samples, randomize
from families.saved import save_family
from torch import nn
from torch.testing import assert_close

from dmole.allocation import AllocationEntry, SensitivityAllocator, score_gradients
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.experts import ExpertLibrary, Gates
from dmole.experts.library import eval_mode
from dmole.models import Backbone, PretrainedBackbone
from dmole.models import quantization as module
from dmole.models.recomputation import recomputed_in_evaluation
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


def test_the_weight_of_a_packed_linear_is_read_off_its_outputs(packed: Backbone) -> None:
    plain = make_backbone("llava")
    ours, theirs = (ExpertLibrary(b.model, b.parts.modality_of) for b in (packed, plain))
    for path in all_linears(plain):
        assert_close(ours.base_weight(path), theirs.base_weight(path), atol=1e-5, rtol=1e-5)
        assert torch.equal(theirs.base_weight(path), plain.model.get_submodule(path).weight)
    packed.model.get_submodule(path).weight.data = torch.empty(0, dtype=torch.uint8)
    with pytest.raises(ValueError, match="is split over the ranks"):
        ours.base_weight(path)


def scores(backbone: Backbone, reduction: Any = "sum", **options: Any) -> dict[str, Any]:
    module = ContinualModule(backbone, SensitivityAllocator(), OracleRouter(), **options)
    units = {
        unit.name: [s for path in unit.linears for s in backbone.gradient_sources(path)]
        for unit in module.units()
    }
    batches = [make_batch(backbone, make_samples(images)) for images in ((1, 0, 2), (0, 1, 1))]
    with eval_mode(backbone), recomputed_in_evaluation(backbone.model):
        return score_gradients(
            backbone.model, units, batches, module.base_loss, reduction=reduction
        )


@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_batch_norm", "fisher"])
def test_a_quantized_model_scores_like_a_plain_one_with_its_weights(
    packed: Backbone, reduction: str
) -> None:
    plain = scores(make_backbone("llava"), reduction)
    assert all(plain.values())
    assert scores(packed, reduction) == pytest.approx(plain, rel=1e-6)
    # outputs that are kept of the vision encoder would have no gradient
    assert scores(packed, reduction, cache_vision="ram") == pytest.approx(plain, rel=1e-6)


def test_a_sequence_on_a_quantized_model_allocates_by_scores(
    packed: Backbone, tmp_path: Path
) -> None:
    task = Task("paint", "synthetic://paint/train?size=4", "synthetic://paint/test?size=1")

    def allocated(backbone: Backbone, **options: Any) -> list[AllocationEntry]:
        allocator = SensitivityAllocator(rank=2, **options)
        learner = ContinualModule(
            backbone, allocator, OracleRouter(), activation_checkpointing=bool(options)
        )
        trainer = ContinualTrainer(default_root_dir=str(tmp_path), accelerator="cpu")
        data = ContinualDataModule([task], batch_size=2)
        return list(trainer.allocate(learner, data)["paint"].entries)

    plain = allocated(make_backbone("llava"))
    found = allocated(packed)
    assert [e.expert for e in found] == [e.expert for e in plain]
    assert [e.score for e in found] == pytest.approx([e.score for e in plain], rel=1e-6)
    assert found == allocated(packed, proxy_passes=2)  # and recomputed


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"4bit needs the package bits.*.*dmole\[quantized"):
        PretrainedBackbone("tiny", quantization="4bit")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of bitsandbytes, about precision on the CPU
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_train_on_a_quantized_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, dtype: str
) -> None:
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    # its products for CPUs with AVX512-BF16 do not take linears that are narrower than a block
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
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


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("quantization", "rounding"), [("8bit", 0.1), ("4bit", 1e-5)])
def test_the_scores_of_a_quantized_model_are_those_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: Any, rounding: float
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    folder = str(save_family("llava", tmp_path))
    backbone = PretrainedBackbone(folder, quantization=quantization)
    plain = PretrainedBackbone(folder)
    for path in all_linears(backbone):
        weight = backbone.model.get_submodule(path).weight
        restored = (
            bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            if quantization == "4bit"
            else weight.CB * weight.SCB[:, None] / 127  # its products round the input, too
        )
        plain.model.get_submodule(path).weight.data.copy_(restored)
    exact = scores(plain)
    assert scores(backbone) == pytest.approx(exact, rel=rounding)
    assert scores(backbone, activation_checkpointing=True) == pytest.approx(exact, rel=rounding)
