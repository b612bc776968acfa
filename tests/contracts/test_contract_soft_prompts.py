"""In every model family a soft prompt acts like the tokens whose embeddings it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from families import make_samples, randomize
from families.modules import batch_of
from torch import Tensor
from torch.testing import assert_close

from dmole.data.batch import Batch
from dmole.data.labels import Targets
from dmole.experts import load_expert, save_expert
from dmole.experts.soft_prompts import PromptShape
from dmole.module import ContinualModule
from dmole.routing.routers import route_by_name
from dmole.run.context import StageContext

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
GATE_SETS = (("a",), (), ("b", "a"))
"""Soft prompts of three samples: of two tokens, none, of two and three."""


@pytest.fixture
def words(fresh: ContinualModule) -> dict[str, list[int]]:
    """Give the module the soft prompts ``a`` and ``b``, equal to words, and return the words."""
    tokenizer = fresh.backbone.processor.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = [i for i in range(len(tokenizer)) if i not in special][:5]
    found = {"a": ids[:2], "b": ids[2:]}
    path, _ = fresh.backbone.input_unit()
    for name, own in found.items():
        fresh.library.add_shapes(name, {path: PromptShape(len(own))})
        (prompt,) = (part for _, part in fresh.library.parts(name))
        embedding = fresh.backbone.model.get_input_embeddings().base
        prompt.tokens.data = embedding(torch.tensor(own)).detach().clone()
    return found


def written_out(
    module: ContinualModule, batch: Batch, words: Sequence[int]
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the input of one sample with words in it, and its labels."""
    bos = module.backbone.processor.tokenizer.bos_token_id
    after = int(int(batch.inputs["input_ids"][0, 0]) == bos)
    more = torch.tensor([list(words)], dtype=torch.long)

    def put(values: Tensor, new: Tensor) -> Tensor:
        return torch.cat([values[:, :after], new, values[:, after:]], dim=1)

    shape, inputs = batch.inputs["input_ids"].shape, {}
    for key, values in batch.inputs.items():
        inputs[key] = values
        if key == "input_ids":
            inputs[key] = put(values, more)
        elif values.shape[:2] == shape and not key.startswith(("pixel", "image")):
            like = values[:, :1].expand(1, more.shape[1], *values.shape[2:])
            assert key == "attention_mask" or not like.any()  # what the processor gives to text
            inputs[key] = put(values, like)
    labels = batch.labels
    return inputs, None if labels is None else put(labels, torch.full_like(more, -100))


def words_of(words: dict[str, list[int]], names: Sequence[str]) -> list[int]:
    return [token for name in sorted(names) for token in words[name]]  # oldest first


@torch.no_grad()
def test_soft_prompts_predict_what_the_words_they_equal_do(
    fresh: ContinualModule, mix: tuple[int, int, int], words: dict[str, list[int]]
) -> None:
    samples = make_samples(mix)
    batch = batch_of(fresh, samples)
    assert not batch.inputs["attention_mask"].bool().all()  # there is padding
    gates = fresh.make_gates(route_by_name(GATE_SETS, fresh.experts).gates, batch)
    with fresh.library.context.use(gates):
        together = fresh.backbone.answer_output(batch.inputs, batch.targets).logits
    for row, (sample, names) in enumerate(zip(samples, GATE_SETS, strict=True)):
        alone = batch_of(fresh, [sample])
        inputs, labels = written_out(fresh, alone, words_of(words, names))
        expected = fresh.backbone.answer_output(inputs, Targets.of(labels)).logits
        assert_close(together[batch.targets.samples == row], expected, **CLOSE)
    with fresh.library.context.use(None):
        plain = fresh.backbone.answer_output(batch.inputs, batch.targets).logits
    for row, names in enumerate(GATE_SETS):
        own = batch.targets.samples == row
        change = (together[own] - plain[own]).abs().max()
        assert change > 1e-2 if names else change < 1e-4


@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
@torch.no_grad()
def test_soft_prompts_answer_what_the_words_they_equal_do(
    fresh: ContinualModule, mix: tuple[int, int, int], words: dict[str, list[int]], beams: int
) -> None:
    samples = make_samples(mix, answers=False)
    batch = batch_of(fresh, samples)
    gates = fresh.make_gates(route_by_name(GATE_SETS, fresh.experts).gates, batch, beams)
    with fresh.library.context.use(gates):
        together = fresh.backbone.generate(batch.inputs, 5, beams)
    for sample, names, text in zip(samples, GATE_SETS, together, strict=True):
        inputs, _ = written_out(fresh, batch_of(fresh, [sample]), words_of(words, names))
        assert fresh.backbone.generate(inputs, 5, beams) == [text]


def test_a_step_trains_the_soft_prompt_alone_and_its_file_gives_the_same_loss(
    fresh: ContinualModule, mix: tuple[int, int, int], words: dict[str, list[int]], tmp_path: Path
) -> None:
    batch = batch_of(fresh, make_samples(mix), "aaa")
    fresh.focus(StageContext(1, ("b",)))
    randomize(fresh.library, "b")
    loss = fresh.loss_with(batch, "a", "b")
    loss.backward()
    for name, parameter in fresh.named_parameters():
        assert (parameter.grad is not None) == ("expert_b" in name)
        if parameter.grad is not None:
            assert parameter.grad.abs().sum(dim=1).min() > 0
            parameter.grad = None
    save_expert(fresh.library, "b", tmp_path / "b", "base")
    fresh.library.remove("b")
    load_expert(fresh.library, "b", tmp_path / "b", saved_as="b")
    assert torch.equal(fresh.loss_with(batch, "a", "b"), loss)
