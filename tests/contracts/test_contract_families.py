"""What every model family must do, on a tiny model of each that was saved and loaded again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import ANSWERS, make_batch, make_samples, randomize
from families.modules import add_expert, batch_of, logits, make_module
from families.saved import Folders
from torch import nn
from torch.testing import assert_close

from dmole.allocation import SensitivityAllocator, score_gradients
from dmole.data.batch import Batch
from dmole.experts import load_expert, save_expert
from dmole.models import Embedder
from dmole.models.embedder import sample_keys
from dmole.module import ContinualModule
from dmole.run.context import EvaluationPass, StageContext

# logits are around 10, embeddings around 1; processors differ in their matrix kernels
CLOSE = {"rtol": 1e-3, "atol": 5e-3}
VISION_BLOCKS = {"mllama": 3}
PROJECTORS = {"gemma3": 0, "qwen3_vl": 2}
LANGUAGE_LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
VISION_LINEARS = {
    "internvl": {"q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2"},
    "mllama": {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"},
    "qwen2_vl": {"qkv", "proj", "fc1", "fc2"},
    "qwen2_5_vl": {"qkv", "proj", "gate_proj", "up_proj", "down_proj"},
    "qwen3_vl": {"qkv", "proj", "linear_fc1", "linear_fc2"},
}
CLIP_LINEARS = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


def loss_step(module: ContinualModule, batch: Batch) -> float:
    module._trainer = SimpleNamespace(global_step=0)
    module.log = lambda *_, **__: None
    loss = module.training_step(batch, 0)
    loss.backward()
    return float(loss.detach())


def test_blocks_and_linears_of_vision_and_language_are_found(
    taught: ContinualModule, family: str
) -> None:
    backbone = taught.backbone
    found = [block.name for block in backbone.blocks]
    assert found == [
        *(f"vision.{i}" for i in range(VISION_BLOCKS.get(family, 2))),
        *(f"projector.{i}" for i in range(PROJECTORS.get(family, 1))),
        *(f"language.{i}" for i in range(2)),
    ]
    ends = {}
    for layer in backbone.blocks:
        for path in layer.linears:
            assert backbone.parts.modality_of(path) == layer.modality
            assert path.startswith(layer.path)
            ends.setdefault(layer.modality, set()).add(path.rpartition(".")[2])
    assert ends["vision"] == VISION_LINEARS.get(family, CLIP_LINEARS)
    assert ends["language"] == LANGUAGE_LINEARS
    paths = [path for block in backbone.blocks for path in block.linears]
    assert len(paths) == len(set(paths))
    merged = [p for p in paths if "merger" in p or "projector" in p or "connector" in p]
    assert all(backbone.parts.modality_of(path) == "projector" for path in merged)


def test_every_vision_linear_sees_the_rows_that_are_counted(
    taught: ContinualModule, mix: tuple[int, int, int]
) -> None:
    batch = batch_of(taught, make_samples(mix))
    counted = taught.backbone.vision_rows(batch.inputs, batch.image_counts)
    seen = set()
    handles = [
        taught.backbone.model.get_submodule(path).register_forward_pre_hook(
            lambda _, args: seen.add(args[0].shape[0])
        )
        for block in taught.backbone.blocks
        if block.modality == "vision"
        for path in block.linears
    ]
    logits(taught, batch)
    for handle in handles:
        handle.remove()
    assert seen == {int(counted.sum())}


def test_samples_with_other_experts_in_a_batch_are_as_alone(
    taught: ContinualModule, mix: tuple[int, int, int]
) -> None:
    samples, tasks = make_samples(mix), ("a", "b", "a")
    batch = batch_of(taught, samples, tasks)
    together = logits(taught, batch)
    swapped = logits(taught, batch_of(taught, samples, ("b", "a", "b")))
    for row, sample in enumerate(samples):
        real = batch.inputs["attention_mask"][row].bool()
        alone = logits(taught, batch_of(taught, [sample], tasks[row : row + 1]))[0]
        assert_close(together[row][real], alone, **CLOSE)
        assert (swapped[row][real] - alone).abs().max() > 1e-2  # the experts do differ


@pytest.mark.parametrize("module", ["vision", "projector", "language"])
def test_experts_of_one_module_alone_tell_the_samples_apart(
    fresh: ContinualModule, mix: tuple[int, int, int], module: str
) -> None:
    units = [unit for unit in fresh.units() if unit.modality == module]
    if not units:
        pytest.skip("the projector of this family has no linear")
    linears = [path for unit in units for path in unit.linears]
    for name in "ab":
        fresh.library.add(name, dict.fromkeys(linears, 2), dict.fromkeys(linears, 4.0))
        randomize(fresh.library, name)
    with_image = next(i for i, count in enumerate(mix) if count)
    samples = [make_samples(mix)[with_image]] * 2
    batch = batch_of(fresh, samples, ("a", "b"))
    first, second = logits(fresh, batch)
    assert (first - second).abs().max() > 1e-3
    for row, name in enumerate("ab"):
        assert_close(
            (first, second)[row], logits(fresh, batch_of(fresh, samples[:1], name))[0], **CLOSE
        )


def test_a_step_trains_only_the_expert_and_reaches_the_vision_encoder(
    fresh: ContinualModule, mix: tuple[int, int, int]
) -> None:
    add_expert(fresh, "a")
    randomize(fresh.library, "a")
    assert 0 < loss_step(fresh, batch_of(fresh, make_samples(mix), "aaa")) < 1e3
    own = dict.fromkeys(id(p) for _, p in fresh.library.parameters("a"))
    moved = {}
    for parameter in fresh.parameters():
        assert (parameter.grad is not None) == (id(parameter) in own)
    for path, parameter in fresh.library.parameters("a"):
        assert torch.isfinite(parameter.grad).all()
        part = fresh.backbone.parts.modality_of(path)
        moved[part] = moved.get(part, 0.0) + float(parameter.grad.abs().sum())
    assert moved["vision"] > 0
    assert moved["language"] > 0


def test_only_answers_and_their_end_are_learned(
    taught: ContinualModule, mix: tuple[int, int, int]
) -> None:
    batch = batch_of(taught, make_samples(mix))
    tokenizer = taught.backbone.processor.tokenizer
    for row, ids in enumerate(batch.labels):
        learned = tokenizer.decode(ids[ids != -100]).strip()
        end = tokenizer.decode(ids[ids != -100][-1:])
        assert learned == ANSWERS[row] + end
        assert end in tokenizer.all_special_tokens or end.startswith("<")


def test_a_prompt_is_what_training_saw_before_the_answer(
    taught: ContinualModule, mix: tuple[int, int, int]
) -> None:
    for trained, prompted in zip(make_samples(mix), make_samples(mix, answers=False), strict=True):
        whole, prompt = batch_of(taught, [trained]), batch_of(taught, [prompted])
        ids = prompt.inputs["input_ids"][0]
        assert torch.equal(whole.inputs["input_ids"][0, : len(ids)], ids)
        assert int((whole.labels[0] != -100).nonzero()[0]) == len(ids)


def test_layers_have_a_proxy_score_or_get_no_expert(
    fresh: ContinualModule, family: str, mix: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [batch_of(fresh, make_samples(mix))]
    units = [unit for unit in fresh.units() if unit.modality != "projector"]

    def score() -> dict[str, float | None]:
        parameters = {
            unit.name: [s for path in unit.linears for s in fresh.backbone.gradient_sources(path)]
            for unit in units
        }
        return score_gradients(fresh.backbone.model, parameters, batches, fresh.base_loss)

    scores = score()
    assert all(value > 0 for value in scores.values())
    if family in ("llava", "llava_next"):  # the published models read the layer before the last
        monkeypatch.setattr(fresh.backbone.model.config, "vision_feature_layer", -2)
        scores = score()
        assert scores["vision.1"] is None
        allocator = SensitivityAllocator(rank=2, budget_fraction=1.0)
        plan = allocator.allocate("a", units, scores, first=True)
        assert "vision.1" not in {entry.unit for entry in plan.experts}


def test_an_embedding_does_not_depend_on_batch_mates(
    taught: ContinualModule, mix: tuple[int, int, int]
) -> None:
    samples = make_samples(mix)
    embedder = Embedder(taught.backbone)
    together = embedder(batch_of(taught, samples))
    assert together.shape[1] > taught.backbone.vision_width
    assert torch.isfinite(together).all()
    assert (together[0] - together[2]).abs().max() > 1e-2
    for row, sample in enumerate(samples):
        alone = Embedder(taught.backbone)(batch_of(taught, [sample]))
        assert_close(together[row], alone[0], **CLOSE)
        vision = together[row, : taught.backbone.vision_width]
        assert bool(vision.any()) == bool(sample.images)
    for known in range(len(samples)):  # the others are selected from the batch
        part = Embedder(taught.backbone)
        part.cache.add(sample_keys(batch_of(taught, samples))[known : known + 1], together[[known]])
        assert_close(part(batch_of(taught, samples)), together, **CLOSE)


def test_embedding_and_answer_share_a_pass_of_the_vision_encoder_unless_an_expert_computes_in_it(
    fresh: ContinualModule, mix: tuple[int, int, int]
) -> None:
    for name, modality in (("a", "language"), ("b", "vision")):
        linears = [p for u in fresh.units() if u.modality == modality for p in u.linears]
        fresh.library.add(name, dict.fromkeys(linears, 2), dict.fromkeys(linears, 4.0))
        randomize(fresh.library, name)
    samples, passes = make_samples(mix, answers=False), []
    vision = next(block for block in fresh.backbone.blocks if block.modality == "vision")
    handle = fresh.backbone.model.get_submodule(vision.path).register_forward_pre_hook(
        lambda *_: passes.append(1)
    )
    for tasks, expected in (("aaa", 1), ("aba", 2)):
        batch = batch_of(fresh, samples, tasks)
        plain = fresh.embed(batch, remember=False), logits(fresh, batch)
        passes.clear()
        with fresh.vision.shared():
            found = fresh.embed(batch, remember=False), logits(fresh, batch)
        assert len(passes) == expected
        with fresh.vision.shared(keep=True):
            again = logits(fresh, batch), logits(fresh, batch)
        assert len(passes) == 2 * expected
        assert all(torch.equal(*pair) for pair in zip(plain, found, strict=True))
        assert all(torch.equal(each, plain[1]) for each in again)
    handle.remove()


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_with_left_padding_are_those_of_the_sample_alone(
    taught: ContinualModule, mix: tuple[int, int, int], beams: int
) -> None:
    samples, tasks = make_samples(mix, answers=False), ("a", "b", "a")
    taught.beams = beams
    taught.evaluation = EvaluationPass(answer_lengths=dict.fromkeys("ab", 5))
    batch = batch_of(taught, samples, tasks)
    assert not batch.inputs["attention_mask"].bool().all()  # there is padding
    together = taught.answer(batch)
    assert together.gate_sets == [("a",), ("b",), ("a",)]
    assert any(together.texts)
    for row, sample in enumerate(samples):
        alone = taught.answer(batch_of(taught, [sample], tasks[row : row + 1]))
        assert alone.texts == [together.texts[row]]


def test_experts_change_the_answers(taught: ContinualModule, mix: tuple[int, int, int]) -> None:
    samples = make_samples(mix, answers=False)
    taught.beams = 1
    taught.evaluation = EvaluationPass(answer_lengths=dict.fromkeys("ab", 8))
    first = taught.answer(batch_of(taught, samples, "aaa")).texts
    assert first != taught.answer(batch_of(taught, samples, "bbb")).texts


def test_saved_experts_answer_the_same_on_a_reloaded_model(
    taught: ContinualModule,
    family: str,
    folders: Folders,
    mix: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    batch = batch_of(taught, make_samples(mix))
    for name in "ab":
        save_expert(taught.library, name, tmp_path / name, "base")
    other = make_module(folders(family))
    for name in "ab":
        load_expert(other.library, name, tmp_path / name)
    assert torch.equal(logits(other, batch), logits(taught, batch))
    assert other.backbone.fingerprint() == taught.backbone.fingerprint()


def test_a_state_that_is_resumed_gives_the_same_next_step(
    fresh: ContinualModule, family: str, folders: Folders, mix: tuple[int, int, int]
) -> None:
    batch = batch_of(fresh, make_samples(mix), "aaa")
    add_expert(fresh, "a")
    step(fresh, batch)
    other = make_module(folders(family))
    other.library.rebuild(fresh.library.architecture())
    other.load_state_dict(fresh.state_dict())
    other.begin_stage(StageContext(1, ("a",)))
    assert step(other, batch) == step(fresh, batch)
    for key, tensor in fresh.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor)


def step(module: nn.Module, batch: Batch) -> float:
    parameters = [p for _, p in module.library.parameters("a")]
    for parameter in parameters:
        parameter.grad = None
    loss = loss_step(module, batch)
    torch.optim.SGD(parameters, lr=0.1).step()
    return loss


def test_another_image_gives_another_loss(
    taught: ContinualModule, mix: tuple[int, int, int]
) -> None:
    first = make_samples(mix)
    batch = make_batch(taught.backbone, first)
    before = taught.base_loss(batch)
    batch.inputs["pixel_values"] = batch.inputs["pixel_values"].flip(-1)
    assert (taught.base_loss(batch) - before).abs() > 1e-4
