"""Which expert weighs how much in which row: beams, tiles, tokens; and how long gates last."""

from __future__ import annotations

import doctest
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from families import (
    MODEL_FAMILIES,
    all_linears,
    make_backbone,
    make_batch,
    make_samples,
    randomize,
)
from torch import nn
from torch.testing import assert_close

from dmole.data.sample import Sample
from dmole.experts import ExpertLibrary, GateContext, Gates
from dmole.experts import gates as gates_module
from dmole.modality import Modality
from dmole.models import Backbone

PAIRS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def mask(
    gates: Gates,
    modality: Modality,
    rows: int,
    ranks: Sequence[int] = (2, 3),
    names: Sequence[str] = ("a", "b"),
    tail: Sequence[int] = (4, 8),
) -> torch.Tensor | None:
    return gates.rank_mask(modality, list(names), list(ranks), torch.zeros(rows, *tail))


def test_docstring_examples_hold() -> None:
    assert doctest.testmod(gates_module).failed == 0


def test_each_rank_channel_carries_the_gate_of_its_expert() -> None:
    found = mask(Gates(["a", "b"], torch.tensor([[0.5, 2.0], [0.0, 1.0]])), "language", 2)
    assert found.shape == (2, 1, 5)
    assert found[:, 0].tolist() == [[0.5, 0.5, 2, 2, 2], [0, 0, 1, 1, 1]]


def test_an_expert_without_a_column_has_gate_zero() -> None:
    found = mask(Gates(["a"], torch.ones(2, 1)), "language", 2)
    assert found[:, 0].tolist() == [[1, 1, 0, 0, 0]] * 2


def test_no_mask_is_needed_where_every_gate_is_one() -> None:
    gates = Gates(["a", "b"], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert mask(gates, "language", 2, ranks=(2,), names=("a",)) is None
    assert gates.live == {"a"}


def test_beams_repeat_the_language_rows_of_each_sample() -> None:
    found = mask(Gates(["a", "b"], PAIRS), "language", 6)
    assert found[:, 0, 0].tolist() == [1, 1, 0, 0, 1, 1]


def test_vision_rows_follow_the_tiles_of_each_sample_and_text_only_samples_have_none() -> None:
    gates = Gates(["a", "b"], PAIRS, torch.tensor([3, 0, 2]))
    found = mask(gates, "vision", 5)
    assert found[:, 0, 0].tolist() == [1, 1, 1, 1, 1]
    assert found[:, 0, 4].tolist() == [0, 0, 0, 1, 1]


def test_packed_patches_without_a_token_axis_are_rows_too() -> None:
    gates = Gates(["a", "b"], PAIRS, torch.tensor([2, 0, 1]))
    assert mask(gates, "vision", 3, tail=(8,)).shape == (3, 5)


def test_per_token_gates_reach_their_token() -> None:
    weights = torch.rand(2, 4, 2)
    found = mask(Gates(["a", "b"], weights), "language", 2)
    assert found.shape == (2, 4, 5)
    assert_close(found, weights.repeat_interleave(torch.tensor([2, 3]), dim=-1))


def test_vision_takes_the_largest_gate_of_a_samples_tokens() -> None:
    weights = torch.tensor([[[0.2, 0.0], [0.7, 0.1]]])
    found = mask(Gates(["a", "b"], weights, torch.tensor([2])), "vision", 2, ranks=(1, 1))
    assert_close(found[:, 0], torch.tensor([[0.7, 0.1]] * 2))


def test_language_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="4 language rows cannot be split over 3 samples"):
        mask(Gates(["a", "b"], PAIRS), "language", 4)


def test_vision_rows_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="sees 4 rows, but the 3 samples have 5"):
        mask(Gates(["a", "b"], PAIRS, torch.tensor([3, 0, 2])), "vision", 4)


def test_without_row_counts_each_sample_has_one_vision_row() -> None:
    assert mask(Gates(["a", "b"], PAIRS), "vision", 3).shape == (3, 1, 5)
    with pytest.raises(ValueError, match="sees 6 rows, but the 3 samples have 3"):
        mask(Gates(["a", "b"], PAIRS), "vision", 6)


def test_weights_and_row_counts_of_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights must be \(samples, 2\)"):
        Gates(["a", "b"], torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"weights must be"):
        Gates(["a"], torch.ones(1))
    with pytest.raises(ValueError, match=r"vision_rows must be \(3,\), got \(2,\)"):
        Gates(["a", "b"], PAIRS, torch.tensor([1, 1]))


def test_gates_of_one_batch_serve_layers_with_different_rows() -> None:
    gates = Gates(["a", "b"], PAIRS, torch.tensor([1, 1, 2]))
    assert mask(gates, "language", 3).shape[0] == 3
    assert mask(gates, "language", 9).shape[0] == 9
    assert mask(gates, "vision", 4).shape[0] == 4
    assert mask(gates, "language", 3).shape[0] == 3


def test_a_context_restores_what_was_set_before_even_after_an_error() -> None:
    context, gates = GateContext(), Gates(["a"], torch.ones(1, 1))

    def fail() -> None:
        with context.use(None):
            assert context.current is None
            raise RuntimeError("broken")

    with context.use(gates):
        with pytest.raises(RuntimeError, match="broken"):
            fail()
        assert context.current is gates
    assert context.current is None


def test_recomputation_sees_the_gates_of_its_forward() -> None:
    context, gates = GateContext(), Gates(["a"], torch.ones(1, 1))
    with context.use(gates):
        _, again = context.for_checkpointing()
    with context.use(Gates(["a"], torch.zeros(1, 1))), again:
        assert context.current is gates


Model = tuple[Backbone, ExpertLibrary]
Answered = tuple[torch.Tensor, dict[str, set[int]]]
"""Generated ids, and how many rows the first linear of each modality saw."""


def library_with_two_experts(backbone: Backbone) -> ExpertLibrary:
    def modality_of(path: str) -> Modality:
        return "language" if backbone.parts.modality_of(path) == "language" else "vision"

    library = ExpertLibrary(backbone.model, modality_of)
    for name, rank in (("a", 2), ("b", 3)):
        paths = all_linears(backbone)
        library.add(name, dict.fromkeys(paths, rank), dict.fromkeys(paths, 4.0 + rank))
        randomize(library, name, 0.2)
    return library


@pytest.fixture(scope="module", params=MODEL_FAMILIES)
def family(request: pytest.FixtureRequest) -> Model:
    backbone = make_backbone(request.param)
    return backbone, library_with_two_experts(backbone)


IMAGES = (1, 0, 2, 1)
MIXED = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])


def logits(
    backbone: Backbone, library: ExpertLibrary, samples: Sequence[Sample], weights: torch.Tensor
) -> torch.Tensor:
    batch = make_batch(backbone, samples)
    rows = backbone.vision_rows(batch.inputs, batch.image_counts)
    with torch.no_grad(), library.context.use(Gates(["a", "b"], weights, rows)):
        out = backbone.model(**batch.inputs, use_cache=False).logits
    return [row[m.bool()] for row, m in zip(out, batch.inputs["attention_mask"], strict=True)]


def test_a_batch_of_mixed_gates_equals_its_samples_one_by_one(family: Model) -> None:
    backbone, library = family
    samples = make_samples(IMAGES)
    together = logits(backbone, library, samples, MIXED)
    for i, sample in enumerate(samples):
        (alone,) = logits(backbone, library, [sample], MIXED[i : i + 1])
        assert_close(together[i], alone, rtol=1e-4, atol=1e-4)


def test_every_gate_set_gives_each_sample_other_logits(family: Model) -> None:
    backbone, library = family
    samples = make_samples(IMAGES)
    found = [
        logits(backbone, library, samples, row.expand(4, 2).clone()) for row in MIXED
    ]  # the base, either expert, and both
    for sample in range(4):
        for i in range(4):
            for j in range(i):
                assert (found[i][sample] - found[j][sample]).abs().max() > 1e-2


def test_vision_experts_alone_leave_samples_without_images_as_they_were(family: Model) -> None:
    backbone, library = family
    saved = library.state_dict("a")
    for path, expert in library.experts("a"):
        if backbone.parts.modality_of(path) == "language":
            expert.lora_b.data.zero_()
    samples = make_samples(IMAGES)
    one = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    changed, base = (
        logits(backbone, library, samples, weights) for weights in (one, torch.zeros(4, 2))
    )
    library.load_state_dict("a", saved)
    assert torch.equal(changed[1], base[1])
    assert not torch.equal(changed[0], base[0])


def test_permuting_the_batch_permutes_the_outputs(family: Model) -> None:
    backbone, library = family
    samples = make_samples(IMAGES)
    order = [2, 0, 3, 1]
    plain = logits(backbone, library, samples, MIXED)
    mixed = logits(backbone, library, [samples[i] for i in order], MIXED[order])
    for place, i in enumerate(order):
        assert_close(mixed[place], plain[i], rtol=1e-4, atol=1e-4)


def test_padding_and_batch_mates_do_not_change_a_sample(family: Model) -> None:
    backbone, library = family
    samples = make_samples(IMAGES)
    for i in (0, 1):
        mates = [samples[i], samples[2]]
        with_mate = logits(backbone, library, mates, torch.stack((MIXED[i], MIXED[2])))
        (alone,) = logits(backbone, library, mates[:1], MIXED[i : i + 1])
        assert_close(with_mate[0], alone, rtol=1e-4, atol=1e-4)


def answer(
    backbone: Backbone,
    library: ExpertLibrary,
    samples: Sequence[Sample],
    weights: torch.Tensor,
    **options: Any,
) -> Answered:
    """Generate token ids under gates, and record which gates each forward saw."""
    batch = make_batch(backbone, samples)
    rows = backbone.vision_rows(batch.inputs, batch.image_counts)
    gates = Gates(["a", "b"], weights, rows)
    seen: list[Gates | None] = []
    counts: dict[str, set[int]] = {"vision": set(), "language": set()}

    def hook(modality: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen.append(library.context.current)
            counts[modality].add(args[0].shape[0])

        return record

    handles = [
        backbone.model.get_submodule(block.linears[0]).register_forward_pre_hook(
            hook("language" if block.modality == "language" else "vision")
        )
        for block in backbone.blocks
    ]
    with torch.no_grad(), library.context.use(gates):
        tokens = backbone.model.generate(
            **batch.inputs, max_new_tokens=6, do_sample=False, **options
        )
    for handle in handles:
        handle.remove()
    assert seen
    assert all(found is gates for found in seen)
    return tokens[:, batch.inputs["input_ids"].shape[1] :], counts


def test_generation_uses_the_same_gates_at_every_step_with_and_without_cache(family: Model) -> None:
    backbone, library = family
    samples = make_samples(IMAGES, answers=False)
    # without cache, an image token in an answer would need an image
    no_image = {"suppress_tokens": [backbone.model.config.image_token_id]}
    cached, _ = answer(backbone, library, samples, MIXED, use_cache=True, **no_image)
    plain, _ = answer(backbone, library, samples, MIXED, use_cache=False, **no_image)
    assert torch.equal(cached, plain)


def test_left_padded_answers_equal_those_of_the_samples_alone(family: Model) -> None:
    backbone, library = family
    samples = make_samples(IMAGES, answers=False)
    together, _ = answer(backbone, library, samples, MIXED)
    for i, sample in enumerate(samples):
        alone, _ = answer(backbone, library, [sample], MIXED[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


def test_beams_expand_the_language_rows_and_not_those_of_the_vision_encoder(family: Model) -> None:
    backbone, library = family
    samples = make_samples(IMAGES, answers=False)
    together, counts = answer(backbone, library, samples, MIXED, num_beams=3)
    batch = make_batch(backbone, samples)
    rows = int(backbone.vision_rows(batch.inputs, batch.image_counts).sum())
    assert counts["language"] == {12}
    assert rows in counts["vision"]
    assert 3 * rows not in counts["vision"]
    for i, sample in enumerate(samples):
        alone, _ = answer(backbone, library, [sample], MIXED[i : i + 1], num_beams=3)
        assert torch.equal(together[i : i + 1], alone)


def gradients(
    backbone: Backbone, library: ExpertLibrary, checkpointing: bool
) -> dict[str, torch.Tensor]:
    batch = make_batch(backbone, make_samples(IMAGES))
    rows = backbone.vision_rows(batch.inputs, batch.image_counts)
    if checkpointing:
        backbone.checkpoint_activations(library.context.for_checkpointing)
    library.train_only("b")
    backbone.train()
    with library.context.use(Gates(["a", "b"], MIXED, rows)):
        loss = backbone.loss(batch.inputs, batch.labels)
    with library.context.use(Gates(["a", "b"], 1 - MIXED, rows)):  # must not reach the backward
        loss.backward()
    model: Any = backbone.model
    name = "activation" if hasattr(model, "activation_checkpointing_disable") else "gradient"
    getattr(model, f"{name}_checkpointing_disable")()
    backbone.eval()
    found = [parameter.grad.clone() for _, parameter in library.parameters("b")]
    backbone.zero_grad()
    return found


def test_activation_checkpointing_gives_equal_gradients_though_the_context_is_left(
    family: Model,
) -> None:
    backbone, library = family
    plain = gradients(backbone, library, checkpointing=False)
    forwards = []
    path = backbone.blocks[-1].linears[0]
    handle = backbone.model.get_submodule(path).register_forward_pre_hook(
        lambda *_: forwards.append(library.context.current)
    )
    checkpointed = gradients(backbone, library, checkpointing=True)
    handle.remove()
    assert len(forwards) == 2  # it was computed again
    assert forwards[0] is forwards[1]
    assert any(gradient.abs().max() > 0 for gradient in plain)
    for one, other in zip(plain, checkpointed, strict=True):
        assert torch.equal(one, other)


def test_a_projector_may_see_merged_rows_but_a_vision_encoder_may_not() -> None:
    gates = Gates(["a", "b"], torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([8, 4]))
    mask = gates.rank_mask("projector", ["a", "b"], [1, 1], torch.zeros(3, 5))
    assert mask.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert gates.rank_mask("projector", ["a"], [1], torch.zeros(12, 5)).sum() == 8
    with pytest.raises(ValueError, match="vision sees 3 rows"):
        gates.rank_mask("vision", ["a"], [1], torch.zeros(3, 5))
    for rows in (2, 5):  # 12 rows are no whole groups of each sample
        gates = Gates(["a"], torch.tensor([[1.0], [0.0]]), torch.tensor([7, 5]))
        with pytest.raises(ValueError, match=f"projector sees {rows} rows"):
            gates.rank_mask("projector", ["a"], [1], torch.zeros(rows, 5))


def test_positions_of_valid_tokens_are_on_the_device_of_each_linear() -> None:
    mask = torch.tensor([[0, 1], [1, 1]])
    gates = Gates(["a"], torch.ones(2, 1), token_mask=mask)
    found = gates.valid_positions("language", torch.zeros(2, 2, 3))
    assert found is not None
    assert found.tolist() == [1, 2, 3]
    with pytest.raises(NotImplementedError):  # a device without values cannot count them
        gates.valid_positions("language", torch.zeros(2, 2, 3, device="meta"))
