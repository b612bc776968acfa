"""The formulas of memory and work agree with what tiny models really use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_meter import PeakBytes, saved_bytes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dmole.allocation import UniformAllocator, score_gradients
from dmole.data.collate import Collator
from dmole.data.sample import ArrayImage, Sample, Turn
from dmole.experts import save_expert
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import OracleRouter
from dmole.routing.autoencoder import PCAReconstructor, parameter_count
from dmole.run.context import StageContext
from experiments.costs import base_models, scaling, workload
from experiments.costs.base_models import TINY
from experiments.costs.scaling import Load, ModelSizes

BATCH = 4


class Setting:
    """The tiny model with untrained experts, a batch, and the same as figures."""

    def __init__(self, dtype: str = "float32", share: float = 0.5, recompute: bool = False) -> None:
        self.module = ContinualModule(
            PretrainedBackbone("tiny", dtype=dtype),
            UniformAllocator(rank=8, budget_fraction=share),
            OracleRouter(),
            dropout=0.0,
            activation_checkpointing=recompute,
        )
        turns = (Turn("user", "<image>\nwhat shape ?"), Turn("assistant", "a red circle"))
        image = ArrayImage(np.zeros((64, 64, 3), np.uint8))
        samples = [Sample(str(number), turns, (image,)) for number in range(BATCH)]
        collate = Collator(self.module.backbone.processor)
        self.batch = collate([(sample, "t") for sample in samples], generation=False)
        self.mixed = dtype != "float32"
        self.tokens = self.batch.inputs["input_ids"].shape[1]
        self.load = Load(
            batch=BATCH,
            text_tokens=self.tokens - TINY.image_tokens,
            answer_tokens=len(self.batch.targets.tokens) // BATCH,
            rank=8,
            share=share,
            base_bytes=2 if self.mixed else 4,
        )

    def add_expert(self) -> None:
        plan = self.module.allocator.allocate("t", self.module.units(), None, first=True)
        self.module.add_expert(plan)
        self.module.begin_stage(StageContext(1, ("t",), allocation=plan))
        self.module.train()

    def loss(self) -> Tensor:
        module, batch = self.module, self.batch
        gates = module.make_gates(module.route(batch).gates, batch)
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mixed),
            module.library.context.use(gates),
        ):
            return module.backbone.loss(batch.inputs, batch.labels)

    def score(self, reduction: str) -> None:
        backbone = self.module.backbone
        parameters = {
            unit.name: [s for path in unit.linears for s in backbone.gradient_sources(path)]
            for unit in self.module.units()
        }
        batches = [self.batch, self.batch]
        score_gradients(
            backbone.model, parameters, batches, self.module.base_loss, reduction=reduction
        )

    @property
    def loss_peak(self) -> int:
        return scaling.loss_bytes(TINY, BATCH * self.load.answer_tokens, self.load.base_bytes)


# -- exact: parameters, experts, optimizer, router, cache ---------------------------------------


def test_the_parameters_of_the_tiny_model_are_counted_exactly() -> None:
    assert scaling.base_parameters(TINY) == PretrainedBackbone("tiny").parameter_count()


def _llava(width: int, layers: int, heads: int, mlp_width: int) -> nn.Module:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp_width,
        vocab_size=32064,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    return LlavaForConditionalGeneration(config)


def _internvl() -> nn.Module:
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        LlamaConfig,
    )

    vision = InternVLVisionConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        patch_size=[14, 14],
        image_size=[448, 448],
        attention_bias=True,
        norm_type="layer_norm",
    )
    text = LlamaConfig(  # InternLM2 has these shapes, its queries, keys and values in one matrix
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=92553,
        tie_word_embeddings=False,
    )
    config = InternVLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    return InternVLForConditionalGeneration(config)


def _qwen2_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 8192, "num_heads": 16, "mlp_ratio": 4}
    text = {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 29568,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    }
    config = Qwen2VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    return Qwen2VLForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("model", "build"),
    [
        (base_models.LLAVA_7B, lambda: _llava(4096, 32, 32, 11008)),
        (base_models.LLAVA_13B, lambda: _llava(5120, 40, 40, 13824)),
        (base_models.INTERNVL_2B, _internvl),
        (base_models.QWEN2_VL_72B, _qwen2_vl),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_parameters_of_large_models_are_those_of_transformers(
    model: ModelSizes, build: Callable[[], nn.Module]
) -> None:
    with torch.device("meta"):
        built = build()
    assert scaling.base_parameters(model) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_experts_and_their_training_state_are_counted_exactly(share: float) -> None:
    setting = Setting(share=share)
    setting.add_expert()
    module = setting.module
    count = module.library.count("t")
    assert scaling.task_parameters(TINY, setting.load) == count
    parameters = [p for _, p in module.library.parameters("t")]
    optimizer = torch.optim.AdamW(parameters)
    setting.loss().backward()
    optimizer.step()
    held = sum(2 * p.numel() * p.element_size() for p in parameters)  # with its gradient
    state = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
    held += sum(t.numel() * t.element_size() for t in state)
    assert scaling.training_state_bytes(count) == held


def test_an_expert_file_is_as_large_as_its_parameters(tmp_path: Path) -> None:
    setting = Setting()
    setting.add_expert()
    save_expert(setting.module.library, "t", tmp_path, "tiny")
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    expected = scaling.FP32 * scaling.task_parameters(TINY, setting.load)
    assert expected <= size < 1.05 * expected


def test_a_routers_autoencoder_is_counted_exactly() -> None:
    rows = torch.randn(200, TINY.vision.width + TINY.language.width)
    weights = PCAReconstructor(16).fit(rows, torch.Generator())
    assert scaling.router_bytes(TINY, components=16) == scaling.FP32 * parameter_count(weights)


def test_the_cache_of_a_generation_is_counted_exactly() -> None:
    setting = Setting()
    with torch.no_grad():
        cache = setting.module.backbone.model(**setting.batch.inputs).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert scaling.cache_bytes(TINY, BATCH, setting.tokens, 4) == held


# -- measured: activations, proxy pass ----------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_activations_are_as_estimated_within_six_percent(dtype: str, share: float) -> None:
    setting = Setting(dtype, share)
    setting.add_expert()
    with saved_bytes(setting.module.backbone.model.parameters()) as total:
        setting.loss()
    kept = scaling.training_activation_bytes(TINY, setting.load)
    answers = BATCH * setting.load.answer_tokens
    kept += scaling.FP32 * answers * TINY.vocabulary  # log-probabilities
    assert kept == pytest.approx(total(), rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "recompute", "low", "high"),
    [
        ("float32", False, 0.92, 1.08),
        ("bfloat16", False, 0.92, 1.08),
        ("float32", True, 0.92, 1.08),
        ("bfloat16", True, 0.92, 1.08),
    ],
)
def test_the_peak_of_a_training_step_is_as_estimated(
    dtype: str, recompute: bool, low: float, high: float
) -> None:
    setting = Setting(dtype, recompute=recompute)
    setting.add_expert()
    setting.loss().backward()  # gradients of the experts exist from now on
    with PeakBytes() as meter:
        setting.loss().backward()
    estimated = setting.loss_peak + scaling.training_activation_bytes(
        TINY, setting.load, recompute=recompute
    )
    assert low < estimated / meter.peak < high


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduction", ["sum", "fisher"])
def test_the_peak_of_the_proxy_pass_is_as_estimated(dtype: str, reduction: str) -> None:
    setting = Setting(dtype)
    if setting.mixed:
        setting.batch.inputs["pixel_values"] = setting.batch.inputs["pixel_values"].bfloat16()
    with PeakBytes() as meter:
        setting.score(reduction)
    estimated = (
        scaling.proxy_activation_bytes(TINY, setting.load)
        + setting.loss_peak
        + scaling.proxy_gradient_bytes(TINY, summed=reduction == "sum")
    )
    assert 0.9 < estimated / meter.peak < 1.1


def test_what_the_proxy_pass_keeps_of_gradients_is_the_difference_of_its_reductions() -> None:
    peaks = {}
    for reduction in ("sum", "fisher"):
        setting = Setting()
        with PeakBytes() as meter:
            setting.score(reduction)
        peaks[reduction] = meter.peak
    kept = scaling.proxy_gradient_bytes(TINY) - scaling.proxy_gradient_bytes(TINY, summed=False)
    assert peaks["sum"] - peaks["fisher"] == pytest.approx(kept, rel=0.02)


def test_the_proxy_pass_recomputes_nothing() -> None:
    peaks = []
    for recompute in (False, True):
        setting = Setting(recompute=recompute)
        with PeakBytes() as meter:
            setting.score("fisher")
        peaks.append(meter.peak)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)  # a training step takes a third


@pytest.mark.parametrize(("share", "low", "high"), [(0.5, 1.2, 1.5), (1.0, 1.4, 1.8)])
def test_experts_without_mixed_precision_keep_copies_of_their_inputs(
    share: float, low: float, high: float
) -> None:
    kept = []
    for mixed in (True, False):
        setting = Setting("bfloat16", share)
        setting.mixed = mixed
        setting.add_expert()
        if not mixed:
            setting.batch.inputs["pixel_values"] = setting.batch.inputs["pixel_values"].bfloat16()
        with saved_bytes(setting.module.backbone.model.parameters()) as total:
            setting.loss()
        kept.append(total())
    assert low < kept[1] / kept[0] < high


# -- work ---------------------------------------------------------------------------------------


def _counted(counter: FlopCounterMode) -> int:
    """Products of matrices; the fused attention of a CPU is not counted by torch."""
    counts = {str(op): value for op, value in counter.get_flop_counts()["Global"].items()}
    return sum(counts.get(f"aten.{op}", 0) for op in ("mm", "addmm", "bmm"))


def _attention(load: Load, factor: float) -> float:
    lengths = (TINY.patches, TINY.image_tokens + load.text_tokens)
    stacks = zip((TINY.vision, TINY.language), lengths, strict=True)
    return factor * sum(workload.attention_flops(t, BATCH, length) for t, length in stacks)


def test_the_work_of_a_forward_pass_is_that_of_its_products() -> None:
    setting = Setting()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        setting.module.base_loss(setting.batch)
    projector = 2 * BATCH * TINY.image_tokens * (128 * 160 + 160 * 160)
    estimated = workload.pass_flops(TINY, setting.load, backward=False)
    assert estimated - _attention(setting.load, 1) + projector == _counted(counter)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_work_of_a_training_step_is_as_estimated_within_five_percent(recompute: bool) -> None:
    setting = Setting(share=1.0, recompute=recompute)
    setting.add_expert()
    with FlopCounterMode(display=False) as counter:
        setting.loss().backward()
    estimated = workload.pass_flops(TINY, setting.load, backward=True, recompute=recompute)
    estimated -= _attention(setting.load, 1 + workload.ATTENTION_BACKWARD + recompute)
    estimated += workload.expert_flops(TINY, setting.load)
    assert estimated == pytest.approx(_counted(counter), rel=0.05)


def test_the_work_of_the_proxy_pass_is_as_estimated_within_five_percent() -> None:
    setting = Setting()
    with FlopCounterMode(display=False) as counter:
        setting.score("fisher")
    once = workload.pass_flops(TINY, setting.load, backward=True, weights=True)
    once -= _attention(setting.load, 1 + workload.ATTENTION_BACKWARD)
    assert 2 * once == pytest.approx(_counted(counter), rel=0.05)


def test_a_share_of_the_peak_rate_is_required() -> None:
    assert workload.gpu_hours(3.6e15, 1e12, 0.5) == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"utilization must be in \(0, 1\], got 0"):
        workload.gpu_hours(1.0, 1.0, 0)
