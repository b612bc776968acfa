"""Router embeddings: pooled hidden states of the base model without experts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dmole.distributed import max_over_ranks
from dmole.experts.library import eval_mode
from dmole.models.selection import select_samples
from dmole.routing.embedding import EmbeddingCache, combine, masked_max_pool
from dmole.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmole.data.batch import Batch
    from dmole.models.backbone import Backbone


class Embedder:
    """Embeds samples with the frozen base model, each sample once.

    The embedding concatenates the maximum over the vision encoder's tokens and the maximum over
    the language model's tokens for the question alone, in fp32. It does not depend on experts,
    other samples of the batch or padding, so it is cached by sample.

    Args:
        backbone: The base model. The caller ensures that no gates are set.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672, equation of the sequence embedding. Two
        differences to the release: the maximum excludes padding, and a model that splits images
        into tiles is pooled over all tiles and the thumbnail.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.cache = EmbeddingCache()

    def __call__(self, batch: Batch, *, remember: bool = True) -> Tensor:
        """Return the embeddings of a batch, ``(B, D)`` fp32 on the CPU.

        Only samples without a cached embedding are computed, each once.

        Args:
            batch: The samples.
            remember: Whether to cache the embeddings.
        """
        keys = sample_keys(batch)
        known = self.cache.found(keys)
        real = range(batch.real)
        chosen = [i for i in real if keys[i] not in known and keys[i] not in keys[:i]]
        if self._backbone.in_step:
            known |= self._in_step(batch, chosen, remember=remember)
            empty = torch.zeros(self._backbone.embedding_width)
            return torch.stack([known.get(key, empty) for key in keys])
        if chosen:
            counts = self._vision_rows(batch)  # (B,)
            selected = self._selected(batch, chosen, counts)
            rows = self._embed(selected, counts[chosen])  # (M, D)
            names = sample_keys(selected)
            if remember:
                self.cache.add(names, rows)
            known |= dict(zip(names, rows, strict=True))
        return torch.stack([known[key] for key in keys])

    @torch.no_grad()
    def texts(self, batch: Batch) -> Tensor:
        """Return embeddings of the instructions, ``(B, D)`` fp32 of length 1 on the device.

        They are mean hidden states of the language model over the first user turn alone; zero for
        a turn without text.
        """
        with eval_mode(self._backbone), torch.autocast(_device(batch).type, enabled=False):
            hidden = self._backbone.text_hidden(**batch.question).float()  # (B, Q, D)
            weights = batch.question["attention_mask"][..., None].to(hidden.dtype)  # (B, Q, 1)
            return F.normalize((hidden * weights).sum(dim=1), dim=-1)

    def _in_step(self, batch: Batch, chosen: Sequence[int], *, remember: bool) -> dict[str, Tensor]:
        """Return the embeddings of some samples; all ranks embed their batches if any has one."""
        if not max_over_ranks(len(chosen), _device(batch)):
            return {}
        rows, keys = self.compute(batch), sample_keys(batch)  # (B, D)
        found = {keys[i]: rows[i] for i in chosen}
        if remember and found:
            self.cache.add(list(found), torch.stack(list(found.values())))
        return found

    def compute(self, batch: Batch) -> Tensor:
        """Return the embeddings of a batch, ``(B, D)`` fp32 on the CPU, known or not."""
        return self._embed(batch, self._vision_rows(batch))

    def _vision_rows(self, batch: Batch) -> Tensor:
        return self._backbone.vision_rows(batch.host.inputs, batch.host.image_counts)  # (B,)

    def _selected(self, batch: Batch, chosen: Sequence[int], rows: Tensor) -> Batch:
        """Return a batch of some samples, with questions padded to the longest of them."""
        if len(chosen) == len(batch):
            return batch
        config, counts = self._backbone.model.config, batch.host.image_counts
        longest = int(batch.host.question["attention_mask"][chosen].sum(dim=1).max())
        index = to_device(torch.tensor(chosen), _device(batch))
        return replace(
            batch,
            inputs=select_samples(config, batch.inputs, counts, chosen, rows),
            labels=None if batch.labels is None else batch.labels[index],
            question={k: v[index][:, :longest] for k, v in batch.question.items()},
            image_counts=batch.image_counts[index],
            sample_ids=[batch.sample_ids[i] for i in chosen],
            task_names=[batch.task_names[i] for i in chosen],
        )

    @torch.no_grad()
    def _embed(self, batch: Batch, counts: Tensor) -> Tensor:
        with eval_mode(self._backbone), torch.autocast(_device(batch).type, enabled=False):
            text = self._backbone.text_hidden(**batch.question)  # (B, S, Dl)
            pooled_text = masked_max_pool(text.float(), batch.question["attention_mask"])  # (B, Dl)
            return combine(self._pooled_vision(batch, pooled_text, counts), pooled_text).cpu()

    def _pooled_vision(self, batch: Batch, like: Tensor, counts: Tensor) -> Tensor:
        """Return ``(B, Dv)``: the maximum over the tokens of a sample's images, else 0."""
        samples = like.shape[0]
        width = self._backbone.vision_width
        pooled = like.new_full((samples, width), float("-inf"))  # (B, Dv)
        if "pixel_values" in batch.inputs:
            hidden = self._backbone.vision_hidden(batch.inputs).float()
            if hidden.shape[-1] != width:
                raise ValueError(
                    f"the vision encoder returns states of width {hidden.shape[-1]}, but its "
                    f"config states {width}"
                )
            hidden = hidden.reshape(-1, hidden.shape[-2], width) if hidden.ndim == 3 else hidden
            rows = hidden.amax(dim=1) if hidden.ndim == 3 else hidden  # packed patches: (rows, D)
            owner = torch.arange(samples).repeat_interleave(counts)  # (rows,)
            owner = to_device(owner, rows.device)
            pooled.scatter_reduce_(0, owner[:, None].expand_as(rows), rows, reduce="amax")
        return pooled.masked_fill(pooled.isinf(), 0.0)


def sample_keys(batch: Batch) -> list[str]:
    """Return keys of the batch's samples that are unique over tasks and splits."""
    split = "test" if batch.labels is None else "train"
    pairs = zip(batch.task_names, batch.sample_ids, strict=True)
    return [f"{task}/{split}/{sample_id}" for task, sample_id in pairs]


def _device(batch: Batch) -> torch.device:
    return batch.question["input_ids"].device
