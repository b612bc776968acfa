"""Gates: the experts that each sample uses, and the context that hands them to the linears.

A :class:`Gates` object is made once per batch and passed to the linears through a
:class:`GateContext` for exactly one forward or one ``generate``. Outside of these no gates are
set and every linear computes the base model's output.
"""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.experts.products import RowChannels
from dmole.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from dmole.experts.lora import RoutedLinear
    from dmole.experts.plan import LayerPlan
    from dmole.experts.products import Product
    from dmole.modality import Modality


@dataclass(frozen=True)
class MixingRecord:
    """Decisions of a linear that mixes experts by token, for the tokens of its input.

    Args:
        path: Full path of the linear.
        probabilities: ``(M, N)`` probabilities of the router for each valid token, float32, with
            their graph.
        weights: ``(M, N)`` factors of the experts.
        output: ``(rows, out)`` mean output of the common expert over valid tokens; None where the
            mixing has no common expert.
    """

    path: str
    probabilities: Tensor
    weights: Tensor
    output: Tensor | None = None


class Gates:
    """Weights of the experts for every sample of one batch.

    Args:
        experts: Names of the ``E`` experts, one for each column.
        weights: ``(B, E)``, or per token ``(B, S, E)`` for linears of the language modality.
        vision_rows: ``(B,)`` rows of the vision encoder that belong to each sample (images, tiles,
            or packed patches). ``None`` means one row per sample.
        token_mask: ``(B, S)`` 1 for a token of the language model, 0 for padding.
        recording: Whether linears that mix experts by token append to ``records``.
        answered: ``(B,)`` False for a sample whose tokens of images leave no record; None records
            all. Those of text are left out by ``token_mask``.
        texts: ``(B, D)`` embeddings of the samples' instructions; None where no linear reads them.

    Attributes:
        used: Experts with a weight other than 0, in the order of the columns.
        live: The same as a set.
        records: Decisions of the mixing linears in this forward, in the order of the model.
        decisions: Weights that a linear fixes for a whole ``generate``, by its path.
        plans: What each linear computes under these gates, by linear and by whether its weights
            are fixed; empty unless the gates are in use.
        products: How a linear adds its experts to inputs of a shape, for the same time.
        order: Experts of each sample, best first; None if it is that of the columns.
        placed: ``(B, T)`` soft prompt token at each place of the batch, see
            `dmole.experts.soft_prompts`; None before a batch got places for them.

    Raises:
        ValueError: If the shapes do not match.
    """

    def __init__(
        self,
        experts: Sequence[str],
        weights: Tensor,
        vision_rows: Tensor | None = None,
        token_mask: Tensor | None = None,
        recording: bool = False,
        answered: Tensor | None = None,
        texts: Tensor | None = None,
    ) -> None:
        if weights.ndim not in (2, 3) or weights.shape[-1] != len(experts):
            raise ValueError(
                f"weights must be (samples, {len(experts)}) or (samples, tokens, {len(experts)}), "
                f"got {tuple(weights.shape)}"
            )
        if vision_rows is not None and vision_rows.shape != weights.shape[:1]:
            raise ValueError(
                f"vision_rows must be ({weights.shape[0]},), got {tuple(vision_rows.shape)}"
            )
        self.experts = tuple(experts)
        self.weights = weights
        self.vision_rows = vision_rows
        self.token_mask = token_mask
        self.recording = recording
        self.texts = texts
        if answered is not None:
            answered = None if bool(answered.all()) else to_device(answered, weights.device)
        self._answered = answered
        self.records: list[MixingRecord] = []
        self.decisions: dict[str, Tensor] = {}
        self.plans: dict[tuple[RoutedLinear, bool], LayerPlan] = {}
        self.products: dict[tuple[RoutedLinear, torch.Size], Product] = {}
        self.order: Sequence[tuple[str, ...]] | None = None
        self.placed: Tensor | None = None
        columns = weights.detach().reshape(-1, len(self.experts)).cpu()  # (B or B * S, E)
        self._index = {name: column for column, name in enumerate(self.experts)}
        used, all_ones = columns.any(dim=0).tolist(), (columns == 1).all(dim=0).tolist()
        self.used = tuple(itertools.compress(self.experts, used))
        self.live = frozenset(self.used)
        self._all_ones = frozenset(itertools.compress(self.experts, all_ones))
        self._rows: dict[tuple[str, int], Tensor] = {}
        self._masks: dict[tuple[object, ...], Tensor] = {}
        self._positions: dict[tuple[object, ...], Tensor] = {}
        self._row_channels: dict[tuple[object, ...], RowChannels] = {}
        self._average: Gates | None = None
        self._weighed: frozenset[str] = frozenset()

    def average_outside(self, paths: Collection[str]) -> None:
        """Give each expert that a sample uses the same weight in all linears but some.

        The mean of the sample's weights takes their place, so that an expert alone keeps its own.

        Args:
            paths: Full paths of the linears that weigh the experts.
        """
        on = self.weights != 0  # (B, E)
        mean = self.weights.sum(-1, keepdim=True) / on.sum(-1, keepdim=True).clamp_min(1)
        self._average = Gates(
            self.experts, on * mean, self.vision_rows, self.token_mask, self.recording
        )
        self._weighed = frozenset(paths)

    def of(self, path: str) -> Gates:
        """Return the gates of a linear."""
        return self if self._average is None or path in self._weighed else self._average

    def forget(self) -> None:
        """Drop what linears have prepared, since the experts may change from now on."""
        self.plans.clear()
        self.products.clear()
        if self._average is not None:
            self._average.forget()

    def rank_mask(
        self, modality: Modality, names: Sequence[str], ranks: Sequence[int], x: Tensor
    ) -> Tensor | None:
        """Return the factor of every low-rank channel, or None where all factors are one.

        Args:
            modality: Modality of the linear.
            names: Experts computed by the linear, in the order of their channels.
            ranks: Number of low-rank channels of each of them.
            x: Input of the linear of shape ``(rows, ..., width)``.

        Returns:
            Tensor broadcastable to ``(rows, ..., sum(ranks))``, on the device of ``x``.

        Raises:
            ValueError: If the rows of ``x`` cannot be matched to the samples.
        """
        if all(name in self._all_ones for name in names):
            return None
        key = (modality, x.shape[0], x.ndim, x.device, *names, *ranks)
        if key not in self._masks:
            mask = self._channel_factors(modality, names, ranks, x.shape[0])
            if mask.ndim == 2:  # per sample: the same for all positions between rows and channels
                mask = mask.reshape(mask.shape[0], *[1] * (x.ndim - 2), mask.shape[1])
            self._masks[key] = to_device(mask, x.device)
        return self._masks[key]

    def row_channels(
        self,
        modality: Modality,
        names: Sequence[str],
        ranks: Sequence[int],
        scalings: Sequence[float],
        x: Tensor,
    ) -> RowChannels | None:
        """Return the channels that each row of a linear's input uses, on its device.

        Args:
            modality: Modality of the linear.
            names: Experts of the linear that some sample uses.
            ranks: Number of channels of each of them.
            scalings: Factor of each expert's update.
            x: Input of the linear.

        Returns:
            None if all rows have all experts with weight one, or if weights differ by token.
        """
        if self.weights.ndim == 3 or all(name in self._all_ones for name in names):
            return None
        key = (modality, len(x), x.device, *names, *ranks, *scalings)
        if key not in self._row_channels:
            columns = [self._index[name] for name in names]
            weights = self._expanded(modality, len(x))[:, columns].tolist()
            found = RowChannels.of(weights, ranks, scalings)
            self._row_channels[key] = RowChannels(
                to_device(found.index, x.device),
                to_device(found.factors, x.device),
                found.channels,
            )
        return self._row_channels[key]

    def _channel_factors(
        self, modality: Modality, names: Sequence[str], ranks: Sequence[int], rows: int
    ) -> Tensor:
        """Return ``(rows, sum(ranks))`` or ``(rows, S, sum(ranks))`` on the device of the gates."""
        weights = self._expanded(modality, rows)  # (rows, E) or (rows, S, E)
        zero = weights.new_zeros(weights.shape[:-1])
        columns = [self._index.get(name) for name in names]
        gates = torch.stack([zero if c is None else weights[..., c] for c in columns], dim=-1)
        repeats = torch.tensor(ranks, device=gates.device)
        return gates.repeat_interleave(repeats, dim=-1, output_size=sum(ranks))

    def valid_tokens(self, modality: Modality, x: Tensor) -> Tensor | None:
        """Return ``(rows, tokens)``, False where ``x`` holds padding; None if all are valid.

        Only sequences of the language model are padded; generated tokens are not.
        """
        mask = self.token_mask
        if modality != "language" or mask is None or x.ndim != 3 or x.shape[1] != mask.shape[1]:
            return None
        return mask.bool().repeat_interleave(x.shape[0] // mask.shape[0], dim=0).to(x.device)

    def valid_positions(self, modality: Modality, x: Tensor) -> Tensor | None:
        """Return the positions of recorded tokens in ``(rows, ...)``, flattened; None if all are.

        They are found once for all linears, since the host waits for the mask.
        """
        valid = self.valid_tokens(modality, x)
        if modality != "language" and self._answered is not None:
            rows = self._repeat(self._answered, modality, len(x))  # (rows,)
            valid = rows.repeat_interleave(x[..., 0].numel() // len(rows)).to(x.device)
        if valid is None:
            return None
        key = (modality, x.shape[:-1], x.device)
        if key not in self._positions:
            self._positions[key] = valid.reshape(-1).nonzero().flatten()
        return self._positions[key]

    def row_weights(self, modality: Modality, name: str, x: Tensor) -> Tensor:
        """Return the weight of one expert for each input row of a linear, ``(rows,)``."""
        weights = self._expanded(modality, x.shape[0])[..., self._index[name]]
        return to_device(weights, x.device)

    def _expanded(self, modality: Modality, rows: int) -> Tensor:
        """Repeat the samples' weights to the input rows of a linear, on the device of the gates."""
        key = (modality, rows)
        if key not in self._rows:
            weights = self.weights
            if modality != "language" and weights.ndim == 3:
                weights = weights.amax(dim=1)  # (B, S, E) -> (B, E)
            self._rows[key] = self._repeat(weights, modality, rows)
        return self._rows[key]

    def row_texts(self, modality: Modality, x: Tensor) -> Tensor:
        """Return the embedding of the instruction for each row of a linear's input, ``(rows, D)``.

        Raises:
            ValueError: If the gates have no embeddings of instructions.
        """
        if self.texts is None:
            raise ValueError(f"the {modality} needs embeddings of the samples' instructions")
        texts = self.texts.to(self.weights.device)
        return to_device(self._repeat(texts, modality, x.shape[0]), x.device)

    def mean_tokens(self, modality: Modality, x: Tensor) -> Tensor:
        """Return the mean of each row's valid tokens, ``(rows, width)``.

        Where a vision encoder packs the patches of all samples into one axis, this is the mean
        over the patches of the same sample.
        """
        if x.ndim == 2:
            samples = torch.arange(self.weights.shape[0], device=self.weights.device)
            owner = to_device(self._repeat(samples, modality, x.shape[0]), x.device)  # (rows,)
            sums = x.new_zeros(len(samples), x.shape[1]).index_add(0, owner, x)
            counts = torch.bincount(owner, minlength=len(samples)).clamp_min(1)
            return (sums / counts[:, None])[owner]
        valid = self.valid_tokens(modality, x)
        if valid is None:
            return x.mean(dim=1)  # (rows, tokens, width) -> (rows, width)
        weight = valid.to(x.dtype)[..., None]  # (rows, tokens, 1)
        return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)  # a row may have none

    def first_tokens(self, modality: Modality, x: Tensor) -> Tensor:
        """Return the first valid token of each row, ``(rows, width)``.

        Where a vision encoder packs the patches of all samples into one axis, this is the first
        patch of the same sample.
        """
        if x.ndim == 2:
            samples = torch.arange(self.weights.shape[0], device=self.weights.device)
            owner = self._repeat(samples, modality, x.shape[0])  # (rows,) sample of each patch
            return x[torch.searchsorted(owner, owner).to(x.device)]
        valid = self.valid_tokens(modality, x)
        if valid is None:
            return x[:, 0]
        return x[torch.arange(x.shape[0], device=x.device), valid.int().argmax(dim=1)]

    def _repeat(self, values: Tensor, modality: Modality, rows: int) -> Tensor:
        """Repeat values of the samples, ``(B, ...)``, to the input rows of a linear."""
        samples = self.weights.shape[0]
        if modality == "language":
            if rows % samples:
                raise ValueError(f"{rows} language rows cannot be split over {samples} samples")
            return values.repeat_interleave(rows // samples, dim=0)  # beams
        counts = self.vision_rows
        if counts is None:
            counts = torch.ones(samples, dtype=torch.long)
        counts = counts.to(self.weights.device)
        if modality == "projector":
            counts = _merged(counts, rows)
        if int(counts.sum()) != rows:
            raise ValueError(
                f"the {modality} sees {rows} rows, but the {samples} samples have "
                f"{int(counts.sum())}; this model family needs its own vision row count"
            )
        return values.repeat_interleave(counts, dim=0)


def _merged(counts: Tensor, rows: int) -> Tensor:
    """Divide the rows of each sample by the merge factor if all quotients are whole."""
    total = int(counts.sum())
    factor = total // rows if rows and total % rows == 0 else 1
    return counts // factor if not (counts % factor).any() else counts


class GateContext:
    """Holds the gates of the current forward; shared by all linears of a library.

    Args:
        require: Loads the experts with the given names before a forward uses them.
    """

    def __init__(self, require: Callable[[Iterable[str]], None] | None = None) -> None:
        self.current: Gates | None = None
        self._require = require

    @contextmanager
    def use(self, gates: Gates | None) -> Iterator[None]:
        """Set the gates for the body of a ``with`` statement and restore the previous ones."""
        if gates is not None and self._require is not None:
            self._require(gates.used)
        before, self.current = self.current, gates
        try:
            yield
        finally:
            self.current = before
            if gates is not None and gates is not before:
                gates.forget()

    def for_checkpointing(
        self,
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of the forward and of its recomputation in the backward pass.

        Pass this as ``context_fn`` to :func:`torch.utils.checkpoint.checkpoint`, which recomputes
        a block after the ``with`` statement of its forward has ended.
        """
        return nullcontext(), self.use(self.current)
