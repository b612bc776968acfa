"""Soft prompts in the library: place, start, sums of several, what is refused, hostile files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_backbone, make_batch, make_samples, randomize
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from dmole.allocation import PromptAllocator
from dmole.data.labels import Targets
from dmole.experts import ExpertLibrary, ExpertShape, Gates, load_expert, save_expert
from dmole.experts.soft_prompts import NONE, PromptedEmbedding, PromptShape
from dmole.models import Backbone
from dmole.models.insertion import Insertion, check_insertion
from dmole.module import ContinualModule
from dmole.routing import AllExpertsRouter, CommonExpertRouter, CommonMixing, KeyRouter

WIDTH, WORDS = 4, 20


class Toy(nn.Module):
    """An input embedding, and a linear behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.linear = nn.Linear(WIDTH, 3)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


def make_library(**options: Any) -> ExpertLibrary:
    torch.manual_seed(0)
    return ExpertLibrary(Toy(), lambda _: "language", **options)


def holder(library: ExpertLibrary) -> PromptedEmbedding:
    embedding = library.model.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(embedding, PromptedEmbedding)
    return embedding


def test_a_new_soft_prompt_holds_embeddings_of_the_vocabulary_that_depend_on_its_name() -> None:
    library = make_library()
    words = library.model.embed.weight.detach().clone()  # type: ignore[union-attr]
    for name in "ab":
        library.add_shapes(name, {"embed": PromptShape(5)})
        (tokens,) = library.tensors(name).values()
        assert tokens.shape == (5, WIDTH)
        assert ((tokens[:, None] == words).all(dim=-1)).any(dim=1).all()
    assert not torch.equal(*(library.tensors(name)["embed.tokens"] for name in "ab"))
    assert library.count("a") == 5 * WIDTH
    assert library.architecture() == {"a": {"embed": [5]}, "b": {"embed": [5]}}
    for name in "ab":
        library.remove(name)
    assert torch.equal(library.model.embed.weight, words)  # type: ignore[union-attr]
    assert type(library.model.embed) is nn.Embedding


def test_each_sample_has_the_rows_of_its_soft_prompts_the_best_or_newest_last() -> None:
    library = make_library()
    for name, size in (("a", 2), ("b", 1), ("c", 3)):
        library.add_shapes(name, {"embed": PromptShape(size)})
    gates = Gates("cba", torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    with library.context.use(gates):
        rows = holder(library).rows()
    assert rows is not None  # the tokens of a and c, of a, none
    assert rows.tolist() == [[0, 1, 2, 3, 4], [0, 1, *[NONE] * 3], [NONE] * 5]
    gates.order = [("a", "c"), ("a",), ()]
    with library.context.use(gates):
        rows = holder(library).rows()
    assert rows is not None
    assert rows.tolist() == [[2, 3, 4, 0, 1], [0, 1, *[NONE] * 3], [NONE] * 5]
    with library.context.use(Gates("cba", torch.zeros(2, 3))):
        assert holder(library).rows() is None


def test_an_expert_may_have_a_soft_prompt_and_low_rank_updates() -> None:
    library = make_library()
    library.add_shapes("a", {"embed": PromptShape(2), "linear": ExpertShape(1, 1.0)})
    assert library.count("a") == 2 * WIDTH + WIDTH + 3
    assert [path for path, _ in library.experts("a")] == ["linear"]
    library.train_only("a")
    assert all(part.learning for _, part in library.parts("a"))
    other = make_library(seed=1)
    other.rebuild(json.loads(json.dumps(library.architecture())))
    other.load_state_dict("a", library.state_dict("a"))
    assert other.digest("a") == library.digest("a")


def test_a_soft_prompt_in_host_memory_is_loaded_for_the_batch_that_uses_it() -> None:
    library = make_library(past_on_device=0)
    library.add_shapes("a", {"embed": PromptShape(2)})
    value = library.state_dict("a")["embed.tokens"]
    library.train_only(None)
    assert not holder(library).expert("a").tokens.numel()
    assert torch.equal(library.tensors("a")["embed.tokens"], value)
    with library.context.use(Gates("a", torch.ones(1, 1))):
        holder(library).place(torch.tensor([[NONE, 0, 1]]))
        out = holder(library)(torch.tensor([[3, 0, 0]]))
    assert torch.equal(out[0, 1:], value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.tensor([[0.5]]), "soft prompt 'a' has weight 0.5, expected 0 or 1"),
        (torch.ones(1, 3, 1), "soft prompts are chosen by sample, the gates differ by token"),
    ],
)
def test_other_gates_than_on_and_off_are_refused(weights: Tensor, message: str) -> None:
    library = make_library()
    library.add_shapes("a", {"embed": PromptShape(2)})
    with (
        library.context.use(Gates("a", weights)),
        pytest.raises(ValueError, match=message),
    ):
        holder(library).rows()


def test_a_batch_without_places_is_refused_rather_than_read_without_its_soft_prompts() -> None:
    library = make_library()
    library.add_shapes("a", {"embed": PromptShape(2)})
    with (
        library.context.use(Gates("a", torch.ones(1, 1))),
        pytest.raises(ValueError, match="the batch has no places for the soft prompts"),
    ):
        library.model.embed(torch.tensor([[1, 2]]))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        ("embed", PromptShape(0), "a soft prompt of 0 tokens in embed, expected 1 to 20"),
        ("embed", PromptShape(10**9), "a soft prompt of 1000000000 tokens in embed"),
        ("linear", PromptShape(2), "submodule 'linear' is a Linear, not a Embedding"),
        ("embed", ExpertShape(1, 1.0), "submodule 'embed' is a Embedding, not a Linear"),
        ("other", PromptShape(2), "the model has no embedding 'other'"),
    ],
)
def test_a_soft_prompt_that_does_not_fit_is_refused(path: str, shape: Any, message: str) -> None:
    library = make_library()
    with pytest.raises(ValueError, match=message):
        library.add_shapes("a", {path: shape})
    assert library.names == ()


# -- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "tensors"),
    [
        ([3], {"embed.tokens": torch.zeros(2, WIDTH)}),
        ([2.5], {"embed.tokens": torch.zeros(2, WIDTH)}),
        ([10**12], {"embed.tokens": torch.zeros(2, WIDTH)}),
        ([2], {"embed.tokens": torch.zeros(2, WIDTH, dtype=torch.long)}),
        ([2], {"embed.tokens": torch.zeros(2)}),
        ([2], {"embed.lora_a": torch.zeros(2, WIDTH)}),
        ([2], {"embed.tokens": torch.zeros(2, WIDTH), "embed.more": torch.zeros(1)}),
        ([2], {}),
    ],
)
def test_a_file_that_does_not_describe_its_tensors_is_refused(
    tmp_path: Path, numbers: list[float], tensors: dict[str, Tensor]
) -> None:
    (tmp_path / "mixture.json").write_text(
        json.dumps({"base_model": "x", "layers": {"embed": numbers}})
    )
    save_file(tensors, tmp_path / "mixture.safetensors")
    library = make_library()
    with pytest.raises(ValueError, match=r"mixture\.json: linear embed does not match its tensors"):
        load_expert(library, "a", tmp_path)
    assert library.names == ()


def test_a_soft_prompt_of_another_width_is_refused_and_one_of_a_file_is_read_to_the_bit(
    tmp_path: Path,
) -> None:
    library = make_library()
    library.add_shapes("a", {"embed": PromptShape(2)})
    randomize(library, "a")
    save_expert(library, "a", tmp_path / "a", "base")
    other = make_library(seed=3)
    load_expert(other, "a", tmp_path / "a", saved_as="a")
    assert other.digest("a") == library.digest("a")
    save_file({"embed.tokens": torch.zeros(2, 3)}, tmp_path / "a" / "mixture.safetensors")
    with pytest.raises(ValueError, match=r"tensor embed.tokens has shape \(2, 3\), the model"):
        load_expert(other, "b", tmp_path / "a")
    assert other.names == ("a",)


# -- places in a batch -----------------------------------------------------------------------


def inserted(side: Any) -> Insertion:
    inputs = {  # 1 begins a sequence, 0 pads
        "input_ids": torch.tensor([[1, 5, 6, 7], [8, 9, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    if side == "left":
        inputs = {key: value.roll(2, 1) for key, value in inputs.items()}
        inputs["input_ids"][0] = torch.tensor([1, 5, 6, 7])
        inputs["attention_mask"][0] = 1
    return Insertion.of(inputs, torch.tensor([[4, NONE], [2, 3]]), side, pad=0, begin=1)


def test_places_are_behind_the_token_that_begins_a_sequence_or_in_front() -> None:
    right = inserted("right")
    assert right.inputs["input_ids"].tolist() == [[1, 0, 5, 6, 7, 0], [0, 0, 8, 9, 0, 0]]
    assert right.index.tolist() == [[NONE, 4, *[NONE] * 4], [2, 3, *[NONE] * 4]]
    assert right.inputs["attention_mask"].tolist() == [[1] * 5 + [0], [1] * 4 + [0] * 2]
    left = inserted("left")
    assert left.inputs["input_ids"].tolist() == [[0, 1, 0, 5, 6, 7], [0, 0, 0, 0, 8, 9]]
    assert left.index.tolist() == [[*[NONE] * 2, 4, *[NONE] * 3], [*[NONE] * 2, 2, 3, NONE, NONE]]
    assert left.inputs["attention_mask"].tolist() == [[0] + [1] * 5, [0] * 2 + [1] * 4]


def test_answers_are_found_where_they_have_moved() -> None:
    labels = torch.tensor([[-100, -100, 6, 7], [-100, 9, -100, -100]])
    found = inserted("right").moved(Targets.of(labels))
    assert found.tokens.tolist() == [6, 7, 9]
    assert found.positions.tolist() == [2, 3, 6 + 2]  # of 5, 6 and 8
    assert found.shape == (2, 6)


def test_a_sample_that_becomes_too_long_is_refused() -> None:
    inserted("right").check_length(5)
    with pytest.raises(ValueError, match="a sample has 5 tokens with its soft prompts, the base"):
        inserted("right").check_length(4)


def test_inputs_that_nobody_knows_are_refused() -> None:
    inputs = {key: torch.ones(2, 3) for key in ("input_ids", "attention_mask", "surprise")}
    with pytest.raises(ValueError, match="input surprise has unknown entries"):
        Insertion.of(inputs, torch.zeros(2, 1), "right", 0, None)


def test_a_family_that_was_not_tried_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cannot be put into the input of a foo model"):
        check_insertion("foo")


# -- on a model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone("llava")


def make_module(backbone: Backbone, router: Any = None) -> ContinualModule:
    return ContinualModule(backbone, PromptAllocator(3), router or AllExpertsRouter(), dropout=0.0)


def test_samples_without_soft_prompts_are_those_of_the_base_model_to_the_bit(
    backbone: Backbone,
) -> None:
    module, batch = make_module(backbone), make_batch(backbone, make_samples())
    plain = module.base_loss(batch)
    module.add_expert(module.allocator.allocate("a", module.units(), None, first=True))
    assert torch.equal(module.base_loss(batch), plain)
    gates = module.make_gates(torch.zeros(3, 1), batch)
    with module.library.context.use(gates):
        assert torch.equal(backbone.answer_output(batch.inputs, batch.targets).loss(), plain)
    assert not torch.equal(module.loss_with(batch, "a"), plain)
    module.library.remove("a")


def test_recomputed_activations_and_half_precision_train_it_as_well() -> None:
    backbone = make_backbone("llava")
    module, batch = make_module(backbone), make_batch(backbone, make_samples())
    module.add_expert(module.allocator.allocate("a", module.units(), None, first=True))
    module.library.train_only("a")
    (prompt,) = (part for _, part in module.library.parts("a"))

    def gradient() -> Tensor:
        prompt.tokens.grad = None
        module.loss_with(batch, "a").backward()
        assert prompt.tokens.grad is not None
        return prompt.tokens.grad.clone()

    plain = gradient()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(gradient(), plain, rtol=0.3, atol=0.05 * float(plain.abs().max()))
    backbone.checkpoint_activations(module.library.context.for_checkpointing)
    backbone.train()
    assert_close(gradient(), plain)


def test_it_is_not_mixed_within_linears(backbone: Backbone) -> None:
    module = make_module(backbone, CommonExpertRouter(KeyRouter(), CommonMixing()))
    plan = module.allocator.allocate("a", module.units(), None, first=True)
    with pytest.raises(ValueError, match="CommonExpertRouter mixes experts within linears"):
        module.add_expert(plan)


def test_an_allocator_of_no_tokens_or_without_an_input_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        PromptAllocator(tokens=0)
    with pytest.raises(ValueError, match=r"the model has no unit language\.input"):
        PromptAllocator().allocate("a", [], None, first=True)
