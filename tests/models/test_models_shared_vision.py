"""One pass of the vision encoder for router and answer: as if each ran it, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import make_backbone, make_batch, make_samples, randomize
from torch import Tensor, nn

from dmole.allocation import UniformAllocator
from dmole.inference.answering import AnsweringModel
from dmole.inference.requests import Request
from dmole.models.backbone import Backbone
from dmole.models.shared_vision import SharedVision, has_dropout
from dmole.module import ContinualModule
from dmole.regularizers.base import Regularizer, Step
from dmole.routing import AutoencoderRouter
from dmole.run.context import EvaluationPass, StageContext


@contextmanager
def passes(backbone: Backbone) -> Iterator[list[int]]:
    """Yield a list that gets the number of vision rows of each pass of the vision encoder."""
    block = next(block for block in backbone.blocks if block.modality == "vision")
    seen: list[int] = []
    handle = backbone.model.get_submodule(block.path).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[0])
    )
    yield seen
    handle.remove()


class Twice(Regularizer):
    """Runs the model once more, as a distillation does."""

    def forward(self, step: Step) -> Tensor:
        return 0.1 * step.forward().float().pow(2).mean()


def make_module(modalities: tuple[str, ...], **options: Any) -> ContinualModule:
    """Return a module that trains expert ``b`` beside ``a``, which its router knows."""
    router = AutoencoderRouter(threshold_scale=1e9)
    module = ContinualModule(
        make_backbone("llava_next"), UniformAllocator(rank=2), router, dropout=0.0, **options
    )
    units = [unit for unit in module.units() if unit.modality in modalities]
    width = 2 * module.backbone.vision_width
    for name in "ab":
        module.add_expert(module.allocator.allocate(name, units, None, name == "a"))
        randomize(module.library, name, 0.1)
        if name == "a":
            router.fit(name, torch.randn(64, width))
    module.begin_stage(StageContext(2, ("b",), ("colors",)))
    module._trainer = SimpleNamespace(global_step=0)
    module.log = lambda *_, **__: None
    return module.train()


def gradients(module: ContinualModule) -> tuple[list[int], Tensor, list[Tensor]]:
    """Return the passes, the loss and the gradients of a training step."""
    batch = make_batch(module.backbone, make_samples((1, 0, 2)))
    with passes(module.backbone) as seen:
        loss = module.training_step(batch, 0)
    loss.backward()  # before transformers 5.23 recomputation runs the hooks again
    found = [parameter.grad for _, parameter in module.library.parameters("b")]
    for _, parameter in module.library.parameters("b"):
        parameter.grad = None
    return seen, loss.detach(), found


def without_sharing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        SharedVision, "_forward", lambda self, plain, *args, **kwargs: plain(*args, **kwargs)
    )


@pytest.mark.parametrize("regularizers", [[], [Twice()]], ids=["plain", "two forwards"])
@pytest.mark.parametrize(
    "modalities", [("language",), ("vision", "language")], ids=["bare", "live"]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_runs_a_bare_vision_encoder_once_and_gives_the_same_gradients(
    regularizers: list[Regularizer],
    modalities: tuple[str, ...],
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make_module(
        modalities, regularizers=regularizers, activation_checkpointing=checkpointing
    )
    seen, loss, found = gradients(module)
    without_sharing(monkeypatch)
    plain_passes, plain_loss, plain = gradients(module)
    forwards = 2 + len(regularizers)
    assert len(plain_passes) == forwards
    assert len(seen) == (1 if "vision" not in modalities else forwards)
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(*pair) for pair in zip(found, plain, strict=True))
    assert any(gradient.any() for gradient in found)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_bare_vision_encoder_saves_no_activation(checkpointing: bool) -> None:
    module = make_module(("language",), activation_checkpointing=checkpointing)
    encoder = module.backbone.model.get_submodule(module.backbone.parts.vision)
    module.embedder = lambda batch, remember: torch.zeros(3, 2 * module.backbone.vision_width)
    inside, saved, outputs = [False], [0, 0], []

    def pack(tensor: Tensor) -> Tensor:
        saved[inside[0]] += 1
        return tensor

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        inside[0] = False
        outputs.append(output.last_hidden_state)

    encoder.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True))
    encoder.register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = make_batch(module.backbone, make_samples((1, 0, 2)))
        module.training_step(batch, 0)
    assert saved[True] == 0 < saved[False]
    assert [output.requires_grad for output in outputs] == [False]


def test_an_answer_reuses_the_pass_of_its_routing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(("language",)).eval()
    module.evaluation = EvaluationPass(answer_lengths={"colors": 4})
    batch = make_batch(module.backbone, make_samples((1, 0, 2), answers=False))
    with torch.inference_mode(), passes(module.backbone) as seen:
        texts = module.answer(batch).texts
    assert len(seen) == 1
    assert "forward" not in vars(module.vision._encoder)
    assert module.vision._known is None
    module.embedder.cache.__init__()
    without_sharing(monkeypatch)
    with torch.inference_mode(), passes(module.backbone) as seen:
        assert module.answer(batch).texts == texts
    assert len(seen) == 2


def test_a_loaded_model_reuses_the_pass_of_its_routing() -> None:
    trained = make_module(("language",))
    model = AnsweringModel(trained.backbone, trained.router)
    model.library, model.vision = trained.library, trained.vision
    requests = [
        Request(sample.turns, sample.images, 3) for sample in make_samples((1, 2), answers=False)
    ]
    with passes(model.backbone) as seen:
        answers = model.answer(requests)
    assert [answer.experts[0] for answer in answers] == ["a", "a"]
    assert len(seen) == 1


def test_other_images_precisions_and_dropout_are_another_pass() -> None:
    module = make_module(("language",)).eval()
    backbone, vision = module.backbone, module.vision
    first, other = (make_batch(backbone, [s]).inputs for s in make_samples((1, 1)))
    alone = backbone.vision_hidden(other)
    with passes(backbone) as seen, vision.shared(keep=True), torch.no_grad():
        backbone.vision_hidden(first)
        assert torch.equal(backbone.vision_hidden(other), alone)
        assert len(seen) == 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            backbone.vision_hidden(other)
        assert len(seen) == 3
        vision._drops = True
        module.train()
        backbone.vision_hidden(other)
        assert len(seen) == 4


def test_dropout_of_a_vision_encoder_is_found_in_config_and_submodules() -> None:
    backbone = make_backbone("llava")
    encoder = backbone.model.get_submodule(backbone.parts.vision)
    config = backbone.model.config.vision_config
    assert not has_dropout(encoder, config)
    assert has_dropout(nn.Sequential(encoder, nn.Dropout(0.1)), config)
    config.attention_dropout = 0.1
    assert has_dropout(encoder, config)
