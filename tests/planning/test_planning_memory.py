"""The formulas of memory and work agree with what tiny models really use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from memory_meter import PeakBytes, saved_bytes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dmole.allocation import UniformAllocator, score_gradients
from dmole.data.collate import Collator
from dmole.data.sample import ArrayImage, Sample, Turn
from dmole.experts import save_expert
from dmole.models import PretrainedBackbone
from dmole.models.recomputation import recomputed_in_evaluation
from dmole.module import ContinualModule
from dmole.planning import activations, memory, work
from dmole.planning.memory import Load, expert_size
from dmole.planning.shape import model_shape
from dmole.routing import OracleRouter
from dmole.routing.autoencoder import PCAReconstructor, parameter_count
from dmole.run.context import StageContext

BATCH = 4
TINY = model_shape("tiny")
IMAGE_TOKENS = 64


class Setting:
    """The tiny model with untrained experts, a batch, and the same as figures."""

    def __init__(
        self,
        dtype: str = "float32",
        share: float = 0.5,
        recompute: bool = False,
        dropout: float = 0.0,
        mixed: bool = True,
    ) -> None:
        self.module = ContinualModule(
            PretrainedBackbone("tiny", dtype=dtype),
            UniformAllocator(rank=8, budget_fraction=share),
            OracleRouter(),
            dropout=dropout,
            activation_checkpointing=recompute,
        )
        turns = (Turn("user", "<image>\nwhat shape ?"), Turn("assistant", "a red circle"))
        image = ArrayImage(np.zeros((64, 64, 3), np.uint8))
        samples = [Sample(str(number), turns, (image,)) for number in range(BATCH)]
        collate = Collator(self.module.backbone.processor)
        self.batch = collate([(sample, "t") for sample in samples], generation=False)
        self.mixed = mixed and dtype != "float32"
        element = 4 if dtype == "float32" else 2
        if element == 2:
            self.batch.inputs["pixel_values"] = self.batch.inputs["pixel_values"].bfloat16()
        self.tokens = self.batch.inputs["input_ids"].shape[1]
        self.load = Load(
            samples=BATCH,
            patches=IMAGE_TOKENS + 1,
            tiles=1,
            tokens=self.tokens,
            answer_tokens=len(self.batch.targets.tokens) // BATCH,
            element=element,
        )
        copies = element == 2 and not self.mixed
        # torch's dropout keeps a mask of the input's type on a CPU
        mask = element if dropout else 0
        self.expert = expert_size(TINY, 8, share, mask=mask, copies=copies)

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
        return memory.loss_bytes(TINY, self.load)


# -- exact: parameters, experts, optimizer, router, cache ---------------------------------------


def test_the_parameters_of_the_tiny_model_are_counted_exactly() -> None:
    assert TINY.parameters == PretrainedBackbone("tiny").parameter_count()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llava-hf/llava-1.5-7b-hf", 7_063_427_072),
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2_246_784_880),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 73_410_777_344),
    ],
)
def test_the_parameters_of_named_models_follow_from_their_configs(
    name: str, parameters: int
) -> None:
    assert model_shape(name).parameters == parameters


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_experts_and_their_training_state_are_counted_exactly(share: float) -> None:
    setting = Setting(share=share)
    setting.add_expert()
    module = setting.module
    count = module.library.count("t")
    assert setting.expert.parameters == count
    parameters = [p for _, p in module.library.parameters("t")]
    optimizer = torch.optim.AdamW(parameters)
    setting.loss().backward()
    optimizer.step()
    held = sum(2 * p.numel() * p.element_size() for p in parameters)  # with its gradient
    state = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
    held += sum(t.numel() * t.element_size() for t in state)
    assert memory.training_state_bytes(count) == held


def test_an_expert_file_is_as_large_as_its_parameters(tmp_path: Path) -> None:
    setting = Setting()
    setting.add_expert()
    save_expert(setting.module.library, "t", tmp_path, "tiny")
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    expected = memory.FP32 * setting.expert.parameters
    assert expected <= size < 1.05 * expected


def test_a_routers_autoencoder_is_counted_exactly() -> None:
    rows = torch.randn(200, TINY.embedding_width)
    weights = PCAReconstructor(16).fit(rows, torch.Generator())
    assert memory.autoencoder_bytes(TINY, components=16) == memory.FP32 * parameter_count(weights)


def test_the_cache_of_a_generation_is_counted_exactly() -> None:
    setting = Setting()
    with torch.no_grad():
        cache = setting.module.backbone.model(**setting.batch.inputs).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.cache_bytes(TINY.language, BATCH, setting.tokens, 4) == held


# -- measured: activations, proxy pass ----------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "mixed", "dropout", "share"),
    [
        ("float32", False, 0.0, 0.5),
        ("float32", False, 0.05, 1.0),
        ("bfloat16", True, 0.0, 1.0),
        ("bfloat16", True, 0.05, 0.5),
        ("bfloat16", True, 0.05, 1.0),
        ("bfloat16", False, 0.0, 0.5),
        ("bfloat16", False, 0.05, 1.0),
    ],
)
def test_saved_activations_are_as_estimated_within_six_percent(
    dtype: str, mixed: bool, dropout: float, share: float
) -> None:
    setting = Setting(dtype, share, dropout=dropout, mixed=mixed)
    setting.add_expert()
    with saved_bytes(setting.module.backbone.model.parameters()) as total:
        setting.loss()
    kept = activations.training_activation_bytes(TINY, setting.load, setting.expert)
    answers = BATCH * setting.load.answer_tokens
    kept += memory.FP32 * answers * TINY.vocabulary  # log-probabilities
    assert kept == pytest.approx(total(), rel=0.06)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_dropout_keeps_a_third_to_a_half_more_activations(share: float) -> None:
    load = Load(samples=4, patches=577, tiles=1, tokens=704, answer_tokens=16)
    model = model_shape("llava-hf/llava-1.5-7b-hf")
    without, with_dropout = (
        activations.training_activation_bytes(model, load, expert_size(model, 8, share, mask=mask))
        for mask in (0, memory.MASK)
    )
    assert 1.15 < with_dropout / without < 1.56


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
    estimated = setting.loss_peak + activations.training_activation_bytes(
        TINY, setting.load, setting.expert, recompute=recompute
    )
    assert low < estimated / meter.peak < high


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduction", ["sum", "fisher"])
def test_the_peak_of_the_proxy_pass_is_as_estimated(dtype: str, reduction: str) -> None:
    setting = Setting(dtype)
    with PeakBytes() as meter:
        setting.score(reduction)
    estimated = (
        activations.proxy_activation_bytes(TINY, setting.load)
        + setting.loss_peak
        + memory.proxy_gradient_bytes(TINY, summed=reduction == "sum")
    )
    assert 0.9 < estimated / meter.peak < 1.1


def test_what_the_proxy_pass_keeps_of_gradients_is_the_difference_of_its_reductions() -> None:
    peaks = {}
    for reduction in ("sum", "fisher"):
        setting = Setting()
        with PeakBytes() as meter:
            setting.score(reduction)
        peaks[reduction] = meter.peak
    kept = memory.proxy_gradient_bytes(TINY) - memory.proxy_gradient_bytes(TINY, summed=False)
    assert peaks["sum"] - peaks["fisher"] == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_of_the_proxy_pass_are_as_estimated_recomputed_or_not(recompute: bool) -> None:
    setting = Setting(recompute=recompute)
    model = setting.module.backbone.model
    with PeakBytes() as meter, recomputed_in_evaluation(model):
        setting.score("fisher")
    estimated = activations.proxy_activation_bytes(TINY, setting.load, recompute=recompute)
    estimated += setting.loss_peak + memory.largest_gradient_bytes(TINY)
    assert estimated == pytest.approx(meter.peak, rel=0.12)


# -- work ---------------------------------------------------------------------------------------


def _counted(counter: FlopCounterMode) -> int:
    """Products of matrices; the fused attention of a CPU is not counted by torch."""
    counts = {str(op): value for op, value in counter.get_flop_counts()["Global"].items()}
    return sum(counts.get(f"aten.{op}", 0) for op in ("mm", "addmm", "bmm"))


def _attention(load: Load, factor: float) -> float:
    lengths = zip(TINY.stacks, (load.patches, load.tokens), strict=True)
    return factor * sum(work.attention_flops(stack, BATCH, length) for stack, length in lengths)


def test_the_work_of_a_forward_pass_is_that_of_its_products() -> None:
    setting = Setting()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        setting.module.base_loss(setting.batch)
    projector = 2 * BATCH * IMAGE_TOKENS * (128 * 160 + 160 * 160)
    estimated = work.pass_flops(TINY, setting.load, backward=False)
    assert estimated - _attention(setting.load, 1) + projector == _counted(counter)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_work_of_a_training_step_is_as_estimated_within_five_percent(recompute: bool) -> None:
    setting = Setting(share=1.0, recompute=recompute)
    setting.add_expert()
    with FlopCounterMode(display=False) as counter:
        setting.loss().backward()
    estimated = work.pass_flops(TINY, setting.load, backward=True, recompute=recompute)
    estimated -= _attention(setting.load, 1 + work.ATTENTION_BACKWARD + recompute)
    estimated += work.expert_flops(TINY, setting.load, setting.expert)
    assert estimated == pytest.approx(_counted(counter), rel=0.05)


def test_the_work_of_the_proxy_pass_is_as_estimated_within_five_percent() -> None:
    setting = Setting()
    with FlopCounterMode(display=False) as counter:
        setting.score("fisher")
    once = work.pass_flops(TINY, setting.load, backward=True, weights=True)
    once -= _attention(setting.load, 1 + work.ATTENTION_BACKWARD)
    assert 2 * once == pytest.approx(_counted(counter), rel=0.05)


def test_a_share_of_the_peak_rate_is_required() -> None:
    assert work.gpu_hours(3.6e15, 1e12, 0.5) == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"utilization must be in \(0, 1\], got 0"):
        work.gpu_hours(1.0, 1.0, 0)
