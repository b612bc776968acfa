"""A base model in shards holds and gathers what is reckoned."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from families import make_backbone, make_batch, make_samples
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from two_ranks import on_ranks

from dmole.models import Backbone
from dmole.models.sharding import BaseShards
from dmole.planning import memory
from dmole.planning.shape import model_shape


def test_a_shared_table_is_split_twice_and_the_widest_part_is_gathered_beside_the_output() -> None:
    shape = model_shape("Qwen/Qwen3-VL-4B-Instruct")
    table = 2 * shape.embedding_parameters
    assert shape.head_parameters == 0
    shard, gathered = memory.sharded_bytes(shape, "bfloat16", 1)
    assert shard == 2 * shape.parameters + table
    assert gathered == 2 * table  # wider than two blocks and the output linear
    assert memory.sharded_bytes(shape, "bfloat16", 4, repeated=True)[1] == 3 * table
    whole = memory.sharded_bytes(shape, "bfloat16", 4, whole=True)
    both = shard + shard / 4
    assert sum(whole) == pytest.approx(both, rel=0.02)  # but for what is not split


@pytest.mark.slow  # two processes
def test_ranks_hold_and_gather_what_is_reckoned(tmp_path: Path) -> None:
    """One row of a weight may be left over. The input and output embeddings are one tensor."""
    backbone = make_backbone("llava")
    model: Any = backbone.model
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.config.to_json_file(tmp_path / "config.json")
    shape = model_shape(str(tmp_path))
    table = memory.FP32 * shape.embedding_parameters
    shard, gathered = memory.sharded_bytes(shape, "float32", 2)
    again = memory.sharded_bytes(shape, "float32", 2, repeated=True)[1]
    for held, first, later in on_ranks(2, lambda: sharded_passes(backbone)):
        assert held == pytest.approx(shard, rel=0.01)
        assert first == pytest.approx(2 * table, rel=0.01)  # two blocks come in the backward pass
        assert first < gathered
        assert later == pytest.approx(again, rel=0.01)


def sharded_passes(backbone: Backbone) -> tuple[int, int, int]:
    """Return the bytes of the shards, and the most that two passes gather beside them."""
    dist.init_process_group("gloo")
    backbone.model.requires_grad_(False)
    whole = bytes_in_passes(backbone)
    shards = BaseShards(backbone, torch.device("cpu"))
    split = bytes_in_passes(backbone)
    shards.release()
    first, later = (
        max(ours - theirs for ours, theirs in zip(*both, strict=True))
        for both in zip(split, whole, strict=True)
    )
    return shards.resident_bytes(), first, later


def bytes_in_passes(backbone: Backbone) -> list[list[int]]:
    """Return the bytes of all tensors when each linear begins, in two passes one after the other.

    They are counted from those before the first pass.
    """
    batch = make_batch(backbone, make_samples((1, 1)))
    modules = [m for m in backbone.model.modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    found: list[int] = []
    hooks = [m.register_forward_pre_hook(lambda *_: found.append(tensor_bytes())) for m in modules]
    before = tensor_bytes()
    for _ in range(2):
        with torch.no_grad():
            backbone.answer_output(batch.inputs, batch.targets).loss()
    for hook in hooks:
        hook.remove()
    half = len(found) // 2
    counts = [count - before for count in found]
    return [counts[:half], counts[half:]]


def tensor_bytes() -> int:
    """Return the bytes of all tensors that Python knows."""
    sizes = {}
    for item in gc.get_objects():
        if issubclass(type(item), Tensor):
            local = item.to_local() if isinstance(item, DTensor) else item
            storage = local.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())
