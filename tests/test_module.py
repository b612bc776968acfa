"""One training step and one answer: gates, losses, gradients, optimizer groups, state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from families import MODEL_FAMILIES, make_backbone, make_batch, make_samples, randomize
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader

from dmole.allocation import SensitivityAllocator, UniformAllocator, score_gradients
from dmole.data import Turn
from dmole.data.batch import Batch
from dmole.data.sample import Sample
from dmole.data.window import windows
from dmole.experts import Gates
from dmole.module import ContinualModule
from dmole.regularizers import Orthogonality
from dmole.routing import AllExpertsRouter, AutoencoderRouter, OracleRouter, Router
from dmole.run.context import EvaluationPass, StageContext

LIGHTNING_WARNINGS = [
    "ignore:.*does not have many workers",
    "ignore:.*in eval mode at the start of training",
    "ignore:.*smaller than the logging interval",
    "ignore:.*LeafSpec",
    "ignore:.*No `?train_dataloader",
]


def make_module(
    family: str = "llava",
    router: Router | None = None,
    vision_feature_layer: int = -1,
    **kwargs: Any,
) -> ContinualModule:
    backbone = make_backbone(family, vision_feature_layer)
    return ContinualModule(
        backbone, UniformAllocator(rank=2), router or OracleRouter(), dropout=0.0, **kwargs
    )


def add(module: ContinualModule, name: str) -> None:
    plan = module.allocator.allocate(name, module.units(), None, not module.library.names)
    module.add_expert(plan)
    module.begin_stage(StageContext(1, (name,), epochs=1, allocation=plan))


def detached(module: ContinualModule, step: int = 0) -> ContinualModule:
    """Let the module step without a trainer."""
    module._trainer = SimpleNamespace(global_step=step)
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: value})
    return module


@pytest.fixture(scope="module")
def images() -> list[Sample]:
    return make_samples((1, 0, 2))


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_every_trainable_parameter_has_a_gradient_on_a_batch_without_images(family: str) -> None:
    assert_gradients(family, within_backward=False)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_ddp_gets_these_gradients_within_the_backward_pass_also_of_one_process(family: str) -> None:
    assert_gradients(family, within_backward=True)


def assert_gradients(family: str, *, within_backward: bool) -> None:
    module = detached(make_module(family))
    add(module, "colors")
    batch = make_batch(module.backbone, make_samples((0, 0)))
    module.training_step(batch, 0).backward()
    if not within_backward:
        module.on_after_backward()
    trainable = [p for p in module.parameters() if p.requires_grad]
    assert trainable
    assert all(p.grad is not None for p in trainable)
    vision = [p for path, p in module.library.parameters("colors") if "vision" in path]
    assert vision
    assert not any(p.grad.any() for p in vision)


def test_the_training_loss_is_that_of_the_current_expert_and_the_anchor_adds_nothing(
    images: list[Sample],
) -> None:
    module = detached(make_module())
    add(module, "colors")
    randomize(module.library, "colors", 0.1)
    batch = make_batch(module.backbone, images)
    loss = module.training_step(batch, 0)
    with torch.no_grad():
        gates = Gates(["colors"], torch.ones(3, 1), torch.tensor([1, 0, 2]))
        with module.library.context.use(gates):
            expected = module.backbone.loss(batch.inputs, batch.labels)
        base = module.base_loss(batch)
    assert_close(loss, expected)
    assert_close(module.logged["train/loss"], expected)
    assert (base - loss.detach()).abs() > 1e-3
    assert module.library.context.current is None


def test_the_base_loss_ignores_gates_that_are_set(images: list[Sample]) -> None:
    module = detached(make_module())
    batch = make_batch(module.backbone, images)
    before = module.base_loss(batch)
    add(module, "colors")
    randomize(module.library, "colors", 0.1)
    with module.library.context.use(module.make_gates(torch.ones(3, 1), batch)):
        assert torch.equal(module.base_loss(batch), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_and_samples(
    value: float, images: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = detached(make_module(), step=17)
    add(module, "colors")
    batch = make_batch(module.backbone, images)
    output = SimpleNamespace(loss=lambda: torch.tensor(value))
    monkeypatch.setattr(module.backbone, "answer_output", lambda *_: output)
    pattern = f"loss is {value} at step 17 of expert 'colors'; samples: colors/train/s0, .*s1, .*s2"
    module.training_step(batch, 0)
    with pytest.raises(ValueError, match=pattern):
        module.guard.admits(module.trained_parameters(), None, module.position())


def test_a_batch_without_labels_is_not_trained_on() -> None:
    module = detached(make_module())
    add(module, "colors")
    batch = make_batch(module.backbone, make_samples((1,), answers=False))
    with pytest.raises(ValueError, match="without labels"):
        module.base_loss(batch)


def test_only_experts_are_saved_and_they_come_back_to_the_bit() -> None:
    module, other = make_module(), make_module(seed=3)
    for name in ("train", "colors"):
        add(module, name)
        randomize(module.library, name)
        add(other, name)
    saved = module.state_dict()
    assert all(key.startswith(("train/", "colors/")) for key in saved)
    assert sum(t.numel() for t in saved.values()) == sum(map(module.library.count, saved_names()))
    other.load_state_dict(saved)
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, saved[key])
    key = next(iter(saved))
    with pytest.raises(ValueError, match=f"{key.partition('/')[2]} is missing"):
        other.load_state_dict({k: v for k, v in saved.items() if k != key})


def saved_names() -> list[str]:
    return ["train", "colors"]


def test_answers_follow_the_plan_or_the_router(images: list[Sample]) -> None:
    module = detached(make_module(router=AllExpertsRouter()))
    for name in ("a", "b"):
        add(module, name)
        randomize(module.library, name, 0.2)
    module.eval()
    batch = make_batch(module.backbone, make_samples((1, 0, 2), answers=False))
    lengths = {"colors": 5}
    module.evaluation = EvaluationPass(answer_lengths=lengths)
    routed = module.answer(batch)
    assert routed.keys == ["colors/test/s0", "colors/test/s1", "colors/test/s2"]
    assert routed.gate_sets == [("a", "b")] * 3
    plan = dict(zip(routed.keys, [("a",), (), ("b",)], strict=True))
    module.evaluation = EvaluationPass(gate_sets=plan, answer_lengths=lengths)
    planned = module.answer(batch)
    assert planned.gate_sets == [("a",), (), ("b",)]
    assert planned.texts != routed.texts
    for i, gates in enumerate(planned.gate_sets):  # each as if it were alone
        alone = make_batch(module.backbone, [make_samples((1, 0, 2), answers=False)[i]])
        plan = {planned.keys[i]: gates}
        module.evaluation = EvaluationPass(gate_sets=plan, answer_lengths=lengths)
        assert module.answer(alone).texts == [planned.texts[i]]
    assert module.library.context.current is None


def test_a_filler_takes_part_in_no_vote(
    images: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    router = AutoencoderRouter(vote="batch", components=2, vote_support=0.6)
    module = make_module(router=router)
    for name in "abc":
        add(module, name)
    rows = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0))
    rows += torch.tensor([[9.0, 0, 0, 0, 0, 0], [0, 9.0, 0, 0, 0, 0]])[:, None]
    for name, of_task in zip("ab", rows, strict=True):
        router.fit(name, of_task)
    embeddings = torch.stack([rows[0, 0], rows[1, 0], rows[1, 1]])  # one of task a
    monkeypatch.setattr(module, "embed", lambda batch, **_: embeddings[: len(batch)])
    batch = make_batch(module.backbone, images)
    assert module.route(batch).order == [("c", "b")] * 3
    filled = module.route(replace(batch, fillers=2))
    assert filled.order == [("c", "a")] * 3
    assert filled.gates.tolist() == [[1.0, 0.0, 1.0]] * 3


def test_the_longest_answer_of_the_batchs_tasks_counts() -> None:
    evaluation = EvaluationPass(answer_lengths={"a": 3, "b": 7})
    assert evaluation.answer_length(["a", "b"]) == 7
    assert evaluation.answer_length(["a", "unknown"]) == 32


def test_before_the_first_expert_the_base_model_answers() -> None:
    module = detached(make_module())
    module.eval()
    batch = make_batch(module.backbone, make_samples((1, 0), answers=False))
    module.evaluation = EvaluationPass(answer_lengths={"colors": 4})
    answers = module.answer(batch)
    assert answers.gate_sets == [(), ()]
    assert answers.texts == module.backbone.generate(batch.inputs, 4)


def test_an_earlier_stage_sees_only_its_experts() -> None:
    module = make_module()
    for name in ("a", "b"):
        add(module, name)
    module.evaluation = EvaluationPass(experts=("a",))
    assert module.experts == ("a",)
    module.evaluation = EvaluationPass(experts=())
    assert module.experts == ()
    module.evaluation = EvaluationPass()
    assert module.experts == ("a", "b")


@pytest.mark.parametrize("projector", [False, True])
def test_units_include_the_projector_only_on_request(projector: bool) -> None:
    module = make_module(projector_experts=projector)
    assert ("projector" in {unit.modality for unit in module.units()}) == projector
    add(module, "a")
    expected = ("vision", "projector", "language") if projector else ("vision", "language")
    assert module.training_modalities() == expected


def test_a_warmup_outside_of_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup must be in \[0, 1\), got 1.0"):
        make_module(warmup=1.0)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_vision_layer_whose_output_is_not_read_has_no_score_and_no_expert(family: str) -> None:
    module = make_module(family, vision_feature_layer=-2)
    units = module.units()
    parameters = {
        unit.name: [s for path in unit.linears for s in module.backbone.gradient_sources(path)]
        for unit in units
    }
    batches = [make_batch(module.backbone, make_samples((1, 0, 2)))]
    scores = score_gradients(module.backbone.model, parameters, batches, module.base_loss)
    assert scores["vision.1"] is None
    assert all(scores[unit.name] > 0 for unit in units if unit.name != "vision.1")
    for allocator in (SensitivityAllocator(budget_fraction=1.0), UniformAllocator()):
        plan = allocator.allocate("colors", units, scores, first=True)
        assert [entry.unit for entry in plan.experts] == ["vision.0", "language.0", "language.1"]


def test_router_embeddings_are_float32_under_autocast_and_do_not_see_gates() -> None:
    module = make_module()
    batch = make_batch(module.backbone, make_samples((1, 0, 2)))
    plain = module.embed(batch)
    add(module, "a")
    randomize(module.library, "a")
    module.embedder.cache.__init__()
    gates = module.make_gates(torch.ones(3, 1), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16), module.library.context.use(gates):
        found = module.embed(batch)
        assert module.library.context.current is gates
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)


def fit(module: ContinualModule, samples: list[Sample], steps: int = 2, **kwargs: Any) -> Trainer:
    return run_trainer(module, [make_batch(module.backbone, samples)] * steps, **kwargs)


def run_trainer(module: ContinualModule, batches: list[Batch], **kwargs: Any) -> Trainer:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def warnings_ignored(function: Callable[..., None]) -> Callable[..., None]:
    for message in LIGHTNING_WARNINGS:
        function = pytest.mark.filterwarnings(message)(function)
    return function


@warnings_ignored
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_moves_every_tensor_of_the_current_expert_and_nothing_else(
    checkpointing: bool, images: list[Sample]
) -> None:
    module = make_module(router=AllExpertsRouter(), activation_checkpointing=checkpointing)
    add(module, "old")
    randomize(module.library, "old", 0.1)
    add(module, "new")
    everything = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = fit(module, images, steps=3)
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, everything[n])}
    assert moved == {n for n in everything if "expert_new" in n}
    (optimizer,) = trainer.optimizers
    assert [group["name"] for group in optimizer.param_groups] == ["vision", "language"]
    assert module.stage.steps == 3


@warnings_ignored
def test_training_repeats_to_the_bit_and_the_update_scale_slows_one_module(
    images: list[Sample],
) -> None:
    def train(**scale: float) -> dict[str, Tensor]:
        module = make_module(warmup=0.0, schedule="constant")
        add(module, "a")
        before = {key: p.detach().clone() for key, p in module.state_dict().items()}
        module.stage.update_scale = scale
        trainer = fit(module, images, steps=1)
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        assert rates == [1e-4, 1e-4]
        return {key: p - before[key] for key, p in module.state_dict().items()}

    plain, again, slow = train(), train(), train(vision=0.1)
    for key, move in plain.items():
        assert torch.equal(move, again[key])
        expected = 0.1 * move if "vision_tower" in key else move
        assert_close(slow[key], expected, rtol=1e-3, atol=1e-7)


@warnings_ignored
def test_dropout_draws_depend_on_seed_and_expert_and_not_on_what_ran_before(
    images: list[Sample],
) -> None:
    def train(noise: int, name: str = "a") -> list[Tensor]:
        module = make_module()
        module.library.dropout = 0.5
        add(module, name)
        torch.manual_seed(noise)
        fit(module, images, steps=2)
        return list(module.state_dict().values())

    first, same = train(1), train(2)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))


def gradients(module: ContinualModule, batch: Batch, weight: float = 1.0) -> dict[str, Tensor]:
    (module.training_step(batch, 0) * weight).backward()
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    for parameter in module.parameters():
        parameter.grad = None
    return found


def ready(**kwargs: Any) -> ContinualModule:
    """Return a module that trains expert ``b`` beside a frozen one, without a trainer."""
    module = detached(make_module(router=AllExpertsRouter(), **kwargs))
    for name in ("a", "b"):
        add(module, name)
        randomize(module.library, name, 0.1)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_activations_give_the_same_gradients(
    dtype: torch.dtype, autocast: bool, images: list[Sample]
) -> None:
    found = []
    for checkpointing in (False, True):
        module = ready(activation_checkpointing=checkpointing).train()
        module.backbone.model.to(dtype)  # the experts too
        for name in ("a", "b"):
            for _, parameter in module.library.parameters(name):
                parameter.data = parameter.data.float()
        batch = make_batch(module.backbone, images)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found.append(gradients(module, batch))
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        assert gradient.dtype == torch.float32
        assert gradient.any()
        assert torch.equal(gradient, found[1][key])


def test_a_block_below_the_experts_is_not_computed_again(images: list[Sample]) -> None:
    module = detached(make_module(activation_checkpointing=True))
    units = [unit for unit in module.units() if unit.name == "language.1"]
    module.add_expert(module.allocator.allocate("a", units, None, True))
    module.begin_stage(StageContext(1, ("a",)))
    calls = {"language.0": 0, "language.1": 0}
    for block in module.backbone.blocks:
        if block.name in calls:
            linear = module.backbone.model.get_submodule(block.linears[0])
            linear.register_forward_hook(
                lambda *_, name=block.name: calls.__setitem__(name, calls[name] + 1)
            )
    gradients(module.train(), make_batch(module.backbone, images))
    assert calls == {"language.0": 1, "language.1": 2}


@pytest.mark.parametrize("autocast", [False, True])
def test_experts_on_a_half_precision_base_stay_in_float32_and_their_answers_to_the_bit(
    autocast: bool, images: list[Sample]
) -> None:
    backbone = make_backbone("llava")
    backbone.model.to(torch.bfloat16)
    module = ContinualModule(backbone, UniformAllocator(rank=2), OracleRouter(), dropout=0.0)
    detached(module)
    add(module, "a")
    randomize(module.library, "a", 0.1)
    batch = make_batch(backbone, images)

    def logits() -> Tensor:
        gates = torch.zeros(3, len(module.experts))
        gates[:, 0] = 1.0
        with (
            torch.no_grad(),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
            module.library.context.use(module.make_gates(gates, batch)),
        ):
            return backbone.model(**batch.inputs, use_cache=False).logits

    before = logits()
    add(module, "b")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = gradients(module, batch)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    randomize(module.library, "b", 0.1)
    assert torch.equal(logits(), before)
    assert {p.dtype for name in "ab" for _, p in module.library.parameters(name)} == {torch.float32}


def test_the_parts_of_a_batch_weigh_by_their_answer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, one after the other: the mean of their gradients is that of the joint batch."""
    module = ready()
    samples = make_samples((1, 0, 2))
    joint = make_batch(module.backbone, samples)
    parts = [make_batch(module.backbone, part) for part in (samples[:1], samples[1:])]
    whole = gradients(module, joint)
    loss = module.logged["train/loss"]
    sums = torch.zeros(7)
    monkeypatch.setattr("dmole.steps.accumulation.is_distributed", lambda: True)
    monkeypatch.setattr("dmole.steps.accumulation.dist.get_world_size", lambda: 2)

    def note(tensor: Tensor) -> Tensor:
        sums.add_(tensor)
        return tensor.clone()

    monkeypatch.setattr("dmole.steps.accumulation.sum_over_ranks", note)
    for part in parts:
        gradients(module, part)
    monkeypatch.setattr("dmole.steps.accumulation.sum_over_ranks", lambda tensor: sums)
    shares = [gradients(module, part, 0.5) for part in parts]
    assert_close(module.logged["train/loss"], loss)
    for key, gradient in whole.items():
        assert_close(shares[0][key] + shares[1][key], gradient, rtol=1e-4, atol=1e-6)


def sgd_step(samples: list[Sample], *, size: int = 0, **options: Any) -> dict[str, Tensor]:
    """Return how far one step of SGD moves the expert, the batch in parts of a size or whole."""
    size = size or len(samples)
    parts = [samples[i : i + size] for i in range(0, len(samples), size)]
    module = make_module(
        router=AllExpertsRouter(),
        warmup=0.0,
        schedule="constant",
        optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
        regularizers=options.pop("regularizers", None),
    )
    for name in ("before", "a"):  # the earlier one has an overlap to penalize
        add(module, name)
        randomize(module.library, name, 0.1)
    before = {key: p.detach().clone() for key, p in module.state_dict().items()}
    batches = [make_batch(module.backbone, part) for part in parts]
    accumulated = options.pop("accumulated", len(parts))
    batches = list(windows(batches, accumulated, 0, len(batches)))
    run_trainer(module, batches, accumulate_grad_batches=accumulated, **options)
    return {key: p - before[key] for key, p in module.state_dict().items()}


def unlike_samples(count: int = 5) -> list[Sample]:
    """Return samples with answers of very different lengths."""
    return [
        replace(sample, turns=(sample.turns[0], Turn("assistant", "red " * 4**index)))
        for index, sample in enumerate(make_samples((1, 0, 2, 1, 0)[:count]))
    ]


@warnings_ignored
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (1, {}),
        (2, {}),  # the last part is smaller
        (2, {"gradient_clip_val": 0.01}),
        (2, {"accumulated": 8}),  # a window that the end of the epoch cuts short
        (2, {"accumulated": 8, "regularizers": [Orthogonality(0.5)]}),
    ],
)
def test_accumulated_parts_step_like_the_whole_whatever_their_tokens(
    size: int, options: dict[str, Any]
) -> None:
    alone = {key: options[key] for key in options if key != "accumulated"}
    whole, parts = (
        sgd_step(unlike_samples(), **alone),
        sgd_step(unlike_samples(), size=size, **options),
    )
    for key, move in whole.items():
        assert move.any() or key.startswith("before/")
        assert_close(parts[key], move, rtol=1e-3, atol=5e-8 + 1e-5 * float(move.abs().max()))


class Overflow(Callback):
    """Makes the scaled gradients infinite in the first steps, as a loss scale too large does."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.moved: list[bool] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step < self.steps:
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(math.inf)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.moved.append(any(p.any() for key, p in pl_module.state_dict().items() if "_b" in key))


@warnings_ignored
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")  # the scaler skips the first step
@pytest.mark.parametrize(("scale", "ends"), [(8.0, False), (2.0, True)])
def test_a_real_loss_scaler_may_skip_steps_until_its_scale_is_one(
    scale: float, ends: bool, images: list[Sample]
) -> None:
    module = make_module()
    add(module, "a")
    batch = make_batch(module.backbone, images)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    overflow = Overflow(2)
    options = {
        "plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)],
        "callbacks": [overflow],
        "gradient_clip_val": 1.0,
    }
    if ends:  # 2, then 1: the second overflow is not the scale's
        with pytest.raises(ValueError, match="is inf at step 1 of expert 'a'"):
            run_trainer(module, [batch] * 3, **options)
        return
    run_trainer(module, [batch] * 3, **options)
    assert overflow.moved == [False, False, True]
    assert (module.guard.scaler_skips, module.guard.skipped) == (2, 0)
    assert scaler.get_scale() == scale / 4


@warnings_ignored
def test_batches_that_know_no_window_are_not_accumulated(images: list[Sample]) -> None:
    module = make_module()
    add(module, "a")
    batch = make_batch(module.backbone, images)
    with pytest.raises(ValueError, match="train with a ContinualDataModule"):
        run_trainer(module, [batch, batch], accumulate_grad_batches=2)


@warnings_ignored
def test_gradients_are_clipped_by_the_norm_over_the_expert_alone(images: list[Sample]) -> None:
    free, clipped = sgd_step(images), sgd_step(images, gradient_clip_val=0.01)
    norm = torch.stack([move.norm() for move in free.values()]).norm()
    assert norm > 0.02
    for key, move in clipped.items():
        assert_close(move, free[key] * 0.01 / norm, rtol=1e-3, atol=1e-7)


def test_the_schedule_of_a_stage_spans_its_epochs() -> None:
    module = make_module()
    add(module, "a")
    module.stage.epochs = 2
    # Lightning counts on: three epochs so far, ten steps each
    module._trainer = SimpleNamespace(estimated_stepping_batches=30, max_epochs=3)
    found = module.configure_optimizers()
    assert module.stage.steps == 20
    scheduler = found["lr_scheduler"]["scheduler"]
    assert found["lr_scheduler"]["interval"] == "step"
    assert scheduler.lr_lambdas[0](19) == pytest.approx((1 + math.cos(math.pi * 18 / 19)) / 2)
